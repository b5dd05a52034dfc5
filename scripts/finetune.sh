#!/usr/bin/env bash
# Fine-tune the pre-trained encoder with all labels -> OUT/finetune.
#   bash scripts/finetune.sh BENCHMARK [options of main_finetune.py]      --finetune CHECKPOINT: another encoder
#   METHOD=mae bash scripts/finetune.sh BENCHMARK                         -> OUT/finetune_mae
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run finetune "finetune$METHOD_NAME" pretrained "${@:2}"
