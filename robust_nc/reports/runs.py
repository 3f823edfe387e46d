"""Run folders in groups that differ in the seed alone, and the lines of their measurements."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_nc.build import step_sizes
from robust_nc.data.datasets import DATASETS
from robust_nc.data.inputs import INPUTS
from robust_nc.flags import SWEEP_FLAGS, TRAIN_FLAGS
from robust_nc.results.files import read_json, read_rows
from robust_nc.results.records import (
    ADAPTIVE,
    SPLITS,
    AutoAttackRecord,
    CentreRecord,
    EpochSummary,
    LayerRecord,
    Record,
    at_epsilon,
)
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import (
    Means,
    keys_that,
    with_former_values,
)
from robust_nc.training.modes import MODES, mode_name
from utils import InputError

# What args.json tells without a say in the numbers; all else must be equal in runs of one group.
# (The flags of the subsets draw with the seed: --limit-train counts, the images drawn do not.)
FREE = {flag.key for flag in TRAIN_FLAGS if not flag.means & (Means.NAME | Means.TRAIN)}
FREE |= {"git_commit", "git_dirty", "torch", "ran_on"}
# What else sets runs apart: what images are normalised with, what was measured, and on how many.
NO_FLAGS = (
    *("mean", "std", "perturbed", "images", "test images"),
    *("data-mean", "train-digest", "test-digest"),
)
LONGEST_DIFFERENCE = 100  # characters of a figure's name
# The images perturbed during training, and by PGD on the checkpoint: figures show one of the two.
PERTURBED = ("seen", "pgd")


class Setting(NamedTuple):
    """What names a run, but for its seed."""

    mode: str
    dataset: str
    model: str
    norm: str
    epsilon: float

    @property
    def place(self) -> str:
        return safe(f"{self.dataset}_{self.model}_{self.norm}_eps{self.epsilon}")

    @property
    def description(self) -> str:
        radius = radius_in_words(self.epsilon, self.dataset)
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {radius}"

    def file_name(self, figure: str = "") -> str:
        return "_".join(filter(None, (MODES[self.mode].short, figure, self.place)))


def unit_of(dataset: str) -> str:
    """The unit of --epsilon: "1/255", or "[0, 1]" where images are attacked in those units."""
    kind = DATASETS.get(dataset)
    return "[0, 1]" if kind and kind.epsilon_range == 1 else "1/255"


def radius_in_words(epsilon: float, dataset: str) -> str:
    return f"{epsilon:g}" + ("/255" if unit_of(dataset) == "1/255" else "")


@dataclass(frozen=True)
class Run:
    path: Path
    setting: Setting
    seed: int
    flags: dict[str, Any]  # what must be equal in runs of one group
    history: list[EpochSummary]
    # At every epsilon; of two rows of one line and epoch the last counts.
    records: list[Record]
    layers: list[LayerRecord]
    ncc: list[CentreRecord]
    autoattack: list[AutoAttackRecord]


# One line of a figure: for each seed the rows by epoch, by layer, or by epsilon.
Line = list[dict[Any, Any]]


class LineName(NamedTuple):
    """Which images a line is of; `images` is how many, 0 where an older version did not tell."""

    split: str
    input: str
    images: int


class View(NamedTuple):
    """What of a group its figures show: --split, and which perturbed training images."""

    split: str = "train"
    perturbed: str = "seen"

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.split == "both" else (self.split,)


class Group:
    """Runs that differ in the seed alone, and the lines of their measurements.

    `differs` holds the flags that set them apart from the other groups of their setting.
    """

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.setting = runs[0].setting
        self.flags = {name: value for run in runs for name, value in run.flags.items()}
        self.differs: dict[str, str] = {}
        lines = collect(
            (self.at_own_epsilon(run.records) for run in runs),
            lambda row: LineName(row.split, row.input, row.images),
        )
        self.lines: dict[LineName, Line] = {n: line for n, line in lines.items() if common(line)}

    @property
    def seeds(self) -> str:
        return seeds_in_words(run.seed for run in self.runs)

    def measured(self, rows: Callable[[Run], Any]) -> "Group":
        """Of the runs for which `rows` is not empty; of all of them if it is for all, or none."""
        runs = [run for run in self.runs if rows(run)]
        if len(runs) in (0, len(self.runs)):
            return self
        part = Group(runs)
        part.differs = self.differs
        return part

    def at_own_epsilon(self, rows: list) -> list:
        return at_epsilon(rows, self.setting.epsilon)

    def shown(self, view: View) -> dict[LineName, Line]:
        """The lines of all seeds that the figures show, training images first.

        Of the images perturbed in training and those of PGD, these are the ones that the view
        names; the others stand in where they were not measured.
        """
        found: dict[LineName, Line] = {}
        for split in view.splits:
            kinds = {name.input for name in self.lines if name.split == split}
            hidden = {kind for kind in kinds if INPUTS[kind].stands_in_for in kinds}
            if kinds.issuperset(PERTURBED):
                hidden |= {*PERTURBED} - {view.perturbed}
            names = [n for n in self.lines if n.split == split and n.input in kinds - hidden]
            found |= {name: self.lines[name] for name in names}
        return found

    def file_name(self, figure: str = "") -> str:
        differs = "_".join(safe(name + value) for name, value in self.differs.items())
        if len(differs) > LONGEST_DIFFERENCE:  # file systems take 255 bytes
            told, rest = differs[:LONGEST_DIFFERENCE], differs.encode()
            differs = f"{told}_{hashlib.sha256(rest).hexdigest()[:8]}"
        return "_".join(filter(None, (self.setting.file_name(figure), differs)))

    def title(self, figure: str = "") -> str:
        mode, description = MODES[self.setting.mode].label, self.setting.description
        parts = (mode, figure, description, in_words(self.differs), self.seeds)
        return ", ".join(filter(None, parts))


def read_run(path: Path) -> Run:
    """All that a run folder holds to draw.

    Raises:
        InputError: no such folder, no metrics.csv, a damaged file, or an unknown setting.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    folder = RunFolder(path, standard=False)
    records = folder.rows(Record)
    if not records and not folder.table(Record).is_file():
        raise InputError(f"{path}: no results/metrics.csv: not a run folder, or not measured yet")
    # What train.py measured comes before a later sweep.
    records.sort(key=lambda row: row.source == "train")
    setting, seed, flags = read_setting(path)
    layers, ncc = folder.rows(LayerRecord), folder.rows(CentreRecord)
    return Run(
        path,
        setting,
        seed,
        flags | read_measured(records, [*records, *layers, *ncc]),
        history=sorted(read_rows(path / "history.csv", EpochSummary), key=lambda row: row.epoch),
        records=records,
        layers=layers,
        ncc=ncc,
        autoattack=folder.rows(AutoAttackRecord),
    )


