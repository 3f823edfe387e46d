"""What a sweep can be asked for: a row of PARTS for each type of row.

A part of a checkpoint is what is measured, and missing, as a whole: a split on one kind of input, a
classifier, so many images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from robust_nc.data.datasets import Dataset
from robust_nc.data.inputs import INPUTS, asked_inputs
from robust_nc.measuring.autoattack import autoattack_rows
from robust_nc.measuring.centres import MEANS_INPUTS, attempts, centre_inputs, centre_rows
from robust_nc.measuring.collapse import input_rows, passes
from robust_nc.measuring.layers import CLEAN_TRAINING, LAYER_INPUTS, layer_rows
from robust_nc.measuring.subject import InputPart, Subject, input_parts
from robust_nc.networks.blocks import FEATURES
from robust_nc.networks.network import Network
from robust_nc.results.records import (
    ADAPTIVE,
    CENTRE_INPUTS,
    SPLITS,
    AutoAttackRecord,
    CentreRecord,
    LayerRecord,
    Record,
    radius_of,
)
from robust_nc.settings import Settings


@dataclass(frozen=True)
class Part:
    """One kind of row that a sweep can be asked for.

    asked_for: from the settings and the data to the parts of a checkpoint to measure.
    part_of: the part that a row belongs to.
    measure: from a subject, an epoch and parts to their rows.
    inputs: from parts to the kinds of input that `measure` asks the subject for, each once.
    images: from parts, the data and the kinds of input that are kept for several parts to how many
        images pass through the network, for the progress bar.
    rows: how many rows a part of one checkpoint has.
    whole: whether a row has all that is measured now.
    """

    name: str
    row_type: type
    asked_for: Callable[[Settings, Dataset], list[tuple]]
    part_of: Callable[[Any], tuple]
    measure: Callable[[Subject, int, list], list]
    inputs: Callable[[list[tuple]], list[InputPart]]
    images: Callable[[list[tuple], Dataset, set[InputPart]], int]
    rows: Callable[[Network], int] = lambda network: 1
    whole: Callable[[Any], bool] = lambda row: True


def splits_of(settings: Settings) -> tuple[str, ...]:
    return SPLITS if settings.split == "both" else (settings.split,)


def size_of(data: Dataset, split: str) -> int:
    return len(getattr(data, split))


def passed(parts: list[tuple]) -> list[InputPart]:
    return [
        found for split in SPLITS for found in passes([part for part in parts if part[0] == split])
    ]


def images_of_inputs(parts: list[tuple], data: Dataset, kept: set[InputPart]) -> int:
    return sum(size_of(data, split) for split, _, _ in passed(parts))


def images_of_layers(parts: list[tuple], data: Dataset, kept: set[InputPart]) -> int:
    """Once where they are perturbed for these rows alone, once where the blocks are measured.

    And once the clean training images, where they are not among these.
    """
    count = 0 if CLEAN_TRAINING in parts else len(data.train)
    for part in parts:
        split, name, _ = part
        perturbed = INPUTS[name].perturb is not None and part not in kept
        count += size_of(data, split) * (1 + perturbed)
    return count


def images_of_centres(parts: list[tuple], data: Dataset, kept: set[InputPart]) -> int:
    """Training images for the means, test images as they are classified, all attacks on these."""
    radii = {radius for _, _, radius in parts}
    trained = [split for split, _, _ in centre_inputs(parts) if split == "train"]
    tested = 2 * len(radii) + attempts(data.num_classes) * len(parts)
    return len(trained) * len(data.train) + tested * len(data.test)


def centre_parts(settings: Settings) -> list[tuple]:
    """The network's own features first."""
    layers = dict.fromkeys([FEATURES] * settings.ncc + (settings.ncc_layers or []))
    return list(product(layers, MEANS_INPUTS, settings.epsilons))


def autoattack_parts(settings: Settings, data: Dataset) -> list[tuple]:
    """So many images as are asked for, or as there are."""
    count = min(settings.autoattack or 0, len(data.test))
    return [(count, radius) for radius in settings.epsilons] if count else []


PARTS = (
    Part(
        "inputs",
        Record,
        lambda settings, data: input_parts(
            splits_of(settings), asked_inputs(settings), settings.epsilons
        ),
        lambda row: (row.split, row.input, radius_of(row)),
        input_rows,
        passed,
        images_of_inputs,
    ),
    Part(
        "layers",
        LayerRecord,
        lambda settings, data: (
            input_parts(SPLITS, LAYER_INPUTS, settings.epsilons) if settings.layerwise else []
        ),
        lambda row: (row.split, row.input, radius_of(row)),
        layer_rows,
        lambda parts: parts,
        images_of_layers,
        lambda network: len(network.blocks()),
        lambda row: not math.isnan(row.centre_accuracy),
    ),
    Part(
        "nearest centres",
        CentreRecord,
        lambda settings, data: centre_parts(settings),
        lambda row: (row.layer, row.means, row.epsilon),
        centre_rows,
        centre_inputs,
        images_of_centres,
        lambda network: len(CENTRE_INPUTS),
        lambda row: row.input != ADAPTIVE or row.attempts > 0,
    ),
    Part(
        "AutoAttack",
        AutoAttackRecord,
        autoattack_parts,
        lambda row: (row.images, row.epsilon),
        autoattack_rows,
        lambda parts: [],
        lambda parts, data, kept: sum(2 * count for count, _ in parts),
    ),
)
