"""What the criteria of the claims are made of: numbers of the runs of one setting and seed.

Metrics are of training images where no split is named.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.bounds import FITTED, LAST_EPOCHS, keeps
from robust_nc.reports.runs import Run
from robust_nc.results.records import ADAPTIVE, measured_alike
from robust_nc.training.modes import MODES

ST, AT = "std_train", "pgd_train"
FROZEN, BATCH = "pgd_train_TRADES", "pgd_train_TRADES_batch"
MART = "pgd_train_MART"
ST_FROZEN, AT_FROZEN = "std_train_frozen", "pgd_train_frozen"


class NotRun(Exception):
    """A study has no run of a training mode that a criterion is about."""


class Study(dict[str, Run]):
    """The runs of one setting and seed, by mode.

    Raises:
        NotRun: no run of that mode was given. KeyError: there is no such mode.
    """

    def __missing__(self, mode: str) -> Run:
        raise NotRun(MODES[mode].label)


@dataclass(frozen=True)
class Reading:
    """A metric of some rows of the run of a mode: their mean, NaN of no rows."""

    mode: str
    rows: Callable[[Run], list]
    metric: str

    @property
    def modes(self) -> tuple[str, ...]:
        return (self.mode,)

    def mean(self, run: Run) -> float:
        values = [getattr(row, self.metric) for row in self.rows(run)]
        return float(np.mean(values)) if values else math.nan

    def __call__(self, study: Study) -> float:
        return self.mean(study[self.mode])


@dataclass(frozen=True)
class Formula:
    """A number of the runs of these modes, which `compute` takes in that order."""

    modes: tuple[str, ...]
    compute: Callable[..., float]

    def __call__(self, study: Study) -> float:
        return self.compute(*(study[mode] for mode in self.modes))


Value = Reading | Formula


def last(mode: str, input: str, metric: str, split: str = "train") -> Reading:
    """A metric after the last epoch, of the run of a mode on a kind of input."""
    return Reading(mode, lambda run: run.of_epoch(run.last_epoch, input, split, metric), metric)


def after(epoch: int, mode: str, input: str, metric: str) -> Reading:
    """A metric after an epoch."""
    return Reading(mode, lambda run: run.of_epoch(epoch, input), metric)


def ratio(one: Reading, other: Reading) -> Formula:
    """One number over another that was measured alike; NaN where that is not above zero."""

    def compute(run: Run, rival: Run) -> float:
        above, below = one.mean(run), other.mean(rival)
        alike = measured_alike([*one.rows(run), *other.rows(rival)])
        return above / below if below > 0 and alike else math.nan

    return Formula((one.mode, other.mode), compute)


def less(one: Reading, other: Reading) -> Formula:
    """One number less another that was measured alike."""

    def compute(run: Run, rival: Run) -> float:
        alike = measured_alike([*one.rows(run), *other.rows(rival)])
        return one.mean(run) - other.mean(rival) if alike else math.nan

    return Formula((one.mode, other.mode), compute)


def fall(mode: str, input: str, metric: str) -> Formula:
    """How many times lower a metric is after the last epoch than after the first."""
    return ratio(after(0, mode, input, metric), last(mode, input, metric))


def early_blocks(mode: str, input: str, metric: str, split: str = "train") -> Reading:
    """Mean of a metric over the first half of the blocks."""

    def rows(run: Run) -> list:
        blocks = run.blocks(input, split)
        return blocks[: len(blocks) // 2]

    return Reading(mode, rows, metric)


def last_block(mode: str, input: str, metric: str, split: str = "train") -> Reading:
    """A metric of the last block."""
    return Reading(mode, lambda run: run.blocks(input, split)[-1:], metric)


def early_advantage(mode: str, split: str) -> Formula:
    """Under PGD, the share nearest to their own centre in early blocks, less the last one's."""
    return less(
        early_blocks(mode, "pgd", "centre_accuracy", split),
        last_block(mode, "pgd", "centre_accuracy", split),
    )


def leapt_to_target(mode: str) -> Formula:
    """The share of targeted training images nearest to the clean class mean of their target, less
    the share nearest to that of their own class; of leaps.csv, else of the last block.
    """
    by_block = less(
        last_block(mode, "targeted", "target_centre_accuracy"),
        last_block(mode, "targeted", "centre_accuracy"),
    )

    def compute(run: Run) -> float:
        key = (run.last_epoch, "train", "targeted")
        rows = [
            row for row in run.at_own_epsilon(run.leaps) if (row.epoch, row.split, row.input) == key
        ]
        if not rows:
            return by_block.compute(run, run)
        classes = 1 + max(row.true_class for row in rows)
        true, nearest, counts = (
            torch.tensor([getattr(row, field) for row in rows])
            for field in ("true_class", "nearest_class", "count")
        )
        at_target = counts[nearest == INPUTS["targeted"].labels(true, classes)].sum()
        return int(at_target - counts[nearest == true].sum()) / int(counts.sum())

    return Formula((mode,), compute)


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
        rows = [run.centre_row(input, layer=layer) for layer in attacked]
        return [row for row in rows if row]

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


