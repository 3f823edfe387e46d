"""What eval.py --out leaves: results in a folder of their own, of a run or of files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robust_nc.reports.groups import each_once, twins_in_words
from robust_nc.reports.runs import (
    Run,
    choose_rows,
    make_run,
    read_flags,
    read_runs,
    read_tables,
    swept_with,
    usable_rows,
)
from robust_nc.reports.setting import in_units, names_of_arguments
from robust_nc.results.files import read_json
from robust_nc.results.records import TABLES
from robust_nc.results.run_folder import RunFolder
from robust_nc.training.modes import MODES
from utils import InputError

SWEEP_FILE = RunFolder(Path(), standard=False).sweep_file.name


def folder_at(path: Path) -> RunFolder:
    """The folder of a run, or of the results that lie in `path` itself."""
    if path.name == "results" and (path.parent / "args.json").is_file():
        return RunFolder(path.parent, standard=False)
    if (path / "args.json").is_file() or not is_alone(path):
        return RunFolder(path, standard=False)
    run = Path((read_json(path / SWEEP_FILE) or {}).get("run") or path)
    return RunFolder(run if run.is_dir() else path, standard=False, results=path)


def is_alone(path: Path) -> bool:
    """Whether a folder holds results, and is not the results/ of a run's folder."""
    swept = read_json(path / SWEEP_FILE) or {}
    return bool(swept.get("out") or swept.get("checkpoint"))


def runs_at(path: Path, asked: Mapping[str, Any] | None = None) -> list[Run]:
    """The run of a folder, or of the results that lie in it: of --checkpoint one for each file.

    Args:
        asked: of another attack or noise to show than the run's own, as in `read_run`.

    Raises:
        InputError: a damaged file, or an unknown setting.
    """
    folder = folder_at(path)
    swept = read_json(folder.sweep_file) or {}
    if folder.args_file.is_file() or not swept:
        return [read_tables(folder, asked)]
    rows = [row for row_type in TABLES for row in usable_rows(folder, row_type)]
    if not swept.get("checkpoint"):  # of a run that is gone
        return [_measured(folder, swept, rows, asked)]
    names = [name for name, _ in sorted(folder.files().items(), key=lambda item: item[1])]
    short = len({Path(name).name for name in names}) == len(names)
    runs = []
    for name in names:
        of_file = [replace(row, epoch=0) for row in rows if row.checkpoint == name]
        if of_file:
            label = Path(name).name if short else name
            run = _measured(folder, swept, of_file, asked)
            runs.append(replace(run, checkpoint=name, file=label))
    return runs


def _measured(
    folder: RunFolder, swept: dict[str, Any], rows: list, asked: Mapping[str, Any] | None
) -> Run:
    """What a sweep has measured of something whose training is not told."""
    try:
        names = names_of_arguments(swept)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder.sweep_file} does not tell dataset, model, norm, epsilon, training mode and "
            "seed"
        ) from error
    shown = choose_rows(folder, rows, in_units(asked or {}, names[0].dataset))
    flags = read_flags({}, swept_with(folder, shown.rows), shown.rows)
    if swept.get("checkpoint"):
        flags.pop("checkpoint of the sweep", None)
        flags["results"] = str(folder.results)
        epochs = 1
    else:
        epochs = swept.get("epochs") or max((row.epoch for row in rows), default=0) + 1
    return make_run(folder, names, swept | {"epochs": epochs}, flags, shown)


def given_runs(folders: list[Path]) -> list[Run]:
    """The runs of --runs: a folder holds one, or runs below it, and no two are the same."""
    given: list[Run] = []
    for folder in folders:
        is_run = folder_at(folder).args_file.is_file()
        runs = runs_at(folder) if is_run else runs_below(folder)
        if not runs:
            raise InputError(
                f"--runs {folder}: holds no run, which has an args.json{advice(folder)}"
            )
        given += runs
    given = each_once(given)
    for words in twins_in_words(given):
        raise InputError(f"--runs {words}: give one")
    return given


def advice(folder: Path) -> str:
    """What reads results of which nothing tells how their networks were trained."""
    lies_alone = "; it is of eval.py --out: plot.py draws it, robust_nc.load_runs reads it"
    return lies_alone if is_alone(folder) else ""


def runs_below(folder: Path) -> list[Run]:
    """In the order of their paths, but for the ways to train, which are in that of MODES."""
    runs = read_runs(path.parent for path in folder.rglob("args.json"))
    modes = list(MODES)
    return sorted(runs, key=lambda r: (r.path.parents[1], modes.index(r.mode), r.path))
