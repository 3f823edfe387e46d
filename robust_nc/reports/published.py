"""The published code's own numbers beside those of runs of ours, from their tables.

    python compare_published.py st models/folder/vgg11bn/l_inf/eps8.0/std_train/seed*

The published code was run on a CPU on the same images (reproduction/published/published.csv; the
recipes are in REPRODUCTION.md). Its random numbers are others than ours, so that numbers are to be
compared within the spread of the seeds.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_nc.parsing import Parser
from robust_nc.reports.claims import ST, Run, read_runs
from robust_nc.reports.runs import seeds_in_words
from robust_nc.results.files import read_rows
from robust_nc.results.records import EpochSummary
from robust_nc.results.series import published_series
from robust_nc.results.tables import markdown, mean_and_std, with_spread
from utils import InputError, run_script

PUBLISHED = Path(__file__).resolve().parents[2] / "reproduction" / "published" / "published.csv"


@dataclass(frozen=True)
class PublishedValue:
    """A value of a series of the published code; `run` is st or at."""

    run: str
    series: str
    epoch: int
    value: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="The published code's own numbers beside those of runs of ours.",
        allow_abbrev=False,
    )
    parser.add_argument("run", choices=("st", "at"), help="the published run")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_DIR", help="run folders that differ in seed"
    )
    parser.add_argument(
        "--tables", type=Path, metavar="DIR", help="copy the tables of the runs into this folder"
    )
    return parser.parse_args(argv)


def beside(values: list[PublishedValue], runs: list[Run]) -> str:
    """Markdown: each series at its first and its last published epoch, and ours: mean and std.

    Series that ours do not have are left out; an epoch that one of ours does not have is a dash.
    """
    ours = [series_of(run) for run in runs]
    ends = [epoch(value.epoch for value in values) for epoch in (min, max)]
    heads = [f"{whose}, epoch {epoch}" for epoch in ends for whose in ("published", "ours")]
    rows = []
    for name in dict.fromkeys(value.series for value in values):
        if not all(name in series for series in ours):
            continue
        cells = []
        for end in ends:
            told = [v.value for v in values if (v.series, v.epoch) == (name, end)]
            cells.append(f"{told[0]:.4g}" if told else "-")
            found = [series[name][end] if end < len(series[name]) else np.nan for series in ours]
            found = [] if np.isnan(found).any() else found
            cells.append(with_spread(*mean_and_std(found), ".4g", ".2g"))
        rows.append((f"`{name}`", *cells))
    seeds = seeds_in_words(run.seed for run in runs)
    spread = ", mean and unbiased standard deviation" if len(runs) > 1 else ""
    return f"{markdown(('series', *heads), rows)}\nOurs: {seeds}{spread}.\n"


def read_published() -> list[PublishedValue]:
    return read_rows(PUBLISHED, PublishedValue)


def series_of(run: Run) -> dict[str, np.ndarray]:
    history = read_rows(run.folder.path / "history.csv", EpochSummary)
    series = published_series(run.records, history, run.mode == ST)
    # Of test images the published code printed the accuracy after every epoch.
    return series | {"test_acc": np.array([row.test_acc for row in history])}


def main() -> None:
    args = parse_args()
    runs = read_runs(args.folders)
    missing = {*args.folders} - {run.folder.path for run in runs}
    if missing:
        raise InputError(f"{missing.pop()}: not a run folder")
    values = [value for value in read_published() if value.run == args.run]
    print(beside(values, runs), end="")
    for run in runs if args.tables else ():
        run.folder.copy_tables(args.tables)


if __name__ == "__main__":
    run_script(main)
