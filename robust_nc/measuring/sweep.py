"""What a sweep measures: the checkpoints that it takes, and what it can be asked for.

A part of a checkpoint is what is measured, recorded and missed as a whole: a split in one kind of
input, a classifier, so many images.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.data.datasets import Dataset
from robust_nc.data.inputs import INPUTS, asked_inputs
from robust_nc.measuring.autoattack import AutoAttackPart, autoattack_rows
from robust_nc.measuring.centres import (
    MEANS_INPUTS,
    CentrePart,
    attempts,
    centre_inputs,
    centre_rows,
)
from robust_nc.measuring.collapse import input_rows
from robust_nc.measuring.layers import LAYER_INPUTS, layer_rows
from robust_nc.measuring.leaps import SimplexPart, leap_rows, simplex_rows
from robust_nc.measuring.subject import (
    CLEAN_TRAINING,
    InputPart,
    Subject,
    input_parts,
    part_of_input,
)
from robust_nc.measuring.vertices import MOST_POINTS
from robust_nc.networks.any_network import FEATURES
from robust_nc.networks.network import Network
from robust_nc.results.files import sha256
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import (
    CENTRE_INPUTS,
    TABLES,
    AutoAttackRecord,
    CentreRecord,
    LeapRecord,
    Record,
    SimplexRecord,
)
from robust_nc.results.rows import SPLITS, Row
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.run_search import list_runs
from robust_nc.results.tables import (
    Table,
    autoattack_table,
    centre_table,
    input_table,
    layer_table,
    leap_table,
    plain_table,
    simplex_table,
)
from robust_nc.settings import Settings, select_epochs
from utils import InputError, logger

PUBLISHED_EPOCHS = 400  # where neither the flags nor the folder tell

# ---------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------


def epochs_of(settings: Settings, run: RunFolder) -> int:
    """How many epochs the run was trained for, or will be."""
    epochs = settings.epochs or run.trained_with().get("epochs")
    return epochs or max(run.epochs(), default=PUBLISHED_EPOCHS - 1) + 1


class Checkpoint(NamedTuple):
    """A file to measure; of --checkpoint also the name that its rows have, and its SHA-256.

    Both end with ":KEY" where --weights-key chooses weights that are not those used without it.
    """

    path: Path
    name: str = ""
    digest: str = ""
    key: str = ""


def checkpoint_paths(settings: Settings, run: RunFolder) -> dict[int, Path]:
    """Epoch -> file of every checkpoint to measure; for --checkpoint its place in the list.

    Raises:
        InputError: one is not there.
    """
    if settings.checkpoint:
        paths = list(dict.fromkeys(settings.checkpoint))
        epochs = list(range(len(paths)))
        advice = "--checkpoint names files of weights"
    else:
        epochs = swept_epochs(settings, run)
        paths = [run.checkpoint(epoch) for epoch in epochs]
        advice = "check the flags that name the run, or choose with --checkpoints"
        if not run.path.exists():
            advice = (
                "check the flags that name the run (--epsilon is what it was trained with: "
                f"--epsilons {settings.epsilon:g} attacks it at {settings.epsilon:g}); "
                f"{list_runs(settings.models_dir, settings.models_dir)}"
            )
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such checkpoint ({len(missing)} of {len(paths)} are missing); "
            f"{advice}"
        )
    return dict(zip(epochs, paths, strict=True))


def recorded_files(run: RunFolder) -> dict[str, tuple[int, str]]:
    """Name -> number and SHA-256 of the files that the tables have rows of."""
    numbers = {row.epoch for row_type in TABLES for row in run.swept_rows(row_type)}
    return {name: file for name, file in run.files().items() if file[0] in numbers}


def numbered_files(
    keys: dict[Path, str], recorded: dict[str, tuple[int, str]], run: RunFolder
) -> dict[int, Checkpoint]:
    """Number -> file of --checkpoint: the number and name that its rows have, or else new ones.

    A file is known by its content, whatever its name is now; of copies each has rows of its own.

    Args:
        keys: path -> which of its weights are measured, "" for those used without --weights-key.
        recorded: name -> number and SHA-256 of the files that the tables have rows of.

    Raises:
        InputError: one is another one than that of its name that was recorded.
    """
    files: dict[int, Checkpoint] = {}
    names = {path: f"{path}:{key}" if key else str(path) for path, key in keys.items()}
    unnamed = {name: file for name, file in recorded.items() if name not in names.values()}
    following = max((number for number, _ in recorded.values()), default=-1) + 1
    for path, key in keys.items():
        name, digest = names[path], sha256(path) + (f":{key}" if key else "")
        if name not in recorded:
            name = next((n for n, (_, former) in unnamed.items() if former == digest), name)
            unnamed.pop(name, None)
        number, former = recorded.get(name, (following, digest))
        following += name not in recorded
        if former not in ("", digest):
            raise InputError(
                f"{run.results} holds a sweep of other files: {path} was another file then; give "
                "it another name, or another --out; --overwrite drops the sweep"
            )
        files[number] = Checkpoint(path, name, digest, key)
    return files


def swept_epochs(settings: Settings, run: RunFolder) -> list[int]:
    """Those that --checkpoints chooses, or all that the run left."""
    epochs = epochs_of(settings, run)
    left = [epoch for epoch in run.epochs() if epoch < epochs]
    if settings.checkpoints or not left:
        return select_epochs(settings.checkpoints, epochs)
    kept = select_epochs(run.trained_with().get("checkpoint_epochs"), epochs)
    last = max((row.epoch for row in run.history), default=left[-1])
    gone = [epoch for epoch in kept if epoch <= last and epoch not in left]
    if gone:
        names = run.checkpoint(gone[0]).name + (f" and {len(gone) - 1} more" if gone[1:] else "")
        logger.warning(f"{run.path}: not there, and left out: {names}")
    if last + 1 < epochs:
        logger.info(f"{run.path} has come to epoch {last} of {epochs - 1}")
    return left


# ---------------------------------------------------------------------------------------------
# What a sweep can be asked for
# ---------------------------------------------------------------------------------------------


class Task:
    """Rows of one type that a sweep can be asked for.

    flags: each of them asks for it.
    measure: from a subject, an epoch and parts to their rows, those of a part together.
    table: the lines that show its rows at the end of a sweep.
    shared: what tasks have in common that take their rows from the same passes.
    """

    name: str
    flags: tuple[str, ...]
    row_type: type[Row]
    measure: Callable[[Subject, int, list], Iterator[Row]]
    table: Table = staticmethod(plain_table)
    shared = ""

    def parts(self, settings: Settings, data: Dataset) -> list:
        """The parts of a checkpoint: here clean images and those that other flags ask for.

        Where these ask for none, they are all kinds of input.
        """
        asked = asked_inputs(settings) or [name for name, kind in INPUTS.items() if kind.asked_by]
        return parts_of(settings, dict.fromkeys(["clean", *asked]))

    def part_of(self, row: Any) -> NamedTuple:
        """The part that a row belongs to."""
        return part_of_input(row)

    def inputs(self, parts: list) -> Iterable[InputPart]:
        """The inputs, at least the attacked ones, that `measure` asks for: here the parts."""
        return parts

    def own_images(self, parts: list, data: Dataset) -> int:
        """How many images, about, pass the network besides: for the progress bar alone."""
        return 0

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        """Whether these are all rows of a part."""
        return bool(rows)

    def is_whole(self, row: Any) -> bool:
        """Whether a row has all that is measured now; rows of earlier versions may not."""
        return True


def parts_of(settings: Settings, names: Iterable[str]) -> list[InputPart]:
    """The parts of these kinds of input, of the splits and at the radii of the flags."""
    splits = SPLITS if settings.split == "both" else [settings.split]
    return input_parts(splits, names, settings.epsilons)


class InputTask(Task):
    """Accuracy, loss and neural collapse: the flags --neural-collapse..."""

    name = "inputs"
    flags = tuple(dict.fromkeys(flag for kind in INPUTS.values() for flag in kind.asked_by))
    row_type = Record
    measure = staticmethod(input_rows)
    table = staticmethod(input_table)
    shared = "features"

    def parts(self, settings: Settings, data: Dataset) -> list[InputPart]:
        return parts_of(settings, asked_inputs(settings))

    def is_whole(self, row: Record) -> bool:
        return not (INPUTS[row.input].targeted and math.isnan(row.own_distance))


class LayerTask(Task):
    """Collapse after every block."""

    name = "layers"
    flags = ("layerwise",)
    row_type = LayerRecord
    measure = staticmethod(layer_rows)
    table = staticmethod(layer_table)

    def parts(self, settings: Settings, data: Dataset) -> list[InputPart]:
        return input_parts(SPLITS, LAYER_INPUTS, settings.epsilons)

    def own_images(self, parts: list[InputPart], data: Dataset) -> int:
        return 2 * sum(len(getattr(data, part.split)) for part in parts)

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        return len(rows) >= len(network.blocks())

    def is_whole(self, row: LayerRecord) -> bool:
        lacks_own = INPUTS[row.input].targeted and math.isnan(row.own_distance)
        return not (math.isnan(row.centre_accuracy) or lacks_own)


class CentreTask(Task):
    """The nearest-centre classifier of the network's own features, and of layers."""

    name = "nearest centres"
    flags = ("ncc", "ncc_layers")
    row_type = CentreRecord
    measure = staticmethod(centre_rows)
    table = staticmethod(centre_table)

    def parts(self, settings: Settings, data: Dataset) -> list[CentrePart]:
        layers = [FEATURES] if settings.ncc else []
        layers = list(dict.fromkeys([*layers, *(settings.ncc_layers or [])]))
        return [CentrePart(*part) for part in product(layers, MEANS_INPUTS, settings.epsilons)]

    def part_of(self, row: CentreRecord) -> CentrePart:
        return CentrePart(row.layer, row.means, row.epsilon)

    def inputs(self, parts: list[CentrePart]) -> Iterable[InputPart]:
        return centre_inputs(parts)

    def own_images(self, parts: list[CentrePart], data: Dataset) -> int:
        return len(parts) * attempts(data.num_classes) * len(data.test)

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        return len(rows) >= len(CENTRE_INPUTS)

    def is_whole(self, row: CentreRecord) -> bool:
        return not row.outdated


