#!/usr/bin/env bash
# The NW-UCLA table of the README: MAMP, MAE and a random encoder probed, MAMP fine-tuned against scratch, three seeds.
#   bash scripts/nwucla.sh [OUT]          data/nwucla/NWUCLA_XView.npz must be there (data/prepare_nwucla.py)
#   JOBS=2 SEEDS="0 1 2" OPTIONS="--precision bf16" bash scripts/nwucla.sh
# What is finished is skipped; what was stopped goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh
export OUT="${1:-${OUT:-runs/nwucla_xview}}" OPTIONS="${OPTIONS:-}"
JOBS="${JOBS:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( ($(nproc) + JOBS - 1) / JOBS ))}"

run() {     # stage, folder, further options
    local stage="$1" folder="$OUT/$2"
    shift 2
    mkdir -p "$folder"
    echo "$(date +%T) $stage -> $folder"
    "$PYTHON" "main_$stage.py" --config "config/$stage.yaml" config/nwucla_xview.yaml --output_dir "$folder" \
        --resume auto --num_workers 0 $OPTIONS "$@" >> "$folder/console.txt" 2>&1 \
        || { tail -n 5 "$folder/console.txt" >&2; return 1; }
}

job() {     # what, seed
    local mamp="$OUT/mamp_$2/pretrain/checkpoint-last.pth" mae="$OUT/mae_$2/pretrain/checkpoint-last.pth"
    case "$1" in
        mamp) run pretrain "mamp_$2/pretrain" --seed "$2"
              run linprobe "mamp_$2/linprobe" --seed "$2" --finetune "$mamp" ;;
        mae) run pretrain "mae_$2/pretrain" --seed "$2" --target joint --motion_aware_tau 0
             run linprobe "mae_$2/linprobe" --seed "$2" --finetune "$mae" ;;
        random) run linprobe "random_$2/linprobe" --seed "$2" --random_encoder ;;
        finetune) run finetune "mamp_$2/finetune" --seed "$2" --finetune "$mamp" ;;
        scratch) run finetune "scratch_$2/finetune" --seed "$2" --layer_decay 1 ;;
    esac
}
export -f run job

for whats in "mamp mae random" "finetune scratch"; do       # fine-tuning starts from what the first pass makes
    for what in $whats; do
        for seed in ${SEEDS:-0 1 2}; do
            echo "$what $seed"
        done
    done | xargs -P "$JOBS" -L 1 bash -ec 'job "$0" "$1"'
done
"$PYTHON" main_report.py "$OUT"
