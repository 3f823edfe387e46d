"""Pictures of the simplex of clean class means: where images lie in it, and where they leap to."""

import math
import operator
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.comparisons import (
    after_epochs,
    by_place,
    mode_styles,
    names_of,
    settings_in_words,
)
from robust_nc.reports.groups import Group, View
from robust_nc.reports.panels import Picture, tell_left_out
from robust_nc.reports.runs import Run
from robust_nc.reports.style import (
    ARROW,
    CLASS_COLORS,
    CLASS_MEANS,
    EDGE,
    FONT_SIZE,
    ON_DARK,
    ON_LIGHT,
    SHADES,
    TRIANGLE,
    WIDTH,
)
from robust_nc.results.records import LeapRecord, SimplexRecord
from robust_nc.results.rows import SPLIT_LABELS
from utils import logger

CLOUD_INPUTS = ("clean", "pgd", "targeted")  # the columns of the simplex
LEAP_INPUTS = ("pgd", "targeted")
MOST_NUMBERS = 12  # classes whose numbers a matrix holds in FONT_SIZE
DARK = 55  # percent: from there on a shade has light numbers
SHORTEST_ARROW = 0.15  # that is seen beside the mark of a class mean
MIDDLE, ANIMATED_MIDDLE = 0.995, 0.97  # the quantile up to which the frame holds the points
SIMPLEX_NOTE = (
    "Images in the plane through three clean training class means, whose triangle is drawn, "
    "coloured by their class; diamonds: their class means, arrows: from the clean class means to "
    "the perturbed ones"
)
TARGETS_NOTE = "Targeted images: those whose target, the next class, is one of the three"
LEAPS_NOTE = (
    "Of the images of a class (row), the percentage that lies nearest to each clean training class "
    "mean (column) in the last layer"
)


class PictureRow(NamedTuple):
    """One row of a picture: what it is called, whose rows it draws, and these by epoch."""

    label: str
    group: Group
    by_epoch: dict[int, list]

    def epoch_at(self, epoch: int) -> int:
        """The last epoch up to that one, or else the first, of those that were measured."""
        before = [e for e in self.by_epoch if e <= epoch]
        return max(before) if before else min(self.by_epoch)

    def at(self, epoch: int) -> list:
        """The rows of that epoch."""
        return self.by_epoch[self.epoch_at(epoch)]

    @property
    def last(self) -> int:
        return max(self.by_epoch)


def simplex_pictures(groups: list[Group], view: View) -> list[Picture]:
    """Where images lie in the plane of three clean class means: a row for each way to train.

    Of the first seed of each that was measured, for points cannot be averaged.
    """
    pictures = []
    for place, together in by_place(groups).items():
        triples = {row.classes for group in together for row in points_of(group)}
        for triple in sorted(triples):
            rows = []
            for group, style in zip(together, mode_styles(together), strict=True):
                run = next((run for run in group.runs if cloud_rows(run, triple, view)), None)
                if run is not None:
                    drawn = group.measured(partial(operator.is_, run))
                    rows.append(
                        PictureRow(style.label, drawn, by_epoch(cloud_rows(run, triple, view)))
                    )
                elif any(r.classes == triple and math.isnan(r.x) for r in points_of(group)):
                    figure = group.file_name("simplex")
                    logger.info(f"{figure}: left out, its class means span no plane")
            more = f"_classes{triple.replace(' ', '-')}" if len(triples) > 1 else ""
            name = view.file_name(f"simplex_{place}{more}")
            if rows:
                pictures.append(simplex_picture(name, rows, view))
    return pictures


def cloud_rows(run: Run, triple: str, view: View) -> list[SimplexRecord]:
    """The rows of one triangle, and of the images that are shown; its corners are of training.

    None of an epoch without such images, or whose class means span no plane.
    """
    shown = [
        row
        for row in run.at_own_epsilon(run.simplex)
        if row.classes == triple and (row.split == view.splits[0] or is_corner(row))
        if not math.isnan(row.x)
    ]
    epochs = {row.epoch for row in shown if row.image >= 0}
    return [row for row in shown if row.epoch in epochs]


def points_of(group: Group) -> Iterable[SimplexRecord]:
    return chain(*(run.simplex for run in group.runs))


def is_corner(row: SimplexRecord) -> bool:
    """Whether it is a clean training class mean."""
    return (row.split, row.input, row.image) == ("train", "clean", -1)


def by_epoch(rows: Iterable) -> dict[int, list]:
    epochs: dict[int, list] = {}
    for row in rows:
        epochs.setdefault(row.epoch, []).append(row)
    return epochs


