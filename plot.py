"""Draw the paper's figures from run folders, as PNG and PDF, and tabulate the last values.

    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/std_train/seed1             # into figures/
    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/*/seed* --out figs --table  # all at once

Runs whose args.json differ in the seed alone, or in what cannot change a number, are one group:
its figures show their mean and, shaded, their standard deviation. Other runs have figures of their
own; where the usual name would be the same, it ends with the flags that differ.
"""

import argparse
import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
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
from robust_nc.parsing import Parser
from robust_nc.reports.figures import DISTANCE_PANELS, EPOCH_PANELS, Panel, Plot, Style, all_plots
from robust_nc.reports.runs import (
    NO_FLAGS,
    PERTURBED,
    Group,
    Line,
    LineName,
    Setting,
    View,
    average,
    by_setting,
    collect,
    common,
    group_runs,
    in_words,
    radius_in_words,
    read_run,
)
from robust_nc.results.records import SPLITS, AutoAttackRecord, EpochSummary, Record, radius_of
from robust_nc.results.tables import NC1_DEFINITION, markdown, with_spread
from robust_nc.training.modes import MODES
from utils import InputError, atomic_open, logger, run_script

LR_DROP = Style("learning-rate drop", "0.5", line=":")

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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Draw the paper's figures from run folders, as PNG and PDF.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of runs")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        metavar="DIR",
        help="where the figures go (default: %(default)s)",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the values of the last epoch, and write them as table.md and table.csv",
    )
    parser.add_argument(
        "--split",
        choices=(*SPLITS, "both"),
        default="train",
        help="draw training images, test images, or both, test dashed (default: %(default)s)",
    )
    parser.add_argument(
        "--perturbed",
        choices=PERTURBED,
        default="seen",
        help="which perturbed images of AT, TRADES and MART: those seen in training, as the paper "
        "draws them, or PGD on the checkpoint (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out} is not a folder")
    return args


def main() -> None:
    args = parse_args()
    view = View(args.split, args.perturbed)
    groups = group_runs([read_run(path) for path in args.runs])
    tell_differences(groups)
    for group in groups:
        tell_gaps(group, view)
    plots = all_plots(groups, view)
    if not plots:
        images = "" if args.split == "train" else f" with --split {args.split}"
        raise InputError(f"{args.runs[0]}: holds nothing to draw{images}; run eval.py on it first")
    args.out.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        with matplotlib.rc_context(RC):
            figure = draw(plot)
            for kind in ("png", "pdf"):
                content = io.BytesIO()
                figure.savefig(content, format=kind)
                write(args.out / f"{plot.name}.{kind}", content.getvalue())
    if args.table:
        words, table = tables(groups, view)
        logger.info(words)
        write(args.out / "table.md", words.encode())
        write(args.out / "table.csv", table.encode())


def write(path: Path, content: bytes) -> None:
    with atomic_open(path) as file:
        file.write(content)
    logger.info(f"wrote {path}")


def tell_differences(groups: list[Group]) -> None:
    """One line for each setting whose runs are in more groups than one."""
    for alike in by_setting(groups):
        told = []
        for name in dict.fromkeys(name for group in alike for name in group.differs):
            values = dict.fromkeys(g.differs[name] for g in alike if name in g.differs)
            dashes = "" if name in NO_FLAGS else "--"
            told.append(f"{dashes}{name} ({', '.join(values)})")
        if told:
            name = alike[0].setting.file_name()
            logger.info(f"{name}: runs differ in {', '.join(told)}: drawn apart")


def tell_gaps(group: Group, view: View) -> None:
    """A line on what is missing, on what stands in, and on epochs that not all seeds have."""
    name, shown = group.file_name(), group.shown(view)
    of_all = " by all seeds" if len(group.runs) > 1 else ""
    for split in view.splits:
        found = {line.input for line in shown if line.split == split}
        missing = missing_kinds(found, group.setting.mode)
        images = "" if split == "train" else " on test images"
        if missing:
            logger.info(f"{name}: left out, not measured{images}{of_all}: {', '.join(missing)}")
        # Test images are seen in no training.
        drawn = found.intersection(PERTURBED) if split == "train" else set()
        if MODES[group.setting.mode].adversary and drawn and view.perturbed not in drawn:
            asked, other = INPUTS[view.perturbed].label, INPUTS[drawn.pop()].label
            logger.info(f"{name}: not measured{of_all}: {asked}; drawn is {other}")
    if view.split == "train" and any(run.autoattack for run in group.runs):
        logger.info(
            f"{name}: AutoAttack is of test images: drawn over epochs with --split test or both"
        )
    if any(len({frozenset(rows) for rows in line}) > 1 for line in shown.values()):
        counts = ", ".join(f"{kind_of(n)} {len(common(line))}" for n, line in shown.items())
        logger.info(f"{name}: seeds differ in epochs; drawn are those common to all: {counts}")


def kind_of(name: LineName) -> str:
    return name.input if name.split == "train" else f"{name.input} ({name.split})"


