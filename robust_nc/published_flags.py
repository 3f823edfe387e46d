"""Flags of the published scripts that are none here, and what becomes of a command with them.

The published train.py and eval.py (Su et al. 2024) have their parser from the code of Rice, Wong
and Kolter (2020). Much of it had no effect any more: such flags are taken and named in one line.
What would have changed a run, and is not here, is refused.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFlag:
    """A flag of the published scripts.

    values: "none" (a switch), "one", or "perhaps" one.
    harmless: the values without an effect; None: all are.
    advice: what is said where another one is given.
    """

    name: str
    values: str = "one"
    harmless: tuple[str, ...] | None = None
    advice: str = ""

    def has_effect(self, value: str | None) -> bool:
        """Whether it would have changed the run; numbers are compared as numbers."""
        if self.harmless is None or value in self.harmless:
            return False
        with suppress(ValueError):
            return float(value or "nan") not in [float(number) for number in self.harmless]
        return True


# Of both scripts: read for nothing, or by what is not there.
UNUSED = (
    PublishedFlag("--chkpt-iters"),
    PublishedFlag("--cutout", "none"),
    PublishedFlag("--cutout-len"),
    PublishedFlag("--eval", "none"),
    PublishedFlag("--fgsm-alpha"),  # of --attack fgsm
    PublishedFlag("--fgsm-init"),
    PublishedFlag("--fname"),
    PublishedFlag("--half", "none"),
    PublishedFlag("--mixup-alpha"),  # of --mixup
    PublishedFlag("--val", "none"),
    PublishedFlag("--width-factor"),
)
ATTACK = PublishedFlag(
    "--attack",
    harmless=("pgd",),
    advice="the attack is PGD; --train-mode std_train trains without one, --attack-iters 1 by a "
    "single step",
)
OF_TRAIN = (
    *UNUSED,
    ATTACK,
    PublishedFlag("--l1", harmless=("0",), advice="there is no l_1 penalty here"),
    PublishedFlag(
        "--l2", harmless=("0",), advice="there is no l_2 penalty here beside --weight-decay"
    ),
    PublishedFlag("--mixup", "none", harmless=(), advice="there is no mixup here"),
)
# A sweep trains nothing: it reads no flag of training.
OF_EVAL = (
    *UNUSED,
    ATTACK,
    PublishedFlag("--batch-size"),
    PublishedFlag("--l1"),
    PublishedFlag("--l2"),
    PublishedFlag("--lr-drop-epoch"),
    PublishedFlag("--lr-one-drop"),
    PublishedFlag("--lr-schedule"),
    PublishedFlag("--mixup", "none"),
    PublishedFlag("--optimizer"),
    PublishedFlag("--resume", "perhaps"),
)


def without_published(
    words: list[str], flags: Iterable[PublishedFlag]
) -> tuple[list[str], list[str]]:
    """A command line without the published flags, and the names of those that were on it.

    Raises:
        ValueError: one has a value that it cannot have, or would have changed the run; the text is
            for the user.
    """
    by_name = {flag.name: flag for flag in flags}
    rest: list[str] = []
    names: list[str] = []
    waiting = list(words)
    while waiting and waiting[0] != "--":
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name not in by_name:
            rest.append(word)
            continue
        flag, given = by_name[name], value if equals else None
        takes = flag.values != "none" and waiting and not waiting[0].startswith("--")
        if given is None and takes:
            given = waiting.pop(0)
        if (given is None) != (flag.values == "none") and flag.values != "perhaps":
            expected = "no value" if flag.values == "none" else "a value"
            raise ValueError(f"argument {name}: expected {expected}")
        if flag.has_effect(given):
            shown = name if given is None else f"{name} {given}"
            raise ValueError(f"{shown}, a flag of the published code: {flag.advice}; leave it out")
        names.append(name)
    return rest + waiting, list(dict.fromkeys(names))
