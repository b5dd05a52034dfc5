#!/usr/bin/env bash
# Fine-tune an encoder that was pre-trained on another benchmark -> OUT/transfer_SOURCE.
#   bash scripts/transfer.sh BENCHMARK [SOURCE] [options of main_finetune.py]      SOURCE: ntu60_xsub (default), …
# The encoder is that of runs/SOURCE/pretrain, beside OUT; of PKU-MMD the snapshot after epoch 300.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
SOURCE=ntu60_xsub
case "${1:--}" in -*) ;; *) SOURCE="$1"; shift ;; esac
check_benchmark "$SOURCE"
run finetune "transfer$METHOD_NAME"_"$SOURCE" pretrained "$@"
