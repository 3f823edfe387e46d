"""Figures of files of weights that were measured side by side, eval.py --checkpoint."""

from collections import defaultdict

from robust_nc.reports.groups import Group, Line, LineName, View, in_words
from robust_nc.reports.panels import Curve, Plot, line_styles, panels_of
from robust_nc.results.metrics import METRICS


def file_plots(groups: list[Group], view: View) -> list[Plot]:
    """Every metric of each file, one beside the other: a figure for each data set and network."""
    shared = defaultdict(list)
    for group in groups:
        if group.file:
            shared[group.usual_name()].append(group)
    plots = []
    for name, together in shared.items():
        lines: dict[LineName, Line] = {}
        for place, group in enumerate(together):
            for line_name, [rows] in group.shown(view).items():
                for row in rows.values():
                    lines.setdefault(line_name, [{}])[0][place] = row
        styles = {n: style._replace(line="none") for n, style in line_styles([*lines]).items()}
        panels = [
            (panel, [Curve(styles[n], line, panel.field) for n, line in lines.items()])
            for panel in panels_of(METRICS.values(), "epochs")
        ]
        names = {
            place: ", ".join(filter(None, (group.file, in_words(group.differs))))
            for place, group in enumerate(together)
        }
        title = f"Files, {together[0].setting.title}"
        plots.append(Plot(view.file_name(name), title, together, panels, "File", names))
    return [plot for plot in plots if plot.panels and any(c for _, c in plot.panels)]
