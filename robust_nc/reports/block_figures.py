"""Figures of the blocks: how images lie to clean class means, and nearest-centre classifiers."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.comparisons import (
    after_epochs,
    by_place,
    mode_styles,
    names_of,
    settings_in_words,
)
from robust_nc.reports.groups import Group, Line, LineName, View, collect, common
from robust_nc.reports.panels import Curve, Panel, Plot, autoattack_curves, tell_left_out
from robust_nc.reports.style import AUTOATTACK, HOLLOW, Style, input_style, split_style
from robust_nc.results.layer_rows import LAYER_METRICS
from robust_nc.results.records import ADAPTIVE, CENTRE_INPUTS, AutoAttackRecord, CentreRecord
from utils import logger

T = TypeVar("T")
GROUPS_PER_FIGURE = 5
MOST_BLOCK_NUMBERS = 9  # that a panel's axis holds
# What the blocks' class means are compared with: the field of images of their own class, and that
# of targeted images. Those are compared with their target's too, by the third field.
TO_CLEAN = {
    "centre_accuracy": ("Share nearest", "centre_accuracy", "target_centre_accuracy"),
    "clean_angle": ("Angle [rad]", "own_angle", "clean_angle"),
    "clean_distance": ("Distance", "own_distance", "clean_distance"),
}
OF_TARGETED = {"target_centre_accuracy", "own_angle", "own_distance"}
TO_CLEAN_NOTE = (
    "Share of images nearest to the clean training class mean of their own class, and angle of "
    "class means to it; dashed with hollow markers, of targeted images: to that of their target"
)
CENTRES_NOTE = (
    "Share of test images that are put into their class by the nearest class mean of {images}"
    "clean, or PGD, training images, and by the network"
)


class BlockLines(NamedTuple):
    """What the blocks of a group were measured to be at its last common epoch."""

    group: Group
    epoch: int
    lines: dict[LineName, Line]
    blocks: dict[int, str]


def layer_plots(groups: list[Group], view: View) -> list[Plot]:
    """How the blocks' features lie to the clean class means, the ways to train side by side."""
    plots = []
    for place, together in by_place(groups).items():
        measured = [part for group in together if (part := block_lines(group, view))]
        name = view.file_name(f"layers_{place}")
        plots += [layer_plot(*some, view) for some in in_figures(name, measured)]
    return plots


def in_figures(name: str, measured: list[T]) -> Iterator[tuple[str, list[T]]]:
    """The groups of each figure, five at most, and its name; from the second on with a number."""
    for number in range(0, len(measured), GROUPS_PER_FIGURE):
        more = f"_{number // GROUPS_PER_FIGURE + 1}" if number else ""
        yield f"{name}{more}", measured[number : number + GROUPS_PER_FIGURE]


def block_lines(group: Group, view: View) -> BlockLines | None:
    """Of the seeds whose blocks were measured, in the splits that the view shows, or else in all.

    None where there is nothing that all of them have.
    """
    group = group.measured(lambda run: run.at_own_epsilon(run.layers))
    tables = [run.at_own_epsilon(run.layers) for run in group.runs]
    epoch, tables = at_last_epoch(group, "layers", tables)
    if not tables:
        return None
    lines = collect(
        tables,
        lambda row: LineName(row.split, row.input, row.images, row.precision),
        lambda row: row.index,
    )
    lines = {name: line for name, line in lines.items() if common(line)}
    lines = {n: line for n, line in lines.items() if n.split in view.splits} or lines
    return BlockLines(group, epoch, lines, {row.index: row.layer for row in tables[0]})


def at_last_epoch(group: Group, figure: str, tables: list[list]) -> tuple[int, list[list]]:
    """The last epoch that the tables of all seeds have, and their rows of it.

    No tables where they have none in common: a line says so of those that hold anything.
    """
    epochs = common([{row.epoch: row for row in table} for table in tables])
    if not epochs:
        tell_left_out(group, figure, any(tables))
        return -1, []
    return epochs[-1], [[row for row in table if row.epoch == epochs[-1]] for table in tables]