class AutoAttackTask(Task):
    """Standard AutoAttack, of as many images as are asked for, or as there are."""

    name = "AutoAttack"
    flags = ("autoattack",)
    row_type = AutoAttackRecord
    measure = staticmethod(autoattack_rows)
    table = staticmethod(autoattack_table)

    def parts(self, settings: Settings, data: Dataset) -> list[AutoAttackPart]:
        count = min(settings.autoattack, len(data.test))
        return [AutoAttackPart(count, radius) for radius in settings.epsilons]

    def part_of(self, row: AutoAttackRecord) -> AutoAttackPart:
        return AutoAttackPart(row.images, row.epsilon)

    def inputs(self, parts: list[AutoAttackPart]) -> list[InputPart]:
        return []  # it perturbs images of its own

    def own_images(self, parts: list[AutoAttackPart], data: Dataset) -> int:
        return 3 * sum(part.images for part in parts)  # attacked, and clean and attacked measured


class LeapTask(Task):
    """Near which vertex of the clean training simplex images lie."""

    name = "leaps"
    flags = ("leaps",)
    row_type = LeapRecord
    measure = staticmethod(leap_rows)
    table = staticmethod(leap_table)
    shared = "features"

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        return sum(row.count for row in rows) == len(getattr(data, part.split))


