"""All figures of groups of runs, and those of one group against epochs."""

import re
from collections.abc import Collection

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.block_figures import centre_plots, layer_plots
from robust_nc.reports.comparisons import distance_plots, epsilon_plots, mode_plots
from robust_nc.reports.groups import Group, Line, LineName, View
from robust_nc.reports.panels import (
    Curve,
    Panel,
    Plot,
    autoattack_curves,
    line_styles,
    panels_of,
)
from robust_nc.reports.runs import safe
from robust_nc.reports.style import CLASSIFIER, Style, spare_pair
from robust_nc.results.metrics import METRICS
from robust_nc.results.records import SPLITS
from utils import logger


def all_plots(groups: list[Group], view: View) -> list[Plot]:
    """Every figure of the groups, each with the numbers of images that it is of."""
    plots = [plot for group in groups for plot in group_plots(group, view)]
    plots += distance_plots(groups, view) + mode_plots(groups, view) + epsilon_plots(groups, view)
    plots = [with_attack(plot, view) for plot in plots]
    return [with_sizes(plot) for plot in map(with_values, plots) if plot.panels]


def with_attack(plot: Plot, view: View) -> Plot:
    """Name and title tell the attack or noise that was asked for."""
    if not view.asked:
        return plot
    name = "_".join([plot.name, *(safe(words.replace(" ", "")) for words in view.asked)])
    return plot._replace(name=name, title=f"{plot.title}, {', '.join(view.asked)}")


def with_values(plot: Plot) -> Plot:
    """The figure without lines, and panels, that have no value; a line says which panels."""
    panels = [
        (panel, [curve for curve in curves if np.isfinite(curve.points()[1]).any()])
        for panel, curves in plot.panels
    ]
    empty = [panel.name or panel.label.replace("\n", " ") for panel, curves in panels if not curves]
    if empty:
        logger.info(f"{plot.name}: left out, not measured: {', '.join(empty)}")
    return plot._replace(panels=[(panel, curves) for panel, curves in panels if curves])


def with_sizes(plot: Plot) -> Plot:
    """The title ends with how many images there are; lines of another number say so themselves.

    So do lines of another precision than the first.
    """
    sizes: dict[str, int] = {}
    precisions: dict[str, str] = {}
    others: dict[str, None] = {}

    def sized(curve: Curve) -> Curve:
        row = next(iter(curve.line[0].values()))
        words = []
        if row.images != sizes.setdefault(row.split, row.images):
            words.append(f"n = {row.images}" if row.images else "n not told")
        if row.precision != precisions.setdefault(row.split, row.precision):
            words.append(row.precision or "precision not told")
        if not words:
            return curve
        label = ", ".join([curve.style.label, *words])
        others[label] = None
        return curve._replace(style=curve.style._replace(label=label))

    panels = [(panel, [sized(curve) for curve in curves]) for panel, curves in plot.panels]
    names = {"train": "training", "test": "test"}
    numbers = [f"{sizes[split] or ''} {names[split]}".strip() for split in SPLITS if split in sizes]
    images = re.sub(r"\d", r"n = \g<0>", f"{' and '.join(numbers)} images", count=1)
    if others:
        logger.info(f"{plot.name}: of {images}, but not all lines: {'; '.join(others)}")
    return plot._replace(title=f"{plot.title}; {images}", panels=with_own_looks(panels, others))


def with_own_looks(
    panels: list[tuple[Panel, list[Curve]]], others: Collection[str]
) -> list[tuple[Panel, list[Curve]]]:
    """Lines of other numbers of images that look as another line get a spare colour and marker.

    Args:
        others: the labels of these lines.
    """
    styles = dict.fromkeys(curve.style for _, curves in panels for curve in curves)
    used = {(style.color, style.marker) for style in styles}
    owners: dict[Style, str] = {}
    own: dict[Style, Style] = {}
    for style in sorted(styles, key=lambda style: style.label in others):
        own[style] = style
        if owners.setdefault(style._replace(label=""), style.label) != style.label:
            color, marker = spare_pair(used)
            used.add((color, marker))
            own[style] = style._replace(color=color, marker=marker)
    return [
        (panel, [curve._replace(style=own[curve.style]) for curve in curves])
        for panel, curves in panels
    ]


def group_plots(group: Group, view: View) -> list[Plot]:
    """The figures of one setting: training, the targeted attack, layers, the NCC classifier."""
    shown = group.shown(view)
    targeted = {n: line for n, line in shown.items() if INPUTS[n.input].targeted}
    others = {n: line for n, line in shown.items() if n not in targeted}
    plots = [epoch_plot(group, "", others, view)] if others else []
    if targeted:
        clean = {n: line for n, line in others.items() if n.input == "clean"}
        plots.append(epoch_plot(group, "targeted", clean | targeted, view))
    return [*plots, *layer_plots(group), *centre_plots(group)]


def epoch_plot(group: Group, figure: str, lines: dict[LineName, Line], view: View) -> Plot:
    """Every metric against epochs; AutoAttack in the accuracy of test images.

    Distances to clean class means are of the targeted attack alone: the others' have a figure of
    their own.
    """
    styles = line_styles(list(lines))
    metrics = [m for m in METRICS.values() if not m.from_clean]
    if figure == "targeted":
        metrics += [m for m in METRICS.values() if m.from_clean]
    panels: list[tuple[Panel, list[Curve]]] = []
    for panel in panels_of(metrics, "epochs"):
        if figure == "targeted":
            label = METRICS[panel.field].target_label or panel.label
            panel = panel._replace(label=label)
        curves = [Curve(styles[n], line, panel.field) for n, line in lines.items()]
        classifier = METRICS[panel.field].classifier
        if classifier:  # the same on every kind of input
            curves.append(Curve(CLASSIFIER, next(iter(lines.values())), classifier))
        if panel.field == "accuracy" and "test" in view.splits and not figure:
            curves += autoattack_curves(group)
        panels.append((panel, curves))
    name = view.file_name(group.file_name(figure))
    return Plot(name, group.title(figure), [group], panels)
