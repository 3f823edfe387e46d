"""A network on images: perturbations, outputs, and one function per type of row.

Every function `*_rows(subject, epoch, parts)` measures the parts of a checkpoint that are asked
for, and their numbers do not depend on which others are: each has a random stream of its own.
"""

from dataclasses import fields
from typing import Any

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
    told = {name: getattr(measured, name) for name in ("images", "loss", "accuracy")}
    return Record(**key, **told, **metrics)


def input_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> list[Record]:
    """Of each part the accuracy, loss and neural collapse of the network.

    The clean images of a split are measured too where others are compared with their class means.
    """
    records = []
    for split in SPLITS:
        clean_means = None
        for part in passes([part for part in parts if part[0] == split]):
            name = part[1]
            images, perturb = subject.images(epoch, part)
            measured = subject.evaluator.measure(images, subject.labels(split, name), perturb)
            if name == "clean":
                clean_means = measured.collapse.class_means
            if part in parts:
                key = key_of(epoch, part) | {"source": "eval"}
                compared = clean_means if INPUTS[name].from_clean else None
                records.append(make_record(measured, compared, **key))
    return records


def passes(wanted: list[InputPart]) -> list[InputPart]:
    """The parts of one split to pass through the network for the wanted ones, clean first."""
    needed = {(split, "clean", 0.0) for split, name, _ in wanted if INPUTS[name].from_clean}
    return sorted({*wanted, *needed}, key=lambda part: (place_of(part[1]), part[2]))
