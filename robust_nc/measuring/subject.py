"""A network and what it is measured on: images, their perturbations, and the random streams.

Every function `*_rows(subject, epoch, parts)` beside this file yields the rows of one type that are
asked for of a checkpoint. Their numbers do not depend on which others are asked for: each kind of
input has a random stream of its own.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from robust_nc.data.datasets import Dataset
from robust_nc.data.inputs import INPUTS, Strength
from robust_nc.data.readers import Split
from robust_nc.measuring.evaluator import Evaluator, Perturb
from robust_nc.results.rows import SPLITS, radius_of
from utils import seed_everything

Result = TypeVar("Result")


class InputPart(NamedTuple):
    """A split in one kind of input; `radius` is that of its attack, 0 where it has none."""

    split: str
    input: str
    radius: float


# The images whose class means are the vertices of the simplex that all others are compared with.
CLEAN_TRAINING = InputPart("train", "clean", 0.0)


@dataclass
class Subject:
    """A network with the data that it is measured on, and how its inputs are perturbed.

    layers: the evaluator for block outputs, whose batches may have to be smaller.
    strengths: they differ in the radius and step size of their attacks alone.
    of_files: whether "epochs" are files of --checkpoint, which all have the random streams of epoch
        0: what is measured of a file does not depend on the others.
    corners: the three classes in whose plane images are placed, if they are.
    """

    evaluator: Evaluator
    layers: Evaluator
    data: Dataset
    strengths: tuple[Strength, ...]
    seed: int
    of_files: bool = False
    corners: tuple[int, ...] | None = None
    _shared: Collection[InputPart] = field(default=(), init=False, repr=False)
    _kept: dict[InputPart, Tensor] = field(default_factory=dict, init=False, repr=False)
    _measured: dict[InputPart, Any] | None = field(default=None, init=False, repr=False)

    def split(self, name: str) -> Split:
        return getattr(self.data, name)

    def strength(self, radius: float) -> Strength:
        """That of an attack's radius; for inputs that are not attacked any will do."""
        return next((s for s in self.strengths if s.radius == radius), self.strengths[0])

    def labels(self, split: str, name: str) -> Tensor:
        """What one kind of input is measured with."""
        return INPUTS[name].labels(self.split(split).labels, self.data.num_classes)

    def targets(self, name: str) -> Tensor | None:
        """The class (C,) that each class is perturbed towards; None where no target is aimed at."""
        classes = torch.arange(self.data.num_classes, device=self.data.train.labels.device)
        return INPUTS[name].targets(classes)

    def start_stream(self, epoch: int, split: str, name: str) -> None:
        """Start the random stream of one epoch, split and kind of input."""
        of_split = [] if split == "train" else [SPLITS.index(split)]
        number = 0 if self.of_files else epoch
        seed_everything(self.seed, number, INPUTS[name].stream, *of_split)

    def images(self, epoch: int, part: InputPart) -> tuple[Tensor, Perturb]:
        """The images (N, C, H, W) of one kind of input, and what is still to be added to them.

        That is nothing where the perturbed images are kept: see `keeping`.
        """
        images = self.split(part.split).images
        perturb = INPUTS[part.input].bound(self.evaluator.network, self.strength(part.radius))
        self.start_stream(epoch, part.split, part.input)
        if part not in self._shared:
            return images, perturb
        if part not in self._kept:
            labels = self.labels(part.split, part.input)
            self._kept[part] = self.evaluator.perturbed(images, labels, perturb).cpu()
        return self._kept[part].to(images.device), None

    @contextmanager
    def keeping(self, shared: Collection[InputPart]) -> Iterator[None]:
        """Inside, one checkpoint is measured: these inputs are perturbed once, and kept to the end.

        They are kept in main memory. What `once` measures is kept likewise.
        """
        self._shared, self._measured = shared, {}
        try:
            yield
        finally:
            self._shared, self._measured = (), None
            self._kept.clear()

    def once(self, part: InputPart, measure: Callable[[], Result]) -> Result:
        """measure(), or what it has returned for this part before, inside `keeping`."""
        if self._measured is None:
            return measure()
        if part not in self._measured:
            self._measured[part] = measure()
        return self._measured[part]


def input_parts(
    splits: Iterable[str], names: Iterable[str], radii: Iterable[float]
) -> list[InputPart]:
    """A part for each split and kind of input, at every radius where it is attacked."""
    return [
        InputPart(split, name, radius)
        for split, name in product(splits, names)
        for radius in (radii if INPUTS[name].attacked else (0.0,))
    ]


def part_of_input(row: Any) -> InputPart:
    """The part that a row of a split and kind of input belongs to."""
    return InputPart(row.split, row.input, radius_of(row))


def key_of(epoch: int, part: InputPart) -> dict[str, Any]:
    """The fields of Record and LayerRecord that name one part of an epoch."""
    epsilon = part.radius if INPUTS[part.input].attacked else math.nan
    return {"epoch": epoch, "split": part.split, "input": part.input, "epsilon": epsilon}
