"""What a figure is made of: panels with curves; and what lines of figures have in common."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from robust_nc.reports.groups import Group, Line, LineName, average, collect, common
from robust_nc.reports.style import AUTOATTACK, Style, input_style, split_style
from robust_nc.results.metrics import Figure, Metric
from utils import logger

IMAGES_UNTOLD = 50_000  # for the end of the axis, where an older version did not tell how many


class Panel(NamedTuple):
    """One metric: the field of a row, its name, how its axis is labelled and scaled."""

    field: str
    name: str
    label: str
    scale: str = "linear"  # or "log", or "share" for values in [0, 1]
    title: str = ""  # above the panel


def panels_of(metrics: Iterable[Metric], figure: Figure) -> list[Panel]:
    """A panel for each of the metrics that is shown in such figures."""
    return [Panel(m.field, m.name, m.label, m.scale) for m in metrics if figure in m.figures]


class Curve(NamedTuple):
    """One line of a panel, and the field of its rows that it shows.

    clean: of a line of one run that is drawn against the share of clean images misclassified, and
    not against its keys: the run's clean rows.
    """

    style: Style
    line: Line
    field: str
    clean: dict[Any, Any] | None = None

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places on the x axis, means over the seeds, and unbiased deviations (NaN of one seed)."""
        x, mean, std = average(self.line, self.field)
        if self.clean is None:
            return x, mean, std
        rows = [self.clean[epoch] for epoch in x]
        # A logarithmic axis has no place for 0: half an image.
        least = [0.5 / (row.images or IMAGES_UNTOLD) for row in rows]
        return np.maximum([1 - row.accuracy for row in rows], least), mean, std


class Plot(NamedTuple):
    """A figure to draw: its panels, each with its lines, and whose it is.

    x_names: of the places on the x axis, where these are blocks or kinds of images.
    x_falls: whether the x axis is logarithmic and falls to the right.
    """

    name: str
    title: str
    groups: list[Group]
    panels: list[tuple[Panel, list[Curve]]]
    x_label: str = "Epoch"
    x_names: dict[int, str] | None = None
    x_falls: bool = False


def line_styles(names: list[LineName]) -> dict[LineName, Style]:
    """A style for each line; of lines of one input the later, of fewer images, are dotted."""
    styles: dict[LineName, Style] = {}
    for name in names:
        style = split_style(input_style(name.input), name.split)
        if any((n.split, n.input) == (name.split, name.input) for n in styles):
            style = style._replace(line=":", fill="white")
        styles[name] = style
    return styles


def autoattack_curves(group: Group) -> list[Curve]:
    """Accuracy of test images under AutoAttack at the run's epsilon, a line per number of them."""
    tables = [run.at_own_epsilon(run.autoattack) for run in group.runs]
    lines = collect(tables, lambda row: row.images)
    return [Curve(AUTOATTACK, line, "robust_accuracy") for line in lines.values() if common(line)]


def left_out(group: Group, figure: str, recorded: bool) -> list[Plot]:
    """No figure; a line says so where there is something that it could have shown."""
    if recorded:
        logger.info(f"{group.file_name(figure)}: left out, not measured by all seeds")
    return []
