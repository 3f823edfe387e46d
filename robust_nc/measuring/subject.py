"""A network on images: perturbations, outputs, and one function per type of row.

Every function `*_rows(subject, epoch, parts)` measures the parts of a checkpoint that are asked
for, and their numbers do not depend on which others are: each has a random stream of its own.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor

from robust_nc.data.datasets import Dataset
from robust_nc.data.inputs import INPUTS, Strength, place_of
from robust_nc.data.readers import Split
from robust_nc.measuring.evaluator import Evaluator, Perturb
from robust_nc.results.records import SPLITS
from utils import (
    seed_everything,
)

# ---------------------------------------------------------------------------------------------
# One checkpoint of a sweep
# ---------------------------------------------------------------------------------------------


# A split, a kind of input, and the radius of its attack: 0 where it has none.
InputPart = tuple[str, str, float]


@dataclass(frozen=True)
class Subject:
    """A network with the data that it is measured on, and how its inputs are perturbed.

    `layers` is the evaluator for block outputs, whose batches may have to be smaller. `strengths`
    differ in the radius and step size of their attacks alone. `uses` tells how many types of row
    of a checkpoint need one kind of input, which is then perturbed once and kept for all of them:
    such a subject is for that checkpoint alone.
    """

    evaluator: Evaluator
    layers: Evaluator
    data: Dataset
    strengths: tuple[Strength, ...]
    seed: int
    uses: Counter[InputPart] = field(default_factory=Counter)
    _kept: dict[InputPart, Tensor] = field(default_factory=dict, init=False, repr=False)

    def split(self, name: str) -> Split:
        return getattr(self.data, name)

    def strength(self, radius: float) -> Strength:
        """That of an attack's radius; for inputs that are not attacked any will do."""
        return next((s for s in self.strengths if s.radius == radius), self.strengths[0])

    def perturbation(self, name: str, radius: float) -> Perturb:
        """What one kind of input adds to images."""
        return INPUTS[name].bound(self.evaluator.network, self.strength(radius))

    def labels(self, split: str, name: str) -> Tensor:
        """What one kind of input is measured with."""
        return INPUTS[name].labels(self.split(split).labels, self.data.num_classes)

    def start_stream(self, epoch: int, split: str, name: str) -> None:
        """Start the random stream of one epoch, split and kind of input."""
        of_test = () if split == "train" else (SPLITS.index(split),)
        seed_everything(self.seed, epoch, place_of(name), *of_test)

    def images(self, epoch: int, part: InputPart) -> tuple[Tensor, Perturb]:
        """The images (N, C, H, W) of one kind of input, and what is still to be added to them.

        That is nothing where they are kept. Kept images lie in main memory, and are dropped with
        their last use.
        """
        split, name, radius = part
        images, perturb = self.split(split).images, self.perturbation(name, radius)
        self.start_stream(epoch, split, name)
        if part not in self._kept:
            if self.uses[part] < 2:
                return images, perturb
            labels = self.labels(split, name)
            self._kept[part] = self.evaluator.perturbed(images, labels, perturb).cpu()
        self.uses[part] -= 1
        kept = self._kept[part] if self.uses[part] else self._kept.pop(part)
        return kept.to(images.device), None


def input_parts(
    splits: Iterable[str], names: Iterable[str], radii: Iterable[float]
) -> list[InputPart]:
    """A part for each split and kind of input, at every radius where it is attacked."""
    return [
        (split, name, radius)
        for split, name in product(splits, names)
        for radius in (radii if INPUTS[name].attacked else (0.0,))
    ]


def key_of(epoch: int, part: InputPart) -> dict[str, Any]:
    """The fields of Record and LayerRecord that name one part of an epoch."""
    split, name, radius = part
    epsilon = radius if INPUTS[name].attacked else math.nan
    return {"epoch": epoch, "split": split, "input": name, "epsilon": epsilon}
