"""Train one network with a checkpoint per epoch: standard (ST), adversarial (AT), TRADES or MART.

    python train.py                                                   # ST, CIFAR-10, VGG11
    python train.py --train-mode pgd_train --neural-collapse          # AT, with neural collapse
    python train.py --train-mode pgd_train_TRADES --neural-collapse   # TRADES
    python train.py --resume                                          # go on where it stopped

Su et al., "On the Robustness of Neural Collapse and the Neural Collapse of Robustness" (TMLR
2024). Everything goes to models/DATASET/MODEL/NORM/epsEPSILON/MODE/seedSEED/.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

import flags
from files import Writer, free_disk, read_rows, sha256, write_json
from flags import Settings
from networks import Network, Statistics, load_checkpoint, load_weights, read_tensors, weight_bytes
from records import NC1_DEFINITION, TABLES, EpochSummary, Record, describe_record
from run_folder import RunFolder, Snapshots, save_checkpoint, to_cpu
from steps import MART_LAMBDA, MODE_FLAGS, MODES, TRADES_BETA, Learner, mode_name
from training import Interrupted, Training, prepare, run_epoch
from utils import (
    SCHEDULES,
    InputError,
    Stopped,
    StopSignals,
    describe_peak,
    log_to,
    logger,
    run_script,
    set_precision,
)

# Flags that may change when a run is resumed: they change its numbers by rounding at most.
FREE_FLAGS = {
    "data_dir",
    "data_url",
    "models_dir",
    "device",
    "compile",
    "cuda_graph",
    "checkpoint_epochs",
    "eval_batch_size",
    "resume",
    "overwrite",
}

# In resume.pth, in place of the weights: the SHA-256 of the epoch's checkpoint, which has them.
CHECKPOINT = "checkpoint_sha256"


def parse_args(argv: list[str] | None = None) -> Settings:
    parser = flags.Parser(
        description="Train one network with a checkpoint per epoch.", allow_abbrev=False
    )
    flags.add_run_flags(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", type=flags.positive_int, default=128, help="default: 128")
    training.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on a GPU, capture the training step as a CUDA graph and replay it without Python",
    )
    training.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    training.add_argument(
        "--lr-schedule",
        choices=SCHEDULES,
        default="piecewise",
        help="piecewise divides --lr-max by 10 after a quarter of the epochs and by 100 after "
        "37.5 %% of them, in a short run as well; the others are in docs/flags.md (default: "
        "%(default)s)",
    )
    training.add_argument(
        "--lr-drop-epoch",
        type=flags.positive_int,
        default=100,
        help="epoch at which the schedule onedrop drops (default: %(default)s)",
    )
    training.add_argument(
        "--lr-one-drop",
        type=flags.non_negative_float,
        default=0.01,
        help="what it drops to (default: %(default)s)",
    )
    training.add_argument(
        "--trades-beta",
        type=flags.non_negative_float,
        default=TRADES_BETA,
        help="weight of the KL term of TRADES (default: %(default)g)",
    )
    training.add_argument(
        "--mart-lambda",
        type=flags.non_negative_float,
        default=MART_LAMBDA,
        help="weight of the KL term of MART (default: %(default)g)",
    )
    training.add_argument(
        "--neural-collapse",
        action="store_true",
        help="per epoch, NC of the training images; under AT, TRADES and MART also of the "
        "perturbed images that the epoch trained on",
    )
    training.add_argument(
        "--neural-collapse-gaussian",
        action="store_true",
        help="per epoch, NC of the training images under normal noise renormed to an l_2 norm "
        "of at most 16 times --noise-level",
    )
    training.add_argument(
        "--checkpoint-epochs",
        metavar="EPOCHS",
        help="epochs whose checkpoint is kept: 0,10,399, a slice like ::10, or log for ten per "
        "decade (default: all)",
    )
    training.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="N",
        help="go on with the run in the folder; with N, train epoch N from model_{N-1}.pth",
    )
    training.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that is in the folder first; with --resume N from epoch N on",
    )
    args = parser.parse_args(argv)
    flags.finish_run_flags(parser, args)
    flags.parse_epochs(parser, "--checkpoint-epochs", args.checkpoint_epochs, args.epochs)
    if args.resume not in (None, "last"):
        try:
            args.resume = flags.positive_int(args.resume)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --resume: {error}")
        if args.resume >= args.epochs:
            parser.error(f"--resume {args.resume}: the run has --epochs {args.epochs} only")
    if args.resume == "last" and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite deletes it: give one of them")
    if args.lr_schedule == "multipledecay" and args.epochs < 10:
        parser.error("--lr-schedule multipledecay needs --epochs of 10 or more")
    mode = MODES[mode_name(args.train_mode, args.trades_bn)]
    for name in sorted(MODE_FLAGS - set(mode.flags)):
        if getattr(args, name) != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag}: --train-mode {args.train_mode} makes no use of it")
    if args.cuda_graph and args.device.type != "cuda":
        parser.error(f"--cuda-graph needs a GPU; the device is {args.device}")
    return Settings(**vars(args))


@dataclass
class Start:
    """Where training begins: at the first step of an epoch, or after what was done of it."""

    epoch: int
    done: dict[str, Any] | None = None


def main() -> None:
    settings = parse_args()
    set_precision(settings.precision)
    run = flags.run_folder(settings)
    refuse_other_run(settings, run)

    training = prepare(settings, run, flags.load_data(settings))
    statistics = flags.normalisation(settings, training.data)
    if settings.resume:
        flags.refuse_other_data(run, training.data, statistics)
    check_disk(training)
    with run.lock("train.py"):
        refuse_other_run(settings, run)  # again: the images may have taken a while
        start = restore(training)
        if start is None:
            return
        write_json(run.args_file, flags.describe_run(settings, training.data, statistics))
        data = training.data
        logger.info(
            f"{settings.train_mode} of {settings.model} on {settings.dataset}: {len(data.train)} "
            f"training and {len(data.test)} test images, {data.num_classes} classes, on "
            f"{settings.device}; to {run.path}"
        )
        if settings.neural_collapse or settings.neural_collapse_gaussian:
            logger.info(NC1_DEFINITION)
        train(training, start)
        logger.info(f"finished; {describe_peak(settings.device)}")


def train(training: Training, start: Start) -> None:
    """Train from the start on, writing every epoch, until the end or a signal."""
    done, epochs = start.done, training.settings.epochs
    snapshots = Snapshots(training.settings.device)
    with StopSignals() as signals, Writer() as writer:
        for epoch in range(start.epoch, epochs):
            try:
                summary, records = run_epoch(training, epoch, done, signals)
            except InputError as error:
                raise InputError(
                    f"epoch {epoch}: {error}; the checkpoints before it are kept"
                ) from error
            except Interrupted as interrupted:
                # As if the epoch before had ended here, with what this one has seen beside it.
                seen, state = to_cpu(interrupted.seen), snapshot(training.learner, snapshots)
                writer.submit(save_resume, training, epoch - 1, state, seen)
                raise Stopped(
                    signals.received,
                    f" in epoch {epoch}, after step {seen['steps']}; --resume goes on from there",
                ) from None
            done = None
            state = snapshot(training.learner, snapshots)
            writer.submit(save, training, summary, records, state)
            log_epoch(training, summary, records)
            if signals.received and epoch + 1 < epochs:
                raise Stopped(
                    signals.received, f" after epoch {epoch}; --resume goes on from there"
                )


def refuse_other_run(settings: Settings, run: RunFolder) -> None:
    """Stop before anything is read or written if the folder holds what would be lost or mixed."""
    resume = settings.resume
    if not resume and not settings.overwrite and run.holds_run():
        raise InputError(
            f"{run.path} holds a run already: --resume goes on with it, "
            "--overwrite deletes it first"
        )
    later = [epoch for epoch in run.epochs() if isinstance(resume, int) and epoch >= resume]
    if later and not settings.overwrite:
        raise InputError(
            f"{run.checkpoint(later[0])} would be replaced by --resume {resume}: "
            "--overwrite deletes it and those after it first"
        )
    if resume:
        now, earlier = vars(settings), flags.with_constants(run.trained_with())
        compared = now.keys() - FREE_FLAGS - {*flags.STATISTICS}  # these once there are images
        differing = flags.difference(now, earlier, compared)
        if differing:
            raise InputError(f"{run.path} was made with other flags: {differing}")


def check_disk(training: Training) -> None:
    """Say what the run will take on the disk; refuse when there is less.

    What --overwrite deletes first counts as free. A run that has all its checkpoints is not asked:
    it may have to say only that it is finished.
    """
    settings, run, learner = training.settings, training.run, training.learner
    weights = weight_bytes(learner.network.model)
    buffers = 2 if isinstance(learner.optimizer, optim.Adam) else 1
    deleted = run.to_delete(settings.resume or 0) if settings.overwrite else []
    present = {epoch for epoch in run.epochs() if run.checkpoint(epoch) not in deleted}
    first = settings.resume if isinstance(settings.resume, int) else 0
    if settings.resume == "last":
        first = len(read_rows(run.path / "history.csv", EpochSummary))
    to_come = [epoch for epoch in kept_epochs(settings) if epoch >= first]
    count = len(set(to_come) - present)
    if count == 0:
        return
    # resume.pth may hold the weights too: after a stop in mid-epoch, or where not all checkpoints
    # are kept. While it is written, the one before it is still there.
    largest = 1 + buffers
    usual = buffers if len(kept_epochs(settings)) == settings.epochs else largest
    there = run.resume_file.exists() and run.resume_file not in deleted
    # A stop in mid-epoch keeps the perturbed images as well, as float32.
    keeps_images = settings.neural_collapse and training.mode.adversary
    images = training.data.train.images.numel() * 4 if keeps_images else 0
    needed = (count + largest + (0 if there else usual)) * weights + images
    free = free_disk(run.path) + sum(path.stat().st_size for path in deleted)
    figures = (
        f"{count} checkpoints of {weights / 2**20:.1f} MiB and resume.pth take "
        f"{needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
    )
    if needed > free:
        raise InputError(f"{run.path}: {figures}; --checkpoint-epochs keeps fewer")
    logger.info(f"disk: {figures}")


def kept_epochs(settings: Settings) -> list[int]:
    """The epochs whose checkpoint stays."""
    return flags.select_epochs(settings.checkpoint_epochs, settings.epochs)


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
        raise InputError(f"{path}: was trained with {flags.in_words(found)}; give the same")
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


def log_epoch(training: Training, summary: EpochSummary, records: list[Record]) -> None:
    robust = ""
    if training.mode.adversary:
        robust = (
            f" | robust loss {summary.train_robust_loss:.4f} acc {summary.train_robust_acc:.4f}"
        )
    logger.info(
        f"epoch {summary.epoch} ({summary.epoch + 1} of {training.settings.epochs}) | lr "
        f"{summary.lr:g} | train loss {summary.train_loss:.4f} acc {summary.train_acc:.4f}{robust} "
        f"| test loss {summary.test_loss:.4f} acc {summary.test_acc:.4f} | {summary.seconds:.1f} s"
    )
    for record in records:
        if record.split == "train":
            logger.info(f"    {describe_record(record)}")


if __name__ == "__main__":
    run_script(main)
