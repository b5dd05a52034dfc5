"""The scripts of the experiments: the commands they give, with a stand-in for Python; and all of them for real."""


import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data import prepare_ntu, synthesize
from tests.conftest import ROOT
from tests.util.test_config import BENCHMARKS
from util.config import parse_args

SCRIPTS = ROOT / 'scripts'
SINGLE = ('pretrain', 'mae', 'linprobe', 'finetune', 'scratch', 'semi', 'transfer', 'retrieval', 'oneshot')
LAST = 'checkpoint-last.pth'
# Takes Python's place: writes down its arguments and leaves what a finished run leaves.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then echo "${STUB_GPUS:-0}"; exit; fi
printf -v line '%s\\t' "$@"
echo "$line$CUDA_VISIBLE_DEVICES" >> "$STUB_RECORD"      # at once: several may write
while [ $# -gt 0 ]; do
    if [ "$1" = --output_dir ] && [ -n "${STUB_MAKES:-}" ]; then
        mkdir -p "$2"
        for name in $STUB_MAKES; do touch "$2/$name"; done
    fi
    shift
done
exit "${STUB_EXIT:-0}"
"""


def write_command(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Bench:
    """A place outside the repository to start scripts from, with the stand-in (its path has a space)."""

    def __init__(self, folder: Path):
        self.folder, self.record = folder, folder / 'record'
        self.python = str(write_command(folder / 'stand in' / 'python', PYTHON))
        self.out = folder / 'my runs'

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
        """A script with STUB_… and the scripts' own variables as `env`; what the last one recorded is forgotten."""
        self.record.unlink(missing_ok=True)
        ours = {'OUT', 'SEED', 'METHOD', 'STREAM', 'GPUS', 'DRY', 'FROM', 'RUNS', 'STAGE', 'VALUES', 'RENDEZVOUS',
                'SKIP_FINISHED', 'CUDA_VISIBLE_DEVICES'}
        env = {key: value for key, value in os.environ.items() if key not in ours} | {
            'PYTHON': self.python, 'GPUS': '1', 'STUB_RECORD': str(self.record)} | env
        return subprocess.run(['bash', str(SCRIPTS / script), *args], cwd=self.folder, capture_output=True, text=True,
                              env={key: value for key, value in env.items() if value is not None}, timeout=120)

    def calls(self) -> list[list[str]]:
        """What Python was called with, one list a call, without the GPUs it was shown (`shown`)."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [line.split('\t')[:-1] for line in lines]

    def shown(self) -> list[str]:
        return [line.split('\t')[-1] for line in self.record.read_text().splitlines()]

    def dry(self, script: str, *args: str, **env: str) -> list[list[str]]:
        """The commands a script would give, without the interpreter."""
        done = self.run(script, *args, DRY='1', **env)
        assert done.returncode == 0 and not done.stderr, done.stderr
        commands = [shlex.split(line) for line in done.stdout.splitlines()]
        assert all(command[0] == self.python for command in commands) and not self.calls()
        return [command[1:] for command in commands]


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def refused(done: subprocess.CompletedProcess, *says: str) -> None:
    """A user's error: one line, exit code 2."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: '), done.stderr
    for part in says:
        assert part in done.stderr, done.stderr


def command(stage: str, benchmark: str, folder: str, *options: str) -> list[str]:
    """The command line of one run, as it should be."""
    words = [f'main_{stage}.py', '--config', f'config/{stage}.yaml', f'config/{benchmark}.yaml', '--output_dir', folder]
    words += ['--resume', 'auto'] * (stage != 'retrieval') + ['--save_scores'] * (stage in ('linprobe', 'finetune'))
    return [*words, *options]


def encoder_of(benchmark: str, method: str = '') -> list[str]:
    snapshot = 'checkpoint-300.pth' if benchmark.startswith('pku') else LAST
    return ['--finetune', f'runs/{benchmark}/pretrain{method}/{snapshot}']


