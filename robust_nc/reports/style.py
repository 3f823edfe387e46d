"""How figures look, each thing once: type, colours, markers, lines, of inputs, modes and others.

A kind of input or a mode that has no row here is drawn in a spare style.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from robust_nc.data.inputs import INPUTS
from robust_nc.results.records import ADAPTIVE, CENTRE_LABELS
from robust_nc.training.modes import MODES

WIDTH = 5.5  # inches: a column of text
FONT_SIZE = 8  # points
CHARACTER = 0.007125 * FONT_SIZE  # inches, the width of one on average
# As papers are set: one size everywhere, in a face like that of their text, which comes with
# matplotlib.
RC: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.5,
    "axes.labelpad": 2,
    "axes.titlepad": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "legend.labelspacing": 0.3,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.wspace": 0.03,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "savefig.dpi": 200,
}


HOLLOW = "white"  # markers that hide what is below them


class Style(NamedTuple):
    """How a line is drawn, and what the legend calls it.

    fill: of the marker: HOLLOW, "none" for a ring, or else the line's colour.
    """

    label: str
    color: str
    marker: str = ""
    size: float = 4.0
    line: Any = "-"
    fill: str | None = None


class Look(NamedTuple):
    """What is drawn alike in all figures."""

    color: str
    marker: str
    size: float = 4.0
    line: str = "-"
    fill: str | None = None


# The colours are Okabe and Ito's, which the colour-blind can tell apart; noise, which lies on the
# clean images more often than not, has rings around their markers.
INPUT_LOOKS = {
    "clean": Look("#0072B2", "o"),
    "pgd": Look("#D55E00", "s"),
    "gaussian": Look("#009E73", "^", 6.5, fill="none"),
    "sign": Look("#CC79A7", "D", 8.5, fill="none"),
    "targeted": Look("#E69F00", "v", 4.5),
    "gaussian_l2": Look("#56B4E9", "h", 7, fill="none"),
    ADAPTIVE: Look("#661100", "X"),
}
INPUT_LOOKS["seen"] = INPUT_LOOKS["pgd"]  # figures show one of the two
# Tol's colours, none of them an input's. With frozen batch norm a mode has the hue of the one with
# batch statistics, lighter, and a dashed line.
MODE_LOOKS = {
    "std_train": Look("#332288", "o"),
    "std_train_frozen": Look("#9A90C8", "o", line="--"),
    "pgd_train": Look("#117733", "s"),
    "pgd_train_frozen": Look("#7DBB92", "s", line="--"),
    "pgd_train_TRADES": Look("#D99BCB", "D", 3.5, line="--"),
    "pgd_train_TRADES_batch": Look("#9A2A86", "D", 3.5),
    "pgd_train_MART": Look("#8A8A20", "v", 4.5),
    "pgd_train_MART_frozen": Look("#C9C978", "v", 4.5, line="--"),
}
SPARE_LOOKS = (Look("#00767B", "d"), Look("#B8A100", "8"), Look("0.45", "H"))

CLASSIFIER = Style("classifier $W$", "black", "x", 3.5, line="--")
AUTOATTACK = Style("AutoAttack, test", "#44AA99", "p", 5, "none")
LR_DROP = Style("learning-rate drop", "0.6", line=":")
# Of further lines of one training mode in one figure.
MORE_MARKERS = "^P*<>hX"
MORE_COLORS = ("#CC6677", "#88CCEE", "#882255", "#DDCC77", "#6699CC", "0.3", "0.65")
CLASS_COLORS = ("#0072B2", "#D55E00", "#009E73")  # of the three classes of a simplex
ANY_MODE = "0.35"  # in legends of kinds of lines, of whichever mode
BAND_COLOR = "0.5"  # in legends, of the deviation over seeds
DEVIATION = "black"  # on bars
# The simplex of classes: its triangle, the legend of class means, and their edges and arrows.
TRIANGLE, CLASS_MEANS, EDGE = "0.3", "0.2", "black"
ARROW: Any = {
    "arrowstyle": "-|>",
    "color": EDGE,
    "linewidth": 0.9,
    "shrinkA": 0,
    "shrinkB": 2,
    "mutation_scale": 7,
}
SHADES, ON_LIGHT, ON_DARK = "Blues", "black", "white"  # of a matrix, and the numbers in it


def input_style(name: str) -> Style:
    label = CENTRE_LABELS[ADAPTIVE] if name == ADAPTIVE else INPUTS[name].label
    return Style(label, *(INPUT_LOOKS.get(name) or spare_look(name)))


def mode_style(name: str) -> Style:
    return Style(mode_in_words(name), *(MODE_LOOKS.get(name) or spare_look(name)))


def mode_in_words(name: str) -> str:
    """What figures call a training mode: its label, which says whose statistics are frozen.

    Tables have the name of a file of --checkpoint in its place.
    """
    label = MODES[name].label if name in MODES else name
    return label.replace("(frozen)", "(frozen BN)").replace("(batch)", "(batch BN)")


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
        label=f"{style.label}, {split}",
        size=style.size + 2.5,
        line="--" if style.line == "-" else ":",
        fill="none",
    )