def missing_kinds(found: set[str], mode: str) -> list[str]:
    """The kinds of input that eval.py measures where asked, unless another stands in."""
    kinds = [INPUTS[kind] for kind in found]
    stood_in = {name for kind in kinds for name in (kind.stands_in_for, kind.published_as)}
    return [
        kind
        for kind, row in INPUTS.items()
        if row.asked_by and not (row.targeted and MODES[mode].adversary)
        if kind not in found | stood_in
    ]


def lr_drops(history: list[EpochSummary]) -> list[int]:
    """Epochs whose learning rate is at most a fifth of the former one's; 0 ends a smooth decay."""
    return [
        row.epoch
        for before, row in pairwise(history)
        if row.epoch == before.epoch + 1 and 0 < row.lr <= before.lr / 5
    ]


# Drawing


def draw(plot: Plot) -> Figure:
    """Two columns of panels; the legend in the place that an odd number leaves, or below."""
    rows, odd = math.ceil(len(plot.panels) / 2), len(plot.panels) % 2
    drops = {e for group in plot.groups for run in group.runs for e in lr_drops(run.history)}
    drops = drops if plot.x_label == "Epoch" else set()
    styles = dict.fromkeys(curve.style for _, curves in plot.panels for curve in curves)
    handles: list[Artist] = [handle(style) for style in [*styles] + [LR_DROP] * bool(drops)]
    if any(len(curve.line) > 1 for _, curves in plot.panels for curve in curves):
        handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± one std over seeds"))
    # Each entry has a handle of six characters or so beside its label.
    widest = max(len(str(handle.get_label())) for handle in handles) + 8
    columns = min(3, max(1, LEGEND_WIDTH // widest))
    inside = odd and len(handles) <= LEGEND_LINES and widest <= LEGEND_WIDTH // 2
    below = 0 if inside else 0.2 + 0.15 * math.ceil(len(handles) / columns)
    titled = TITLED_HEIGHT * any(panel.title for panel, _ in plot.panels)
    height = 0.3 + rows * (PANEL_HEIGHT + titled) + below + NAMES_HEIGHT * crowded(plot)
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


# The table


def tables(groups: list[Group], view: View) -> tuple[str, str]:
    """Every metric at the last common epoch: Markdown, and CSV with all digits, a row per value."""
    metrics = [(panel.name, panel.field) for panel in EPOCH_PANELS + DISTANCE_PANELS]
    metrics += [(f"{p.name} of W", p.classifier) for p in EPOCH_PANELS if p.classifier]
    place = ("input", "split", "images", "attack_epsilon", "epoch")
    parts, content = [], io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*Setting._fields, "seeds", *place, "metric", "mean", "std", "differs"])
    for group in groups:
        heads = ("input", "split", "images", "epsilon", "epoch", *(name for name, _ in metrics))
        rows = []
        seeds = " ".join(str(run.seed) for run in group.runs)
        for (split, kind, images, radius), line in table_lines(group, view).items():
            epoch, attack = common(line)[-1], radius_in_words(radius, group.setting.dataset)
            cells = [kind, split, str(images or "-"), attack if radius else "-", str(epoch)]
            for name, field in metrics:
                mean, std = last_values(line, field)
                cells.append(with_spread(mean, std, ".2e" if name == "NC1" else ".4f"))
                numbers = ["" if math.isnan(value) else value for value in (mean, std)]
                row = [kind, split, images or "", radius or "", epoch, name, *numbers]
                writer.writerow([*group.setting, seeds, *row, in_words(group.differs)])
            rows.append(cells)
        parts.append(f"**{group.title()}**\n\n{markdown(heads, rows)}")
    return "\n".join([*parts, f"{NC1_DEFINITION}\n"]), content.getvalue()


def table_lines(group: Group, view: View) -> dict[tuple[str, str, int, float], Line]:
    """(split, input, images, epsilon) -> rows by epoch, of all that was measured by all seeds.

    AutoAttack is there whatever the split, with the clean accuracy of its images.
    """
    tables = [[row for row in run.records if row.split in view.splits] for run in group.runs]
    lines = collect(tables, lambda row: (row.split, row.input, row.images, radius_of(row)))
    for kind, field in (("clean", "clean_accuracy"), ("autoattack", "robust_accuracy")):
        tables = [[accuracy_record(row, field) for row in run.autoattack] for run in group.runs]
        tested = collect(tables, lambda row: (row.split, row.images, radius_of(row)))
        for (split, images, radius), line in tested.items():
            key = (split, kind, images, 0.0 if kind == "clean" else radius)
            lines.setdefault(key, line)
    return {name: line for name, line in lines.items() if common(line)}


def accuracy_record(row: AutoAttackRecord, field: str) -> Record:
    """A row of AutoAttack as one of all metrics, of which it knows the accuracy alone."""
    unknown = {f.name: math.nan for f in fields(Record)}
    known = {f.name: getattr(row, f.name) for f in fields(row) if f.name in unknown}
    key = {"source": "eval", "input": "clean", "accuracy": getattr(row, field)}
    return Record(**unknown | known | key)


def last_values(line: Line, field: str) -> tuple[float, float]:
    """Mean and deviation of a field at the last common epoch."""
    _, mean, std = average(line, field)
    return float(mean[-1]), float(std[-1])


if __name__ == "__main__":
    run_script(main)
