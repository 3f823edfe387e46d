"""What the runs of a report say, as tables: verdicts, last values, blocks, nearest centres, radii.

All of the last epoch of a run. A table has a line for the runs of one setting and way to train:
mean and unbiased standard deviation over those seeds that were measured, and how many these are.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from robust_nc.data.inputs import INPUTS
from robust_nc.reports.claims import CLAIMS, Finding, Run
from robust_nc.reports.runs import radius_in_words
from robust_nc.results.records import CENTRE_LABELS, SPLITS
from robust_nc.results.tables import markdown, mean_and_std, with_spread
from robust_nc.training.modes import MODES


def finding_row(finding: Finding) -> dict[str, Any]:
    """A line of claims.csv."""
    return {
        "claim": finding.criterion.claim,
        "criterion": finding.criterion.text,
        **asdict(finding.setting),
        "bound": finding.criterion.bound,
        "added_later": finding.criterion.later,
        "mean": "" if math.isnan(finding.mean) else finding.mean,
        "std": "" if math.isnan(finding.std) else finding.std,
        "seeds": " ".join(map(str, finding.values)),
        "values": " ".join(map(repr, finding.values.values())),
        "verdict": finding.verdict,
    }


def findings_in_words(findings: list[Finding]) -> str:
    """claims.md: a heading and a table for each claim.

    A criterion that was not measured in a setting has no line for it, and one line if in none.
    """
    told = {finding.criterion for finding in findings if finding.values}
    parts = []
    for claim in dict.fromkeys(finding.criterion.claim for finding in findings):
        rows = []
        for finding in findings:
            criterion = finding.criterion
            if criterion.claim != claim or (not finding.values and criterion in told):
                continue
            told.add(criterion)
            rows.append(
                (
                    criterion.text + (" (added later)" if criterion.later else ""),
                    str(finding.setting) if finding.values else "-",
                    criterion.bound,
                    with_spread(finding.mean, finding.std, ".4g", ".3g"),
                    str(len(finding.values) or "-"),
                    finding.verdict,
                )
            )
        heads = ("criterion", "setting", "bound", "measured", "seeds", "verdict")
        table = markdown(heads, rows, ("setting", "bound", "verdict"))
        parts.append(f"## Claim {claim}: {CLAIMS[claim]}\n\n{table}")
    return "\n".join(parts)


# Columns of summary.md: a field of Record, its name, and how it is written.
SUMMARY = (
    ("accuracy", "accuracy", ".3f"),
    ("nc1", "NC1", ".2f"),
    ("nc2_norm_activation", "NC2 norm", ".3f"),
    ("nc2_angle_activation", "NC2 angle", ".3f"),
    ("nc3", "NC3", ".3f"),
    ("nc4", "NC4", ".3f"),
    ("clean_angle", "angle to clean means", ".3f"),
)


def alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs of each setting and way to train, in the order of the first."""
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        found.setdefault((run.setting, run.mode), []).append(run)
    return list(found.values())


def over_seeds(values: Iterable[float], form: str) -> str:
    return with_spread(*mean_and_std(list(values)), form)


def summary_in_words(runs: list[Run]) -> str:
    """summary.md: the metrics of every kind of input."""
    rows = []
    for group in alike(runs):
        for split in SPLITS:
            for input, kind in INPUTS.items():
                number = sum(not math.isnan(run.last(input, "nc1", split)) for run in group)
                if number:
                    cells = [
                        over_seeds((run.last(input, field, split) for run in group), form)
                        for field, _, form in SUMMARY
                    ]
                    rows.append((*named(group), str(number), f"{split}, {kind.label}", *cells))
    heads = (*NAMED, *(name for _, name, _ in SUMMARY))
    return markdown(heads, rows, NAMED_WORDS)


# The first columns of the tables: the runs of a line, how many were measured, and on which images.
NAMED = ("trained", "setting", "seeds", "images")
NAMED_WORDS = ("setting", "images")


def named(group: list[Run]) -> tuple[str, str]:
    return MODES[group[0].mode].label, str(group[0].setting)


OWN = "share nearest to their own clean training class mean"
TARGET = "share nearest to their target's clean training class mean"
# Lines of blocks.md: a kind of input, a field of LayerRecord, its name, and how it is written.
BLOCK_LINES = (
    ("clean", "centre_accuracy", OWN, ".3f"),
    ("pgd", "centre_accuracy", OWN, ".3f"),
    ("targeted", "centre_accuracy", OWN, ".3f"),
    ("targeted", "target_centre_accuracy", TARGET, ".3f"),
    ("clean", "clean_angle", "angle to the clean training class means", ".2f"),
    ("pgd", "clean_angle", "angle to the clean training class means", ".2f"),
    ("clean", "nc1", "NC1", ".3g"),
    ("pgd", "nc1", "NC1", ".3g"),
    ("clean", "nc2_angle", "NC2 angle", ".2f"),
    ("pgd", "nc2_angle", "NC2 angle", ".2f"),
)


def blocks_in_words(runs: list[Run]) -> str:
    """blocks.md: a table for each way to train, its columns the blocks in forward order."""
    parts = []
    for group in alike(runs):
        rows: list[tuple[str, ...]] = []
        names: list[str] = []
        for split in SPLITS:
            for input, field, metric, form in BLOCK_LINES:
                if (split, input, field) == ("train", "clean", "clean_angle"):
                    continue  # of the means with themselves
                lines = [run.by_layer(input, field, split) for run in group]
                lines = [values for values in lines if values and not math.isnan(values[0])]
                if lines:
                    cells = [over_seeds(values, form) for values in zip(*lines, strict=True)]
                    label = f"{split}, {INPUTS[input].label}: {metric}"
                    rows.append((label, str(len(lines)), *cells))
            names = names or [f"`{row.layer}`" for row in group[0].blocks("clean", split)]
        if rows:
            table = markdown(("images", "seeds", *names), rows)
            parts.append(f"## {', '.join(named(group))}\n\n{table}")
    return "\n".join(parts)


def centres_in_words(runs: list[Run]) -> str:
    """centres.md: test accuracy of the nearest clean class mean, and of the network."""
    rows = []
    for group in alike(runs):
        for input, label in CENTRE_LABELS.items():
            found = [row for run in group if (row := run.centre_row(input))]
            if found:
                cells = (
                    over_seeds((row.ncc_accuracy for row in found), ".3f"),
                    over_seeds((row.network_accuracy for row in found), ".3f"),
                )
                rows.append((*named(group), str(len(found)), f"test, {label}", *cells))
    return markdown((*NAMED, "nearest class mean", "network"), rows, NAMED_WORDS)


def radii_in_words(runs: list[Run]) -> str:
    """radii.md: accuracy, NC1 and angle under PGD of two radii or more, clean images in front."""
    rows = []
    for group in alike(runs):
        for split in SPLITS:
            tables = [
                table for run in group if len((table := run.by_radius(split)).keys() - {0.0}) > 1
            ]
            for radius in sorted(set.intersection(*map(set, tables))) if tables else ():
                told = radius_in_words(radius, group[0].setting.dataset) if radius else "clean"
                cells = [
                    over_seeds((getattr(table[radius], field) for table in tables), form)
                    for field, form in (("accuracy", ".3f"), ("nc1", ".2f"), ("clean_angle", ".3f"))
                ]
                rows.append((*named(group), str(len(tables)), split, told, *cells))
    heads = (*NAMED, "PGD of", "accuracy", "NC1", "angle to clean means")
    return markdown(heads, rows, (*NAMED_WORDS, "PGD of"))
