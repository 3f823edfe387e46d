"""What the runs of a report say, as tables: verdicts, last values, blocks, nearest centres, radii.

All of the last epoch of a run. A table has a line for the runs of one setting and way to train:
mean and unbiased standard deviation over those seeds that were measured, and how many these are.
"""

import math
import platform
from collections.abc import Callable, Iterable
from typing import Any

from robust_nc.data.datasets import units_of
from robust_nc.data.inputs import INPUTS
from robust_nc.reports.claims import CLAIMS, NOT_TESTABLE, Finding
from robust_nc.reports.groups import Group, group_runs, in_words
from robust_nc.reports.random_means import scale_in_words
from robust_nc.reports.runs import Run, name_of_copy
from robust_nc.reports.setting import Setting, radius_in_words
from robust_nc.results.layer_rows import LAYER_METRICS
from robust_nc.results.metrics import METRICS, Column
from robust_nc.results.records import CENTRE_LABELS, measured_alike
from robust_nc.results.rows import SPLITS, radius_of
from robust_nc.results.tables import markdown, mean_and_std, perturbed_in_words, with_spread
from robust_nc.training.modes import MODES

# Field -> column of the metrics of a report, in summary.md and as lines of blocks.md.
SUMMARY = {metric.field: metric.report for metric in METRICS.values() if metric.report}
BLOCKS = {metric.field: metric.report for metric in LAYER_METRICS.values() if metric.report}
OF_RADII = {field: SUMMARY[field] for field in ("accuracy", "nc1")}
OF_RADII["clean_angle"] = Column("angle to clean means", ".3f")  # of PGD, which has no target
# The first columns of the tables: the runs of a line, how many were measured, and on which images.
FIRST_COLUMNS = ("trained", "setting", "seeds", "images")
WORD_COLUMNS = ("setting", "images")


def finding_row(finding: Finding) -> dict[str, Any]:
    """A line of claims.csv; `differs` only where runs of the setting differ in more than seeds."""
    return {
        "claim": finding.criterion.claim,
        "criterion": finding.criterion.text,
        **finding.setting._asdict(),
        "bound": finding.criterion.bound,
        "added_later": finding.criterion.later,
        "mean": "" if math.isnan(finding.mean) else finding.mean,
        "std": "" if math.isnan(finding.std) else finding.std,
        "seeds": " ".join(map(str, finding.values)),
        "values": " ".join(map(repr, finding.values.values())),
        "end": "" if math.isnan(finding.end) else finding.end,
        "random": "" if math.isnan(finding.random) else finding.random,
        "verdict": finding.verdict,
        "not_testable": finding.failed,
    } | ({"differs": finding.differs} if finding.differs else {})


def run_rows(runs: list[Run]) -> list[dict[str, Any]]:
    """The lines of runs.csv, with what sets a run apart from others of its mode and setting."""
    differs = {
        run.path: {"differs": in_words(group.differs)}
        for group in group_runs(runs)
        if group.differs
        for run in group.runs
    }
    return [run_row(run) | differs.get(run.path, {}) for run in runs]


def run_row(run: Run) -> dict[str, Any]:
    """A line of runs.csv."""
    # Rows of older versions do not tell it.
    images = {row.split: row.images for row in run.records if row.images}
    return {
        **run.setting._asdict(),
        "mode": run.mode,
        "seed": run.seed,
        "epochs": f"{len(run.history)} of {run.last_epoch + 1}",
        "train_images": images.get("train", ""),
        "test_images": images.get("test", ""),
        "training_seconds": round(sum(row.seconds for row in run.history), 1),
        "precision": run.arguments.get("precision"),
        "commit": run.arguments.get("git_commit"),
        "changed": run.arguments.get("git_dirty"),
        "torch": run.arguments.get("torch"),
        "ran_on": run.arguments.get("ran_on"),
        "machine": platform.machine(),
        "folder": name_of_copy(run).as_posix(),
    }


