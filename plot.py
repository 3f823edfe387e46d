"""Draw the paper's figures from run folders, as PNG and PDF, and print the last values.

    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/std_train/seed1             # into figures/
    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/*/seed* --out figs --table  # all at once

Runs that differ in the seed alone are one setting: its figures show their mean and, shaded, their
standard deviation. Other differences make other settings, with figures of their own.
"""

import argparse
import csv
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

import utils
from utils import EpochSummary, InputError, Record, logger


class Style(NamedTuple):
    label: str
    color: str
    marker: str
    line: str = "-"


# Okabe and Ito's colours, which the colour-blind can tell apart; in this order in every legend.
INPUT_STYLES = {
    "clean": Style("clean", "#0072B2", "o"),
    "pgd": Style("PGD", "#D55E00", "s"),
    "gaussian": Style("Gaussian noise", "#009E73", "^"),
    "sign": Style("sign noise", "#CC79A7", "D"),
    "targeted": Style("targeted", "#E69F00", "v"),
    "gaussian_l2": Style("Gaussian noise, l2 (train.py)", "#56B4E9", "P"),
}
# Greys, so that no mode is taken for a kind of input.
MODE_STYLES = {
    "std_train": Style("ST", "black", "o"),
    "pgd_train": Style("AT", "black", "*"),
    "pgd_train_TRADES": Style("TRADES", "0.4", "X", "--"),
    "pgd_train_TRADES_batch": Style("TRADES, batch statistics", "0.6", "p", "-."),
}
CLASSIFIER = Style("classifier $W$ (NC2)", "black", "", "--")
LR_DROP = Style("learning-rate drop", "0.5", "", ":")
FILE_NAMES = {
    "std_train": "st",
    "pgd_train": "at",
    "pgd_train_TRADES": "trades",
    "pgd_train_TRADES_batch": "trades_batch",
}


class Panel(NamedTuple):
    """One metric: a field of a row, how its axis is labelled, and what of W goes with it."""

    field: str
    name: str
    label: str
    scale: str = "linear"  # or "log", or "share" for values in [0, 1]
    classifier: str | None = None


EPOCH_PANELS = (
    Panel("accuracy", "accuracy", "Accuracy\n(share of images)", "share"),
    Panel("loss", "loss", "Loss\n(cross-entropy)", "log"),
    Panel("nc1", "NC1", r"NC1 = tr$(\Sigma_W\,\Sigma_B^+)$", "log"),
    Panel(
        "nc2_norm_activation",
        "NC2 norm",
        "NC2 norms\n" r"std / mean of $\|\mu_c-\mu_G\|$",
        classifier="nc2_norm_classifier",
    ),
    Panel(
        "nc2_angle_activation",
        "NC2 angle",
        "NC2 angles\n" r"mean $|\cos + 1/(C-1)|$",
        classifier="nc2_angle_classifier",
    ),
    Panel("nc3", "NC3", "NC3\n" r"$\|W^\top\!/\|W\|_F - M/\|M\|_F\|_F^2$"),
    Panel("nc4", "NC4", "NC4\n" r"share NCC $\neq$ network", "share"),
)
DISTANCE_PANELS = (
    Panel("clean_distance", "distance", "Distance of class means\n" r"$\|\mu_c-\tilde\mu_c\|$"),
    Panel("clean_angle", "angle", "Angle of class means\n" r"$\angle(\mu_c,\tilde\mu_c)$ [rad]"),
)
LAYER_PANELS = (
    Panel("nc1", "NC1", r"NC1 = tr$(\Sigma_W\,\Sigma_B^+)$", "log"),
    Panel("nc2_norm", "NC2 norm", "NC2 norms\n" r"std / mean of $\|\mu_c-\mu_G\|$"),
    Panel("nc2_angle", "NC2 angle", "NC2 angles\n" r"mean $|\cos + 1/(C-1)|$"),
    Panel("ncc_accuracy", "NCC accuracy", "NCC accuracy\n(share of images)", "share"),
    Panel("ncc_agreement", "NCC agreement", "NCC agreement\n(1 - NC4) with the network", "share"),
)

