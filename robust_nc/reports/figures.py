"""What the figures show: which panels with which lines, in which style, under which title."""

import math
import re
from collections import defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.runs import (
    PERTURBED,
    Group,
    Line,
    LineName,
    View,
    average,
    collect,
    common,
    differences,
    in_words,
    safe,
    seeds_in_words,
    unit_of,
)
from robust_nc.results.records import (
    ADAPTIVE,
    CENTRE_INPUTS,
    CENTRE_LABELS,
    SPLITS,
    LayerRecord,
    radius_of,
)
from robust_nc.training.modes import MODES
from utils import logger


class Style(NamedTuple):
    label: str
    color: str
    marker: str = ""
    size: float = 4.5
    line: Any = "-"
    fill: str | None = None  # of the marker: "white", "none" for a ring, or else the line's colour


def input_style(name: str) -> Style:
    if name == ADAPTIVE:
        return Style(CENTRE_LABELS[ADAPTIVE], "#661100", "X")
    kind = INPUTS[name]
    return Style(kind.label, kind.color, kind.marker, kind.size)


def mode_style(name: str) -> Style:
    mode = MODES[name]
    return Style(mode.label, mode.color, mode.marker)


def split_style(style: Style, split: str) -> Style:
    """Test images are dashed, with rings for markers that are seen around those of training."""
    if split == "train":
        return style
    return style._replace(
        label=f"{style.label}, {split}", size=style.size + 2.5, line="--", fill="none"
    )


CLASSIFIER = Style("classifier $W$", "black", "*", 4, "--")
AUTOATTACK = Style("AutoAttack, test", "#44AA99", "p", 6, "none")
# Of further lines of one training mode in one figure.
MORE_MARKERS = "sDv^ph"
MORE_COLORS = ("#DDCC77", "#88CCEE", "0.3", "0.6")


class Panel(NamedTuple):
    """One metric: the field of a row, its name, how its axis is labelled and scaled."""

    field: str
    name: str
    label: str
    scale: str = "linear"  # or "log", or "share" for values in [0, 1]
    classifier: str | None = None  # the field that holds the metric of W
    title: str = ""  # above the panel


ACCURACY = Panel("accuracy", "accuracy", "Accuracy\n(share of images)", "share")
NC1 = Panel("nc1", "NC1", r"NC1 = tr$(\Sigma_W\,\Sigma_B^+)$", "log")
NC2_NORM = Panel(
    "nc2_norm_activation", "NC2 norm", "NC2 norms\nstd / mean of $\\|\\mu_c-\\mu_G\\|$"
)
NC2_ANGLE = Panel("nc2_angle_activation", "NC2 angle", "NC2 angles\nmean $|\\cos + 1/(C-1)|$")
NC3 = Panel("nc3", "NC3", "NC3\n$\\|W^\\top\\!/\\|W\\|_F - M/\\|M\\|_F\\|_F^2$")
NC4 = Panel("nc4", "NC4", "NC4\nshare NCC $\\neq$ network", "share")
EPOCH_PANELS = (
    ACCURACY,
    Panel("loss", "loss", "Loss\n(cross-entropy)", "log"),
    NC1,
    NC2_NORM._replace(classifier="nc2_norm_classifier"),
    NC2_ANGLE._replace(classifier="nc2_angle_classifier"),
    NC3,
    NC4,
    Panel("cdnv", "CDNV", "CDNV\n$(V_a+V_b)\\,/\\,2\\|\\mu_a-\\mu_b\\|^2$", "log"),
    Panel("nc2_zhu", "NC2 (Zhu)", "NC2 (Zhu et al.)\n$WW^\\top$ to simplex"),
    Panel("nc3_zhu", "NC3 (Zhu)", "NC3 (Zhu et al.)\n$WM$ to simplex"),
)
DISTANCE_PANELS = (
    Panel("clean_distance", "distance", "Distance to clean\n$\\|\\tilde\\mu_c-\\mu_c\\|$"),
    Panel("clean_angle", "angle", "Angle to clean\n$\\angle(\\tilde\\mu_c,\\mu_c)$ [rad]"),
)
EPSILON_PANELS = (ACCURACY, NC1, NC2_NORM, NC2_ANGLE, NC3, NC4, DISTANCE_PANELS[1])
COLLAPSE_PANELS = (NC1, NC2_ANGLE, NC3, NC4)
# First how the inputs lie to the clean training class means, then to class means of their own.
LAYER_PANELS = (
    Panel("centre_accuracy", "", "Share nearest to own\nclean training\nclass mean", "share"),
    Panel(
        *("target_centre_accuracy", "", "Share nearest to target's\nclean training\nclass mean"),
        scale="share",
    ),
    Panel("clean_distance", "", "Distance to\nclean training\nclass means", "log"),
    Panel("clean_angle", "", "Angle to\nclean training\nclass means [rad]"),
    NC1,
    NC2_NORM._replace(field="nc2_norm"),
    NC2_ANGLE._replace(field="nc2_angle"),
    Panel("ncc_accuracy", "", "NCC accuracy,\nclass means of the\nimages themselves", "share"),
    Panel("ncc_agreement", "", "NCC agreement\nshare NCC = network", "share"),
)
CENTRE_LABEL = "Test accuracy of the\nnearest-centre classifier\n(dashed: network)"
CENTRE_STYLES = {  # by field, in figures of one epoch
    "ncc_accuracy": Style("nearest class mean", "#6699CC", "o", line="none"),
    "network_accuracy": Style("network", "black", "s", 7.5, line="none", fill="none"),
}


