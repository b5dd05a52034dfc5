"""Being told to stop: SIGTERM and SIGUSR1, which clusters send some time before they kill, and Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from util.errors import UserError, is_one_of_several

MARKER = 'preempted'        # file in the output folder: torchrun hides exit codes, the Slurm script looks for this


class Preempted(UserError):
    """The run was told to stop and did, with everything saved; not a failure. Exit code 75: try again later."""

    exit_code = 75
    label = 'stopped'


class Interrupted(UserError):
    """Somebody pressed Ctrl-C and the run left, with everything saved. Nothing should start it again by itself."""

    exit_code = 130
    label = 'interrupted'


@contextmanager
def listening() -> Iterator[SimpleNamespace]:
    """Inside, the signals end nothing, but for a second Ctrl-C (SIGINT), a KeyboardInterrupt.

    `signal` holds the name of the last one that came, or None; one of a cluster's stands whatever follows it.
    """
    told = SimpleNamespace(signal=None, interrupted=False)

    def note(number: int, _) -> None:
        if number == signal.SIGINT:
            if told.interrupted:
                raise KeyboardInterrupt
            told.interrupted = True
            told.signal = told.signal or 'SIGINT'
        else:
            told.signal = signal.Signals(number).name

    numbers = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:       # what a shell's & asks for
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield told
    except BaseException:
        if is_one_of_several():     # what torchrun sends when another process has failed: first the cause is told
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
