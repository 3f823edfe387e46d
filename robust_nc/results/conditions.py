"""How inputs were perturbed when a row was measured, and which rows series and figures show."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

# The values of rows and runs from before there was the flag, which its row takes from here.
FORMER: dict[str, Any] = {
    "attack_iters": 10,
    "restarts": 1,
    "noise_level": 8.0,
    "precision": "tf32",
}


@dataclass(frozen=True)
class Conditions:
    """The attack, noise and precision of a training or a sweep; NaN, 0 or "" where not told.

    epsilon, step_size: of the run's own radius, in the units of --epsilon; the step size of another
        radius is that of `step_sizes`, by f"{radius:g}", or, where there are none, in proportion.
        Where epsilon is 0 it is the same at every radius.
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

    def matches(self, row: Any) -> bool:
        """Whether a row of a sweep is of this precision, and attack, or noise, at any radius.

        Rows of a training always are. A step size, a level of noise or a precision that is not told
        may be any.
        """
        precisions = {row.precision, self.precision} - {""}
        if row.swept and len(precisions) > 1:
            return False
        if row.by_pgd:
            budget = (row.steps, row.restarts) == (self.steps, self.restarts)
            return budget and _agree(row.step_size, self.step_at(row.epsilon))
        return not (row.swept and row.noisy) or _agree(row.noise, self.noise)

    def same_attack(self, other: "Conditions") -> bool:
        """Whether it is the attack of others, at the radii that these are known of."""
        radii = [float(radius) for radius in other.step_sizes] or [other.epsilon]
        budget = not other.steps or (self.steps, self.restarts) == (other.steps, other.restarts)
        return budget and all(_agree(self.step_at(r), other.step_at(r)) for r in radii)


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
        precision=arguments["precision"] or "",
        trades_step=2 * epsilon / steps if of_trades else math.nan,
    )


def step_sizes(swept: dict[str, Any]) -> dict[str, float]:
    """Radius -> step size, of eval_args.json; older ones tell one of each."""
    if "step_sizes" in swept or "pgd_alpha" not in swept:
        return swept.get("step_sizes", {})
    return {f"{swept['epsilon']:g}": swept["pgd_alpha"]}


def shown_rows(rows: Iterable, own: Conditions, last: Conditions) -> list:
    """The rows that are shown together: of one precision, and at most one attack and noise."""
    rows = list(rows)
    shown = shown_conditions(rows, own, last)
    return sorted((row for row in rows if shown.matches(row)), key=lambda row: row.key)


def shown_conditions(
    rows: Iterable, own: Conditions, last: Conditions, asked: Mapping[str, Any] | None = None
) -> Conditions:
    """The one precision, attack and level of noise of which rows are set beside each other.

    The precision is the training's own; where nothing was measured with that, the last sweep's.

    The attack has so many steps and restarts, and a step size in proportion to the radius, or the
    same at every radius: of the two the one that more radii were measured with. It is the run's
    own; where nothing was measured with that, the one of the last sweep.

    Args:
        own, last: what the run was trained with, and what the last sweep was of.
        asked: the fields of another one; what it leaves out is the run's own.
    """
    rows, asked = list(rows), dict(asked or {})
    precision = asked.pop("precision", "") or _shown_precision(rows, own, last, asked)
    rows = [row for row in rows if row.precision in ("", precision)]
    own, last = replace(own, precision=precision), replace(last, precision=precision)
    noise = asked.pop("noise", None) or _shown_noise(rows, own.noise, last.noise)
    attack = _shown_attack([row for row in rows if row.by_pgd], own, last)
    if asked:
        attack = replace(own if own.steps else attack, **asked)
        if "step_size" in asked:
            attack = replace(attack, epsilon=0.0, step_sizes={})
    return replace(attack, noise=noise, precision=precision)


def _shown_precision(
    rows: list, own: Conditions, last: Conditions, asked: Mapping[str, float]
) -> str:
    """Of the precisions that what is asked for, if anything, was measured with; "" of none."""
    swept = [row for row in rows if row.swept and row.precision]

    def is_asked(row: Any) -> bool:
        return any(math.isclose(getattr(row, name), value) for name, value in asked.items())

    counts = Counter(row.precision for row in [row for row in swept if is_asked(row)] or swept)
    likely = [name for name in (own.precision, last.precision) if name in counts]
    return next(iter(likely or [name for name, _ in counts.most_common()]), "")


def _shown_attack(rows: list, own: Conditions, last: Conditions) -> Conditions:
    alike: dict[tuple, list] = {}
    for row in rows:
        alike.setdefault((row.epsilon, *row.perturbed_by[:3]), []).append(row)
    attacks = [own, replace(own, epsilon=0.0, step_sizes={})]
    for epsilon, step_size, steps, restarts in alike:
        in_proportion = Conditions(epsilon, step_size, steps=steps, restarts=restarts)
        attacks += [in_proportion, replace(in_proportion, epsilon=0.0)]

    def rank(attack: Conditions) -> tuple:
        made = [key for key, same in alike.items() if attack.matches(same[0])]
        like = [bool(made) and attack.same_attack(other) for other in (own, last)]
        return *like, len({radius for radius, *_ in made}), sum(len(alike[key]) for key in made)

    return max(attacks, key=rank)


def _shown_noise(rows: list, own: float, last: float) -> float:
    levels = Counter(row.perturbed_by[-1] for row in rows if row.swept and row.noisy)
    likely = [noise for noise in (own, last) if any(math.isclose(noise, n) for n in levels)]
    return next(iter(likely or [level for level, _ in levels.most_common()]), own)
