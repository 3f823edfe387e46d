"""The last values of groups of runs as table.md and table.csv of plot.py."""

import csv
import io
import math
from typing import Any, NamedTuple

from robust_nc.data.datasets import units_of
from robust_nc.reports.groups import Group, Line, View, average, collect, common, in_words
from robust_nc.reports.runs import rows_of
from robust_nc.reports.setting import radius_in_words
from robust_nc.results.metrics import METRICS
from robust_nc.results.records import AutoAttackRecord, Record
from robust_nc.results.rows import radius_of
from robust_nc.results.tables import (
    NC1_DEFINITION,
    markdown,
    perturbed_in_words,
    with_spread,
)

COLUMNS = (
    *("mode", "dataset", "model", "norm", "epsilon", "seeds", "input", "split", "images"),
    *("attack_epsilon", "attack", "steps", "step_size", "restarts", "noise", "precision"),
    *("epoch", "metric"),
    *("mean", "std", "differs"),
)
TOLD_BY_AUTOATTACK = ("epoch", "split", "images", "epsilon", "precision")
UNPERTURBED = (0.0, 0, 0, 0.0)  # as Row.perturbed_by tells it


class TableLine(NamedTuple):
    """The rows of one line of the table, by epoch, of each of the seeds that have some.

    radius: of the attack, 0 where there was none.
    """

    input: str
    radius: float
    seeds: str
    rows: Line

    def last_row(self) -> Record:
        """That of one seed at the last common epoch."""
        return self.rows[0][common(self.rows)[-1]]


def tables(groups: list[Group], view: View) -> tuple[str, str]:
    """Every metric at the last common epoch: Markdown, and CSV with all digits, a row per value.

    Of all attacks, levels of noise and precisions, each with the seeds that were measured with it.
    """
    metrics = [metric for metric in METRICS.values() if "epochs" in metric.figures]
    metrics.sort(key=lambda metric: metric.from_clean)
    metrics += [METRICS[metric.classifier] for metric in metrics if metric.classifier]
    heads = ("input", "split", "images", "epsilon", "epoch", *(m.name for m in metrics))
    heads += ("attack or noise", "precision", "seeds")
    parts, content = [], io.StringIO(newline="")
    writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in groups:
        rows = []
        for line in lines_of(group, view):
            place = place_of_line(group, line)
            cells = [str(place[name] or "-") for name in ("input", "split", "images")]
            radius = radius_in_words(line.radius, group.setting.dataset) if line.radius else "-"
            cells += [radius, str(place["epoch"])]
            for metric in metrics:
                mean, std = last_values(line.rows, metric.field)
                cells.append(with_spread(mean, std, metric.form))
                value = {"metric": metric.name, "mean": mean, "std": std}
                writer.writerow(without_nan(place | value))
            rows.append([*cells, place["attack"] or "-", place["precision"] or "-", line.seeds])
        if rows:
            parts.append(f"**{group.title()}**\n\n{markdown(heads, rows)}")
    return "\n".join([*parts, f"{NC1_DEFINITION}\n"]), content.getvalue()


def lines_of(group: Group, view: View) -> list[TableLine]:
    """All that was measured, a line for each split, input, number of images, radius and attack.

    AutoAttack is there whatever the split, with the clean accuracy of its images.
    """
    tables = [
        [row for row in (*run.records, *rows_of(Record, run.others)) if row.split in view.splits]
        for run in group.runs
    ]
    lines = collect(tables, key_of_line)
    for kind, field in (("clean", "clean_accuracy"), ("autoattack", "robust_accuracy")):
        tables = [
            [
                accuracy_record(row, field)
                for row in (*run.autoattack, *rows_of(AutoAttackRecord, run.others))
            ]
            for run in group.runs
        ]
        tested = collect(tables, key_of_line)
        for (split, _, images, radius, *_, precision), line in tested.items():
            radius = 0.0 if kind == "clean" else radius
            name = (split, kind, images, radius, *UNPERTURBED, precision)
            lines.setdefault(name, line)
    measured = []
    for (_, kind, _, radius, *_), line in lines.items():
        by_seed = {run.seed: rows for run, rows in zip(group.runs, line, strict=True) if rows}
        seeds = "" if group.file else " ".join(map(str, by_seed))
        measured.append(TableLine(kind, radius, seeds, list(by_seed.values())))
    return [line for line in measured if common(line.rows)]


def key_of_line(row: Record) -> tuple:
    place = row.split, row.input, row.images, radius_of(row)
    return *place, *row.perturbed_by, row.precision


def accuracy_record(row: AutoAttackRecord, field: str) -> Record:
    """A row of AutoAttack as one of all metrics, of which it knows the accuracy alone."""
    unknown = dict.fromkeys(METRICS, math.nan)
    known = {name: getattr(row, name) for name in TOLD_BY_AUTOATTACK}
    key = {"source": "eval", "input": "clean", "accuracy": getattr(row, field)}
    return Record(**unknown | known | key)


def place_of_line(group: Group, line: TableLine) -> dict[str, Any]:
    """What table.csv tells of a line beside its values."""
    row = line.last_row()
    return {
        "mode": group.file or group.mode,
        **{name: getattr(group.setting, name) for name in ("dataset", "model", "norm", "epsilon")},
        "seeds": line.seeds,
        "input": line.input,
        "split": row.split,
        "images": row.images or "",
        "attack_epsilon": line.radius or "",
        "attack": perturbed_in_words(row, units_of(group.setting.dataset)),
        "steps": row.steps or "",
        "step_size": row.step_size,
        "restarts": row.restarts or "",
        "noise": row.noise,
        "precision": row.precision,
        "epoch": row.epoch,
        "differs": in_words(group.differs),
    }


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {n: "" if isinstance(v, float) and math.isnan(v) else v for n, v in row.items()}


def last_values(line: Line, field: str) -> tuple[float, float]:
    """Mean and deviation of a field at the last common epoch."""
    _, mean, std = average(line, field)
    return float(mean[-1]), float(std[-1])
