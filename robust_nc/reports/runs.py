"""Run folders as reports and figures read them: what a run left, and what sets it apart."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from robust_nc.comparing import INIT_HASH
from robust_nc.flags import SWEEP_FLAGS, TRAIN_FLAGS
from robust_nc.reports.setting import (
    Setting,
    in_units,
    names_of_arguments,
    names_of_path,
    safe,
)
from robust_nc.results.conditions import Conditions, shown_conditions, step_sizes
from robust_nc.results.files import read_json
from robust_nc.results.history import EpochSummary
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import (
    TABLES,
    AutoAttackRecord,
    CentreRecord,
    LeapRecord,
    Record,
    SimplexRecord,
    at_epsilon,
    measured_alike,
)
from robust_nc.results.rows import SPLITS, Row, radius_of
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import Means, keys_that, unread, with_former_values
from utils import InputError, logger

# What args.json tells without a say in the numbers; all else must be equal in runs of one group.
# (The flags of the subsets draw with the seed: --limit-train counts, the images drawn do not.)
FREE = {flag.key for flag in TRAIN_FLAGS if not flag.means & (Means.NAME | Means.TRAIN)}
FREE |= {"git_commit", "git_dirty", "torch", "ran_on"}
# The images perturbed during training, and by PGD on the checkpoint: figures show one of the two.
PERTURBED = ("seen", "pgd")


RowType = TypeVar("RowType")
OF_SWEEP = " of the sweep"  # ends the names of its flags, which may be others than the run's


def step_name(radius: float | str) -> str:
    """What the step size of a sweep's attack is called among the flags of a run."""
    return f"pgd_alpha at epsilon {radius if isinstance(radius, str) else f'{radius:g}'}"


@dataclass(frozen=True)
class Run:
    """One run folder.

    arguments: what args.json tells; {} where there is none.
    flags: what of it, and of the sweep and the images, must be equal in runs that are averaged.
    records, layers, centres, autoattack, leaps, simplex: the rows at every epsilon, of one attack,
        level of noise and, but for train.py's, precision. Of two records of one input and epoch
        the last counts: what train.py measured comes after a sweep's.
    shown_under: these. others: the rows of other ones.
    checkpoint, file: of results of --checkpoint the file that they are of, as its rows and as
        figures name it, "" otherwise; how its network was trained is not known then.
    """

    folder: RunFolder
    setting: Setting
    mode: str
    seed: int
    arguments: dict[str, Any]
    flags: dict[str, Any]
    history: list[EpochSummary]
    records: list[Record]
    layers: list[LayerRecord]
    centres: list[CentreRecord]
    autoattack: list[AutoAttackRecord]
    leaps: list[LeapRecord]
    simplex: list[SimplexRecord]
    shown_under: Conditions
    others: list
    checkpoint: str = ""
    file: str = ""

    @property
    def path(self) -> Path:
        """The run's folder; where that is not known, the one that its results lie in."""
        return self.folder.path

    @property
    def place(self) -> Path:
        """The folder to name for it: of eval.py --out the one that its results lie in."""
        results = self.folder.results
        return self.path if results == self.path / "results" else results

    def at_own_epsilon(self, rows: list) -> list:
        return at_epsilon(rows, self.setting.epsilon)

    @property
    def swept_rows(self) -> list:
        """The rows of a sweep that are shown, of all tables."""
        tables = (self.records, self.layers, self.centres, self.leaps, self.simplex)
        return [row for table in (*tables, self.autoattack) for row in table if row.swept]

    @cached_property
    def own_records(self) -> list[Record]:
        """The records at the run's own epsilon."""
        return self.at_own_epsilon(self.records)

    @property
    def last_epoch(self) -> int:
        """The last epoch that the run was to have.

        Raises:
            InputError: args.json does not tell it.
        """
        if "epochs" not in self.arguments:
            raise InputError(f"{self.folder.args_file} does not tell epochs")
        return self.arguments["epochs"] - 1

    def of_epoch(
        self, epoch: int, input: str, split: str = "train", metric: str = ""
    ) -> list[Record]:
        """The row of one kind of input after an epoch, at the run's own epsilon; [] of none.

        metric: a field that the row is to tell: what train.py measures a sweep measures too, but
            not the other way round.
        """
        key = (epoch, input, split)
        rows = [row for row in self.own_records if (row.epoch, row.input, row.split) == key]
        telling = [row for row in rows if metric and not math.isnan(getattr(row, metric))]
        return (telling or rows)[-1:]

    def series(self, input: str, metric: str, split: str = "train") -> dict[int, float]:
        """Epoch -> a metric of one kind of input."""
        rows = [row for row in self.own_records if (row.input, row.split) == (input, split)]
        values = {row.epoch: getattr(row, metric) for row in rows}
        return dict(sorted(values.items()))

    def last(self, input: str, metric: str, split: str = "train") -> float:
        """The metric after the last epoch of the run; NaN where it was not measured."""
        return self.series(input, metric, split).get(self.last_epoch, math.nan)

    def blocks(self, input: str, split: str = "train") -> list[LayerRecord]:
        """The rows of every block, in forward order, after the last epoch."""
        rows = [
            row
            for row in self.at_own_epsilon(self.layers)
            if (row.epoch, row.input, row.split) == (self.last_epoch, input, split)
        ]
        return sorted(rows, key=lambda row: row.index)

    def by_layer(self, input: str, metric: str, split: str = "train") -> list[float]:
        """The metric of every block, in forward order, after the last epoch."""
        return [getattr(row, metric) for row in self.blocks(input, split)]

    def by_radius(self, split: str) -> dict[float, Record]:
        """Radius of PGD -> its row after the last epoch; 0.0 is that of clean images.

        Of clean images those that were measured as the others were, if any.
        """
        rows = [row for row in self.records if (row.epoch, row.split) == (self.last_epoch, split)]
        attacked = [row for row in rows if row.input == "pgd"]
        clean = [row for row in rows if row.input == "clean" and measured_alike([row, *attacked])]
        return {radius_of(row): row for row in (*clean, *attacked)}

    def centre_row(
        self, input: str, epsilon: float | None = None, layer: str = "features"
    ) -> CentreRecord | None:
        """The nearest clean class mean in a layer on test images, after the last epoch.

        epsilon: of the attack, instead of the run's own.
        """
        radius = self.setting.epsilon if epsilon is None else epsilon
        key = (self.last_epoch, "clean", input, layer)
        rows = [
            row
            for row in self.centres
            if (row.epoch, row.means, row.input, row.layer) == key
            if math.isnan(row.epsilon) or math.isclose(row.epsilon, radius)
        ]
        return rows[0] if rows else None