def read_measured(records: list[Record], rows: list) -> dict[str, Any]:
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


def read_setting(path: Path) -> tuple[Setting, int, dict[str, Any]]:
    """Setting, seed and flags as args.json tells them, or else what the folder's path does."""
    told = read_json(path / "args.json")
    try:
        if told is not None:
            place = [told[name] for name in ("dataset", "model", "norm", "epsilon")]
            place[0] = told.get("data_name") or place[0]
            mode = mode_name(told["train_mode"], told.get("trades_bn", "frozen"))
            seed = told["seed"]
        else:
            *place, mode, seed = path.resolve().parts[-6:]
            place[3], seed = place[3].removeprefix("eps"), seed.removeprefix("seed")
        if mode not in MODES:
            raise ValueError(mode)
        dataset, model, norm, epsilon = place
        setting = Setting(mode, dataset, model, norm, float(epsilon))
        swept = read_json(path / "results" / "eval_args.json") or {}
        told = with_former_values(told or {}, TRAIN_FLAGS)
        unread = {flag.key for flag in TRAIN_FLAGS if not flag.is_read(told)}
        flags = read_flags(told, with_former_values(swept, SWEEP_FLAGS))
        return setting, int(seed), {k: v for k, v in flags.items() if k not in unread}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        source = path / "args.json" if told is not None else f"{path}: its path"
        raise InputError(
            f"{source} does not tell dataset, model, norm, epsilon, training mode and seed"
        ) from error


