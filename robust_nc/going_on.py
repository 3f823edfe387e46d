"""A run that is named by its folder, or lies in the way of another: its flags, what may be lost."""

from pathlib import Path
from typing import Any

from robust_nc.comparing import other_run
from robust_nc.flags import SHARED_FLAGS, TRAIN_FLAGS
from robust_nc.results.files import read_json
from robust_nc.results.records import TABLES
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.run_search import list_runs
from robust_nc.settings import STATISTICS, Means, Settings, keys_that, with_former_values
from robust_nc.training.resume import saved_start
from utils import InputError, select_device


def flags_of_run(folder: Path) -> dict[str, Any]:
    """The flags of a run, as defaults of train.py's parser, of its args.json.

    Raises:
        InputError: it is damaged, or of a version that knows other values.
    """
    file = folder / "args.json"
    written = read_json(file) or {}
    told = with_former_values(written, TRAIN_FLAGS)
    left_out = keys_that(TRAIN_FLAGS, Means.START)
    if told.get("no_normalisation"):
        left_out |= {*STATISTICS}
    if told.get("dataset") != "folder":
        left_out |= {"image_size"}  # of which there is one
    flags: dict[str, Any] = {}
    for flag in TRAIN_FLAGS:
        value = told.get(flag.key)
        if value is None or flag.key in left_out:
            continue
        if flag.key in written and not flag.accepts(value):
            raise InputError(f"{file}: {flag.name} is {value!r}, which is not known here")
        flags[flag.key] = tuple(value) if isinstance(value, list) else value
    try:
        on_gpu = select_device(flags.get("device", "auto")).type == "cuda"
    except ValueError:  # of another machine
        del flags["device"]
        on_gpu = select_device("auto").type == "cuda"
    return flags | {"cuda_graph": flags.get("cuda_graph", False) and on_gpu}


def swept_by_folder(folder: Path) -> dict[str, Any]:
    """The flags of a run that eval.py takes over: its name, images, attack, noise and precision.

    Raises:
        InputError: there is no run in the folder; the runs that there are below it are listed.
    """
    if not (folder / "args.json").is_file():
        raise InputError(f"{folder}: no run there (it has no args.json); {list_runs(folder)}")
    keys = keys_that(SHARED_FLAGS, Means.NAME | Means.SEED | Means.MEASURE | Means.PLACE)
    return {key: value for key, value in flags_of_run(folder).items() if key in keys}


def refuse_other_run(settings: Settings, run: RunFolder) -> None:
    """Stop before anything is read or written if the folder holds what would be lost or mixed."""
    resume = settings.resume
    if not resume and (settings.overwrite or not run.holds_run()):
        return
    differing = other_run(settings, run)
    if not resume:
        flags = f", made with other flags ({differing})" if differing else ""
        goes_on = "" if differing else "--resume goes on with it, "
        raise InputError(
            f"{run.path} holds a run already{flags}: {goes_on}--overwrite deletes it first, "
            "--run-name NAME gives this one a folder of its own"
        )
    if differing:
        raise InputError(
            f"{run.path} was made with other flags: {differing}; --run-name NAME gives these a "
            "folder of their own"
        )
    if isinstance(resume, int):
        deleted = None if settings.overwrite else _deleted_by_resuming(resume, run)
        if deleted:
            raise InputError(
                f"{deleted}: --overwrite deletes what is there of epoch {resume} and later ones, "
                "--resume alone goes on after it"
            )
        _check_source(resume, run)


def _deleted_by_resuming(epoch: int, run: RunFolder) -> str | None:
    """One line on what `--resume N` deletes of a run: all that there is of epoch N and later ones.

    A resume.pth that has come no further than that is no loss: the run goes on from its weights.
    """
    later = [number for number in run.epochs() if number >= epoch]
    if later:
        more = f", and {len(later) - 1} later ones" if later[1:] else ""
        return f"{run.checkpoint(later[0])} would be replaced by --resume {epoch}{more}"
    lost = []
    tables = {run.table(row_type).name: run.rows(row_type) for row_type in TABLES}
    tables["history.csv"] = run.history
    for name, rows in tables.items():
        epochs = sorted({row.epoch for row in rows if row.epoch >= epoch})
        if epochs:
            lost.append(f"the rows of epochs {epochs[0]} to {epochs[-1]} in {name}")
    if run.resume_file.exists():
        last = saved_start(run).epoch - 1
        if last >= epoch:
            lost.append(f"the only weights of epoch {last}, in resume.pth")
    return f"{run.path}: --resume {epoch} deletes {', '.join(lost)}" if lost else None


def _check_source(epoch: int, run: RunFolder) -> None:
    """Stop where `--resume N` has no checkpoint to train epoch N from.

    Raises:
        InputError: the line tells which epochs have one.
    """
    file = run.checkpoint(epoch - 1)
    if file.exists():
        return
    kept = run.epochs()
    numbers = ", ".join(map(str, kept[:10])) + (", ..." if kept[10:] else "")
    before = [number for number in kept if number < epoch]
    advice = (
        f": --resume {before[-1] + 1} trains on from {run.checkpoint(before[-1]).name}"
        if before
        else ""
    )
    there = f"kept are those of epochs {numbers}{advice}" if kept else "none is kept"
    raise InputError(f"{file}: no such checkpoint, which --resume {epoch} needs; {there}")
