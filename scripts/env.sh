# Sourced by the other scripts: sets PYTHON to an interpreter that has everything, making .venv when there is none.
# PYTHON=… in the environment uses that one as it is.

if [ -z "${PYTHON:-}" ]; then
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    PYTHON="$root/.venv/bin/python"
    wanted="$(cat "$root/requirements.txt" "$root/requirements-dev.txt" | cksum)"
    if [ "$(cat "$root/.venv/installed" 2>/dev/null)" != "$wanted" ]; then
        base=""
        for candidate in python3 python3.13 python3.12 python3.11; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                base="$candidate"
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "error: Python 3.11 or newer is needed; install it, or name it with PYTHON=…" >&2
            exit 2
        fi
        echo "making the environment in $root/.venv (about 6 GB, once)" >&2
        "$PYTHON" -m pip --version > /dev/null 2>&1 || "$base" -m venv --clear "$root/.venv"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-dev.txt"
        echo "$wanted" > "$root/.venv/installed"
    fi
fi
export PYTHON
