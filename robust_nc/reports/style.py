"""Colours, markers and their sizes, each once: of kinds of input, of training modes and of others.

A kind of input or a mode that has no row here is drawn in a spare style.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from robust_nc.data.inputs import INPUTS
from robust_nc.results.records import ADAPTIVE, CENTRE_LABELS
from robust_nc.training.modes import MODES


class Style(NamedTuple):
    label: str
    color: str
    marker: str = ""
    size: float = 4.5
    line: Any = "-"
    fill: str | None = None  # of the marker: "white", "none" for a ring, or else the line's colour


class Look(NamedTuple):
    """What is drawn alike in all figures."""

    color: str
    marker: str
    size: float = 4.5


# The colours are Okabe and Ito's, which the colour-blind can tell apart; markers that are drawn
# later are smaller, so that all are seen.
INPUT_LOOKS = {
    "clean": Look("#0072B2", "o", 5.5),
    "pgd": Look("#D55E00", "s"),
    "gaussian": Look("#009E73", "^"),
    "sign": Look("#CC79A7", "D", 3),
    "targeted": Look("#E69F00", "v"),
    "gaussian_l2": Look("#56B4E9", "P", 4),
    ADAPTIVE: Look("#661100", "X"),
}
INPUT_LOOKS["seen"] = INPUT_LOOKS["pgd"]  # figures show one of the two
# Tol's colours, none of them an input's.
MODE_LOOKS = {
    "std_train": Look("#882255", "o"),
    "pgd_train": Look("#117733", "<"),
    "pgd_train_TRADES": Look("#332288", "X"),
    "pgd_train_TRADES_batch": Look("#999933", ">"),
    "pgd_train_MART": Look("#AA4499", "*"),
    "std_train_frozen": Look("#EE3377", "P"),
    "pgd_train_frozen": Look("#225555", "d"),
    "pgd_train_MART_frozen": Look("#BBCC33", "8"),
}
SPARE_LOOKS = (Look("#CC6677", "d"), Look("#00767B", "8"), Look("#F0E442", "H"))

CLASSIFIER = Style("classifier $W$", "black", "*", 4, "--")
AUTOATTACK = Style("AutoAttack, test", "#44AA99", "p", 6, "none")
LR_DROP = Style("learning-rate drop", "0.5", line=":")
CENTRE_STYLES = {  # by field, in figures of one epoch
    "ncc_accuracy": Style("nearest class mean", "#6699CC", "o", line="none"),
    "network_accuracy": Style("network", "black", "s", 7.5, line="none", fill="none"),
}
# Of further lines of one training mode in one figure.
MORE_MARKERS = "sDv^ph"
MORE_COLORS = ("#DDCC77", "#88CCEE", "0.3", "0.6")


def input_style(name: str) -> Style:
    label = CENTRE_LABELS[ADAPTIVE] if name == ADAPTIVE else INPUTS[name].label
    return Style(label, *(INPUT_LOOKS.get(name) or spare_look(name)))


def mode_style(name: str) -> Style:
    return Style(MODES[name].label, *(MODE_LOOKS.get(name) or spare_look(name)))


def spare_look(name: str) -> Look:
    """Of a kind of input or a mode without a row above, as long as there are enough one each."""
    without_row = [n for n in (*INPUTS, *MODES) if n not in INPUT_LOOKS and n not in MODE_LOOKS]
    return SPARE_LOOKS[without_row.index(name) % len(SPARE_LOOKS)]


def spare_pair(used: Collection[tuple[str, str]]) -> tuple[str, str]:
    """A colour and a marker for a further line: neither is used, as long as there are such."""
    pairs = [(color, marker) for marker in MORE_MARKERS for color in MORE_COLORS]
    colors, markers = {color for color, _ in used}, {marker for _, marker in used}
    unused = [pair for pair in pairs if pair not in used]
    fresh = [(c, m) for c, m in unused if c not in colors and m not in markers]
    return (fresh or unused or pairs)[0]


def split_style(style: Style, split: str) -> Style:
    """Test images are dashed, with rings for markers that are seen around those of training."""
    if split == "train":
        return style
    return style._replace(
        label=f"{style.label}, {split}", size=style.size + 2.5, line="--", fill="none"
    )
