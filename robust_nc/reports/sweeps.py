"""What eval.py --out leaves: results in a folder of their own, of a run or of files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robust_nc.reports.groups import each_once, twins_in_words
from robust_nc.reports.runs import (
    Run,
    all_rows,
    make_run,
    read_run,
    read_runs,
)
from robust_nc.reports.setting import names_of_arguments
from robust_nc.results.files import read_json
from robust_nc.results.run_folder import RunFolder
from robust_nc.training.modes import MODES
from utils import InputError

SWEEP_FILE = RunFolder(Path()).sweep_file.name


def folder_at(path: Path) -> RunFolder:
    """The folder of a run, or of the results that lie in `path` itself."""
    if path.name == "results" and (path.parent / "args.json").is_file():
        return RunFolder(path.parent)
    if (path / "args.json").is_file() or not is_alone(path):
        return RunFolder(path)
    run = Path((read_json(path / SWEEP_FILE) or {}).get("run") or path)
    return RunFolder(run if run.is_dir() else path, results=path)


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
        return [read_run(folder.path, asked, folder.results)]
    named = names_of_arguments(swept, folder.sweep_file)
    rows = all_rows(folder)
    if not swept.get("checkpoint"):  # of a run that is gone
        epochs = swept.get("epochs") or max((row.epoch for row in rows), default=0) + 1
        run = make_run(folder, named, {}, rows, asked)
        return [replace(run, arguments=swept | {"epochs": epochs})]
    names = [name for name, _ in sorted(folder.files().items(), key=lambda item: item[1])]
    short = len({Path(name).name for name in names}) == len(names)
    runs = []
    for name in names:
        of_file = [replace(row, epoch=0) for row in rows if row.checkpoint == name]
        if of_file:
            run = make_run(folder, named, {}, of_file, asked)
            flags = {"results": str(folder.results)} | run.flags
            flags.pop("checkpoint of the sweep", None)
            label = Path(name).name if short else name
            arguments = swept | {"epochs": 1}
            runs.append(replace(run, arguments=arguments, flags=flags, checkpoint=name, file=label))
    return runs


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
