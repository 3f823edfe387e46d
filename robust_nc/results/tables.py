"""Results in words: tables for the end of a log, and values with their spread over seeds."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from robust_nc.data.inputs import INPUTS, place_of
from robust_nc.results.layer_rows import LAYER_METRICS, LayerRecord
from robust_nc.results.metrics import METRICS, Column
from robust_nc.results.records import (
    AutoAttackRecord,
    CentreRecord,
    LeapRecord,
    Record,
    SimplexRecord,
)
from robust_nc.results.rows import SPLITS, radius_of


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased deviation of the values that are no NaN; NaN of too few."""
    known = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(known)) if known else math.nan
    return mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def with_spread(mean: float, std: float, form: str, std_form: str = "") -> str:
    """A value with its deviation, if it has one; a dash where there is none."""
    if math.isnan(mean):
        return "-"
    return f"{mean:{form}}" + ("" if math.isnan(std) else f" ± {std:{std_form or form}}")


def markdown(
    heads: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str] = ()
) -> str:
    """A Markdown table; columns are aligned to the right but for the first and those of `words`."""
    rules = ["---" if head in (heads[0], *words) else "---:" for head in heads]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *rows))


# From a row to the attack, noise or precision that it is of, "" where the other columns tell the
# rows apart.
Naming = Callable[[Any], str]
# From rows of one type, and what to call each, to lines.
Table = Callable[[list, Naming], list[str]]


def table_lines(rows: list, table: Table, unit: float = 255) -> list[str]:
    """A table of rows of one type, of as many epochs as they are of, and the attacks on them.

    Where rows of one kind of input and radius are of several attacks or levels of noise, or rows of
    several precisions, each says which it is of.
    """
    attacks = sorted(
        {(row.epsilon, attack_of_row(row, unit)) for row in rows if attack_of_row(row, unit)}
    )

    def name(row: Any) -> str:
        words = (perturbed_in_words(row, unit), row.precision if len(precisions) > 1 else "")
        return ", ".join(filter(None, words))

    precisions = {row.precision for row in rows} - {""}
    kinds = {(getattr(row, "input", ""), radius_of(row), row.perturbed_by) for row in rows}
    several = len({kind[:2] for kind in kinds}) < len(kinds) or len(precisions) > 1
    lines = table(rows, name if several else lambda row: "")
    return [*lines, f"attacks: {'; '.join(words for _, words in attacks)}"] if attacks else lines


def epsilon_of(row: Any) -> str:
    return f"{row.epsilon:g}" if radius_of(row) else "-"


def attack_in_words(steps: int, restarts: int, radius: float, step: float, unit: float) -> str:
    """PGD with its budget, like "PGD-10, 8/255, step 2/255"; a radius of 1 is 1 / `unit`."""
    units = "" if unit == 1 else f"/{unit:g}"
    size = "" if math.isnan(step) else f", step {step:g}{units}"  # which older versions left untold
    again = f", {restarts} restarts" if restarts > 1 else ""
    return f"PGD-{steps}, {radius:g}{units}{size}{again}"


def attack_of_row(row: Any, unit: float) -> str:
    """The attack that a row is of; "" where it is of none, or of a version that did not tell."""
    if not row.steps:
        return ""
    return attack_in_words(row.steps, row.restarts, row.epsilon, row.step_size, unit)


def perturbed_in_words(row: Any, unit: float) -> str:
    """The attack, or noise, that a row is of; "" where it is of neither, or was not told."""
    if row.noisy and not math.isnan(row.noise):
        return f"noise {row.noise:g}/255"
    return attack_of_row(row, unit)


def end_of(row: Any, name: Naming) -> str:
    """The end of a line: the attack, where it is to be told, and the file of --checkpoint."""
    return "".join(f"  {words}" for words in (name(row), row.checkpoint) if words)


