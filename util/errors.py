"""How a command ends: 0, 2 for an error of the user's (one line, no traceback), 1 for a failure of ours."""

import sys


class UserError(ValueError):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""

    exit_code = 2


def run_main(main) -> None:
    """Calls `main()` and leaves the process with its exit code; the last line of every command."""
    try:
        code = main()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr, flush=True)
        code = 130
    sys.exit(code)
