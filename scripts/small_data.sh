#!/usr/bin/env bash
# The study of docs/small-data.md: pre-training and fine-tuning on clips of 1, 3 or 7 subjects of Northwestern-UCLA in
# views 1 and 2 (about 100, 300 and 733 clips). Test clips are those of subjects 3, 6 and 9 in the same views; the test
# view of the benchmark is not used.
#   bash scripts/small_data.sh PRETRAIN[:FINETUNE...] ...     runs -> OUT/subjects_N/PRETRAIN (default: runs/small)
# PRETRAIN is `scratch`, `published`, or options such as `min_crop=16,mask_ratio=0.75`, of which min_crop applies to the
# probe, too, and t_patch_size to probe and fine-tuning. `unlabelled=pool` among them pre-trains on the clips of all
# seven subjects, `unlabelled=test` on training and test clips (transductive), in about as many steps; probe and
# fine-tuning use the training clips alone. Each FINETUNE is `published` or options such as
# `head=linear,patch_drop_rate=0.5`.
#   RAW=nw_ucla.tar.xz        raw data of data/prepare_nwucla.py       SUBJECTS="1 3 7"     sizes of the training set
#   SEEDS="0 1 2"             select subjects, too                     JOBS=2               runs at a time
#   PRETRAIN_CLIPS=48000      lengths of the stages in clips, that is epochs · training clips: also PROBE_CLIPS,
#                             FINETUNE_CLIPS; at least 100, 30 and 30 epochs, as in data/pipeline.py
# Finished runs are skipped, interrupted ones continued. Each job writes to OUT/console_JOB.txt.
set -euo pipefail
shopt -s extglob
case "${OUT:=}" in '' | /*) ;; *) OUT="$PWD/$OUT" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/help.sh
[ "${1:-}" != --help ] || show_help scripts/small_data.sh
export OUT="${OUT:-$PWD/runs/small}" SKIP_FINISHED=1 GPUS="${GPUS:-0}"
POOL=(1 2 4 5 7 8 10)           # subjects for training
declare -A CLIPS=([1]=105 [3]=314 [7]=733)
TEST=287                        # test clips

options() {     # a=1,b=2 -> --a 1 --b 2
    local option
    for option in ${1//,/ }; do
        [ "$option" = published ] || echo "--${option%%=*} ${option#*=}"
    done
}

epochs() {      # clips, at least
    echo $(($1 / clips > $2 ? $1 / clips : $2))
}

train_subjects() {      # number, seed: consecutive subjects in the pool, others for each seed
    local i
    for ((i = 0; i < $1; i++)); do echo "${POOL[($2 * 3 + i) % 7]}"; done
}

prepare() {     # name, subjects: dataset file in OUT/data/NAME
    [ -e "$OUT/data/$1/NWUCLA_Validation.npz" ] || "$PYTHON" data/prepare_nwucla.py --raw "$RAW" --out "$OUT/data/$1" \
        --protocol validation --train_subjects "${@:2}"
}

join_splits() {     # name: another dataset file, in which the test clips are training clips, too
    [ -e "$OUT/data/$1/NWUCLA_Joined.npz" ] || "$PYTHON" -c '
import sys
import numpy as np
from data.dataset_file import write_npz
data = dict(np.load(sys.argv[1] + "/NWUCLA_Validation.npz"))
data |= {f"{key}_train": np.concatenate([data[f"{key}_train"], data[f"{key}_test"]]) for key in ("x", "y", "name")}
write_npz(sys.argv[1] + "/NWUCLA_Joined.npz", **data)' "$OUT/data/$1"
}

if [ -n "${JOB:-}" ]; then
    read -r number SEED setting <<< "$JOB"
    export SEED
    IFS=: read -ra settings <<< "$setting"
    encoder="${settings[0]}" clips="${CLIPS[$number]}" script=finetune
    data="$OUT/data/${number}_$SEED"
    segments=($(options "$(grep -o 't_patch_size=[0-9]*' <<< "$encoder")"))
    base=(--data_path "$data/NWUCLA_Validation.npz" --benchmark "small_$number" --precision bf16
        --save_epochs 9999 "${segments[@]}")
    pretrain_epochs="$(epochs "${PRETRAIN_CLIPS:-48000}" 100)"
    unlabelled=()
    case "$encoder" in
        *unlabelled=pool*)
            unlabelled=(--data_path "$OUT/data/pool/NWUCLA_Validation.npz" --benchmark small_pool
                --epochs $((pretrain_epochs * clips / CLIPS[7]))) ;;
        *unlabelled=test*)
            unlabelled=(--data_path "$data/NWUCLA_Joined.npz" --benchmark "small_${number}_joined"
                --epochs $((pretrain_epochs * clips / (clips + TEST)))) ;;
    esac
    export OUT="$OUT/subjects_$number/$encoder"
    if [ "$encoder" = scratch ]; then
        [ -n "${settings[1]:-}" ] || { echo 'error: scratch needs a FINETUNE, such as scratch:published' >&2; exit 2; }
        script=scratch
    else
        bash scripts/pretrain.sh nwucla_xview "${base[@]}" --effective_batch_size 32 --warmup_epochs 10 \
            --epochs "$pretrain_epochs" $(options "${encoder/unlabelled=@(pool|test)/published}") "${unlabelled[@]}"
        bash scripts/linprobe.sh nwucla_xview "${base[@]}" --eval_epochs 10 \
            --epochs "$(epochs "${PROBE_CLIPS:-10000}" 30)" $(options "$(grep -o 'min_crop=[0-9]*' <<< "$encoder")")
    fi
    for fine in "${settings[@]:1}"; do
        bash "scripts/$script.sh" nwucla_xview "${base[@]}" --effective_batch_size 16 --lr 5e-4 --warmup_epochs 5 \
            --eval_epochs 10 --epochs "$(epochs "${FINETUNE_CLIPS:-16000}" 30)" --layer_decay 1 $(options "$fine") \
            --output_dir "$OUT/${script}_$fine/seed_$SEED"
    done
    exit
fi

source scripts/env.sh
JOBS="${JOBS:-1}"
RAW="${RAW:-nw_ucla.tar.xz}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( ($(nproc) + JOBS - 1) / JOBS ))}"
mkdir -p "$OUT"
for number in ${SUBJECTS:-1 3 7}; do
    for seed in ${SEEDS:-0 1 2}; do
        prepare "${number}_$seed" $(train_subjects "$number" "$seed")
        [[ "$*" != *unlabelled=test* ]] || join_splits "${number}_$seed"
    done
done
[[ "$*" != *unlabelled=pool* ]] || prepare pool "${POOL[@]}"
for setting in "${@:-published:published}"; do
    for number in ${SUBJECTS:-1 3 7}; do
        for seed in ${SEEDS:-0 1 2}; do
            echo "$number $seed $setting"
        done
    done
done | xargs -P "$JOBS" -I '{}' env JOB='{}' bash -c '
    file="$OUT/console_${JOB// /_}.txt"
    echo "$(date +%T) $JOB -> $file"
    bash scripts/small_data.sh >> "$file" 2>&1 || { code=$?; tail -n 5 "$file" >&2; exit "$code"; }'
for number in ${SUBJECTS:-1 3 7}; do
    "$PYTHON" tools/report.py "$OUT/subjects_$number"
done
