"""The attacks, noise and precisions that runs were measured with beside what is shown."""

import math
from dataclasses import replace
from typing import Any

from robust_nc.data.datasets import units_of
from robust_nc.parsing import Radius
from robust_nc.reports.groups import Group, View
from robust_nc.reports.runs import Run
from robust_nc.results.conditions import Conditions
from robust_nc.results.tables import perturbed_in_words
from utils import InputError, logger

# Field of Conditions -> the flag of plot.py that asks for it, named as that of eval.py.
ATTACK_FLAGS = {"steps": "attack-iters", "step_size": "pgd-alpha", "restarts": "restarts"}
NOISE_FLAGS = {"noise": "noise-level"}
FLAGS = ATTACK_FLAGS | NOISE_FLAGS | {"precision": "precision"}


def asked_in_words(asked: dict[str, Any]) -> tuple[str, ...]:
    """What is asked for, like "attack-iters 50"."""
    words = {name: _radius_in_words(v) if isinstance(v, Radius) else v for name, v in asked.items()}
    return tuple(f"{FLAGS[name]} {value}" for name, value in words.items())


def _radius_in_words(value: Radius) -> str:
    return f"{value.value:g}" + ("" if value.whole is None else f"/{value.whole:g}")


def refuse_unmeasured(runs: list[Run], asked: dict[str, Any]) -> None:
    """Raise InputError where no run was measured with the attack, noise or precision asked for."""
    rows = [row for run in runs for row in run.swept_rows]
    missing = asked.keys() & ATTACK_FLAGS.keys() if not any(row.by_pgd for row in rows) else set()
    if not any(row.noisy for row in rows):
        missing |= asked.keys() & NOISE_FLAGS.keys()
    if not any(row.precision in ("", asked.get("precision")) for row in rows):
        missing |= asked.keys() & {"precision"}
    if missing:
        words = asked_in_words({name: asked[name] for name in FLAGS if name in missing})
        there = "; ".join(others_in_words(runs))
        raise InputError(
            f"nothing was measured with --{' --'.join(words)}; measured are: "
            f"{there or 'no attacks and no noise'}"
        )


def tell_attacks(groups: list[Group], view: View) -> None:
    """A line for each group that is drawn with others than the runs' own attack and noise.

    And one where there are others beside them. What was asked for is in the figures' names.
    """
    for group in groups:
        foreign = dict.fromkeys(part for run in group.runs for part in foreign_in_words(run))
        if foreign and not view.asked:
            logger.info(
                f"{group.file_name()}: drawn is not the runs' own attack or noise, but "
                f"{'; '.join(foreign)}"
            )
        others = others_in_words(group.runs)
        if others:
            logger.info(
                f"{group.file_name()}: measured as well, and not drawn: {'; '.join(others)}"
            )


def foreign_in_words(run: Run) -> list[str]:
    """The attacks and levels of noise that are shown, and are not those of the run's training."""
    own, unit = run.folder.trained_under(), units_of(run.setting.dataset)
    own = replace(own, precision="")  # which lines of another one tell
    rows = [row for row in run.swept_rows if not own.matches(row)]
    return [perturbed_in_words(row, unit) for row in rows] if own.steps else []


def others_in_words(runs: list[Run]) -> list[str]:
    """Each of the other attacks, levels of noise and precisions, with the flags of plot.py that
    show it.
    """
    words: dict[str, dict[str, None]] = {}
    for run in runs:
        own = run.folder.trained_under()
        base = own if own.steps else run.shown_under
        unit = units_of(run.setting.dataset)
        in_any_precision = replace(run.shown_under, precision="")
        for row in sorted(run.others, key=lambda row: (row.noisy, row.perturbed_by, row.epsilon)):
            if in_any_precision.matches(row):
                flags = f"--precision {row.precision}"
                words.setdefault(flags, {})[f"rows in {row.precision}"] = None
                continue
            attack = perturbed_in_words(row, unit) or "an attack that is untold"
            words.setdefault(flags_of(row, base), {})[attack] = None
    return [
        f"{'; '.join(attacks)}{f' ({flags})' if flags else ''}" for flags, attacks in words.items()
    ]


def flags_of(row: Any, base: Conditions) -> str:
    """The flags that show the attack, or noise, of a row; `base` has what they leave out."""
    if row.noisy:
        return f"--noise-level {row.noise:.9g}"
    if not row.steps:
        return ""
    other = {
        "steps": row.steps != base.steps,
        "step_size": not math.isclose(row.step_size, base.step_at(row.epsilon), rel_tol=1e-6),
        "restarts": row.restarts != base.restarts,
    }
    # Where nothing differs: with the run's own step size, in proportion to the radius.
    names = [name for name in ATTACK_FLAGS if other[name]] or ["steps"]
    return " ".join(f"--{ATTACK_FLAGS[name]} {getattr(row, name):.9g}" for name in names)
