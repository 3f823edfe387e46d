"""Runs that differ in the seed alone, as groups, and the lines of their measurements."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.runs import OF_SWEEP, PERTURBED, Run
from robust_nc.reports.setting import safe, seeds_in_words
from robust_nc.results.records import ADAPTIVE
from robust_nc.results.rows import SPLITS
from robust_nc.training.modes import MODES
from utils import InputError

# What sets runs apart beside flags: the images' statistics, what was measured, and on how many.
NO_FLAGS = {
    "mean",
    "std",
    "perturbed",
    "images",
    "test images",
    "data-mean",
    "train-digest",
    "test-digest",
}
LONGEST_DIFFERENCE = 100  # characters of a figure's name

# One line of a figure: for each seed the rows by epoch, by layer, or by epsilon.
Line = list[dict[Any, Any]]


class LineName(NamedTuple):
    """What a line is of: which images, how many, and in which precision they were measured.

    images, precision: 0 and "" where an older version did not tell.
    """

    split: str
    input: str
    images: int
    precision: str = ""


class View(NamedTuple):
    """What of a group its figures show: --split, which perturbed training images, --panels.

    asked: the attack or noise, where flags ask for another than the run's own, in words.
    """

    split: str = "train"
    perturbed: str = "seen"
    asked: tuple[str, ...] = ()
    panels: str = "main"

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.split == "both" else (self.split,)

    def file_name(self, name: str) -> str:
        """The name of a figure that depends on --split."""
        return name if self.split == "train" else f"{name}_{self.split}"


class Group:
    """Runs that differ in the seed alone, and the lines of their measurements.

    `setting` has no limit_train, which is a flag as others are. `differs` holds the flags that set
    the runs apart from the other groups of their mode and setting.
    """

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.mode = runs[0].mode
        self.file = runs[0].file
        self.setting = runs[0].setting._replace(limit_train=None)
        self.flags = {name: value for run in runs for name, value in run.flags.items()}
        self.differs: dict[str, str] = {}
        lines = collect(
            (run.own_records for run in runs),
            lambda row: LineName(row.split, row.input, row.images, row.precision),
        )
        self.lines: dict[LineName, Line] = {n: line for n, line in lines.items() if common(line)}

    @property
    def label(self) -> str:
        """The way to train; of a file of --checkpoint, of which that is not known, its name."""
        return self.file or MODES[self.mode].label

    @property
    def seeds(self) -> str:
        """In words; "" of a file of --checkpoint, of which it is not known."""
        return "" if self.file else seeds_in_words(run.seed for run in self.runs)

    @property
    def adversary(self) -> bool:
        """Whether the runs are known to be trained on perturbed images."""
        return MODES[self.mode].adversary and not self.file

    def measured(self, rows: Callable[[Run], Any]) -> "Group":
        """Of the runs for which `rows` is not empty; of all of them if it is for all, or none."""
        runs = [run for run in self.runs if rows(run)]
        if len(runs) in (0, len(self.runs)):
            return self
        part = Group(runs)
        part.differs = self.differs
        return part

    def shown(self, view: View) -> dict[LineName, Line]:
        """The lines of all seeds that the figures show, training images first.

        Of the images perturbed in training and those of PGD, these are the ones that the view
        names; the others stand in where they were not measured.
        """
        shown: dict[LineName, Line] = {}
        for split in view.splits:
            kinds = {name.input for name in self.lines if name.split == split}
            hidden = {kind for kind in kinds if INPUTS[kind].stands_in_for in kinds}
            if kinds.issuperset(PERTURBED):
                hidden |= {*PERTURBED} - {view.perturbed}
            names = [n for n in self.lines if n.split == split and n.input in kinds - hidden]
            shown |= {name: self.lines[name] for name in names}
        return shown

    def usual_name(self, figure: str = "") -> str:
        """The name of a figure, which other groups of the mode and setting share."""
        short = "file" if self.file else MODES[self.mode].short
        return "_".join(filter(None, (short, figure, self.setting.file_name)))

    def file_name(self, figure: str = "") -> str:
        """The name of a figure of this group alone."""
        differs = "_".join(safe(name + value) for name, value in self.differs.items())
        differs = "_".join(filter(None, (safe(self.file), differs)))
        if len(differs) > LONGEST_DIFFERENCE:  # file systems take 255 bytes
            digest = hashlib.sha256(differs.encode()).hexdigest()
            differs = f"{differs[:LONGEST_DIFFERENCE]}_{digest[:8]}"
        return "_".join(filter(None, (self.usual_name(figure), differs)))

    def title(self, figure: str = "") -> str:
        parts = (self.label, figure, self.setting.title, in_words(self.differs), self.seeds)
        return ", ".join(filter(None, parts))


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups in the order in which their first run was given; a folder given twice counts once.

    Raises:
        InputError: two runs of one group have the same seed.
    """
    groups = join_groups(each_once(runs))
    for words in (words for group in groups for words in twins_in_words(group.runs)):
        raise InputError(f"{words}: give one")
    return groups