def layer_plot(name: str, measured: list[BlockLines], view: View) -> Plot:
    """Metric by metric a panel for each group."""
    groups = [part.group for part in measured]
    heads = heads_of(groups)
    panels = []
    for metric in LAYER_METRICS.values():
        if metric.field in OF_TARGETED or not metric.shown_in("layers", view.panels):
            continue
        label, own, targets = TO_CLEAN.get(metric.field, (metric.label, metric.field, ""))
        meaning = "" if targets else metric.meaning
        for head, part in zip(heads, measured, strict=True):
            panel = Panel(metric.field, metric.name, label, metric.scale, meaning, head)
            panels.append((panel, layer_curves(part.lines, metric.field, own, targets)))
    numbers = sorted({index for part in measured for index in part.blocks})
    step = math.ceil(len(numbers) / MOST_BLOCK_NUMBERS)
    blocks = ", ".join(f"{index + 1} {layer}" for index, layer in measured[0].blocks.items())
    epoch = epochs_in_words(measured)
    return Plot(
        name,
        f"Blocks{epoch}: {names_of(groups)}; {settings_in_words(groups)}",
        groups,
        panels,
        "Block",
        {index: str(index + 1) for index in numbers[::step]},
        columns=0 if len(panels) <= GROUPS_PER_FIGURE else len(groups) if len(groups) > 1 else 4,
        notes=(TO_CLEAN_NOTE, f"Blocks: {blocks}"),
    )


def epochs_in_words(measured: Sequence["BlockLines | Centres"]) -> str:
    """After which epoch each group was measured."""
    return after_epochs([part.group for part in measured], [part.epoch for part in measured])


def heads_of(groups: list[Group]) -> list[str]:
    """What stands above the panels of each group, broken where these are narrow."""
    width = 80 // len(groups)
    names = [style.label for style in mode_styles(groups)] if len(groups) > 1 else [""]
    return [textwrap.fill(name, width) for name in names]


def layer_curves(lines: dict[LineName, Line], field: str, own: str, targets: str) -> list[Curve]:
    """A curve for each kind of images, of targeted ones another to their target's class mean."""
    curves = []
    for name, line in lines.items():
        style = split_style(input_style(name.input), name.split)
        targeted = INPUTS[name.input].targeted
        curves.append(Curve(style, line, own if targeted else field))
        if targeted and targets:
            curves.append(Curve(to_target(style), line, targets))
    return curves


def to_target(style: Style) -> Style:
    label = style.label.replace("targeted", "targeted: to the target", 1)
    return style._replace(label=label, line="--" if style.line == "-" else ":", fill=HOLLOW)


class Bar(NamedTuple):
    """The height of a bar, as a row of a line."""

    value: float
    split: str
    images: int
    precision: str


def bar_of(row: CentreRecord | AutoAttackRecord, field: str) -> Bar:
    return Bar(getattr(row, field), row.split, row.images, row.precision)


class Centres(NamedTuple):
    """The rows of each run of a group at its last common epoch, and the layers that all have."""

    group: Group
    epoch: int
    tables: list[list[CentreRecord]]
    layers: list[str]


def centre_plots(groups: list[Group]) -> list[Plot]:
    """The nearest-centre classifiers and the networks, as bars for each way to train.

    And against the layers where several were measured.
    """
    plots = []
    for place, together in by_place(groups).items():
        measured = [part for group in together if (part := centres_of(group))]
        plots += [centre_plot(*some) for some in in_figures(f"ncc_{place}", measured)]
        plots += [centre_layer_plot(part) for part in measured if len(part.layers) > 1]
    return plots


def centres_of(group: Group) -> Centres | None:
    """Of the seeds that were measured; None where there is nothing that all of them have."""
    group = group.measured(lambda run: run.at_own_epsilon(run.centres))
    tables = [run.at_own_epsilon(run.centres) for run in group.runs]
    epoch, tables = at_last_epoch(group, "ncc", tables)
    if not tables:
        return None
    names = [{row.layer for row in table} for table in tables]
    shared = set.intersection(*names)
    others = layer_order(group, set.union(*names) - shared)
    if others:
        missing = ", ".join(others)
        logger.info(f"{group.file_name('ncc')}: left out, not measured by all seeds: {missing}")
    if not shared:
        return None
    tables = [[row for row in table if row.layer in shared] for table in tables]
    return Centres(group, epoch, tables, layer_order(group, shared))


