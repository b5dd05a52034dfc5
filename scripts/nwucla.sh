#!/usr/bin/env bash
# The NW-UCLA table of the README, with three seeds: MAMP, the MAE-style baseline and a random encoder in probe and
# retrieval; fine-tuning and 10 % of the labels beside training from scratch; three streams and their ensemble.
#   python data/prepare_nwucla.py --raw nw_ucla.tar.xz --out data/nwucla
#   bash scripts/nwucla.sh [options of every stage]
#   JOBS=2 SEEDS="0 1 2" BENCHMARK=nwucla_xview OUT=… bash scripts/nwucla.sh --precision bf16     two runs at a time
# Finished runs are skipped, interrupted ones continued. Each job writes to OUT/console_JOB.txt.
set -euo pipefail
case "${OUT:=}" in '' | /*) ;; *) OUT="$PWD/$OUT" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/help.sh
[ "${1:-}" != --help ] || show_help scripts/nwucla.sh scripts/launch.sh
benchmark="${BENCHMARK:-nwucla_xview}"
export OUT="${OUT:-$PWD/runs/$benchmark}" SKIP_FINISHED=1

step() {    # script, arguments between benchmark and options, options
    local script="$1" between="$2"
    shift 2
    bash "scripts/$script.sh" "$benchmark" $between "$@"
}

if [ -n "${JOB:-}" ]; then
    few=(--effective_batch_size 16 --epochs 100 --lr 3e-4)      # 102 clips: smaller batches, more often
    read -r name SEED <<< "$JOB"
    export SEED
    case "$name" in
        mamp | mae)
            export METHOD="$name"
            for script in pretrain linprobe retrieval finetune; do step "$script" '' "$@"; done
            step semi 0.1 "${few[@]}" "$@" ;;
        bone | velocity)
            export STREAM="$name"
            for script in pretrain linprobe; do step "$script" '' "$@"; done ;;
        untrained)
            for script in linprobe retrieval; do METHOD=random step "$script" '' "$@"; done
            step scratch '' "$@"
            FROM=scratch step semi 0.1 "${few[@]}" "$@" ;;
        ensemble) step streams '' "$@" ;;
    esac
    exit
fi

JOBS="${JOBS:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( ($(nproc) + JOBS - 1) / JOBS ))}"
[ -z "${DRY:-}" ] || JOBS=1
[ -n "${DRY:-}" ] || mkdir -p "$OUT"
for names in "mamp untrained mae bone velocity" ensemble; do    # the second pass uses the scores of the first
    for name in $names; do
        for seed in ${SEEDS:-0 1 2}; do
            echo "$name $seed"
        done
    done | xargs -P "$JOBS" -I '{}' env JOB='{}' bash -c '
        [ -z "${DRY:-}" ] || exec bash "$@"
        file="$OUT/console_${JOB/ /_}.txt"
        echo "$(date +%T) $JOB -> $file"
        bash "$@" >> "$file" 2>&1 || { code=$?; tail -n 5 "$file" >&2; exit "$code"; }' job scripts/nwucla.sh "$@"
done
[ -z "${DRY:-}" ] || exit 0
source scripts/env.sh
"$PYTHON" tools/report.py "$OUT"
