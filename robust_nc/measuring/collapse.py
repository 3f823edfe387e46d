"""Rows of metrics.csv: accuracy, loss and neural collapse of a network on one kind of input."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from nc_metrics import simplex_distance
from robust_nc.data.inputs import INPUTS, place_of
from robust_nc.measuring.evaluator import Measurement
from robust_nc.measuring.subject import InputPart, Subject, key_of
from robust_nc.results.records import SPLITS, Record


def make_record(measured: Measurement, clean_means: Tensor | None = None, **key: Any) -> Record:
    """A row of metrics.csv.

    Args:
        clean_means: class means (C, D) of the clean images, to compare those measured with.
        key: its `source`, `epoch`, `split` and `input`, and `epsilon` where it was attacked.
    """
    collapse = measured.collapse
    names = {field.name for field in fields(Record)} & {field.name for field in fields(collapse)}
    metrics: dict[str, Any] = {name: getattr(collapse, name) for name in names}
    if clean_means is not None:
        apart = simplex_distance(clean_means, collapse.class_means)
        metrics |= {
            "clean_distance": apart.distance.mean().item(),
            "clean_angle": apart.angle.mean().item(),
            "clean_distance_abs": apart.distance_abs.mean().item(),
            "clean_angle_abs": apart.angle_abs.mean().item(),
            "clean_mean_distance": apart.mean_distance,
            "clean_mean_angle": apart.mean_angle,
        }
        kind, classes = INPUTS[key["input"]], torch.arange(len(clean_means))
        if kind.targeted:
            # Of each class the images that are labelled with its target.
            own = collapse.class_means[kind.labels(classes, len(classes))]
            apart = simplex_distance(clean_means, own)
            metrics["own_distance"] = apart.distance.mean().item()
            metrics["own_angle"] = apart.angle.mean().item()
    metrics |= {name: getattr(measured, name) for name in ("images", "loss", "accuracy")}
    return Record(**key, **metrics)


def input_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> Iterator[Record]:
    """Of each part the accuracy, loss and neural collapse of the network.

    The clean images of a split are measured too where others are compared with their class means.
    """
    for split in SPLITS:
        clean_means = None
        for part in passes([part for part in parts if part.split == split]):
            images, perturb = subject.images(epoch, part)
            labels = subject.labels(split, part.input)
            measured = subject.evaluator.measure(images, labels, perturb)
            if part.input == "clean":
                clean_means = measured.collapse.class_means
            if part in parts:
                compared = clean_means if INPUTS[part.input].from_clean else None
                yield make_record(measured, compared, source="eval", **key_of(epoch, part))


def passes(wanted: list[InputPart]) -> list[InputPart]:
    """The parts of one split to pass through the network for the wanted ones, clean first."""
    compared = [part for part in wanted if INPUTS[part.input].from_clean]
    needed = {InputPart(part.split, "clean", 0.0) for part in compared}

    def order(part: InputPart) -> tuple:
        return part.input != "clean", place_of(part.input), part.radius

    return sorted({*wanted, *needed}, key=order)
