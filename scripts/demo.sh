#!/usr/bin/env bash
# MAMP from data to predictions on a laptop: prepare, pre-train, probe, fine-tune, then table, figures, prediction.
#   bash scripts/demo.sh [DATA] [OUT]     DATA: folder or tar of NW-UCLA (default: synthetic data)
#   PYTHON=… bash scripts/demo.sh         uses an existing environment
set -euo pipefail
here="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
[ "${1:-}" != --help ] || show_help "$0"
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
DATA="${1:+$(absolute "$1")}"
OUT="$(absolute "${2:-demo_out}")"
cd "$(dirname "$0")/.."
source scripts/env.sh
if [ -e "$OUT" ] && [ -n "$(ls -A "$OUT")" ] && [ ! -e "$OUT/made_by_demo" ]; then
    echo "error: $OUT was not made by a demo; choose another folder, or one that does not exist yet" >&2
    exit 2
fi
mkdir -p "$OUT"
touch "$OUT/made_by_demo"
rm -rf "$OUT/runs" "$OUT/raw"      # of an earlier demo
began=$SECONDS

if [ -n "$DATA" ]; then
    "$PYTHON" data/prepare_nwucla.py --raw "$DATA" --out "$OUT/data"
    set -- config/nwucla_xview.yaml --data_path "$OUT/data/NWUCLA_XView.npz"
else
    "$PYTHON" data/synthesize.py --out "$OUT/raw" --clips_per_class 60
    "$PYTHON" data/prepare_ntu.py --dataset synth --raw "$OUT/raw" --out "$OUT/data"
    set -- config/synth_xsub.yaml --data_path "$OUT/data/SYNTH_XSub.npz"
fi
benchmark="$1"
shift

stage() {   # stage, folder, further options
    local stage="$1" folder="$OUT/runs/$2"
    shift 2
    echo "== $stage -> $folder"
    "$PYTHON" "main_$stage.py" --config "config/$stage.yaml" "$benchmark" config/demo.yaml --output_dir "$folder" "$@"
}
stage pretrain pretrain "$@"
pretrained="$OUT/runs/pretrain/checkpoint-last.pth"
stage linprobe linprobe "$@" --finetune "$pretrained"
stage linprobe linprobe_random "$@" --random_encoder
stage finetune finetune "$@" --finetune "$pretrained"
stage finetune scratch "$@" --layer_decay 1

"$PYTHON" tools/visualize.py --checkpoint "$pretrained" --clip 40 --out "$OUT/clip.png" --html "$OUT/clip.html"
[ -n "$DATA" ] || "$PYTHON" tools/predict.py --checkpoint "$OUT/runs/finetune/checkpoint-last.pth" --top 3 \
    "$OUT/raw/S001C001P006R001A001.skeleton"
"$PYTHON" tools/report.py "$OUT/runs" --figure "$OUT/curves.png" | tee "$OUT/table.md"
echo "figures: $OUT/clip.png $OUT/clip.html $OUT/curves.png; table: $OUT/table.md; $((SECONDS - began)) s"
