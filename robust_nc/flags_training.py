"""The flags of train.py alone."""

from typing import Any

from robust_nc.parsing import non_negative_float, positive_int
from robust_nc.settings import Means, flag
from robust_nc.training.modes import MART_LAMBDA, TRADES_BETA
from robust_nc.training.schedules import SCHEDULES


def _resumed_epoch(text: str) -> Any:
    """The value of --resume: "last", which it has without one, or the number of an epoch."""
    return text if text == "last" else positive_int(text)


TRAINING = (
    flag("--batch-size", Means.TRAIN, type=positive_int, default=128, help="default: 128"),
    flag(
        "--cuda-graph",
        Means.FREE,
        action="store_true",
        help="on a GPU, capture the training step as a CUDA graph and replay it without Python",
    ),
    flag("--optimizer", Means.TRAIN, choices=("sgd", "adam"), default="sgd"),
    flag(
        "--lr-schedule",
        Means.TRAIN,
        choices=SCHEDULES,
        default="piecewise",
        help="piecewise divides --lr-max by 10 after a quarter of the epochs and by 100 after "
        "37.5 %% of them, in a short run as well; the others are in docs/flags.md (default: "
        "%(default)s)",
    ),
    flag(
        "--lr-drop-epoch",
        Means.TRAIN,
        only_with=("lr_schedule", ("onedrop",)),
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
        "--trades-beta",
        Means.TRAIN,
        only_with=("train_mode", ("pgd_train_TRADES",)),
        type=non_negative_float,
        default=TRADES_BETA,
        help="weight of the KL term of TRADES (default: %(default)g)",
    ),
    flag(
        "--mart-lambda",
        Means.TRAIN,
        only_with=("train_mode", ("pgd_train_MART",)),
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
        Means.FREE,
        type=_resumed_epoch,
        nargs="?",
        const="last",
        metavar="N",
        help="go on with the run in the folder; with N, train epoch N from model_{N-1}.pth",
    ),
    flag(
        "--overwrite",
        Means.FREE,
        action="store_true",
        help="delete the run that is in the folder first; with --resume N from epoch N on",
    ),
)