def copy_runs(runs: list[Run], out: Path) -> None:
    """The tables of each run, below `out` in a folder that its setting, mode and seed name.

    A further run of the same names has a folder beside it, which ends with a number.
    """
    taken = {run.path.resolve(): run for run in runs}
    for run in runs:
        first = out / name_of_copy(run)
        folder, number = first, 1
        while taken.setdefault(folder.resolve(), run) is not run:
            number += 1
            folder = first.with_name(f"{first.name}_{number}")
        run.folder.copy_tables(folder)


def name_of_copy(run: Run) -> Path:
    """The last folders of the run's path, as train.py names them; else what they would be."""
    parts = run.path.resolve().parts
    if len(parts) > 6 and parts[-2] == run.mode:
        return Path(*parts[-6:])
    setting = run.setting
    names = (setting.dataset, setting.model, setting.norm, f"eps{setting.epsilon}", run.mode)
    return Path(*map(safe, names), f"seed{run.seed}")


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs of the folders that hold one, with an args.json."""
    return [read_run(path) for path in folders if read_json(path / "args.json")]


def read_run(
    path: Path, asked: Mapping[str, Any] | None = None, results: Path | None = None
) -> Run:
    """All that a run folder holds.

    Args:
        asked: fields of Conditions, of another attack or noise to show than the run's own; the step
            size as a Radius.
        results: where its results lie, if not in the folder itself.

    Raises:
        InputError: a damaged file, or an unknown setting.
    """
    folder = RunFolder(path, results=results)
    arguments = read_json(folder.args_file)
    if arguments is not None:
        names = names_of_arguments(arguments, folder.args_file)
        return make_run(folder, names, arguments, all_rows(folder), asked)
    names = names_of_path(path)
    run = make_run(folder, names, {}, all_rows(folder), asked)
    run_name = path.resolve().name.partition("_")[2] or None  # of seed1_NAME
    return replace(run, flags={"run_name": run_name} | run.flags)


class Shown(NamedTuple):
    """The rows of one attack, noise and precision, which these are, and the rows of others."""

    under: Conditions
    rows: list
    others: list


def choose_rows(folder: RunFolder, rows: list, asked: Mapping[str, Any] | None = None) -> Shown:
    """Of the rows of a folder those of one attack, noise and precision.

    Args:
        asked: fields of Conditions, of another one than the run's own, in the rows' units.
    """
    under = shown_conditions(rows, folder.trained_under(), folder.swept_under(), asked)
    others = [row for row in rows if not under.matches(row)]
    return Shown(under, [row for row in rows if under.matches(row)], others)


def make_run(
    folder: RunFolder,
    names: tuple[Setting, str, int],
    arguments: dict[str, Any],
    rows: list,
    asked: Mapping[str, Any] | None,
) -> Run:
    """A run of what names it, of what its args.json tells ({} of none), and of its rows.

    Args:
        asked: as in `read_run`.
    """
    shown = choose_rows(folder, rows, in_units(asked or {}, names[0].dataset))
    flags = read_flags(arguments, swept_with(folder, shown.rows), shown.rows)
    records = sorted(rows_of(Record, shown.rows), key=lambda row: row.source == "train")
    layers, centres = rows_of(LayerRecord, shown.rows), rows_of(CentreRecord, shown.rows)
    return Run(
        folder,
        *names,
        arguments,
        flags | images_measured(records, [*records, *layers, *centres]),
        history=sorted(folder.history, key=lambda row: row.epoch),
        records=records,
        layers=layers,
        centres=centres,
        autoattack=rows_of(AutoAttackRecord, shown.rows),
        leaps=rows_of(LeapRecord, shown.rows),
        simplex=rows_of(SimplexRecord, shown.rows),
        shown_under=shown.under,
        others=shown.others,
    )


def rows_of(row_type: type[RowType], rows: list) -> list[RowType]:
    return [row for row in rows if isinstance(row, row_type)]


def all_rows(folder: RunFolder) -> list:
    """The usable rows of all tables."""
    return [row for row_type in TABLES for row in usable_rows(folder, row_type)]


def usable_rows(folder: RunFolder, row_type: type[Row]) -> list:
    """The rows of a table, but for those of an attack on nearest centres known to be too weak."""
    rows = folder.rows(row_type)
    if row_type is not CentreRecord:
        return rows
    strong = [row for row in rows if not row.outdated]
    if len(strong) < len(rows):
        logger.info(
            f"{folder.table(CentreRecord)}: left out, of an older version whose attack on the "
            f"nearest-centre classifier was too weak: {len(rows) - len(strong)} rows; eval.py "
            "--ncc measures them again"
        )
    return strong


def read_flags(
    arguments: dict[str, Any], sweep_arguments: dict[str, Any], rows: list
) -> dict[str, Any]:
    """What of args.json and eval_args.json must be equal in runs of one group, lists as tuples.

    Args:
        rows: those that are shown.
    """
    arguments = with_former_values(arguments, TRAIN_FLAGS)
    swept = with_former_values(sweep_arguments, SWEEP_FLAGS)
    left_out = FREE | unread(TRAIN_FLAGS, arguments)
    flags = {name: value for name, value in arguments.items() if name not in left_out}
    own_folder, start = f"seed{arguments.get('seed')}", Path(arguments.get("init") or "")
    if own_folder in start.parts:  # each seed starts from the weights of its own
        flags["init"] = Path(*("seed" if part == own_folder else part for part in start.parts))
        flags.pop(INIT_HASH, None)
    unmeasured = flags_without_rows(rows)
    # Of the step size there is one for each radius.
    measured = keys_that(SWEEP_FLAGS, Means.MEASURE) - unmeasured - {"pgd_alpha"}
    for name in sorted(measured & swept.keys()):
        flags[f"{name}{OF_SWEEP}"] = swept[name]
    for radius, size in step_sizes(sweep_arguments).items() if any(r.by_pgd for r in rows) else ():
        flags[step_name(radius)] = size
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if not isinstance(value, dict)
    }


def swept_with(folder: RunFolder, rows: list) -> dict[str, Any]:
    """What eval_args.json tells, with the attack, noise and precision of the rows that are shown.

    The last sweep, of which the file tells, may have been of others.
    """
    arguments = folder.arguments(folder.sweep_file)
    swept = [row for row in rows if row.swept and arguments]
    attacked = [row for row in swept if row.by_pgd and row.steps]
    noisy = [row for row in swept if row.noisy and not math.isnan(row.noise)]
    of_rows: dict[str, Any] = {}
    for row in swept:
        of_rows["precision"] = row.precision or arguments.get("precision")
    for row in attacked:
        of_rows |= {"attack_iters": row.steps, "restarts": row.restarts}
    for row in noisy:
        of_rows["noise_level"] = row.noise
    sizes = {f"{row.epsilon:g}": row.step_size for row in attacked if not math.isnan(row.step_size)}
    if sizes:
        of_rows["step_sizes"] = step_sizes(arguments) | sizes
    return arguments | of_rows


def flags_without_rows(rows: list) -> set[str]:
    """The flags of a sweep that no row was measured with, which then say nothing of the rows."""
    names = set() if any(row.by_pgd for row in rows) else {"attack_iters", "restarts"}
    return names if any(row.swept and row.noisy for row in rows) else names | {"noise_level"}


def images_measured(records: list[Record], rows: list) -> dict[str, Any]:
    """What of the tables must be equal in runs of one group: their lines are to be of the same.

    That is the numbers of images of each split and, where only one kind of perturbed training
    images was measured, which one.
    """
    measured: dict[str, Any] = {}
    for split, name in zip(SPLITS, ("images", "test images"), strict=True):
        sizes = sorted({row.images for row in rows if row.split == split})
        if sizes:
            measured[name] = tuple(size or "untold" for size in sizes)
    kinds = {row.input for row in records if row.split == "train"}.intersection(PERTURBED)
    if len(kinds) == 1:
        measured["perturbed"] = kinds.pop()
    return measured
