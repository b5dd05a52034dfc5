#!/usr/bin/env bash
# Checks, times and tables of this machine's device in one go: the tests of the GPU path, the loss of bf16 against fp32
# over 300 steps, and tools/benchmark.py for every stage and mode. Everything is left in OUT.
#   bash scripts/check_device.sh [OUT]
#   STEPS=70 REPEATS=3 PYTHON=…   STAGES=… MODES=…   MODEL="--num_frames 24 …"
set -euo pipefail
case "${1:-device}" in /*) OUT="${1:-device}" ;; *) OUT="$PWD/${1:-device}" ;; esac
cd "$(dirname "$0")/.."
source scripts/env.sh
mkdir -p "$OUT"
on_gpu="$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')"

"$PYTHON" -m pytest -q tests/util/test_gpu.py tests/model/test_model_mamp.py tests/model/test_shortcuts.py \
    | tee "$OUT/tests.txt" | tail -n 3

if [ ! -e "$OUT/data/SYNTH_XSub.npz" ]; then
    rm -rf "$OUT/raw"
    "$PYTHON" data/synthesize.py --out "$OUT/raw" --clips_per_class 60
    "$PYTHON" data/prepare_ntu.py --dataset synth --raw "$OUT/raw" --out "$OUT/data"
fi
for precision in fp32 bf16; do      # 372 clips: an epoch is 20 steps of 18
    rm -rf "$OUT/$precision"
    "$PYTHON" main_pretrain.py --config config/pretrain.yaml config/synth_xsub.yaml config/demo.yaml ${MODEL:-} \
        --data_path "$OUT/data/SYNTH_XSub.npz" --output_dir "$OUT/$precision" --precision "$precision" \
        --effective_batch_size 18 --epochs 15 --save_epochs 100 >> "$OUT/losses.log" 2>&1 \
        || { tail -n 5 "$OUT/losses.log" >&2; exit 1; }
done
"$PYTHON" - "$OUT" <<'P' | tee "$OUT/losses.txt"
import json, sys
losses = [[json.loads(line)['train_loss'] for line in open(f'{sys.argv[1]}/{name}/log.jsonl')]
          for name in ('fp32', 'bf16')]
apart = max(abs(b / a - 1) for a, b in zip(*losses, strict=True))
print(f'mean losses of 20 steps, {len(losses[0])} times: bf16 is at most {apart:.2%} from fp32')
P

modes=plain,fused,bf16
[ "$on_gpu" = 0 ] || modes=plain,fused,tf32,bf16,compiled,resident
for stage in $(tr , ' ' <<< "${STAGES:-pretrain,evaluate,linprobe,finetune,data}"); do  # what is there is left
    [ -e "$OUT/$stage.json" ] || "$PYTHON" tools/benchmark.py --stages "$stage" --modes "${MODES:-$modes}" \
        ${STEPS:+--steps "$STEPS"} --repeats "${REPEATS:-3}" --json "$OUT/$stage.json.part" \
        --profile "$OUT/profile.txt" | tee "$OUT/$stage.md"
    [ -e "$OUT/$stage.json" ] || mv "$OUT/$stage.json.part" "$OUT/$stage.json"
done
