#!/usr/bin/env bash
# Pre-train on the training clips of a benchmark, without labels -> OUT/pretrain.
#   bash scripts/pretrain.sh BENCHMARK [options of main_pretrain.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
shift
[ "$METHOD" != mae ] || set -- --target joint --motion_aware_tau 0 "$@"
[ "$METHOD" != random ] || fail "METHOD=random: a random encoder is not pre-trained"
run pretrain "pretrain$METHOD_NAME" fresh "$@"
