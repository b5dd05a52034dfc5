"""Graceful stops: on SIGTERM and SIGUSR1, which clusters send some time before they kill a job, and on Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from util.errors import UserError
from util.files import write_text

MARKER = 'preempted'        # file in the output folder for the Slurm script, as torchrun hides exit codes


class Preempted(UserError):
    """The run stopped on a signal of the cluster, with everything saved. Exit code 75 asks to start it again later."""

    exit_code = 75
    label = 'stopped'


class Interrupted(UserError):
    """The run stopped on Ctrl-C, with everything saved; it should not be restarted automatically."""

    exit_code = 130
    label = 'interrupted'


def stopped(signal: str | None, where: str, folder: Path | None) -> UserError:
    """Return the error that ends a run on `signal` (None: to another process).

    Leaves MARKER in the `folder` of the run, unless it is None (in processes that do not write) or on Ctrl-C.
    """
    if signal == 'SIGINT':
        return Interrupted(f'{where}, continue with --resume auto')
    if folder:
        write_text(folder / MARKER, f'{where}\n')
    return Preempted(f'on {signal or "a signal to another process"}, {where}, continue with --resume auto')


@dataclass
class StopRequest:
    """The signal that asked this process to stop, or None."""

    signal: str | None = None


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Record stop signals instead of ending the process; a second Ctrl-C raises KeyboardInterrupt."""
    request = StopRequest()

    def handle(number: int, _) -> None:
        name = signal.Signals(number).name
        if name == 'SIGINT' == request.signal:
            raise KeyboardInterrupt
        if name != 'SIGINT' or request.signal is None:      # after a signal of the cluster, Ctrl-C has no effect
            request.signal = name

    numbers = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:       # ignored in background jobs of a shell
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
