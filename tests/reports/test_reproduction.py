"""What REPRODUCTION.md says is what the files below reproduction/ say, and these agree."""

import csv
import re
from pathlib import Path

import pytest

import reproduce
from robust_nc.reports import plan
from robust_nc.reports.claims import CLAIMS, judge
from robust_nc.reports.report import REPORT_TABLES, finding_row, findings_in_words
from robust_nc.reports.runs import read_runs

ROOT = Path(__file__).parent.parent.parent
REPORT = (ROOT / "REPRODUCTION.md").read_text()
EVIDENCE = ROOT / "reproduction"
SMALL, SHORT = EVIDENCE / "small", EVIDENCE / "short" / "full"


def runs_in_order(report):
    """The runs of runs.csv, in its order."""
    with (report / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return read_runs(
        report
        / "runs"
        / r["dataset"]
        / r["model"]
        / r["norm"]
        / f"eps{r['epsilon']}"
        / r["mode"]
        # The folder of a run ends with its seed.
        / f"seed{r['seed']}"
        for r in rows
    )


def sections(text):
    """Heading -> what follows it, of every level-two heading, and of the document's head."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def prose_and_tables(text):
    """Prose without code, links' targets and comments; and the lines of tables."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    prose = re.sub(r"`[^`]*`", "", prose)
    return re.sub(r"\]\([^)]*\)", "]", prose), tables


@pytest.mark.parametrize(
    ("report", "where"), ((SMALL, "at the small scale"), (SHORT, "in the runs that were named"))
)
def test_the_verdicts_are_those_of_the_tables(report, where):
    runs = runs_in_order(report)
    assert len(runs) == len(list((report / "runs").rglob("args.json"))) > 0
    findings = judge(runs)
    assert (report / "claims.csv").read_text() == reproduce.to_csv(list(map(finding_row, findings)))
    text = f"# The claims, {where}\n\n{findings_in_words(findings)}"
    assert (report / "claims.md").read_text() == text
    for name, (heading, in_words) in REPORT_TABLES.items():
        assert (report / name).read_text() == f"# {heading}\n\n{in_words(runs)}", name


@pytest.mark.parametrize(
    ("name", "runs", "dataset", "mode"),
    (
        ("st", SMALL, "folder", "std_train"),
        ("st_fp32", EVIDENCE / "published", "first200", "std_train"),
        ("at", EVIDENCE / "published", "first100", "pgd_train"),
    ),
)
def test_the_published_numbers_stand_beside_those_of_the_tables(
    name, runs, dataset, mode, run_script, tmp_path
):
    place = runs / "runs" / dataset / "vgg11bn" / "l_inf" / "eps8.0" / mode
    run = name.removesuffix("_fp32")
    written = (EVIDENCE / "published" / f"{name}.md").read_text()
    folders = " ".join(map(str, sorted(place.glob("seed*"))))
    flags = f"--published {run} --runs {folders} --tables copies"
    code, output, error = run_script(reproduce, flags)
    assert (code, output, error) == (0, written, "")
    copied = [path.parent.name for path in tmp_path.glob("copies/*/*/*/*/*/*/args.json")]
    assert sorted(copied) == sorted(path.name for path in place.glob("seed*"))


def test_the_full_scale_costs_what_is_told():
    planned = plan.plan(reproduce.parse_args(["--scale", "full"]), None)
    assert (EVIDENCE / "full" / "cost.md").read_text() == plan.cost_table(planned)


def test_every_table_line_with_a_number_is_one_of_the_evidence():
    known = {line for path in EVIDENCE.rglob("*.md") for line in path.read_text().splitlines()}
    told = prose_and_tables(REPORT)[1]
    measured = [line for line in told if re.search(r"\d\.\d|holds|does not hold", line)]
    assert len(measured) > 30
    assert [line for line in measured if line not in known] == []


def test_every_measured_number_of_the_text_stands_in_a_table_of_its_section():
    for heading, text in sections(REPORT).items():
        prose, tables = prose_and_tables(text)
        shown = set(re.findall(r"\d+\.\d+(?:e[+-]\d+)?", "\n".join(tables)))
        told = re.findall(r"(?<![\d.])\d+\.\d+(?:e[+-]\d+)?", prose)
        assert [number for number in told if number not in shown] == [], heading
        # Shares and ratios are told as the tables tell them.
        assert not re.search(r"\d ?%|\d-fold|\d times", prose), heading


def test_every_claim_has_a_heading_and_all_that_was_measured_its_line():
    of_claim = sections((SMALL / "claims.md").read_text())
    of_short = sections((SHORT / "claims.md").read_text())
    short_lines = set(prose_and_tables(sections(REPORT)["All of CIFAR-10, in short runs"])[1])
    for number, claim in CLAIMS.items():
        short = prose_and_tables(of_short[f"Claim {number}: {claim}"])[1]
        judged = [line for line in short if line.startswith("| ") and "cifar10" in line]
        assert set(judged) <= short_lines, number
        [text] = [t for h, t in sections(REPORT).items() if h.startswith(f"Claim {number}: ")]
        wanted = prose_and_tables(of_claim[f"Claim {number}: {claim}"])[1]
        judged = [line for line in wanted if "not measured" not in line]
        assert set(judged) <= set(prose_and_tables(text)[1]), number


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", REPORT) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
