"""Everything that runs have measured as one table of pandas: robust_nc.load_runs."""

import warnings
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from robust_nc.reports.groups import agree, differences, in_words
from robust_nc.reports.runs import Run, read_run, strong_centres
from robust_nc.results.records import TABLES, CentreRecord, Row
from utils import InputError

ROW_TYPES = {Path(row_type.file).stem: row_type for row_type in TABLES}


def load_runs(paths: str | Path | Iterable[str | Path], table: str = "metrics") -> Any:
    """A pandas DataFrame with a row for each row of a table of each run, at every radius.

    The first columns say which run it is: dataset, model, norm, run_epsilon, train_mode, bn (of
    TRADES), seed, limit_train, differs and path. `differs` is what sets a run apart from others of
    its setting and mode, but for the seed: only runs that have the same there are seeds of one
    another. The others are those of the table (docs/results.md): `epsilon` is the attack's there.

    Args:
        paths: run folders, or folders with runs below.
        table: as the files are called: "metrics", "leaps", "simplex", "layers", "ncc" or
            "autoattack".

    Raises:
        ImportError: pandas is not there. ValueError: no such table. InputError: no such folder, one
            without a run, or a damaged file.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("load_runs needs pandas: pip install pandas") from error
    if table not in ROW_TYPES:
        raise ValueError(f"table must be one of {', '.join(ROW_TYPES)}, got {table!r}")
    folders = [paths] if isinstance(paths, str | Path) else list(paths)
    found = {path.resolve(): path for folder in folders for path in _run_folders(Path(folder))}
    runs = [read_run(path) for path in found.values()]
    _tell_copies(runs)
    rows = [
        names | vars(row)
        for run, names in zip(runs, _names_of(runs), strict=True)
        for row in _rows_of(run, ROW_TYPES[table])
    ]
    return pandas.DataFrame(rows)


def _tell_copies(runs: list[Run]) -> None:
    """Warn of runs that would count twice in a mean."""
    for run, other in combinations(runs, 2):
        if run.seed == other.seed and agree(run, other):
            warnings.warn(
                f"{other.path} is of the same setting and seed as {run.path}: both are loaded",
                RuntimeWarning,
                stacklevel=3,
            )


def _rows_of(run: Run, row_type: type[Row]) -> list:
    """The rows of a table, of nearest centres without those that are known to be too high."""
    return strong_centres(run.folder) if row_type is CentreRecord else run.folder.rows(row_type)


def _run_folders(folder: Path) -> list[Path]:
    """The folder if it is that of a run, or else the run folders below it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = ("args.json", f"results/{ROW_TYPES['metrics'].file}")
    if any((folder / name).is_file() for name in names):
        return [folder]
    places = {path.parents[name.count("/")] for name in names for path in folder.rglob(name)}
    if not places:
        raise InputError(f"{folder}: holds no run, which has an args.json or results/metrics.csv")
    return sorted(places)


def _names_of(runs: list[Run]) -> list[dict[str, Any]]:
    """What identifies each of the runs, as columns."""
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        alike.setdefault((run.mode, run.setting._replace(limit_train=None)), []).append(run)
    differs = {
        run.path: in_words(own)
        for rivals in alike.values()
        for run, own in zip(rivals, differences([r.flags for r in rivals]), strict=True)
    }
    return [
        {
            "dataset": run.setting.dataset,
            "model": run.setting.model,
            "norm": run.setting.norm,
            "run_epsilon": run.setting.epsilon,
            "train_mode": run.mode.removesuffix("_batch"),
            "bn": _batch_norm(run.mode),
            "seed": run.seed,
            "limit_train": run.setting.limit_train,
            "differs": differs[run.path],
            "path": str(run.path),
        }
        for run in runs
    ]


def _batch_norm(mode: str) -> str:
    """How TRADES treats batch norm; "" of other modes."""
    if "TRADES" not in mode:
        return ""
    return "batch" if mode.endswith("_batch") else "frozen"
