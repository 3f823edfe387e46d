"""verdicts.md: what became of every claim in every setting, and the numbers that say so.

A matrix, claims by settings, and for each claim a table of its main criteria by settings, with the
value and a mark in one cell. All criteria, seed by seed, are in claims.md and claims.csv.
"""

from collections.abc import Iterable

from robust_nc.reports.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    NOT_TESTABLE,
    Finding,
)
from robust_nc.reports.report import setting_in_words, value_in_words
from robust_nc.reports.runs import Run
from robust_nc.reports.setting import Setting
from robust_nc.results.tables import markdown
from robust_nc.training.modes import MODES

MARKS = {HOLDS: "✓", FAILS: "✗", NOT_TESTABLE: "○"}
LEGEND = (
    "✓ holds, ✗ does not hold, ○ not testable since a precondition fails, - not measured; "
    "mean ± deviation over the seeds.\n"
)


def verdicts_in_words(findings: list[Finding], runs: list[Run]) -> str:
    """The matrix, and a heading and tables for each claim."""
    parts = [matrix(findings, runs), LEGEND]
    for claim in dict.fromkeys(finding.criterion.claim for finding in findings):
        of_claim = [finding for finding in findings if finding.criterion.claim == claim]
        controls = [finding for finding in of_claim if finding.criterion.control]
        others = [finding for finding in of_claim if not finding.criterion.control]
        tables = [pivot(part) for part in (others, controls) if any(f.outcomes for f in part)]
        parts.append(f"## Claim {claim}: {CLAIMS[claim]}\n\n" + "\n".join(tables or ["Not run.\n"]))
    return "\n".join(parts)


def matrix(findings: list[Finding], runs: list[Run]) -> str:
    """Markdown: a line for each claim, or part of one, and a column for each setting."""
    cells: dict[tuple[int, str], dict[Setting, list[Finding]]] = {}
    for finding in findings:
        row = finding.criterion.claim, finding.criterion.part
        cells.setdefault(row, {}).setdefault(finding.setting, []).append(finding)
    settings = list(dict.fromkeys(finding.setting for finding in findings))
    heads = ("claim", *(f"{told_apart(s, settings)} ({seeds_by_mode(s, runs)})" for s in settings))
    rows = [
        (
            f"{claim}. {part or CLAIMS[claim]}",
            *(summed_up(of_row.get(setting, [])) for setting in settings),
        )
        for (claim, part), of_row in cells.items()
    ]
    return markdown(heads, rows, heads)


def told_apart(setting: Setting, settings: list[Setting]) -> str:
    """A setting in words, with the number of training images where others have the same words."""
    alike = sum(str(other) == str(setting) for other in settings) > 1
    return f"{setting}, {setting.limit_train or 'all'} images" if alike else str(setting)


def seeds_by_mode(setting: Setting, runs: list[Run]) -> str:
    """How many seeds of each way to train there are, like "ST 3, AT 2"."""
    seeds = {
        mode: {run.seed for run in runs if (run.setting, run.mode) == (setting, mode)}
        for mode in MODES
    }
    counts = [f"{MODES[mode].label} {len(those)}" for mode, those in seeds.items() if those]
    return f"seeds: {', '.join(counts)}"


def summed_up(findings: Iterable[Finding]) -> str:
    """One verdict of many: a claim holds if all criteria that were tested do, and most were."""
    kinds = [finding.kind for finding in findings]
    held, failed = kinds.count(HOLDS), kinds.count(FAILS)
    untested = len(kinds) - held - failed
    if not held + failed:
        return NOT_TESTABLE if NOT_TESTABLE in kinds else "not run"
    verdict = FAILS if not held else HOLDS if not failed and held > untested else "partly"
    return f"{verdict} ({held} of {held + failed}" + (
        f", {untested} untested)" if untested else ")"
    )


def pivot(findings: list[Finding]) -> str:
    """Markdown: the main criteria of a claim by what they were tried on, and why some cannot be."""
    columns: dict[tuple[str, Setting, str], dict[str, Finding]] = {}
    rows: dict[str, str] = {}
    for finding in findings:
        criterion = finding.criterion
        if criterion.main:
            rows[criterion.name] = f"{criterion.name} ({criterion.bound})"
            place = criterion.part, finding.setting, finding.differs
            columns.setdefault(place, {})[criterion.name] = finding
    columns = {
        place: of_column
        for place, of_column in columns.items()
        if any(finding.outcomes for finding in of_column.values())
    }
    heads = [
        ", ".join(filter(None, (part, setting_in_words(setting, differs))))
        for part, setting, differs in columns
    ]
    lines = [
        (words, *(value_and_mark(of_column.get(name)) for of_column in columns.values()))
        for name, words in rows.items()
    ]
    reasons = [why_not_testable(of_column.values()) for of_column in columns.values()]
    if any(reasons):
        lines.append(("not testable because", *(reason or "-" for reason in reasons)))
    return markdown(("criterion", *heads), lines, heads)


def value_and_mark(finding: Finding | None) -> str:
    """The value and its mark, with the seeds where they differ; a dash where not measured."""
    if finding is None or finding.kind == NOT_MEASURED:
        return "-"
    testable, seeds = len(finding.testable), len(finding.outcomes)
    some = f", {testable} of {seeds} seeds testable" if 0 < testable < seeds else ""
    if finding.kind == FAILS and finding.met:
        some += f", {finding.met} of {testable} seeds hold"
    return f"{value_in_words(finding, '.3g', '.2g')} {MARKS[finding.kind]}{some}"


def why_not_testable(findings: Iterable[Finding]) -> str:
    """The preconditions that fail, each once."""
    reasons = (finding.failed.split("; ") for finding in findings if finding.failed)
    return "; ".join(dict.fromkeys(reason for of_one in reasons for reason in of_one))
