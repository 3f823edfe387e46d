"""The flags that train.py and eval.py share, and what is made of them.

Settings are the flags as the script will use them; they are read-only. What is derived from them,
a folder, the data, networks, is a value of its own.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import torch

from attacks import NORMS
from robust_nc.data.datasets import DATASETS, DOWNLOADED
from robust_nc.data.inputs import PUBLISHED_ATTACKS
from robust_nc.networks import any_network
from robust_nc.networks.network import ARCHITECTURES
from robust_nc.settings import select_epochs
from robust_nc.training.modes import TRAIN_MODES, mode_name
from utils import select_device

PRECISIONS = ("fp32", "tf32", "bf16")


class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        for word in takewhile("--".__ne__, words):
            if word.startswith("--") and word.endswith("=--"):  # which argparse takes for no value
                self.error(f"argument {word[:-3]}: expected a value, got '--'")
        return super().parse_known_args(words, namespace)


def _number(kind: type, accepted: Callable, description: str) -> Callable[[str], Any]:
    """An argparse type."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepted(value):
            raise argparse.ArgumentTypeError(f"expected {description}, got {text!r}")
        return value

    return parse


LARGEST_COUNT = 1_000_000


positive_int = _number(
    int, lambda value: 0 < value <= LARGEST_COUNT, f"a whole number from 1 to {LARGEST_COUNT}"
)


seed_number = _number(
    int, lambda value: 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}"
)


non_negative_float = _number(float, lambda value: 0 <= value < math.inf, "a number, 0 or above")


channel_mean = _number(
    float, lambda value: 0 <= value <= 1, "a number from 0 to 1 (black to white) per channel"
)


channel_std = _number(
    float, lambda value: 0 < value <= 1, "a number above 0, up to 1 (black to white), per channel"
)


