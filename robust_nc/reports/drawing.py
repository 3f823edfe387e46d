"""How figures of lines and bars are drawn: axes, ticks, lines with their bands, legends."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    LogFormatterMathtext,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from robust_nc.reports.panels import Curve, Panel, Picture, Plot
from robust_nc.reports.style import BAND_COLOR, CHARACTER, DEVIATION, LR_DROP, WIDTH, Style
from robust_nc.results.history import EpochSummary

PANELS_PER_ROW = 5
PANEL_HEIGHT = 1.15  # inches
# Inches, which hold text of FONT_SIZE.
LEGEND_LINE, HEAD_HEIGHT, X_AXIS_HEIGHT, Y_AXIS_WIDTH = 0.15, 0.15, 0.36, 0.4
SLANT = 35  # degrees, of names that have no place beside each other
MARKERS_PER_LINE = 5
# Epochs: so many are points that no line joins, for nothing is known of the course between.
FEW = 10
BAND = "± one std over seeds"


def draw(plot: Plot | Picture) -> Figure:
    """A figure: rows of up to five panels with one legend below them, or a picture."""
    if isinstance(plot, Picture):
        return plot.paint(plot.epochs[-1])
    columns = min(plot.columns or len(plot.panels), PANELS_PER_ROW)
    rows = math.ceil(len(plot.panels) / columns)
    drops = drops_of(plot)
    handles = legend_entries(plot, [LR_DROP] if drops else [])
    legend_columns = columns_of_legend(handles)
    height = rows * (PANEL_HEIGHT + X_AXIS_HEIGHT)
    heads = max(panel.head.count("\n") + bool(panel.head) for panel, _ in plot.panels)
    height += HEAD_HEIGHT * heads
    if plot.x_names and not have_room(plot.x_names.values(), columns):
        longest = max(map(len, plot.x_names.values()))
        height += rows * CHARACTER * longest * math.sin(math.radians(SLANT))
    lines = sum(1 + str(handle.get_label()).count("\n") for handle in handles)
    height += 0.05 + LEGEND_LINE * math.ceil(lines / legend_columns)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for number, (ax, (panel, curves)) in enumerate(zip(axes, plot.panels, strict=False)):
        if plot.bars:
            draw_bars(ax, curves)
        for curve in () if plot.bars else curves:
            draw_line(ax, curve, panel.scale, joined=not (plot.over_epochs or plot.x_falls))
        finish_x_axis(ax, plot, columns)
        finish_y_axis(ax, panel)
        ax.set_xlabel(plot.x_label if number >= len(plot.panels) - columns else "")
        above = plot.panels[number - columns][0].head if number >= columns else ""
        ax.set_title(panel.head if panel.head != above else "", linespacing=0.95)
        for epoch in drops:
            ax.axvline(epoch, color=LR_DROP.color, linestyle=LR_DROP.line, linewidth=0.7, zorder=0)
    drawn = axes[: len(plot.panels)]
    for ax in axes[len(plot.panels) :]:
        ax.axis("off")
    share_axes(plot, drawn, columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns)
    return figure


def drops_of(plot: Plot | Picture) -> list[int]:
    """Where the learning rate of a run drops: of all runs at the same epochs, or of none."""
    runs = [run for group in plot.groups for run in group.runs if run.history]
    drops = {tuple(lr_drops(run.history)) for run in runs}
    return list(drops.pop()) if plot.over_epochs and len(drops) == 1 else []


def lr_drops(history: list[EpochSummary]) -> list[int]:
    """Epochs whose learning rate is at most a fifth of the former one's; 0 ends a smooth decay."""
    return [
        row.epoch
        for before, row in pairwise(history)
        if row.epoch == before.epoch + 1 and 0 < row.lr <= before.lr / 5
    ]


