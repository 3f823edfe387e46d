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
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

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

from files import atomic_open
from flags import Parser
from groups import (
    STATISTICS,
    Group,
    Line,
    Setting,
    average,
    by_setting,
    collect,
    common,
    differences,
    group_runs,
    in_words,
    read_run,
)
from inputs import INPUTS
from records import ADAPTIVE, NC1_DEFINITION, EpochSummary
from steps import MODES
from utils import InputError, logger, run_script


class Style(NamedTuple):
    label: str
    color: str
    marker: str = ""
    size: float = 4.5
    line: Any = "-"
    hollow: bool = False


def input_style(name: str) -> Style:
    if name == ADAPTIVE:
        return Style("PGD on the NCC classifier", "#661100", "X")
    kind = INPUTS[name]
    return Style(kind.label, kind.color, kind.marker, kind.size)


def mode_style(name: str) -> Style:
    mode = MODES[name]
    return Style(mode.label, mode.color, mode.marker, line=mode.line)


CLASSIFIER = Style("classifier $W$", "black", "*", 4, "--")
LR_DROP = Style("learning-rate drop", "0.5", line=":")
# Of further lines of one training mode in one figure; small and hollow, they are seen on others.
MORE_MARKERS = "sDov^ph"


class Panel(NamedTuple):
    """One metric: the field of a row, its name, how its axis is labelled and scaled."""

    field: str
    name: str
    label: str
    scale: str = "linear"  # or "log", or "share" for values in [0, 1]
    classifier: str | None = None  # the field that holds the metric of W


NC1 = Panel("nc1", "NC1", r"NC1 = tr$(\Sigma_W\,\Sigma_B^+)$", "log")
NC2_NORM = Panel(
    "nc2_norm_activation", "NC2 norm", "NC2 norms\nstd / mean of $\\|\\mu_c-\\mu_G\\|$"
)
NC2_ANGLE = Panel("nc2_angle_activation", "NC2 angle", "NC2 angles\nmean $|\\cos + 1/(C-1)|$")
EPOCH_PANELS = (
    Panel("accuracy", "accuracy", "Accuracy\n(share of images)", "share"),
    Panel("loss", "loss", "Loss\n(cross-entropy)", "log"),
    NC1,
    NC2_NORM._replace(classifier="nc2_norm_classifier"),
    NC2_ANGLE._replace(classifier="nc2_angle_classifier"),
    Panel("nc3", "NC3", "NC3\n$\\|W^\\top\\!/\\|W\\|_F - M/\\|M\\|_F\\|_F^2$"),
    Panel("nc4", "NC4", "NC4\nshare NCC $\\neq$ network", "share"),
    Panel("cdnv", "CDNV", "CDNV\n$(V_a+V_b)\\,/\\,2\\|\\mu_a-\\mu_b\\|^2$", "log"),
    Panel("nc2_zhu", "NC2 (Zhu)", "NC2 (Zhu et al.)\n$WW^\\top$ to simplex"),
    Panel("nc3_zhu", "NC3 (Zhu)", "NC3 (Zhu et al.)\n$WM$ to simplex"),
)
DISTANCE_PANELS = (
    Panel("clean_distance", "distance", "Distance to clean\n$\\|\\tilde\\mu_c-\\mu_c\\|$"),
    Panel("clean_angle", "angle", "Angle to clean\n$\\angle(\\tilde\\mu_c,\\mu_c)$ [rad]"),
)
LAYER_PANELS = (
    NC1,
    NC2_NORM._replace(field="nc2_norm"),
    NC2_ANGLE._replace(field="nc2_angle"),
    Panel("ncc_accuracy", "NCC accuracy", "NCC accuracy\n(share of images)", "share"),
    Panel("ncc_agreement", "NCC agreement", "NCC agreement\nshare NCC = network", "share"),
)

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
TITLE_WIDTH, LEGEND_WIDTH = 100, 105  # characters


class Plot(NamedTuple):
    """A figure to draw: its panels, each with lines in their styles, and whose it is."""

    name: str
    title: str
    groups: list[Group]
    panels: list[tuple[Panel, list[tuple[Style, Line, str]]]]  # the field of each line last
    x_label: str = "Epoch"


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
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out} is not a folder")
    return args


