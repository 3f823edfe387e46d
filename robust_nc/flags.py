"""The flags of train.py and eval.py: each row says what the flag means when runs are compared.

A new flag is one row, here or, where only one script has it, in flags_training.py or
flags_sweep.py, and the line that reads it.
"""

import argparse
from pathlib import Path

import torch

from attacks import NORMS
from robust_nc.data.datasets import DATASETS, DOWNLOADED
from robust_nc.flags_sweep import SWEEP
from robust_nc.flags_training import TRAINING
from robust_nc.networks import any_network
from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.parsing import (
    Parser,
    channel_mean,
    channel_std,
    image_size,
    model_argument,
    non_negative_float,
    positive_int,
    radius,
    run_name,
    seed_number,
)
from robust_nc.published_flags import OF_EVAL, OF_TRAIN, PublishedFlag
from robust_nc.results.conditions import FORMER
from robust_nc.settings import ALWAYS_THERE, Flag, Means, flag, keys_that
from robust_nc.training.modes import BN, MODES, TRAIN_MODES, bn_of
from utils import select_device

DEFAULT = "default: %(default)s"
PRECISIONS = ("fp32", "tf32", "bf16")


def _model_name(text: str) -> str:
    """Model names in any case, as ARCHITECTURES spells them; factories as they are."""
    if any_network.is_factory(text):
        try:
            any_network.find_factory(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text
    for name in ARCHITECTURES:
        if name.lower() == text.lower():
            return name
    raise argparse.ArgumentTypeError(
        f"expected {', '.join(ARCHITECTURES)} or PACKAGE.MODULE:FACTORY, got {text!r}"
    )


def _device(text: str) -> torch.device:
    try:
        return select_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be used here: {error}") from error


RUN = (
    flag(
        "--model",
        Means.NAME,
        words="",
        type=_model_name,
        metavar="NAME",
        default="vgg11bn",
        help=f"{', '.join(ARCHITECTURES)}, or PACKAGE.MODULE:FACTORY for any nn.Module that "
        "factory(num_classes=...) makes, like torchvision.models:resnet18 (default: %(default)s)",
    ),
    flag(
        "--model-args",
        Means.TRAIN,
        type=model_argument,
        nargs="+",
        metavar="KEY=VALUE",
        help="for the factory of --model: numbers, true, false, none or strings, like depth=4 "
        "(eval.py: those of the run)",
    ),
    flag(
        "--train-mode",
        Means.NAME,
        choices=TRAIN_MODES,
        default="std_train",
        help="standard, PGD-adversarial, TRADES or MART training (default: %(default)s)",
    ),
    flag(
        "--bn",
        Means.NAME,
        former=bn_of,
        choices=BN,
        help="batch norm in training: of the batch's statistics, or frozen at its initial running "
        "ones (default: batch; pgd_train_TRADES: frozen, as in the published code)",
    ),
    flag(
        "--trades-bn",
        Means.START,  # --bn tells it
        choices=BN,
        help="the older name of --bn, for pgd_train_TRADES",
    ),
    flag(
        "--run-name",
        Means.NAME,
        words="run",
        type=run_name,
        metavar="NAME",
        help="sets runs apart that the rest of the path does not tell: folder seed1_NAME",
    ),
    flag("--seed", Means.SEED, type=seed_number, default=1, help=DEFAULT),
    flag(
        "--epochs",
        Means.TRAIN,
        former=ALWAYS_THERE,
        type=positive_int,
        default=400,
        help="train.py: 400; eval.py: those of the run, with which a value given must agree",
    ),
    flag(
        "--lr-max",
        Means.TRAIN,
        former=ALWAYS_THERE,
        words="learning rate",
        type=non_negative_float,
        default=0.1,
        help="peak learning rate (train.py: 0.1; eval.py compares it with the run's where given)",
    ),
    flag(
        "--models-dir",
        Means.START,
        type=Path,
        default=Path("models"),
        help="where run folders are made (default: %(default)s)",
    ),
)

DATA = (
    flag("--dataset", Means.NAME, words="", choices=DATASETS, default="cifar", help=DEFAULT),
    flag(
        "--data-dir",
        Means.PLACE,
        type=Path,
        default=Path("data"),
        help="folder of the data, downloaded to it where published (default: %(default)s)",
    ),
    flag(
        "--data-name",
        Means.NAME,
        metavar="NAME",
        help="what --dataset folder is called in the run's path (default: folder)",
    ),
    flag(
        "--data-url",
        Means.PLACE,
        help=f"mirror to download from, for {', '.join(DOWNLOADED)}; checksums hold",
    ),
    flag(
        "--mean",
        Means.TRAIN,
        former=ALWAYS_THERE,
        type=channel_mean,
        nargs="+",
        metavar="M",
        help="what is subtracted from images in [0, 1], a number per channel; with --std (default: "
        "the data's; eval.py: as the run was trained, or as a checkpoint file brings it along)",
    ),
    flag(
        "--std",
        Means.TRAIN,
        former=ALWAYS_THERE,
        type=channel_std,
        nargs="+",
        metavar="S",
        help="by what they are divided then",
    ),
    flag(
        "--no-normalisation",
        Means.RECORD,  # mean and std tell what is trained
        action="store_true",
        help="the network takes images in [0, 1] as they are",
    ),
    flag(
        "--image-size",
        Means.TRAIN | Means.MEASURE,
        former=ALWAYS_THERE,
        type=image_size,
        metavar="N",
        help="size that images of --dataset folder are fitted to; 32 or 160 picks the "
        "architecture, networks of other packages may take any (default: 32)",
    ),
    flag(
        "--limit-train",
        Means.TRAIN | Means.MEASURE | Means.SUBSET,
        words="training images",
        type=positive_int,
        metavar="N",
        help="keep a class-balanced subset of N training images, drawn with the seed",
    ),
    flag(
        "--limit-test",
        Means.RECORD | Means.MEASURE | Means.SUBSET,
        words="test images",
        type=positive_int,
        metavar="N",
        help="likewise for the test images",
    ),
)

ATTACK = (
    flag("--norm", Means.NAME, words="", choices=NORMS, default="l_inf", help=DEFAULT),
    flag(
        "--epsilon",
        Means.NAME,
        former=ALWAYS_THERE,
        type=radius,
        help="radius, in 1/255 units, for mnist in [0, 1] units, or as a fraction like 8/255 "
        "(default: 8, for l_2 128)",
    ),
    flag(
        "--pgd-alpha",
        Means.TRAIN | Means.MEASURE | Means.ROW,
        former=ALWAYS_THERE,
        words="step size of PGD",
        type=radius,
        help="step size, given like --epsilon (default: 2, for l_2 15; eval.py: the run's)",
    ),
    flag(
        "--attack-iters",
        Means.TRAIN | Means.MEASURE | Means.ROW,
        former=FORMER["attack_iters"],
        words="steps of PGD",
        type=positive_int,
        default=10,
        help="steps (default: 10; eval.py: those of the run)",
    ),
    flag(
        "--restarts",
        Means.TRAIN | Means.MEASURE | Means.ROW,
        former=FORMER["restarts"],
        only_with=("train_mode", tuple(m.train_mode for m in MODES.values() if m.restarts)),
        type=positive_int,
        default=1,
        help="of PGD (default: 1; eval.py: those of the run)",
    ),
    flag(
        "--noise-level",
        Means.TRAIN | Means.MEASURE | Means.ROW,
        former=FORMER["noise_level"],
        type=radius,
        default="8",
        help="noise of --neural-collapse-gaussian in 1/255 units (default: 8; eval.py: the run's)",
    ),
)

MACHINE = (
    flag("--device", Means.FREE, type=_device, default="auto", help="auto, cpu, cuda, cuda:1, ..."),
    flag(
        "--precision",
        Means.TRAIN | Means.MEASURE | Means.ROW,
        former=FORMER["precision"],
        choices=PRECISIONS,
        default="tf32",
        help="of matrix products; tf32 is fp32 where the device has none (default: %(default)s)",
    ),
    flag(
        "--compile",
        Means.FREE,
        action="store_true",
        help="compile the network with torch.compile, for full batches: the same results within "
        "rounding, after a minute or so of compiling",
    ),
    flag(
        "--eval-batch-size",
        Means.FREE,
        type=positive_int,
        metavar="N",
        help="images per batch in eval mode, halved where the memory does not hold them (default: "
        "1024 on a GPU, 128 on a CPU; for 160 pixels 128 and 5)",
    ),
)

SHARED = {"the run": RUN, "data": DATA, "attack and noise": ATTACK, "machine": MACHINE}
SHARED_FLAGS = tuple(flag for rows in SHARED.values() for flag in rows)
# All flags of a script.
TRAIN_FLAGS = (*SHARED_FLAGS, *TRAINING)
SWEEP_FLAGS = (*SHARED_FLAGS, *SWEEP)


def train_parser() -> Parser:
    """The flags of train.py."""
    return _parser(
        "Train one network with a checkpoint per epoch.",
        SHARED | {"training": TRAINING},
        OF_TRAIN,
    )


def sweep_parser() -> Parser:
    """The flags of eval.py."""
    parser = _parser(
        "Sweep the checkpoints of a run with the neural-collapse metrics.",
        SHARED | {"the sweep": SWEEP},
        OF_EVAL,
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        metavar="RUN_FOLDER",
        help="the run to sweep, in place of the flags that name it; what is not given is the run's",
    )
    # What is not given is what the run was trained with; the precision is the machine's.
    parser.set_defaults(**dict.fromkeys(keys_that((*RUN, *DATA, *ATTACK), Means.TRAIN)))
    return parser


def _parser(
    description: str, tables: dict[str, tuple[Flag, ...]], published: tuple[PublishedFlag, ...]
) -> Parser:
    parser = Parser(published, description=description)
    for title, rows in tables.items():
        group = parser.add_argument_group(title)
        for row in rows:
            group.add_argument(row.name, **row.options)
    return parser