IMAGES_UNTOLD = 50_000  # for the end of the axis, where an older version did not tell how many


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


def all_plots(groups: list[Group], view: View) -> list[Plot]:
    """Every figure of the groups, each with the numbers of images that it is of."""
    plots = [plot for group in groups for plot in group_plots(group, view)]
    plots += distance_plots(groups, view) + mode_plots(groups, view) + epsilon_plots(groups, view)
    return [with_sizes(plot) for plot in map(with_values, plots) if plot.panels]


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
    """The title ends with how many images there are; lines of another number say so themselves."""
    sizes: dict[str, int] = {}
    others: dict[str, None] = {}

    def sized(curve: Curve) -> Curve:
        row = next(iter(curve.line[0].values()))
        if row.images == sizes.setdefault(row.split, row.images):
            return curve
        size = f"n = {row.images}" if row.images else "n not told"
        label = f"{curve.style.label}, {size}"
        others[label] = None
        return curve._replace(style=curve.style._replace(label=label))

    panels = [(panel, [sized(curve) for curve in curves]) for panel, curves in plot.panels]
    names = {"train": "training", "test": "test"}
    images = [f"{sizes[split] or ''} {names[split]}".strip() for split in SPLITS if split in sizes]
    told = re.sub(r"\d", r"n = \g<0>", f"{' and '.join(images)} images", count=1)
    if others:
        logger.info(f"{plot.name}: of {told}, but not all lines: {'; '.join(others)}")
    return plot._replace(title=f"{plot.title}; {told}", panels=panels)


def named(name: str, view: View) -> str:
    """The name of a figure that depends on --split."""
    return name if view.split == "train" else f"{name}_{view.split}"


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
    """Every metric against epochs; AutoAttack in the accuracy of test images."""
    styles = line_styles(list(lines))
    panels = []
    for panel in EPOCH_PANELS + (DISTANCE_PANELS if figure == "targeted" else ()):
        curves = [Curve(styles[n], line, panel.field) for n, line in lines.items()]
        if panel.classifier:  # the same on every kind of input
            curves.append(Curve(CLASSIFIER, next(iter(lines.values())), panel.classifier))
        if panel is ACCURACY and "test" in view.splits and not figure:
            curves += autoattack_curves(group)
        panels.append((panel, curves))
    name = named(group.file_name(figure), view)
    return Plot(name, group.title(figure), [group], panels)


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
    tables = [group.at_own_epsilon(run.autoattack) for run in group.runs]
    lines = collect(tables, lambda row: row.images)
    return [Curve(AUTOATTACK, line, "robust_accuracy") for line in lines.values() if common(line)]


def distance_plots(groups: list[Group], view: View) -> list[Plot]:
    """Clean against perturbed class means of AT and TRADES, together where the place is one."""
    shared = defaultdict(list)
    for group in groups:
        if not MODES[group.setting.mode].adversary:
            continue
        lines = [
            (name, line)
            for name, line in group.shown(view).items()
            if name.input in PERTURBED and np.isfinite(average(line, "clean_angle")[1]).any()
        ]
        if lines:
            shared[group.setting.place].append((group, lines))
        else:
            logger.info(f"{group.file_name()}: left out, not measured: distance to clean")
    plots = []
    for place, found in shared.items():
        together = [group for group, _ in found]
        kinds = {name.input for _, lines in found for name, _ in lines}
        styled = []
        for style, (_, lines) in zip(mode_styles(together), found, strict=True):
            for name, line in lines:
                label = (
                    f"{style.label}: {INPUTS[name.input].label}" if kinds != {name.input} else ""
                )
                own = style._replace(label=label or style.label)
                styled.append((split_style(own, name.split), line))
        panels = [(p, [Curve(*line, p.field) for line in styled]) for p in DISTANCE_PANELS]
        which = INPUTS[kinds.pop()].label if len(kinds) == 1 else "perturbed"
        title = f"Class means, clean to {which}; {together[0].setting.description}"
        title = f"{title}, {seeds_of(together)}"
        plots.append(Plot(named(f"distance_{place}", view), title, together, panels))
    return plots


