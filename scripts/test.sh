#!/usr/bin/env bash
# Run ruff and pytest on the CPU.
#   bash scripts/test.sh [--all] [pytest options]      --all adds the slow tests
#   PYTHON=… bash scripts/test.sh                      uses an existing environment
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
