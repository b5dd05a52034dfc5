"""One process or many: the same program under `python`, or under torchrun on GPUs (nccl) or CPUs (gloo)."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from util.errors import UserError

PATIENCE = timedelta(minutes=10)        # for the others, at the start and in every exchange


@dataclass(frozen=True)
class World:
    """This process among its peers. With one process every method does nothing."""

    rank: int
    size: int
    device: torch.device
    hosts: dist.ProcessGroup | None = None      # the same processes, talking without their GPUs

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums `tensor` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it holds on some process; the hosts ask each other, no GPU is waited for."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag))
        dist.all_reduce(told, group=self.hosts)
        return told.item() > 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are averaged over all processes."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == 'cuda' else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the main one's buffers (BatchNorm statistics differ after a step)."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def joined(device: str):
    """Yields this process's World, among the processes torchrun started if it did; leaves them at the end.

    device: auto, cpu, cuda or cuda:N. Raises UserError when a GPU is asked for that is not there.
    """
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in
                              (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    chosen = _choose_device(device, local_rank, size)
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
    hosts = None
    if size > 1:
        _meet(rank, size, chosen)
        hosts = dist.new_group(backend='gloo') if chosen.type == 'cuda' else None
    yield World(rank, size, chosen, hosts)
    if size > 1:        # not after a failure of this process alone: its peers would not take part (see run_main)
        dist.destroy_process_group()


def _meet(rank: int, size: int, device: torch.device) -> None:
    """Joins the other processes; UserError when they do not come."""
    ids = {'device_id': device} if device.type == 'cuda' else {}
    place = f'{os.environ.get("MASTER_ADDR")}:{os.environ.get("MASTER_PORT")}'
    try:
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', rank=rank, world_size=size,
                                timeout=PATIENCE, **ids)
    except (dist.DistError, RuntimeError, ValueError) as error:     # no peers, no such host, a port that is taken
        raise UserError(f'process {rank} of {size} cannot meet the others at {place} '
                        f'({" ".join(str(error).split())[:200]}); start them all, with torchrun, and check that '
                        'address and port can be reached') from error


def _choose_device(name: str, local_rank: int, size: int) -> torch.device:
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'--device {name}: no such device; use auto, cpu, cuda or cuda:N') from None
    if device.type == 'cpu':
        return torch.device('cpu')
    if device.type != 'cuda':
        raise UserError(f'--device {name}: not supported; use auto, cpu, cuda or cuda:N')
    if not torch.cuda.is_available():
        raise UserError(f'--device {name}: this machine has no CUDA GPU that PyTorch can use; use --device cpu')
    index = local_rank if size > 1 or device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f'--device {name}: GPU {index} is wanted but {torch.cuda.device_count()} are here; '
                        'start fewer processes (torchrun --nproc_per_node) or name another')
    return torch.device('cuda', index)
