"""The published .npy series, which are made of the tables of a run.

Their names follow the rows of INPUTS (data/inputs.py) and METRICS (results/metrics.py).
"""

import numpy as np

from robust_nc.data.inputs import INPUTS
from robust_nc.results.history import EpochSummary
from robust_nc.results.metrics import METRICS
from robust_nc.results.records import Record
from robust_nc.results.rows import SPLITS

# Under modes with an adversary the accuracies and losses are those seen in training.
HISTORY_SERIES = ("train_loss", "train_acc", "train_robust_loss", "train_robust_acc")


def metric_series(input: str) -> dict[str, str]:
    """Field of Record -> published name of its series, for a kind of input that has its own."""
    kind = INPUTS[input]
    if kind.published_as:
        return {}
    names = {m.field: kind.prefix + m.series for m in METRICS.values() if m.series}
    return names | kind.published


def outcome_series(input: str, split: str) -> dict[str, str]:
    """Likewise for loss and accuracy, of the inputs that have such series."""
    outcome = INPUTS[input].outcome
    if outcome is None:
        return {}
    return {"loss": f"{split}_{outcome}loss", "accuracy": f"{split}_{outcome}acc"}


def series_names() -> set[str]:
    """Every name that a series can have."""
    names = set(HISTORY_SERIES)
    for input in INPUTS:
        names |= {prefix + n for n in metric_series(input).values() for prefix in ("", "test_")}
        names |= {n for split in SPLITS for n in outcome_series(input, split).values()}
    return names


def published_series(
    records: list[Record], history: list[EpochSummary], standard: bool
) -> dict[str, np.ndarray]:
    """Published name -> values by epoch, of every series that there are rows for.

    As published, accuracies and losses of the training images are those of the saved checkpoints
    where the run is `standard` (ST), otherwise those seen in training, and so is the collapse of
    the images that modes with an adversary trained on ("seen"), which comes before that of a later
    sweep's PGD. Test images, which were not published, have test_ in front.

    Args:
        records: of one epsilon, the run's.
    """
    series: dict[str, np.ndarray] = {}
    for input in INPUTS:
        names_of = {input, *(name for name, k in INPUTS.items() if k.published_as == input)}
        rows = [r for r in records if r.input in names_of and r.split == "train"]
        swept = [r for r in rows if r.source == "eval"]
        trained = [r for r in rows if r.source == "train"]
        series |= _by_epoch(swept + trained, metric_series(input))
        if standard:
            series |= _by_epoch(swept, outcome_series(input, "train"))
        tested = [r for r in records if (r.input, r.split, r.source) == (input, "test", "eval")]
        names = {column: f"test_{name}" for column, name in metric_series(input).items()}
        series |= _by_epoch(tested, names | outcome_series(input, "test"))
    if not standard:
        series |= _by_epoch(history, {name: name for name in HISTORY_SERIES})
    return series


def _by_epoch(rows: list, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Fields of rows under their published names, indexed by epoch; a later row wins."""
    series = {}
    for column, name in names.items() if rows else ():
        series[name] = np.full(max(row.epoch for row in rows) + 1, np.nan)
        for row in rows:
            series[name][row.epoch] = getattr(row, column)
    return series
