"""What REPRODUCTION.md says is what the files below reproduction/ say, and these agree."""

import csv
import re
from pathlib import Path

import pytest

import reproduce
from robust_nc.reports import document, plan
from robust_nc.reports.claims import CLAIMS, judge
from robust_nc.reports.published import SeedValue, seeds_beside
from robust_nc.reports.report import REPORT_TABLES, finding_row, findings_in_words
from robust_nc.reports.runs import read_runs
from robust_nc.reports.verdicts import verdicts_in_words
from robust_nc.results.files import read_rows
from utils import InputError

ROOT = Path(__file__).parent.parent.parent
REPORT = (ROOT / "REPRODUCTION.md").read_text()
EVIDENCE = ROOT / "reproduction"
SMALL = EVIDENCE / "small"
TABLES = REPORT_TABLES.items()


def runs_in_order():
    """The runs of runs.csv, in its order."""
    with (SMALL / "runs.csv").open(newline="") as file:
        return read_runs([SMALL / "runs" / row["folder"] for row in csv.DictReader(file)])


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


def test_the_verdicts_are_those_of_the_tables():
    runs = runs_in_order()
    assert len(runs) == len(list((SMALL / "runs").rglob("args.json"))) > 0
    findings, where = judge(runs), "in the runs that were named"
    assert (SMALL / "claims.csv").read_text() == reproduce.to_csv(list(map(finding_row, findings)))
    for name, text in (
        ("claims.md", f"# The claims, {where}\n\n{findings_in_words(findings)}"),
        ("verdicts.md", f"# The verdicts, {where}\n\n{verdicts_in_words(findings, runs)}"),
        *((name, f"# {head}\n\n{in_words(runs)}") for name, (head, in_words) in TABLES),
    ):
        assert (SMALL / name).read_text() == text, name


def test_the_tables_of_the_report_are_those_of_the_files():
    assert document.refresh(REPORT, ROOT) == REPORT


def test_the_report_is_read_in_ten_minutes():
    assert len(REPORT.splitlines()) <= 250
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", REPORT)
    assert [name for name, _ in figures] == [
        "The simplex",
        "Ways to train",
        *(f"Claim {n}" for n in CLAIMS),
    ]
    # The tables of a claim have eight rows at the most, below head and rule.
    for text in sections(REPORT).values():
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        assert all(len(table.splitlines()) <= 10 for table in tables if "criterion" in table)
    for words in ("has nothing left", "started again", "seen in training", "images seen"):
        assert words not in REPORT.lower()


def test_the_seeds_of_the_published_code_are_those_of_its_values():
    written = (EVIDENCE / "published" / "st_seeds.md").read_text()
    assert seeds_beside() == written
    # Those that the text tells, by hand from the values.
    values = read_rows(EVIDENCE / "published" / "st_seeds.csv", SeedValue)
    losses = [v.value for v in values if (v.whose, v.input, v.metric) == ("ours", "pgd", "loss")]
    assert losses == [8.20148, 8.54886, 8.4439]


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


def test_every_claim_has_a_heading_and_its_tables():
    of_claim = sections((SMALL / "verdicts.md").read_text())
    for number, claim in CLAIMS.items():
        [text] = [t for h, t in sections(REPORT).items() if h.startswith(f"Claim {number}: ")]
        wanted = prose_and_tables(of_claim[f"Claim {number}: {claim}"])[1]
        assert wanted and prose_and_tables(text)[1] == wanted, number


def test_a_table_that_is_not_there_is_told(tmp_path):
    mark = "<!-- from file.md, Claim 1, table {} -->\n"
    (tmp_path / "file.md").write_text("| a |\n\n## Claim 1: x\n\n| b |\n| c |\n\n| d |\n")
    text = f"before\n{mark.format(1)}| old |\n\nafter\n{mark.format(2)}"
    expected = f"before\n{mark.format(1)}| b |\n| c |\n\nafter\n{mark.format(2)}| d |\n"
    assert document.refresh(text, tmp_path) == expected
    assert document.refresh(expected, tmp_path) == expected
    first = "<!-- from file.md, table 1 -->\n"
    assert document.refresh(first, tmp_path) == f"{first}| a |\n"
    for wrong in (mark.format(3), mark.format(1).replace("1:", "2:").replace("Claim 1", "Claim 2")):
        with pytest.raises(InputError, match="no such table"):
            document.refresh(wrong, tmp_path)


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", REPORT) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
