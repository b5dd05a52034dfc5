# Sourced by the other scripts: set PYTHON to an interpreter with all packages, and make .venv if it is missing or
# outdated. PYTHON=… in the environment selects another interpreter, which is used as it is.

if [ -z "${PYTHON:-}" ]; then
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    PYTHON="$root/.venv/bin/python"
    requested="$(cat "$root"/requirements*.txt "$root/constraints.txt" | cksum)"
    if [ "$(cat "$root/.venv/installed" 2> /dev/null)" != "$requested" ]; then
        base=
        for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
                base="$candidate"
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "error: Python 3.11 or newer is needed; install it, or name one with PYTHON=…" >&2
            exit 2
        fi
        echo "installing packages into $root/.venv (about 6 GB, once)" >&2
        "$PYTHON" -m pip --version > /dev/null 2>&1 || "$base" -m venv --clear "$root/.venv"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-dev.txt" \
            -c "$root/constraints.txt"
        echo "$requested" > "$root/.venv/installed"
    fi
fi
export PYTHON
