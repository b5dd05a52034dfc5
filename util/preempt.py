"""Being told to stop: SIGTERM and SIGUSR1, which clusters send some time before they kill."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from util.errors import UserError

MARKER = 'preempted'        # file in the output folder: torchrun hides exit codes, the Slurm script looks for this


class Preempted(UserError):
    """The run was told to stop and did, with everything saved; not a failure. Exit code 75: try again later."""

    exit_code = 75
    label = 'stopped'


@contextmanager
def listening() -> Iterator[SimpleNamespace]:
    """Inside, the signals end nothing; `signal` holds the name of the last one that came, or None."""
    told = SimpleNamespace(signal=None)

    def note(number: int, _) -> None:
        told.signal = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
