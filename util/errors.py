"""Error reporting of commands.

Exit code 0 is success, 2 an error that the user can correct (one line, no traceback), 1 a bug.
"""

import argparse
import difflib
import os
import sys
import traceback


class UserError(ValueError):
    """An error that the user can correct. Its message is one line: what is wrong, where, and how to correct it."""

    exit_code = 2
    label = 'error'


def quote(value) -> str:
    """Return a value as error messages quote it, cut after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}…'


def printable(text) -> str:
    """Return a name or path on one line, with control characters escaped."""
    return ''.join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line, or its type if it has no message."""
    return ' '.join(str(error).split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """A command-line parser that raises UserError and suggests the nearest option for a misspelt one."""

    def __init__(self, **settings):
        super().__init__(**{'allow_abbrev': False} | settings)

    def error(self, message: str):
        unknown = message.removeprefix('unrecognized arguments: ').split(' ')[0].split('=')[0]
        near = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
        guess = f'; did you mean {near[0]}?' if near and message.startswith('unrecognized') else ''
        raise UserError(f'{message}{guess}; {self.prog} --help lists the options')


def run_main(main) -> None:
    """Call `main()` and exit with its return value; the last line of every command.

    Under torchrun a failing process exits at once, without the clean-up that would wait for the other processes;
    torchrun then stops them and prints its summary.
    """
    distributed = is_distributed()
    prefix = f'process {os.environ.get("RANK")}: ' if distributed else ''
    sys.stdout.reconfigure(errors='backslashreplace')       # for terminals whose encoding lacks some characters
    try:
        if distributed:     # PyTorch is imported only by commands that need it
            from torch.distributed.elastic.multiprocessing.errors import record
            main = record(main)
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:     # the reader of the output has closed it, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except UserError as error:
        print(f'{prefix}{error.label}: {" ".join(str(error).splitlines())}', file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print(f'{prefix}interrupted', file=sys.stderr, flush=True)
        code = 130
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        code = 1
    if distributed:
        os._exit(code)
    sys.exit(code)


def is_distributed() -> bool:
    """Return True if torchrun started this process as one of several."""
    return int(os.environ.get('WORLD_SIZE', 1)) > 1
