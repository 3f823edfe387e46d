"""Figures of files of weights that were measured side by side, eval.py --checkpoint."""

from robust_nc.reports.captions import in_words
from robust_nc.reports.comparisons import by_place, names_of, settings_in_words
from robust_nc.reports.groups import Group, Line, LineName, View
from robust_nc.reports.panels import Curve, Plot, line_styles, panels_of
from robust_nc.results.metrics import METRICS


def file_plots(groups: list[Group], view: View) -> list[Plot]:
    """The metrics of each file, one beside the other: a figure for each data set and network."""
    files = by_place(group for group in groups if group.file)
    return [file_plot(f"file_{place}", together, view) for place, together in files.items()]


def file_plot(name: str, groups: list[Group], view: View) -> Plot:
    lines: dict[LineName, Line] = {}
    for place, group in enumerate(groups):
        for line_name, [rows] in group.shown(view).items():
            for row in rows.values():
                lines.setdefault(line_name, [{}])[0][place] = row
    styles = {n: style._replace(line="none") for n, style in line_styles([*lines]).items()}
    panels = [
        (panel, [Curve(styles[n], line, panel.field) for n, line in lines.items()])
        for panel in panels_of(METRICS.values(), "epochs", view.panels)
    ]
    names = [", ".join(filter(None, (group.file, in_words(group.differs)))) for group in groups]
    title = f"Files of weights: {names_of(groups)}; {settings_in_words(groups)}"
    return Plot(view.file_name(name), title, groups, panels, "File", dict(enumerate(names)))