def expected_of(script: str, name: str) -> list[list[str]]:
    """What `bash scripts/SCRIPT.sh NAME` should run."""
    runs, encoder = f'runs/{name}', encoder_of(name)
    one_shot = ['--protocol', 'oneshot', '--novel_every', '6']
    return {
        'pretrain': [command('pretrain', name, f'{runs}/pretrain')],
        'mae': [command('pretrain', name, f'{runs}/pretrain_mae', '--target', 'joint', '--motion_aware_tau', '0')],
        'linprobe': [command('linprobe', name, f'{runs}/linprobe', *encoder)],
        'finetune': [command('finetune', name, f'{runs}/finetune', *encoder)],
        'scratch': [command('finetune', name, f'{runs}/scratch', '--layer_decay', '1')],
        'semi': [command('finetune', name, f'{runs}/semi_0.1_{seed}', *encoder, '--label_fraction', '0.1', '--seed',
                         str(seed)) for seed in range(5)],
        'transfer': [command('finetune', name, f'{runs}/transfer_ntu60_xsub', *encoder_of('ntu60_xsub'))],
        'retrieval': [command('retrieval', name, f'{runs}/retrieval', *encoder)],
        'oneshot': [command('retrieval', name, f'{runs}/oneshot', *encoder, *one_shot),
                    command('finetune', name, f'{runs}/finetune_auxiliary', *encoder, '--novel_every', '6'),
                    command('retrieval', name, f'{runs}/oneshot_supervised', *one_shot, '--finetune',
                            f'{runs}/finetune_auxiliary/{LAST}')],
    }[script]


def understood(words: list[str]) -> None:
    """The program itself takes this command line."""
    while words[0] != 'tools/report.py' and not re.fullmatch(r'main_(\w+)\.py', words[0]):
        words = words[1:]       # torchrun and its options
    if words[0] != 'tools/report.py':
        files = [str(ROOT / word) if word.startswith('config/') else word for word in words[1:]]
        parse_args(re.fullmatch(r'main_(\w+)\.py', words[0])[1], files)


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_every_script_gives_its_command_for_every_benchmark(bench, benchmark):
    for script in SINGLE:
        commands = bench.dry(f'{script}.sh', benchmark)
        assert commands == expected_of(script, benchmark), script
        for words in commands:
            understood(words)


@pytest.mark.parametrize('gpus, stub, launcher, shown', [
    ('4', '', ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '4'], 'all'), ('1', '', [], 'all'),
    ('0', '', [], ''), (None, '2', ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'], 'all'),
    (None, '1', [], 'all'), (None, '0', [], '')])
def test_torchrun_on_several_gpus_and_plain_python_else(bench, gpus, stub, launcher, shown):
    done = bench.run('pretrain.sh', 'nwucla_xview', GPUS=gpus, STUB_GPUS=stub, CUDA_VISIBLE_DEVICES='all')
    assert done.returncode == 0, done.stderr
    assert bench.calls() == [launcher + expected_of('pretrain', 'nwucla_xview')[0]]
    assert bench.shown() == [shown]


@pytest.mark.parametrize('script', [*SINGLE, 'streams', 'reproduce', 'ablations'])
def test_a_failure_is_passed_on_and_nothing_after_it_is_begun(bench, script):
    for root in ('ntu60_xsub', 'synth_xsub'):
        bench.run('pretrain.sh', root, OUT=str(bench.folder / root), STUB_MAKES=f'result.json {LAST}')
    option = ['mask_ratio'] if script == 'ablations' else []
    done = bench.run(f'{script}.sh', 'ntu60_xsub', *option, OUT=str(bench.folder / 'ntu60_xsub'), STUB_EXIT='3')
    assert done.returncode == 3 and len(bench.calls()) == 1


@pytest.mark.parametrize('script', ['pretrain', 'semi', 'reproduce'])
def test_a_run_stopped_by_a_signal_ends_with_75_whatever_its_own_code(bench, script):
    bench.run('pretrain.sh', 'ntu60_xsub', OUT=str(bench.out), STUB_MAKES=f'result.json {LAST}')
    env = {'OUT': str(bench.out), 'STUB_MAKES': 'preempted'}
    if script == 'reproduce':
        (bench.out / 'pretrain' / 'result.json').unlink()
    for code in ('0', '1'):
        done = bench.run(f'{script}.sh', 'ntu60_xsub', STUB_EXIT=code, **env)
        assert done.returncode == 75 and len(bench.calls()) == 1 and 'goes on' in done.stderr, done.stderr
    done = bench.run(f'{script}.sh', 'ntu60_xsub', **env | {'STUB_MAKES': f'result.json {LAST} scores.npz'})
    assert done.returncode == 0, 'an old mark does not count'


