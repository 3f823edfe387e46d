"""Figures of several groups: distances to clean class means, training modes, radii of PGD."""

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.groups import (
    Group,
    Line,
    View,
    average,
    collect,
    common,
    differences,
    in_words,
)
from robust_nc.reports.panels import Curve, Panel, Plot, panels_of
from robust_nc.reports.runs import (
    PERTURBED,
    radius_in_words,
    safe,
    seeds_in_words,
    unit_of,
)
from robust_nc.reports.style import (
    MORE_COLORS,
    MORE_MARKERS,
    Style,
    mode_style,
    split_style,
)
from robust_nc.results.metrics import METRICS
from robust_nc.results.records import SPLITS, radius_of
from robust_nc.training.modes import MODES
from utils import logger


def distance_plots(groups: list[Group], view: View) -> list[Plot]:
    """Clean against perturbed class means of modes with an adversary, together in one place."""
    shared = defaultdict(list)
    for group in groups:
        if not group.adversary:
            continue
        lines = [
            (name, line)
            for name, line in group.shown(view).items()
            if name.input in PERTURBED and np.isfinite(average(line, "clean_angle")[1]).any()
        ]
        if lines:
            shared[group.setting.file_name].append((group, lines))
        else:
            logger.info(f"{group.file_name()}: left out, not measured: distance to clean")
    from_clean = panels_of(
        (m for m in METRICS.values() if m.from_clean and not m.only_targeted), "epochs"
    )
    plots = []
    for place, lines_of_groups in shared.items():
        together = [group for group, _ in lines_of_groups]
        kinds = {name.input for _, lines in lines_of_groups for name, _ in lines}
        styled = []
        for style, (_, lines) in zip(mode_styles(together), lines_of_groups, strict=True):
            for name, line in lines:
                kind = f": {INPUTS[name.input].label}" if kinds != {name.input} else ""
                own = style._replace(label=style.label + kind)
                styled.append((split_style(own, name.split), line))
        panels = [(p, [Curve(*line, p.field) for line in styled]) for p in from_clean]
        which = INPUTS[kinds.pop()].label if len(kinds) == 1 else "perturbed"
        title = f"Class means, clean to {which}; {together[0].setting.title}"
        title = f"{title}, {seeds_of(together)}"
        plots.append(Plot(view.file_name(f"distance_{place}"), title, together, panels))
    return plots


def mode_plots(groups: list[Group], view: View) -> list[Plot]:
    """Clean and perturbed images of AT, TRADES and MART, two or more of them, in one figure.

    Once against epochs and once against the error on clean images: whether a mode collapses less,
    or only later, is seen at equal accuracy.
    """
    shared = defaultdict(list)
    for group in groups:
        if group.adversary:
            shared[group.setting.file_name].append(group)
    return [
        plot
        for place, together in shared.items()
        if len(together) > 1
        for plot in plots_of_modes(place, together, view)
    ]


def plots_of_modes(place: str, groups: list[Group], view: View) -> list[Plot]:
    """The two figures of `mode_plots` for the groups of one place."""
    by_epoch: dict[Panel, list[Curve]] = defaultdict(list)
    by_error: dict[Panel, list[Curve]] = defaultdict(list)
    styles = mode_styles(groups)
    for panel in panels_of(METRICS.values(), "modes"):  # a row of panels each
        for style, group in zip(styles, groups, strict=True):
            lines = group.shown(view)
            for name, line in lines.items():
                if name.input != "clean" and name.input not in PERTURBED:
                    continue
                titled = panel._replace(title=INPUTS[name.input].label)
                own = split_style(style, name.split)
                by_epoch[titled].append(Curve(own, line, panel.field))
                clean = lines.get(name._replace(input="clean"), [])
                if clean and panel.field != "accuracy":
                    by_error[titled] += error_curves(own, clean, line, panel.field)
    modes = list(dict.fromkeys(MODES[group.mode].label for group in groups))
    names = f"{', '.join(modes[:-1])} and {modes[-1]}" if len(modes) > 1 else modes[0]
    title = f"{names}, {groups[0].setting.title}, {seeds_of(groups)}"
    return [
        Plot(view.file_name(f"modes_{place}"), title, groups, list(by_epoch.items())),
        Plot(
            view.file_name(f"modes_accuracy_{place}"),
            title,
            groups,
            list(by_error.items()),
            x_label="Share of clean images misclassified (log)",
            x_falls=True,
        ),
    ]


def error_curves(style: Style, clean: Line, line: Line, field: str) -> list[Curve]:
    """A curve per run, of the epochs of which the clean rows tell the error, in their order."""
    curves = []
    for clean_rows, rows in zip(clean, line, strict=True):
        both = {epoch: rows[epoch] for epoch in common([clean_rows, rows])}
        curves.append(Curve(style, [both], field, clean_rows))
    return curves


def seeds_of(groups: list[Group]) -> str:
    """The seeds of all of one figure; where they are not the same, the legend tells which."""
    return seeds_in_words({run.seed for group in groups for run in group.runs})


