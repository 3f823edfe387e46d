"""A training step captured as a CUDA graph and replayed without Python."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from steps import Learner, Step
from utils import logger


class ReplayedStep:
    """A step that is captured as a CUDA graph, attack loop included, and replayed without Python.

    The first steps of each batch size run as they are, on a side stream: they compile, tune and
    make the optimiser's state. What a replay returns holds until the next one. If capturing fails,
    one warning line says so and every step runs as it is.
    """

    WARM_UP = 3

    def __init__(self, step: Callable[[Learner, Tensor, Tensor], Step]):
        self.step = step
        self.seen: Counter[int] = Counter()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Step]] = {}
        self.works = True

    def __call__(self, learner: Learner, x: Tensor, y: Tensor) -> Step:
        size = len(y)
        self.seen[size] += 1
        if not self.works or self.seen[size] <= self.WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                result = self.step(learner, x, y)
            torch.cuda.current_stream().wait_stream(side)
            return result
        if size not in self.captured:
            graph, inputs = torch.cuda.CUDAGraph(), (x.clone(), y.clone())
            learner.optimizer.zero_grad(set_to_none=True)
            try:
                with torch.cuda.graph(graph):
                    result = self.step(learner, *inputs)
            except RuntimeError as error:
                self.works = False
                reason = str(error).splitlines()[0]
                logger.warning(f"--cuda-graph: no CUDA graph of the training step: {reason}")
                return self(learner, x, y)
            self.captured[size] = graph, *inputs, result
        graph, static_x, static_y, result = self.captured[size]
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()
        return result
