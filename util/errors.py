"""How a command ends: 0, 2 for an error of the user's (one line, no traceback), 1 for a failure of ours."""

import os
import sys
import traceback


class UserError(ValueError):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""

    exit_code = 2
    label = 'error'


def run_main(main) -> None:
    """Calls `main()` and leaves the process with its exit code; the last line of every command.

    One of several processes that fails leaves at once, without the clean-up that would wait for its peers; torchrun
    then stops those.
    """
    try:
        sys.exit(main())
    except UserError as error:
        print(f'{error.label}: {error}', file=sys.stderr, flush=True)
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
