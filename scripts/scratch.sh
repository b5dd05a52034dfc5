#!/usr/bin/env bash
# Train from scratch with all labels, the baseline of fine-tuning -> OUT/scratch.
#   bash scripts/scratch.sh BENCHMARK [options of main_finetune.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run finetune scratch fresh --layer_decay 1 --head mlp "${@:2}"
