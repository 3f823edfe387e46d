"""Train one network with a checkpoint per epoch: standard (ST), adversarial (AT), TRADES or MART.

    python train.py                                                   # ST, CIFAR-10, VGG11
    python train.py --train-mode pgd_train --neural-collapse          # AT, with neural collapse
    python train.py --train-mode pgd_train_TRADES --neural-collapse   # TRADES
    python train.py --resume                                          # go on where it stopped

Su et al., "On the Robustness of Neural Collapse and the Neural Collapse of Robustness" (TMLR
2024). Everything goes to models/DATASET/MODEL/NORM/epsEPSILON/MODE/seedSEED/.
"""

import argparse

from torch import optim

from robust_nc import build, flags
from robust_nc.networks.network import weight_bytes
from robust_nc.results.files import Writer, free_disk, write_json
from robust_nc.results.records import EpochSummary, Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.tables import NC1_DEFINITION, describe_record
from robust_nc.settings import (
    STATISTICS,
    Settings,
    difference,
    with_constants,
)
from robust_nc.training.epoch import Interrupted, Training, run_epoch
from robust_nc.training.modes import MART_LAMBDA, MODE_FLAGS, MODES, TRADES_BETA, mode_name
from robust_nc.training.resume import Saver, Start, first_epoch, kept_epochs, restore
from robust_nc.training.schedules import SCHEDULES
from utils import (
    InputError,
    Stopped,
    StopSignals,
    describe_peak,
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


def main() -> None:
    settings = parse_args()
    set_precision(settings.precision)
    run = build.run_folder(settings)
    refuse_other_run(settings, run)

    data = build.load_data(settings)
    training = build.prepare(settings, run, data)
    statistics = build.normalisation(settings, data)
    if settings.resume:
        build.refuse_other_data(run, data, statistics)
    check_disk(training)
    with run.lock("train.py"):
        refuse_other_run(settings, run)  # again: the images may have taken a while
        start = restore(training)
        if start is None:
            logger.info(f"{run.path} is finished: {settings.epochs} epochs")
            return
        write_json(run.args_file, build.describe_run(settings, data, statistics))
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
    """Train from the start on, saving every epoch, until the end or a signal."""
    unfinished, epochs = start.unfinished, training.settings.epochs
    with StopSignals() as signals, Writer() as writer:
        saver = Saver(training, writer)
        for epoch in range(start.epoch, epochs):
            try:
                summary, records = run_epoch(training, epoch, unfinished, signals)
            except InputError as error:
                saver.save_latest()
                raise InputError(
                    f"epoch {epoch}: {error}; the checkpoints before it are kept"
                ) from error
            except Interrupted as interrupted:
                saver.save_unfinished(epoch, interrupted.seen)
                steps = interrupted.seen["steps"]
                raise Stopped(
                    signals.received,
                    f" in epoch {epoch}, after step {steps}; --resume goes on from there",
                ) from None
            unfinished = None
            saver.save_epoch(summary, records)
            log_epoch(training, summary, records)
            if signals.received and epoch + 1 < epochs:
                saver.save_latest()
                raise Stopped(
                    signals.received, f" after epoch {epoch}; --resume goes on from there"
                )
        saver.save_latest()


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
        now, earlier = vars(settings), with_constants(run.trained_with())
        compared = now.keys() - FREE_FLAGS - {*STATISTICS}  # these once there are images
        differing = difference(now, earlier, compared)
        if differing:
            raise InputError(f"{run.path} was made with other flags: {differing}")


def check_disk(training: Training) -> None:
    """Say what the run will take on the disk; refuse when there is less.

    What --overwrite deletes first counts as free. A run that is finished is not asked.
    """
    settings, run, learner = training.settings, training.run, training.learner
    first = first_epoch(settings, run)
    if first >= settings.epochs:
        return
    deleted = run.to_delete(settings.resume or 0) if settings.overwrite else []
    present = {epoch for epoch in run.epochs() if run.checkpoint(epoch) not in deleted}
    count = len({epoch for epoch in kept_epochs(settings) if epoch >= first} - present)
    weights = weight_bytes(learner.network.model)
    buffers = 2 if isinstance(learner.optimizer, optim.Adam) else 1
    # Weights and the optimiser's buffers; and the one before it while it is replaced.
    resume_file = 2 * (1 + buffers) * weights
    if run.resume_file.exists() and run.resume_file not in deleted:
        resume_file -= min(run.resume_file.stat().st_size, resume_file // 2)
    # A stop in mid-epoch keeps the perturbed images as well, as float32.
    keeps_images = settings.neural_collapse and training.mode.adversary
    images = training.data.train.images.numel() * 4 if keeps_images else 0
    needed = count * weights + resume_file + images
    free = free_disk(run.path) + sum(path.stat().st_size for path in deleted)
    figures = (
        f"{count} checkpoints of {weights / 2**20:.1f} MiB and resume.pth take "
        f"{needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
    )
    if needed > free:
        raise InputError(f"{run.path}: {figures}; --checkpoint-epochs keeps fewer")
    logger.info(f"disk: {figures}")


def log_epoch(training: Training, summary: EpochSummary, records: list[Record]) -> None:
    """A line for the epoch, and one for each input of the training images that was measured."""
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
