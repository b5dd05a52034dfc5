"""Too little memory, said in one line: of sizes that no memory holds beforehand, of any others when it runs out."""

import argparse
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from util.errors import UserError

# What PyTorch and the system say where there is none left. Not a tensor whose size no 64-bit number holds: that is a
# fault of ours, for `check_weights` is asked of the sizes that users give.
SHORTAGE = re.compile(r"out of memory|can(no|')t allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)
# Of these the processes that read clips are the cause, or die of it: they share memory, which may be limited by itself.
# A GPU's shared memory, of which a kernel may want too much, is another.
WORKERS = re.compile(r'killed by signal: (killed|bus error)|out of shared memory|'
                     r'unable to (mmap|allocate shared memory|(write to|resize) file </?torch)', re.IGNORECASE)


def count_weights(args: argparse.Namespace) -> int:
    """Numbers in the weights of the encoder, and of the decoder where the settings have one; heads are left out."""
    segments, u = args.num_frames // args.t_patch_size, args.t_patch_size

    def tower(width: int, depth: int) -> int:
        """Blocks, the norm after them, and both position embeddings."""
        hidden = int(width * args.mlp_ratio)
        block = 4 * width * (width + 1) + (2 * width + 1) * hidden + width + 4 * width
        return depth * block + 2 * width + (segments + args.num_joints) * width

    count = tower(args.dim_feat, args.depth) + (3 * u + 1) * args.dim_feat
    if hasattr(args, 'decoder_depth'):
        width = args.decoder_dim_feat
        count += tower(width, args.decoder_depth) + (args.dim_feat + 2) * width + (width + 1) * 3 * u
    return count


def check_weights(args: argparse.Namespace) -> None:
    """UserError for a model whose weights alone, in float32, are more than this machine's memory."""
    wanted, there = 4 * count_weights(args), os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if wanted > there:
        names = ('dim_feat', 'decoder_dim_feat', 'depth', 'decoder_depth', 'mlp_ratio', 'num_frames', 't_patch_size')
        sizes = ' '.join(f'--{name} {getattr(args, name):g}' for name in names if hasattr(args, name))
        raise UserError(f'a model of {sizes} has weights of {wanted / 1e9:,.0f} GB, this machine {there / 1e9:,.0f} GB '
                        'of memory; give smaller sizes')


@contextmanager
def report_out_of_memory(args: argparse.Namespace, device: torch.device) -> Iterator[None]:
    """Makes one UserError of all the ways in which memory runs out in the body, on this host or on the GPU."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:       # torch.OutOfMemoryError is of the second
        said = str(error)
        if 'exited unexpectedly' in said:       # PyTorch tells of a worker's end twice, and how it ended in the first
            said = str(error.__cause__)
        first = ' '.join((said.splitlines() or [''])[0].split())[:300]
        told = f' ({first})' if first else ''
        refused = isinstance(error, OSError) and error.errno == errno.ENOMEM        # to fork, or to map a file
        if refused or (isinstance(error, RuntimeError) and WORKERS.search(said)):
            raise UserError(f'out of memory on this host{told}; give --num_workers 0 (clips are read by the main '
                            'process), a larger /dev/shm, or more memory; --resume auto goes on from the last '
                            'checkpoint') from error
        if isinstance(error, OSError) or not (isinstance(error, MemoryError) or SHORTAGE.search(str(error))):
            raise
        asked = re.search(r'[Tt]ried to allocate ([\d.]+ \w+)', str(error))
        wanted = f', {asked[1]} more were wanted' if asked else ''
        size = f' {args.batch_size}' if args.batch_size else ''
        training = hasattr(args, 'accum_iter')
        how = ' (accumulation keeps the effective batch, and --resume auto goes on from the last checkpoint)' * training
        raise UserError(f'out of memory on {device}{wanted}{told}; lower --batch_size{size}{how}, or give a smaller '
                        'model') from error
