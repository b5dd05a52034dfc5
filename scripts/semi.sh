#!/usr/bin/env bash
# Fine-tune with a share of the labels, five times with different draws -> OUT/semi_SHARE_0 … _4.
#   bash scripts/semi.sh BENCHMARK [SHARE] [options of main_finetune.py]      SHARE: 0.1 (default), 0.01, …
#   FROM=scratch: without pre-training -> OUT/semi_scratch_SHARE_0 …   METHOD=mae   RUNS=5   SEED=N: this run only
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
share=0.1
case "${1:-}" in [0-9.]*) share="$1"; shift ;; esac
case "${FROM:-pretrained}" in
    pretrained) name="semi$METHOD_NAME" start=pretrained ;;
    scratch) name=semi_scratch start=fresh; set -- --layer_decay 1 --head mlp "$@" ;;
    *) fail "FROM=$FROM is not pretrained or scratch" ;;
esac
check_options finetune "$@"
for seed in ${SEED:-$(seq 0 $((${RUNS:-5} - 1)))}; do
    run finetune "${name}_${share}_$seed" "$start" --label_fraction "$share" --seed "$seed" "$@"
done