def input_table(rows: list[Record], name: Naming) -> list[str]:
    """A line per kind of input and epoch, training images first."""
    lines = []
    columns = {metric.field: metric.table for metric in METRICS.values() if metric.table}
    for split in SPLITS:
        of_split = [row for row in rows if row.split == split]
        if of_split:
            head = "input" if split == "train" else "test input"
            heads = "  ".join(map(head_of, columns.values()))
            lines.append(f"{head:<10} epsilon  images  epoch  {heads}")

        def place(row: Record) -> tuple:
            return place_of(row.input), radius_of(row), row.measured_by

        for row in sorted(of_split, key=place):
            cells = "  ".join(cell(getattr(row, field), c) for field, c in columns.items())
            lines.append(
                f"{row.input:<10} {epsilon_of(row):>7}  {row.images:>6}  {row.epoch:>5}  {cells}"
                f"{end_of(row, name)}"
            )
    return [*lines, NC1_DEFINITION]


def cell(value: float, column: Column) -> str:
    width = max(len(column.name), len(f"{0.0:{column.form}}"))  # NaN is as wide as a number
    return f"{value:{column.form}}".rjust(width)


def head_of(column: Column) -> str:
    return column.name.rjust(len(cell(0.0, column)))


def layer_table(rows: list[LayerRecord], name: Naming) -> list[str]:
    """A line per block of the last epoch, or every file: its place among clean class means, NC1.

    For targeted inputs also the share of images that lie nearest to the target's class mean.
    """
    last = max(row.epoch for row in rows)
    epochs = sorted({row.epoch for row in rows if row.checkpoint or row.epoch == last})
    tables = [layer_lines([row for row in rows if row.epoch == epoch], name) for epoch in epochs]
    return [CENTRE_DEFINITION, *(line for table in tables for line in table)]


def layer_lines(rows: list[LayerRecord], name: Naming) -> list[str]:
    """The lines of one epoch, or file."""
    lines = [rows[0].checkpoint] if rows[0].checkpoint else []

    def head(row: LayerRecord) -> str:
        return (name(row) and f"{row.input}, {name(row)}") or input_and_epsilon(row)

    for split in SPLITS:
        of_split = [row for row in rows if row.split == split]
        columns = {head(row): layer_columns(row.input) for row in of_split}
        inputs = f"{split:<5} {rows[0].epoch:>3} layer   "
        heads = f"{f'({of_split[0].images if of_split else 0} images)':<18}"
        for words, shown in columns.items():
            names = " ".join(map(head_of, shown.values()))
            width = max(len(words), len(names))
            inputs += f" | {words:<{width}}"
            heads += f" | {names:<{width}}"
        lines += [inputs.rstrip(), heads]
        measured = {(row.layer, head(row)): row for row in of_split}
        for layer in dict.fromkeys(row.layer for row in of_split):
            line = f"          {layer:<8}"
            for words, shown in columns.items():
                row = measured.get((layer, words))
                cells = [cell(getattr(row, f, math.nan), c) for f, c in shown.items()]
                line += f" | {' '.join(cells):<{len(words)}}"
            lines.append(line)
    return lines


def layer_columns(input: str) -> dict[str, Column]:
    """Field of LayerRecord -> its column, for a kind of input."""
    return {
        metric.field: metric.table
        for metric in LAYER_METRICS.values()
        if metric.table and (INPUTS[input].targeted or not metric.only_targeted)
    }


CENTRE_DEFINITION = (
    "centre: share of images whose nearest clean training class mean is their true label's "
    "(target: the target's); angle: to the clean training class means, in radians (targeted: of "
    "the target's class; own angle: of their own)"
)


def centre_table(rows: list[CentreRecord], name: Naming) -> list[str]:
    """Accuracy by nearest class mean beside the network's."""
    lines = ["layer     means      epsilon  epoch  images  test images   by class mean  by network"]
    for row in rows:
        lines.append(
            f"{row.layer:<8}  {row.means:<10} {epsilon_of(row):>7}  {row.epoch:>5}  "
            f"{row.images:>6}  {row.input:<11}  {row.ncc_accuracy:>14.4f}  "
            f"{row.network_accuracy:>10.4f}{end_of(row, name)}"
        )
    return lines


def autoattack_table(rows: list[AutoAttackRecord], name: Naming) -> list[str]:
    """A line per row: accuracy of clean images and under AutoAttack."""
    lines = ["AutoAttack epsilon  epoch  images  clean accuracy  robust accuracy"]
    for row in rows:
        lines.append(
            f"{row.split:<10} {epsilon_of(row):>7}  {row.epoch:>5}  {row.images:>6}  "
            f"{row.clean_accuracy:>14.4f}  {row.robust_accuracy:>15.4f}{end_of(row, name)}"
        )
    return lines


