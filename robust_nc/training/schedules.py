"""Learning rates: a function of the fractional epoch each, and a row for it in SCHEDULES.

The first six are those of the published code (Su et al. 2024), which has them, names and defaults
included, from the code of Rice, Wong and Kolter, "Overfitting in adversarially robust deep
learning" (ICML 2020):

piecewise       divided by 10, then by 100: the paper's, of 400 epochs at 100 and 150
superconverge   up in a straight line, then down to 0: Smith and Topin, "Super-convergence" (2019)
linear          flat, then down by 10 and by 10 again in straight lines
onedrop         one drop, at an epoch and to a rate of one's choice
multipledecay   a tenth of the highest rate less after every tenth of the epochs
cosine          half a cosine down to 0: Loshchilov and Hutter, "SGDR" (ICLR 2017), no restarts
constant        one rate
milestones      multiplied by a factor at each of some milestones
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rates:
    """What a schedule is made of.

    drop_epoch, drop_lr: those of `onedrop`.
    milestones, gamma: those of `milestones`: epochs, or where they are below 1 shares of all of
        them, and the factor.
    """

    epochs: int
    lr_max: float
    drop_epoch: int = 100
    drop_lr: float = 0.01
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1


def _piecewise(t: float, rates: Rates) -> float:
    if t < 0.25 * rates.epochs:
        return rates.lr_max
    return rates.lr_max / (10 if t < 0.375 * rates.epochs else 100)


def _superconverge(t: float, rates: Rates) -> float:
    knots = [0, 2 * rates.epochs // 5, rates.epochs]
    return float(np.interp(t, knots, [0, rates.lr_max, 0]))


def _linear(t: float, rates: Rates) -> float:
    knots = [0, rates.epochs // 3, 2 * rates.epochs // 3, rates.epochs]
    heights = [rates.lr_max, rates.lr_max, rates.lr_max / 10, rates.lr_max / 100]
    return float(np.interp(t, knots, heights))


def _onedrop(t: float, rates: Rates) -> float:
    return rates.lr_max if t < rates.drop_epoch else rates.drop_lr


def _multipledecay(t: float, rates: Rates) -> float:
    # Never negative, which it would be late in a run whose epochs are no multiple of ten.
    return max(0.0, rates.lr_max - t // (rates.epochs // 10) * rates.lr_max / 10)


def _cosine(t: float, rates: Rates) -> float:
    return rates.lr_max / 2 * (1 + math.cos(math.pi * t / rates.epochs))


def _constant(t: float, rates: Rates) -> float:
    return rates.lr_max


def _milestones(t: float, rates: Rates) -> float:
    epochs = (m if m >= 1 else m * rates.epochs for m in rates.milestones)
    return rates.lr_max * rates.gamma ** sum(t >= epoch for epoch in epochs)


# Name -> learning rate at the fractional epoch t in (0, epochs].
SCHEDULES: dict[str, Callable[[float, Rates], float]] = {
    "piecewise": _piecewise,
    "superconverge": _superconverge,
    "linear": _linear,
    "onedrop": _onedrop,
    "multipledecay": _multipledecay,
    "cosine": _cosine,
    "constant": _constant,
    "milestones": _milestones,
}


def schedules_without_an_end() -> list[str]:
    """Those whose rates do not depend on the number of epochs: such runs can be made longer."""
    short, long = (Rates(epochs, 1.0, milestones=(5,)) for epochs in (20, 40))
    return [
        name
        for name, rate in SCHEDULES.items()
        if all(rate(epoch, short) == rate(epoch, long) for epoch in range(1, 21))
    ]


def learning_rate(schedule: str, t: float, **rates: Any) -> float:
    """Learning rate of a schedule of SCHEDULES at the fractional epoch t in (0, epochs].

    Args:
        rates: the fields of Rates: `epochs`, `lr_max`, perhaps those of the schedule.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](t, Rates(**rates))
