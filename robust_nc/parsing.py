"""How the scripts read their command lines: one-line errors, and the types of values."""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import Any, NoReturn

from robust_nc.published_flags import PublishedFlag, without_published
from robust_nc.settings import select_epochs

# Flag -> what it is called in other projects (timm, torchvision's references, RobustBench, those of
# the Madry Lab and of TRADES): what is meant, where it is not near in its letters.
OTHER_NAMES = {
    "--lr-max": "lr learning-rate base-lr init-lr lr-init max-lr",
    "--weight-decay": "wd decay l2-reg",
    "--optimizer": "opt optim",
    "--optimizer adam": "adam",
    "--optimizer adamw": "adamw",
    "--optimizer sgd": "sgd",
    "--batch-size": "b bs batch batchsize train-batch-size",
    "--eval-batch-size": "b bs batch batchsize test-batch-size val-batch-size",
    "--epochs": "epoch n-epochs num-epochs nb-epochs max-epochs",
    "--epsilon": "eps radius attack-eps train-eps test-eps max-eps",
    "--pgd-alpha": "alpha step-size attack-lr attack-step attack-step-size eps-step eps-iter",
    "--attack-iters": "iters steps num-steps n-steps nb-iter attack-steps pgd-steps k",
    "--restarts": "random-restarts n-restarts num-restarts",
    "--norm": "constraint threat threat-model lp p-norm",
    "--trades-beta": "beta",
    "--train-mode pgd_train": "adv adv-train adversarial",
    "--train-mode pgd_train_TRADES": "trades",
    "--train-mode pgd_train_MART": "mart",
    "--model": "a arch architecture net network backbone",
    "--model-args": "model-kwargs",
    "--data-dir": "data data-path data-root dataroot root",
    "--image-size": "img-size input-size imgsz resize crop-size train-crop-size",
    "--lr-schedule": "sched scheduler lr-scheduler",
    "--lr-milestones": "milestones lr-steps decay-epochs decay-milestones step-lr",
    "--lr-gamma": "gamma decay-rate step-lr-gamma",
    "--precision bf16": "amp native-amp fp16 bf16 half-precision",
    "--device": "gpu gpus gpu-id cuda",
    "--device cpu": "cpu no-cuda",
    "--run-name": "name exp experiment exp-name",
    "--out": "output output-dir out-dir outdir save-dir log-dir",
    "--models-dir": "output output-dir out-dir outdir save-dir log-dir",
    "--checkpoint": "ckpt weights model-path checkpoint-path load load-path",
    "--init": "ckpt weights pretrained finetune initial-checkpoint model-path load load-path",
    "--resume": "resume-path continue start-epoch",
    "--autoattack": "n-ex n-examples aa auto-attack",
    "--seed": "manual-seed random-seed",
    "--limit-train": "subset n-train num-train train-size",
}


class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage; flags are not abbreviated.

    Args:
        published: flags of the published script that may be on the command line.

    without_effect: the names of those that the last one had.
    """

    def __init__(self, published: Iterable[PublishedFlag] = (), **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.published = tuple(published)
        self.without_effect: list[str] = []

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with a guess at what an unknown flag was meant to be."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            guesses = [self._guess(word) for word in unknown if word.startswith("-")]
            meant = ", ".join(guess for guess in guesses if guess)
            advice = f"; did you mean {meant}?" if meant else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        return parsed

    def _guess(self, word: str) -> str | None:
        """The flag that an unknown one is nearest to, if any is near."""
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        name = "--" + word.partition("=")[0].lstrip("-").replace("_", "-").lower()
        for flag, others in OTHER_NAMES.items():
            if flag.split()[0] in flags and name[2:] in others.split():
                return flag
        begun = [flag for flag in flags if flag.startswith(name)]
        near = begun[:1] or difflib.get_close_matches(name, flags, n=1)
        return near[0] if near else None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, without the published flags that do nothing."""
        words = sys.argv[1:] if args is None else list(args)
        for word in takewhile("--".__ne__, words):
            if word.startswith("--") and word.endswith("=--"):  # which argparse takes for no value
                self.error(f"argument {word[:-3]}: expected a value, got '--'")
        try:
            words, self.without_effect = without_published(words, self.published)
        except ValueError as error:
            self.error(str(error))
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
class_number = _number(int, lambda value: value >= 0, "the number of a class, 0 or above")
image_size = _number(int, lambda value: 0 < value <= 4096, "a whole number from 1 to 4096")
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


positive_float = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
share_below_1 = _number(float, lambda value: 0 <= value < 1, "a number from 0, below 1")
channel_mean = _number(
    float, lambda value: 0 <= value <= 1, "a number from 0 to 1 (black to white) per channel"
)
channel_std = _number(
    float, lambda value: 0 < value <= 1, "a number above 0, up to 1 (black to white), per channel"
)


def milestones(text: str) -> tuple[float, ...]:
    """Of --lr-milestones, ascending: shares of the epochs, all below 1, or epochs, 1 and above."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0 < values[0] <= values[-1] < math.inf or values[0] < 1 <= values[-1]:
        raise argparse.ArgumentTypeError(
            "expected shares of the epochs, below 1, like 0.25,0.375, or epochs, 1 and above, like "
            f"100,150; got {text!r}"
        )
    return tuple(values)


def run_name(text: str) -> str:
    """Of --run-name, which becomes part of a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"expected up to 100 letters, digits, '.', '_' and '-', a letter or digit first, got "
            f"{text!r}"
        )
    return text


def model_argument(text: str) -> str:
    """KEY=VALUE of --model-args; equal arguments become equal words."""
    key, equals, value = text.partition("=")
    if not key.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE like depth=4, got {text!r}")
    if key == "num_classes":
        raise argparse.ArgumentTypeError("num_classes is given to the factory by the data")
    parsed = argument_value(value)
    if not isinstance(parsed, str) or argument_value(parsed) != parsed:
        value = json.dumps(parsed)
    else:
        value = parsed
    return f"{key}={value}"


def argument_value(text: str) -> Any:
    """What a value of --model-args stands for: a number, true, false, none, or else a string.

    Lists and strings in quotes are read as JSON has them: "32" in quotes is a string.
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for parse in (json.loads, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def parse_epochs(parser: Parser, name: str, text: str | None, epochs: int) -> list[int]:
    """select_epochs for the value of a flag; ends the script where it has none."""
    try:
        return select_epochs(text, epochs)
    except ValueError:
        parser.error(
            f"argument {name}: expected epochs below {epochs} like 0,10,{epochs - 1}, a slice like "
            f"::10, or log; got {text!r}"
        )