def test_semi_supervised_runs(bench):
    def folders(*args, **env):
        commands = bench.dry('semi.sh', 'ntu60_xsub', *args, **env)
        return [words[words.index('--output_dir') + 1].removeprefix('runs/ntu60_xsub/') for words in commands]
    assert folders() == [f'semi_0.1_{seed}' for seed in range(5)]
    assert folders('0.01', RUNS='2') == ['semi_0.01_0', 'semi_0.01_1']
    assert folders('0.1', '--label_draw', 'balanced', SEED='7') == ['semi_0.1_7/seed_7']
    assert folders(METHOD='mae', RUNS='1') == ['semi_mae_0.1_0']
    scratch = bench.dry('semi.sh', 'ntu60_xsub', '0.01', '--epochs', '7', FROM='scratch', RUNS='1')
    assert scratch == [command('finetune', 'ntu60_xsub', 'runs/ntu60_xsub/semi_scratch_0.01_0', '--label_fraction',
                               '0.01', '--seed', '0', '--layer_decay', '1', '--epochs', '7')]


@pytest.mark.parametrize('script, args, env, says', [
    *((script, [], {}, "no benchmark ''") for script in (*SINGLE, 'streams', 'reproduce', 'ablations')),
    ('pretrain', ['ntu60'], {}, 'ntu60_xsub ntu60_xview'), ('pretrain', ['pretrain'], {}, "no benchmark 'pretrain'"),
    ('pretrain', ['--epochs', '3'], {}, "no benchmark '--epochs'"), ('pretrain', ['demo'], {}, 'no benchmark'),
    ('linprobe', ['ntu60_xsub'], {}, 'bash scripts/pretrain.sh ntu60_xsub'),
    ('finetune', ['pku1_xsub'], {}, 'checkpoint-300.pth is not there'),
    ('retrieval', ['ntu60_xsub'], {'METHOD': 'mae'}, 'bash scripts/mae.sh ntu60_xsub'),
    ('transfer', ['pku2_xsub', 'ntu120_xsub'], {}, 'bash scripts/pretrain.sh ntu120_xsub'),
    ('transfer', ['pku2_xsub', 'ntu'], {}, "no benchmark 'ntu'"),
    ('semi', ['ntu60_xsub', '0.1'], {'FROM': 'nowhere'}, 'FROM=nowhere'),
    ('finetune', ['ntu60_xsub'], {'METHOD': 'random'}, 'scratch.sh'),
    ('pretrain', ['ntu60_xsub'], {'METHOD': 'random'}, 'METHOD=random'),
    ('linprobe', ['ntu60_xsub'], {'METHOD': 'best'}, 'METHOD=best'),
    ('pretrain', ['ntu60_xsub'], {'STREAM': 'bones'}, 'STREAM=bones'),
    ('pretrain', ['ntu60_xsub'], {'SEED': 'one'}, 'SEED=one'),
    ('pretrain', ['ntu60_xsub'], {'GPUS': '-1'}, 'GPUS=-1'),
    ('streams', ['ntu60_xsub'], {'STAGE': 'pretrain'}, 'STAGE=pretrain'),
    ('ablations', ['ntu60_xsub'], {}, 'mask_ratio motion_aware_tau'),
    ('ablations', ['ntu60_xsub', 'depth'], {}, "no ablation 'depth'"),
])
def test_a_users_error_is_one_line_and_exit_code_two(bench, script, args, env, says):
    refused(bench.run(f'{script}.sh', *args, **{'OUT': str(bench.out)} | env), says)
    assert not bench.calls() and not bench.out.exists()


@pytest.mark.parametrize('script', [*SINGLE, 'streams', 'reproduce', 'ablations', 'nwucla', 'synthetic', 'demo',
                                    'test'])
def test_help_tells_the_usage(bench, script):
    done = bench.run(f'{script}.sh', '--help')
    assert done.returncode == 0 and not bench.calls()
    several = script in ('nwucla', 'synthetic', 'demo', 'test')
    assert f'bash scripts/{script}.sh' + ' BENCHMARK' * (not several) in done.stdout
    assert 'set -euo' not in done.stdout and ('SEED=N' in done.stdout or script in ('demo', 'test'))


