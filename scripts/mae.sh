#!/usr/bin/env bash
# Pre-training of the MAE-style baseline: joints themselves as the target, hidden at random -> OUT/pretrain_mae.
#   bash scripts/mae.sh BENCHMARK [options of main_pretrain.py]      then: METHOD=mae bash scripts/linprobe.sh BENCHMARK
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/help.sh"
[ "${1:-}" != --help ] || show_help "$0" "$here/launch.sh"
METHOD=mae exec bash "$here/pretrain.sh" "$@"
