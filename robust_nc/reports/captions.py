"""What a figure shows, in words: the caption that plot.py prints and writes beside it."""

import re

from robust_nc.flags import SWEEP_FLAGS, TRAIN_FLAGS
from robust_nc.reports.drawing import drops_of
from robust_nc.reports.panels import Picture, Plot
from robust_nc.results.rows import SPLIT_LABELS

# Of the flags whose names are not what papers call them, what these do.
WORDS = {f.name[2:]: f.words for f in (*TRAIN_FLAGS, *SWEEP_FLAGS) if f.words is not None}


def in_words_of_papers(differs: dict[str, str]) -> str:
    """What sets runs apart, like "learning rate 0.1, weight decay 0.0005"."""
    words = []
    for name, value in differs.items():
        flag, _, rest = name.partition(" ")  # "of the sweep", "at epsilon 8"
        rest = rest.replace("of the sweep", "in the sweep")
        word = WORDS.get(flag, flag.replace("-", " "))
        words.append(" ".join(filter(None, (word, rest, value))))
    return ", ".join(words)


def caption_of(plot: Plot | Picture) -> str:
    """One paragraph: what is drawn and of whom, what the panels are, what else is to be seen."""
    parts = [plot.title, *plot.notes]
    shown = (panel for panel, _ in plot.panels if panel.meaning)
    meanings = dict.fromkeys((p.label.removesuffix(" [rad]"), p.meaning) for p in shown)
    if meanings:
        parts.append("; ".join(f"{name}: {meaning}" for name, meaning in meanings))
    if any(len(curve.line) > 1 for _, curves in plot.panels for curve in curves):
        what = "Lines on bars" if plot.bars else "Shaded"
        parts.append(f"{what}: one standard deviation over the seeds")
    drops = drops_of(plot)
    if drops:
        numbers = ", ".join(map(str, drops))
        parts.append(f"Dotted: the learning rate drops after epoch {numbers}")
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def images_in_words(sizes: dict[str, int]) -> str:
    """Split -> number of images, like "n = 100 training and 40 test images"; 0 is not told."""
    numbers = [
        f"{sizes[split] or ''} {label}".strip()
        for split, label in SPLIT_LABELS.items()
        if split in sizes
    ]
    return re.sub(r"\d", r"n = \g<0>", f"{' and '.join(numbers)} images", count=1)
