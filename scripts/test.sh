#!/usr/bin/env bash
# ruff and pytest on the CPU, in the environment the README's commands share.
#   bash scripts/test.sh [--all] [pytest options]      --all adds the slow tests
#   PYTHON=… bash scripts/test.sh                      uses an environment that is already there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/help.sh
[ "${1:-}" != --help ] || show_help scripts/test.sh
source scripts/env.sh
if [ "${1:-}" = --all ]; then
    shift
else
    set -- -m "not slow" "$@"
fi
"$PYTHON" -m ruff check .
CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}" "$PYTHON" -m pytest "$@"
