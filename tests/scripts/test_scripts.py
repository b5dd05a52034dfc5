"""Scripts: the commands they run, with a stub in place of Python; how they stop; and, marked slow, real runs."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest

from data import prepare_ntu, synthesize
from tests.conftest import CPU, ROOT, read_result
from util.checkpoint import LAST
from util.config import parse_args

SCRIPTS = ROOT / 'scripts'
# In place of Python: records its arguments and leaves the files of a finished run.
STUB = """#!/usr/bin/env bash
if [ "$1" = -c ]; then echo "${STUB_GPUS:-0}"; exit; fi
printf -v line '%s\\t' "$@"
echo "$line$CUDA_VISIBLE_DEVICES" >> "$STUB_RECORD"
while [ $# -gt 0 ]; do
    if [ "$1" = --output_dir ] && [ -n "${STUB_MAKES:-}" ]; then
        mkdir -p "$2"
        for name in $STUB_MAKES; do touch "$2/$name"; done
    fi
    shift
done
exit "${STUB_EXIT:-0}"
"""


def write_command(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Bench:
    """Runs scripts from outside the repository, with the stub as interpreter (its path has a space)."""

    def __init__(self, folder: Path):
        self.folder, self.record, self.out = folder, folder / 'record', folder / 'my runs'
        self.python = str(folder / 'stub folder' / 'python')
        write_command(Path(self.python), STUB)

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
        """Run a script with these variables only, and forget the calls of the last one."""
        self.record.unlink(missing_ok=True)
        env = {'PATH': os.environ['PATH'], 'PYTHON': self.python, 'GPUS': '1', 'STUB_RECORD': str(self.record)} | env
        return subprocess.run(['bash', str(SCRIPTS / script), *args], cwd=self.folder, env=env, capture_output=True,
                              text=True, timeout=900)

    def calls(self) -> list[list[str]]:
        """Arguments of each call of Python."""
        return [line.split('\t')[:-1] for line in self.record.read_text().splitlines()] if self.record.exists() else []

    def dry(self, script: str, *args: str, **env: str) -> list[list[str]]:
        """Commands that a script prints with DRY=1, without the interpreter; the programs accept their options."""
        done = self.run(script, *args, DRY='1', **env)
        assert done.returncode == 0 and not done.stderr, done.stderr
        commands = [shlex.split(line) for line in done.stdout.splitlines()]
        assert all(command[0] == self.python for command in commands) and not self.calls()
        for _, program, *words in commands:
            if program != 'tools/report.py':
                parse_args(re.fullmatch(r'(?:main_|tools/)(\w+)\.py', program)[1],
                           [str(ROOT / word) if word.startswith('config/') else word for word in words])
        return [command[1:] for command in commands]


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def command(stage: str, benchmark: str, name: str, *options: str) -> list[str]:
    """Expected command of one run, `name` of the benchmark's folder."""
    words = ['tools/retrieval.py' if stage == 'retrieval' else f'main_{stage}.py', '--config', f'config/{stage}.yaml',
             f'config/{benchmark}.yaml', '--output_dir', f'runs/{benchmark}/{name}']
    words += ['--resume', 'auto'] * (stage != 'retrieval') + ['--save_scores'] * (stage in ('linprobe', 'finetune'))
    return [*words, *options]


def encoder(benchmark: str) -> list[str]:
    return ['--finetune', f'runs/{benchmark}/pretrain/{"checkpoint-300.pth" if "pku" in benchmark else LAST}']


def single(name: str) -> dict[str, list[list[str]]]:
    """Expected commands of `bash scripts/SCRIPT.sh NAME` by script."""
    own, one_shot = encoder(name), ['--protocol', 'oneshot', '--novel_every', '6']
    return {
        'pretrain': [command('pretrain', name, 'pretrain')],
        'mae': [command('pretrain', name, 'pretrain_mae', '--target', 'joint', '--motion_aware_tau', '0')],
        'linprobe': [command('linprobe', name, 'linprobe', *own)],
        'finetune': [command('finetune', name, 'finetune', *own)],
        'scratch': [command('finetune', name, 'scratch', '--layer_decay', '1', '--head', 'mlp')],
        'semi': [command('finetune', name, f'semi_0.1_{seed}', *own, '--label_fraction', '0.1', '--seed', str(seed))
                 for seed in range(5)],
        'transfer': [command('finetune', name, 'transfer_ntu60_xsub', *encoder('ntu60_xsub'))],
        'retrieval': [command('retrieval', name, 'retrieval', *own)],
        'oneshot': [command('retrieval', name, 'oneshot', *own, *one_shot),
                    command('finetune', name, 'finetune_auxiliary', *own, '--novel_every', '6'),
                    command('retrieval', name, 'oneshot_supervised', *one_shot, '--finetune',
                            f'runs/{name}/finetune_auxiliary/{LAST}')]}


BASE = 'pretrain linprobe finetune scratch retrieval pretrain_mae linprobe_mae'
COLUMNS = {     # folders of the runs of `bash scripts/reproduce.sh NAME`, without the seeds of semi-supervised ones
    'ntu60_xsub': BASE + ''.join(f' semi_{share} semi_mae_{share} semi_scratch_{share}' for share in ('0.01', '0.1')),
    'ntu120_oneshot': 'pretrain oneshot finetune_auxiliary oneshot_supervised',
    'pku2_xsub': f'{BASE} pretrain transfer_ntu60_xsub pretrain transfer_ntu120_xsub pretrain transfer_pku1_xsub'}


@pytest.mark.parametrize('benchmark', COLUMNS)
def test_commands_of_each_script_and_of_a_whole_column(bench, benchmark):
    for script, commands in single(benchmark).items():
        assert bench.dry(f'{script}.sh', benchmark) == commands, script
    *runs, report = bench.dry('reproduce.sh', benchmark)
    folders = [re.sub(r'(semi_.*)_\d$', r'\1', Path(words[words.index('--output_dir') + 1]).name) for words in runs]
    assert [name for name, _ in groupby(folders)] == COLUMNS[benchmark].split()
    assert report == ['tools/report.py', f'runs/{benchmark}']


def test_seeds_methods_and_streams_have_folders_and_encoders_of_their_own(bench):
    assert bench.dry('linprobe.sh', 'ntu60_xsub', METHOD='random', SEED='3') == [
        command('linprobe', 'ntu60_xsub', 'linprobe_random/seed_3', '--seed', '3', '--random_encoder')]
    assert bench.dry('finetune.sh', 'ntu60_xsub', METHOD='mae', STREAM='bone', SEED='0') == [
        command('finetune', 'ntu60_xsub', 'finetune_mae_bone/seed_0', '--seed', '0', '--stream', 'bone',
                '--finetune', f'runs/ntu60_xsub/pretrain_mae_bone/seed_0/{LAST}')]
    assert len(bench.dry('semi.sh', 'ntu60_xsub', FROM='scratch', RUNS='2')) == 2
    expected, scores = [], []
    for stream, folder in (('joint', 'linprobe'), ('bone', 'linprobe_bone'), ('velocity', 'linprobe_velocity')):
        for script in ('pretrain.sh', 'linprobe.sh'):
            expected += bench.dry(script, 'ntu60_xview', SEED='2', STREAM=stream)
        scores.append(f'runs/ntu60_xview/{folder}/seed_2/scores.npz')
    assert bench.dry('streams.sh', 'ntu60_xview', SEED='2') == [
        *expected, ['tools/report.py', '--ensemble', *scores, '--out', 'runs/ntu60_xview/ensemble_linprobe/seed_2']]


@pytest.mark.parametrize('name, value, in_pretraining, in_probe', [
    ('norm_skes_loss', 'no', ['--no-norm_skes_loss'], []),
    ('t_patch_size', '8', ['--t_patch_size', '8'], ['--t_patch_size', '8'])])
def test_ablations_vary_one_option(bench, name, value, in_pretraining, in_probe):
    out = f'runs/ntu60_xsub_ablations/{name}_{value}'
    expected = [command for script, options in (('pretrain.sh', in_pretraining), ('linprobe.sh', in_probe))
                for command in bench.dry(script, 'ntu60_xsub', *options, OUT=str(ROOT / out))]
    assert bench.dry('ablations.sh', 'ntu60_xsub', name, VALUES=value) == [*expected, ['tools/report.py', out]]


def test_the_study_of_small_training_sets_runs_every_stage_on_its_data(bench):
    done = bench.run('small_data.sh', 'min_crop=16,t_patch_size=8,unlabelled=test:head=linear', OUT=str(bench.out),
                     SUBJECTS='1', SEEDS='5', GPUS='0', STUB_MAKES=f'{LAST} result.json')
    assert done.returncode == 0, done.stderr
    prepare, pretrain, linprobe, finetune, report = bench.calls()
    assert prepare[-2:] == ['--train_subjects', '2'] and report == ['tools/report.py', f'{bench.out}/subjects_1']
    last = [{key: call[-1 - call[::-1].index(key) + 1] for key in ('--data_path', '--epochs', '--t_patch_size')}
            for call in (pretrain, linprobe, finetune)]
    assert [tuple(values.values()) for values in last] == [
        (f'{bench.out}/data/1_5/NWUCLA_{name}.npz', epochs, '8')
        for name, epochs in (('Joined', '122'), ('Validation', '95'), ('Validation', '152'))]


@pytest.mark.parametrize('gpus, available, processes, visible', [('4', '', 4, 'all'), ('', '2', 2, 'all'),
                                                                 ('', '0', 1, '')])
def test_torchrun_on_several_gpus(bench, gpus, available, processes, visible):
    options = ['--data_path', 'a file with  spaces.npz', '--benchmark', "it's *", '--device', '']
    env = {'GPUS': gpus, 'STUB_GPUS': available, 'CUDA_VISIBLE_DEVICES': 'all'}
    assert bench.run('pretrain.sh', 'nwucla_xview', *options, **env).returncode == 0
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    assert bench.calls() == [torchrun * (processes > 1) + single('nwucla_xview')['pretrain'][0] + options]
    assert bench.record.read_text().endswith(f'\t{visible}\n')


@pytest.mark.parametrize('script', ['pretrain', 'reproduce'])
def test_a_failure_or_a_stop_ends_a_script_at_once(bench, script):
    done = bench.run(f'{script}.sh', 'ntu60_xsub', OUT=str(bench.out), STUB_EXIT='3')
    assert done.returncode == 3 and len(bench.calls()) == 1
    done = bench.run(f'{script}.sh', 'ntu60_xsub', OUT=str(bench.out), STUB_MAKES='preempted', STUB_EXIT='1')
    assert done.returncode == 75 and len(bench.calls()) == 1 and 'continues the run' in done.stderr
    done = bench.run(f'{script}.sh', 'ntu60_xsub', OUT=str(bench.out), STUB_MAKES=f'result.json {LAST} scores.npz')
    assert done.returncode == 0, 'an old marker does not count'


def test_a_column_skips_finished_runs_and_refuses_a_missing_encoder(bench):
    env = {'OUT': str(bench.out), 'STUB_MAKES': f'result.json {LAST} checkpoint-300.pth'}
    for calls in (len(COLUMNS['pku2_xsub'].split()) + 1, 1):
        assert bench.run('reproduce.sh', 'pku2_xsub', **env).returncode == 0
        assert len(bench.calls()) == calls
    for name in ('scratch/result.json', 'retrieval/result.json', 'pretrain/checkpoint-300.pth'):
        (bench.out / name).unlink()
    done = bench.run('reproduce.sh', 'pku2_xsub', **env)
    assert done.returncode == 2 and 'checkpoint-300.pth does not exist' in done.stderr
    assert [words[0] for words in bench.calls()] == ['main_finetune.py']


@pytest.mark.parametrize('arguments, env, part', [
    ('pretrain.sh', {}, "no benchmark ''"), ('linprobe.sh ntu60_xsub', {}, 'bash scripts/pretrain.sh ntu60_xsub'),
    ('retrieval.sh ntu60_xsub', {'METHOD': 'mae'}, 'bash scripts/mae.sh ntu60_xsub'),
    ('semi.sh ntu60_xsub', {'FROM': 'x'}, 'FROM=x'), ('finetune.sh ntu60_xsub', {'METHOD': 'random'}, 'scratch.sh'),
    ('pretrain.sh ntu60_xsub', {'GPUS': '-1'}, 'GPUS=-1'), ('streams.sh nwucla_xview --output_dir=x', {}, 'OUT='),
    ('reproduce.sh nwucla_xview --save_minutes 5', {'PYTHON': sys.executable}, 'tools/retrieval.py --help')])
def test_a_user_error_is_one_line_with_exit_code_two(bench, arguments, env, part):
    done = bench.run(*arguments.split(), **{'OUT': str(bench.out)} | env)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stderr.startswith('error: '), done.stderr
    assert part in done.stderr and not bench.calls() and not bench.out.exists()


def test_the_demo_clears_its_own_folder_only(bench):
    (bench.out / 'runs').mkdir(parents=True)
    done = bench.run('demo.sh', str(bench.folder / 'data'), str(bench.out))
    assert done.returncode == 2 and (bench.out / 'runs').exists() and not bench.calls()


# ---- Slurm -----------------------------------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
# Starts the task of each node on this machine; a signal is for the tasks, as with the real srun.
trap 'true' USR1 TERM
[ "$1" = --kill-on-bad-exit=1 ] && shift
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do "$@" & pids+=($!); done
echo "${pids[@]}" > "$STUB_RECORD.pids"
for pid in "${pids[@]}"; do
    while code=0; wait "$pid" || code=$?; kill -0 "$pid" 2> /dev/null; do :; done
done
exit $code
"""
SLURM = """#!/usr/bin/env bash
echo "${0##*/} $*" >> "$STUB_RECORD.slurm"
case "$1" in
    show) printf '%s\\n' localhost other ;;
    --signal=*) kill -s "${1#--signal=}" $(cat "$STUB_RECORD.pids") ;;