RC = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.4,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "savefig.dpi": 200,
}
WIDTH, PANEL_HEIGHT = 5.5, 1.45  # inches; a column's width
MARKERS_PER_LINE = 12


@dataclass(frozen=True)
class LayerRow:
    """A row of results/layers.csv."""

    epoch: int
    split: str
    input: str
    layer: str
    index: int
    features: float
    nc1: float
    nc2_norm: float
    nc2_angle: float
    ncc_accuracy: float
    ncc_agreement: float


@dataclass(frozen=True)
class NccRow:
    """A row of results/ncc.csv."""

    epoch: int
    split: str
    means: str
    input: str
    ncc_accuracy: float
    network_accuracy: float


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

    def file_name(self, figure: str = "") -> str:
        return "_".join(filter(None, (FILE_NAMES[self.mode], figure, self.place)))

    def title(self, figure: str = "") -> str:
        return ", ".join(filter(None, (MODE_STYLES[self.mode].label, figure, self.place_title)))

    @property
    def place_title(self) -> str:
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {self.epsilon:g}"


@dataclass(frozen=True)
class Run:
    path: Path
    setting: Setting
    seed: int
    records: dict[str, dict[int, Record]]  # input kind -> epoch -> row, of the training images
    history: list[EpochSummary]
    layers: list[LayerRow]
    ncc: list[NccRow]


@dataclass(frozen=True)
class Group:
    """The runs of one setting, one per seed."""

    setting: Setting
    runs: list[Run] = field(default_factory=list)

    def series(self, kind: str) -> list[dict[int, Record]]:
        return [run.records.get(kind, {}) for run in self.runs]

    def kinds(self) -> list[str]:
        """Kinds of input that all seeds have epochs of; train.py's noise only stands in."""
        found = [kind for kind in INPUT_STYLES if common_keys(self.series(kind))]
        return [kind for kind in found if kind != "gaussian_l2" or "gaussian" not in found]


class Curve(NamedTuple):
    """Mean and unbiased standard deviation over seeds; the latter is NaN with one seed."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.Parser(
        description="Draw the paper's figures from run folders, as PNG and PDF.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="folders of runs, models/{dataset}/{model}/{norm}/eps{epsilon}/{mode}/seed{seed}",
    )
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
        help="print the values of the last epoch too, and write table.md and table.csv",
    )
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out} is not a folder")
    return args


def main() -> None:
    args = parse_args()
    groups = group_runs([read_run(path) for path in args.runs])
    args.out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        for group in groups:
            tell_gaps(group)
        drawn = [figure for group in groups for figure in group_figures(group)]
        drawn += distance_figures(groups)
        for name, figure in drawn:
            for kind in ("png", "pdf"):
                write(args.out / f"{name}.{kind}", render(figure, kind))
    if not drawn:
        raise InputError(f"{args.runs[0]}: holds nothing to draw; run eval.py on it first")
    if args.table:
        cells = table_cells(groups)
        text = markdown_table(cells)
        logger.info(text)
        write(args.out / "table.md", text.encode() + b"\n")
        write(args.out / "table.csv", csv_table(cells).encode())


def write(path: Path, content: bytes) -> None:
    with utils.atomic_open(path) as file:
        file.write(content)
    logger.info(f"wrote {path}")


def render(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


# Reading: run folders, grouped by setting


def read_run(path: Path) -> Run:
    """All that a run folder holds to draw.

    Raises:
        InputError: no such folder, no metrics.csv, a damaged file, or a setting it does not tell.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    metrics = path / "results" / "metrics.csv"
    if not metrics.is_file():
        raise InputError(f"{metrics}: no such file; {path} is no run folder, or was never measured")
    records = defaultdict(dict)
    # What train.py saw on exactly its training inputs comes before a later sweep, as in the .npy.
    for record in sorted(utils.read_rows(metrics, Record), key=lambda r: r.source == "train"):
        if record.split == "train":
            records[record.input][record.epoch] = record
    setting, seed = read_setting(path)
    return Run(
        path,
        setting,
        seed,
        dict(records),
        sorted(utils.read_rows(path / "history.csv", EpochSummary), key=lambda row: row.epoch),
        utils.read_rows(path / "results" / "layers.csv", LayerRow),
        utils.read_rows(path / "results" / "ncc.csv", NccRow),
    )