def mode_styles(groups: list[Group]) -> list[Style]:
    """A style for each group of one figure: its mode's, with what else differs in the label."""
    flags = [
        {name: v for name, v in group.flags.items() if name not in ("train_mode", "bn")}
        | {"epsilon": group.setting.epsilon}
        for group in groups
    ]
    styles = []
    seen: dict[str, int] = defaultdict(int)
    for group, differs in zip(groups, differences(flags), strict=True):
        style = mode_style(group.mode)
        if seen[group.mode]:
            place = sum(max(count - 1, 0) for count in seen.values())
            marker, color = (names[place % len(names)] for names in (MORE_MARKERS, MORE_COLORS))
            style = style._replace(marker=marker, color=color)
        seen[group.mode] += 1
        seeds = group.seeds if len({group.seeds for group in groups}) > 1 else ""
        label = ", ".join(filter(None, (style.label, in_words(differs), seeds)))
        styles.append(style._replace(label=label))
    return styles


class RadiusLine(NamedTuple):
    """Which images a line against the radius is of, after which epoch, and in which precision."""

    split: str
    images: int
    epoch: int
    precision: str


def epsilon_plots(groups: list[Group], view: View) -> list[Plot]:
    """Metrics under PGD against its epsilon at the last common checkpoint, the modes together.

    Of runs of one data set, model and norm that were swept at two radii or more.
    """
    shared = defaultdict(list)
    for group in groups:
        part = group.measured(lambda run: len({radius_of(row) for row in run.records} - {0.0}) > 1)
        lines = radius_lines(part, view)
        tell_other_radii(part, lines)
        if lines:
            setting = part.setting
            shared[setting.dataset, setting.model, setting.norm].append((part, lines))
    plots = []
    for place, lines_of_groups in shared.items():
        together = [group for group, _ in lines_of_groups]
        epochs = set.intersection(*({name.epoch for name in lines} for _, lines in lines_of_groups))
        panels: dict[Panel, list[Curve]] = {p: [] for p in panels_of(METRICS.values(), "radii")}
        for style, (group, lines) in zip(mode_styles(together), lines_of_groups, strict=True):
            epoch = max(epochs or {name.epoch for name in lines})
            if not epochs:
                style = style._replace(label=f"{style.label}, epoch {epoch}")
            for panel, curves in panels.items():
                for name, line in lines.items():
                    if name.epoch == epoch:
                        curves.append(Curve(split_style(style, name.split), line, panel.field))
                if panel.field == "accuracy":
                    curves += autoattack_by_radius(group, epoch, style)
        at_epoch = [f"epoch {max(epochs)}"] if epochs else []
        title = ", ".join(["PGD of several radii", *place, *at_epoch, seeds_of(together)])
        file_name = view.file_name(safe("_".join(["epsilon", *place])))
        unit = unit_of(place[0])
        x_label = f"epsilon of the attack ({'in ' if unit == '[0, 1]' else ''}{unit})"
        plots.append(Plot(file_name, title, together, list(panels.items()), x_label))
    return plots


def tell_other_radii(group: Group, lines: dict[RadiusLine, Line]) -> None:
    """A line on radii that not all seeds were attacked at."""
    radii = {radius for line in lines.values() for radius in set().union(*line) - {*common(line)}}
    if radii:
        words = [radius_in_words(radius, group.setting.dataset) for radius in sorted(radii)]
        name = group.file_name("epsilon")
        logger.info(f"{name}: left out, not measured by all seeds: PGD of {', '.join(words)}")


def radius_lines(group: Group, view: View) -> dict[RadiusLine, Line]:
    """Rows by epsilon: clean images at 0, and PGD of at least two."""
    tables = [
        [
            # By definition clean class means are at no distance from themselves.
            replace(row, clean_distance=0.0, clean_angle=0.0) if row.input == "clean" else row
            for row in run.records
            if row.split in view.splits and row.input in ("clean", "pgd")
        ]
        for run in group.runs
    ]
    lines = collect(
        tables,
        lambda row: RadiusLine(row.split, row.images, row.epoch, row.precision),
        radius_of,
    )
    names = [name for name, line in lines.items() if len({*common(line)} - {0.0}) > 1]
    names.sort(key=lambda name: (SPLITS.index(name.split), -name.images))
    return {name: lines[name] for name in names}


def autoattack_by_radius(group: Group, epoch: int, style: Style) -> list[Curve]:
    """Accuracy under AutoAttack at one epoch, where it was measured, in a mode's style."""
    tables = [[row for row in run.autoattack if row.epoch == epoch] for run in group.runs]
    lines = collect(tables, lambda row: row.images, radius_of)
    label = f"{style.label}: AutoAttack, test"
    own = style._replace(label=label, marker="*", size=7, line="none", fill="white")
    return [Curve(own, line, "robust_accuracy") for line in lines.values() if common(line)]