def mode_plots(groups: list[Group], view: View) -> list[Plot]:
    """Clean and perturbed images of AT, TRADES and MART, two or more of them, in one figure.

    Once against epochs and once against the error on clean images: whether a mode collapses less,
    or only later, is seen at equal accuracy.
    """
    shared = defaultdict(list)
    for group in groups:
        if MODES[group.setting.mode].adversary:
            shared[group.setting.place].append(group)
    plots = []
    for place, together in shared.items():
        if len(together) < 2:
            continue
        found = []
        for style, group in zip(mode_styles(together), together, strict=True):
            shown = group.shown(view)
            for of, line in shown.items():
                if of.input == "clean" or of.input in PERTURBED:
                    clean = shown.get(of._replace(input="clean"), [])
                    found.append((split_style(style, of.split), of.input, line, clean))
        by_epoch: dict[Panel, list[Curve]] = defaultdict(list)
        by_error: dict[Panel, list[Curve]] = defaultdict(list)
        for panel in (ACCURACY, *COLLAPSE_PANELS):  # a row of panels each
            for style, input, line, clean in found:
                titled = panel._replace(title=INPUTS[input].label)
                by_epoch[titled].append(Curve(style, line, panel.field))
                if clean and panel is not ACCURACY:
                    by_error[titled] += error_curves(style, clean, line, panel.field)
        modes = list(dict.fromkeys(MODES[group.setting.mode].label for group in together))
        names = f"{', '.join(modes[:-1])} and {modes[-1]}" if len(modes) > 1 else modes[0]
        title = f"{names}, {together[0].setting.description}, {seeds_of(together)}"
        name = named(f"modes_{place}", view)
        plots.append(Plot(name, title, together, list(by_epoch.items())))
        name = named(f"modes_accuracy_{place}", view)
        x_label = "Share of clean images misclassified (log)"
        panels = list(by_error.items())
        plots.append(Plot(name, title, together, panels, x_label, x_falls=True))
    return plots


def error_curves(style: Style, clean: Line, line: Line, field: str) -> list[Curve]:
    """A curve per run, of the epochs of which the clean rows tell the error, in their order."""
    curves = []
    for known, rows in zip(clean, line, strict=True):
        both = {epoch: rows[epoch] for epoch in common([known, rows])}
        curves.append(Curve(style, [both], field, known))
    return curves


def seeds_of(groups: list[Group]) -> str:
    """The seeds of all of one figure; where they are not the same, the legend tells which."""
    return seeds_in_words({run.seed for group in groups for run in group.runs})


def mode_styles(groups: list[Group]) -> list[Style]:
    """A style for each group of one figure: its mode's, with what else differs in the label."""
    of_mode = ("train_mode", "trades_bn")
    flags = [
        {name: value for name, value in group.flags.items() if name not in of_mode}
        | {"epsilon": group.setting.epsilon}
        for group in groups
    ]
    styles = []
    seen: dict[str, int] = defaultdict(int)
    for group, differs in zip(groups, differences(flags), strict=True):
        style, number = mode_style(group.setting.mode), seen[group.setting.mode]
        if number:
            place = sum(max(count - 1, 0) for count in seen.values())
            marker, color = (names[place % len(names)] for names in (MORE_MARKERS, MORE_COLORS))
            style = style._replace(marker=marker, color=color)
        seen[group.setting.mode] += 1
        seeds = group.seeds if len({group.seeds for group in groups}) > 1 else ""
        label = ", ".join(filter(None, (style.label, in_words(differs), seeds)))
        styles.append(style._replace(label=label))
    return styles


