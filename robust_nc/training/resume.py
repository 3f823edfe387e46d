"""Where a run goes on: what it saves while it trains, and how --resume restores it.

resume.pth is whole: with it alone training goes on to the same bits. Since it is larger than a
checkpoint it is not written after every epoch, so checkpoints and rows may be of later epochs than
it: a run that goes on makes these again. It holds

state_dict, optimizer   the weights and the optimiser's state
epoch                   the last epoch that was finished, -1 if there was none
unfinished              what was done of the next one before a signal came, or None
seed                    the run's
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

from robust_nc.networks.checkpoints import (
    load_checkpoint,
    load_weights,
    read_tensors,
    save_checkpoint,
)
from robust_nc.networks.network import statistics_in_words
from robust_nc.results.files import Writer, sha256
from robust_nc.results.history import EpochSummary
from robust_nc.results.records import TABLES, Record
from robust_nc.results.run_folder import CHECKPOINT_NAME, RunFolder
from robust_nc.settings import Settings, select_epochs
from robust_nc.training.epoch import Training
from utils import InputError, log_to, logger

RESUME_SECONDS = 10.0  # resume.pth is not written again before so many have passed

# In resume.pth of earlier versions, in place of the weights: the SHA-256 of the epoch's checkpoint.
CHECKPOINT = "checkpoint_sha256"


def kept_epochs(settings: Settings) -> list[int]:
    """The epochs whose checkpoint stays."""
    return select_epochs(settings.checkpoint_epochs, settings.epochs)


# ---------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------


class Saver:
    """Saves what a run leaves while it trains on: copied here, written in the `Writer`'s thread.

    resume.pth is written at most every RESUME_SECONDS, which is what a kill can cost, but always
    after the first epoch and where training ends, for whatever reason.
    """

    def __init__(self, training: Training, writer: Writer):
        self.training = training
        self.writer = writer
        self._snapshots = Snapshots(training.settings.device)
        self._latest: tuple[int, dict[str, Any]] | None = None  # epoch and its snapshot
        self._resumable: int | None = None  # the epoch in resume.pth
        self._written = -math.inf  # when resume.pth was, by time.monotonic

    def save_epoch(self, summary: EpochSummary, records: list[Record]) -> None:
        """Save a finished epoch: its checkpoint, its rows, and resume.pth if it is due."""
        self._latest = summary.epoch, self._snapshot()
        self.writer.submit(self._write_epoch, summary, records, self._latest[1])

    def save_unfinished(self, epoch: int, seen: dict[str, Any]) -> None:
        """Save resume.pth in the middle of an epoch, of which so much was seen."""
        self.writer.submit(self._write_resume, epoch - 1, self._snapshot(), to_cpu(seen))

    def save_latest(self) -> None:
        """Save resume.pth of the latest epoch, as training ends; nothing if it is saved already."""
        if self._latest is not None:
            self.writer.submit(self._write_resume, *self._latest)

    def _snapshot(self) -> dict[str, Any]:
        learner = self.training.learner
        return self._snapshots.take(
            {
                "state_dict": learner.network.model.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
            }
        )

    def _write_epoch(
        self, summary: EpochSummary, records: list[Record], state: dict[str, Any]
    ) -> None:
        """resume.pth comes last: all that it goes on from is on disk by then."""
        epoch, settings, run = summary.epoch, self.training.settings, self.training.run
        if epoch in kept_epochs(settings):
            save_checkpoint(
                run.checkpoint(epoch),
                state_dict=state["state_dict"],
                epoch=epoch,
                seed=settings.seed,
            )
        run.add(records, summary)
        if time.monotonic() - self._written >= RESUME_SECONDS:
            self._write_resume(epoch, state)

    def _write_resume(
        self, epoch: int, state: dict[str, Any], unfinished: dict[str, Any] | None = None
    ) -> None:
        if unfinished is None and epoch == self._resumable:
            return
        run, seed = self.training.run, self.training.settings.seed
        run.write_series()  # before it: a run that is finished writes them no more
        save_checkpoint(run.resume_file, **state, epoch=epoch, seed=seed, unfinished=unfinished)
        self._resumable, self._written = epoch, time.monotonic()


class Snapshots:
    """What training changes, copied to main memory as `to_cpu` does it, for a `Writer`.

    From a GPU the copies go into pinned buffers, made contiguous on the device, and nothing waits
    until all are on their way. There are two sets of buffers, used in turn, so that a snapshot
    holds until the second one after it. The writer needs no more: `submit` of a snapshot returns
    once the one before it is written, into whose buffers the next one then goes.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._sets: list[dict[tuple, Tensor]] = [{}, {}]

    def take(self, state: Any) -> Any:
        """Nested dicts and lists with a copy in place of every tensor."""
        if self.device.type != "cuda":
            return to_cpu(state)
        self._sets.reverse()
        copied = _copied(state, self._copy)
        torch.cuda.current_stream(self.device).synchronize()
        return copied

    def _copy(self, value: Tensor, place: tuple) -> Tensor:
        buffer = self._sets[0].get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._sets[0][place] = buffer
        return buffer.copy_(value.contiguous(), non_blocking=True)