def simplex_picture(name: str, rows: list[PictureRow], view: View) -> Picture:
    """The picture of one triangle, a row for each way to train."""
    groups = [row.group for row in rows]
    points = [p for row in rows for p in row.at(row.last) if p.image >= 0]
    count = len({(p.label, p.image) for p in points if p.input == points[0].input})
    outside = []
    for row in rows:
        shares = {
            kind: [p.outside for p in row.at(row.last) if p.input == kind and p.image >= 0]
            for kind in CLOUD_INPUTS
        }
        means = [f"{INPUTS[kind].label} {np.mean(s):.0%}" for kind, s in shares.items() if s]
        outside.append((f"{row.label}: " if len(rows) > 1 else "") + ", ".join(means))
    title = (
        f"The simplex of classes {points[0].classes.replace(' ', ', ')}"
        f"{after_epochs(groups, [row.last for row in rows])}: {names_of(groups)}; "
        f"{settings_in_words(groups)}; n = {count} {SPLIT_LABELS[view.splits[0]]} images"
    )
    kinds = {p.input for row in rows for p in row.at(row.last) if p.image >= 0}
    targets = (TARGETS_NOTE,) if any(INPUTS[kind].targeted for kind in kinds) else ()
    share = f"Mean share of a feature's norm outside the plane: {'; '.join(outside)}"
    epochs = sorted({epoch for row in rows for epoch in row.by_epoch})
    notes = (SIMPLEX_NOTE, *targets, share)
    return Picture(name, title, groups, partial(paint_simplex, rows), epochs, notes)


