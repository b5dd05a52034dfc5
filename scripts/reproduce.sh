#!/usr/bin/env bash
# Every published experiment of a benchmark, then their table; what is finished is skipped, what was stopped goes on.
#   bash scripts/reproduce.sh BENCHMARK [options of every stage]   of one stage: --config FILE with that stage's map
#   DRY=1 bash scripts/reproduce.sh BENCHMARK                      prints the commands
#   all benchmarks   pre-training, probe, fine-tuning, scratch, retrieval; MAE baseline and its probe
#   ntu60_*          1 % and 10 % of the labels, five runs each: of MAMP, MAE, from scratch
#   ntu120_*         one-shot (the published protocol is ntu120_oneshot, which has nothing else)
#   pku2_xsub        transfer from ntu60_xsub, ntu120_xsub, pku1_xsub (their pre-training beside OUT)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
export SKIP_FINISHED=1 METHOD=mamp
stages='pretrain linprobe finetune retrieval'
[ "$BENCHMARK" != ntu120_oneshot ] || stages='pretrain finetune retrieval'
check_options "$stages" "$@"
if [ "$BENCHMARK" = pku2_xsub ]; then
    for option; do
        case "${option%%=*}" in --data_path | --benchmark | --num_classes)
            fail "$option: other benchmarks are pre-trained on, too; give a file for each in its config/*.yaml" ;;
        esac
    done
fi

bash scripts/pretrain.sh "$BENCHMARK" "$@"
if [ "$BENCHMARK" != ntu120_oneshot ]; then     # whose test clips are of other classes
    for script in linprobe finetune scratch retrieval mae; do
        bash "scripts/$script.sh" "$BENCHMARK" "$@"
    done
    METHOD=mae bash scripts/linprobe.sh "$BENCHMARK" "$@"
fi
case "$BENCHMARK" in
    ntu60_*)
        for share in 0.01 0.1; do
            bash scripts/semi.sh "$BENCHMARK" "$share" "$@"
            METHOD=mae bash scripts/semi.sh "$BENCHMARK" "$share" "$@"
            FROM=scratch bash scripts/semi.sh "$BENCHMARK" "$share" "$@"
        done ;;
    ntu120_*) bash scripts/oneshot.sh "$BENCHMARK" "$@" ;;
    pku2_xsub)
        for source in ntu60_xsub ntu120_xsub pku1_xsub; do
            OUT="$(dirname "$OUT")/$source" bash scripts/pretrain.sh "$source" "$@"
            bash scripts/transfer.sh "$BENCHMARK" "$source" "$@"
        done ;;
esac
execute "$PYTHON" tools/report.py "$OUT"
