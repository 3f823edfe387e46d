"""What eval.py --out leaves: results in a folder of their own, of a run or of files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from robust_nc.reports.runs import (
    Run,
    make_run,
    names_of_arguments,
    read_flags,
    read_tables,
    strong_centres,
    swept_with,
)
from robust_nc.results.files import read_json
from robust_nc.results.records import TABLES, CentreRecord, Row
from robust_nc.results.run_folder import RunFolder
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


def runs_at(path: Path) -> list[Run]:
    """The run of a folder, or of the results that lie in it: of --checkpoint one for each file.

    Raises:
        InputError: a damaged file, or an unknown setting.
    """
    folder = folder_at(path)
    swept = read_json(folder.sweep_file) or {}
    if folder.args_file.is_file() or not swept:
        return [read_tables(folder)]
    tables: dict[type[Row], list] = {row_type: folder.rows(row_type) for row_type in TABLES}
    tables[CentreRecord] = strong_centres(folder)
    if not swept.get("checkpoint"):  # of a run that is gone
        return [_measured(folder, swept, tables)]
    names = [name for name, _ in sorted(folder.files().items(), key=lambda item: item[1])]
    short = len({Path(name).name for name in names}) == len(names)
    runs = []
    for name in names:
        of_file = {
            row_type: [replace(row, epoch=0) for row in rows if row.checkpoint == name]
            for row_type, rows in tables.items()
        }
        if any(of_file.values()):
            label = Path(name).name if short else name
            run = _measured(folder, swept, of_file)
            runs.append(replace(run, checkpoint=name, file=label))
    return runs


def _measured(folder: RunFolder, swept: dict[str, Any], tables: dict[type[Row], list]) -> Run:
    """What a sweep has measured of something whose training is not told."""
    try:
        names = names_of_arguments(swept)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder.sweep_file} does not tell dataset, model, norm, epsilon, training mode and "
            "seed"
        ) from error
    shown = {row_type: folder.shown(rows) for row_type, rows in tables.items()}
    rows = [row for of_type in shown.values() for row in of_type]
    flags = read_flags({}, swept_with(folder, rows))
    if swept.get("checkpoint"):
        flags.pop("checkpoint of the sweep", None)
        flags["results"] = str(folder.results)
        epochs = 1
    else:
        epochs = swept.get("epochs") or max((row.epoch for row in rows), default=0) + 1
    return make_run(folder, names, swept | {"epochs": epochs}, flags, shown)