def paint_simplex(rows: list[PictureRow], epoch: int, *, animated: bool = False) -> Figure:
    """A row of panels for each way to train, all with one frame, if animated at every epoch."""
    shown = [row.at(epoch) for row in rows]
    every_epoch = [points for row in rows for points in row.by_epoch.values() if animated]
    kinds = [
        k for k in CLOUD_INPUTS if any(p.input == k and p.image >= 0 for s in shown for p in s)
    ]
    middle = ANIMATED_MIDDLE if animated else MIDDLE
    frame = frame_of([p for points in every_epoch or shown for p in points], middle)
    side = WIDTH / max(len(kinds), 2)
    height = side * (frame[3] - frame[2]) / (frame[1] - frame[0])
    around = 0.6 if animated else 0.45  # of the legend, and of the epoch above
    figure = Figure((WIDTH, len(rows) * height + around), layout="constrained")
    axes = figure.subplots(len(rows), len(kinds), squeeze=False)
    for number, (row, points, line) in enumerate(zip(rows, shown, axes, strict=True)):
        for kind, ax in zip(kinds, line, strict=True):
            paint_cloud(ax, kind, points)
            ax.axis(frame)
            ax.set(aspect="equal", xticks=(), yticks=())
            ax.spines[:].set_visible(False)
            ax.set_title(INPUTS[kind].label if number == 0 else "")
        line[0].set_ylabel(row.label if len(rows) > 1 else "")
    if animated:
        others = [
            f"{row.label}: {row.epoch_at(epoch)}" for row in rows if epoch not in row.by_epoch
        ]
        more = f" ({', '.join(others)})" if others else ""
        figure.suptitle(f"Epoch {epoch}{more}", fontsize=FONT_SIZE)
    names = shown[0][0].classes.split()
    handles = [
        Line2D([], [], color=color, marker="o", ms=4, ls="none", label=f"class {name}")
        for name, color in zip(names, CLASS_COLORS, strict=True)
    ]
    handles.append(Line2D([], [], color=TRIANGLE, linewidth=0.8, label="clean class means"))
    handles.append(
        Line2D([], [], color=CLASS_MEANS, marker="D", ms=4, ls="none", label="means of the points")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def frame_of(points: list[SimplexRecord], middle: float) -> tuple[float, float, float, float]:
    """The ends of both axes: the corners, the class means and nearly all of the images."""
    spans = []
    for axis in ("x", "y"):
        means = [getattr(p, axis) for p in points if p.image < 0]
        images = [getattr(p, axis) for p in points if p.image >= 0] or means
        low, high = np.quantile(images, (1 - middle, middle))
        low, high = min(low, *means), max(high, *means)
        spans += [low - 0.1, high + 0.15]
    return tuple(spans)


def paint_cloud(ax: Axes, kind: str, points: list[SimplexRecord]) -> None:
    """The images of one kind, their class means, and the triangle of the clean ones."""
    names = [int(name) for name in points[0].classes.split()]
    corners = {p.label: (p.x, p.y) for p in points if is_corner(p)}
    ax.fill(*zip(*corners.values(), strict=True), fill=False, edgecolor=TRIANGLE, linewidth=0.8)
    for name, color in zip(names, CLASS_COLORS, strict=True):
        images = [p for p in points if (p.input, p.label) == (kind, name) and p.image >= 0]
        x, y = [p.x for p in images], [p.y for p in images]
        ax.scatter(x, y, s=3, color=color, alpha=0.35, linewidths=0)
    means = [p for p in points if p.input == kind and p.image < 0]
    if kind == "clean":  # of the shown split: the corners may be of the other
        means = [p for p in means if not is_corner(p)] or means
    for mean in means:
        color = CLASS_COLORS[names.index(mean.label)]
        ax.plot(mean.x, mean.y, "D", markersize=4.5, color=color, mec=EDGE, mew=0.6, zorder=4)
        start = corners.get(mean.label, (mean.x, mean.y))
        if kind != "clean" and math.dist(start, (mean.x, mean.y)) > SHORTEST_ARROW:
            ax.annotate("", (mean.x, mean.y), start, arrowprops=ARROW, zorder=3)


def leap_pictures(groups: list[Group], view: View) -> list[Picture]:
    """From which class to which clean class mean perturbed images leap, at the last epoch.

    That is the last one which all seeds have that were measured at all, in the same kinds of input.
    """
    pictures = []
    for place, together in by_place(groups).items():
        rows = []
        for group, style in zip(together, mode_styles(together), strict=True):
            seeds = group.measured(partial(shown_leaps, view=view))
            leaps = [shown_leaps(run, view) for run in seeds.runs]
            measured = [{(row.epoch, row.input) for row in of_run} for of_run in leaps]
            common = set.intersection(*measured)
            if not common:
                tell_left_out(group, "leaps", any(leaps))
                continue
            epoch, _ = max(common)
            kinds = {input for at, input in common if at == epoch}
            last = [row for row in chain(*leaps) if row.epoch == epoch and row.input in kinds]
            rows.append(PictureRow(style.label, seeds, {epoch: last}))
        if rows:
            pictures.append(leap_picture(view.file_name(f"leaps_{place}"), rows, view))
    return pictures


def shown_leaps(run: Run, view: View) -> list[LeapRecord]:
    """The rows of perturbed images of the split that is shown."""
    return [
        row
        for row in run.at_own_epsilon(run.leaps)
        if row.split == view.splits[0] and row.input in LEAP_INPUTS
    ]


def leap_picture(name: str, rows: list[PictureRow], view: View) -> Picture:
    """The picture of one setting, a row for each way to train."""
    groups = [row.group for row in rows]
    images = sorted({r.images for row in rows for r in row.at(row.last)})
    title = (
        f"Leaps{after_epochs(groups, [row.last for row in rows])}: "
        f"{names_of(groups)}; {settings_in_words(groups)}; "
        f"n = {', '.join(map(str, images))} {SPLIT_LABELS[view.splits[0]]} images"
    )
    return Picture(name, title, groups, partial(paint_leaps, rows), [0], (LEAPS_NOTE,))


def matrix_of(rows: list[LeapRecord], kind: str, classes: int) -> np.ndarray:
    """Percentages, true class x nearest class mean; the last column is of no class mean at all."""
    counts = np.zeros((classes, classes + 1))
    for row in rows:
        if row.input == kind:
            counts[row.true_class, row.nearest_class] += row.count
    totals = counts.sum(axis=1, keepdims=True)
    return 100 * counts / np.where(totals == 0, 1, totals)


def paint_leaps(rows: list[PictureRow], _: int) -> Figure:
    """A matrix for each way to train and kind of images."""
    every = [r for row in rows for r in row.at(row.last)]
    kinds = [kind for kind in LEAP_INPUTS if any(r.input == kind for r in every)]
    classes = 1 + max(max(r.true_class, r.nearest_class) for r in every)
    side = WIDTH / max(len(kinds), 2)
    figure = Figure((WIDTH, len(rows) * side * 0.75 + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), len(kinds), squeeze=False)
    for number, (row, line) in enumerate(zip(rows, axes, strict=True)):
        for kind, ax in zip(kinds, line, strict=True):
            matrix = matrix_of(row.at(row.last), kind, classes)
            lost = matrix[:, -1].any()
            shown = paint_matrix(ax, matrix if lost else matrix[:, :-1])
            names = [*map(str, range(classes)), *(["none"] if lost else [])]
            step = 1 if classes <= MOST_NUMBERS else classes // 5
            ax.set_xticks(range(0, len(names), step), names[::step])
            ax.set_yticks(range(0, classes, step), names[:classes:step])
            whose = f"{row.label}, " if len(rows) > 1 else ""
            ax.set_title(f"{whose}{INPUTS[kind].label}")
            if number == len(rows) - 1:
                ax.set_xlabel("Nearest clean class mean")
        line[0].set_ylabel("True class")
    if classes > MOST_NUMBERS:
        figure.colorbar(shown, ax=axes, label="Percentage of the class", shrink=0.6)
    return figure


def paint_matrix(ax: Axes, matrix: np.ndarray) -> Any:
    """Percentages as shades, with their numbers where these can be read; none of nothing."""
    shown = ax.imshow(matrix, cmap=SHADES, vmin=0, vmax=100, aspect="auto")
    ax.spines[:].set_visible(True)
    ax.tick_params(length=0)
    if len(matrix) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(matrix):
            if value > 0:
                color = ON_DARK if value > DARK else ON_LIGHT
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
    return shown
