#!/usr/bin/env bash
# Supervised training from scratch with all labels, what fine-tuning is compared with -> OUT/scratch.
#   bash scripts/scratch.sh BENCHMARK [options of main_finetune.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run finetune scratch fresh --layer_decay 1 "${@:2}"
