"""How features lie to the vertices of a simplex: the class means of clean training images.

Formulas of tensors, in float64. A class without images has a vertex of NaN; what would depend on it
is NaN as well.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nc_metrics import ROUNDING


@dataclass(frozen=True)
class Leaps:
    """Near which vertices N images lie.

    agreement: share of images whose nearest vertex is that of the class that the network says.
    distance: mean distance of an image to that vertex, over the mean distance between two vertices:
        0 at the vertex.
    counts: (label, nearest vertex) -> how many images, if any.

    Where the vertices coincide, or one is unknown, the first two are NaN and the nearest is -1.
    """

    agreement: float
    distance: float
    counts: dict[tuple[int, int], int]


def vertices_of(class_means: Tensor, labels: Tensor) -> Tensor:
    """The class means (C, D) of images with these labels (N,), NaN for a class without images."""
    counts = labels.bincount(minlength=len(class_means))
    return class_means.masked_fill((counts == 0).unsqueeze(1), math.nan)


@torch.no_grad()
def find_leaps(features: Tensor, labels: Tensor, predictions: Tensor, vertices: Tensor) -> Leaps:
    """Where features (N, D) lie among vertices (C, D).

    Args:
        labels, predictions: (N,), the classes that the images are counted by, and the network's.
    """
    vertices = vertices.double()
    apart = torch.pdist(vertices).mean()
    if not apart > ROUNDING * vertices.norm():  # nor if it is NaN
        unknown = torch.full_like(labels, -1)
        return Leaps(math.nan, math.nan, _counted(labels, unknown, len(vertices)))
    # Centred, so that nothing is lost where all lie far from the origin. Of |h - v|^2 no more than
    # |v|^2 - 2 h v depends on v.
    centre = vertices.mean(0)
    features, vertices = features.double() - centre, vertices - centre
    nearest = (vertices.square().sum(1) - 2 * features @ vertices.T).argmin(1)
    distances = torch.linalg.vector_norm(features - vertices[predictions], dim=1)
    return Leaps(
        agreement=(nearest == predictions).double().mean().item(),
        distance=(distances.mean() / apart).item(),
        counts=_counted(labels, nearest, len(vertices)),
    )


def _counted(labels: Tensor, nearest: Tensor, classes: int) -> dict[tuple[int, int], int]:
    """(label, nearest) -> how many there are, if any; `nearest` may be -1."""
    counts = (labels * (classes + 1) + nearest + 1).bincount()
    pairs = counts.nonzero().flatten()
    return {
        (pair // (classes + 1), pair % (classes + 1) - 1): count
        for pair, count in zip(pairs.tolist(), counts[pairs].tolist(), strict=True)
    }


class Triangle:
    """The plane through three vertices A, B and C, with coordinates that do not turn.

    Points are projected onto it at right angles. The origin is the centroid of A, B and C, the unit
    the mean of the three sides. B and C are at the same height, B to the left, and A is above them;
    so the three corners are an equilateral triangle where the simplex is one.

    corners: (3, 2), where A, B and C lie; NaN, as all coordinates, where they lie on one line or
        one is not known.
    """

    def __init__(self, vertices: Tensor):
        """vertices: (3, D)."""
        vertices = vertices.double()
        a, b, c = vertices
        self._centroid = vertices.mean(0)
        right = (c - b) / (c - b).norm()
        up = (a - b) - (a - b) @ right * right
        self._axes = torch.stack((right, up / up.norm()), 1)  # (D, 2)
        if not up.norm() > ROUNDING * vertices.norm():  # nor if it is NaN
            self._axes.fill_(math.nan)
        self._unit = torch.pdist(vertices).mean()
        self.corners = self.place(vertices)[:, :2]

    @property
    def known(self) -> bool:
        """Whether there is such a plane."""
        return bool(self.corners.isfinite().all())

    @torch.no_grad()
    def place(self, features: Tensor) -> Tensor:
        """Where features (N, D) lie, (N, 3): x, y, and the share that is outside the plane.

        That is the length of what is at a right angle to the plane over the distance from the
        centroid: 0 in the plane, 1 at most.
        """
        centred = features.double() - self._centroid
        inside = centred @ self._axes
        outside = (centred - inside @ self._axes.T).norm(dim=1)
        share = outside / centred.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
        return torch.cat((inside / self._unit, share.clamp(max=1).unsqueeze(1)), 1)


# Of how many images of a class there are points in a plane.
MOST_POINTS = 200


class Point(NamedTuple):
    """Where an image, or a mean of so many `images`, lies in the plane: fields of SimplexRecord."""

    image: int  # its place among the images, -1 of a mean
    label: int
    predicted: int  # -1 of a mean
    x: float
    y: float
    outside: float
    images: int


def find_points(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    triangle: Triangle,
    classes: Iterable[int],
) -> list[Point]:
    """Of each of these classes the mean of all its features, then its first MOST_POINTS images.

    Args:
        features: (N, D).
        labels, predictions: (N,), the true classes, and the network's.
    """
    points = []
    for label in classes:
        members = (labels == label).nonzero().flatten()
        if not len(members):
            continue
        shown = members[:MOST_POINTS]
        mean = features[members].double().mean(0, keepdim=True)
        placed = triangle.place(torch.cat((mean, features[shown].double()))).tolist()
        images, said = [-1, *shown.tolist()], [-1, *predictions[shown].tolist()]
        counts = [len(members), *(1 for _ in shown)]
        for image, predicted, (x, y, outside), count in zip(
            images, said, placed, counts, strict=True
        ):
            points.append(Point(image, label, predicted, x, y, outside, count))
    return points