def by_input(rows: list) -> Iterator[tuple[str, list]]:
    """The rows of each split, kind of input and epoch, with the words that begin its line."""
    groups: dict[tuple, list] = {}
    for row in rows:
        attack = radius_of(row), row.measured_by
        groups.setdefault((row.split, row.input, attack, row.epoch), []).append(row)
    for (split, input, _, epoch), group in groups.items():
        yield f"{split:<5}  {input:<10} {epsilon_of(group[0]):>7}  {epoch:>5}", group


BY_INPUT = "split  input      epsilon  epoch"


def leap_table(rows: list[LeapRecord], name: Naming) -> list[str]:
    """A line per input: the share nearest to their own clean class mean, the commonest leaps."""
    lines = [f"{BY_INPUT}  images  own class  commonest leaps"]
    for place, group in by_input(rows):
        shares = {(r.true_class, r.nearest_class): r.count / r.images for r in group}
        own = sum(share for (true, nearest), share in shares.items() if true == nearest)
        leaps = sorted((-share, pair) for pair, share in shares.items() if pair[0] != pair[1])
        words = ", ".join(f"{a} to {b} {-share:.4f}" for share, (a, b) in leaps[:3])
        if min(nearest for _, nearest in shares) < 0:
            own, words = math.nan, "not known"
        lines.append(f"{place}  {group[0].images:>6}  {own:>9.4f}  {words}{end_of(group[0], name)}")
    return [*lines, LEAP_DEFINITION]


LEAP_DEFINITION = (
    "own class: share of images whose nearest clean training class mean is their true label's; "
    "leaps: share of all images, from their label to the nearest one"
)


def simplex_table(rows: list[SimplexRecord], name: Naming) -> list[str]:
    """A line per input: how many images there are points of, and how far outside the plane."""
    lines = [f"{BY_INPUT}  points  classes  mean share outside their plane"]
    for place, group in by_input(rows):
        shares = [row.outside for row in group if row.image >= 0]
        mean = mean_and_std(shares)[0]
        lines.append(
            f"{place}  {len(shares):>6}  {group[0].classes:<7}  {mean:.4f}{end_of(group[0], name)}"
        )
    return lines


# What `name` and `attacks:` tell of a row, and the file of --checkpoint at its end.
OF_CONDITIONS = {"step_size", "steps", "restarts", "noise", "precision", "checkpoint"}


def plain_table(rows: list, name: Naming) -> list[str]:
    """A column per field, of rows whose type has no table of its own."""
    columns = [field.name for field in fields(rows[0]) if field.name not in OF_CONDITIONS]

    def words(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return "-" if math.isnan(value) else f"{value:.4g}"

    lines = [columns, *([words(getattr(row, column)) for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    head, *texts = (
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return [head, *(text + end_of(row, name) for text, row in zip(texts, rows, strict=True))]


NC1_DEFINITION = "nc1 is tr(Sigma_W Sigma_B^+), not divided by the number of classes"


def input_and_epsilon(row: Any) -> str:
    """The kind of input of a row, and at which epsilon where it was attacked."""
    return row.input if math.isnan(row.epsilon) else f"{row.input} {row.epsilon:g}"


def describe_record(record: Record, unit: float = 255) -> str:
    """One line for the log. NC2 is printed for the class means, not for the classifier."""
    attack = attack_of_row(record, unit)
    name = input_and_epsilon(record)
    if attack:
        name += f" ({attack})"
    line = f"{record.split:<5} {name:<11} {logged(record)}"
    if math.isnan(record.clean_distance):
        return line
    from_clean = logged(record, from_clean=True)
    if not INPUTS[record.input].targeted:
        return f"{line} | from clean: {from_clean}"
    own = logged(record, from_clean=True, only_targeted=True)
    return f"{line} | from clean of the target's class: {from_clean}, of their own: {own}"


def logged(record: Record, *, from_clean: bool = False, only_targeted: bool = False) -> str:
    """The metrics of the log that compare with clean images (or not), of all images or targeted."""
    kind = (from_clean, only_targeted)
    return " ".join(
        f"{metric.log.name} {getattr(record, metric.field):{metric.log.form}}"
        for metric in METRICS.values()
        if metric.log and (metric.from_clean, metric.only_targeted) == kind
    )
