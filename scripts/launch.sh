# Sourced by the scripts of the experiments. Their first argument is a benchmark, further ones are options of main_*.py.
#   OUT=…     folder of the runs (default: runs/BENCHMARK)        SEED=N    --seed N, in folders seed_N
#   METHOD=…  mamp (default), mae, or random: an untrained encoder
#   STREAM=…  joint (default), bone or velocity                   DRY=1     print the commands, run nothing
#   GPUS=N    processes, one GPU each (default: all; 0: the CPU)  PYTHON=…  interpreter to use
# Interrupted runs are continued, finished ones end at once. Paths in options are relative to the repository's root.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

check_benchmark() {     # name
    if [ -z "$1" ] || ! grep -qs '^benchmark:' "config/$1.yaml"; then
        fail "no benchmark '$1'; choose one of:" \
            "$(grep -l '^benchmark:' config/*.yaml | xargs -n 1 basename -s .yaml | xargs)"
    fi
}

execute() {     # run a command; with DRY=1 print it
    local line
    if [ -z "${DRY:-}" ]; then "$@"; else printf -v line ' %q' "$@"; echo "${line# }"; fi
}

run_folder() { echo "${2:-$OUT}/$1${STREAM_NAME}${SEED:+/seed_$SEED}"; }        # name of the run [root folder]

# Set ENCODER to the options that select the encoder: METHOD's pre-training on SOURCE (default: the benchmark). Encoders
# of PKU-MMD are the snapshots after epoch 300 of 400, as in the authors' code.
find_encoder() {    # stage
    local root="$OUT" file=checkpoint-last.pth script=pretrain.sh folder command
    ENCODER=(--random_encoder)
    if [ "$METHOD" = random ]; then
        [ "$1" != finetune ] || fail "METHOD=random is for probe and retrieval; scripts/scratch.sh trains from scratch"
        return
    fi
    [ "$SOURCE" = "$BENCHMARK" ] || root="$(dirname "$OUT")/$SOURCE"
    [ "$METHOD" != mae ] || script=mae.sh
    case "$SOURCE" in pku*) file=checkpoint-300.pth ;; esac
    folder="$(run_folder "pretrain$METHOD_NAME" "$root")"
    ENCODER=(--finetune "$folder/$file")
    [ -z "${DRY:-}" ] || return 0
    command="OUT=$root ${SEED:+SEED=$SEED }${STREAM_NAME:+STREAM=$STREAM }bash scripts/$script $SOURCE"
    [ -e "$folder/$file" ] || fail "$folder/$file does not exist; make it with: $command"
    if [ "$file" = checkpoint-last.pth ] && [ ! -e "$folder/result.json" ]; then
        fail "$folder is not finished; continue it with: $command"
    fi
}

# Before the first of several runs: refuse options that some stage does not have, or that send all runs into one folder.
check_options() {   # stages, options
    local stages="$1" option
    shift
    for option; do
        case "${option%%=*}" in --output_dir | --log_dir)
            fail "$option: this script makes several runs, each in a folder of its own; set OUT=… for all of them" ;;
        esac
    done
    "$PYTHON" -c 'import sys; from util.errors import run_main; from util.options import build_parser
run_main(lambda: [build_parser(stage).parse_args(sys.argv[2:]) for stage in sys.argv[1].split()] and 0)' \
        "$stages" "$@" > /dev/null
}

run() {     # stage, name of the run, 'pretrained' or 'fresh', options
    local stage="$1" folder start="$3" option previous='' code=0 ENCODER=() command=("$PYTHON")
    folder="$(run_folder "$2")"
    shift 3
    for option; do
        case "${option%%=*}" in --finetune | --random_encoder | --features | --eval) start=fresh ;; esac
        case "$option" in --output_dir=*) folder="${option#*=}" ;; esac
        [ "$previous" != --output_dir ] || folder="$option"
        previous="$option"
    done
    if [ -n "${SKIP_FINISHED:-}" ] && [ -e "$folder/result.json" ]; then
        echo "# finished before: $folder"
        return
    fi
    [ "$start" = fresh ] || find_encoder "$stage"
    if [ -n "${RENDEZVOUS:-}" ]; then       # several nodes: scripts/slurm/job.sbatch
        command=(srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run $RENDEZVOUS --nproc_per_node "$GPUS")
    elif [ "$GPUS" -gt 1 ]; then
        command+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS")
    fi
    if [ "$stage" = retrieval ]; then command+=(tools/retrieval.py); else command+=("main_$stage.py"); fi
    command+=(--config "config/$stage.yaml" "config/$BENCHMARK.yaml" --output_dir "$folder")
    [ "$stage" = retrieval ] || command+=(--resume auto)
    case "$stage" in linprobe | finetune) command+=(--save_scores) ;; esac
    [ -z "$SEED" ] || command+=(--seed "$SEED")
    [ -z "$STREAM_NAME" ] || command+=(--stream "$STREAM")
    [ -n "${DRY:-}" ] || rm -f "$folder/preempted"
    execute "${command[@]}" "${ENCODER[@]}" "$@" || code=$?
    if [ -z "${DRY:-}" ] && [ -e "$folder/preempted" ]; then
        echo "$folder: stopped by a signal; the same command continues the run" >&2
        exit 75     # "try again later", as scripts/slurm/job.sbatch does
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
[ -z "${RENDEZVOUS:-}" ] || trap : TERM USR1        # the runs save, end and leave `preempted`
export OUT SEED METHOD STREAM GPUS
