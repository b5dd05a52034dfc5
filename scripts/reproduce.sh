#!/usr/bin/env bash
# Run every published experiment of a benchmark and print their table; skip finished runs, continue interrupted ones.
#   bash scripts/reproduce.sh BENCHMARK [options of every stage]   for one stage: in a map of a --config file
#   DRY=1 bash scripts/reproduce.sh BENCHMARK                      prints the commands
#   all benchmarks   pre-training, probe, fine-tuning, scratch, retrieval; MAE baseline and its probe
#   ntu60_*          1 % and 10 % of the labels, five runs each: MAMP, MAE, from scratch
#   ntu120_*         one-shot (ntu120_oneshot is the published protocol and has nothing else)
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
            fail "$option: pku2_xsub also pre-trains on other benchmarks; set it in their config/*.yaml" ;;
        esac
    done
fi

bash scripts/pretrain.sh "$BENCHMARK" "$@"
if [ "$BENCHMARK" != ntu120_oneshot ]; then     # whose test clips have other classes
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
