#!/usr/bin/env bash
# The table on synthetic data of docs/experiments.md, at the size of the demo, with three seeds: probes of MAMP and of a
# random encoder; 10 % of the labels, with and without pre-training; transfer to other performers; one-shot with four
# novel classes, from pre-training alone and after fine-tuning on the other eight.
#   bash scripts/synthetic.sh [options of every stage]      OUT=runs/synth_xsub  SEEDS="0 1 2"  PYTHON=…
set -euo pipefail
case "${OUT:=}" in '' | /*) ;; *) OUT="$PWD/$OUT" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/help.sh
[ "${1:-}" != --help ] || show_help scripts/synthetic.sh scripts/launch.sh
export OUT="${OUT:-$PWD/runs/synth_xsub}" SKIP_FINISHED=1
source scripts/env.sh

make() {    # folder of the data, seed, clips a class
    if [ ! -e "$1/SYNTH_XSub.npz" ] && [ -z "${DRY:-}" ]; then
        rm -rf "$1/raw"
        "$PYTHON" data/synthesize.py --out "$1/raw" --seed "$2" --clips_per_class "$3"
        "$PYTHON" data/prepare_ntu.py --dataset synth --raw "$1/raw" --out "$1"
    fi
}
make "$OUT/data" 0 60
make "$OUT/data_other" 1 20         # other performers, for transfer

set -- --config config/demo.yaml "$@"
own=("$@" --data_path "$OUT/data/SYNTH_XSub.npz")
other=("$@" --data_path "$OUT/data_other/SYNTH_XSub.npz" --benchmark synth_other)
few=(--effective_batch_size 16 --epochs 60)     # few clips: smaller batches, more often
for seed in ${SEEDS:-0 1 2}; do
    export SEED="$seed"
    bash scripts/pretrain.sh synth_xsub "${own[@]}"
    bash scripts/linprobe.sh synth_xsub "${own[@]}"
    METHOD=random bash scripts/linprobe.sh synth_xsub "${own[@]}"
    bash scripts/semi.sh synth_xsub 0.1 "${own[@]}" "${few[@]}"
    FROM=scratch bash scripts/semi.sh synth_xsub 0.1 "${own[@]}" "${few[@]}"
    bash scripts/transfer.sh synth_xsub synth_xsub "${other[@]}" "${few[@]}"
    OUT="$OUT/other" bash scripts/scratch.sh synth_xsub "${other[@]}" "${few[@]}"
    bash scripts/retrieval.sh synth_xsub --protocol oneshot --novel_every 3 "${own[@]}" \
        --output_dir "$OUT/oneshot/seed_$seed"
    METHOD=random bash scripts/retrieval.sh synth_xsub --protocol oneshot --novel_every 3 "${own[@]}" \
        --output_dir "$OUT/oneshot_random/seed_$seed"
    bash scripts/finetune.sh synth_xsub --novel_every 3 "${own[@]}" --output_dir "$OUT/finetune_auxiliary/seed_$seed"
    bash scripts/retrieval.sh synth_xsub --protocol oneshot --novel_every 3 "${own[@]}" \
        --finetune "$OUT/finetune_auxiliary/seed_$seed/checkpoint-last.pth" \
        --output_dir "$OUT/oneshot_supervised/seed_$seed"
done
[ -n "${DRY:-}" ] || "$PYTHON" tools/report.py "$OUT"
