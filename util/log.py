"""What a run says: console, log.jsonl, TensorBoard, result.json. Processes other than the main one are silent."""

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
from util.files import atomic_write, to_json


def set_up_console(is_main: bool) -> None:
    """Messages of the main process at INFO, of the others from ERROR on."""
    logging.basicConfig(format='%(message)s', level=logging.INFO if is_main else logging.ERROR, force=True)


class EpochLog:
    """One line of log.jsonl an epoch, and the same numbers in TensorBoard."""

    def __init__(self, output_dir: Path, log_dir: Path, first_epoch: int, first_step: int):
        """Drops lines and events a run wrote after the checkpoint it now resumes from."""
        self.path = output_dir / 'log.jsonl'
        try:
            old = self.path.read_text(errors='replace').splitlines() if self.path.exists() else []
        except OSError as error:
            raise UserError(f'{self.path}: cannot be read ({error.strerror}); give another --output_dir') from error
        kept = [line for line in old if self._epoch_of(line) < first_epoch]
        with atomic_write(self.path) as partial:
            partial.write_text(''.join(f'{line}\n' for line in kept))
        try:
            self.writer = SummaryWriter(log_dir, purge_step=first_step or None)
        except OSError as error:
            raise UserError(f'--log_dir {log_dir}: cannot be written ({error.strerror}); give another') from error

    @staticmethod
    def _epoch_of(line: str) -> float:
        try:
            return float(json.loads(line)['epoch'])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return math.inf     # cut off by a kill; the epoch is run and written again

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def epoch(self, epoch: int, values: dict[str, float], step: int) -> None:
        try:
            with open(self.path, 'a') as file:
                file.write(to_json({'epoch': epoch, **values}) + '\n')
        except OSError as error:
            raise UserError(f'{self.path}: cannot be written ({error.strerror}); free space and --resume '
                            'auto') from error
        self.scalars({f'epoch/{name}': value for name, value in values.items()}, step)

    def pictures(self, images: dict[str, np.ndarray], step: int) -> None:
        """Images (H, W, 3) uint8 for TensorBoard."""
        for name, image in images.items():
            self.writer.add_image(name, image, step, dataformats='HWC')

    def outcome(self, settings: dict, figures: dict[str, float], step: int) -> None:
        """What TensorBoard compares runs by (its tab HPARAMS): settings and final figures, as part of this very run."""
        plain = {name: value if isinstance(value, bool | int | float | str) else str(value)
                 for name, value in settings.items()}
        # Under a name of its own, which is the default, it would look like another run.
        self.writer.add_hparams(plain, {f'outcome/{name}': value for name, value in figures.items()}, run_name='.',
                                global_step=step)

    def close(self) -> None:
        self.writer.close()


class NoLog:
    """The log of a process that is not the main one."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

    def epoch(self, epoch: int, values: dict[str, float], step: int) -> None: ...

    def pictures(self, images: dict[str, np.ndarray], step: int) -> None: ...

    def outcome(self, settings: dict, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def code_version() -> str:
    """The commit this code stands at, with -dirty when it was changed since; 'unknown' outside a checkout."""
    try:
        return subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=12'], text=True, check=True,
                              cwd=Path(__file__).parent, capture_output=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def command_line() -> str | None:
    """The command of this process, a main_*.py with its options as they were given; None for any other program."""
    name = Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]]) if name.startswith('main_') else None


def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    return f'{name}; torch {torch.__version__}'
