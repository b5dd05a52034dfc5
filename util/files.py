"""Files that are either the old one or the whole new one, whatever happens in between."""

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from util.errors import UserError


@contextmanager
def replacing(path: str | Path):
    """Yields a temporary path beside `path`; when the body ends well, it is synced and takes `path`'s name.

    When the body fails the temporary file is removed and `path` is what it was. An OSError (disk full, no permission)
    becomes a UserError naming the file.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); free space or correct the '
                        'permissions; what was there before is untouched') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_json(path: str | Path, content) -> None:
    """`content` as indented JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + '\n')