def join_groups(runs: list[Run]) -> list[Group]:
    """A run joins the first group all of whose runs it agrees with, in what both of them tell."""
    grouped: list[list[Run]] = []
    for run in runs:
        alike = next((runs for runs in grouped if all(agree(run, one) for one in runs)), None)
        if alike is None:
            grouped.append([run])
        else:
            alike.append(run)
    groups = [Group(sorted(group, key=lambda run: run.seed)) for group in grouped]
    for rivals in by_setting(groups):
        for group, differs in zip(rivals, differences([g.flags for g in rivals]), strict=True):
            group.differs = differs
    return groups


def each_once(runs: list[Run]) -> list[Run]:
    """The runs, without those of a folder that was given before."""
    return list({(run.place.resolve(), run.file): run for run in runs}.values())


def twins_in_words(runs: list[Run]) -> list[str]:
    """What is wrong with each two runs that differ in nothing, not even in the seed."""
    return [
        f"{run.place}: of the same setting and seed as {twin.place}"
        for twin, run in combinations(runs, 2)
        if run.seed == twin.seed and agree(run, twin)
    ]


def agree(run: Run, other: Run) -> bool:
    """Whether two runs are seeds of one another: alike in all that both of them tell."""
    known_of_both = run.flags.keys() & other.flags.keys()  # limit_train is one of them
    return (
        (run.mode, run.file) == (other.mode, other.file)
        and run.setting._replace(limit_train=None) == other.setting._replace(limit_train=None)
        and all(run.flags[name] == other.flags[name] for name in known_of_both)
    )


def by_setting(groups: list[Group]) -> list[list[Group]]:
    """The groups of each mode and setting."""
    alike = defaultdict(list)
    for group in groups:
        alike[group.mode, group.setting].append(group)
    return list(alike.values())


def differences(flags_of_each: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For each of the dicts of flags those that not all have the same value of, in words."""
    differs: list[dict[str, str]] = [{} for _ in flags_of_each]
    for name in dict.fromkeys(name for flags in flags_of_each for name in flags):
        values = {flags[name] for flags in flags_of_each if name in flags}
        if len(values) < 2:
            continue
        # As many digits as tell the values apart.
        digits = next((d for d in (6, 12) if len({word(v, d) for v in values}) == len(values)), 17)
        for flags, own in zip(flags_of_each, differs, strict=True):
            if name in flags:
                own[name.replace("_", "-")] = word(flags[name], digits)
    return [without_echoes(own) for own in differs]


def without_echoes(differs: dict[str, str]) -> dict[str, str]:
    """What sets runs apart, without what follows from the rest of it.

    A sweep has the flags of its run unless told otherwise, and images as many as they are limited.
    """
    limits = {"images": "limit-train", "test images": f"limit-test{OF_SWEEP}"}
    return {
        name: value
        for name, value in differs.items()
        if limits.get(name) not in differs
        and (not name.endswith(OF_SWEEP) or differs.get(name.removesuffix(OF_SWEEP)) != value)
    }


def word(value: Any, digits: int) -> str:
    """The value of a flag, a float with so many digits."""
    if isinstance(value, tuple):
        return "-".join(word(item, digits) for item in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "none" if value is None else str(value)


def in_words(differs: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in differs.items())


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
                _, rows_of_runs = lines.setdefault(line(row), (place, [{} for _ in tables]))
                rows_of_runs[number][key(row)] = row
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