def margin(mode: str, share: float) -> Formula:
    """Robustness less the larger of ST's and of chance."""
    own, of_standard = robustness(mode, share), robustness(ST, share)

    def compute(run: Run, standard: Run) -> float:
        return own.mean(run) - max(of_standard.mean(standard), 1 / number_of_classes(run))

    return Formula((mode, ST), compute)


def fitted_epochs(run: Run) -> list[int]:
    """The measured epochs at which the clean training images are fitted, ascending."""
    return [e for e, a in run.series("clean", "accuracy").items() if a >= FITTED]


def late_accuracy(mode: str) -> Formula:
    """The best accuracy on clean training images of the last LAST_EPOCHS epochs, NaN of none.

    The last one alone is the matter of an image or two.
    """

    def compute(run: Run) -> float:
        series = run.series("clean", "accuracy")
        late = [a for epoch, a in series.items() if epoch > run.last_epoch - LAST_EPOCHS]
        return max(late, default=math.nan)

    return Formula((mode,), compute)


def gap_before_fit(mode: str) -> Formula:
    """Epochs between the measurement before the first that fits and it, over the epochs after it.

    The network has fitted its images somewhere between the two. NaN where no epoch fits.
    """

    def compute(run: Run) -> float:
        fitted = fitted_epochs(run)
        if not fitted:
            return math.nan
        before = [epoch for epoch in run.series("clean", "accuracy") if epoch < fitted[0]]
        gap, after = fitted[0] - max(before, default=-1), run.last_epoch - fitted[0]
        return gap / after if after else math.inf

    return Formula((mode,), compute)


def late_accuracy_or_one(mode: str, bound: str) -> Formula:
    """`late_accuracy`, or 1 where NC1 of clean images has fallen beyond a bound already.

    That decides, for NC1 falls on until the images are fitted.
    """
    accuracy, nc1 = late_accuracy(mode), fall(mode, "clean", "nc1")

    def compute(run: Run) -> float:
        fallen = nc1.compute(run, run)
        decided = not math.isnan(fallen) and not keeps(bound, fallen)
        return 1.0 if decided else accuracy.compute(run)

    return Formula((mode,), compute)


def terminal_phase(mode: str, metric: str) -> Formula:
    """A clean metric after the last epoch over that of the first with the training images fitted.

    Infinite where no epoch fits them, or the last one is the first of those that were measured.
    """
    end = last(mode, "clean", metric)

    def compute(run: Run) -> float:
        fitted = fitted_epochs(run)
        if not fitted or fitted[0] >= run.last_epoch:
            return math.nan if math.isnan(end.mean(run)) else math.inf
        return ratio(end, after(fitted[0], mode, "clean", metric)).compute(run, run)

    return Formula((mode,), compute)


def equal_epochs(run: Run, rival: Run, input: str) -> list[int]:
    """The epochs at which two runs have the same loss on a kind of training input, or most nearly
    so: the last one of the run that ends with the higher loss, the nearest of the other.

    [] where it was not measured.
    """
    ends = [one.last(input, "loss") for one in (run, rival)]
    if any(map(math.isnan, ends)):
        return []
    epochs = []
    for one, end in zip((run, rival), ends, strict=True):
        gaps = {epoch: abs(loss - max(ends)) for epoch, loss in one.series(input, "loss").items()}
        epochs.append(one.last_epoch if end == max(ends) else min(gaps, key=gaps.__getitem__))
    return epochs


def gap_of_losses(mode: str, other: str, input: str) -> Formula:
    """How far the losses at `equal_epochs` are apart, as a share of the larger one."""

    def compute(run: Run, rival: Run) -> float:
        epochs = equal_epochs(run, rival, input)
        losses = [
            one.series(input, "loss")[e] for one, e in zip((run, rival), epochs, strict=False)
        ]
        return (max(losses) - min(losses)) / max(losses) if losses else math.nan

    return Formula((mode, other), compute)


def loss_over_chance(mode: str, other: str) -> Formula:
    """The larger of two runs' last losses on clean training images, over that of chance."""

    def compute(run: Run, rival: Run) -> float:
        ends = [one.last("clean", "loss") for one in (run, rival)]
        return max(ends) / math.log(number_of_classes(run))

    return Formula((mode, other), compute)


def nc1_at_equal_loss(mode: str, other: str, input: str) -> Formula:
    """Clean NC1 over that of the other mode, at the epochs of equal loss on a kind of input."""

    def compute(run: Run, rival: Run) -> float:
        epochs = equal_epochs(run, rival, input)
        if not epochs:
            return math.nan
        one, another = (
            after(epoch, name, "clean", "nc1")
            for epoch, name in zip(epochs, (mode, other), strict=True)
        )
        return ratio(one, another).compute(run, rival)

    return Formula((mode, other), compute)
