"""Rows of leaps.csv and simplex.csv: images among the vertices of the clean training simplex.

Both are of the same passes through the network as the rows of metrics.csv.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from robust_nc.data.inputs import INPUTS
from robust_nc.measuring.collapse import measure_parts, triangle_of
from robust_nc.measuring.subject import CLEAN_TRAINING, InputPart, Subject, key_of
from robust_nc.measuring.vertices import Point, find_points
from robust_nc.results.records import LeapRecord, SimplexRecord


def leap_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> Iterator[LeapRecord]:
    """Of each part how many images of each true class lie nearest to which vertex.

    Source: Su et al. 2024, section 4: perturbed examples leap between the vertices of the simplex.
    """
    for part, result in measure_parts(subject, epoch, parts):
        if part not in parts:
            continue
        true_class = list(range(subject.data.num_classes))
        targets = subject.targets(part.input)
        if targets is not None:  # these are counted by their target
            true_class = targets.argsort().tolist()
        for (label, nearest), count in result.leaps.counts.items():
            yield LeapRecord(
                **key_of(epoch, part),
                true_class=true_class[label],
                nearest_class=nearest,
                count=count,
                images=result.measurement.images,
            )


class SimplexPart(NamedTuple):
    """A split in one kind of input, and the three classes of a triangle, like "0 1 2"."""

    split: str
    input: str
    radius: float
    classes: str

    @property
    def of_input(self) -> InputPart:
        return InputPart(self.split, self.input, self.radius)

    @property
    def corners(self) -> tuple[int, ...]:
        return tuple(map(int, self.classes.split()))

    @property
    def shown(self) -> tuple[int, ...]:
        """The classes with rows: of targeted images A and B, which go to the next corner."""
        return self.corners[:2] if INPUTS[self.input].targeted else self.corners


def simplex_rows(subject: Subject, epoch: int, parts: list[SimplexPart]) -> Iterator[SimplexRecord]:
    """Of each part where images of three classes lie in the plane of their vertices.

    Images that another target than the next corner was given are perturbed towards it once more.
    """
    usual = [part for part in parts if goes_to_next_corner(subject, part)]
    results = dict(measure_parts(subject, epoch, [part.of_input for part in usual]))
    for part in parts:
        if part in usual:
            points = results[part.of_input].points
        else:
            points = points_on_the_way(subject, epoch, part, results[CLEAN_TRAINING].vertices)
        for point in points:
            if point.label in part.shown:
                key = key_of(epoch, part.of_input)
                yield SimplexRecord(**key, classes=part.classes, **point._asdict())


def goes_to_next_corner(subject: Subject, part: SimplexPart) -> bool:
    """Whether its images of A and B are perturbed towards B and C, or towards no class at all."""
    targets = subject.targets(part.input)
    return targets is None or targets[list(part.shown)].tolist() == list(part.corners[1:])


def points_on_the_way(
    subject: Subject, epoch: int, part: SimplexPart, vertices: Tensor
) -> list[Point]:
    """Images of A and B perturbed towards B and C, in a pass of their own."""
    split, (a, b, c) = subject.split(part.split), part.corners
    chosen = ((split.labels == a) | (split.labels == b)).nonzero().flatten()
    if not len(chosen):
        return []
    images, labels = split.images[chosen], split.labels[chosen]
    network, strength = subject.evaluator.network, subject.strength(part.radius)
    perturb = INPUTS[part.input].bound(network, strength)
    subject.start_stream(epoch, part.split, part.input)
    logits, features = subject.evaluator.outputs(images, torch.where(labels == a, b, c), perturb)
    triangle = triangle_of(part.corners, vertices)
    points = find_points(features, labels, logits.argmax(1), triangle, part.shown)
    places = chosen.tolist()
    return [
        point if point.image < 0 else point._replace(image=places[point.image]) for point in points
    ]