def findings_in_words(findings: list[Finding]) -> str:
    """claims.md: a heading and a table for each claim.

    A criterion that was not measured in a setting has no line for it, and one line if in none.
    """
    listed = {finding.criterion for finding in findings if finding.outcomes}
    parts = []
    for claim in dict.fromkeys(finding.criterion.claim for finding in findings):
        rows = []
        for finding in findings:
            criterion = finding.criterion
            if criterion.claim != claim or (not finding.outcomes and criterion in listed):
                continue
            listed.add(criterion)
            rows.append(
                (
                    criterion.text + (" (added later)" if criterion.later else ""),
                    setting_in_words(finding.setting, finding.differs) if finding.outcomes else "-",
                    criterion.bound,
                    value_in_words(finding),
                    str(len(finding.values) or "-"),
                    verdict_in_words(finding),
                )
            )
        heads = ("criterion", "setting", "bound", "measured", "seeds", "verdict")
        table = markdown(heads, rows, ("setting", "bound", "verdict"))
        parts.append(f"## Claim {claim}: {CLAIMS[claim]}\n\n{table}")
    return "\n".join(parts)


def value_in_words(finding: Finding, form: str = ".4g", std_form: str = ".3g") -> str:
    """Mean and deviation over the seeds, with the end value and that of random class means."""
    value = with_spread(finding.mean, finding.std, form, std_form)
    if math.isnan(finding.end):
        return value
    random = "" if math.isnan(finding.random) else f", random {finding.random:.3g}"
    return f"{value} (ends at {finding.end:.3g}{random})"


def verdict_in_words(finding: Finding) -> str:
    """The verdict, with what is not testable and why."""
    if not finding.failed:
        return finding.verdict
    if finding.kind == NOT_TESTABLE:
        return f"{finding.verdict}: {finding.failed}"
    return f"{finding.verdict}; {NOT_TESTABLE} of {finding.failed}"


def first_cells(group: Group) -> tuple[str, str]:
    """How the runs of a line were trained, and their setting, with what sets them apart in it."""
    return MODES[group.mode].label, setting_in_words(group.setting, in_words(group.differs))


def setting_in_words(setting: Setting, differs: str) -> str:
    return f"{setting}, {differs}" if differs else str(setting)


def over_seeds(values: Iterable[float], form: str) -> str:
    """Mean and deviation of the values that are known, and how many these are if not all."""
    values = list(values)
    known = sum(not math.isnan(value) for value in values)
    part = f" ({known} of {len(values)} seeds)" if 0 < known < len(values) else ""
    return with_spread(*mean_and_std(values), form) + part


class AttackNames:
    """The attacks and noise of rows in words, where those of a setting are of several.

    Rows of groups that were trained in different ways stand in one table.
    """

    def __init__(self, groups: list[Group], rows: Callable[[Run], list]):
        self.several: dict[tuple, set[tuple]] = {}
        for group in groups:
            for row in (row for run in group.runs for row in rows(run)):
                if row.attacked or row.noisy:
                    self.several.setdefault(self._place(group, row), set()).add(row.perturbed_by)

    def _place(self, group: Group, row: Any) -> tuple:
        return group.setting, row.input, radius_of(row)

    def name(self, group: Group, row: Any) -> str:
        """The end of a cell; "" where all are of one, or where there is none."""
        if len(self.several.get(self._place(group, row), ())) < 2:
            return ""
        return f", {perturbed_in_words(row, units_of(group.setting.dataset)) or 'untold'}"


def summary_in_words(runs: list[Run]) -> str:
    """summary.md: the metrics of every kind of input."""
    rows, groups = [], group_runs(runs)
    names = AttackNames(groups, lambda run: run.own_records)
    for group in groups:
        for split in SPLITS:
            first: list = []
            for input, kind in INPUTS.items():
                last = (run.of_epoch(run.last_epoch, input, split) for run in group.runs)
                measured = [row for rows_of_run in last for row in rows_of_run]
                if measured:
                    cells = [
                        over_seeds((getattr(row, field) for row in measured), column.form)
                        for field, column in SUMMARY.items()
                    ]
                    first = first or measured
                    images = f"{split}, {kind.label}{names.name(group, measured[0])}"
                    images += unlike_in_words(measured, first)
                    rows.append((*first_cells(group), str(len(measured)), images, *cells))
    heads = (*FIRST_COLUMNS, *(column.name for column in SUMMARY.values()))
    return markdown(heads, rows, WORD_COLUMNS)


def unlike_in_words(rows: list, first: list) -> str:
    """How many images rows are of, and their precision, where they are not measured as others."""
    if measured_alike([*rows, *first]):
        return ""
    return f", n = {rows[0].images or 'not told'}, {rows[0].precision or 'precision not told'}"


