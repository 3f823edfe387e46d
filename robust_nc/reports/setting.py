"""What names a run: its setting, mode and seed, and these in words and in names of files."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from robust_nc.data.datasets import units_of
from robust_nc.training.modes import MODES, bn_of, mode_name
from utils import InputError

NAMES = "dataset, model, norm, epsilon, training mode and seed"


class Setting(NamedTuple):
    """What runs that are compared have in common, but for the way they are trained and the seed.

    limit_train: --limit-train; a network of fewer images is not judged beside one of more.
    """

    dataset: str
    model: str
    norm: str
    epsilon: float
    limit_train: int | None = None

    def __str__(self) -> str:
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {self.epsilon:g}"

    @property
    def title(self) -> str:
        """In titles of figures, where the radius has its unit."""
        radius = radius_in_words(self.epsilon, self.dataset)
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {radius}"

    @property
    def file_name(self) -> str:
        """In names of figures."""
        return safe(f"{self.dataset}_{self.model}_{self.norm}_eps{self.epsilon}")


def unit_in_words(dataset: str) -> str:
    """The unit of --epsilon: "1/255", or "[0, 1]" where images are attacked in those units."""
    return "[0, 1]" if units_of(dataset) == 1 else "1/255"


def radius_in_words(epsilon: float, dataset: str) -> str:
    return f"{epsilon:g}" + ("/255" if unit_in_words(dataset) == "1/255" else "")


def safe(name: str) -> str:
    """A name without slashes, spaces and other signs that a file's name is better without."""
    return re.sub(r"[^\w.+-]+", "-", name)


def seeds_in_words(seeds: Iterable[int]) -> str:
    numbers = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def in_units(asked: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """The attack, noise and precision asked for, in the units of a data set's --epsilon."""
    units = {"step_size": units_of(dataset), "noise": 255}
    return {
        name: value.in_units(units[name]) if name in units else value
        for name, value in asked.items()
    }


def names_of_arguments(arguments: dict[str, Any], file: Path) -> tuple[Setting, str, int]:
    """Setting, mode and seed as args.json tells them, or another file of flags.

    Raises:
        InputError: it does not.
    """
    try:
        setting = Setting(
            dataset=arguments.get("data_name") or arguments["dataset"],
            model=arguments["model"],
            norm=arguments["norm"],
            epsilon=float(arguments["epsilon"]),
            limit_train=arguments.get("limit_train"),
        )
        texts = (*setting[:3], arguments.get("precision") or "", arguments.get("init") or "")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name that is no text")
        mode = mode_name(arguments["train_mode"], bn_of(arguments))
        return setting, mode, int(arguments["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} does not tell {NAMES}") from error


def names_of_path(path: Path) -> tuple[Setting, str, int]:
    """Setting, mode and seed as the names of a run's folders tell them.

    Raises:
        InputError: they do not.
    """
    try:
        dataset, model, norm, epsilon, mode, seed = path.resolve().parts[-6:]
        if mode not in MODES:
            raise ValueError(mode)
        setting = Setting(dataset, model, norm, float(epsilon.removeprefix("eps")))
        return setting, mode, int(seed.removeprefix("seed").partition("_")[0])
    except ValueError as error:
        raise InputError(f"{path}: its path does not tell {NAMES}") from error
