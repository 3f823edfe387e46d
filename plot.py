"""Draw the paper's figures from run folders, as PNG and PDF, and tabulate the last values.

    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/std_train/seed1             # into figures/
    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/*/seed* --out figs --table  # all at once

Runs that differ in the seed alone are one setting: its figures show their mean and, shaded, their
standard deviation. Other differences make other settings, with figures of their own.
"""

import argparse
import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

import utils
from utils import CentreRecord, EpochSummary, InputError, LayerRecord, Record, logger


class Style(NamedTuple):
    label: str
    color: str
    marker: str = ""
    size: float = 4.5
    line: str = "-"
    hollow: bool = False


# Okabe and Ito's colours, which the colour-blind can tell apart. Markers that are drawn later are
# smaller: where lines coincide, all of them are seen.
INPUT_STYLES = {
    "clean": Style("clean", "#0072B2", "o", 5.5),
    "pgd": Style("PGD", "#D55E00", "s", 4.5),
    "gaussian": Style("Gaussian noise", "#009E73", "^", 4.5),
    "sign": Style("sign noise", "#CC79A7", "D", 3),
    "targeted": Style("targeted", "#E69F00", "v", 4.5),
    "gaussian_l2": Style("Gaussian noise (train.py's)", "#56B4E9", "P", 4),
    "adaptive": Style("PGD on the NCC classifier", "#661100", "X", 4.5),
}
# Greys, so that no training mode is taken for a kind of input.
MODES = {
    "std_train": ("st", Style("ST", "black")),
    "pgd_train": ("at", Style("AT", "black", "<")),
    "pgd_train_TRADES": ("trades", Style("TRADES (frozen)", "0.35", "X", line="--")),
    "pgd_train_TRADES_batch": ("trades_batch", Style("TRADES (batch)", "0.6", ">", line="-.")),
}
CLASSIFIER = Style("classifier $W$", "black", "*", 4, "--")
LR_DROP = Style("learning-rate drop", "0.5", line=":")


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

