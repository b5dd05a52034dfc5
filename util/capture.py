"""Capture of work that is the same in every step: recorded once as a CUDA graph, then launched as a whole.

A training step issues thousands of GPU operations; launching them one by one can take the host longer than the GPU
takes to compute them. A graph is launched as one operation. The same functions also run without capture, on CPUs and
with --compile off:

    backward = recorder.capture(forward_backward, trainer)
    backward(clips, uniform)                # the first calls run eagerly, later ones replay the graph

A captured function must do the same work in each call: it changes only tensors that exist before the call (weights,
gradients, optimiser state, sums), changes them in place, and never synchronizes with the GPU. Numbers that vary from
step to step, such as the learning rate, must be tensors (see `make_capturable`). Random numbers are drawn anew in each
replay, from the generator state that `torch.manual_seed` has set, as they are without capture.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from util.errors import UserError, one_line

WARMUP = 3          # eager calls before a capture, which compile, and create workspaces and optimiser state
MAX_GRAPHS = 8      # per function, for different arguments


@dataclass(frozen=True)
class Graph:
    """A captured CUDA graph: `replay()` reads the static input tensors and writes the static tensors `outputs`."""

    outputs: object                     # as the function returned it
    replay: Callable[[], None]


class GraphRecorder:
    """Captures functions on one device; all their graphs use one stream and share one memory pool.

    Therefore the result of a captured function is only valid until any function of the same recorder is called again:
    reduce or copy it before. A recorder that is not `enabled` returns functions unchanged.
    """

    def __init__(self, device: torch.device, enabled: bool = True):
        self.device, self.enabled, self.captured = device, enabled, {}
        if enabled and device.type == 'cuda':
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def capture(self, function: Callable, *fixed) -> Callable:
        """Return `function(*fixed, …)` as a captured function; the same arguments return the same object."""
        if not self.enabled:
            return partial(function, *fixed)
        key = function, *map(id, fixed)
        if key not in self.captured:
            self.captured[key] = CapturedFunction(partial(function, *fixed), self)
        return self.captured[key]

    def run(self, function: Callable, inputs: tuple):
        """Call `function` eagerly on the stream that captures it later, as PyTorch requires for the warm-up."""
        if self.device.type != 'cuda':
            return function(*inputs)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = function(*inputs)
        current.wait_stream(self.stream)
        return outputs

    def record(self, function: Callable, buffers: tuple) -> Graph:
        """Capture the kernels that `function` launches, without executing them; `buffers` are its arguments.

        Raises UserError if `function` synchronizes with the GPU.
        """
        graph = torch.cuda.CUDAGraph()
        try:    # thread_local, as other threads may allocate pinned memory for batches
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode='thread_local'):
                outputs = function(*buffers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:   # the state of the random generator is lost, so continuing would fail too
            raise UserError(f'this step cannot be captured as a CUDA graph ({one_line(error)[:200]}); use --compile '
                            'off') from error
        return Graph(outputs, graph.replay)


NO_GRAPHS = GraphRecorder(torch.device('cpu'), enabled=False)


class CapturedFunction:
    """A function that replays a graph of its work, one for each combination of argument shapes and other arguments.

    Tensors are copied into the buffers of the graph. Other arguments are fixed in it: each new value, such as a new
    mask ratio, is captured anew. The first WARMUP calls of a combination run eagerly, and so do all calls of further
    combinations once there are MAX_GRAPHS graphs. Warm-up and capture use the same input buffers: with other strides,
    a compiled function would compile again in the capture.
    """

    def __init__(self, function: Callable, recorder: GraphRecorder):
        self.function, self.recorder = function, recorder
        self.graphs: dict[tuple, Graph] = {}
        self.buffers: dict[tuple, tuple] = {}
        self.calls = Counter()

    def __call__(self, *inputs):
        key = tuple((value.shape, value.dtype) if torch.is_tensor(value) else value for value in inputs)
        if key not in self.graphs and len(self.graphs) == MAX_GRAPHS:
            return self.recorder.run(self.function, inputs)
        if key not in self.buffers:
            self.buffers[key] = tuple(torch.empty_like(value, memory_format=torch.contiguous_format)
                                      if torch.is_tensor(value) else value for value in inputs)
        for buffer, value in zip(self.buffers[key], inputs, strict=True):
            if torch.is_tensor(value):
                buffer.copy_(value, non_blocking=True)
        self.calls[key] += 1
        if self.calls[key] <= WARMUP:
            return self.recorder.run(self.function, self.buffers[key])
        if key not in self.graphs:
            self.graphs[key] = self.recorder.record(self.function, self.buffers[key])
        self.graphs[key].replay()
        return self.graphs[key].outputs


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the learning rates of `optimizer` in tensors on `device`, which a graph reads in each replay.

    Change them in place (as `set_learning_rate` does). Call this again after `load_state_dict`, which replaces them.
    """
    for group in optimizer.param_groups:
        group['lr'] = torch.as_tensor(group['lr'], dtype=torch.float32, device=device)
        if 'capturable' in group:
            group['capturable'] = True


def pad_rows(values: torch.Tensor, size: int) -> torch.Tensor:
    """Repeat the first row of (n, …) until there are `size` rows, to limit the number of different shapes."""
    missing = size - len(values)
    return values if missing <= 0 else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
