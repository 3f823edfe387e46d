"""What a sweep measures: the checkpoints that it takes, and what it can be asked for.

A part of a checkpoint is what is measured, recorded and missed as a whole: a split in one kind of
input, a classifier, so many images.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.data.datasets import Dataset
from robust_nc.data.inputs import INPUTS, asked_inputs
from robust_nc.measuring.autoattack import AutoAttackPart, autoattack_rows
from robust_nc.measuring.centres import MEANS_INPUTS, CentrePart, centre_inputs, centre_rows
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
    ADAPTIVE,
    CENTRE_INPUTS,
    TABLES,
    AutoAttackRecord,
    CentreRecord,
    LeapRecord,
    Record,
    SimplexRecord,
)
from robust_nc.results.rows import SPLITS, Row
from robust_nc.results.run_folder import RunFolder, checkpoint_epochs
from robust_nc.results.run_search import list_runs
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
        advice = other_radii(settings, run) or ""
        if not advice and not run.path.exists():
            there = list_runs(settings.models_dir, settings.models_dir)
            advice = f"check the flags that name the run; {there}"
        advice = advice or "check the flags that name the run, or choose with --checkpoints"
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


def other_radii(settings: Settings, run: RunFolder) -> str | None:
    """One line on what to give where runs were trained with another epsilon than the one given."""
    trained = sorted(
        float(folder.name.removeprefix("eps"))
        for folder in run.path.absolute().parents[2].glob("eps*")
        if re.fullmatch(r"eps\d+(\.\d+)?", folder.name)
        and checkpoint_epochs(folder / Path(*run.path.absolute().parts[-2:]))
    )
    if run.path.exists() or not trained:
        return None
    radii = " or ".join(f"{radius:g}" for radius in trained)
    return (
        f"there is one trained with --epsilon {radii}: --epsilon {trained[0]:g} --epsilons "
        f"{settings.epsilon:g} attacks it at {settings.epsilon:g}"
    )


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

    measure: from a subject, an epoch and parts to their rows, those of a part together.
    passes: how often about the images of its split pass through the network for a part.
    shared: what tasks have in common that take their rows from the same passes.
    """

    name: str
    row_type: type[Row]
    passes = 1
    shared: str
    measure: Callable[[Subject, int, list], Iterator[Row]]

    def parts(self, settings: Settings, data: Dataset) -> list:
        """The parts of a checkpoint that the flags ask for."""
        raise NotImplementedError

    def part_of(self, row: Any) -> NamedTuple:
        """The part that a row belongs to."""
        raise NotImplementedError

    def work(self, part: Any) -> tuple:
        """What a part takes time for; parts of tasks that share the passes of an input have one."""
        return self.shared, part

    def inputs(self, parts: list) -> Iterable[InputPart]:
        """The inputs, at least the attacked ones, that `measure` asks for: here the parts."""
        return parts

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
    shared = "features"
    row_type = Record
    measure = staticmethod(input_rows)

    def parts(self, settings: Settings, data: Dataset) -> list[InputPart]:
        return parts_of(settings, asked_inputs(settings))

    def part_of(self, row: Record) -> InputPart:
        return part_of_input(row)

    def is_whole(self, row: Record) -> bool:
        return not (INPUTS[row.input].targeted and math.isnan(row.own_distance))


class LayerTask(Task):
    """Collapse after every block: --layerwise."""

    name = "layers"
    shared = "layers"
    passes = 3
    row_type = LayerRecord
    measure = staticmethod(layer_rows)

    def parts(self, settings: Settings, data: Dataset) -> list[InputPart]:
        return input_parts(SPLITS, LAYER_INPUTS, settings.epsilons) if settings.layerwise else []

    def part_of(self, row: LayerRecord) -> InputPart:
        return part_of_input(row)

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        return len(rows) >= len(network.blocks())

    def is_whole(self, row: LayerRecord) -> bool:
        lacks_own = INPUTS[row.input].targeted and math.isnan(row.own_distance)
        return not (math.isnan(row.centre_accuracy) or lacks_own)


