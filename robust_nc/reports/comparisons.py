"""Figures of several groups: collapse, distances to clean class means, radii of PGD."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.captions import in_words_of_papers
from robust_nc.reports.groups import Group, Line, LineName, View, differences
from robust_nc.reports.panels import Curve, Panel, Plot, panels_of
from robust_nc.reports.runs import PERTURBED
from robust_nc.reports.style import (
    ANY_MODE,
    MORE_COLORS,
    MORE_MARKERS,
    Style,
    mode_in_words,
    mode_style,
    split_style,
)
from robust_nc.results.metrics import METRICS
from robust_nc.results.rows import SPLIT_LABELS
from utils import logger

HEADS = {False: "clean", True: "perturbed"}  # of panels, by whether the images are
LOSS_LABEL = "Cross-entropy of the same images, falls to the right"


def by_place(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """The groups of each setting, by its name in files."""
    shared: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        shared[group.setting.file_name].append(group)
    return shared


def mode_plots(groups: list[Group], view: View) -> list[Plot]:
    """The collapse of two or more groups of one setting, against epochs and against the loss.

    Files of --checkpoint, of which no epochs are known, have a figure of their own.
    """
    return [
        plot
        for place, together in by_place(group for group in groups if not group.file).items()
        if len(together) > 1
        for plot in (
            collapse_plot(f"collapse_{place}", together, view),
            loss_plot(f"collapse_loss_{place}", together, view),
        )
    ]


class KindLine(NamedTuple):
    """One line of a figure of several groups: its style there, and whether it is perturbed."""

    style: Style
    name: LineName
    line: Line
    perturbed: bool


def collapse_plot(name: str, groups: list[Group], view: View) -> Plot:
    """NC1 to NC4 against epochs: a row of panels for clean images, and one for perturbed ones."""
    lines = kind_lines(groups, view)
    metrics = panels_of(METRICS.values(), "modes", view.panels)
    panels = [
        (
            panel._replace(head=HEADS[perturbed]),
            [
                Curve(one.style, one.line, panel.field)
                for one in lines
                if one.perturbed == perturbed
            ],
        )
        for perturbed in sorted({one.perturbed for one in lines})
        for panel in metrics
    ]
    title = f"Neural collapse of {names_of(groups)}; {settings_in_words(groups)}"
    return Plot(
        view.file_name(name),
        title,
        groups,
        panels,
        columns=len(metrics),
        legend=legend_of_groups(groups, lines),
        notes=perturbed_notes(groups, view),
    )


def loss_plot(name: str, groups: list[Group], view: View) -> Plot:
    """NC1 against the loss on the same images, clean and perturbed, a line per run in its order.

    Whether a way to train collapses less, or only later, is seen at equal loss.
    """
    nc1, lines = METRICS["nc1"], kind_lines(groups, view)
    panel = Panel(nc1.field, nc1.name, nc1.label, nc1.scale, nc1.meaning)
    panels = []
    for perturbed in (False, True):
        curves = [
            Curve(one.style, [rows], nc1.field, against="loss")
            for one in lines
            if one.perturbed == perturbed
            for rows in one.line
        ]
        panels.append((panel._replace(head=HEADS[perturbed]), curves))
    return Plot(
        view.file_name(name),
        f"NC1 against the loss of {names_of(groups)}; {settings_in_words(groups)}",
        groups,
        panels,
        x_label=LOSS_LABEL,
        x_falls=True,
        legend=legend_of_groups(groups, lines),
        notes=("A line per run, in the order of its epochs", *perturbed_notes(groups, view)),
    )


def kind_lines(groups: list[Group], view: View) -> list[KindLine]:
    """Clean and perturbed images of each group, of each split those of most images."""
    lines = []
    for style, group in zip(mode_styles(groups), groups, strict=True):
        seen = set()
        for name, line in group.shown(view).items():
            if name.input not in ("clean", *PERTURBED) or (name.split, name.input) in seen:
                continue
            seen.add((name.split, name.input))
            own = split_style(style._replace(size=style.size - 1), name.split)
            lines.append(KindLine(own, name, line, name.input != "clean"))
    return lines


def legend_of_groups(groups: list[Group], lines: list[KindLine]) -> tuple[Style, ...]:
    """The groups, and where test images are shown how these, and those of training, are."""
    any_group = Style("images", ANY_MODE, "o")
    splits = dict.fromkeys(line.name.split for line in lines)
    named = [split_style(any_group, split)._replace(label=SPLIT_LABELS[split]) for split in splits]
    return (*mode_styles(groups), *(named if splits.keys() - {"train"} else ()))


def perturbed_notes(groups: list[Group], view: View) -> tuple[str, ...]:
    """Which perturbed images each group's are."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for group, style in zip(groups, mode_styles(groups), strict=True):
        for kind in {name.input for name in group.shown(view)}.intersection(PERTURBED):
            kinds[INPUTS[kind].label].append(style.label)
    words = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())
    return (f"Perturbed images: {words}",) if words else ()