def read_setting(path: Path) -> tuple[Setting, int]:
    """Setting and seed as args.json tells them, or else the folder's name."""
    told = utils.read_json(path / "args.json")
    try:
        if told is not None:
            batch = "_batch" if told.get("trades_bn") == "batch" else ""
            parts = [told[name] for name in ("dataset", "model", "norm", "epsilon")]
            mode, seed = told["train_mode"] + batch, told["seed"]
        else:
            *parts, mode, seed = path.resolve().parts[-6:]
            parts[3], seed = parts[3].removeprefix("eps"), seed.removeprefix("seed")
        dataset, model, norm, epsilon = parts
        if mode not in FILE_NAMES:
            raise ValueError
        return Setting(mode, dataset, model, norm, float(epsilon)), int(seed)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        source = path / "args.json" if told is not None else f"{path}: without args.json it"
        raise InputError(
            f"{source} does not tell dataset, model, norm, epsilon, training mode and seed"
        ) from error


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups in the order in which their first run was given; a folder given twice counts once."""
    groups: dict[Setting, Group] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        group = groups.setdefault(run.setting, Group(run.setting))
        twin = next((other for other in group.runs if other.seed == run.seed), None)
        if twin:
            raise InputError(f"{run.path}: the same setting and seed as {twin.path}: give one")
        group.runs.append(run)
    return list(groups.values())


def tell_gaps(group: Group) -> None:
    """One line on the series that are missing, one on epochs that not all seeds have."""
    name, kinds = group.setting.file_name(), group.kinds()
    wanted = ["clean", "pgd", "gaussian", "sign"]
    if group.setting.mode == "std_train":
        wanted.append("targeted")
    has_noise = {"gaussian", "gaussian_l2"} & set(kinds)
    missing = [k for k in wanted if k not in kinds and not (k == "gaussian" and has_noise)]
    of_all = " of all seeds" if len(group.runs) > 1 else ""
    if missing:
        logger.info(f"{name}: no {', '.join(missing)} on training images{of_all}: left out")
    uneven = [k for k in kinds if len({frozenset(rows) for rows in group.series(k)}) > 1]
    if uneven:
        counts = (f"{len(common_keys(group.series(kind)))} of {kind}" for kind in uneven)
        logger.info(
            f"{name}: seeds differ in epochs; used are the common ones: {', '.join(counts)}"
        )


def common_keys(series: list[dict[int, Any]]) -> list[int]:
    """Epochs, or layers, that every run has, ascending."""
    return sorted(set.intersection(*map(set, series))) if series else []


def average(series: list[dict[int, Any]], name: str) -> Curve:
    """A field's mean and standard deviation over runs, at the keys that all of them have."""
    x = common_keys(series)
    values = np.array([[getattr(rows[key], name) for key in x] for rows in series], dtype=float)
    single = len(series) == 1
    std = np.full(len(x), np.nan) if single else values.std(axis=0, ddof=1)
    return Curve(np.array(x), values.mean(axis=0), std)


def lr_drops(history: list[EpochSummary]) -> list[int]:
    """Epochs whose learning rate is a fifth or less of the epoch before.

    A fall to zero is the end of a smooth schedule.
    """
    return [
        row.epoch
        for before, row in itertools.pairwise(history)
        if row.epoch == before.epoch + 1 and 0 < row.lr <= before.lr / 5
    ]


# Drawing


