"""Everything that runs have measured as one table of pandas: robust_nc.load_runs."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robust_nc.reports.groups import in_words, join_groups, twins_in_words
from robust_nc.reports.runs import Run, usable_rows
from robust_nc.reports.sweeps import SWEEP_FILE, is_alone, runs_at
from robust_nc.results.records import TABLES
from robust_nc.results.rows import Row
from robust_nc.training.modes import MODES
from utils import InputError

ROW_TYPES = {Path(row_type.file).stem: row_type for row_type in TABLES}


def load_runs(paths: str | Path | Iterable[str | Path], table: str = "metrics") -> Any:
    """A pandas DataFrame with a row for each row of a table of each run, at every radius.

    The first columns say which run it is: dataset, model, norm, run_epsilon, train_mode, bn,
    seed, limit_train, differs and path. `differs` is what sets a run apart from others of its
    setting and mode, but for the seed: only runs that have the same there are seeds of one another.
    The others are those of the table (docs/results.md): `epsilon` is the attack's there.

    Args:
        paths: run folders, those of eval.py --out, or folders with these below. Of files of
            --checkpoint, the column of that name, `train_mode` and `bn` are "".
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
    places = {path.resolve(): path for folder in folders for path in _run_folders(Path(folder))}
    runs = [run for path in places.values() for run in runs_at(path)]
    for words in twins_in_words(runs):  # which would count twice in a mean
        warnings.warn(f"{words}: both are loaded", RuntimeWarning, stacklevel=2)
    rows = [
        names | vars(row)
        for run, names in zip(runs, _names_of(runs), strict=True)
        for row in _rows_of(run, ROW_TYPES[table])
    ]
    return pandas.DataFrame(rows)


def _rows_of(run: Run, row_type: type[Row]) -> list:
    """The rows of a table; of a file of --checkpoint its own."""
    rows = usable_rows(run.folder, row_type)
    return [row for row in rows if row.checkpoint == run.checkpoint] if run.file else rows


def _run_folders(folder: Path) -> list[Path]:
    """The folder if it is that of a run or of results, or else those below it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    table = f"results/{ROW_TYPES['metrics'].file}"

    def is_run(path: Path) -> bool:
        own_results = (path / table).is_file() and not is_alone(path / "results")
        return (path / "args.json").is_file() or own_results

    if is_run(folder) or is_alone(folder):
        return [folder]
    names = ("args.json", table, SWEEP_FILE)
    places = {path.parents[name.count("/")] for name in names for path in folder.rglob(name)}
    places = {path for path in places if is_run(path) or is_alone(path)}
    if not places:
        raise InputError(
            f"{folder}: holds no run, which has an args.json or {table}, and no --out of eval.py"
        )
    return sorted(places)


def _names_of(runs: list[Run]) -> list[dict[str, Any]]:
    """What identifies each of the runs, as columns."""
    differs = {
        (run.place, run.checkpoint): in_words(group.differs)
        for group in join_groups(runs)
        for run in group.runs
    }
    return [
        {
            "dataset": run.setting.dataset,
            "model": run.setting.model,
            "norm": run.setting.norm,
            "run_epsilon": run.setting.epsilon,
            "train_mode": "" if run.file else MODES[run.mode].train_mode,
            "bn": "" if run.file else MODES[run.mode].bn,
            "seed": run.seed,
            "limit_train": run.setting.limit_train,
            "differs": differs[run.place, run.checkpoint],
            "path": str(run.place),
        }
        for run in runs
    ]