def tell_swept(groups: list[Group], view: View) -> None:
    """One line on PGD of the checkpoints where images seen in training are drawn in its place."""
    if view.perturbed != "seen" or "train" not in view.splits:
        return
    both = [
        style.label
        for group, style in zip(groups, mode_styles(groups), strict=True)
        if {n.input for n in group.lines if n.split == "train"}.issuperset(PERTURBED)
    ]
    if both:
        logger.info(
            f"{'; '.join(both)}: drawn are the training-time adversarial images; PGD on the "
            "checkpoints was measured too: --perturbed pgd draws it"
        )


def distance_plots(groups: list[Group], view: View) -> list[Plot]:
    """Clean against perturbed class means of modes with an adversary, together in one place."""
    shared = defaultdict(list)
    for group in groups:
        if not group.adversary:
            continue
        lines = [
            (name, line)
            for name, line in group.shown(view).items()
            if name.input in PERTURBED and has_values(line, "clean_angle")
        ]
        if lines:
            shared[group.setting.file_name].append((group, lines))
        else:
            logger.info(f"{group.file_name()}: left out, not measured: distance to clean")
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
        panels = [
            (panel, [Curve(*line, panel.field) for line in styled])
            for panel in panels_of(METRICS.values(), "distance", view.panels)
        ]
        which = INPUTS[kinds.pop()].label if len(kinds) == 1 else "perturbed"
        title = f"Class means, clean to {which}; {settings_in_words(together)}"
        plots.append(Plot(view.file_name(f"distance_{place}"), title, together, panels))
    return plots


def has_values(line: Line, field: str) -> bool:
    """Whether all seeds have a number at one place or more."""
    return bool(np.isfinite(Curve(Style("", ""), line, field).points()[1]).any())


def seeds_of_groups(groups: list[Group]) -> str:
    """In words after a comma, of each group its own; nothing of files, whose are not known."""
    each = zip(mode_styles(groups), groups, strict=True)
    seeds = [(style.label, group.seeds) for style, group in each if group.seeds]
    return f", {by_value(seeds)}" if seeds else ""


def names_of(groups: list[Group]) -> str:
    """The ways to train, like "ST, AT and MART"; files by their names."""
    *most, last = dict.fromkeys(group.file or mode_in_words(group.mode) for group in groups)
    return f"{', '.join(most)} and {last}" if most else last


def settings_in_words(groups: list[Group]) -> str:
    """The settings of one figure, and whose seeds are which."""
    settings = "; ".join(dict.fromkeys(group.setting.title for group in groups))
    return f"{settings}{seeds_of_groups(groups)}"


def by_value(values: list[tuple[str, str]]) -> str:
    """(name, value) of each: the value if all have the same, or "30 (AT, MART), 40 (ST)"."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, value in values:
        names[value].append(name)
    if len(names) == 1:
        return values[0][1]
    return ", ".join(f"{value} ({', '.join(whose)})" for value, whose in names.items())


def after_epochs(groups: list[Group], epochs: Iterable[int]) -> str:
    """In words, of each group its own where they differ; nothing of files, which have none."""
    each = zip(groups, mode_styles(groups), epochs, strict=True)
    of_runs = [(style.label, str(epoch)) for group, style, epoch in each if not group.file]
    return f" after epoch {by_value(of_runs)}" if of_runs else ""


def mode_styles(groups: list[Group]) -> list[Style]:
    """A style for each group of one figure: its mode's, with what else differs in the label.

    Of flags these are the ones that set groups of one mode apart: a way to train has flags that
    others have not, and its name tells it.
    """
    styles = []
    seen: dict[str, int] = defaultdict(int)
    for group, differs in zip(groups, differences(labelling_flags(groups)), strict=True):
        style = mode_style(group.mode)
        if seen[group.mode]:
            place = sum(max(count - 1, 0) for count in seen.values())
            marker, color = (names[place % len(names)] for names in (MORE_MARKERS, MORE_COLORS))
            style = style._replace(marker=marker, color=color)
        seen[group.mode] += 1
        label = ", ".join(filter(None, (group.file or style.label, in_words_of_papers(differs))))
        styles.append(style._replace(label=label))
    return styles


def labelling_flags(groups: list[Group]) -> list[dict[str, Any]]:
    """Of each group what may be told in its label: the setting, and flags that vary in a mode."""
    alike: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for group in groups:
        alike[group.mode, bool(group.file)].append(group.flags)
    varying = set()
    for flags_of_mode in alike.values():
        for name in {name for flags in flags_of_mode for name in flags}:
            values = {flags[name] for flags in flags_of_mode if name in flags}
            if len(values) > 1:
                varying.add(name)
    labelling = []
    for group in groups:
        setting = group.setting._asdict()
        del setting["limit_train"]  # a flag as others are
        labelling.append(setting | {n: v for n, v in group.flags.items() if n in varying})
    return labelling
