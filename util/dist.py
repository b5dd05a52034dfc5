"""One process or many: the same program under `python`, or under torchrun on GPUs (nccl) or CPUs (gloo)."""

import os
import re
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from util.errors import PeerLost, UserError

PATIENCE = 600.     # seconds to wait for the others, at the start and in every exchange


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
def joined(device: str, patience: float = PATIENCE):
    """Yields this process's World, among the processes torchrun started if it did; leaves them at the end.

    device: auto, cpu, cuda or cuda:N. Raises UserError when a GPU is asked for that is not there, or the others do
    not come within `patience` seconds; PeerLost when one of them ends, or does not answer for as long.
    """
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in
                              (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    chosen = choose_device(device, local_rank, size)
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
    hosts = None
    if size > 1:
        _meet(rank, size, chosen, timedelta(seconds=patience))
        hosts = dist.new_group(backend='gloo') if chosen.type == 'cuda' else None
    try:
        yield World(rank, size, chosen, hosts)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or 'gloo' in str(error):       # gloo's errors have no type of their own
            raise PeerLost(f'process {rank} of {size} lost another one, which was killed or answers no more '
                           f'({_one_line(error)}); go on with --resume auto') from error
        raise
    if size > 1:        # not after a failure of this process alone: its peers would not take part (see run_main)
        dist.destroy_process_group()


def _meet(rank: int, size: int, device: torch.device, patience: timedelta) -> None:
    """Joins the other processes; UserError when they do not come."""
    ids = {'device_id': device} if device.type == 'cuda' else {}
    host, port = os.environ.get('MASTER_ADDR', ''), os.environ.get('MASTER_PORT', '')
    try:
        socket.getaddrinfo(host, port)      # PyTorch would try until its patience ends
        with _hushed():
            dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', rank=rank, world_size=size,
                                    timeout=patience, store=_find_store(rank, size, patience), **ids)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:    # nobody, no such host, a port that is taken
        raise UserError(f'process {rank} of {size} cannot meet the others at {host}:{port} ({_one_line(error)}); start '
                        'them all, with torchrun, and check that address and port can be reached') from error


def _find_store(rank: int, size: int, patience: timedelta) -> dist.Store:
    """Where the processes meet, by MASTER_ADDR and MASTER_PORT; found in a thread, as PyTorch waits for ever for an
    answer from somebody else's port."""
    thread = ThreadPoolExecutor(1)
    try:
        found = thread.submit(lambda: next(rendezvous('env://', rank, size, timeout=patience)))
        return found.result(3 * patience.total_seconds())[0]        # PyTorch tries twice
    finally:
        thread.shutdown(wait=False)


@contextmanager
def _hushed():
    """Keeps back what PyTorch's C++ writes to stderr, pages of it while it waits; an error inside drops it."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        usual = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(usual, 2)
            os.close(usual)
        said.seek(0)
        os.write(2, said.read())


def _one_line(error: Exception) -> str:
    """What the error says, without the place in gloo's code."""
    return re.sub(r'^\[\S+\] ', '', ' '.join(str(error).split()))[:200] or type(error).__name__


def choose_device(name: str, local_rank: int = 0, size: int = 1) -> torch.device:
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:N' means; UserError when it is not there."""
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
