"""The flags of train.py alone."""

import argparse
from pathlib import Path
from typing import Any

from robust_nc.parsing import (
    milestones,
    non_negative_float,
    positive_float,
    positive_int,
    share_below_1,
)
from robust_nc.settings import Means, flag
from robust_nc.training.modes import MART_LAMBDA, TRADES_BETA
from robust_nc.training.schedules import SCHEDULES


def _resumed(text: str) -> Any:
    """The value of --resume: "last", which it has without one, an epoch, or a run's folder."""
    if text == "last":
        return text
    if not text:
        raise argparse.ArgumentTypeError("expected an epoch from 1 on, or the folder of a run")
    return positive_int(text) if text.lstrip("-").isdigit() else Path(text)


TRAINING = (
    flag("--batch-size", Means.TRAIN, type=positive_int, default=128, help="default: 128"),
    flag(
        "--cuda-graph",
        Means.FREE,
        action="store_true",
        help="on a GPU, capture the training step as a CUDA graph and replay it without Python: "
        "the default but for networks of other packages and modes of one's own",
    ),
    flag(
        "--no-cuda-graph",
        Means.FREE,
        action="store_true",
        help="do not do so where it is the default",
    ),
    flag(
        "--optimizer",
        Means.TRAIN,
        choices=("sgd", "adam", "adamw"),
        default="sgd",
        help="default: %(default)s",
    ),
    flag(
        "--weight-decay",
        Means.TRAIN,
        type=non_negative_float,
        default=5e-4,
        help="in the gradient; of adamw beside it (default: %(default)g)",
    ),
    flag(
        "--momentum",
        Means.TRAIN,
        only_with=("optimizer", ("sgd",)),
        type=share_below_1,
        default=0.9,
        help="of sgd (default: %(default)g)",
    ),
    flag(
        "--nesterov",
        Means.TRAIN,
        only_with=("optimizer", ("sgd",)),
        action="store_true",
        help="Nesterov's momentum, of sgd",
    ),
    flag(
        "--lr-schedule",
        Means.TRAIN,
        former="piecewise",  # of runs before there was the flag; the default stands in checks.py
        words="schedule of the learning rate",
        choices=SCHEDULES,
        help="piecewise divides --lr-max by 10 after a quarter of the epochs and by 100 after "
        "37.5 %% of them, in a short run as well; the others are in docs/flags.md (default: "
        "piecewise; with --lr-milestones, milestones)",
    ),
    flag(
        "--lr-drop-epoch",
        Means.TRAIN,
        only_with=("lr_schedule", ("onedrop",)),
        words="drop of the learning rate after epoch",
        type=positive_int,
        default=100,
        help="epoch at which the schedule onedrop drops (default: %(default)s)",
    ),
    flag(
        "--lr-one-drop",
        Means.TRAIN,
        only_with=("lr_schedule", ("onedrop",)),
        type=non_negative_float,
        default=0.01,
        help="what it drops to (default: %(default)s)",
    ),
    flag(
        "--lr-milestones",
        Means.TRAIN,
        only_with=("lr_schedule", ("milestones",)),
        type=milestones,
        metavar="M,...",
        help="where the schedule milestones multiplies the rate: shares of the epochs, below 1, or "
        "epochs (default: 0.25,0.375)",
    ),
    flag(
        "--lr-gamma",
        Means.TRAIN,
        only_with=("lr_schedule", ("milestones",)),
        type=positive_float,
        default=0.1,
        help="by what it does (default: %(default)s)",
    ),
    flag(
        "--init",
        Means.TRAIN,
        type=Path,
        metavar="FILE",
        help="start from the weights of this checkpoint, with the optimiser's state at zero",
    ),
    flag(
        "--weights-key",
        Means.TRAIN,
        metavar="KEY",
        help="which weights of a file of --init with several sets, as a line of the log names them",
    ),
    flag(
        "--trades-beta",
        Means.TRAIN,
        only_with=("train_mode", ("pgd_train_TRADES",)),
        words="beta",
        type=non_negative_float,
        default=TRADES_BETA,
        help="weight of the KL term of TRADES (default: %(default)g)",
    ),
    flag(
        "--mart-lambda",
        Means.TRAIN,
        only_with=("train_mode", ("pgd_train_MART",)),
        words="lambda",
        type=non_negative_float,
        default=MART_LAMBDA,
        help="weight of the KL term of MART (default: %(default)g)",
    ),
    flag(
        "--neural-collapse",
        Means.RECORD,
        action="store_true",
        help="per epoch, NC of the training images; under AT, TRADES and MART also of the "
        "perturbed images that the epoch trained on",
    ),
    flag(
        "--neural-collapse-gaussian",
        Means.RECORD,
        action="store_true",
        help="per epoch, NC of the training images under normal noise renormed to an l_2 norm "
        "of at most 16 times --noise-level",
    ),
    flag(
        "--checkpoint-epochs",
        Means.FREE,
        metavar="EPOCHS",
        help="epochs whose checkpoint is kept: 0,10,399, a slice like ::10, or log for ten per "
        "decade (default: all)",
    ),
    flag(
        "--resume",
        Means.START,
        type=_resumed,
        nargs="?",
        const="last",
        metavar="N|RUN_FOLDER",
        help="go on with the run in the folder; with N, train epoch N from model_{N-1}.pth; with a "
        "run's folder, go on with that one, with the flags of its args.json",
    ),
    flag(
        "--overwrite",
        Means.START,
        action="store_true",
        help="delete the run that is in the folder first; with --resume N from epoch N on",
    ),
)
