#!/usr/bin/env bash
# Pre-train and probe joints, bones and velocities, and average their scores -> OUT/ensemble_linprobe.
#   bash scripts/streams.sh BENCHMARK [options of both stages]      STAGE=finetune -> OUT/ensemble_finetune
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
stage="${STAGE:-linprobe}" scores=()
case "$stage" in linprobe | finetune) ;; *) fail "STAGE=$stage is not linprobe or finetune" ;; esac
export SKIP_FINISHED=1
check_options "pretrain $stage" "$@"
for stream in joint bone velocity; do
    STREAM="$stream" bash scripts/pretrain.sh "$BENCHMARK" "$@"
    STREAM="$stream" bash "scripts/$stage.sh" "$BENCHMARK" "$@"
    STREAM_NAME="_$stream"
    [ "$stream" != joint ] || STREAM_NAME=
    scores+=("$(run_folder "$stage$METHOD_NAME")/scores.npz")
done
STREAM_NAME=
execute "$PYTHON" tools/report.py --ensemble "${scores[@]}" --out "$(run_folder "ensemble_$stage$METHOD_NAME")"