def group_figures(group: Group) -> list[tuple[str, Figure]]:
    """(file name, figure) of one setting: its training, the targeted attack, layers and NCC."""
    setting, kinds, drawn = group.setting, group.kinds(), []
    shown = [kind for kind in kinds if kind != "targeted"]
    if shown:
        figure = epoch_figure(group, shown, EPOCH_PANELS, setting.title())
        drawn.append((setting.file_name(), figure))
    if "targeted" in kinds:
        panels = EPOCH_PANELS + DISTANCE_PANELS
        shown = [kind for kind in kinds if kind in ("clean", "targeted")]
        figure = epoch_figure(group, shown, panels, setting.title("targeted attack"))
        drawn.append((setting.file_name("targeted"), figure))
    if any(run.layers for run in group.runs):
        drawn += layer_figure(group)
    if any(run.ncc for run in group.runs):
        drawn += ncc_figure(group)
    return drawn


def epoch_figure(group: Group, kinds: list[str], panels: tuple, title: str) -> Figure:
    """A panel per metric against epochs, a line per kind of input."""
    figure, axes, spare = new_figure(len(panels), with_seeds(title, group), "Epoch")
    for ax, panel in zip(axes, panels, strict=True):
        for kind in kinds:
            draw_curve(ax, average(group.series(kind), panel.field), INPUT_STYLES[kind], panel)
        if panel.classifier:  # the same for every kind of input
            draw_curve(ax, average(group.series(kinds[0]), panel.classifier), CLASSIFIER, panel)
        finish_axis(ax, panel)
    drops = mark_drops(axes, [group])
    styles = [INPUT_STYLES[kind] for kind in kinds] + [CLASSIFIER] + [LR_DROP] * drops
    add_legend(figure, spare, styles, len(group.runs) > 1)
    return figure


def distance_figures(groups: list[Group]) -> list[tuple[str, Figure]]:
    """Clean against perturbed class means of AT and TRADES, together where all else is equal."""
    shared = defaultdict(list)
    for group in groups:
        if group.setting.mode == "std_train":
            continue
        if has_values(group.series("pgd"), "clean_distance"):
            shared[group.setting.place].append(group)
        else:
            name = group.setting.file_name()
            logger.info(f"{name}: no distance of clean and perturbed class means: left out")
    drawn = []
    for place, together in shared.items():
        title = f"clean and perturbed simplices, {together[0].setting.place_title}"
        figure, axes, spare = new_figure(2, title, "Epoch")
        for ax, panel in zip(axes, DISTANCE_PANELS, strict=True):
            for group in together:
                curve = average(group.series("pgd"), panel.field)
                draw_curve(ax, curve, MODE_STYLES[group.setting.mode], panel)
            finish_axis(ax, panel)
        drops = mark_drops(axes, together)
        styles = [MODE_STYLES[group.setting.mode] for group in together] + [LR_DROP] * drops
        add_legend(figure, spare, styles, any(len(group.runs) > 1 for group in together))
        drawn.append((f"distance_{place}", figure))
    return drawn


def layer_figure(group: Group) -> list[tuple[str, Figure]]:
    """Each metric against the layer's index at the last epoch; other splits are dashed."""
    epochs = common_keys([{row.epoch: row for row in run.layers} for run in group.runs])
    if not epochs:
        logger.info(f"{group.setting.file_name('layers')}: no epoch of all seeds: left out")
        return []
    lines = by_line(group, "layers", lambda row: (row.split, row.input), "index", epochs[-1])
    title = with_seeds(group.setting.title(f"layers at epoch {epochs[-1]}"), group)
    figure, axes, spare = new_figure(len(LAYER_PANELS), title, "Layer index")
    for ax, panel in zip(axes, LAYER_PANELS, strict=True):
        for (split, kind), series in lines.items():
            draw_curve(ax, average(series, panel.field), split_style(split, kind), panel)
        finish_axis(ax, panel)
    add_legend(figure, spare, [split_style(*line) for line in lines], len(group.runs) > 1)
    return [(group.setting.file_name("layers"), figure)]


