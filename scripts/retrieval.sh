#!/usr/bin/env bash
# Retrieval, without training: each test clip takes the label of its nearest training clips -> OUT/retrieval.
#   bash scripts/retrieval.sh BENCHMARK [options of tools/retrieval.py]        --k 5 --metric euclidean …
#   METHOD=mae or METHOD=random bash scripts/retrieval.sh BENCHMARK           -> OUT/retrieval_mae, OUT/retrieval_random
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run retrieval "retrieval$METHOD_NAME" pretrained "${@:2}"