def main() -> None:
    args = parse_args()
    groups = group_runs([read_run(path) for path in args.runs])
    tell_differences(groups)
    for group in groups:
        tell_gaps(group)
    plots = [plot for group in groups for plot in group_plots(group)] + distance_plots(groups)
    if not plots:
        raise InputError(f"{args.runs[0]}: holds nothing to draw; run eval.py on it first")
    args.out.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        with matplotlib.rc_context(RC):
            figure = draw(plot)
            for kind in ("png", "pdf"):
                content = io.BytesIO()
                figure.savefig(content, format=kind)
                write(args.out / f"{plot.name}.{kind}", content.getvalue())
    if args.table:
        markdown, table = tables(groups)
        logger.info(markdown)
        write(args.out / "table.md", markdown.encode())
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
            dashes = "" if name in STATISTICS or name.startswith("source of") else "--"
            told.append(f"{dashes}{name} ({', '.join(values)})")
        if told:
            name = alike[0].setting.file_name()
            logger.info(f"{name}: runs differ in {', '.join(told)}: drawn apart")


def tell_gaps(group: Group) -> None:
    """One line on the series that are missing, one on epochs that not all seeds have."""
    name, found = group.file_name(), set(group.inputs)
    found |= {INPUTS[kind].stands_in_for for kind in found}
    missing = [
        kind
        for kind, row in INPUTS.items()
        if row.asked_by and not (row.targeted and MODES[group.setting.mode].adversary)
        if kind not in found
    ]
    if missing:
        of_all = " by all seeds" if len(group.runs) > 1 else ""
        logger.info(f"{name}: left out, not measured{of_all}: {', '.join(missing)}")
    if any(len({frozenset(rows) for rows in line}) > 1 for line in group.inputs.values()):
        counts = ", ".join(f"{kind} {len(common(line))}" for kind, line in group.inputs.items())
        logger.info(f"{name}: seeds differ in epochs; drawn are those common to all: {counts}")


def lr_drops(history: list[EpochSummary]) -> list[int]:
    """Epochs whose learning rate is at most a fifth of the former one's; 0 ends a smooth decay."""
    return [
        row.epoch
        for before, row in pairwise(history)
        if row.epoch == before.epoch + 1 and 0 < row.lr <= before.lr / 5
    ]


# What the figures show


def group_plots(group: Group) -> list[Plot]:
    """The figures of one setting: training, the targeted attack, layers, the NCC classifier."""
    targeted = [kind for kind in group.inputs if INPUTS[kind].targeted]
    others = [kind for kind in group.inputs if kind not in targeted]
    plots = [epoch_plot(group, "", others, EPOCH_PANELS)] if others else []
    if targeted:
        kinds = [kind for kind in others if kind == "clean"] + targeted
        plots.append(epoch_plot(group, "targeted", kinds, EPOCH_PANELS + DISTANCE_PANELS))
    return [*plots, *layer_plots(group), *ncc_plots(group)]


def epoch_plot(group: Group, figure: str, kinds: list[str], metrics: tuple[Panel, ...]) -> Plot:
    panels = []
    for panel in metrics:
        lines = [(input_style(kind), group.inputs[kind], panel.field) for kind in kinds]
        if panel.classifier:  # the same on every kind of input
            lines.append((CLASSIFIER, group.inputs[kinds[0]], panel.classifier))
        panels.append((panel, lines))
    return Plot(group.file_name(figure), group.title(figure), [group], panels)


def distance_plots(groups: list[Group]) -> list[Plot]:
    """Clean against perturbed class means of AT and TRADES, together where the place is one."""
    shared = defaultdict(list)
    for group in groups:
        line = perturbed_line(group)
        adversary = MODES[group.setting.mode].adversary
        if adversary and np.isfinite(average(line, "clean_angle")[1]).any():
            shared[group.setting.place].append(group)
        elif adversary:
            logger.info(f"{group.file_name()}: left out, not measured: distance to clean")
    plots = []
    for place, together in shared.items():
        lines = list(zip(mode_styles(together), map(perturbed_line, together), strict=True))
        panels = [(p, [(*line, p.field) for line in lines]) for p in DISTANCE_PANELS]
        title = f"clean to perturbed class means, {together[0].setting.description}"
        plots.append(Plot(f"distance_{place}", title, together, panels))
    return plots


