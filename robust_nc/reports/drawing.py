"""How figures are drawn: axes, lines with their bands, legends, titles."""

import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    LogFormatterMathtext,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.panels import Panel, Plot
from robust_nc.reports.style import LR_DROP, Style
from robust_nc.results.history import EpochSummary

RC: Any = {
    "font.size": 7,
    "lines.linewidth": 1.0,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.3,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "savefig.dpi": 200,
}
WIDTH, PANEL_HEIGHT = 5.5, 1.45  # inches; the width of a column of text
MARKERS_PER_LINE = 12
JOINED_WIDTH = 0.3
TITLE_WIDTH, LEGEND_WIDTH, X_WIDTH = 100, 105, 40  # characters
TITLED_HEIGHT, NAMES_HEIGHT = 0.35, 0.3  # inches, of titles of panels and names of blocks
LEGEND_LINES = 9  # that the place of one panel holds


def draw(plot: Plot) -> Figure:
    """Two columns of panels; the legend in the place that an odd number leaves, or below."""
    rows, odd = math.ceil(len(plot.panels) / 2), len(plot.panels) % 2
    runs = [run for group in plot.groups for run in group.runs] if plot.x_label == "Epoch" else []
    drops = {epoch for run in runs for epoch in lr_drops(run.history)}
    handles = legend_entries(plot, [LR_DROP] if drops else [])
    # Each entry has a handle of six characters or so beside its label.
    widest = max(len(str(handle.get_label())) for handle in handles) + 8
    columns = min(3, max(1, LEGEND_WIDTH // widest))
    inside = odd and len(handles) <= LEGEND_LINES and widest <= LEGEND_WIDTH // 2
    below = 0 if inside else 0.2 + 0.15 * math.ceil(len(handles) / columns)
    titles = TITLED_HEIGHT if any(panel.title for panel, _ in plot.panels) else 0
    names = NAMES_HEIGHT if crowded(plot) else 0
    height = 0.3 + rows * (PANEL_HEIGHT + titles) + below + names
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(wrapped(plot.title), fontsize=7.5)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for ax, (panel, curves) in zip(axes, plot.panels, strict=False):
        points = [curve.points() for curve in curves]
        measured = () if plot.x_falls else np.unique(np.concatenate([x for x, *_ in points]))
        for curve, values in zip(curves, points, strict=True):
            draw_line(ax, curve.style, values, panel.scale, joined(values[0], measured))
        finish_x_axis(ax, plot)
        finish_y_axis(ax, panel)
        for epoch in drops:
            ax.axvline(epoch, color=LR_DROP.color, linestyle=LR_DROP.line, linewidth=0.8, zorder=0)
    drawn = axes[: len(plot.panels)]
    for ax in drawn[-2:]:
        ax.set_xlabel(plot.x_label)
    for ax in drawn[: -2 - odd] if plot.x_names else ():  # the same names below
        ax.tick_params("x", labelbottom=False)
    if odd:
        axes[-1].axis("off")
    if inside:
        axes[-1].legend(handles=handles, loc="center")
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def legend_entries(plot: Plot, others: list[Style]) -> list[Artist]:
    """Of each style of the curves and of others, and of the band over seeds."""
    styles = dict.fromkeys(curve.style for _, curves in plot.panels for curve in curves)
    entries: list[Artist] = [handle(style) for style in (*styles, *others)]
    if any(len(curve.line) > 1 for _, curves in plot.panels for curve in curves):
        entries.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± one std over seeds"))
    return entries


def handle(style: Style) -> Line2D:
    line = Line2D([], [], label=style.label, color=style.color, linestyle=style.line)
    line.set(marker=style.marker, markersize=style.size)
    if style.fill:
        line.set(markerfacecolor=style.fill, markeredgecolor=style.color, markeredgewidth=0.8)
    return line


def joined(x: np.ndarray, others: Sequence[float] | np.ndarray) -> bool:
    """Whether a line joins points between which others were measured, or two points alone."""
    between = [place for place in others if x[0] < place < x[-1] and place not in x]
    return len(x) == 2 or bool(between)


def draw_line(ax: Axes, style: Style, values: tuple, scale: str, thin: bool) -> None:
    """A line with a dozen markers or so, and its band of one standard deviation.

    thin: it joins what was measured and tells nothing of the course between; so does no line at
    all. The deviation is that of the points alone then.
    """
    x, mean, std = values
    step = math.ceil(len(x) / MARKERS_PER_LINE)
    line = handle(style)
    line.set_data(x, mean)
    # Lines that coincide take turns, so that each shows its markers.
    line.set_markevery((len(ax.lines) * step // len(INPUTS) % step, step))
    ax.add_line(line)
    # On a logarithmic axis a band that reaches zero has no end: it ends a decade below its line.
    low = np.maximum(mean - std, mean / 10) if scale == "log" else mean - std
    if thin or style.line == "none":
        line.set_linewidth(JOINED_WIDTH)
        ax.vlines(x, low, mean + std, color=style.color, alpha=0.5, linewidth=1.5)
    else:
        ax.fill_between(x, low, mean + std, color=style.color, alpha=0.2, linewidth=0)


def wrapped(title: str) -> str:
    """A long title on several lines, which end with its parts where they can."""
    lines: list[str] = []
    for part in title.split("; "):
        joined = f"{lines[-1]}; {part}" if lines else part
        lines = [*lines[:-1], joined] if len(joined) <= TITLE_WIDTH else [*lines, part]
    return "\n".join(textwrap.fill(line, TITLE_WIDTH) for line in lines)


def crowded(plot: Plot) -> bool:
    """Whether the names on the x axis need a slant."""
    names = (plot.x_names or {}).values()
    return sum(max(map(len, name.split("\n"))) + 2 for name in names) > X_WIDTH


def finish_x_axis(ax: Axes, plot: Plot) -> None:
    ax.autoscale_view()
    if plot.x_falls:
        ax.set_xscale("log")
        ax.invert_xaxis()
        return
    if plot.x_names is None:
        epochs = plot.x_label == "Epoch"
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=epochs, min_n_ticks=1))
        return
    ax.set_xticks(list(plot.x_names), list(plot.x_names.values()))
    if crowded(plot):
        ax.tick_params("x", labelrotation=45)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def finish_y_axis(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel(panel.label)
    ax.set_title(panel.title, fontsize=7)
    high = ax.get_ylim()[1]
    if panel.scale == "share":
        ax.set_ylim(-0.06, 1.06)
    elif panel.scale == "linear" or ax.dataLim.minposy == np.inf:  # nothing above zero
        ax.set_ylim(-0.06 * high, 1.04 * high)
    else:
        ax.set_yscale("log")
        ax.set_ylabel(f"{panel.label} (log)")
        ticks = log_ticks(*ax.get_ylim())
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())
        powers = ticks[-1] >= 1000 * ticks[0]
        ax.yaxis.set_major_formatter(
            LogFormatterMathtext() if powers else StrMethodFormatter("{x:g}")
        )


def log_ticks(low: float, high: float) -> list[float]:
    """Three to seven ticks of a logarithmic axis: powers of ten where it holds as many of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
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


def lr_drops(history: list[EpochSummary]) -> list[int]:
    """Epochs whose learning rate is at most a fifth of the former one's; 0 ends a smooth decay."""
    return [
        row.epoch
        for before, row in pairwise(history)
        if row.epoch == before.epoch + 1 and 0 < row.lr <= before.lr / 5
    ]
