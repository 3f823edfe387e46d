"""The published code's own numbers beside those of runs of ours, from their tables.

The published code was run on a CPU on the same images (reproduction/published/published.csv; the
recipes are in docs/reproduction.md). Its random numbers are others than ours, so that numbers are
to be compared within the spread of the seeds, which st_seeds.csv has of both.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_nc.reports.readings import ST
from robust_nc.reports.runs import Run
from robust_nc.reports.setting import seeds_in_words
from robust_nc.results.files import read_rows
from robust_nc.results.series import published_series
from robust_nc.results.tables import markdown, mean_and_std, with_spread

PUBLISHED = Path(__file__).resolve().parents[2] / "reproduction" / "published" / "published.csv"
SEEDS = PUBLISHED.with_name("st_seeds.csv")
PUBLISHED_RUNS = ("st", "at")
# Kind of input and metric of the table of seeds -> its name there.
OF_SEEDS = {
    ("clean", "nc1"): "clean: NC1",
    ("clean", "nc2_angle_activation"): "clean: NC2 angle",
    ("clean", "nc3"): "clean: NC3",
    ("pgd", "loss"): "PGD: loss",
    ("pgd", "nc1"): "PGD: NC1",
    ("pgd", "clean_angle"): "PGD: angle to the clean class means",
    ("targeted", "accuracy"): "targeted: success",
    ("targeted", "nc1"): "targeted: NC1",
    ("targeted", "clean_angle"): "targeted: angle to the target's clean class mean",
    ("targeted", "nc4"): "targeted: NC4",
}


WHOSE = {
    "published": "published code, seeds 1, 2, 3",
    "ours": "this code, seeds 1, 2, 3",
    "published eval.py": "published seed 1, by its own eval.py",
}


@dataclass(frozen=True)
class PublishedValue:
    """A value of a series of the published code; `run` is one of PUBLISHED_RUNS."""

    run: str
    series: str
    epoch: int
    value: float


@dataclass(frozen=True)
class SeedValue:
    """A metric after the last epoch of one seed of ST.

    whose: "published" and "ours", the code that trained it, both measured by this project;
        "published eval.py", its training measured by itself.
    """

    whose: str
    seed: int
    input: str
    metric: str
    value: float


def seeds_beside() -> str:
    """Markdown: metrics of every seed of the published code's ST and of ours, in float32."""
    values: dict[tuple[str, str, str], list[str]] = {}
    for row in sorted(read_rows(SEEDS, SeedValue), key=lambda row: row.seed):
        values.setdefault((row.whose, row.input, row.metric), []).append(f"{row.value:.4g}")
    rows = [
        (name, *(", ".join(values.get((whose, *key), ["-"])) for whose in WHOSE))
        for key, name in OF_SEEDS.items()
    ]
    return markdown(("training images", *WHOSE.values()), rows)


def read_published(run: str) -> list[PublishedValue]:
    return [value for value in read_rows(PUBLISHED, PublishedValue) if value.run == run]


def beside(values: list[PublishedValue], runs: list[Run]) -> str:
    """Markdown: each series at its first and its last published epoch, and ours: mean and std.

    Series that ours do not have are left out; an epoch that one of ours does not have is a dash.
    """
    ours = [series_of(run) for run in runs]
    ends = [epoch(value.epoch for value in values) for epoch in (min, max)]
    heads = [f"{whose}, epoch {epoch}" for epoch in ends for whose in ("published", "ours")]
    published = {(value.series, value.epoch): value.value for value in values}
    rows = []
    for name in dict.fromkeys(value.series for value in values):
        if not all(name in series for series in ours):
            continue
        cells = []
        for end in ends:
            value = published.get((name, end))
            cells.append("-" if value is None else f"{value:.4g}")
            reached = [series[name][end] for series in ours if end < len(series[name])]
            whole = len(reached) == len(ours) and not np.isnan(reached).any()
            cells.append(with_spread(*mean_and_std(reached if whole else []), ".4g", ".2g"))
        rows.append((f"`{name}`", *cells))
    seeds = seeds_in_words(run.seed for run in runs)
    spread = ", mean and unbiased standard deviation" if len(runs) > 1 else ""
    return f"{markdown(('series', *heads), rows)}\nOurs: {seeds}{spread}.\n"


def series_of(run: Run) -> dict[str, np.ndarray]:
    series = published_series(run.own_records, run.history, run.mode == ST)
    # Of test images the published code printed the accuracy after every epoch.
    return series | {"test_acc": np.array([row.test_acc for row in run.history])}
