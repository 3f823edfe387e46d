"""All figures of groups of runs, and those of one group against epochs."""

from collections import defaultdict
from collections.abc import Collection
from typing import TypeVar

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.block_figures import centre_plots, layer_plots
from robust_nc.reports.captions import images_in_words
from robust_nc.reports.comparisons import distance_plots, mode_plots
from robust_nc.reports.file_figures import file_plots
from robust_nc.reports.groups import Group, Line, LineName, View
from robust_nc.reports.panels import (
    Curve,
    Panel,
    Picture,
    Plot,
    autoattack_curves,
    line_styles,
    panels_of,
)
from robust_nc.reports.radius_figures import epsilon_plots
from robust_nc.reports.setting import Setting, safe
from robust_nc.reports.style import CLASSIFIER, Style, spare_pair
from robust_nc.reports.vertex_figures import leap_pictures, simplex_pictures
from robust_nc.results.metrics import METRICS
from robust_nc.training.modes import MODES
from utils import logger

AnyPlot = TypeVar("AnyPlot", Plot, Picture)
# Noise that lies on other noise: not drawn beside it, but for --panels all.
TWINS = {"sign": "gaussian"}


def all_pictures(groups: list[Group], view: View) -> list[Plot | Picture]:
    """Every figure of the groups, ST first."""
    groups = in_order(groups)
    pictures = [*simplex_pictures(groups, view), *leap_pictures(groups, view)]
    return [*all_plots(groups, view), *(with_attack(picture, view) for picture in pictures)]


def in_order(groups: list[Group]) -> list[Group]:
    """The groups as MODES orders them."""
    return sorted(groups, key=lambda group: list(MODES).index(group.mode))


def all_plots(groups: list[Group], view: View) -> list[Plot]:
    """Every figure of lines and bars, each with the numbers of images that it is of."""
    plots = [plot for group in groups if not group.file for plot in epoch_plots(group, view)]
    plots += mode_plots(groups, view) + distance_plots(groups, view) + epsilon_plots(groups, view)
    plots += file_plots(groups, view) + layer_plots(groups, view) + centre_plots(groups)
    return with_one_range([finished(with_attack(plot, view)) for plot in plots if plot.panels])


def finished(plot: Plot) -> Plot:
    """The figure with what has values alone, and with the numbers of images that it is of."""
    plot = with_values(plot)
    return with_sizes(plot) if plot.panels else plot


def with_one_range(plots: list[Plot]) -> list[Plot]:
    """The figures that hold something; NC1 against epochs has one range in all of one setting."""
    values: dict[Setting, list[float]] = defaultdict(list)
    for plot in plots:
        for panel, curves in plot.panels if plot.over_epochs else ():
            if panel.field == "nc1":
                values[plot.groups[0].setting] += [v for c in curves for v in c.points()[1]]
    return [
        plot._replace(
            panels=[
                (within(panel, values[plot.groups[0].setting]), curves)
                if panel.field == "nc1" and plot.over_epochs
                else (panel, curves)
                for panel, curves in plot.panels
            ]
        )
        for plot in plots
        if plot.panels
    ]


def within(panel: Panel, values: list[float]) -> Panel:
    """The panel with limits that hold all of the values, where they can be on its scale."""
    seen = [value for value in values if np.isfinite(value) and value > 0]
    return panel._replace(limits=(min(seen) / 1.5, max(seen) * 1.5)) if seen else panel


def with_attack(plot: AnyPlot, view: View) -> AnyPlot:
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
        logger.info(f"{plot.name}: left out, not measured: {', '.join(dict.fromkeys(empty))}")
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
    images = images_in_words(sizes)
    notes = plot.notes
    if others:
        logger.info(f"{plot.name}: of {images}, but not all lines: {'; '.join(others)}")
        notes += (f"Not all lines are of as many: {'; '.join(others)}",)
    title = f"{plot.title}; {images}"
    return plot._replace(title=title, notes=notes, panels=with_own_looks(panels, others))


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


def epoch_plots(group: Group, view: View) -> list[Plot]:
    """Clean, perturbed and noisy images of one setting against epochs; and targeted ones."""
    shown = group.shown(view)
    targeted = {n: line for n, line in shown.items() if INPUTS[n.input].targeted}
    others = {n: line for n, line in shown.items() if n not in targeted}
    plots = [epoch_plot(group, "", others, view)] if others else []
    if targeted:
        clean = {n: line for n, line in others.items() if n.input == "clean"}
        plots.append(epoch_plot(group, "targeted", clean | targeted, view))
    return plots


def epoch_plot(group: Group, figure: str, lines: dict[LineName, Line], view: View) -> Plot:
    """The metrics against epochs; AutoAttack in the accuracy of test images.

    Distances to clean class means are of the targeted attack alone: the others' have a figure of
    their own.
    """
    kinds = {name.input for name in lines}
    twins = {one for one, other in TWINS.items() if kinds.issuperset((one, other))}
    notes: tuple[str, ...] = ()
    if view.panels != "all" and twins:
        lines = {name: line for name, line in lines.items() if name.input not in twins}
        labels = ", ".join(INPUTS[name].label for name in sorted(twins))
        notes = (f"Not drawn: {labels} (plot.py --panels all draws it)",)
    styles = line_styles(list(lines))
    metrics = [m for m in METRICS.values() if not m.from_clean or figure == "targeted"]
    panels: list[tuple[Panel, list[Curve]]] = []
    for panel in panels_of(metrics, "targeted" if figure else "epochs", view.panels):
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
    return Plot(name, group.title(figure), [group], panels, notes=notes)