def column_of(benchmark: str) -> list[list[str]]:
    """Every run of a benchmark's column, as it should be."""
    def semi(share, name, *options):
        return [command('finetune', benchmark, f'runs/{benchmark}/{name}_{share}_{seed}', *options, '--label_fraction',
                        share, '--seed', str(seed)) for seed in range(5)]
    commands = expected_of('pretrain', benchmark)
    if benchmark != 'ntu120_oneshot':
        for script in ('linprobe', 'finetune', 'scratch', 'retrieval', 'mae'):
            commands += expected_of(script, benchmark)
        commands += [command('linprobe', benchmark, f'runs/{benchmark}/linprobe_mae', *encoder_of(benchmark, '_mae'))]
    if benchmark.startswith('ntu60_'):
        for share in ('0.01', '0.1'):
            commands += semi(share, 'semi', *encoder_of(benchmark))
            commands += semi(share, 'semi_mae', *encoder_of(benchmark, '_mae'))
            commands += [[*words, '--layer_decay', '1'] for words in semi(share, 'semi_scratch')]
    if benchmark.startswith('ntu120_'):
        commands += expected_of('oneshot', benchmark)
    if benchmark == 'pku2_xsub':
        for source in ('ntu60_xsub', 'ntu120_xsub', 'pku1_xsub'):
            commands += expected_of('pretrain', source)
            commands += [command('finetune', benchmark, f'runs/{benchmark}/transfer_{source}', *encoder_of(source))]
    return [*commands, ['tools/report.py', f'runs/{benchmark}']]


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_a_column_is_all_that_is_published(bench, benchmark):
    commands = bench.dry('reproduce.sh', benchmark)
    assert commands == column_of(benchmark)
    for words in commands:
        understood(words)


def test_a_column_skips_what_is_finished_and_goes_on_with_the_rest(bench):
    env = {'OUT': str(bench.out), 'STUB_MAKES': f'result.json {LAST} checkpoint-300.pth'}
    assert bench.run('reproduce.sh', 'pku2_xsub', **env).returncode == 0
    assert len(bench.calls()) == len(column_of('pku2_xsub'))
    report = ['tools/report.py', str(bench.out)]
    again = bench.run('reproduce.sh', 'pku2_xsub', **env)
    assert bench.calls() == [report] and again.stdout.count('# finished before: ') == len(column_of('pku2_xsub')) - 1
    (bench.out / 'scratch' / 'result.json').unlink()
    (bench.out / 'retrieval' / 'result.json').unlink()
    (bench.out / 'pretrain' / 'checkpoint-300.pth').unlink()        # of use to retrieval only: the probe is finished
    refused(bench.run('reproduce.sh', 'pku2_xsub', **env), 'checkpoint-300.pth is not there')
    assert [words[0] for words in bench.calls()] == ['main_finetune.py']


@pytest.mark.parametrize('stage', ['linprobe', 'finetune'])
def test_streams_are_trained_and_their_scores_added(bench, stage):
    commands = bench.dry('streams.sh', 'ntu60_xview', STAGE=stage, SEED='2')
    expected, scores = [], []
    for stream in ('joint', 'bone', 'velocity'):
        name, option = ('', []) if stream == 'joint' else (f'_{stream}', ['--stream', stream])
        folder = 'runs/ntu60_xview/{}' + f'{name}/seed_2'
        expected += [command('pretrain', 'ntu60_xview', folder.format('pretrain'), '--seed', '2', *option),
                     command(stage, 'ntu60_xview', folder.format(stage), '--seed', '2', *option, '--finetune',
                             f'{folder.format("pretrain")}/{LAST}')]
        scores.append(f'{folder.format(stage)}/scores.npz')
    ensemble = f'runs/ntu60_xview/ensemble_{stage}/seed_2'
    assert commands == [*expected, ['tools/report.py', '--ensemble', *scores, '--out', ensemble]]


SRUN = """#!/usr/bin/env bash
# Each node's task, all on this machine; scancel finds them in a file. A signal is for them, as with the real one.
trap 'true' USR1 TERM
echo "$PET_SIGNALS_TO_HANDLE" > "$STUB_RECORD.handled"
[ "$1" = --kill-on-bad-exit=1 ] && shift
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do "$@" & pids+=($!); done
echo "${pids[@]}" > "$STUB_RECORD.pids"
code=0
for pid in "${pids[@]}"; do
    while code=0; wait "$pid" || code=$?; kill -0 "$pid" 2> /dev/null; do :; done
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$STUB_RECORD.slurm"
[ "$1 $2" != 'show hostnames' ] || printf '%s\\n' localhost other
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$STUB_RECORD.slurm"
kill -s "${1#--signal=}" $(cat "$STUB_RECORD.pids")
"""