def epsilon_plots(groups: list[Group], view: View) -> list[Plot]:
    """Metrics under PGD against its epsilon at the last common checkpoint, the modes together.

    Of runs of one data set, model and norm that were swept at two radii or more.
    """
    shared = defaultdict(list)
    for group in groups:
        part = group.measured(lambda run: len({radius_of(row) for row in run.records} - {0.0}) > 1)
        lines = radius_lines(part, view)
        if lines:
            shared[part.setting[1:4]].append((part, lines))
    plots = []
    for place, found in shared.items():
        together = [group for group, _ in found]
        epochs = set.intersection(*({epoch for _, _, epoch in lines} for _, lines in found))
        panels: dict[Panel, list[Curve]] = {panel: [] for panel in EPSILON_PANELS}
        for style, (group, lines) in zip(mode_styles(together), found, strict=True):
            own = max(epochs or {epoch for _, _, epoch in lines})
            if not epochs:
                style = style._replace(label=f"{style.label}, epoch {own}")
            for (split, _, epoch), line in lines.items():
                if epoch == own:
                    styled = split_style(style, split)
                    for panel, curves in panels.items():
                        curves.append(Curve(styled, line, panel.field))
            panels[ACCURACY] += autoattack_by_radius(group, own, style)
        at = [f"epoch {max(epochs)}"] if epochs else []
        title = ", ".join(["PGD of several radii", *place, *at, seeds_of(together)])
        name = named(safe("_".join(["epsilon", *place])), view)
        unit = unit_of(place[0])
        x_label = f"epsilon of the attack ({'in ' if unit == '[0, 1]' else ''}{unit})"
        plots.append(Plot(name, title, together, list(panels.items()), x_label))
    return plots


def radius_lines(group: Group, view: View) -> dict[tuple[str, int, int], Line]:
    """(split, images, epoch) -> rows by epsilon: clean images at 0, and PGD of at least two."""
    tables = [
        # By definition clean class means are at no distance from themselves.
        [replace(r, clean_distance=0.0, clean_angle=0.0) if r.input == "clean" else r for r in rows]
        for rows in (
            [r for r in run.records if r.split in view.splits and r.input in ("clean", "pgd")]
            for run in group.runs
        )
    ]
    lines = collect(tables, lambda row: (row.split, row.images, row.epoch), radius_of)
    lines = {name: line for name, line in lines.items() if len({*common(line)} - {0.0}) > 1}
    return {name: lines[name] for name in sorted(lines, key=lambda n: (SPLITS.index(n[0]), -n[1]))}


def autoattack_by_radius(group: Group, epoch: int, style: Style) -> list[Curve]:
    """Accuracy under AutoAttack at one epoch, where it was measured, in a mode's style."""
    tables = [[row for row in run.autoattack if row.epoch == epoch] for run in group.runs]
    lines = collect(tables, lambda row: row.images, radius_of)
    label = f"{style.label}: AutoAttack, test"
    own = style._replace(label=label, marker="*", size=7, line="none", fill="white")
    return [Curve(own, line, "robust_accuracy") for line in lines.values() if common(line)]


def layer_plots(group: Group) -> list[Plot]:
    """Each metric against the network's blocks at the last common epoch; test images are dashed.

    Of the seeds whose blocks were measured.
    """
    group = group.measured(lambda run: group.at_own_epsilon(run.layers))
    tables = [group.at_own_epsilon(run.layers) for run in group.runs]
    epochs = common([{row.epoch: row for row in table} for table in tables])
    if not epochs:
        return left_out(group, "layers", any(tables))
    tables = [[row for row in table if row.epoch == epochs[-1]] for table in tables]
    lines = collect(
        tables, lambda row: LineName(row.split, row.input, row.images), lambda row: row.index
    )
    lines = {name: line for name, line in lines.items() if common(line)}
    styles = line_styles(list(lines))
    panels = [
        (panel, [Curve(styles[name], line, panel.field) for name, line in lines.items()])
        for panel in LAYER_PANELS
    ]
    title = group.title(f"layers at epoch {epochs[-1]}")
    name, blocks = group.file_name("layers"), {row.index: row.layer for row in tables[0]}
    return [Plot(name, title, [group], panels, "Block", blocks)]


