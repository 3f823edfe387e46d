"""What a figure is made of: panels with curves; and what lines of figures have in common."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from robust_nc.reports.groups import Group, Line, LineName, average, collect, common
from robust_nc.reports.style import AUTOATTACK, HOLLOW, Style, input_style, split_style
from robust_nc.results.metrics import Figure as Kind
from robust_nc.results.metrics import Metric
from utils import logger


class Panel(NamedTuple):
    """One metric: the field of a row, its name, how its axis is labelled and scaled.

    meaning: what the metric is, for the caption.
    head: above the panel, where panels differ in more than the metric.
    limits: of the axis, where figures that stand side by side share them.
    """

    field: str
    name: str
    label: str
    scale: str = "linear"  # or "log", or "share" for values in [0, 1]
    meaning: str = ""
    head: str = ""
    limits: tuple[float, float] | None = None


def panels_of(metrics: Iterable[Metric], figure: Kind, panels: str = "main") -> list[Panel]:
    """A panel for each of the metrics that is shown in such figures with that --panels."""
    return [
        Panel(m.field, m.name, m.label, m.scale, m.meaning)
        for m in metrics
        if m.shown_in(figure, panels)
    ]


class Curve(NamedTuple):
    """One line of a panel, and the field of its rows that it shows.

    against: the field that it is drawn against, where that is not the key of its rows.
    """

    style: Style
    line: Line
    field: str
    against: str = ""

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places on the x axis, means over the seeds, and unbiased deviations (NaN of one seed)."""
        x, mean, std = average(self.line, self.field)
        return (average(self.line, self.against)[1] if self.against else x), mean, std


class Plot(NamedTuple):
    """A figure to draw: its panels, each with its lines, and whose it is.

    title: of what and of whose runs it is, with which its caption begins; notes: what follows.
    x_names: of the places on the x axis, where these are blocks or kinds of images.
    x_ticks: the places that were measured, where there are few.
    x_falls: whether the x axis is logarithmic and falls to the right.
    columns: of panels, where a row is not to hold up to five. bars: in place of lines.
    legend: what it explains, where that is not each line.
    """

    name: str
    title: str
    groups: list[Group]
    panels: list[tuple[Panel, list[Curve]]]
    x_label: str = "Epoch"
    x_names: dict[int, str] | None = None
    x_ticks: tuple[float, ...] = ()
    x_falls: bool = False
    columns: int = 0
    bars: bool = False
    legend: tuple[Style, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def over_epochs(self) -> bool:
        return self.x_label == "Epoch"


class Picture(NamedTuple):
    """A figure that is not made of lines; of Plot's fields it has those that captions need.

    paint: from an epoch to what is drawn of it; `epochs` are those that it can be drawn of.
    """

    name: str
    title: str
    groups: list[Group]
    paint: Callable[..., Figure]
    epochs: list[int]
    notes: tuple[str, ...] = ()
    panels: tuple = ()
    over_epochs: bool = False
    bars: bool = False


def line_styles(names: list[LineName]) -> dict[LineName, Style]:
    """A style for each line; of lines of one input the later, of fewer images, are dotted."""
    styles: dict[LineName, Style] = {}
    for name in names:
        style = split_style(input_style(name.input), name.split)
        if any((n.split, n.input) == (name.split, name.input) for n in styles):
            style = style._replace(line=":", fill=HOLLOW, size=style.size - 1)
        styles[name] = style
    return styles


def autoattack_curves(group: Group) -> list[Curve]:
    """Accuracy of test images under AutoAttack at the run's epsilon, a line per number of them."""
    tables = [run.at_own_epsilon(run.autoattack) for run in group.runs]
    lines = collect(tables, lambda row: row.images)
    return [Curve(AUTOATTACK, line, "robust_accuracy") for line in lines.values() if common(line)]


def tell_left_out(group: Group, figure: str, recorded: bool) -> None:
    """A line where there is something that could have been shown if all seeds had it."""
    if recorded:
        logger.info(f"{group.file_name(figure)}: left out, not measured by all seeds")
