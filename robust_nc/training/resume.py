"""Train one network with a checkpoint per epoch: standard (ST), adversarial (AT), TRADES or MART.

    python train.py                                                   # ST, CIFAR-10, VGG11
    python train.py --train-mode pgd_train --neural-collapse          # AT, with neural collapse
    python train.py --train-mode pgd_train_TRADES --neural-collapse   # TRADES
    python train.py --resume                                          # go on where it stopped

Su et al., "On the Robustness of Neural Collapse and the Neural Collapse of Robustness" (TMLR
2024). Everything goes to models/DATASET/MODEL/NORM/epsEPSILON/MODE/seedSEED/.
"""

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
from robust_nc.networks.network import Network, Statistics, statistics_in_words
from robust_nc.results.files import sha256
from robust_nc.results.records import TABLES, EpochSummary, Record
from robust_nc.settings import (
    Settings,
    select_epochs,
)
from robust_nc.training.epoch import Training
from robust_nc.training.modes import Learner
from utils import InputError, log_to, logger


def to_cpu(state: Any) -> Any:
    """Nested dicts and lists with a contiguous copy in main memory in place of every tensor."""
    return _copied(state, lambda value, _: value.to("cpu", copy=True).contiguous())


def _copied(state: Any, copy: Callable[[Tensor, tuple], Tensor], place: tuple = ()) -> Any:
    """Nested dicts and lists with copy(tensor, keys and indices that lead to it) of each tensor."""
    if isinstance(state, Tensor):
        return copy(state.detach(), place)
    if isinstance(state, dict):
        return {key: _copied(value, copy, (*place, key)) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value, copy, (*place, i)) for i, value in enumerate(state)]
    return state


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


# In resume.pth, in place of the weights: the SHA-256 of the epoch's checkpoint, which has them.
CHECKPOINT = "checkpoint_sha256"


@dataclass
class Start:
    """Where training begins: at the first step of an epoch, or after what was done of it."""

    epoch: int
    done: dict[str, Any] | None = None


def kept_epochs(settings: Settings) -> list[int]:
    """The epochs whose checkpoint stays."""
    return select_epochs(settings.checkpoint_epochs, settings.epochs)


def restore(training: Training) -> Start | None:
    """Open the run folder and load what --resume asks for; None if the run is finished."""
    settings, run, learner = training.settings, training.run, training.learner
    resume = settings.resume
    if resume is None and settings.overwrite:
        tables = [run.table(row_type).name for row_type in TABLES if run.table(row_type).exists()]
        if run.epochs() or tables:
            what = ", ".join([f"{len(run.epochs())} checkpoints", *tables])
            logger.info(f"--overwrite deletes the run that is there: {what}")
        run.delete()
    if resume is None or (resume == "last" and not run.resume_file.exists()):
        if run.holds_run() and not run.cut_off_in_first_epoch():
            raise InputError(f"{run.resume_file} is missing: name an epoch, --resume N")
        run.open()
        log_to(run.path / "output.log")
        if run.records or run.history:
            run.forget_from(0)
        return Start(0)
    network = learner.network
    if resume == "last":
        path = run.resume_file
        rest, start = load_resume(training)
        if start.epoch >= settings.epochs:
            logger.info(f"{run.path} is finished: {settings.epochs} epochs")
            return None
    else:
        path, start = run.checkpoint(resume - 1), Start(resume)
        rest = take_weights(network, path, *load_checkpoint(path, network))
    load_optimizer(learner.optimizer, rest.get("optimizer"), path)
    run.open()
    log_to(run.path / "output.log")
    if resume != "last":
        run.delete(from_epoch=start.epoch)
    run.forget_from(start.epoch)  # what a sweep recorded of later checkpoints is stale as well
    after = f" after step {start.done['steps']}" if start.done else ""
    logger.info(f"resuming at epoch {start.epoch}{after} from {path.name}")
    return start


