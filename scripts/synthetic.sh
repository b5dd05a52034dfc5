#!/usr/bin/env bash
# Made-up recordings as a problem: linear probes of a MAMP-pre-trained and of a random encoder, three seeds, demo size.
#   bash scripts/synthetic.sh [OUT]      SEEDS="0 1 2"  OPTIONS="--precision bf16"  PYTHON=…
set -euo pipefail
case "${1:-runs/synthetic}" in /*) OUT="${1:-runs/synthetic}" ;; *) OUT="$PWD/${1:-runs/synthetic}" ;; esac
cd "$(dirname "$0")/.."
source scripts/env.sh
if [ ! -e "$OUT/data/SYNTH_XSub.npz" ]; then
    rm -rf "$OUT/raw"
    "$PYTHON" data/synthesize.py --out "$OUT/raw" --clips_per_class 60
    "$PYTHON" data/prepare_ntu.py --dataset synth --raw "$OUT/raw" --out "$OUT/data"
fi

stage() {   # stage, folder, further options; a finished run is passed over, an unfinished one goes on
    "$PYTHON" "main_$1.py" --config "config/$1.yaml" config/synth_xsub.yaml config/demo.yaml --resume auto \
        --data_path "$OUT/data/SYNTH_XSub.npz" --output_dir "$OUT/runs/$2" "${@:3}" ${OPTIONS:-}
}
for seed in ${SEEDS:-0 1 2}; do
    stage pretrain "pretrain_$seed" --seed "$seed"
    stage linprobe "mamp_$seed" --seed "$seed" --finetune "$OUT/runs/pretrain_$seed/checkpoint-last.pth"
    stage linprobe "random_$seed" --seed "$seed" --random_encoder
done
"$PYTHON" main_report.py "$OUT/runs"