def perturbed_line(group: Group) -> Line:
    """The perturbed images of AT and TRADES that the group's figures show."""
    return group.inputs.get("seen") or group.inputs.get("pgd", [{}])


def mode_styles(groups: list[Group]) -> list[Style]:
    """A style for each group of one figure: its mode's, with what else differs in the label."""
    of_mode = ("train_mode", "trades_bn")
    flags = [{k: v for k, v in group.flags.items() if k not in of_mode} for group in groups]
    styles = []
    seen: dict[str, int] = defaultdict(int)
    for group, differs in zip(groups, differences(flags), strict=True):
        style, number = mode_style(group.setting.mode), seen[group.setting.mode]
        if number:
            marker = MORE_MARKERS[(number - 1) % len(MORE_MARKERS)]
            style = style._replace(marker=marker, size=2, hollow=True)
        seen[group.setting.mode] += 1
        label = ", ".join(filter(None, (style.label, in_words(differs))))
        styles.append(style._replace(label=label))
    return styles


def layer_plots(group: Group) -> list[Plot]:
    """Each metric against the layer's index at the last common epoch; test images are dashed."""
    tables = [run.layers for run in group.runs]
    epochs = common([{row.epoch: row for row in table} for table in tables])
    if not epochs:
        return left_out(group, "layers", any(tables))
    tables = [[row for row in table if row.epoch == epochs[-1]] for table in tables]
    lines = collect(tables, lambda row: (row.split, row.input), lambda row: row.index)
    styled = [(split_style(*name), line) for name, line in lines.items() if common(line)]
    panels = [(panel, [(*line, panel.field) for line in styled]) for panel in LAYER_PANELS]
    title = group.title(f"layers at epoch {epochs[-1]}")
    return [Plot(group.file_name("layers"), title, [group], panels, "Layer index")]


def split_style(split: str, kind: str) -> Style:
    style = input_style(kind)
    if split == "train":
        return style
    return style._replace(label=f"{style.label}, {split}", line="--", hollow=True)


def ncc_plots(group: Group) -> list[Plot]:
    """Accuracy of the nearest class centre and, dashed, of the network against epochs."""
    tables = [run.ncc for run in group.runs]
    lines = collect(tables, lambda row: (f"{row.split}\n({row.means} class means)", row.input))
    panels: dict[str, list] = defaultdict(list)
    for (place, kind), line in lines.items():
        if common(line):
            style = input_style(kind)
            label = f"{style.label}: network"
            network = style._replace(label=label, line="--", hollow=True)
            panels[place] += [(style, line, "ncc_accuracy"), (network, line, "network_accuracy")]
    if not panels:
        return left_out(group, "ncc", any(tables))
    labelled = [
        (Panel("", "", f"NCC accuracy, {name}", "share"), lines) for name, lines in panels.items()
    ]
    return [Plot(group.file_name("ncc"), group.title("NCC"), [group], labelled)]


def left_out(group: Group, figure: str, recorded: bool) -> list[Plot]:
    if recorded:
        logger.info(f"{group.file_name(figure)}: left out, not measured by all seeds")
    return []


# Drawing