def to_cpu(state: Any) -> Any:
    """Nested dicts and lists with a contiguous copy in main memory in place of every tensor."""
    return _copied(state, lambda value, place: value.to("cpu", copy=True).contiguous())


def _copied(state: Any, copy: Callable[[Tensor, tuple], Tensor], place: tuple = ()) -> Any:
    """Nested dicts and lists with copy(tensor, keys and indices that lead to it) of each tensor."""
    if isinstance(state, Tensor):
        return copy(state.detach(), place)
    if isinstance(state, dict):
        return {key: _copied(value, copy, (*place, key)) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value, copy, (*place, i)) for i, value in enumerate(state)]
    return state


# ---------------------------------------------------------------------------------------------
# Restoring
# ---------------------------------------------------------------------------------------------


@dataclass
class Start:
    """Where training begins: at the first step of an epoch, or after what is done of it."""

    epoch: int
    unfinished: dict[str, Any] | None = None


def begins(settings: Settings, run: RunFolder) -> bool:
    """Whether training begins with fresh weights, or those of --init, at epoch 0."""
    return settings.resume is None or (settings.resume == "last" and not run.resume_file.exists())


def load_init(training: Training) -> None:
    """Load the weights of --init; the optimiser's state stays at zero.

    Raises:
        InputError: it does not fit the network, or was trained on inputs normalised otherwise.
    """
    path, network = training.settings.init, training.learner.network
    _, statistics = load_checkpoint(path, network, training.settings.weights_key)
    if statistics and not network.normalises_by(statistics):
        raise InputError(
            f"--init {path}: was trained with {statistics_in_words(statistics)}; give the same"
        )
    logger.info(f"the weights are those of {path}")


def first_epoch(settings: Settings, run: RunFolder) -> int:
    """The epoch that `restore` will begin with, before anything is loaded or changed."""
    if settings.resume == "last" and run.resume_file.exists():
        return saved_start(run).epoch
    return settings.resume if isinstance(settings.resume, int) else 0


def restore(training: Training) -> Start | None:
    """Load what --resume asks for and open the run folder; None if the run is finished.

    Of the epochs that will be trained, rows are dropped; so are checkpoints where an epoch was
    named. Where none was, those that are already there will be replaced by the same bits.
    """
    settings, run = training.settings, training.run
    if begins(settings, run):
        _open_afresh(settings, run)
        return Start(0)
    if settings.resume == "last":
        source, content = run.resume_file, read_tensors(run.resume_file)
        start = read_start(source, content)
        if start.epoch >= settings.epochs:
            return None
        load_state(training, source, with_weights(run, content))
    else:
        source, start = run.checkpoint(settings.resume - 1), Start(settings.resume)
        load_state(training, source, read_tensors(source))
    run.open()
    log_to(run.path / "output.log")
    if settings.resume != "last":
        run.delete(from_epoch=start.epoch)
    run.forget_from(start.epoch)  # what a sweep recorded of later checkpoints is stale as well
    after = f" after step {start.unfinished['steps']}" if start.unfinished else ""
    logger.info(f"resuming at epoch {start.epoch}{after} from {source.name}")
    return start


