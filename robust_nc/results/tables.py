"""Results in words: tables for the end of a log, and values with their spread over seeds."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.results.records import (
    SPLITS,
    AutoAttackRecord,
    CentreRecord,
    LayerRecord,
    Record,
    radius_of,
)


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


def table_lines(rows: list) -> list[str]:
    """A table of rows of one type, of as many epochs as they are of."""
    return TABLE_LINES[type(rows[0])](rows)


def epsilon_of(row: Any) -> str:
    return f"{row.epsilon:g}" if radius_of(row) else "-"


def input_table(rows: list[Record]) -> list[str]:
    """A line per kind of input and epoch, training images first."""
    lines = []
    for split in SPLITS:
        found = [row for row in rows if row.split == split]
        if found:
            head = "input" if split == "train" else "test input"
            lines.append(
                f"{head:<10} epsilon  images  epoch  accuracy       NC1  NC2 norm  NC2 angle     "
                "NC3     NC4"
            )
        for row in sorted(found, key=lambda r: (list(INPUTS).index(r.input), radius_of(r))):
            lines.append(
                f"{row.input:<10} {epsilon_of(row):>7}  {row.images:>6}  {row.epoch:>5}  "
                f"{row.accuracy:>8.4f}  {row.nc1:>8.2e}  {row.nc2_norm_activation:>8.4f}  "
                f"{row.nc2_angle_activation:>9.4f}  {row.nc3:>6.3f}  {row.nc4:>6.4f}"
            )
    return [*lines, NC1_DEFINITION]


def layer_table(rows: list[LayerRecord]) -> list[str]:
    """A line per block of the last epoch: per input its place among the clean class means, NC1.

    For targeted inputs also the share of images that lie nearest to the target's class mean.
    """
    lines, epoch = [CENTRE_DEFINITION], max(row.epoch for row in rows)
    for split in SPLITS:
        found = [row for row in rows if (row.epoch, row.split) == (epoch, split)]
        kinds = list(dict.fromkeys((row.input, row.epsilon) for row in found))
        inputs = f"{split:<5} {epoch:>3} layer   "
        columns = f"{f'({found[0].images if found else 0} images)':<18}"
        for name, epsilon in kinds:
            head = name if epsilon != epsilon else f"{name} {epsilon:g}"
            column = " | centre " + "target " * INPUTS[name].targeted + "angle      NC1"
            inputs += f" | {head:<{len(column) - 3}}"
            columns += column
        lines += [inputs.rstrip(), columns]
        by_layer = {(row.layer, row.input, radius_of(row)): row for row in found}
        for layer in dict.fromkeys(row.layer for row in found):
            line = f"          {layer:<8}"
            for name, epsilon in kinds:
                row = by_layer[layer, name, 0.0 if epsilon != epsilon else epsilon]
                shares = [row.centre_accuracy]
                shares += [row.target_centre_accuracy] * INPUTS[name].targeted
                told = " ".join(f"{share:>6.3f}" for share in shares)
                line += f" | {told} {row.clean_angle:>5.2f} {row.nc1:>8.2e}"
            lines.append(line)
    return lines


CENTRE_DEFINITION = (
    "centre: share of images whose nearest clean training class mean is their true label's "
    "(target: the target's); angle: to the clean training class means, in radians"
)


def centre_table(rows: list[CentreRecord]) -> list[str]:
    """Accuracy by nearest class mean beside the network's."""
    lines = ["layer     means      epsilon  epoch  images  test images   by class mean  by network"]
    for row in rows:
        lines.append(
            f"{row.layer:<8}  {row.means:<10} {epsilon_of(row):>7}  {row.epoch:>5}  "
            f"{row.images:>6}  {row.input:<11}  {row.ncc_accuracy:>14.4f}  "
            f"{row.network_accuracy:>10.4f}"
        )
    return lines


def autoattack_table(rows: list[AutoAttackRecord]) -> list[str]:
    lines = ["AutoAttack epsilon  epoch  images  clean accuracy  robust accuracy"]
    for row in rows:
        lines.append(
            f"{row.split:<10} {epsilon_of(row):>7}  {row.epoch:>5}  {row.images:>6}  "
            f"{row.clean_accuracy:>14.4f}  {row.robust_accuracy:>15.4f}"
        )
    return lines


TABLE_LINES: dict[type, Callable[[list], list[str]]] = {
    Record: input_table,
    LayerRecord: layer_table,
    CentreRecord: centre_table,
    AutoAttackRecord: autoattack_table,
}


NC1_DEFINITION = "nc1 is tr(Sigma_W Sigma_B^+), not divided by the number of classes"


def named(row: Any) -> str:
    """The kind of input of a row, and at which epsilon where it was attacked."""
    return row.input if math.isnan(row.epsilon) else f"{row.input} {row.epsilon:g}"


def describe_record(record: Record) -> str:
    """One line for the log. NC2 is printed for the class means, not for the classifier."""
    line = (
        f"{record.split:<5} {named(record):<11} acc {record.accuracy:.4f} loss {record.loss:.4f} "
        f"nc1 {record.nc1:.3e} nc2 norm {record.nc2_norm_activation:.3f} "
        f"angle {record.nc2_angle_activation:.3f} nc3 {record.nc3:.3f} nc4 {record.nc4:.4f}"
    )
    if math.isnan(record.clean_distance):
        return line
    return line + f" | from clean: dist {record.clean_distance:.3f} angle {record.clean_angle:.3f}"
