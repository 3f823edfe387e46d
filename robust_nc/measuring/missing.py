"""What of a sweep is still to be measured: what the flags ask for and the run's tables lack."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from robust_nc.data.datasets import Dataset
from robust_nc.data.inputs import INPUTS
from robust_nc.measuring.subject import InputPart
from robust_nc.measuring.sweep import TASKS, InputTask, LeapTask, Task, asked_tasks
from robust_nc.networks.network import Network
from robust_nc.results.conditions import conditions_of
from robust_nc.results.records import Record
from robust_nc.results.rows import Row
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import Settings
from utils import logger


class Missing(NamedTuple):
    """What a task has still to measure of a checkpoint."""

    task: Task
    parts: list


def missing_parts(
    settings: Settings, data: Dataset, network: Network, epochs: Iterable[int], run: RunFolder
) -> dict[int, list[Missing]]:
    """Epoch -> what the flags ask for and the run's tables lack."""
    missing: dict[int, list[Missing]] = {}
    for task in asked_tasks(settings):
        asked = task.parts(settings, data)
        recorded = rows_alike(settings, run, task.row_type)
        # A part of which rows were lost, or lack what is measured now, is measured again.
        whole = [row for row in recorded if task.is_whole(row)]
        if len(whole) < len(recorded):
            logger.info(
                f"{run.table(task.row_type)}: {len(recorded) - len(whole)} rows lack what is "
                "measured now: they are measured again where they are asked for"
            )
        by_part: dict[tuple, list] = {}
        for row in whole:
            by_part.setdefault((row.epoch, task.part_of(row)), []).append(row)
        for epoch in epochs:
            parts = [
                part
                for part in asked
                if not task.has_all(part, by_part.get((epoch, part), []), network, data)
            ]
            if parts:
                missing.setdefault(epoch, []).append(Missing(task, parts))
    if settings.leaps:
        add_unplaced(missing, rows_alike(settings, run, Record))
    return dict(sorted(missing.items()))


def rows_alike(settings: Settings, run: RunFolder, row_type: type[Row]) -> list:
    """What is recorded with the attack, noise and precision of the flags."""
    now = conditions_of(vars(settings))
    return [row for row in run.swept_rows(row_type) if row.key == row.measured_with(now).key]


def add_unplaced(missing: dict[int, list[Missing]], recorded: list[Record]) -> None:
    """Add the rows of metrics.csv that earlier versions left without the distance to vertices.

    Of inputs that --leaps has measured in any case: they cost no pass of their own.
    """
    inputs: Task = next(task for task in TASKS if isinstance(task, InputTask))
    lacking = {
        (row.epoch, inputs.part_of(row)) for row in recorded if math.isnan(row.vertex_agreement)
    }
    for epoch, tasks in missing.items():
        measured = [part for task, parts in tasks if isinstance(task, LeapTask) for part in parts]
        again = [part for part in measured if (epoch, part) in lacking]
        if again:
            asked = [part for task, parts in tasks if task is inputs for part in parts]
            others = [entry for entry in tasks if entry.task is not inputs]
            parts = list(dict.fromkeys([*asked, *again]))
            missing[epoch] = [Missing(inputs, parts), *others]


def passes_of(missing: list[Missing]) -> set[tuple[str, InputPart]]:
    """The inputs of a checkpoint with who passes them: tasks that share their passes are one."""
    return {
        (task.shared or task.name, part) for task, parts in missing for part in task.inputs(parts)
    }


def images_of(missing: list[Missing], data: Dataset) -> int:
    """How many images, about, pass the network for a checkpoint: for the progress bar alone."""
    own = sum(task.own_images(parts, data) for task, parts in missing)
    return own + sum(len(getattr(data, part.split)) for _, part in passes_of(missing))


def shared_inputs(missing: list[Missing]) -> set[InputPart]:
    """The attacked inputs of a checkpoint that several tasks take passes of their own of."""
    counts = Counter(part for _, part in passes_of(missing) if INPUTS[part.input].attacked)
    return {part for part, count in counts.items() if count > 1}
