"""How the scripts read their command lines: one-line errors, and the types of values."""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import Any, NoReturn

from robust_nc.settings import select_epochs


class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage; flags are not abbreviated."""

    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        for word in takewhile("--".__ne__, words):
            if word.startswith("--") and word.endswith("=--"):  # which argparse takes for no value
                self.error(f"argument {word[:-3]}: expected a value, got '--'")
        return super().parse_known_args(words, namespace)


def _number(kind: type, accepted: Callable, description: str) -> Callable[[str], Any]:
    """An argparse type."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepted(value):
            raise argparse.ArgumentTypeError(f"expected {description}, got {text!r}")
        return value

    return parse


LARGEST_COUNT = 1_000_000
positive_int = _number(
    int, lambda value: 0 < value <= LARGEST_COUNT, f"a whole number from 1 to {LARGEST_COUNT}"
)
seed_number = _number(
    int, lambda value: 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}"
)
non_negative_float = _number(float, lambda value: 0 <= value < math.inf, "a number, 0 or above")


@dataclass(frozen=True)
class Radius:
    """A radius, step or noise level as it is written: 8 in a data set's units, or 8/255.

    whole: the range from black to white in the units of `value`; None: those of the data set.
    """

    value: float
    whole: float | None = None

    def in_units(self, black_to_white: float) -> float:
        """The number, where black to white is so many units: 8/255 is 8.0 where these are 255."""
        if self.whole is None:
            return self.value
        exact = Fraction(repr(self.value)) * Fraction(black_to_white) / Fraction(repr(self.whole))
        return float(exact)


def radius(text: str) -> Radius:
    """The argparse type of --epsilon and of whatever is measured in its units."""
    value, slash, whole = text.partition("/")
    try:
        numbers = [float(value), float(whole) if slash else 1.0]
    except ValueError:
        numbers = [math.nan]
    if not all(0 <= number < math.inf for number in numbers) or numbers[-1] == 0:
        raise argparse.ArgumentTypeError(
            f"expected a number, 0 or above, or a fraction of the range like 8/255; got {text!r}"
        )
    return Radius(numbers[0], numbers[1] if slash else None)


channel_mean = _number(
    float, lambda value: 0 <= value <= 1, "a number from 0 to 1 (black to white) per channel"
)
channel_std = _number(
    float, lambda value: 0 < value <= 1, "a number above 0, up to 1 (black to white), per channel"
)


def parse_epochs(parser: Parser, name: str, text: str | None, epochs: int) -> list[int]:
    """select_epochs for the value of a flag; ends the script where it has none."""
    try:
        return select_epochs(text, epochs)
    except ValueError:
        parser.error(
            f"argument {name}: expected epochs below {epochs} like 0,10,{epochs - 1}, a slice like "
            f"::10, or log; got {text!r}"
        )
