#!/usr/bin/env bash
# One-shot recognition: every sixth class is novel; a clip takes the class of the nearest of their exemplars.
#   bash scripts/oneshot.sh BENCHMARK [options of tools/retrieval.py and main_finetune.py]
# With features of pre-training alone -> OUT/oneshot; after fine-tuning on the other classes (OUT/finetune_auxiliary)
# -> OUT/oneshot_supervised. Options for one stage: in a map of a --config file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
if [ "$METHOD" = random ]; then check_options retrieval "$@"; else check_options 'retrieval finetune' "$@"; fi
run retrieval "oneshot$METHOD_NAME" pretrained --protocol oneshot --novel_every 6 "$@"
[ "$METHOD" != random ] || exit 0
run finetune "finetune_auxiliary$METHOD_NAME" pretrained --novel_every 6 "$@"
run retrieval "oneshot_supervised$METHOD_NAME" fresh --protocol oneshot --novel_every 6 "$@" \
    --finetune "$(run_folder "finetune_auxiliary$METHOD_NAME")/checkpoint-last.pth"