def centre_plots(group: Group) -> list[Plot]:
    """Accuracy of the nearest class centre and of the network.

    Against epochs, or of one epoch against the kinds of images, for each layer and for class means
    of clean and of perturbed images; and where several layers were measured against these. Of the
    seeds that were measured.
    """
    group = group.measured(lambda run: group.at_own_epsilon(run.ncc))
    tables = [group.at_own_epsilon(run.ncc) for run in group.runs]
    lines = collect(tables, lambda row: (row.layer, row.means, row.images, row.input))
    lines = {name: line for name, line in lines.items() if common(line)}
    if not lines:
        return left_out(group, "ncc", any(tables))
    blocks = layer_order(group, {layer for layer, *_ in lines})
    several = [centre_layer_plot(group, tables, blocks)] if len(blocks) > 1 else []
    epochs = {epoch for line in lines.values() for epoch in common(line)}
    if len(epochs) == 1:
        return [centre_input_plot(group, tables, blocks, epochs.pop()), *several]
    panels: dict[tuple[int, str], list[Curve]] = defaultdict(list)
    for (layer, means, _, kind), line in lines.items():
        panels[blocks.index(layer), means] += centre_curves(kind, line)
    style = AUTOATTACK._replace(label="AutoAttack: network")
    marks = [curve._replace(style=style) for curve in autoattack_curves(group)]
    drawn = [
        (centre_panel(curves, f"{blocks[place]}\n"), curves + marks)
        for (place, _), curves in sorted(panels.items(), key=lambda item: item[0][0])
    ]
    title = group.title("nearest-centre classifier")
    return [Plot(group.file_name("ncc"), title, [group], drawn), *several]


def centre_input_plot(group: Group, tables: list[list], blocks: list[str], epoch: int) -> Plot:
    """The nearest-centre classifier and the network on each kind of test images, at one epoch."""
    lines = collect(
        [[row for row in table if row.epoch == epoch] for table in tables],
        lambda row: (row.layer, row.means, row.images),
        lambda row: CENTRE_INPUTS.index(row.input),
    )
    # The network under AutoAttack has a place of its own.
    marks = [
        Curve(AUTOATTACK, [{len(CENTRE_INPUTS): rows[epoch]} for rows in curve.line], curve.field)
        for curve in autoattack_curves(group)
        if epoch in common(curve.line)
    ]
    drawn = []
    for (layer, *_), line in sorted(lines.items(), key=lambda item: blocks.index(item[0][0])):
        if common(line):
            curves = [Curve(style, line, field) for field, style in CENTRE_STYLES.items()]
            label = "Test accuracy\n(share of images)"
            panel = centre_panel(curves, f"{layer}\n")._replace(label=label)
            drawn.append((panel, curves + marks))
    title = group.title(f"nearest-centre classifier at epoch {epoch}")
    kinds = [*CENTRE_LABELS.values(), *(["AutoAttack"] if marks else [])]
    names = {place: kind.replace(" on ", " on\n") for place, kind in enumerate(kinds)}
    return Plot(group.file_name("ncc"), title, [group], drawn, "Test images", names)


def centre_layer_plot(group: Group, tables: list[list], blocks: list[str]) -> Plot:
    """The nearest-centre classifier against the layers at the last common epoch."""
    epochs = common([{row.epoch: row for row in table} for table in tables])
    tables = [[row for row in table if row.epoch == epochs[-1]] for table in tables]
    lines = collect(
        tables,
        lambda row: (row.means, row.images, row.input),
        lambda row: blocks.index(row.layer),
    )
    panels: dict[str, list[Curve]] = defaultdict(list)
    for (means, _, kind), line in lines.items():
        if common(line):
            panels[means] += centre_curves(kind, line)
    drawn = [(centre_panel(curves, ""), curves) for curves in panels.values()]
    name = group.file_name("ncc_layers")
    title = group.title(f"nearest-centre classifier by layer at epoch {epochs[-1]}")
    return Plot(name, title, [group], drawn, "Block", dict(enumerate(blocks)))


def centre_curves(kind: str, line: Line) -> list[Curve]:
    """The nearest-centre classifier and, dashed, the network on one kind of input."""
    style = input_style(kind)
    network = style._replace(label=f"{style.label}: network", line="--", fill="white")
    return [Curve(style, line, "ncc_accuracy"), Curve(network, line, "network_accuracy")]


def centre_panel(curves: list[Curve], layer: str) -> Panel:
    """Its title says of how many training images the class means are."""
    row = next(iter(curves[0].line[0].values()))
    number = f"{row.centre_images} " if row.centre_images else ""
    title = f"{layer}means of {number}{INPUTS[row.means].label} training images"
    return Panel("", "", CENTRE_LABEL, "share", title=title)


def layer_order(group: Group, names: set[str]) -> list[str]:
    """Names of blocks in forward order where layers.csv tells it, the others after them."""
    rows: list[LayerRecord] = [row for run in group.runs for row in run.layers]
    index = {row.layer: row.index for row in rows}
    return sorted(names, key=lambda name: (index.get(name, math.inf), name == "features", name))


def left_out(group: Group, figure: str, recorded: bool) -> list[Plot]:
    if recorded:
        logger.info(f"{group.file_name(figure)}: left out, not measured by all seeds")
    return []