def draw(plot: Plot) -> Figure:
    """Two columns of panels; the legend in the place that an odd number leaves, or below."""
    rows, odd = math.ceil(len(plot.panels) / 2), len(plot.panels) % 2
    height = 0.3 + rows * PANEL_HEIGHT + (0 if odd else 0.5)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(textwrap.fill(plot.title, TITLE_WIDTH), fontsize=7.5)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    drops = {e for group in plot.groups for run in group.runs for e in lr_drops(run.history)}
    drops = drops if plot.x_label == "Epoch" else set()
    for ax, (panel, lines) in zip(axes, plot.panels, strict=False):
        for style, line, field in lines:
            draw_line(ax, style, average(line, field), panel.scale)
        finish_axis(ax, panel)
        for epoch in drops:
            ax.axvline(epoch, color=LR_DROP.color, linestyle=LR_DROP.line, linewidth=0.8, zorder=0)
    for ax in axes[: len(plot.panels)][-2:]:
        ax.set_xlabel(plot.x_label)
    styles = dict.fromkeys(style for _, lines in plot.panels for style, _, _ in lines)
    handles: list[Artist] = [handle(style) for style in [*styles] + [LR_DROP] * bool(drops)]
    if any(len(group.runs) > 1 for group in plot.groups):
        handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± one std over seeds"))
    if odd:
        axes[-1].axis("off")
        axes[-1].legend(handles=handles, loc="center")
    else:
        # Each entry has a handle of six characters or so beside its label.
        widest = max(len(str(handle.get_label())) for handle in handles) + 8
        columns = min(3, max(1, LEGEND_WIDTH // widest))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def handle(style: Style) -> Line2D:
    line = Line2D([], [], label=style.label, color=style.color, linestyle=style.line)
    line.set(marker=style.marker, markersize=style.size)
    if style.hollow:
        line.set(markerfacecolor="white", markeredgecolor=style.color, markeredgewidth=0.8)
    return line


def draw_line(ax: Axes, style: Style, values: tuple, scale: str) -> None:
    """A line with a dozen markers or so, and its band of one standard deviation."""
    x, mean, std = values
    step = math.ceil(len(x) / MARKERS_PER_LINE)
    line = handle(style)
    line.set_data(x, mean)
    # Lines that coincide take turns, so that each shows its markers.
    line.set_markevery((len(ax.lines) * step // len(INPUTS) % step, step))
    ax.add_line(line)
    # On a logarithmic axis a band that reaches zero has no end: it ends a decade below its line.
    low = np.maximum(mean - std, mean / 10) if scale == "log" else mean - std
    ax.fill_between(x, low, mean + std, color=style.color, alpha=0.2, linewidth=0)


def finish_axis(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel(panel.label)
    ax.autoscale_view()
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    high = ax.get_ylim()[1]
    if panel.scale == "share":
        ax.set_ylim(-0.04, 1.04)
    elif panel.scale == "linear" or ax.dataLim.minposy == np.inf:  # nothing above zero
        ax.set_ylim(-0.04 * high, 1.04 * high)
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


def tables(groups: list[Group]) -> tuple[str, str]:
    """Every metric at the last common epoch: Markdown, and CSV with all digits, a row per value."""
    metrics = [(panel.name, panel.field) for panel in EPOCH_PANELS + DISTANCE_PANELS]
    metrics += [(f"{p.name} of W", p.classifier) for p in EPOCH_PANELS if p.classifier]
    markdown, content = [], io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(
        [*Setting._fields, "seeds", "input", "epoch", "metric", "mean", "std", "differs"]
    )
    for group in groups:
        markdown += [f"**{group.title()}**", ""]
        markdown += ["| input | epoch | " + " | ".join(name for name, _ in metrics) + " |"]
        markdown += ["| --- |" + " ---: |" * (len(metrics) + 1)]
        seeds = " ".join(str(run.seed) for run in group.runs)
        for kind, line in group.inputs.items():
            cells = [kind, str(common(line)[-1])]
            for name, field in metrics:
                mean, std = (float(values[-1]) for values in average(line, field)[1:])
                cells.append(markdown_value(mean, std, ".2e" if name == "NC1" else ".4f"))
                numbers = ("" if math.isnan(value) else value for value in (mean, std))
                place = [*group.setting, seeds, *cells[:2], name]
                writer.writerow([*place, *numbers, in_words(group.differs)])
            markdown.append(f"| {' | '.join(cells)} |")
        markdown.append("")
    return "\n".join([*markdown, NC1_DEFINITION, ""]), content.getvalue()


def markdown_value(mean: float, std: float, form: str) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{form}} ± {'-' if math.isnan(std) else format(std, form)}"


if __name__ == "__main__":
    run_script(main)
