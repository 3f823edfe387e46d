"""Rows of metrics.csv: accuracy, loss and neural collapse of a network on one kind of input."""

import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.data.inputs import INPUTS, place_of
from robust_nc.measuring.evaluator import Measurement, compare_means
from robust_nc.measuring.subject import CLEAN_TRAINING, InputPart, Subject, key_of
from robust_nc.measuring.vertices import (
    Leaps,
    Point,
    Triangle,
    find_leaps,
    find_points,
    vertices_of,
)
from robust_nc.results.records import Record
from robust_nc.results.rows import SPLITS


def make_record(
    measured: Measurement,
    clean_means: Tensor | None = None,
    leaps: Leaps | None = None,
    **key: Any,
) -> Record:
    """A row of metrics.csv.

    Args:
        clean_means: class means (C, D) of the clean images, to compare those measured with.
        leaps: how the images lie to the clean training class means, where these are known.
        key: its `source`, `epoch`, `split` and `input`, and `epsilon` where it was attacked.
    """
    collapse = measured.collapse
    names = {field.name for field in fields(Record)} & {field.name for field in fields(collapse)}
    metrics: dict[str, Any] = {name: getattr(collapse, name) for name in names}
    if leaps is not None:
        metrics |= {"vertex_agreement": leaps.agreement, "vertex_distance": leaps.distance}
    if clean_means is not None:
        targets = INPUTS[key["input"]].targets(torch.arange(len(clean_means)))
        metrics |= compare_means(clean_means, collapse.class_means, targets)
    metrics |= {name: getattr(measured, name) for name in ("images", "loss", "accuracy")}
    return Record(**key, **metrics)


def input_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> Iterator[Record]:
    """Of each part the accuracy, loss and neural collapse of the network."""
    clean_means = {}
    for part, result in measure_parts(subject, epoch, parts):
        if part.input == "clean":
            clean_means[part.split] = result.measurement.collapse.class_means
        if part in parts:
            compared = clean_means[part.split] if INPUTS[part.input].from_clean else None
            key = key_of(epoch, part)
            yield make_record(result.measurement, compared, result.leaps, source="eval", **key)


class PartResult(NamedTuple):
    """What one pass of the images of a part through the network tells.

    measurement: without the features, which are large.
    vertices: the clean training class means (C, D), NaN for a class without images.
    leaps: how the images, by the labels that they are measured with, lie to these.
    """

    measurement: Measurement
    vertices: Tensor
    leaps: Leaps
    points: list[Point]


def measure_parts(
    subject: Subject, epoch: int, parts: list[InputPart]
) -> Iterator[tuple[InputPart, PartResult]]:
    """Each part with what is measured of it, and others that it is compared with, these first.

    The clean training images are always among them, since their class means are the vertices, and
    so are the clean images of a split where others are compared with their class means.
    """
    vertices = None
    for part in passes(parts):
        result = subject.once(part, partial(measure_part, subject, epoch, part, vertices))
        vertices = result.vertices
        yield part, result


def measure_part(
    subject: Subject, epoch: int, part: InputPart, vertices: Tensor | None
) -> PartResult:
    """One pass of the images of a part; `vertices` (C, D) are None before CLEAN_TRAINING alone."""
    images, perturb = subject.images(epoch, part)
    labels = subject.labels(part.split, part.input)
    measured = subject.evaluator.measure(images, labels, perturb)
    if vertices is None:
        vertices = training_vertices(measured, labels)
    points = []
    if subject.corners is not None:
        true, triangle = subject.split(part.split).labels, triangle_of(subject.corners, vertices)
        outputs = measured.features, true, measured.predictions
        points = find_points(*outputs, triangle, subject.corners)
    leaps = leaps_of(measured, labels, vertices)
    return PartResult(replace(measured, features=torch.empty(0)), vertices, leaps, points)


def training_vertices(measured: Measurement, labels: Tensor) -> Tensor:
    """The class means (C, D) of the clean training images with these labels (N,)."""
    vertices = vertices_of(measured.collapse.class_means, labels)
    missing = vertices.isnan().any(1).nonzero().flatten().tolist()
    if missing:
        warnings.warn(
            f"no training image of class {', '.join(map(str, missing))}: vertex_agreement and "
            "vertex_distance are NaN, and leaps are not known",
            RuntimeWarning,
            stacklevel=2,
        )
    return vertices


def leaps_of(measured: Measurement, labels: Tensor, vertices: Tensor) -> Leaps:
    """How images, counted by these labels (N,), lie to the clean training class means (C, D)."""
    return find_leaps(measured.features, labels, measured.predictions, vertices)


def triangle_of(classes: tuple[int, ...], vertices: Tensor) -> Triangle:
    """The plane of three classes, of the clean training class means (C, D) of all."""
    triangle = Triangle(vertices[list(classes)])
    if not triangle.known:
        warnings.warn(
            f"the clean training class means of {', '.join(map(str, classes))} are in no plane (on "
            "one line, or not known): x, y and outside of simplex.csv are NaN",
            RuntimeWarning,
            stacklevel=2,
        )
    return triangle


def passes(wanted: list[InputPart]) -> list[InputPart]:
    """The parts to pass through the network for the wanted ones: training images, clean first."""
    compared = [part for part in wanted if INPUTS[part.input].from_clean]
    needed = {CLEAN_TRAINING} | {InputPart(part.split, "clean", 0.0) for part in compared}

    def order(part: InputPart) -> tuple:
        place = part.input != "clean", place_of(part.input), part.radius
        return SPLITS.index(part.split), *place

    return sorted({*wanted, *needed}, key=order)
