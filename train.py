"""Train one network with a checkpoint per epoch: standard (ST), adversarial (AT), TRADES or MART.

    python train.py                                                   # ST, CIFAR-10, VGG11
    python train.py --train-mode pgd_train --neural-collapse          # AT, with neural collapse
    python train.py --train-mode pgd_train_TRADES --neural-collapse   # TRADES
    python train.py --resume                                          # go on where it stopped
    python train.py --resume models/.../seed1                         # likewise, by its folder

Su et al., "On the Robustness of Neural Collapse and the Neural Collapse of Robustness" (TMLR
2024). Everything goes to models/DATASET/MODEL/NORM/epsEPSILON/MODE/seedSEED/.
"""

import math
from pathlib import Path

from torch import optim

from robust_nc import build
from robust_nc.checks import check_run, check_training
from robust_nc.comparing import init_hash
from robust_nc.data.datasets import units_of
from robust_nc.flags import train_parser
from robust_nc.going_on import flags_of_run, refuse_other_run
from robust_nc.networks.network import weight_bytes
from robust_nc.results.conditions import conditions_of
from robust_nc.results.files import Writer, free_disk
from robust_nc.results.history import EpochSummary
from robust_nc.results.records import Record
from robust_nc.results.run_search import list_runs
from robust_nc.results.tables import NC1_DEFINITION, attack_in_words, describe_record
from robust_nc.settings import Settings
from robust_nc.training.epoch import Interrupted, Training, run_epoch
from robust_nc.training.resume import (
    Saver,
    Start,
    begins,
    first_epoch,
    kept_epochs,
    load_init,
    restore,
)
from utils import (
    InputError,
    Stopped,
    StopSignals,
    describe_peak,
    logger,
    run_script,
    set_precision,
)


def parse_args(argv: list[str] | None = None) -> Settings:
    """The flags of train.py; of a run that is resumed by its folder, that run's."""
    parser = train_parser()
    args = parser.parse_args(argv)
    if isinstance(args.resume, Path):
        run_path = args.resume
        if not (run_path / "args.json").is_file():
            parser.error(
                "argument --resume: expected the folder of a run, with its args.json, or an epoch "
                f"from 1 on, got {str(run_path)!r}; {list_runs(run_path)}"
            )
        parser.set_defaults(**flags_of_run(run_path))
        if args.cuda_graph or args.no_cuda_graph:  # the one that is given, not the run's
            parser.set_defaults(cuda_graph=False, no_cuda_graph=False)
        args = parser.parse_args(argv)
        args.resume, args.run_path = "last", run_path
    check_run(parser, args)
    check_training(parser, args)
    return Settings(**vars(args))


def main() -> None:
    """Train a network, or go on with it."""
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
    if settings.init and begins(settings, run):
        load_init(training)
    with run.lock("train.py"):
        refuse_other_run(settings, run)  # again: the images may have taken a while
        start = restore(training)
        if start is None:
            logger.info(f"{run.path} is finished: {settings.epochs} epochs")
            return
        told = build.describe_run(settings, data, statistics)
        told |= init_hash(settings, run.trained_with())
        run.write_arguments(run.args_file, told)
        logger.info(
            f"{settings.train_mode} of {settings.model} on {settings.dataset}: {len(data.train)} "
            f"training and {len(data.test)} test images, {data.num_classes} classes, on "
            f"{settings.device}{trained_against(training)}; to {run.path}"
        )
        if settings.neural_collapse or settings.neural_collapse_gaussian:
            logger.info(NC1_DEFINITION)
        train(training, start)
        logger.info(f"finished; {describe_peak(settings.device)}")


def trained_against(training: Training) -> str:
    """The attack that the mode trains against, for the log; "" where there is none."""
    if not training.mode.adversary:
        return ""
    settings, attack = training.settings, conditions_of(vars(training.settings))
    unit = units_of(settings.dataset)
    step = attack.step_size if math.isnan(attack.trades_step) else attack.trades_step
    words = attack_in_words(attack.steps, attack.restarts, settings.epsilon, step, unit)
    return f", against {words}"


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
    buffers = 1 if isinstance(learner.optimizer, optim.SGD) else 2
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
            told = record.measured_with(training.run.trained_under())
            unit = units_of(training.settings.dataset)
            logger.info(f"    {describe_record(told, unit)}")


if __name__ == "__main__":
    run_script(main)