def _open_afresh(settings: Settings, run: RunFolder) -> None:
    """Open the folder of a run that begins with epoch 0.

    Raises:
        InputError: it was to go on with a run that has no resume.pth.
    """
    if settings.resume is None and settings.overwrite:
        tables = [run.table(row_type).name for row_type in TABLES if run.table(row_type).exists()]
        if run.epochs() or tables:
            what = ", ".join([f"{len(run.epochs())} checkpoints", *tables])
            logger.info(f"--overwrite deletes the run that is there: {what}")
        run.delete()
    if run.holds_run() and not run.cut_off_in_first_epoch():
        raise InputError(f"{run.resume_file} is missing: name an epoch, --resume N")
    run.open()
    log_to(run.path / "output.log")
    if run.records or run.history:
        run.forget_from(0)


def saved_start(run: RunFolder) -> Start:
    """Where the resume.pth of a run says that training goes on."""
    return read_start(run.resume_file, read_tensors(run.resume_file))


def read_start(path: Path, content: Any) -> Start:
    """Where the content of resume.pth says that training goes on."""
    epoch = content.get("epoch") if isinstance(content, dict) else None
    if not isinstance(epoch, int):
        raise InputError(f"{path}: holds no epoch to go on from; name one, --resume N")
    unfinished = content.get("unfinished")
    if unfinished and "means" not in unfinished:
        latest = CHECKPOINT_NAME.format(epoch)
        advice = (
            f"--resume {epoch + 1} --overwrite goes on from {latest}, where it was kept"
            if epoch >= 0
            else "--overwrite starts it again"
        )
        raise InputError(
            f"{path}: stopped in mid-epoch by an older version, whose draws were others: {advice}"
        )
    return Start(epoch + 1, unfinished)


def with_weights(run: RunFolder, content: dict[str, Any]) -> dict[str, Any]:
    """The content of resume.pth, with the weights that earlier versions left to the checkpoint.

    Raises:
        InputError: it refers to a checkpoint that is missing, or another file by now.
    """
    if CHECKPOINT not in content:
        return content
    epoch = content["epoch"]
    path = run.checkpoint(epoch)
    missing = not path.exists()
    if not missing and sha256(path) == content[CHECKPOINT]:
        return content | {"state_dict": read_tensors(path)["state_dict"]}
    fault = "is missing" if missing else "is another file than it was"
    earlier = [number for number in run.epochs() if number < epoch]
    advice = (
        f"--resume {earlier[-1] + 1} --overwrite goes on from {run.checkpoint(earlier[-1]).name}"
        if earlier
        else "--overwrite starts the run again"
    )
    raise InputError(f"{path}: {fault}, and resume.pth goes on from it: put it back, or {advice}")


def load_state(training: Training, path: Path, content: Any) -> None:
    """Load weights, and the optimiser's state where there is one, of a file with this content.

    Raises:
        InputError: it does not fit the run, or was trained on inputs normalised otherwise.
    """
    network, optimizer = training.learner.network, training.learner.optimizer
    entries, statistics = load_weights(path, content, network)
    if statistics and not network.normalises_by(statistics):
        raise InputError(
            f"{path}: was trained with {statistics_in_words(statistics)}; give the same"
        )
    load_optimizer(optimizer, entries.get("optimizer"), path)


def load_optimizer(optimizer: optim.Optimizer, state: dict | None, path: Path) -> None:
    """Load the optimiser state of a checkpoint, where it holds one.

    Its buffers alone, to where this optimiser needs them: rate, momentum, weight decay and every
    other setting are those of this run's flags, whatever the checkpoint was made with.
    """
    if state is None:
        logger.warning(f"{path.name} holds no optimiser state: momentum starts at zero")
        return
    groups = optimizer.state_dict()["param_groups"]
    kind = "momentum" if isinstance(optimizer, optim.SGD) else "betas"
    try:
        if kind not in state["param_groups"][0]:
            raise ValueError("it is of another optimiser")
        if [len(g["params"]) for g in state["param_groups"]] != [len(g["params"]) for g in groups]:
            raise ValueError("it is of another network")
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        # In the layout of its weight, without which a fused step refuses it.
        for parameter, buffers in optimizer.state.items():
            for name, value in buffers.items():
                if isinstance(value, Tensor) and value.ndim:
                    if value.shape != parameter.shape:
                        raise ValueError("it is of another network")
                    buffers[name] = torch.empty_like(parameter).copy_(value)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: its optimiser state does not fit this run: {error}") from error