class CentreTask(Task):
    """The nearest-centre classifier: --ncc, of the network's own features, and --ncc-layers."""

    name = "nearest centres"
    shared = "nearest centres"
    passes = 4
    row_type = CentreRecord
    measure = staticmethod(centre_rows)

    def parts(self, settings: Settings, data: Dataset) -> list[CentrePart]:
        layers = [FEATURES] if settings.ncc else []
        layers = list(dict.fromkeys([*layers, *(settings.ncc_layers or [])]))
        return [CentrePart(*part) for part in product(layers, MEANS_INPUTS, settings.epsilons)]

    def part_of(self, row: CentreRecord) -> CentrePart:
        return CentrePart(row.layer, row.means, row.epsilon)

    def inputs(self, parts: list[CentrePart]) -> Iterable[InputPart]:
        return centre_inputs(parts)

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        return len(rows) >= len(CENTRE_INPUTS)

    def is_whole(self, row: CentreRecord) -> bool:
        return row.input != ADAPTIVE or row.attempts > 0


class AutoAttackTask(Task):
    """Standard AutoAttack: --autoattack, of as many images as are asked for, or as there are."""

    name = "AutoAttack"
    shared = "AutoAttack"
    row_type = AutoAttackRecord
    measure = staticmethod(autoattack_rows)

    def parts(self, settings: Settings, data: Dataset) -> list[AutoAttackPart]:
        count = min(settings.autoattack or 0, len(data.test))
        return [AutoAttackPart(count, radius) for radius in settings.epsilons] if count else []

    def part_of(self, row: AutoAttackRecord) -> AutoAttackPart:
        return AutoAttackPart(row.images, row.epsilon)

    def inputs(self, parts: list[AutoAttackPart]) -> list[InputPart]:
        return []  # it perturbs images of its own


def placed_parts(settings: Settings) -> list[InputPart]:
    """The parts of --leaps and --simplex: clean images and those that the other flags ask for.

    Where these ask for none, they are all kinds of input.
    """
    asked = asked_inputs(settings) or [name for name, kind in INPUTS.items() if kind.asked_by]
    return parts_of(settings, dict.fromkeys(["clean", *asked]))


class LeapTask(Task):
    """Near which vertex of the clean training simplex images lie: --leaps."""

    name = "leaps"
    row_type = LeapRecord
    measure = staticmethod(leap_rows)
    shared = "features"

    def parts(self, settings: Settings, data: Dataset) -> list[InputPart]:
        return placed_parts(settings) if settings.leaps else []

    def part_of(self, row: LeapRecord) -> InputPart:
        return part_of_input(row)

    def has_all(self, part: Any, rows: list, network: Network, data: Dataset) -> bool:
        return sum(row.count for row in rows) == len(getattr(data, part.split))


class SimplexTask(Task):
    """Where images lie in the plane of three vertices: --simplex."""

    name = "simplex"
    row_type = SimplexRecord
    measure = staticmethod(simplex_rows)
    shared = "features"

    def parts(self, settings: Settings, data: Dataset) -> list[SimplexPart]:
        """Three classes, of clean training images and of all kinds that are asked for."""
        if settings.simplex is None:
            return []
        classes = " ".join(map(str, settings.simplex))
        inputs = dict.fromkeys([CLEAN_TRAINING, *placed_parts(settings)])
        return [SimplexPart(*part, classes) for part in inputs]

    def part_of(self, row: SimplexRecord) -> SimplexPart:
        return SimplexPart(*part_of_input(row), row.classes)

    def work(self, part: SimplexPart) -> tuple:
        return self.shared, part.of_input

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


def names_of_tasks(settings: Settings, data: Dataset) -> list[str]:
    """What the flags ask for, in words: the kinds of input, and the other tasks."""
    others = [task for task in TASKS if not isinstance(task, InputTask)]
    return [*asked_inputs(settings), *(task.name for task in others if task.parts(settings, data))]
