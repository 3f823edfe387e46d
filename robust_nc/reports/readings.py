"""What the criteria of the claims are made of: numbers of the runs of one setting and seed.

Metrics are of training images where no split is named.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robust_nc.reports.runs import Run
from robust_nc.results.records import ADAPTIVE, measured_alike
from robust_nc.training.modes import MODES

ST, AT = "std_train", "pgd_train"
FROZEN, BATCH = "pgd_train_TRADES", "pgd_train_TRADES_batch"
MART = "pgd_train_MART"


class NotRun(Exception):
    """A study has no run of a training mode that a criterion is about."""


class Study(dict[str, Run]):
    """The runs of one setting and seed, by mode; `asked` are the modes that were looked up.

    Raises:
        NotRun: no run of that mode was given. KeyError: there is no such mode.
    """

    def __init__(self, runs: dict[str, Run]):
        super().__init__(runs)
        self.asked: set[str] = set()

    def __getitem__(self, mode: str) -> Run:
        self.asked.add(mode)
        return super().__getitem__(mode)

    def __missing__(self, mode: str) -> Run:
        raise NotRun(MODES[mode].label)


Value = Callable[[Study], float]


@dataclass(frozen=True)
class Reading:
    """A metric of some rows of the run of a mode; of a study it is their mean, NaN of no rows."""

    mode: str
    rows: Callable[[Run], list]
    metric: str

    def of(self, study: Study) -> list:
        return self.rows(study[self.mode])

    def __call__(self, study: Study) -> float:
        values = [getattr(row, self.metric) for row in self.of(study)]
        return float(np.mean(values)) if values else math.nan


def alike(study: Study, one: Reading, other: Reading) -> bool:
    """Whether two numbers are of as many images, and of one precision."""
    return measured_alike(row for reading in (one, other) for row in reading.of(study))


def last(mode: str, input: str, metric: str, split: str = "train") -> Reading:
    """A metric after the last epoch, of the run of a mode on a kind of input."""
    return Reading(mode, lambda run: run.of_epoch(run.last_epoch, input, split), metric)


def first(mode: str, input: str, metric: str) -> Reading:
    """A metric after the first epoch."""
    return Reading(mode, lambda run: run.of_epoch(0, input), metric)


def ratio(one: Reading, other: Reading) -> Value:
    """One number over another that was measured alike; NaN where that is not above zero."""

    def value(study: Study) -> float:
        above, below = one(study), other(study)
        return above / below if below > 0 and alike(study, one, other) else math.nan

    return value


def difference(one: Reading, other: Reading) -> Value:
    """One number less another that was measured alike."""

    def value(study: Study) -> float:
        above, below = one(study), other(study)
        return above - below if alike(study, one, other) else math.nan

    return value


def fall(mode: str, input: str, metric: str) -> Value:
    """How many times lower a metric is after the last epoch than after the first."""
    return ratio(first(mode, input, metric), last(mode, input, metric))


def early_blocks(mode: str, input: str, metric: str, split: str = "train") -> Reading:
    """Mean of a metric over the first half of the blocks."""

    def rows(run: Run) -> list:
        blocks = run.blocks(input, split)
        return blocks[: len(blocks) // 2]

    return Reading(mode, rows, metric)


def last_block(mode: str, input: str, metric: str, split: str = "train") -> Reading:
    """A metric of the last block."""
    return Reading(mode, lambda run: run.blocks(input, split)[-1:], metric)


def early_advantage(mode: str, split: str) -> Value:
    """Under PGD, the share nearest to their own centre in early blocks, less the last one's."""
    return difference(
        early_blocks(mode, "pgd", "centre_accuracy", split),
        last_block(mode, "pgd", "centre_accuracy", split),
    )


def centre_robustness(mode: str) -> Reading:
    """Test accuracy of the nearest-centre classifier under the attack on it."""

    def rows(run: Run) -> list:
        row = run.centre_row(ADAPTIVE)
        return [row] if row else []

    return Reading(mode, rows, "ncc_accuracy")


def robustness(mode: str) -> Reading:
    return last(mode, "pgd", "accuracy", "test")


def nc1_at_equal(metric: str, within: float, mode: str) -> Value:
    """NC1 over that of AT at the epoch where AT's metric of clean images is nearest.

    Of epochs that are equally near the first; NaN where none comes within `within`, or the numbers
    were not measured alike.
    """
    reached_by = last(mode, "clean", "nc1")

    def value(study: Study) -> float:
        run, at = study[mode], study[AT]
        reached, values = run.last("clean", metric), at.series("clean", metric)
        near = min(values, key=lambda epoch: abs(values[epoch] - reached), default=None)
        if near is None or not abs(values[near] - reached) <= within:
            return math.nan
        of_at = Reading(AT, lambda run: run.of_epoch(near, "clean"), "nc1")
        return ratio(reached_by, of_at)(study)

    return value
