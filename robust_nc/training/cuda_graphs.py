"""A training step captured as a CUDA graph and replayed without Python."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.networks.network import Network
from robust_nc.settings import Settings
from robust_nc.training.modes import Learner, Step, TrainingMode
from utils import logger


def is_replayed(settings: Settings, mode: TrainingMode, network: Network) -> bool:
    """Whether a run replays its training step, which on a GPU one log line tells."""
    if settings.device.type != "cuda":
        return False
    reason = reason_for_plain_steps(settings, mode, network)
    if reason is None:
        logger.info("the training step is replayed as a CUDA graph (--no-cuda-graph: it is not)")
    else:
        logger.info(f"the training step is not replayed as a CUDA graph: {reason}")
    return reason is None


def reason_for_plain_steps(settings: Settings, mode: TrainingMode, network: Network) -> str | None:
    """Why a step is not replayed on a GPU, in words; None: it is.

    A replay does what was captured. Networks of other packages, and modes of one's own, may decide
    something in Python, anew at every step: they are replayed where --cuda-graph asks for it.
    """
    if settings.no_cuda_graph:
        return "--no-cuda-graph"
    if mode.bn == "batch":
        for name, norm in network.model.named_modules():
            counts = isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None
            if counts and norm.momentum is None:
                return f"batch norm {name} has no momentum, and waits for the device at every step"
    if settings.cuda_graph:
        return None
    if settings.model not in ARCHITECTURES:
        return f"--model {settings.model} is of another package; --cuda-graph asks for it"
    if not mode.replayed:
        return f"--train-mode {settings.train_mode} does not say that it can; --cuda-graph asks"
    return None


class ReplayedStep:
    """A step that is captured as a CUDA graph, attack loop included, and replayed without Python.

    The first steps of each batch size run as they are, on a side stream: they compile, tune and
    make the optimiser's state. What a replay returns holds until the next one.

    Where it cannot be captured, one warning line says so and every step from then on runs as it
    is, on the current stream; nothing is captured again. Two things see to that:

    - The last of the first steps is watched. One that waits for the device, by `.item()` for
      example, is the usual reason for a capture to fail, and is never captured.
    - What a failed capture leaves is put right. Up to PyTorch 2.14 `torch.cuda.graph` leaves
      its stream the current one, and in some versions the generator in capturing mode and the
      allocator with the graph's memory pool. Graphs of other batch sizes draw from the generator
      state that was replaced and go with it.

    All graphs share one pool: they never run at the same time, and nothing of one is read after
    another has run. Captures are made on the stream of the first steps, which cuBLAS has its
    workspaces for by then. Other threads, as the one that writes files, may go on meanwhile.
    """

    WARM_UP = 3

    def __init__(self, step: Callable[[Learner, Tensor, Tensor], Step]):
        self.step = step
        self.seen: Counter[int] = Counter()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Step]] = {}
        self.works = True
        self.side = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, learner: Learner, x: Tensor, y: Tensor) -> Step:
        size = len(y)
        self.seen[size] += 1
        if self.works and self.seen[size] <= self.WARM_UP:
            return self._warm_up(learner, x, y)
        if self.works and size not in self.captured:
            self._capture(learner, x, y)
        if not self.works:
            return self.step(learner, x, y)
        graph, static_x, static_y, result = self.captured[size]
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()
        return result

    def _warm_up(self, learner: Learner, x: Tensor, y: Tensor) -> Step:
        last, current = self.seen[len(y)] == self.WARM_UP, torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side), _watched(last) as waits:
            result = self.step(learner, x, y)
        current.wait_stream(self.side)
        if waits:
            self._give_up("it waits for the device")
        return result

    def _capture(self, learner: Learner, x: Tensor, y: Tensor) -> None:
        graph, inputs = torch.cuda.CUDAGraph(), (x.clone(), y.clone())
        current = torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        # A state of its own, with the same seed and offset and registered with no graph. A capture
        # moves neither of the two, so that the draws go on where they were before it.
        saved = generator.clone_state()
        learner.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.side, capture_error_mode="thread_local"
            ):
                result = self.step(learner, *inputs)
        except RuntimeError as error:
            # The end of a capture that failed raises again; the first error is the reason.
            reason = str(error.__context__ or error)
        else:
            self.captured[len(y)] = graph, *inputs, result
            return
        torch.cuda.set_stream(current)
        generator.graphsafe_set_state(saved)
        self._give_up(reason.splitlines()[0])
        learner.optimizer.zero_grad(set_to_none=True)  # gradients that lie in the pool
        graph.reset()
        _close_pool(self.pool)
        torch.cuda.empty_cache()

    def _give_up(self, reason: str) -> None:
        self.works = False
        self.captured.clear()
        logger.warning(f"no CUDA graph of the training step, every step runs as it is: {reason}")


@contextmanager
def _watched(active: bool) -> Iterator[list[str]]:
    """While active, PyTorch's warnings that something inside waits for the device.

    The list is filled at the end; it does not know all that waits. Other warnings have been shown
    in the steps before.
    """
    waits: list[str] = []
    with warnings.catch_warnings(record=active) as caught:
        # Of Adam, whose first steps are not captured yet.
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
        if not active:
            yield waits
            return
        warnings.simplefilter("always")
        former = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(former)
    texts = [str(warning.message) for warning in caught or []]
    waits += [text for text in texts if "called a synchronizing CUDA operation" in text]


def _close_pool(pool: tuple[int, int]) -> None:
    """End what a failed capture began: that its allocations go to the pool, and its use of it.

    Otherwise the allocator takes a capture to be under way for good and gives no memory back. From
    PyTorch 2.14 on at the latest `capture_end` and `CUDAGraph.reset` have done both, and ending it
    again is an error. The names are private, so their absence must do no harm.
    """
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        end = getattr(torch._C, name, None)
        if end is None:
            continue
        device = torch.cuda.current_device()
        try:
            end(device, pool)
        except RuntimeError:
            return
        torch._C._cuda_releasePool(device, pool)
        return