def share_axes(plot: Plot, axes: Sequence[Axes], columns: int) -> None:
    """Panels beside each other that show one metric have one scale, which the first one tells."""
    places = [
        ((number // columns, panel.label, panel.scale), panel, ax)
        for number, ((panel, _), ax) in enumerate(zip(plot.panels, axes, strict=True))
    ]
    for _, alike in groupby(places, key=lambda place: place[0]):
        (_, panel, first), *others = alike
        beside = [first, *(ax for *_, ax in others)]
        scaled = [ax for ax in beside if ax.get_yscale() == "log"]
        for ax in beside if scaled else ():
            if ax not in scaled:  # it has nothing above zero
                ax.set_yscale("log")
        ends = [ax.get_ylim() for ax in scaled or beside]
        for _, _, ax in others:
            set_limits(ax, panel, min(low for low, _ in ends), max(high for _, high in ends))
            ax.set_ylabel("")
            ax.tick_params("y", which="both", labelleft=False)
        if others:
            set_limits(first, panel, min(low for low, _ in ends), max(high for _, high in ends))


def legend_entries(plot: Plot, others: list[Style]) -> list[Artist]:
    """Of each style of the curves and of others, and of the deviation over seeds."""
    styles = dict.fromkeys(curve.style for _, curves in plot.panels for curve in curves)
    shown = [*(plot.legend or styles), *others]
    if plot.bars:
        entries: list[Artist] = [Patch(color=s.color, label=in_lines(s.label)) for s in shown]
    else:
        entries = [handle(style, plot.over_epochs and is_of_points(plot, style)) for style in shown]
    if any(len(curve.line) > 1 for _, curves in plot.panels for curve in curves):
        entries.append(Patch(color=BAND_COLOR, alpha=0.4, linewidth=0, label=BAND))
    return entries


def in_lines(label: str) -> str:
    """A label in as many lines as the figure's width asks for."""
    return textwrap.fill(label, int((WIDTH - 0.5) / (1.2 * CHARACTER)))  # of wide characters


def columns_of_legend(handles: Iterable[Artist]) -> int:
    """As many columns as the width holds, each as wide as the longest entry."""
    handles = list(handles)
    lines_of_labels = [str(handle.get_label()).replace("$", "").splitlines() for handle in handles]
    widest = max(len(line) for lines in lines_of_labels for line in lines)
    columns = max(1, int(WIDTH / (0.5 + CHARACTER * widest)))
    lines = math.ceil(len(handles) / columns)
    return math.ceil(len(handles) / lines)  # as even as can be


def handle(style: Style, few: bool = False) -> Line2D:
    """A line as the legend shows it; of a few points it has none, but for one without markers."""
    line = Line2D([], [], label=in_lines(style.label), color=style.color, linestyle=style.line)
    line.set(marker=style.marker, markersize=style.size, markeredgewidth=0.7)
    if style.fill:
        line.set(markerfacecolor=style.fill)
    if few and style.marker:
        line.set_linestyle("none")
    return line


def is_of_points(plot: Plot, style: Style) -> bool:
    """Whether all that is drawn in a style is so few points that no line joins them."""
    curves = [curve for _, curves in plot.panels for curve in curves]
    # A legend of its own explains colours by one style and lines by another.
    alike = [
        c for c in curves if c.style == style or (plot.legend and c.style.color == style.color)
    ]
    return bool(alike) and all(len(curve.points()[0]) <= FEW for curve in alike)


def draw_line(ax: Axes, curve: Curve, scale: str, joined: bool) -> None:
    """A line with a few markers and its band of one standard deviation; or points with bars.

    joined: whether few points are joined too.
    """
    x, mean, std = curve.points()
    few = len(x) <= FEW
    step = 1 if few else math.ceil(len(x) / MARKERS_PER_LINE)
    line = handle(curve.style, few and not joined)
    line.set_data(x, mean)
    # Lines that coincide take turns, so that each shows its markers.
    line.set_markevery((len(ax.lines) * step // 4 % step, step))
    ax.add_line(line)
    # On a logarithmic axis a band that reaches zero has no end: it ends a decade below its line.
    low = np.maximum(mean - std, mean / 10) if scale == "log" else mean - std
    if (few and not joined) or curve.style.line == "none":
        ax.vlines(x, low, mean + std, color=curve.style.color, alpha=0.4, linewidth=2)
    else:
        ax.fill_between(x, low, mean + std, color=curve.style.color, alpha=0.2, linewidth=0)


def draw_bars(ax: Axes, curves: list[Curve]) -> None:
    """For each place on the x axis a group of bars, one of each line, with the deviation."""
    width = 0.8 / len(curves)
    for number, curve in enumerate(curves):
        x, mean, std = curve.points()
        places = x + (number - (len(curves) - 1) / 2) * width
        # The edge shows where a bar of no height is.
        ax.bar(
            places,
            mean,
            width * 0.85,
            color=curve.style.color,
            edgecolor=curve.style.color,
            linewidth=0.5,
        )
        if np.isfinite(std).any():
            ax.errorbar(places, mean, std, fmt="none", ecolor=DEVIATION, elinewidth=0.7)


def finish_x_axis(ax: Axes, plot: Plot, columns: int) -> None:
    """The scale, ends and ticks of the x axis, when all is drawn."""
    ax.margins(x=0.08, y=0.08)
    ax.autoscale_view()
    if plot.x_falls:
        ax.set_xscale("log")
        ax.invert_xaxis()
        low, high = sorted(ax.get_xlim())
        tick_log_axis(ax.xaxis, low, high)
    elif plot.x_names is not None:
        ax.set_xticks(list(plot.x_names), list(plot.x_names.values()))
        ax.tick_params("x", length=0)
        if not have_room(plot.x_names.values(), columns):
            ax.tick_params("x", labelrotation=SLANT)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    elif plot.x_ticks:
        ax.set_xticks(plot.x_ticks, apart(plot.x_ticks, columns))
    else:
        bins = 3 if columns > 3 else 6
        ax.xaxis.set_major_locator(MaxNLocator(bins, integer=plot.over_epochs, min_n_ticks=1))


def have_room(names: Iterable[str], columns: int) -> bool:
    """Whether names have place beside each other below a panel."""
    names = list(names)
    widest = max(map(len, names))
    return widest <= 2 or len(names) * (widest + 1) * CHARACTER < WIDTH / columns - Y_AXIS_WIDTH


def apart(ticks: Sequence[float], columns: int) -> list[str]:
    """Labels of ticks; none of one that would touch the label before it."""
    inch = (WIDTH / columns - Y_AXIS_WIDTH) / ((max(ticks) - min(ticks)) or 1)
    labels: list[str] = []
    end = -math.inf
    for tick in ticks:
        label = f"{tick:g}"
        half = len(label) * CHARACTER / 2
        free = tick * inch - half > end
        labels.append(label if free else "")
        end = tick * inch + half + CHARACTER if free else end
    return labels


def finish_y_axis(ax: Axes, panel: Panel) -> None:
    """The label, scale and ends of the y axis; linear where nothing is above zero."""
    ax.set_ylabel(panel.label)
    low, high = panel.limits or ax.get_ylim()
    if panel.scale == "log" and (panel.limits or ax.dataLim.minposy < np.inf):
        ax.set_yscale("log")
        low, high = panel.limits or ax.get_ylim()
    elif panel.scale == "log":  # nothing above zero
        panel = panel._replace(scale="linear")
    set_limits(ax, panel, low, high)


def set_limits(ax: Axes, panel: Panel, low: float, high: float) -> None:
    """The ends of the y axis and its ticks."""
    if panel.scale == "share":
        ax.set_ylim(-0.04, 1.04)
        ax.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
    elif ax.get_yscale() == "log":
        ax.set_ylim(low, high)
        tick_log_axis(ax.yaxis, low, high)
    else:
        ax.set_ylim(min(low, -0.05 * high), high)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def tick_log_axis(axis: Axis, low: float, high: float) -> None:
    """Labelled ticks, and between them the small ones that tell a logarithmic axis."""
    ticks = log_ticks(low, high)
    powers = ticks[-1] > 1000 or ticks[0] < 0.001
    plain = StrMethodFormatter("{x:g}")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(LogFormatterMathtext() if powers else plain)
    axis.set_minor_locator(FixedLocator(minor_ticks(low, high)))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float) -> list[float]:
    """Three to seven ticks of a logarithmic axis: powers of ten where it holds as many of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [d * 10.0**power for power in range(first, last + 1) for d in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 7)]
    # So narrow that the axis is nearly linear.
    for bins in range(4, 100):
        ticks = [tick for tick in MaxNLocator(bins).tick_values(low, high) if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def minor_ticks(low: float, high: float) -> list[float]:
    """Two to nine times each power of ten, or the powers where these are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = range(1, 10) if last - first <= 6 else (1,)
    ticks = [d * 10.0**power for power in range(first, last + 1) for d in digits]
    return [tick for tick in ticks if low <= tick <= high]
