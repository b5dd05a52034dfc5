#!/usr/bin/env bash
# Ablation: pre-train and probe once for each value of an option -> OUT_ablations/NAME_VALUE.
#   bash scripts/ablations.sh BENCHMARK NAME [options of both stages]      VALUES="0.8 0.9": values other than below
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
name="${2:-}"
case "$name" in
    mask_ratio) values='0.5 0.6 0.7 0.8 0.85 0.9 0.95' ;;   # share of masked joint-segments
    motion_aware_tau) values='0 0.2 0.4 0.6 0.8 1.0 1.2' ;; # 0: random masking
    motion_stride) values='1 2 3 4' ;;                      # frames between the two ends of a motion
    target) values='motion joint' ;;                        # of the decoder
    decoder_depth) values='1 2 3 4 5 6' ;;
    t_patch_size) values='' frames="$(sed -n 's/^num_frames: *//p' "config/$BENCHMARK.yaml")"
        for value in 2 3 4 5 6 8; do                        # frames of a segment, in the probe as well
            [ $((${frames:-120} % value)) != 0 ] || values+="$value "
        done ;;
    norm_skes_loss) values='yes no' ;;                      # normalise each target over its own values
    *) fail "no ablation '$name'; choose one of: mask_ratio motion_aware_tau motion_stride target decoder_depth" \
            "t_patch_size norm_skes_loss" ;;
esac
shift 2
export SKIP_FINISHED=1
check_options 'pretrain linprobe' "$@"
base="${OUT}_ablations/$name"
for value in ${VALUES:-$values}; do
    option=("--$name" "$value") both=()
    case "$name" in
        t_patch_size) both=("${option[@]}") ;;
        norm_skes_loss) if [ "$value" = no ]; then option=(--no-norm_skes_loss); else option=(--norm_skes_loss); fi ;;
    esac
    OUT="${base}_$value" bash scripts/pretrain.sh "$BENCHMARK" "${option[@]}" "$@"
    OUT="${base}_$value" bash scripts/linprobe.sh "$BENCHMARK" "${both[@]}" "$@"
done
for value in ${VALUES:-$values}; do
    [ -n "${DRY:-}" ] || echo "$name $value"
    execute "$PYTHON" tools/report.py "${base}_$value"
done
