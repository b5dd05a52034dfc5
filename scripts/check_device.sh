#!/usr/bin/env bash
# Check and time this machine's GPU in some 6 minutes (or its CPU, slower): speed of pre-training, tests of the GPU,
# losses in bf16 against fp32 over 300 steps, speed of the other stages. Results are in OUT as soon as they are known;
# run again after an interruption, it continues with the first step that is missing.
#   bash scripts/check_device.sh [OUT]
#   STEPS=12 REPEATS=1 PYTHON=…   MODES=bf16,compiled   MODEL="--num_frames 24 …": options of main_pretrain.py for the losses
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
[ "${1:-}" != --help ] || show_help "$0"
case "${1:-device}" in /*) OUT="${1:-device}" ;; *) OUT="$PWD/${1:-device}" ;; esac
cd "$(dirname "$0")/.."
source scripts/env.sh
mkdir -p "$OUT"
failed=0
on_gpu="$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')"

# table STAGES MODES BATCH_SIZE...: tables in OUT/STAGES.md and .json, the profiler's in OUT/profile.txt
table() {
    local name="$OUT/${1//,/_}"
    [ ! -e "$name.json" ] || return 0
    "$PYTHON" tools/benchmark.py --stages "$1" --modes "${MODES:-$2}" --batch_size "${@:3}" --steps "${STEPS:-12}" \
        --repeats "${REPEATS:-1}" --json "$name.json.part" --profile "$OUT/profile.txt" | tee "$name.md"
    mv "$name.json.part" "$name.json"
    echo "$SECONDS s"
}

tests() {
    [ ! -e "$OUT/tests.txt" ] || return 0
    local parallel=""
    if "$PYTHON" -c 'import xdist' 2> /dev/null; then parallel="-n 8 --dist worksteal"; fi
    # shellcheck disable=SC2086
    TORCHINDUCTOR_COMPILE_THREADS=2 "$PYTHON" -m pytest -q $parallel --durations 8 -p no:cacheprovider tests/util/test_gpu.py tests/model/test_attention.py \
        tests/model/test_shortcuts.py tests/util/test_capture.py > "$OUT/tests.txt.part" \
        && mv "$OUT/tests.txt.part" "$OUT/tests.txt" || failed=1
    grep -E "^(FAILED|ERROR)|passed|failed" "$OUT"/tests.txt*
}

# Train a small model for 15 epochs of 20 steps of 18 clips in each precision.
losses() {
    [ ! -e "$OUT/losses.txt" ] || return 0
    if [ ! -e "$OUT/data/SYNTH_XSub.npz" ]; then
        "$PYTHON" data/synthesize.py --out "$OUT/raw" --clips_per_class 60
        "$PYTHON" data/prepare_ntu.py --dataset synth --raw "$OUT/raw" --out "$OUT/data"
    fi
    local precision job jobs=()
    for precision in fp32 bf16; do
        rm -rf "$OUT/$precision"
        # shellcheck disable=SC2086
        "$PYTHON" main_pretrain.py --config config/pretrain.yaml config/synth_xsub.yaml config/demo.yaml ${MODEL:-} \
            --data_path "$OUT/data/SYNTH_XSub.npz" --output_dir "$OUT/$precision" --precision "$precision" \
            --effective_batch_size 18 --epochs 15 --save_epochs 100 >> "$OUT/losses.log" 2>&1 &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || { tail -n 5 "$OUT/losses.log" >&2; exit 1; }; done
    "$PYTHON" - "$OUT" <<'P' > "$OUT/losses.txt.part"
import json, sys
losses = [[json.loads(line)['train_loss'] for line in open(f'{sys.argv[1]}/{name}/log.jsonl')]
          for name in ('fp32', 'bf16')]
difference = max(abs(b / a - 1) for a, b in zip(*losses, strict=True))
print(f'mean losses of 20 steps, {len(losses[0])} times: bf16 differs from fp32 by at most {difference:.2%}')
P
    mv "$OUT/losses.txt.part" "$OUT/losses.txt"
    cat "$OUT/losses.txt"
}

if [ "$on_gpu" = 1 ]; then
    table pretrain plain,fp32,tf32,bf16,compiled 128 32
    losses & background=$!
    tests                   # neither is timed
    wait "$background" || failed=1
    table finetune plain,bf16,compiled 48
    table linprobe,evaluate bf16,compiled 256
    table data fp32,resident 128
else
    export STEPS="${STEPS:-2}" REPEATS="${REPEATS:-3}"
    table pretrain plain,fp32,bf16 8
    tests
    losses
    table finetune,linprobe,evaluate,data plain,fp32,bf16 8
fi
exit "$failed"        # 1 if a test failed
