#!/usr/bin/env bash
# Pre-train the MAE-style baseline: predict the joints themselves under random masking -> OUT/pretrain_mae.
#   bash scripts/mae.sh BENCHMARK [options of main_pretrain.py]      then: METHOD=mae bash scripts/linprobe.sh BENCHMARK
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/help.sh"
[ "${1:-}" != --help ] || show_help "$0" "$here/launch.sh"
METHOD=mae exec bash "$here/pretrain.sh" "$@"
