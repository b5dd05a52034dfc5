#!/usr/bin/env bash
# Pre-training of the MAE-style baseline: joints themselves as the target, hidden at random -> OUT/pretrain_mae.
#   bash scripts/mae.sh BENCHMARK [options of main_pretrain.py]      then: METHOD=mae bash scripts/linprobe.sh BENCHMARK
set -euo pipefail
METHOD=mae exec bash "$(dirname "${BASH_SOURCE[0]}")/pretrain.sh" "$@"
