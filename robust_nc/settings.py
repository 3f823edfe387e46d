"""The flags that train.py and eval.py share, and what is made of them.

Settings are the flags as the script will use them; they are read-only. What is derived from them,
a folder, the data, networks, is a value of its own.
"""

import argparse
import json
import math
from collections.abc import Iterable
from typing import Any

from robust_nc.training.modes import TRADES_BETA

# Flags that change what a sweep measures: records made with other values are never mixed in.
MEASURING_FLAGS = {
    "attack_iters",
    "pgd_alpha",
    "restarts",
    "noise_level",
    "limit_train",
    "limit_test",
    "equal_n",
    "image_size",
    "precision",
    "checkpoint",
}
# What older versions trained with, whose args.json does not tell it: it was no flag then.
CONSTANTS = {"trades_beta": TRADES_BETA}

# Compared as they are in use, whether given as flags or not.
STATISTICS = ("mean", "std")


class Settings(argparse.Namespace):
    """Flags by name, read-only."""

    def __init__(self, **flags: Any):
        vars(self).update(flags)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read-only: {name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are read-only: {name} cannot be deleted")

    def replace(self, **flags: Any) -> "Settings":
        """These settings with other values of some flags."""
        return Settings(**vars(self) | flags)


def with_constants(told: dict[str, Any]) -> dict[str, Any]:
    """What an args.json tells, and what one of an older version leaves unsaid; {} stays {}."""
    return CONSTANTS | told if told else {}


def difference(now: dict[str, Any], earlier: dict[str, Any], names: Iterable[str]) -> str | None:
    """One line on the first of the names whose value is not what an earlier run had, if any."""
    for name in sorted(names):
        value = json.loads(json.dumps(now[name], default=str))
        if name in earlier and earlier[name] != value:
            return f"--{name.replace('_', '-')} was {earlier[name]}, is {value} now"
    return None


def select_epochs(text: str | None, epochs: int) -> list[int]:
    """Epochs that "0,10,399", a slice like "::10" or "log" selects out of range(epochs).

    "log" is ten per decade of the number of finished epochs, and the last one. None is all.

    Raises:
        ValueError: none of these, an epoch out of range, or no epoch at all.
    """
    if text is None:
        return list(range(epochs))
    if text == "log":
        counts = (round(10 ** (i / 10)) for i in range(math.ceil(10 * math.log10(epochs)) + 1))
        return sorted({count - 1 for count in counts if count <= epochs} | {epochs - 1})
    if ":" in text:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        selected = list(range(epochs))[slice(*parts)] if len(parts) <= 3 else []
    else:
        selected = sorted({int(part) for part in text.split(",")})
    if not selected or not set(selected) <= set(range(epochs)):
        raise ValueError
    return sorted(selected)
