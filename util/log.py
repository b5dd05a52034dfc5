"""Logs of a run: console, log.jsonl and TensorBoard. Only the main process writes them."""

import json
import logging
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from util.errors import UserError
from util.files import to_json, write_text


def set_up_console(is_main: bool) -> None:
    """Print messages of level INFO and above in the main process, of level ERROR and above in the others."""
    logging.basicConfig(format='%(message)s', level=logging.INFO if is_main else logging.ERROR, force=True)


class RunLog:
    """Log with one line in log.jsonl per epoch, and the same values in TensorBoard."""

    def __init__(self, output_dir: Path, log_dir: Path, first_epoch: int, first_step: int):
        """Drop the lines and events that were written after the checkpoint from which the run resumes."""
        self.path = output_dir / 'log.jsonl'
        try:
            lines = self.path.read_text(encoding='utf-8', errors='replace').splitlines() if self.path.exists() else []
        except OSError as error:
            raise UserError(f'{self.path}: cannot be read ({error.strerror}); choose another --output_dir') from error
        write_text(self.path, ''.join(f'{line}\n' for line in lines if _epoch_number(line) < first_epoch))
        try:
            self.writer = SummaryWriter(log_dir, purge_step=first_step or None)
        except OSError as error:
            raise UserError(f'--log_dir {log_dir}: cannot be written ({error.strerror}); choose another '
                            'folder') from error

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def epoch(self, epoch: int, values: dict[str, float], step: int) -> None:
        try:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(to_json({'epoch': epoch, **values}) + '\n')
        except OSError as error:
            raise UserError(f'{self.path}: cannot be written ({error.strerror}); free up disk space and continue with '
                            '--resume auto') from error
        self.scalars({f'epoch/{name}': value for name, value in values.items()}, step)

    def pictures(self, images: dict[str, np.ndarray], step: int) -> None:
        """Write images (H, W, 3) uint8 to TensorBoard."""
        for name, image in images.items():
            self.writer.add_image(name, image, step, dataformats='HWC')

    def hparams(self, settings: dict, metrics: dict[str, float], step: int) -> None:
        """Write settings and final metrics, with which TensorBoard's HPARAMS tab compares runs."""
        plain = {name: value if isinstance(value, bool | int | float | str) else str(value)
                 for name, value in settings.items()}
        # run_name: by default TensorBoard would list them as a separate run
        self.writer.add_hparams(plain, {f'outcome/{name}': value for name, value in metrics.items()}, run_name='.',
                                global_step=step)

    def close(self) -> None:
        self.writer.close()


class NoLog:
    """Log for processes other than the main one: its methods have no effect."""

    def _ignore(self, *_) -> None: ...

    scalars = epoch = pictures = hparams = close = _ignore


def _epoch_number(line: str) -> float:
    """Return the epoch of a line of log.jsonl, or infinity for a line that was cut off when the process was killed."""
    try:
        return float(json.loads(line)['epoch'])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def code_version() -> str:
    """Return the git commit of this code, with -dirty for uncommitted changes; 'unknown' outside a checkout."""
    try:
        return subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=12'], text=True, check=True,
                              cwd=Path(__file__).parent, capture_output=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def command_line() -> str | None:
    """Return the command of this process with its options, or None unless it is a main_*.py."""
    name = Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]]) if name.startswith('main_') else None


def describe_machine(device: torch.device) -> str:
    """Return the device and the PyTorch version, as recorded in results."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    return f'{name}; torch {torch.__version__}'
