# Sourced by the scripts of the experiments: their first argument is a benchmark, the options after it go to main_*.py.
#   OUT=…     folder of the runs (default: runs/BENCHMARK)        SEED=N    --seed N, in folders seed_N
#   METHOD=…  mamp (default), mae, or random: an encoder that was never trained
#   STREAM=…  joint (default), bone or velocity                   DRY=1     prints the commands, runs nothing
#   GPUS=N    processes, one GPU each (default: all; 0: the CPU)  PYTHON=…  uses that interpreter
# A run that was stopped goes on, a finished one ends at once. Paths in options count from the repository's root.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

check_benchmark() {
    local files
    if [ -z "$1" ] || ! grep -qs '^benchmark:' "config/$1.yaml"; then
        files="$(grep -l '^benchmark:' config/*.yaml | xargs -n 1 basename -s .yaml | xargs)"
        fail "no benchmark '$1'; give one of: $files"
    fi
}

execute() {     # a command; with DRY=1 only its text
    local line
    if [ -z "${DRY:-}" ]; then "$@"; else printf -v line ' %q' "$@"; echo "${line# }"; fi
}

folder_of() { echo "${2:-$OUT}/$1${STREAM_NAME}${SEED:+/seed_$SEED}"; }     # a run's name, root of its benchmark

# Sets ENCODER, the options that name what a run starts from: METHOD's pre-training on SOURCE (default: the benchmark).
# PKU-MMD's encoders are the snapshots published, after epoch 300 of 400.
find_encoder() {    # stage
    local root="$OUT" folder file=checkpoint-last.pth maker=pretrain.sh
    if [ "$METHOD" = random ]; then
        [ "$1" != finetune ] || fail "METHOD=random is for probe and retrieval; scripts/scratch.sh trains from scratch"
        ENCODER=(--random_encoder)
        return
    fi
    [ "$SOURCE" = "$BENCHMARK" ] || root="$(dirname "$OUT")/$SOURCE"
    [ "$METHOD" != mae ] || maker=mae.sh
    case "$SOURCE" in pku*) file=checkpoint-300.pth ;; esac
    folder="$(folder_of "pretrain$METHOD_NAME" "$root")"
    ENCODER=(--finetune "$folder/$file")
    maker="OUT=$root ${SEED:+SEED=$SEED }${STREAM_NAME:+STREAM=$STREAM }bash scripts/$maker $SOURCE"
    if [ -z "${DRY:-}" ]; then
        [ -e "$folder/$file" ] || fail "$folder/$file is not there; this makes it: $maker"
        if [ "$file" = checkpoint-last.pth ] && [ ! -e "$folder/result.json" ]; then
            fail "$folder is not finished; this goes on with it: $maker"
        fi
    fi
}

# For scripts of several runs, before the first: options that not every stage has, or that would send all runs into one
# folder, are refused now and not after days.
check_options() {   # stages, options
    local stages="$1" option
    shift
    for option; do
        case "${option%%=*}" in --output_dir | --log_dir)
            fail "$option: this script makes several runs, each in a folder of its own; give OUT=… for all" ;;
        esac
    done
    "$PYTHON" -c 'import sys; from util.errors import run_main; from util.options import build_parser
run_main(lambda: [build_parser(stage).parse_args(sys.argv[2:]) for stage in sys.argv[1].split()] and 0)' \
        "$stages" "$@" > /dev/null
}

run() {     # stage, name of the folder, 'pretrained' or 'fresh', options
    local stage="$1" folder start="$3" option before='' code=0 ENCODER=() command=("$PYTHON")
    folder="$(folder_of "$2")"
    shift 3
    for option; do
        case "${option%%=*}" in --finetune | --random_encoder | --features | --eval) start=fresh ;; esac
        case "$option" in --output_dir=*) folder="${option#*=}" ;; esac
        [ "$before" != --output_dir ] || folder="$option"
        before="$option"
    done
    if [ -n "${SKIP_FINISHED:-}" ] && [ -e "$folder/result.json" ]; then
        echo "# finished before: $folder"
        return
    fi
    [ "$start" = fresh ] || find_encoder "$stage"
    if [ -n "${RENDEZVOUS:-}" ]; then       # of several nodes: scripts/slurm/job.sbatch
        command=(srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run $RENDEZVOUS --nproc_per_node "$GPUS")
    elif [ "$GPUS" -gt 1 ]; then
        command+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS")
    fi
    command+=("main_$stage.py" --config "config/$stage.yaml" "config/$BENCHMARK.yaml" --output_dir "$folder")
    [ "$stage" = retrieval ] || command+=(--resume auto)
    case "$stage" in linprobe | finetune) command+=(--save_scores) ;; esac
    [ -z "$SEED" ] || command+=(--seed "$SEED")
    [ -z "$STREAM_NAME" ] || command+=(--stream "$STREAM")
    [ -n "${DRY:-}" ] || rm -f "$folder/preempted"
    execute "${command[@]}" "${ENCODER[@]}" "$@" || code=$?
    if [ -z "${DRY:-}" ] && [ -e "$folder/preempted" ]; then
        echo "$folder: stopped by a signal; the same command goes on" >&2
        exit 75     # "try again later": scripts/slurm/job.sbatch does
    fi
    return "$code"
}

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
[ "${1:-}" != --help ] || show_help "$0" "${BASH_SOURCE[0]}"
case "${OUT:=}" in '' | /*) ;; *) OUT="$PWD/$OUT" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BENCHMARK="${1:-}"
check_benchmark "$BENCHMARK"
SOURCE="$BENCHMARK" OUT="${OUT#"$PWD/"}" SEED="${SEED:-}" METHOD="${METHOD:-mamp}" STREAM="${STREAM:-joint}"
OUT="${OUT:-runs/$BENCHMARK}"
case "$METHOD" in mamp) METHOD_NAME= ;; mae | random) METHOD_NAME="_$METHOD" ;;
    *) fail "METHOD=$METHOD is not mamp, mae or random" ;; esac
case "$STREAM" in joint) STREAM_NAME= ;; bone | velocity) STREAM_NAME="_$STREAM" ;;
    *) fail "STREAM=$STREAM is not joint, bone or velocity" ;; esac
source scripts/env.sh
GPUS="${GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}"
for number in SEED GPUS; do
    case "${!number}" in *[!0-9]*) fail "$number=${!number} is not a number" ;; esac
done
[ "$GPUS" != 0 ] || export CUDA_VISIBLE_DEVICES=
[ -z "${RENDEZVOUS:-}" ] || trap : TERM USR1        # the runs end by themselves and leave word
export OUT SEED METHOD STREAM GPUS
