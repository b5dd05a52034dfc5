"""How a command ends: 0, 2 for an error of the user's (one line, no traceback), 1 for a failure of ours."""

import argparse
import difflib
import os
import select
import signal
import sys
import time
import traceback
from datetime import timedelta

GRACE = 3       # seconds a process that fails after another one leaves torchrun to end it


class UserError(ValueError):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""

    exit_code = 2
    label = 'error'


class PeerLost(UserError):
    """Another process of the run ended, or answers no more: a failure, and not of this process."""

    exit_code = 1


def quote(value) -> str:
    """A value as messages quote it, however long it is."""
    try:
        quoted = repr(value)
    except ValueError:      # a whole number with more digits than Python writes
        return 'a number of thousands of digits'
    return quoted if len(quoted) <= 200 else f'{quoted[:200]}…'


def printable(text) -> str:
    """A name or path on one line, whatever bytes it is made of."""
    return ''.join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))


class Parser(argparse.ArgumentParser):
    """A command line whose errors are UserErrors; of an unknown option they name the nearest known one."""

    def __init__(self, **settings):
        super().__init__(**{'allow_abbrev': False} | settings)

    def error(self, message: str):
        stranger = message.removeprefix('unrecognized arguments: ').split(' ')[0].split('=')[0]
        near = difflib.get_close_matches(stranger, self._option_string_actions, n=1)
        guess = f'; did you mean {near[0]}?' if near and message.startswith('unrecognized') else ''
        raise UserError(f'{message}{guess}; {self.prog} --help lists the options')


def run_main(main) -> None:
    """Calls `main()` and leaves the process with its exit code; the last line of every command.

    One of several processes that fails leaves at once, without the clean-up that would wait for its peers; torchrun
    then stops those. Of all of them the first one to fail says why, the others follow it in silence.
    """
    several = is_one_of_several()
    sys.stdout.reconfigure(errors='backslashreplace')       # of a terminal that lacks a letter
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        said, code = f'{error.label}: {" ".join(str(error).splitlines())}', error.exit_code
        follows = isinstance(error, PeerLost)
    except KeyboardInterrupt:
        said, code, follows = 'interrupted', 130, False
    except Exception as error:
        said, code, follows = traceback.format_exc().rstrip(), 1, False
        if several:
            said = f'process {os.environ.get("RANK")} failed:\n{said}'
        if isinstance(error, BrokenPipeError) and _nobody_listens():
            said = None
    if several:     # torchrun may end this process meanwhile, when another one has failed: not before it has spoken
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    first = _is_first_to_fail()
    if first and said:
        print(said, file=sys.stderr, flush=True)
    if several:
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if _under_torchrun() and (follows or not first):
            time.sleep(GRACE)       # torchrun reports the process that ended first: not this one
        os._exit(code)
    sys.exit(code)


def is_one_of_several() -> bool:
    """Whether this process is one of a run of several."""
    return int(os.environ.get('WORLD_SIZE', 1)) > 1


def _nobody_listens() -> bool:
    """Whether what is printed goes into a pipe that nobody reads any more, as after `| head`; the rest is dropped."""
    if sys.platform == 'win32':     # no poll
        return False
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _under_torchrun() -> bool:
    """Whether torchrun itself keeps the store in which its processes meet, so that it outlives each of them."""
    return os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


def _is_first_to_fail() -> bool:
    """Whether no other process of this run said before why it ends; where nobody can be asked, it is."""
    if not _under_torchrun():
        return True
    # Not at the top: the commands in data/ do without PyTorch.
    from torch.distributed import TCPStore
    try:
        store = TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
                         wait_for_workers=False, timeout=timedelta(seconds=5))
        return store.add(f'failed/{os.environ.get("TORCHELASTIC_RESTART_COUNT")}', 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