RC = {
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


class Setting(NamedTuple):
    """What a run is, but for its seed."""

    mode: str
    dataset: str
    model: str
    norm: str
    epsilon: float

    @property
    def place(self) -> str:
        return f"{self.dataset}_{self.model}_{self.norm}_eps{self.epsilon}"

    @property
    def description(self) -> str:
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {self.epsilon:g}"

    def file_name(self, figure: str = "") -> str:
        return "_".join(filter(None, (MODES[self.mode][0], figure, self.place)))


@dataclass(frozen=True)
class Run:
    path: Path
    setting: Setting
    seed: int
    history: list[EpochSummary]
    records: list[Record]  # of the training images; of two of one epoch and input the last counts
    layers: list[LayerRecord]
    ncc: list[CentreRecord]


# One line of a figure: for each seed the rows by epoch, or by layer.
Line = list[dict[int, Any]]


class Group:
    """The runs of one setting, one per seed, and its measurements by kind of input."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.setting = runs[0].setting
        self.all_inputs = collect((run.records for run in runs), lambda row: row.input)
        self.inputs = {kind: line for kind, line in self.all_inputs.items() if common(line)}
        if "gaussian" in self.inputs:
            self.inputs.pop("gaussian_l2", None)  # train.py's noise only stands in for eval.py's

    def title(self, figure: str = "") -> str:
        seeds = f"seed{'s' * (len(self.runs) > 1)} {', '.join(str(run.seed) for run in self.runs)}"
        mode = MODES[self.setting.mode][1].label
        return ", ".join(filter(None, (mode, figure, self.setting.description, seeds)))


class Plot(NamedTuple):
    """A figure to draw: its panels, each with lines in their styles, and whose it is."""

    name: str
    title: str
    groups: list[Group]
    panels: list[tuple[Panel, list[tuple[Style, Line, str]]]]  # the field of each line last
    x_label: str = "Epoch"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.Parser(
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
    with utils.atomic_open(path) as file:
        file.write(content)
    logger.info(f"wrote {path}")


# Run folders, grouped by setting


def read_run(path: Path) -> Run:
    """All that a run folder holds to draw.

    Raises:
        InputError: no such folder, no metrics.csv, a damaged file, or an unknown setting.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    results = path / "results"
    if not (results / "metrics.csv").is_file():
        raise InputError(f"{path}: no results/metrics.csv: not a run folder, or not measured yet")
    rows = [row for row in utils.read_rows(results / "metrics.csv", Record) if row.split == "train"]
    return Run(
        path,
        *read_setting(path),
        history=sorted(utils.read_rows(path / "history.csv", EpochSummary), key=lambda r: r.epoch),
        # What train.py saw on exactly its training inputs comes before a later sweep.
        records=sorted(rows, key=lambda row: row.source == "train"),
        layers=utils.read_rows(results / "layers.csv", LayerRecord),
        ncc=utils.read_rows(results / "ncc.csv", CentreRecord),
    )


def read_setting(path: Path) -> tuple[Setting, int]:
    """Setting and seed as args.json tells them, or else the folder's path."""
    told = utils.read_json(path / "args.json")
    try:
        if told is not None:
            place = [told[name] for name in ("dataset", "model", "norm", "epsilon")]
            mode = told["train_mode"] + "_batch" * (told.get("trades_bn") == "batch")
            seed = told["seed"]
        else:
            *place, mode, seed = path.resolve().parts[-6:]
            place[3], seed = place[3].removeprefix("eps"), seed.removeprefix("seed")
        if mode not in MODES:
            raise ValueError(mode)
        *names, epsilon = place
        return Setting(mode, *names, float(epsilon)), int(seed)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        source = path / "args.json" if told is not None else f"{path}: its path"
        raise InputError(
            f"{source} does not tell dataset, model, norm, epsilon, training mode and seed"
        ) from error


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups in the order in which their first run was given; a folder given twice counts once."""
    by_setting: dict[Setting, dict[int, Run]] = defaultdict(dict)
    for run in {run.path.resolve(): run for run in runs}.values():
        twin = by_setting[run.setting].setdefault(run.seed, run)
        if twin is not run:
            raise InputError(f"{run.path}: of the same setting and seed as {twin.path}: give one")
    return [Group([seeds[seed] for seed in sorted(seeds)]) for seeds in by_setting.values()]


def collect(tables: Iterable[list], line: Callable, key: Callable = lambda row: row.epoch) -> dict:
    """`line` of a row -> Line, from each run's table; clean first, then as INPUT_STYLES orders."""
    tables, order, lines = list(tables), list(INPUT_STYLES), {}
    for number, table in enumerate(tables):
        for row in table:
            if row.input in INPUT_STYLES:
                series = lines.setdefault(line(row), (order.index(row.input), [{} for _ in tables]))
                series[1][number][key(row)] = row
    return {name: lines[name][1] for name in sorted(lines, key=lambda name: lines[name][0])}


def common(line: Line) -> list[int]:
    """Epochs, or layers, that every run has, ascending."""
    return sorted(set.intersection(*map(set, line)))


def average(line: Line, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Common epochs, and a field's mean and unbiased deviation (NaN with one run) over the runs."""
    x = common(line)
    values = np.array([[getattr(rows[key], field) for key in x] for rows in line], dtype=float)
    std = values.std(axis=0, ddof=1) if len(line) > 1 else np.full(len(x), np.nan)
    return np.array(x), values.mean(axis=0), std


def tell_gaps(group: Group) -> None:
    """One line on the series that are missing, one on epochs that not all seeds have."""
    name, found = group.setting.file_name(), set(group.inputs)
    wanted = ["clean", "pgd", "gaussian", "sign"]
    wanted += ["targeted"] if group.setting.mode == "std_train" else []
    found |= {"gaussian"} if "gaussian_l2" in found else set()
    missing = [kind for kind in wanted if kind not in found]
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
    epochs = [kind for kind in group.inputs if kind != "targeted"]
    plots = [epoch_plot(group, "", epochs, EPOCH_PANELS)] if epochs else []
    if "targeted" in group.inputs:
        kinds = [kind for kind in group.inputs if kind in ("clean", "targeted")]
        plots.append(epoch_plot(group, "targeted", kinds, EPOCH_PANELS + DISTANCE_PANELS))
    return [*plots, *layer_plots(group), *ncc_plots(group)]


def epoch_plot(group: Group, figure: str, kinds: list[str], metrics: tuple[Panel, ...]) -> Plot:
    panels = []
    for panel in metrics:
        lines = [(INPUT_STYLES[kind], group.inputs[kind], panel.field) for kind in kinds]
        if panel.classifier:  # the same on every kind of input
            lines.append((CLASSIFIER, group.inputs[kinds[0]], panel.classifier))
        panels.append((panel, lines))
    return Plot(group.setting.file_name(figure), group.title(figure), [group], panels)


def distance_plots(groups: list[Group]) -> list[Plot]:
    """Clean against perturbed class means of AT and TRADES, together where all else is equal."""
    shared = defaultdict(list)
    for group in groups:
        line = group.inputs.get("pgd", [{}])
        if group.setting.mode != "std_train" and np.isfinite(average(line, "clean_angle")[1]).any():
            shared[group.setting.place].append(group)
        elif group.setting.mode != "std_train":
            logger.info(f"{group.setting.file_name()}: left out, not measured: distance to clean")
    plots = []
    for place, together in shared.items():
        lines = [(MODES[group.setting.mode][1], group.inputs["pgd"]) for group in together]
        panels = [(p, [(*line, p.field) for line in lines]) for p in DISTANCE_PANELS]
        title = f"clean to perturbed class means, {together[0].setting.description}"
        plots.append(Plot(f"distance_{place}", title, together, panels))
    return plots


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
    return [Plot(group.setting.file_name("layers"), title, [group], panels, "Layer index")]


def split_style(split: str, kind: str) -> Style:
    style = INPUT_STYLES[kind]
    if split == "train":
        return style
    return style._replace(label=f"{style.label}, {split}", line="--", hollow=True)


def ncc_plots(group: Group) -> list[Plot]:
    """Accuracy of the nearest class centre and, dashed, of the network against epochs."""
    tables = [run.ncc for run in group.runs]
    lines = collect(tables, lambda row: (f"{row.split}\n({row.means} class means)", row.input))
    panels = defaultdict(list)
    for (place, kind), line in lines.items():
        if common(line):
            style = INPUT_STYLES[kind]
            label = f"{style.label}: network"
            network = style._replace(label=label, line="--", hollow=True)
            panels[place] += [(style, line, "ncc_accuracy"), (network, line, "network_accuracy")]
    if not panels:
        return left_out(group, "ncc", any(tables))
    labelled = [
        (Panel("", "", f"NCC accuracy, {name}", "share"), lines) for name, lines in panels.items()
    ]
    return [Plot(group.setting.file_name("ncc"), group.title("NCC"), [group], labelled)]


def left_out(group: Group, figure: str, recorded: bool) -> list[Plot]:
    if recorded:
        logger.info(f"{group.setting.file_name(figure)}: left out, not measured by all seeds")
    return []


# Drawing


def draw(plot: Plot) -> Figure:
    """Two columns of panels; the legend in the place that an odd number leaves, or below."""
    rows, odd = math.ceil(len(plot.panels) / 2), len(plot.panels) % 2
    height = 0.3 + rows * PANEL_HEIGHT + (0 if odd else 0.5)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(plot.title, fontsize=7.5)
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
    handles = [handle(style) for style in [*styles] + [LR_DROP] * bool(drops)]
    if any(len(group.runs) > 1 for group in plot.groups):
        handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± one std over seeds"))
    if odd:
        axes[-1].axis("off")
        axes[-1].legend(handles=handles, loc="center")
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
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
    line.set_markevery((len(ax.lines) * step // len(INPUT_STYLES) % step, step))
    ax.add_line(line)
    # On a logarithmic axis a band that reaches zero has no end: it ends a decade below its line.
    low = np.maximum(mean - std, mean / 10) if scale == "log" else mean - std
    ax.fill_between(x, low, mean + std, color=style.color, alpha=0.2, linewidth=0)


def finish_axis(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel(panel.label)
    ax.autoscale_view()
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    low, high = ax.get_ylim()
    if panel.scale == "share":
        ax.set_ylim(-0.04, 1.04)
    elif panel.scale == "linear" or ax.dataLim.minposy == np.inf:  # nothing above zero
        ax.set_ylim(-0.04 * high, 1.04 * high)
    else:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high < 100 * low:  # less than two powers of ten: plain numbers between them
            narrow = high < 4 * low
            ax.yaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")


# The table


def tables(groups: list[Group]) -> tuple[str, str]:
    """Every metric at the last common epoch: Markdown, and CSV with all digits, a row per value."""
    metrics = [(panel.name, panel.field) for panel in EPOCH_PANELS + DISTANCE_PANELS]
    metrics += [(f"{p.name} of W", p.classifier) for p in EPOCH_PANELS if p.classifier]
    markdown, content = [], io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*Setting._fields, "seeds", "input", "epoch", "metric", "mean", "std"])
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
                writer.writerow([*group.setting, seeds, *cells[:2], name, *numbers])
            markdown.append(f"| {' | '.join(cells)} |")
        markdown.append("")
    return "\n".join([*markdown, utils.NC1_SCALE, ""]), content.getvalue()


def markdown_value(mean: float, std: float, form: str) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{form}} ± {'-' if math.isnan(std) else format(std, form)}"


if __name__ == "__main__":
    utils.run_script(main)