def parse_epochs(parser: Parser, flag: str, text: str | None, epochs: int) -> list[int]:
    """select_epochs for the value of a flag; ends the script where it has none."""
    try:
        return select_epochs(text, epochs)
    except ValueError:
        parser.error(
            f"argument {flag}: expected epochs below {epochs} like 0,10,{epochs - 1}, a slice like "
            f"::10, or log; got {text!r}"
        )


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


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that train.py and eval.py share: they name the run, its data and its attack."""
    _add_run_group(parser.add_argument_group("the run"))
    _add_data_group(parser.add_argument_group("data"))
    _add_attack_group(parser.add_argument_group("attack and noise"))
    _add_machine_group(parser.add_argument_group("machine"))


def _add_run_group(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--model",
        type=_model_name,
        metavar="NAME",
        default="vgg11bn",
        help=f"{', '.join(ARCHITECTURES)}, or PACKAGE.MODULE:FACTORY for any nn.Module that "
        "factory(num_classes=...) makes, like torchvision.models:resnet18 (default: %(default)s)",
    )
    run.add_argument(
        "--train-mode",
        choices=TRAIN_MODES,
        default="std_train",
        help="standard, PGD-adversarial, TRADES or MART training (default: %(default)s)",
    )
    run.add_argument(
        "--trades-bn",
        choices=("frozen", "batch"),
        default="frozen",
        help="batch norm under TRADES: frozen at its initial statistics, as in the published "
        "code, or batch statistics, as in the TRADES paper (default: %(default)s)",
    )
    run.add_argument("--seed", type=seed_number, default=1, help="default: %(default)s")
    run.add_argument(
        "--epochs",
        type=positive_int,
        default=400,
        help="train.py: 400; eval.py: those of the run, with which a value given must agree",
    )
    run.add_argument(
        "--lr-max",
        type=non_negative_float,
        default=0.1,
        help="peak learning rate (train.py: 0.1; eval.py compares it with the run's where given)",
    )
    run.add_argument(
        "--models-dir",
        type=Path,
        default=Path("models"),
        help="where run folders are made (default: %(default)s)",
    )


def _add_data_group(data: argparse._ArgumentGroup) -> None:
    data.add_argument("--dataset", choices=DATASETS, default="cifar", help="default: %(default)s")
    data.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder of the data, downloaded to it where published (default: %(default)s)",
    )
    data.add_argument(
        "--data-name",
        metavar="NAME",
        help="what --dataset folder is called in the run's path (default: folder)",
    )
    data.add_argument(
        "--data-url", help=f"mirror to download from, for {', '.join(DOWNLOADED)}; checksums hold"
    )
    data.add_argument(
        "--mean",
        type=channel_mean,
        nargs="+",
        metavar="M",
        help="what is subtracted from images in [0, 1], a number per channel; with --std (default: "
        "the data's; eval.py: as the run was trained, or as a checkpoint file brings it along)",
    )
    data.add_argument(
        "--std", type=channel_std, nargs="+", metavar="S", help="by what they are divided then"
    )
    data.add_argument(
        "--no-normalisation",
        action="store_true",
        help="the network takes images in [0, 1] as they are",
    )
    data.add_argument(
        "--image-size",
        type=int,
        choices=sorted({size for source in DATASETS.values() for size in source.image_sizes}),
        help="size that images of --dataset folder are fitted to; picks the architecture "
        "(default: 32)",
    )
    data.add_argument(
        "--limit-train",
        type=positive_int,
        metavar="N",
        help="keep a class-balanced subset of N training images, drawn with the seed",
    )
    data.add_argument(
        "--limit-test", type=positive_int, metavar="N", help="likewise for the test images"
    )


def _add_attack_group(attack: argparse._ArgumentGroup) -> None:
    attack.add_argument("--norm", choices=NORMS, default="l_inf", help="default: %(default)s")
    attack.add_argument(
        "--epsilon",
        type=non_negative_float,
        help="radius, in 1/255 units, for mnist in [0, 1] units (default: 8, for l_2 128)",
    )
    attack.add_argument(
        "--pgd-alpha",
        type=non_negative_float,
        help="step size in the units of --epsilon (default: 2, for l_2 15)",
    )
    attack.add_argument(
        "--attack-iters", type=positive_int, default=10, help="steps (default: %(default)s)"
    )
    attack.add_argument(
        "--restarts", type=positive_int, default=1, help="of PGD (default: %(default)s)"
    )
    attack.add_argument(
        "--noise-level",
        type=non_negative_float,
        default=8.0,
        help="noise of --neural-collapse-gaussian in 1/255 units (default: %(default)s)",
    )


def _add_machine_group(machine: argparse._ArgumentGroup) -> None:
    machine.add_argument(
        "--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:1, ..."
    )
    machine.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="tf32",
        help="of matrix products; tf32 is fp32 where the device has none (default: %(default)s)",
    )
    machine.add_argument(
        "--compile",
        action="store_true",
        help="compile the network with torch.compile: the same results within rounding, after a "
        "minute or so of compiling",
    )
    machine.add_argument(
        "--eval-batch-size",
        type=positive_int,
        metavar="N",
        help="images per batch in eval mode, halved where the memory does not hold them (default: "
        "1024 on a GPU, 128 on a CPU; for 160 pixels 128 and 5)",
    )


def finish_run_flags(parser: Parser, args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on other flags; refuse combinations without a meaning."""
    source = DATASETS[args.dataset]
    _finish_attack_flags(parser, args)
    if args.data_url and not source.downloaded:
        parser.error(f"--data-url is for {', '.join(DOWNLOADED)}; {args.dataset} is not downloaded")
    if args.data_url and not args.data_url.startswith(("http://", "https://")):
        parser.error(f"--data-url: expected http:// or https://, got {args.data_url!r}")
    if args.data_name is not None:
        if args.dataset != "folder":
            parser.error("--data-name is for --dataset folder; other data sets have their own name")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", args.data_name) or args.data_name in DATASETS:
            parser.error(
                "argument --data-name: expected letters, digits, '.', '_' and '-', and no name of "
                f"another data set; got {args.data_name!r}"
            )
    if (args.mean is None) != (args.std is None):
        parser.error("--mean and --std go together, a number for each channel")
    if args.mean and len(args.mean) != len(args.std):
        parser.error(f"--mean has {len(args.mean)} numbers, --std {len(args.std)}")
    if args.no_normalisation and args.mean:
        parser.error("--no-normalisation leaves out what --mean and --std ask for: drop one")
    if args.image_size and len(source.image_sizes) == 1:
        parser.error("--image-size is for --dataset folder; other data sets have their own size")
    args.image_size = args.image_size or source.image_sizes[0]
    sizes = ARCHITECTURES.get(args.model)  # None of a factory, whose model will tell
    if sizes and args.image_size not in sizes:
        told = " or ".join(map(str, sizes))
        parser.error(f"--model {args.model} is for images of {told} pixels, not {args.image_size}")
    try:
        mode_name(args.train_mode, args.trades_bn)
    except ValueError:
        parser.error("--trades-bn batch is for --train-mode pgd_train_TRADES")
    for flag in ("data_dir", "models_dir", "out"):
        path = getattr(args, flag, None)
        if path is not None and path.exists() and not path.is_dir():
            parser.error(f"argument --{flag.replace('_', '-')}: {path} is not a folder")


def _finish_attack_flags(parser: Parser, args: argparse.Namespace) -> None:
    if DATASETS[args.dataset].epsilon_range == 1:
        given = f"--dataset {args.dataset}"
        if args.epsilon is None or args.pgd_alpha is None:
            parser.error(f"{given} needs --epsilon and --pgd-alpha, in [0, 1] units")
        if args.norm == "l_inf" and max(args.epsilon, args.pgd_alpha) > 1:
            parser.error(f"--epsilon and --pgd-alpha are in [0, 1] units for {given}")
    epsilon, step_size = PUBLISHED_ATTACKS[args.norm]
    args.epsilon = epsilon if args.epsilon is None else args.epsilon
    args.pgd_alpha = step_size if args.pgd_alpha is None else args.pgd_alpha


def parse_radii(parser: Parser, args: argparse.Namespace) -> tuple[float, ...]:
    """The radii of --epsilons, ascending; ends the script where it has none."""
    unit = DATASETS[args.dataset].epsilon_range
    highest = 1.0 if unit == 1 and args.norm == "l_inf" else math.inf
    try:
        radii = sorted({non_negative_float(text) for text in args.epsilons.split(",")})
    except argparse.ArgumentTypeError:
        radii = []
    if not radii or radii[0] == 0 or radii[-1] > highest:
        units = "[0, 1] units" if unit == 1 else "1/255 units"
        parser.error(
            f"argument --epsilons: expected radii above 0 in {units} like 2,4,8,16; got "
            f"{args.epsilons!r}"
        )
    return tuple(radii)