def blocks_in_words(runs: list[Run]) -> str:
    """blocks.md: a table for each way to train, its columns the blocks in forward order."""
    parts = []
    for group in group_runs(runs):
        rows = [row for split in SPLITS for row in block_rows(group, split)]
        if rows:
            table = markdown(("images", "seeds", *block_names(group)), rows)
            parts.append(f"## {', '.join(first_cells(group))}\n\n{table}")
    return "\n".join(parts)


def block_names(group: Group) -> list[str]:
    """In forward order, of the first run whose blocks were measured."""
    tables = (run.blocks(kind, split) for run in group.runs for split in SPLITS for kind in INPUTS)
    return [f"`{row.layer}`" for row in next(filter(None, tables), [])]


def of_target(field: str, input: str) -> bool:
    """Whether a distance or angle to clean class means is to those of the target's class."""
    return INPUTS[input].targeted and field in ("clean_distance", "clean_angle")


def block_rows(group: Group, split: str) -> list[tuple[str, ...]]:
    """Lines of blocks.md: a metric of one kind of input, over the seeds that have it."""
    rows: list[tuple[str, ...]] = []
    for field, column in BLOCKS.items():
        for input in LAYER_METRICS[field].blocks:
            if (split, input, field) == ("train", "clean", "clean_angle"):
                continue  # of the means with themselves
            lines = [run.by_layer(input, field, split) for run in group.runs]
            lines = [values for values in lines if values and not math.isnan(values[0])]
            if lines:
                cells = [over_seeds(values, column.form) for values in zip(*lines, strict=True)]
                # Their own class has a metric of its own.
                to_target = " of the target's class" if of_target(field, input) else ""
                label = f"{split}, {INPUTS[input].label}: {column.name}{to_target}"
                rows.append((label, str(len(lines)), *cells))
    return rows


def centres_in_words(runs: list[Run]) -> str:
    """centres.md: test accuracy of the nearest clean class mean, and of the network."""
    rows, groups = [], group_runs(runs)
    names = AttackNames(groups, lambda run: run.at_own_epsilon(run.centres))
    for group in groups:
        for input, label in CENTRE_LABELS.items():
            measured = [row for run in group.runs if (row := run.centre_row(input))]
            if measured:
                cells = (
                    over_seeds((row.ncc_accuracy for row in measured), ".3f"),
                    over_seeds((row.network_accuracy for row in measured), ".3f"),
                )
                images = f"test, {label}{names.name(group, measured[0])}"
                rows.append((*first_cells(group), str(len(measured)), images, *cells))
    return markdown((*FIRST_COLUMNS, "nearest class mean", "network"), rows, WORD_COLUMNS)


def radii_in_words(runs: list[Run]) -> str:
    """radii.md: accuracy, NC1 and angle under PGD of two radii or more, clean images in front."""
    rows, groups = [], group_runs(runs)
    names = AttackNames(groups, lambda run: run.records)
    for group in groups:
        for split in SPLITS:
            tables = [
                table
                for run in group.runs
                if len((table := run.by_radius(split)).keys() - {0.0}) > 1
            ]
            for radius in sorted(set.intersection(*map(set, tables))) if tables else ():
                attack = radius_in_words(radius, group.setting.dataset) if radius else "clean"
                attack += names.name(group, tables[0][radius])
                cells = [
                    over_seeds((getattr(table[radius], field) for table in tables), column.form)
                    for field, column in OF_RADII.items()
                ]
                rows.append((*first_cells(group), str(len(tables)), split, attack, *cells))
    heads = (*FIRST_COLUMNS, "PGD of", *(column.name for column in OF_RADII.values()))
    return markdown(heads, rows, (*WORD_COLUMNS, "PGD of"))


# Files of the report beside claims.md, with their headings.
REPORT_TABLES = {
    "scale.md": ("The scale of the metrics, for ten classes", scale_in_words),
    "summary.md": ("After the last epoch", summary_in_words),
    "blocks.md": ("Blocks, after the last epoch", blocks_in_words),
    "centres.md": ("Nearest-centre classifiers, after the last epoch", centres_in_words),
    "radii.md": ("PGD of several radii, after the last epoch", radii_in_words),
}
