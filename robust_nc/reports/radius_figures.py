"""Figures of metrics against the radius of PGD."""

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

from robust_nc.reports.comparisons import after_epochs, mode_styles, names_of, seeds_of_groups
from robust_nc.reports.groups import Group, Line, View, collect, common
from robust_nc.reports.panels import Curve, Panel, Plot, panels_of
from robust_nc.reports.setting import radius_in_words, safe, unit_in_words
from robust_nc.reports.style import HOLLOW, Style, split_style
from robust_nc.results.metrics import METRICS
from robust_nc.results.rows import SPLITS, radius_of
from utils import logger


class RadiusLine(NamedTuple):
    """Which images a line against the radius is of, after which epoch, and in which precision."""

    split: str
    images: int
    epoch: int
    precision: str


Lines = dict[RadiusLine, Line]


def epsilon_plots(groups: list[Group], view: View) -> list[Plot]:
    """Metrics under PGD against its epsilon at the last common checkpoint, the modes together.

    Of runs of one data set, model and norm that were swept at two radii or more.
    """
    shared: dict[tuple[str, str, str], list[tuple[Group, Lines]]] = defaultdict(list)
    for group in groups:
        part = group.measured(lambda run: len({radius_of(row) for row in run.records} - {0.0}) > 1)
        lines = radius_lines(part, view)
        tell_other_radii(part, lines)
        if lines:
            setting = part.setting
            shared[setting.dataset, setting.model, setting.norm].append((part, lines))
    return [epsilon_plot(place, measured, view) for place, measured in shared.items()]


def epsilon_plot(
    place: tuple[str, str, str], measured: list[tuple[Group, Lines]], view: View
) -> Plot:
    """The figure of one place."""
    groups, lines_of_groups = [group for group, _ in measured], [lines for _, lines in measured]
    shared = set.intersection(*({name.epoch for name in lines} for lines in lines_of_groups))
    panels: dict[Panel, list[Curve]] = {
        panel: [] for panel in panels_of(METRICS.values(), "radii", view.panels)
    }
    epochs = []
    for style, (group, lines) in zip(mode_styles(groups), measured, strict=True):
        epoch = max(shared or {name.epoch for name in lines})
        epochs.append(epoch)
        for panel, curves in panels.items():
            for name, line in lines.items():
                if name.epoch == epoch:
                    curves.append(Curve(split_style(style, name.split), line, panel.field))
            if panel.field == "accuracy":
                curves += autoattack_by_radius(group, epoch, style)
    drawn = (curve.line for curves in panels.values() for curve in curves)
    unit = unit_in_words(place[0])
    return Plot(
        view.file_name(safe("_".join(["epsilon", *place]))),
        f"PGD of several radii{after_epochs(groups, epochs)}: {names_of(groups)}; "
        f"{', '.join(place)}{seeds_of_groups(groups)}",
        groups,
        list(panels.items()),
        x_label=f"$\\epsilon$ ({'in ' if unit == '[0, 1]' else ''}{unit})",
        x_ticks=tuple(sorted({radius for line in drawn for radius in common(line)})),
        notes=("At epsilon 0 are the clean images",),
    )


def tell_other_radii(group: Group, lines: Lines) -> None:
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
        tables, lambda row: RadiusLine(row.split, row.images, row.epoch, row.precision), radius_of
    )
    names = [name for name, line in lines.items() if len({*common(line)} - {0.0}) > 1]
    names.sort(key=lambda name: (SPLITS.index(name.split), -name.images))
    return {name: lines[name] for name in names}


def autoattack_by_radius(group: Group, epoch: int, style: Style) -> list[Curve]:
    """Accuracy under AutoAttack at one epoch, where it was measured, in a mode's style."""
    tables = [[row for row in run.autoattack if row.epoch == epoch] for run in group.runs]
    lines = collect(tables, lambda row: row.images, radius_of)
    label = f"{style.label}: AutoAttack, test"
    own = style._replace(label=label, marker="*", size=7, line="none", fill=HOLLOW)
    return [Curve(own, line, "robust_accuracy") for line in lines.values() if common(line)]