def ncc_figure(group: Group) -> list[tuple[str, Figure]]:
    """Accuracy of the nearest class centre (solid) and the network (dashed) against epochs."""
    lines = by_line(group, "ncc", lambda row: (row.split, row.means, row.input), "epoch")
    if not lines:
        logger.info(f"{group.setting.file_name('ncc')}: no epoch of all seeds: left out")
        return []
    places = list(dict.fromkeys(line[:2] for line in lines))
    title = with_seeds(group.setting.title("NCC classifier"), group)
    figure, axes, spare = new_figure(len(places), title, "Epoch")
    for ax, (split, means) in zip(axes, places, strict=True):
        panel = Panel("", "", f"Accuracy, {split} images\n(share; {means} class means)", "share")
        for (*place, kind), series in lines.items():
            if tuple(place) == (split, means):
                style = INPUT_STYLES[kind]
                draw_curve(ax, average(series, "ncc_accuracy"), style, panel)
                dashed = style._replace(line="--")
                draw_curve(ax, average(series, "network_accuracy"), dashed, panel)
        finish_axis(ax, panel)
    drops = mark_drops(axes, [group])
    kinds = dict.fromkeys(line[2] for line in lines)
    styles = [INPUT_STYLES[kind] for kind in kinds]
    styles += [Style("NCC", "black", ""), Style("network", "black", "", "--")]
    add_legend(figure, spare, styles + [LR_DROP] * drops, len(group.runs) > 1)
    return [(group.setting.file_name("ncc"), figure)]


def by_line(group: Group, table: str, line_of: Any, key: str, epoch: int | None = None) -> dict:
    """Line -> a {key: row} per run, of the lines that all seeds have, clean first."""
    lines = defaultdict(lambda: [{} for _ in group.runs])
    for number, run in enumerate(group.runs):
        for row in getattr(run, table):
            if row.input in INPUT_STYLES and epoch in (None, row.epoch):
                lines[line_of(row)][number][getattr(row, key)] = row
    order = list(INPUT_STYLES)
    shared = [line for line, series in lines.items() if common_keys(series)]
    shared.sort(key=lambda line: order.index(line[-1]))
    return {line: lines[line] for line in shared}


def split_style(split: str, kind: str) -> Style:
    style = INPUT_STYLES[kind]
    return style if split == "train" else style._replace(label=f"{style.label}, {split}", line="--")


def with_seeds(title: str, group: Group) -> str:
    seeds = ", ".join(str(run.seed) for run in group.runs)
    return f"{title}, seed{'s' * (len(group.runs) > 1)} {seeds}"


def has_values(series: list[dict[int, Any]], name: str) -> bool:
    return bool(np.isfinite(average(series, name).mean).any())


def new_figure(panels: int, title: str, x_label: str) -> tuple[Figure, list[Axes], Axes | None]:
    """A figure of two columns of panels, and the empty place that an odd number of them leaves."""
    rows = math.ceil(panels / 2)
    figure = Figure(figsize=(WIDTH, 0.3 + rows * PANEL_HEIGHT), layout="constrained")
    figure.suptitle(title, fontsize=8)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for ax in axes[:panels][-2:]:
        ax.set_xlabel(x_label)
    spare = axes[panels] if panels < len(axes) else None
    if spare is not None:
        spare.axis("off")
    return figure, axes[:panels], spare


def draw_curve(ax: Axes, curve: Curve, style: Style, panel: Panel) -> None:
    """A line with a dozen markers at most, and its band of one standard deviation."""
    step = math.ceil(len(curve.x) / MARKERS_PER_LINE)
    # Lines that coincide take turns, so that each shows some of its markers.
    start = len(ax.lines) * step // len(INPUT_STYLES) % step
    ax.plot(
        curve.x,
        curve.mean,
        color=style.color,
        marker=style.marker,
        linestyle=style.line,
        markevery=(start, step),
        markeredgecolor="white",
        markeredgewidth=0.3,
    )
    low = curve.mean - curve.std
    if panel.scale == "log":
        # A band that reaches zero would reach down for ever: it ends a decade below its line.
        low = np.maximum(low, curve.mean / 10)
    ax.fill_between(curve.x, low, curve.mean + curve.std, color=style.color, alpha=0.2, linewidth=0)


