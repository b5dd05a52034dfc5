#!/usr/bin/env bash
# Fine-tuning on a benchmark of an encoder pre-trained on another one -> OUT/transfer_SOURCE.
#   bash scripts/transfer.sh BENCHMARK [SOURCE] [options of main_finetune.py]      SOURCE: ntu60_xsub (default), …
# The encoder is looked for beside OUT: runs/SOURCE/pretrain, of PKU-MMD the snapshot after epoch 300.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
SOURCE=ntu60_xsub
case "${1:--}" in -*) ;; *) SOURCE="$1"; shift ;; esac
check_benchmark "$SOURCE"
run finetune "transfer$METHOD_NAME"_"$SOURCE" pretrained "$@"
