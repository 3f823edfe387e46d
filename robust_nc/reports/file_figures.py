"""Figures of files of weights that were measured side by side, eval.py --checkpoint."""

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.comparisons import by_place, mode_styles, names_of, settings_in_words
from robust_nc.reports.groups import Group, Line, View
from robust_nc.reports.panels import Curve, Plot, panels_of
from robust_nc.reports.style import Style, split_style
from robust_nc.results.metrics import METRICS

COLUMNS = 3  # of panels, which hold the names of the kinds of images


def file_plots(groups: list[Group], view: View) -> list[Plot]:
    """The metrics of all files of a data set and network in one figure for each."""
    files = by_place(group for group in groups if group.file)
    return [file_plot(f"file_{place}", together, view) for place, together in files.items()]


def file_plot(name: str, groups: list[Group], view: View) -> Plot:
    """Each metric against the kinds of images, points in a colour for each file."""
    measured = {line.input for group in groups for line in group.shown(view)}
    kinds = [kind for kind in INPUTS if kind in measured]
    lines = [
        one
        for style, group in zip(mode_styles(groups), groups, strict=True)
        for one in file_lines(style, group, kinds, view)
    ]
    panels = [
        (panel, [Curve(style, line, panel.field) for style, line in lines])
        for panel in panels_of(METRICS.values(), "epochs", view.panels)
    ]
    return Plot(
        view.file_name(name),
        f"Files of weights: {names_of(groups)}; {settings_in_words(groups)}",
        groups,
        panels,
        "",
        {place: INPUTS[kind].label for place, kind in enumerate(kinds)},
        columns=COLUMNS,
    )


def file_lines(
    style: Style, group: Group, kinds: list[str], view: View
) -> list[tuple[Style, Line]]:
    """Of each split the rows of one file by the kind of images, of each kind those of most."""
    splits: dict[str, dict] = {}
    for name, [rows] in group.shown(view).items():
        place = kinds.index(name.input)
        splits.setdefault(name.split, {}).setdefault(place, next(iter(rows.values())))
    styles = {split: split_style(style, split)._replace(line="none") for split in splits}
    return [(styles[split], [rows]) for split, rows in splits.items()]
