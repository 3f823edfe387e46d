"""A run that goes on: what its args.json tells as flags, and what would be lost or mixed by it."""

from pathlib import Path
from typing import Any

from robust_nc.data.datasets import DATASETS
from robust_nc.flags import TRAIN_FLAGS
from robust_nc.results.files import read_json, sha256
from robust_nc.results.records import TABLES
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import STATISTICS, Settings, with_former_values
from robust_nc.training.epoch import rate_at
from robust_nc.training.resume import saved_start
from utils import InputError, select_device

# In args.json: of the file of --init, so that another one of that name is noticed.
INIT_HASH = "init_sha256"
# What a run does not hand on: how it was started, and what its folder or --bn tells.
OWN_OF_A_START = {"resume", "overwrite", "models_dir", "trades_bn"}
RATES_PER_EPOCH = 100  # at which the rates of two lengths of a schedule are compared


def flags_of_run(folder: Path) -> dict[str, Any]:
    """The flags of a run, as defaults of train.py's parser, of its args.json.

    Raises:
        InputError: it is damaged, or of a version that knows other values.
    """
    file = folder / "args.json"
    told = with_former_values(read_json(file) or {}, TRAIN_FLAGS)
    left_out = set(OWN_OF_A_START)
    if told.get("no_normalisation"):
        left_out |= {*STATISTICS}
    if told.get("dataset") != "folder":
        left_out |= {"image_size"}  # of which there is one
    flags: dict[str, Any] = {}
    for flag in TRAIN_FLAGS:
        value = told.get(flag.key)
        if value is None or flag.key in left_out:
            continue
        if value not in flag.options.get("choices", (value,)):
            raise InputError(f"{file}: {flag.name} is {value!r}, which is not known here")
        flags[flag.key] = tuple(value) if isinstance(value, list) else value
    if "dataset" in flags and flags["dataset"] not in DATASETS:
        raise InputError(f"{file}: --dataset is {flags['dataset']!r}, which is not known here")
    try:
        on_gpu = select_device(flags.get("device", "auto")).type == "cuda"
    except ValueError:  # of another machine
        del flags["device"]
        on_gpu = select_device("auto").type == "cuda"
    return flags | {"cuda_graph": flags.get("cuda_graph", False) and on_gpu}


def deleted_by_resuming(epoch: int, run: RunFolder) -> str | None:
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


def check_source(epoch: int, run: RunFolder) -> None:
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


def finished_epochs(settings: Settings, run: RunFolder) -> int:
    """Epochs that are trained with --resume as it is given, one that was begun included."""
    if isinstance(settings.resume, int):
        return settings.resume
    if not run.resume_file.exists():
        return 0
    start = saved_start(run)
    return start.epoch + (start.unfinished is not None)


def has_same_rates(settings: Settings, epochs: int, until: int) -> bool:
    """Whether a run of so many epochs in all had the same learning rates before epoch `until`."""
    other = settings.replace(epochs=epochs)
    times = (step / RATES_PER_EPOCH for step in range(1, until * RATES_PER_EPOCH + 1))
    return all(rate_at(settings, t) == rate_at(other, t) for t in times)


def init_hash(settings: Settings, earlier: dict[str, Any]) -> dict[str, str]:
    """For args.json, the SHA-256 of the file of --init: a run that goes on needs it no more."""
    if settings.init is None:
        return {}
    if settings.init.is_file():
        return {INIT_HASH: sha256(settings.init)}
    return {INIT_HASH: earlier[INIT_HASH]} if settings.resume and INIT_HASH in earlier else {}