def load_resume(training: Training) -> tuple[dict[str, Any], Start]:
    """Load the weights that resume.pth holds or refers to; its other entries, and where to go on.

    A finished run goes on with no weights: the checkpoint that its file refers to may be gone.
    """
    run, network = training.run, training.learner.network
    content = read_tensors(run.resume_file)
    if not isinstance(content, dict) or CHECKPOINT not in content:
        loaded = load_weights(run.resume_file, content, network)
        rest = take_weights(network, run.resume_file, *loaded)
        return rest, read_start(rest, run.resume_file)
    start = read_start(content, run.resume_file)
    if start.epoch < training.settings.epochs:
        path = run.checkpoint(start.epoch - 1)
        missing = not path.exists()
        if missing or sha256(path) != content[CHECKPOINT]:
            fault = "is missing" if missing else "is another file than it was"
            earlier = [epoch for epoch in run.epochs() if epoch < start.epoch - 1]
            advice = (
                f"--resume {earlier[-1] + 1} --overwrite goes on from model_{earlier[-1]}.pth"
                if earlier
                else "--overwrite starts the run again"
            )
            raise InputError(
                f"{path}: {fault}, and resume.pth goes on from it: put it back, or {advice}"
            )
        load_checkpoint(path, network)
    return content, start


def take_weights(
    network: Network, path: Path, rest: dict[str, Any], found: Statistics | None
) -> dict[str, Any]:
    """The other entries of a checkpoint that was loaded, unless it was trained on other inputs."""
    if found and not network.normalises_by(found):
        raise InputError(f"{path}: was trained with {statistics_in_words(found)}; give the same")
    return rest


def read_start(rest: dict[str, Any], path: Path) -> Start:
    """Where resume.pth says that training goes on."""
    if not isinstance(rest.get("epoch"), int):
        raise InputError(f"{path}: holds no epoch to go on from; name one, --resume N")
    done = rest.get("unfinished")
    if done and "means" not in done:
        epoch = rest["epoch"] + 1
        advice = (
            f"--resume {epoch} --overwrite goes on from model_{epoch - 1}.pth, where it was kept"
            if epoch > 0
            else "--overwrite starts it again"
        )
        raise InputError(
            f"{path}: stopped in mid-epoch by an older version, whose draws were others: {advice}"
        )
    return Start(rest["epoch"] + 1, done)


def load_optimizer(optimizer: optim.Optimizer, state: dict | None, path: Path) -> None:
    """Load the optimiser state of a checkpoint, where it holds one.

    Its buffers alone, to where this optimiser needs them: rate, momentum, weight decay and every
    other setting are those of this run's flags, whatever the checkpoint was made with.
    """
    if state is None:
        logger.warning(f"{path.name} holds no optimiser state: momentum starts at zero")
        return
    kind = "betas" if isinstance(optimizer, optim.Adam) else "momentum"
    groups = optimizer.state_dict()["param_groups"]
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


def snapshot(learner: Learner, snapshots: Snapshots) -> dict[str, Any]:
    """Copies in main memory of the weights and the optimiser's state, which training changes."""
    return snapshots.take(
        {
            "state_dict": learner.network.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
        }
    )


def save(
    training: Training, summary: EpochSummary, records: list[Record], state: dict[str, Any]
) -> None:
    """Write the epoch. resume.pth comes last: what it resumes from is on disk by then."""
    epoch, settings = summary.epoch, training.settings
    if epoch in kept_epochs(settings):
        save_checkpoint(
            training.run.checkpoint(epoch),
            state_dict=state["state_dict"],
            epoch=epoch,
            seed=settings.seed,
        )
    training.run.add(records, summary)
    save_resume(training, epoch, state)


def save_resume(
    training: Training, epoch: int, state: dict[str, Any], seen: dict[str, Any] | None = None
) -> None:
    """Write resume.pth: the last finished epoch, and what is done of the next one.

    The weights of a finished epoch are in its checkpoint, where that is kept. It is on disk by
    then, and resume.pth holds its SHA-256, so that no other file is taken for it.
    """
    settings, run = training.settings, training.run
    if seen is None and epoch in kept_epochs(settings):
        state = {"optimizer": state["optimizer"], CHECKPOINT: sha256(run.checkpoint(epoch))}
    save_checkpoint(run.resume_file, **state, epoch=epoch, seed=settings.seed, unfinished=seen)