def finish_axis(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel(panel.label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if panel.scale == "log":
        ax.set_yscale("log")
    elif panel.scale == "share":
        ax.set_ylim(-0.04, 1.04)
    else:
        ax.set_ylim(bottom=-0.04 * ax.get_ylim()[1])


def mark_drops(axes: list[Axes], groups: list[Group]) -> bool:
    """A vertical line where the learning rate drops; whether there is one."""
    epochs = {e for group in groups for run in group.runs for e in lr_drops(run.history)}
    for ax in axes:
        for epoch in epochs:
            ax.axvline(epoch, color=LR_DROP.color, linestyle=LR_DROP.line, linewidth=0.8, zorder=0)
    return bool(epochs)


def add_legend(figure: Figure, spare: Axes | None, styles: list[Style], several: bool) -> None:
    """In the empty place of an odd number of panels, else below them."""
    handles = [
        Line2D([], [], color=s.color, marker=s.marker, linestyle=s.line, label=s.label)
        for s in styles
    ]
    if several:
        handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± one std over seeds"))
    if spare is not None:
        spare.legend(handles=handles, loc="center", frameon=False)
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


# The table


class Cell(NamedTuple):
    setting: Setting
    seeds: list[int]
    input: str
    epoch: int
    metric: str
    mean: float
    std: float


def table_cells(groups: list[Group]) -> list[Cell]:
    """Every metric of every kind of input at its last common epoch, in the order of the figures."""
    names = [(panel.name, panel.field) for panel in EPOCH_PANELS]
    names += [(f"{p.name} W", p.classifier) for p in EPOCH_PANELS if p.classifier]
    names += [(panel.name, panel.field) for panel in DISTANCE_PANELS]
    cells = []
    for group in groups:
        seeds = [run.seed for run in group.runs]
        for kind in group.kinds():
            for name, of_record in names:
                x, mean, std = (values[-1] for values in average(group.series(kind), of_record))
                cells.append(Cell(group.setting, seeds, kind, int(x), name, mean, std))
    return cells


def markdown_table(cells: list[Cell]) -> str:
    """A table per setting, a line per kind of input."""
    lines = []
    rows = defaultdict(list)
    for cell in cells:
        rows[cell.setting, cell.input].append(cell)
    setting = None
    for row in rows.values():
        if row[0].setting != setting:
            setting = row[0].setting
            seeds = ", ".join(map(str, row[0].seeds))
            lines += ["", f"{setting.title()}; mean ± std, seeds {seeds}", ""]
            lines.append("| input | epoch | " + " | ".join(cell.metric for cell in row) + " |")
            lines.append("| --- |" + " ---: |" * (len(row) + 1))
        values = " | ".join(markdown_value(cell) for cell in row)
        lines.append(f"| {row[0].input} | {row[0].epoch} | {values} |")
    return "\n".join([*lines[1:], "", utils.NC1_SCALE])


def markdown_value(cell: Cell) -> str:
    if math.isnan(cell.mean):
        return "-"
    form = ".2e" if cell.metric == "NC1" else ".4f"
    std = "-" if math.isnan(cell.std) else format(cell.std, form)
    return f"{cell.mean:{form}} ± {std}"


def csv_table(cells: list[Cell]) -> str:
    """A row per setting, kind of input and metric, all digits; empty where there is no value."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*Setting._fields, "seeds", "input", "epoch", "metric", "mean", "std"])
    for cell in cells:
        values = ["" if math.isnan(value) else value for value in (cell.mean, cell.std)]
        seeds = " ".join(map(str, cell.seeds))
        writer.writerow([*cell.setting, seeds, cell.input, cell.epoch, cell.metric, *values])
    return lines.getvalue()


if __name__ == "__main__":
    utils.run_script(main)
