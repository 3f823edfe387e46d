"""verdicts.md: what became of every claim in every setting, and the numbers that say so.

A matrix, claims by settings, and for each claim a table of its main criteria by settings, with the
value and a mark in one cell. All criteria, seed by seed, are in claims.md and claims.csv.
"""

from collections.abc import Collection, Iterable

from robust_nc.reports.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    NOT_TESTABLE,
    Finding,
)
from robust_nc.reports.report import value_in_words
from robust_nc.reports.runs import Run
from robust_nc.reports.setting import Setting
from robust_nc.results.tables import markdown
from robust_nc.training.modes import MODES

MARKS = {HOLDS: "✓", FAILS: "✗", NOT_TESTABLE: "○"}
LEGEND = (
    "✓ holds, ✗ does not hold, ○ not testable since a precondition fails, - not measured; "
    "mean ± deviation over the seeds"
)


def verdicts_in_words(findings: list[Finding], runs: list[Run]) -> str:
    """The matrix, and a heading and tables for each claim."""
    settings = list(dict.fromkeys(finding.setting for finding in findings))
    usual = usual_place(settings)
    names = short_names(settings, usual)
    where = f"{usual.model}, {usual.norm}, epsilon {usual.epsilon:g} where nothing else is said"
    parts = [matrix(findings, runs, names), f"{LEGEND}; {where}.\n"]
    for claim in dict.fromkeys(finding.criterion.claim for finding in findings):
        of_claim = [finding for finding in findings if finding.criterion.claim == claim]
        controls = [finding for finding in of_claim if finding.criterion.control]
        others = [finding for finding in of_claim if not finding.criterion.control]
        tables = [
            pivot(part, names) for part in (others, controls) if any(f.outcomes for f in part)
        ]
        parts.append(f"## Claim {claim}: {CLAIMS[claim]}\n\n" + "\n".join(tables or ["Not run.\n"]))
    return "\n".join(parts)


def matrix(findings: list[Finding], runs: list[Run], names: dict[Setting, str]) -> str:
    """Markdown: a line for each claim, or part of one, and a column for each setting."""
    cells: dict[tuple[int, str], dict[Setting, list[Finding]]] = {}
    for finding in findings:
        row = finding.criterion.claim, finding.criterion.part
        cells.setdefault(row, {}).setdefault(finding.setting, []).append(finding)
    heads = ("claim", *names.values())
    rows = [
        ("seeds", *(seeds_by_mode(setting, runs) for setting in names)),
        *(
            (
                f"{claim}. {part or CLAIMS[claim]}",
                *(summed_up(of_row.get(setting, [])) for setting in names),
            )
            for (claim, part), of_row in cells.items()
        ),
    ]
    return markdown(heads, rows, heads)


def short_names(settings: list[Setting], usual: Setting) -> dict[Setting, str]:
    """The settings, each by its data set and by what it has not in common with the usual one."""
    names = {}
    for setting in settings:
        parts = [setting.dataset]
        if setting.model != usual.model:
            parts.append(setting.model)
        if (setting.norm, setting.epsilon) != (usual.norm, usual.epsilon):
            parts.append(f"{setting.norm}, epsilon {setting.epsilon:g}")
        names[setting] = ", ".join(parts)
    return {
        setting: name
        + (f", {setting.limit_train or 'all'} images" if [*names.values()].count(name) > 1 else "")
        for setting, name in names.items()
    }


def usual_place(settings: list[Setting]) -> Setting:
    """The first of the settings whose network, norm and radius most of them have."""
    places = [(s.model, s.norm, s.epsilon) for s in settings]
    return settings[places.index(max(places, key=places.count))]


def seeds_by_mode(setting: Setting, runs: list[Run]) -> str:
    """How many seeds of each way to train there are, like "ST 3, AT 2"."""
    seeds = {
        mode: {run.seed for run in runs if (run.setting, run.mode) == (setting, mode)}
        for mode in MODES
    }
    counts = [f"{MODES[mode].label} {len(those)}" for mode, those in seeds.items() if those]
    return ", ".join(counts)


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


def pivot(findings: list[Finding], names: dict[Setting, str]) -> str:
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
        ", ".join(filter(None, (part, names[setting], differs)))
        for part, setting, differs in columns
    ]
    lines = [
        (words, *(value_and_mark(of_column.get(name)) for of_column in columns.values()))
        for name, words in rows.items()
    ]
    remarks = [remarks_on(of_column.values()) for of_column in columns.values()]
    if any(remarks):
        lines.append(("remarks", *(remark or "-" for remark in remarks)))
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


def remarks_on(findings: Collection[Finding]) -> str:
    """Why some are not testable, and which fail that are not in the table."""
    reasons = dict.fromkeys(reason for finding in findings for reason in finding.reasons)
    others = [
        f"{finding.criterion.name} {finding.mean:.3g} {MARKS[FAILS]}"
        for finding in findings
        if finding.kind == FAILS and not finding.criterion.main
    ]
    remarks = [f"○ because of {'; '.join(reasons)}"] if reasons else []
    remarks += [f"does not hold either: {'; '.join(others)}"] if others else []
    return ". ".join(remarks)