class SimplexTask(Task):
    """Where images lie in the plane of three vertices."""

    name = "simplex"
    flags = ("simplex",)
    row_type = SimplexRecord
    measure = staticmethod(simplex_rows)
    table = staticmethod(simplex_table)
    shared = "features"

    def parts(self, settings: Settings, data: Dataset) -> list[SimplexPart]:
        """Three classes, of clean training images and of all kinds that are asked for."""
        classes = " ".join(map(str, settings.simplex))
        inputs: list[InputPart] = [CLEAN_TRAINING, *super().parts(settings, data)]
        return [SimplexPart(*part, classes) for part in dict.fromkeys(inputs)]

    def part_of(self, row: SimplexRecord) -> SimplexPart:
        return SimplexPart(*part_of_input(row), row.classes)

    def inputs(self, parts: list[SimplexPart]) -> list[InputPart]:
        return [part.of_input for part in parts]

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        counts = getattr(data, part.split).labels.bincount(minlength=data.num_classes).tolist()
        sizes = [counts[label] for label in part.shown if counts[label]]
        return len(rows) >= sum(1 + min(size, MOST_POINTS) for size in sizes)


TASKS: tuple[Task, ...] = (
    InputTask(),
    LeapTask(),
    SimplexTask(),
    LayerTask(),
    CentreTask(),
    AutoAttackTask(),
)


def asked_tasks(settings: Any) -> list[Task]:
    """The tasks that the flags ask for."""
    return [task for task in TASKS if any(getattr(settings, flag) for flag in task.flags)]


def names_of_tasks(settings: Settings) -> list[str]:
    """What the flags ask for, in words: the kinds of input, and the other tasks."""
    others = [task.name for task in asked_tasks(settings) if not isinstance(task, InputTask)]
    return [*asked_inputs(settings), *others]
