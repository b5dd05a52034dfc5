"""One or several processes: the same code runs with `python`, and with torchrun on GPUs (nccl) or CPUs (gloo)."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from util.errors import UserError, one_line

TIMEOUT = 600.     # seconds to wait for other processes, at the start and in every collective


class ConnectionLost(UserError):
    """Another process of the run ended or stopped responding."""

    exit_code = 1


@dataclass(frozen=True)
class World:
    """This process among the processes of the run. With one process, the methods have no effect."""

    rank: int
    size: int
    device: torch.device
    gloo: dist.ProcessGroup | None = None      # the same processes, for exchanges between hosts without the GPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a scalar tensor over all processes; synchronizes with the device."""
        return self.sum(value.clone()).item() / self.size

    def any(self, flag: bool) -> bool:
        """Return True if `flag` is true in any process; does not synchronize with the GPU."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, group=self.gloo)
        return flags.item() > 0

    def average_gradients(self, model: nn.Module) -> None:
        """Average the gradients of the model over all processes, as one tensor."""
        if self.size == 1:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self.size
        dist.all_reduce(flat)
        averages = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [average.view_as(gradient) for average, gradient in
                                         zip(averages, gradients, strict=True)])

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of the main process to all others (BatchNorm statistics differ after a step)."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def init_world(device: str, timeout: float = TIMEOUT):
    """Join the processes that torchrun started, if any; yields this process's World and leaves it at the end.

    `device` is auto, cpu, cuda or cuda:N. Raises UserError if the GPU does not exist or the other processes do not join
    within `timeout` seconds, and ConnectionLost if one of them ends or stops responding later.
    """
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in
                              (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    selected = select_device(device, local_rank, size)
    if selected.type == 'cuda':
        torch.cuda.set_device(selected)
    gloo = None
    if size > 1:
        _init_process_group(rank, size, selected, timedelta(seconds=timeout))
        gloo = dist.new_group(backend='gloo') if selected.type == 'cuda' else None
    try:
        yield World(rank, size, selected, gloo)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or 'gloo' in str(error):       # gloo raises plain RuntimeErrors
            raise ConnectionLost(f'lost the connection to another process ({one_line(error)[:200]}); see its message, '
                                 'then continue with --resume auto') from error
        raise
    if size > 1:        # not after a failure of this process alone: its peers would not take part (see run_main)
        dist.destroy_process_group()


def _init_process_group(rank: int, size: int, device: torch.device, timeout: timedelta) -> None:
    address = f'{os.environ.get("MASTER_ADDR", "")}:{os.environ.get("MASTER_PORT", "")}'
    try:
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', rank=rank, world_size=size,
                                timeout=timeout, device_id=device if device.type == 'cuda' else None)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f'cannot join {size} processes at {address} ({one_line(error)[:200]}); start all of them with '
                        'torchrun and check that the address and port are reachable') from error


def select_device(name: str, local_rank: int = 0, size: int = 1) -> torch.device:
    """Return the device for 'auto', 'cpu', 'cuda' or 'cuda:N'; raises UserError if it does not exist."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device('meta')
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device {name}: unknown device; use auto, cpu, cuda or cuda:N')
    if device.type == 'cpu':
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise UserError(f'--device {name}: PyTorch finds no CUDA GPU on this machine; use --device cpu')
    index = local_rank if size > 1 or device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f'--device {name}: GPU {index} does not exist, this machine has {torch.cuda.device_count()}; '
                        'start fewer processes (torchrun --nproc_per_node) or select another GPU')
    return torch.device('cuda', index)
