"""How inputs were perturbed when a row was measured, and which rows series and figures show."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

# What an args.json or eval_args.json of before there was the flag leaves unsaid.
FORMER = {"attack_iters": 10, "restarts": 1, "noise_level": 8.0}


@dataclass(frozen=True)
class Conditions:
    """The attack, noise and precision of a training or a sweep; NaN, 0 or "" where not told.

    epsilon, step_size: of the run's own radius, in the units of --epsilon; the step size of another
        radius is that of `step_sizes`, by f"{radius:g}", or, where there are none, in proportion.
    steps, restarts: of PGD. noise: --noise-level, in 1/255. trades_step: of the images that TRADES
        trains on, where its own attack does not step by --pgd-alpha.
    """

    epsilon: float = math.nan
    step_size: float = math.nan
    step_sizes: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    restarts: int = 0
    noise: float = math.nan
    precision: str = ""
    trades_step: float = math.nan

    def step_at(self, radius: float) -> float:
        """The step size of an attack at that radius."""
        if self.step_sizes:
            return self.step_sizes.get(f"{radius:g}", math.nan)
        if radius == self.epsilon or not self.epsilon:
            return self.step_size
        return radius * self.step_size / self.epsilon

    def of_row(self, row: Any) -> dict[str, Any]:
        """Field -> value, of what a row of these conditions tells of them."""
        told: dict[str, Any] = {"precision": self.precision}
        if row.attacked:
            step_size = self.step_at(row.epsilon)
            if getattr(row, "input", "") == "seen" and not math.isnan(self.trades_step):
                step_size = self.trades_step
            told |= {"step_size": step_size, "steps": self.steps, "restarts": self.restarts}
        if row.noisy:
            told["noise"] = self.noise
        names = {field.name for field in fields(row)}
        return {name: value for name, value in told.items() if name in names}

    def made(self, row: Any) -> bool:
        """Whether a row may be of this attack and noise, at any radius; precision is left open."""
        told = {name: value for name, value in self.of_row(row).items() if name != "precision"}
        return all(_agree(getattr(row, name), value) for name, value in told.items())


def _agree(value: float, other: float) -> bool:
    untold = any(not number or math.isnan(number) for number in (value, other))
    return untold or math.isclose(value, other, rel_tol=1e-6)


def conditions_of(arguments: dict[str, Any]) -> Conditions:
    """The conditions that an args.json or eval_args.json tells, also those of older versions."""
    if not arguments:
        return Conditions()
    arguments = FORMER | arguments
    epsilon = float(arguments.get("epsilon", math.nan))
    step_size, steps = arguments.get("pgd_alpha", math.nan), arguments["attack_iters"]
    of_trades = (arguments.get("train_mode"), arguments.get("norm")) == ("pgd_train_TRADES", "l_2")
    return Conditions(
        epsilon=epsilon,
        step_size=step_size,
        step_sizes=arguments.get("step_sizes") or {},
        steps=steps,
        restarts=arguments["restarts"],
        noise=arguments["noise_level"],
        precision=arguments.get("precision") or "",
        trades_step=2 * epsilon / steps if of_trades else math.nan,
    )


def shown_rows(rows: Iterable, own: Conditions, last: Conditions) -> list:
    """The rows that series and figures show: of each kind of input and radius those of one attack.

    That is the run's own, at other radii with a step in proportion; or, where nothing was measured
    with it, that of the last sweep. The tables hold the others beside them.
    """
    by_place: dict[tuple, dict[tuple, list]] = {}
    for row in rows:
        place = row.swept, getattr(row, "input", ""), f"{row.epsilon:g}"
        by_place.setdefault(place, {}).setdefault(row.perturbed_by, []).append(row)
    shown = []
    for by_attack in by_place.values():
        attacks = list(by_attack)
        for conditions in (last, own):  # the ones that `own` made come first, then those of `last`
            attacks.sort(key=lambda attack: not conditions.made(by_attack[attack][0]))
        shown += by_attack[attacks[0]]
    return sorted(shown, key=lambda row: row.key)