def slurm(bench: Bench, *args: str, nodes: int = 2, **env: str) -> subprocess.Popen:
    """The job as its first node would start it, from a spool folder, with stand-ins for Slurm's commands."""
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL), ('scancel', SCANCEL)):
        write_command(bench.folder / 'bin' / name, text)
    spool = bench.folder / 'slurm_script'
    spool.write_text((SCRIPTS / 'slurm' / 'job.sbatch').read_text())
    env = os.environ | {'PATH': f'{bench.folder / "bin"}:{os.environ["PATH"]}', 'PYTHON': bench.python,
                        'STUB_RECORD': str(bench.record), 'OUT': str(bench.out), 'SLURM_JOB_ID': '4321',
                        'SLURM_JOB_NUM_NODES': str(nodes), 'SLURM_JOB_NODELIST': 'localhost,other'} | env
    return subprocess.Popen(['bash', str(spool), *args], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def said_to_slurm(bench: Bench) -> list[str]:
    return Path(f'{bench.record}.slurm').read_text().splitlines()


def test_slurm_starts_a_torchrun_on_every_node(bench):
    job = slurm(bench, 'pretrain', 'ntu60_xsub', '--benchmark', 'a b', SLURM_GPUS_ON_NODE='8',
                STUB_MAKES=f'result.json {LAST}')
    out, errors = job.communicate(timeout=60)
    assert job.returncode == 0, errors
    torchrun = ['-m', 'torch.distributed.run', '--nnodes', '2', '--rdzv_backend', 'c10d', '--rdzv_id', '4321',
                '--rdzv_endpoint', 'localhost:29821', '--nproc_per_node', '8']
    run = command('pretrain', 'ntu60_xsub', f'{bench.out}/pretrain', '--benchmark', 'a b')
    assert bench.calls() == [torchrun + run] * 2
    assert said_to_slurm(bench) == ['scontrol show hostnames localhost,other']
    header = (SCRIPTS / 'slurm' / 'job.sbatch').read_text()
    for option in ('--requeue', '--signal=B:USR1@120', '--ntasks-per-node=1', '--open-mode=append'):
        assert f'#SBATCH {option}\n' in header


def test_slurm_passes_the_exit_code_on_and_does_not_requeue_a_failure(bench):
    job = slurm(bench, 'pretrain', 'ntu60_xsub', STUB_EXIT='3', nodes=1)
    job.communicate(timeout=60)
    assert job.returncode == 3 and '--nproc_per_node\t1\t' in bench.record.read_text()
    assert not any('requeue' in line for line in said_to_slurm(bench))
    for args in ([], ['nonsense', 'ntu60_xsub']):
        job = slurm(bench, *args)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 2 and errors.count('\n') == 1 and errors.startswith('error: no scripts/')


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """Starts scripts on made-up recordings with a tiny model; the settings of single stages stand in a file."""
    folder = tmp_path_factory.mktemp('real')
    synthesize.main(['--out', str(folder / 'raw'), '--clips_per_class', '36', '--workers', '1'])
    prepare_ntu.main(['--dataset', 'synth', '--raw', str(folder / 'raw'), '--out', str(folder), '--protocol', 'xsub',
                      '--workers', '1'])
    settings = {'data_path': str(folder / 'SYNTH_XSub.npz'), 'num_classes': 12, 'num_frames': 8, 't_patch_size': 4,
                'dim_feat': 8, 'depth': 1, 'num_heads': 2, 'effective_batch_size': 2, 'num_workers': 0, 'epochs': 1,
                'warmup_epochs': 0, 'batch_size': None,
                'pretrain': {'effective_batch_size': 32, 'decoder_dim_feat': 8, 'decoder_depth': 1, 'mask_ratio': 0.5},
                'linprobe': {'effective_batch_size': 32}}
    (folder / 'tiny.yaml').write_text(yaml.safe_dump(settings))

    def start(script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
        env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHON': sys.executable, 'GPUS': '0',
                            'RUNS': '1', 'OUT': str(folder / 'ntu60_xsub')} | env
        done = subprocess.run(['bash', str(SCRIPTS / script), *args, '--config', str(folder / 'tiny.yaml')], env=env,
                              capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done
    start.folder = folder
    return start


def read_result(folder: Path) -> dict:
    return json.loads((folder / 'result.json').read_text())


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.name in ('result.json', LAST)}


@pytest.mark.slow
def test_a_whole_column_for_real(real):
    out = real.folder / 'ntu60_xsub'
    done = real('reproduce.sh', 'ntu60_xsub')
    names = {'pretrain': 'MAMP', 'linprobe': 'MAMP', 'finetune': 'MAMP', 'scratch': 'scratch', 'retrieval': 'MAMP',
             'pretrain_mae': 'MAE', 'linprobe_mae': 'MAE'}
    for share in ('0.01', '0.1'):
        names |= {f'semi_{share}_0': 'MAMP', f'semi_mae_{share}_0': 'MAE', f'semi_scratch_{share}_0': 'scratch'}
    assert {path.parent.name for path in out.rglob('result.json')} == {*names}
    for name, method in names.items():
        result = read_result(out / name)
        assert (result['method'], result['benchmark']) == (method, 'ntu60_xsub'), name
    labels = read_result(out / 'semi_0.1_0')['labels']
    labelled = (out / 'semi_0.1_0' / 'labelled.txt').read_text().split()
    assert labels['fraction'] == 0.1 and len({*labelled}) == labels['clips']
    assert '|' in done.stdout, 'the table'
    before = times_of(out)
    again = real('reproduce.sh', 'ntu60_xsub')
    assert again.stdout.count('# finished before: ') == len(names) and times_of(out) == before
    single = real('linprobe.sh', 'ntu60_xsub')
    assert 'finished before' in single.stderr and times_of(out) == before


@pytest.mark.slow
def test_one_shot_and_transfer_for_real(real):
    out = real.folder / 'ntu60_xsub'
    real('pretrain.sh', 'ntu60_xsub')
    real('oneshot.sh', 'ntu60_xsub')
    assert read_result(out / 'oneshot')['protocol'] == read_result(out / 'oneshot_supervised')['protocol'] == 'oneshot'
    assert read_result(out / 'oneshot_supervised')['method'] == 'MAMP + supervised'
    real('transfer.sh', 'pku2_xsub', OUT=str(real.folder / 'pku2_xsub'))
    result = read_result(real.folder / 'pku2_xsub' / 'transfer_ntu60_xsub')
    assert (result['benchmark'], result['pretraining']['benchmark']) == ('pku2_xsub', 'ntu60_xsub')


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['linprobe', 'finetune'])
def test_streams_for_real(real, stage):
    real('streams.sh', 'ntu60_xsub', STAGE=stage)
    out = real.folder / 'ntu60_xsub'
    assert read_result(out / f'{stage}_velocity')['stream'] == 'velocity'
    assert read_result(out / f'ensemble_{stage}')['stream'] == 'joint + bone + velocity'


