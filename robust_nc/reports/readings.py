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
ST_FROZEN, AT_FROZEN = "std_train_frozen", "pgd_train_frozen"
FITTED = 0.999  # training accuracy from which on a network is in the terminal phase


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


def centre_robustness(mode: str, share: float = 1.0) -> Reading:
    """Test accuracy of the nearest-centre classifier under the attack on it.

    share: of the run's own radius, at which it is attacked.
    """

    def rows(run: Run) -> list:
        row = run.centre_row(ADAPTIVE, share * run.setting.epsilon)
        return [row] if row else []

    return Reading(mode, rows, "ncc_accuracy")


def early_centres(mode: str, input: str) -> Reading:
    """Mean test accuracy of the nearest clean class mean in those early blocks that were attacked.

    Early are the first half of the blocks; input: a key of CENTRE_LABELS.
    """

    def rows(run: Run) -> list:
        blocks = [row.layer for row in run.blocks("clean", "test")]
        early = blocks[: len(blocks) // 2]
        attacked = [layer for layer in early if run.centre_row(ADAPTIVE, layer=layer)]
        found = [run.centre_row(input, layer=layer) for layer in attacked]
        return [row for row in found if row]

    return Reading(mode, rows, "ncc_accuracy")


def robustness(mode: str, share: float = 1.0) -> Reading:
    """Test accuracy under PGD of a share of the run's own radius."""

    def rows(run: Run) -> list:
        radius = share * run.setting.epsilon
        return [row for own, row in run.by_radius("test").items() if math.isclose(own, radius)]

    return Reading(mode, rows, "accuracy")


def number_of_classes(run: Run) -> float:
    """As the last row of clean images tells: NC1 as Papyan et al. report it is divided by it."""
    whole, divided = run.last("clean", "nc1"), run.last("clean", "nc1_papyan")
    return round(whole / divided) if divided > 0 else math.nan


def margin(mode: str, share: float) -> Value:
    """Robustness less the larger of ST's and of chance."""

    def value(study: Study) -> float:
        chance = 1 / number_of_classes(study[mode])
        return robustness(mode, share)(study) - max(robustness(ST, share)(study), chance)

    return value


def fitted_epochs(run: Run) -> list[int]:
    """The measured epochs at which the clean training images are fitted, ascending."""
    return [e for e, a in run.series("clean", "accuracy").items() if a >= FITTED]


def epochs_after_fit(mode: str) -> Value:
    """How many epochs were measured after the first that fits; NaN where none does."""

    def value(study: Study) -> float:
        fitted = fitted_epochs(study[mode])
        later = [e for e in study[mode].series("clean", "accuracy") if fitted and e > fitted[0]]
        return len(later) if fitted else math.nan

    return value


def terminal_phase(mode: str, metric: str) -> Value:
    """A clean metric after the last epoch over that of the first with the training images fitted.

    Infinite where no epoch fits them, or the last one is the first of those that were measured.
    """
    end = last(mode, "clean", metric)

    def value(study: Study) -> float:
        fitted = fitted_epochs(study[mode])
        if not fitted or fitted[0] >= study[mode].last_epoch:
            return math.nan if math.isnan(end(study)) else math.inf
        start = Reading(mode, lambda run: run.of_epoch(fitted[0], "clean"), metric)
        return ratio(end, start)(study)

    return value


def equal_epochs(study: Study, mode: str, other: str, input: str) -> dict[str, int]:
    """Mode -> the epoch at which two runs have the same loss on a kind of training input, or most
    nearly so: the last one of the run that ends with the higher loss, the nearest of the other.

    {} where it was not measured.
    """
    losses = {one: study[one].series(input, "loss") for one in (mode, other)}
    ends = {one: study[one].last(input, "loss") for one in (mode, other)}
    if any(map(math.isnan, ends.values())):
        return {}
    level = max(ends.values())
    return {
        one: study[one].last_epoch
        if ends[one] == level
        else min(losses[one], key=lambda epoch: abs(losses[one][epoch] - level))
        for one in (mode, other)
    }


def gap_of_losses(mode: str, other: str, input: str) -> Value:
    """How far the losses at `equal_epochs` are apart, as a share of the larger one."""

    def value(study: Study) -> float:
        epochs = equal_epochs(study, mode, other, input)
        losses = [study[one].series(input, "loss")[epoch] for one, epoch in epochs.items()]
        return (max(losses) - min(losses)) / max(losses) if losses else math.nan

    return value


def loss_over_chance(mode: str, other: str) -> Value:
    """The larger of two runs' last losses on clean training images, over that of chance."""

    def value(study: Study) -> float:
        ends = [study[one].last("clean", "loss") for one in (mode, other)]
        return max(ends) / math.log(number_of_classes(study[mode]))

    return value


def nc1_at_equal_loss(mode: str, other: str, input: str) -> Value:
    """Clean NC1 over that of the other mode, at the epochs of equal loss on a kind of input."""

    def at(one: str, epoch: int) -> Reading:
        return Reading(one, lambda run: run.of_epoch(epoch, "clean"), "nc1")

    def value(study: Study) -> float:
        epochs = equal_epochs(study, mode, other, input)
        if not epochs:
            return math.nan
        return ratio(at(mode, epochs[mode]), at(other, epochs[other]))(study)

    return value
