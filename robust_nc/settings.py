"""Settings: the flags as the scripts use them, and what each flag means when runs are compared."""

import argparse
import enum
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Compared as they are in use, whether given as flags or not: args.json tells them so.
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


class Means(enum.Flag):
    """What a flag decides. Whether two runs, or two sweeps, may be mixed follows from it alone.

    FREE: nothing but time, place and what is printed; it may change whenever a script is started.
    START: likewise, and a run does not hand it on to what is started with its folder.
    PLACE: where the images lie: likewise, and a sweep that is started with the folder looks there.
    NAME: the run's folder.
    SEED: likewise, and runs that differ in it alone are averaged.
    TRAIN: what is trained: the same when a run is resumed, and in seeds of one setting.
    RECORD: what a training records beside the weights: the same when it is resumed.
    MEASURE: what a sweep measures: the same in all rows of one table, and in seeds of one setting.
    SUBSET: how many of the images: a sweep may take others than its run did.
    ROW: what each row of a sweep tells: rows of several values stand beside each other.
    """

    FREE = 0
    START = enum.auto()
    PLACE = enum.auto()
    NAME = enum.auto()
    SEED = enum.auto()
    TRAIN = enum.auto()
    RECORD = enum.auto()
    MEASURE = enum.auto()
    SUBSET = enum.auto()
    ROW = enum.auto()


# What decides a run, and has to be the same when it is resumed.
RUN_MEANS = Means.NAME | Means.SEED | Means.TRAIN | Means.RECORD

# In the place of a former value: every args.json tells it; it is the default.
ALWAYS_THERE, THE_DEFAULT = object(), object()


@dataclass(frozen=True)
class Flag:
    """One flag: how argparse reads it, and what it means.

    default: its value on a command line that does not tell it.
    former: the value of runs from before there was the flag, whose args.json does not tell it, or a
        function that makes it of what their args.json tells.
    only_with: a flag and its values without which nothing reads this one; None: always read.
    words: what papers call it; "": its values say what they are; None: its name does.
    """

    name: str
    means: Means
    default: Any
    former: Any
    only_with: tuple[str, tuple[str, ...]] | None
    words: str | None
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name in settings and in args.json."""
        return self.name.removeprefix("--").replace("-", "_")

    def is_read(self, settings: dict[str, Any]) -> bool:
        """Whether anything reads it in a run with these settings."""
        if self.only_with is None:
            return True
        other, values = self.only_with
        return settings.get(other) in values

    def accepts(self, value: Any) -> bool:
        """Whether what a JSON file tells of it could have come from a command line."""
        if self.options.get("action") == "store_true":
            return isinstance(value, bool)
        if isinstance(value, str):  # which argparse reads as it does a command line
            return value in self.options.get("choices", (value,))
        if isinstance(value, list) and "nargs" in self.options:
            return all(not isinstance(one, list) and self.accepts(one) for one in value)
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            parsed = self.options.get("type", str)(text)
        except (argparse.ArgumentTypeError, ValueError):
            return False
        same_form = isinstance(value, list) == isinstance(parsed, tuple)
        return same_form and not isinstance(parsed, (str, Path))


def flag(
    name: str,
    means: Means,
    *,
    former: Any = THE_DEFAULT,
    only_with: tuple[str, tuple[str, ...]] | None = None,
    words: str | None = None,
    **options: Any,
) -> Flag:
    """A row of the tables of flags.

    Args:
        former, only_with, words: as in Flag.
        options: those of argparse's add_argument.
    """
    default = options.get("default", False if options.get("action") == "store_true" else None)
    former = default if former is THE_DEFAULT else former
    return Flag(name, means, default, former, only_with, words, options)


def flag_name(key: str) -> str:
    """The flag of a key, as it is given on a command line."""
    return f"--{key.replace('_', '-')}"


def keys_that(flags: Iterable[Flag], means: Means) -> set[str]:
    """The keys of the flags that decide any of these."""
    return {flag.key for flag in flags if flag.means & means}


def unread(flags: Iterable[Flag], settings: dict[str, Any]) -> set[str]:
    """The keys of the flags that nothing reads in a run with these settings."""
    return {flag.key for flag in flags if not flag.is_read(settings)}


def former_values(arguments: dict[str, Any], flags: Iterable[Flag]) -> dict[str, Any]:
    """Key -> the value of old of each flag that these arguments of an args.json leave unsaid."""
    return {
        flag.key: flag.former(arguments) if callable(flag.former) else flag.former
        for flag in flags
        if flag.key not in arguments and flag.former is not ALWAYS_THERE
    }


def with_former_values(arguments: dict[str, Any], flags: Iterable[Flag]) -> dict[str, Any]:
    """What an args.json tells, and what one of an older version leaves unsaid; {} stays {}."""
    return arguments | former_values(arguments, flags) if arguments else {}


def difference(now: dict[str, Any], earlier: dict[str, Any], keys: Iterable[str]) -> str | None:
    """One line on all of the flags whose value is not what an earlier run had, if any."""
    differing = []
    for key in sorted(keys):
        value = json.loads(json.dumps(now[key], default=str))
        if key in earlier and earlier[key] != value:
            differing.append(f"{flag_name(key)} was {earlier[key]}, is {value} now")
    return "; ".join(differing) or None


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