@pytest.mark.slow
def test_ablations_for_real(real):
    for name, value in (('t_patch_size', '2'), ('norm_skes_loss', 'no'), ('target', 'joint')):
        real('ablations.sh', 'ntu60_xsub', name, VALUES=value)
        assert read_result(real.folder / 'ntu60_xsub_ablations' / f'{name}_{value}' / 'linprobe')['last']


@pytest.mark.slow
def test_two_processes_and_further_seeds_for_real(real):
    out = real.folder / 'ntu60_xsub'
    real('pretrain.sh', 'ntu60_xsub', GPUS='2', SEED='1')
    real('retrieval.sh', 'ntu60_xsub', GPUS='2', SEED='1')
    for name in ('pretrain', 'retrieval'):
        result = read_result(out / name / 'seed_1')
        assert (result['seed'], result['processes']) == (1, 2)
    real('linprobe.sh', 'ntu60_xsub', METHOD='random')
    assert read_result(out / 'linprobe_random')['method'] == 'random encoder'


@pytest.mark.slow
def test_made_up_recordings_for_real(real):
    out = real.folder / 'synthetic'
    real('synthetic.sh', OUT=str(out), SEEDS='0')
    found = {read_result(path.parent)['protocol']: read_result(path.parent) for path in out.rglob('result.json')}
    assert {*found} == {'pretrain', 'linprobe', 'finetune', 'oneshot'}
    result = read_result(out / 'transfer_synth_xsub' / 'seed_0')
    assert (result['benchmark'], result['pretraining']['benchmark']) == ('synth_other', 'synth_xsub')
    assert read_result(out / 'other' / 'scratch' / 'seed_0')['benchmark'] == 'synth_other'
