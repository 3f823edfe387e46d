"""Figures of a group's blocks: their collapse, and the classifiers by the nearest centre."""

import math
from collections import defaultdict

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.groups import Group, Line, LineName, collect, common
from robust_nc.reports.panels import (
    Curve,
    Panel,
    Plot,
    autoattack_curves,
    left_out,
    line_styles,
    panels_of,
)
from robust_nc.reports.style import AUTOATTACK, CENTRE_STYLES, input_style
from robust_nc.results.records import CENTRE_INPUTS, CENTRE_LABELS, LAYER_METRICS, CentreRecord
from utils import logger

CENTRE_LABEL = "Test accuracy of the\nnearest-centre classifier\n(dashed: network)"


def layer_plots(group: Group) -> list[Plot]:
    """Each metric against the network's blocks at the last common epoch; test images are dashed.

    Of the seeds whose blocks were measured.
    """
    group = group.measured(lambda run: run.at_own_epsilon(run.layers))
    tables = [run.at_own_epsilon(run.layers) for run in group.runs]
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
        for panel in panels_of(LAYER_METRICS.values(), "layers")
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
    group = group.measured(lambda run: run.at_own_epsilon(run.centres))
    tables = [run.at_own_epsilon(run.centres) for run in group.runs]
    lines = collect(tables, lambda row: (row.layer, row.means, row.images, row.input))
    lines = {name: line for name, line in lines.items() if common(line)}
    if not lines:
        return left_out(group, "ncc", any(tables))
    blocks = layer_order(group, {layer for layer, *_ in lines})
    # Of the layers that all seeds have.
    tell_other_layers(group, tables, blocks)
    tables = [[row for row in table if row.layer in blocks] for table in tables]
    several = [centre_layer_plot(group, tables, blocks)] if len(blocks) > 1 else []
    epochs = {epoch for line in lines.values() for epoch in common(line)}
    if len(epochs) == 1:
        return [centre_input_plot(group, tables, blocks, epochs.pop()), *several]
    panels: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for (layer, means, _, kind), line in lines.items():
        panels[layer, means] += centre_curves(kind, line)
    style = AUTOATTACK._replace(label="AutoAttack: network")
    marks = [curve._replace(style=style) for curve in autoattack_curves(group)]
    drawn = [
        (centre_panel(curves, f"{layer}\n"), curves + marks)
        for (layer, _), curves in sorted(panels.items(), key=lambda item: blocks.index(item[0][0]))
    ]
    title = group.title("nearest-centre classifier")
    return [Plot(group.file_name("ncc"), title, [group], drawn), *several]


def tell_other_layers(group: Group, tables: list[list[CentreRecord]], blocks: list[str]) -> None:
    """A line on layers that not all seeds have."""
    others = layer_order(group, {row.layer for table in tables for row in table} - {*blocks})
    if others:
        name = group.file_name("ncc")
        logger.info(f"{name}: left out, not measured by all seeds: {', '.join(others)}")


def centre_input_plot(
    group: Group, tables: list[list[CentreRecord]], blocks: list[str], epoch: int
) -> Plot:
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


def centre_layer_plot(group: Group, tables: list[list[CentreRecord]], blocks: list[str]) -> Plot:
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
    index = {row.layer: row.index for run in group.runs for row in run.layers}
    return sorted(names, key=lambda name: (index.get(name, math.inf), name == "features", name))