def centre_plot(name: str, measured: list[Centres]) -> Plot:
    """Bars of the last layer, a panel for each group."""
    groups = [part.group for part in measured]
    heads = heads_of(groups)
    kinds = {row.means for part in measured for table in part.tables for row in table}
    means = [kind for kind in INPUTS if kind in kinds]
    panels = []
    for head, part in zip(heads, measured, strict=True):
        panel = Panel("value", "nearest centre", "Test accuracy", head=head)
        panels.append((panel, bar_curves(part, means)))
    names = [*(f"{INPUTS[kind].label} means" for kind in means), "network"]
    epoch = epochs_in_words(measured)
    counts = sorted({r.centre_images for part in measured for t in part.tables for r in t})
    of_images = " or ".join(str(count) for count in counts if count)
    note = CENTRES_NOTE.format(images=f"{of_images} " if of_images else "")
    return Plot(
        name,
        f"Nearest-centre classifiers{epoch}: {names_of(groups)}; {settings_in_words(groups)}",
        groups,
        panels,
        "",
        dict(enumerate(names)),
        bars=True,
        notes=(note,),
    )


def bar_curves(part: Centres, means: list[str]) -> list[Curve]:
    """For each kind of test images a bar per kind of class means, and one of the network."""
    curves = []
    for kind in CENTRE_INPUTS:
        line: Line = []
        for table in part.tables:
            # Of rows of several numbers of images those of most.
            rows = sorted(
                (row for row in table if (row.layer, row.input) == (part.layers[-1], kind)),
                key=lambda row: row.images,
            )
            bars = {means.index(row.means): bar_of(row, "ncc_accuracy") for row in rows}
            if kind != ADAPTIVE:  # which is an attack on each of the others
                bars |= {len(means): bar_of(row, "network_accuracy") for row in rows}
            line.append(bars)
        if common(line):
            curves.append(Curve(input_style(kind), line, "value"))
    for curve in autoattack_curves(part.group)[:1]:
        if part.epoch in common(curve.line):
            of_epoch = [rows[part.epoch] for rows in curve.line]
            line = [{len(means): bar_of(row, "robust_accuracy")} for row in of_epoch]
            curves.append(Curve(AUTOATTACK, line, "value"))
    return curves


def centre_layer_plot(part: Centres) -> Plot:
    """The nearest-centre classifier against the layers, dashed the network on the same images."""
    lines = collect(
        part.tables,
        lambda row: (row.means, row.images, row.input),
        lambda row: part.layers.index(row.layer),
    )
    panels: dict[str, list[Curve]] = defaultdict(list)
    for (means, _, kind), line in lines.items():
        if common(line):
            panels[means] += centre_curves(kind, line)
    drawn = [
        (Panel("", "", "Test accuracy", "share", head=f"{INPUTS[means].label} class means"), curves)
        for means, curves in panels.items()
    ]
    group, blocks = part.group, ", ".join(f"{i + 1} {name}" for i, name in enumerate(part.layers))
    return Plot(
        group.file_name("ncc_layers"),
        group.title(f"nearest-centre classifier by layer{epochs_in_words([part])}"),
        [group],
        drawn,
        "Block",
        {number: str(number + 1) for number in range(len(part.layers))},
        notes=(f"Blocks: {blocks}",),
    )


def centre_curves(kind: str, line: Line) -> list[Curve]:
    """The nearest-centre classifier and, dashed, the network on one kind of input."""
    style = input_style(kind)
    network = style._replace(label=f"{style.label}: network", line="--", fill=HOLLOW)
    return [Curve(style, line, "ncc_accuracy"), Curve(network, line, "network_accuracy")]


def layer_order(group: Group, names: set[str]) -> list[str]:
    """Names of blocks in forward order where layers.csv tells it, the others after them."""
    index = {row.layer: row.index for run in group.runs for row in run.layers}
    return sorted(names, key=lambda name: (index.get(name, math.inf), name == "features", name))
