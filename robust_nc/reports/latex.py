"""The table of last values for a paper: LaTeX with booktabs, made of what table.csv holds."""

import csv
import io
import math
from collections import defaultdict

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.setting import Setting, radius_in_words
from robust_nc.reports.style import mode_in_words
from robust_nc.results.metrics import METRICS, Metric
from robust_nc.results.rows import SPLIT_LABELS
from robust_nc.training.modes import MODES

# Metric by its name in table.csv, of those that the reports and the main panels show.
SHOWN = {
    metric.name: metric
    for metric in METRICS.values()
    if metric.report and metric.shown_in("epochs", "main")
}
AUTOATTACK = "AutoAttack"


def latex_tables(table: str) -> str:
    """A table for each setting: a line per way to train and kind of images, mean ± deviation.

    Args:
        table: the content of table.csv.
    """
    settings: dict[Setting, list[dict[str, str]]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(table)):
        place = Setting(row["dataset"], row["model"], row["norm"], float(row["epsilon"]))
        settings[place].append(row)
    order = {name: place for place, name in enumerate(MODES)}  # files of --checkpoint come last
    for rows in settings.values():
        rows.sort(key=lambda row: order.get(row["mode"], len(order)))
    parts = [latex_table(setting, rows) for setting, rows in settings.items()]
    return "\n".join([r"% needs \usepackage{booktabs}", *parts])


def latex_table(setting: Setting, rows: list[dict[str, str]]) -> str:
    """The table of one setting; what is the same in all lines stands in its caption."""
    lines: dict[tuple[tuple[str, str], ...], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["metric"] in SHOWN and row["mean"]:
            lines[tuple(places_of(row).items())][row["metric"]] = in_math(row, SHOWN[row["metric"]])
    places = [dict(place) for place in lines]
    heads = [
        head
        for head in places[0]
        if head in ("Training", "Images") or len({place[head] for place in places}) > 1
    ]
    same = [f"{h.lower()} {v}" for h, v in places[0].items() if h not in heads and v]
    names = [name for name in SHOWN if any(name in values for values in lines.values())]
    body: list[str] = []
    for number, (place, values) in enumerate(zip(places, lines.values(), strict=True)):
        before = places[number - 1]["Training"] if number else place["Training"]
        if before != place["Training"]:
            body.append(r"\midrule")
        first = "" if number and before == place["Training"] else place["Training"]
        cells = [first, *(place[head] for head in heads[1:])]
        cells += [values.get(name, "--") for name in names]
        body.append(" & ".join(cells) + r" \\")
    columns = "l" * len(heads) + "r" * len(names)
    titles = " & ".join([*heads, *(SHOWN[name].label.removesuffix(" [rad]") for name in names)])
    words = "; ".join([escaped(setting.title), *same])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{Neural collapse: {words}.}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{titles} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def places_of(row: dict[str, str]) -> dict[str, str]:
    """Head -> cell, of what tells a line of the table from others."""
    kind = INPUTS[row["input"]].label if row["input"] in INPUTS else AUTOATTACK
    radius = row["attack_epsilon"]
    training = [mode_in_words(row["mode"]), row["differs"]]
    return {
        "Training": escaped(", ".join(filter(None, training))),
        "Images": escaped(kind.removeprefix("perturbed, ")),
        "Split": SPLIT_LABELS[row["split"]],
        "$n$": row["images"],
        r"$\epsilon$": radius_in_words(float(radius), row["dataset"]) if radius else "",
        "Attack or noise": escaped(row.get("attack", "")),
        "Precision": row.get("precision", ""),
        "Seeds": row["seeds"],
        "Epoch": row["epoch"],
    }


def in_math(row: dict[str, str], metric: Metric) -> str:
    """A mean with its deviation, if it has one."""
    form = metric.report.form if metric.report else metric.form
    mean, std = float(row["mean"]), float(row["std"] or "nan")
    return f"${mean:{form}}" + ("$" if math.isnan(std) else rf" \pm {std:{form}}$")


def escaped(words: str) -> str:
    """Words with the signs that LaTeX reads otherwise."""
    for sign in "&%#_":
        words = words.replace(sign, rf"\{sign}")
    return words