esac
"""
PREEMPTIBLE = """#!/usr/bin/env bash
if [ "$1" = -c ]; then echo 0; exit; fi
while [ "$1" != --output_dir ]; do shift; done
folder="$2"
trap 'touch "$folder/preempted"; exit 0' USR1 TERM
mkdir -p "$folder"; touch "$folder/started"
for _ in {1..200}; do sleep 0.1; done
"""


def submit(bench: Bench, *args: str, **env: str) -> subprocess.Popen:
    """Start the job as its first of two nodes does, from a spool folder, with stubs of Slurm's commands."""
    for name, text in (('srun', SRUN), ('scontrol', SLURM), ('scancel', SLURM)):
        write_command(bench.folder / 'bin' / name, text)
    spool = shutil.copy(SCRIPTS / 'slurm' / 'job.sbatch', bench.folder / 'slurm_script')
    env = os.environ | {'PATH': f'{bench.folder / "bin"}:{os.environ["PATH"]}', 'PYTHON': bench.python,
                        'STUB_RECORD': str(bench.record), 'OUT': str(bench.out), 'SLURM_JOB_ID': '4321',
                        'SLURM_JOB_NUM_NODES': '2', 'SLURM_JOB_NODELIST': 'localhost,other'} | env
    return subprocess.Popen(['bash', str(spool), *args], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def test_slurm_starts_torchrun_on_every_node_and_passes_on_a_failure(bench):
    script, *words = bench.dry('pretrain.sh', 'ntu60_xsub', '--benchmark', 'a b', OUT=str(bench.out))[0]
    job = submit(bench, 'pretrain', 'ntu60_xsub', '--benchmark', 'a b', SLURM_GPUS_ON_NODE='8', STUB_EXIT='3')
    job.communicate(timeout=60)
    assert job.returncode == 3
    assert bench.record.with_suffix('.slurm').read_text() == 'scontrol show hostnames localhost,other\n'
    assert bench.calls() == 2 * [[
        '-m', 'torch.distributed.run', '--nnodes', '2', '--rdzv_backend', 'c10d', '--rdzv_id', '4321',
        '--rdzv_endpoint', 'localhost:29821', '--nproc_per_node', '8', script, *words]]


@pytest.mark.parametrize('number, send', [(signal.SIGUSR1, os.kill), (signal.SIGTERM, os.killpg)])
def test_slurm_passes_signals_to_the_processes_and_requeues(bench, number, send):
    """The signal comes to the job's shell alone, or to everything it started on its node."""
    write_command(Path(bench.python), PREEMPTIBLE)
    job = submit(bench, 'pretrain', 'ntu60_xsub')
    deadline = time.monotonic() + 30
    while not (bench.out / 'pretrain' / 'started').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    send(job.pid, number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 0, errors
    assert bench.record.with_suffix('.slurm').read_text().splitlines()[1:] == [
        f'scancel --signal={number.name.removeprefix("SIG")} 4321', 'scontrol requeue 4321']


# ---- real runs -------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_columns_and_other_experiments_for_real(bench):
    folder, config, out = bench.folder, bench.folder / 'tiny.yaml', bench.folder / 'ntu60_xsub'
    own = CPU | {'PYTHON': sys.executable, 'GPUS': '0', 'RUNS': '1'}
    synthesize.main(['--out', str(folder / 'raw'), '--clips_per_class', '36', '--workers', '1'])
    prepare_ntu.main(['--dataset', 'synth', '--raw', str(folder / 'raw'), '--out', str(folder), '--protocol', 'xsub',
                      '--workers', '1'])
    config.write_text(f'''
        {{data_path: "{folder}/SYNTH_XSub.npz", num_classes: 12, num_frames: 8, t_patch_size: 4, dim_feat: 8, depth: 1,
        num_heads: 2, effective_batch_size: 2, num_workers: 0, epochs: 1, warmup_epochs: 0, batch_size: null,
        pretrain: {{effective_batch_size: 32, decoder_dim_feat: 8, decoder_depth: 1, mask_ratio: 0.5}},
        linprobe: {{effective_batch_size: 32}}}}''')

    def real(script: str, benchmark: str) -> str:
        done = bench.run(script, benchmark, '--config', str(config), OUT=str(folder / benchmark), **own)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    real('reproduce.sh', 'ntu60_xsub')
    methods = {name: 'MAE' if 'mae' in name else 'scratch' if 'scratch' in name else 'MAMP'
               for name in COLUMNS['ntu60_xsub'].split()}
    assert methods == {path.parent.name.removesuffix('_0'): read_result(path.parent)['method']
                       for path in out.rglob('result.json')}
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*.pth')}
    assert real('reproduce.sh', 'ntu60_xsub').count('# finished before: ') == len(methods)
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*.pth')} == times
    real('streams.sh', 'ntu60_xsub')
    assert read_result(out / 'ensemble_linprobe')['stream'] == 'joint + bone + velocity'
    real('oneshot.sh', 'ntu60_xsub')
    assert read_result(out / 'oneshot_supervised')['method'] == 'MAMP + supervised'
    real('transfer.sh', 'pku2_xsub')
    assert read_result(folder / 'pku2_xsub/transfer_ntu60_xsub')['pretraining']['benchmark'] == 'ntu60_xsub'
    job = submit(bench, 'pretrain', 'ntu60_xsub', '--config', str(config), **own, SLURM_JOB_ID=str(os.getpid()))
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert read_result(bench.out / 'pretrain')['processes'] == 2