def read_flags(told: dict[str, Any], swept: dict[str, Any]) -> dict[str, Any]:
    """What of args.json and eval_args.json must be equal in runs of one group, lists as tuples."""
    flags = {name: value for name, value in told.items() if name not in FREE}
    measuring = keys_that(SWEEP_FLAGS, Means.MEASURE) - {
        "pgd_alpha"
    }  # of which there is one for each radius
    flags |= {f"{name} of the sweep": swept[name] for name in measuring if name in swept}
    for radius, size in step_sizes(swept).items():
        flags[f"pgd_alpha at epsilon {radius}"] = size
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if not isinstance(value, dict)
    }


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups in the order in which their first run was given; a folder given twice counts once.

    A run joins the first group all of whose runs it agrees with, in what both of them tell.
    """
    grouped: list[list[Run]] = []
    for run in {run.path.resolve(): run for run in runs}.values():
        alike = next((runs for runs in grouped if all(agree(run, one) for one in runs)), None)
        if alike is None:
            grouped.append([run])
            continue
        for twin in alike:
            if twin.seed == run.seed:
                raise InputError(
                    f"{run.path}: of the same setting and seed as {twin.path}: give one"
                )
        alike.append(run)
    groups = [Group(sorted(group, key=lambda run: run.seed)) for group in grouped]
    for rivals in by_setting(groups):
        for group, differs in zip(rivals, differences([g.flags for g in rivals]), strict=True):
            group.differs = differs
    return groups


def agree(run: Run, other: Run) -> bool:
    told_by_both = run.flags.keys() & other.flags.keys()
    return run.setting == other.setting and all(
        run.flags[name] == other.flags[name] for name in told_by_both
    )


def by_setting(groups: list[Group]) -> list[list[Group]]:
    alike = defaultdict(list)
    for group in groups:
        alike[group.setting].append(group)
    return list(alike.values())


def differences(told: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For each of the `told` its flags that not all have the same value of, and this in words."""
    differs: list[dict[str, str]] = [{} for _ in told]
    for name in dict.fromkeys(name for flags in told for name in flags):
        values = {flags[name] for flags in told if name in flags}
        if len(values) < 2:
            continue
        # As many digits as tell the values apart.
        digits = next((d for d in (6, 12) if len({word(v, d) for v in values}) == len(values)), 17)
        for flags, own in zip(told, differs, strict=True):
            if name in flags:
                own[name.replace("_", "-")] = word(flags[name], digits)
    return differs


def word(value: Any, digits: int) -> str:
    if isinstance(value, tuple):
        return "-".join(word(item, digits) for item in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "none" if value is None else str(value)


def in_words(differs: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in differs.items())


def seeds_in_words(seeds: Iterable[int]) -> str:
    told = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' * (len(told) > 1)} {', '.join(told)}"


def safe(name: str) -> str:
    """A name without slashes, spaces and other signs that a file's name is better without."""
    return re.sub(r"[^\w.+-]+", "-", name)


def collect(tables: Iterable[list], line: Callable, key: Callable = lambda row: row.epoch) -> dict:
    """`line` of a row -> Line, from each run's table.

    Clean first, then as INPUTS orders; of one kind of input the line of most images first.
    """
    tables, order = list(tables), [*INPUTS, ADAPTIVE]
    lines: dict[Any, tuple[tuple[int, int], Line]] = {}
    for number, table in enumerate(tables):
        for row in table:
            kind = getattr(row, "input", "clean")  # rows of AutoAttack have no other
            if kind in order:
                place = order.index(kind), -row.images
                series = lines.setdefault(line(row), (place, [{} for _ in tables]))
                series[1][number][key(row)] = row
    return {name: lines[name][1] for name in sorted(lines, key=lambda name: lines[name][0])}


def common(line: Line) -> list[int]:
    """Epochs, or layers, that every run has, ascending."""
    return sorted(set.intersection(*map(set, line)))


def average(line: Line, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Common epochs, and a field's mean and unbiased deviation (NaN with one run) over the runs."""
    x = common(line)
    values = np.array([[getattr(rows[key], field) for key in x] for rows in line], dtype=float)
    std = values.std(axis=0, ddof=1) if len(line) > 1 else np.full(len(x), np.nan)
    return np.array(x), values.mean(axis=0), std
