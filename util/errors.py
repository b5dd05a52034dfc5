"""How a command ends: 0, 2 for an error of the user's (one line, no traceback), 1 for a failure of ours."""

import argparse
import difflib
import os
import sys
import traceback


class UserError(ValueError):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""

    exit_code = 2
    label = 'error'


def shown(value) -> str:
    """A value as messages quote it, however long it is."""
    try:
        quoted = repr(value)
    except ValueError:      # a whole number with more digits than Python writes
        return 'a number of thousands of digits'
    return quoted if len(quoted) <= 200 else f'{quoted[:200]}…'


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
    then stops those.
    """
    try:
        sys.exit(main())
    except UserError as error:
        print(f'{error.label}: {" ".join(str(error).splitlines())}', file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr, flush=True)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
