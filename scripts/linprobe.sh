#!/usr/bin/env bash
# Linear probe of the pre-trained encoder -> OUT/linprobe.
#   bash scripts/linprobe.sh BENCHMARK [options of main_linprobe.py]      --finetune CHECKPOINT: another encoder
#   METHOD=mae or METHOD=random bash scripts/linprobe.sh BENCHMARK        -> OUT/linprobe_mae, OUT/linprobe_random
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run linprobe "linprobe$METHOD_NAME" pretrained "${@:2}"
