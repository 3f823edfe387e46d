"""Flags that fit together: defaults that depend on other flags, and combinations without a meaning.

Each check ends the script with one line and exit code 2. None looks at a run's folder.
"""

import argparse
import math
import re
from typing import Any

from robust_nc.data.datasets import DATASETS, DOWNLOADED
from robust_nc.data.inputs import PUBLISHED_ATTACKS, asked_inputs
from robust_nc.flags import TRAIN_FLAGS
from robust_nc.measuring.autoattack import find_autoattack
from robust_nc.networks import network as networks
from robust_nc.networks.network import ARCHITECTURES
from robust_nc.parsing import Parser, non_negative_float, parse_epochs
from robust_nc.training.modes import mode_name


def check_run(parser: Parser, args: argparse.Namespace) -> None:
    """The flags that both scripts share."""
    _check_attack(parser, args)
    _check_data(parser, args)
    _check_statistics(parser, args)
    _check_image_size(parser, args)
    try:
        mode_name(args.train_mode, args.trades_bn)
    except ValueError:
        parser.error("--trades-bn batch is for --train-mode pgd_train_TRADES")
    for flag in ("data_dir", "models_dir", "out"):
        path = getattr(args, flag, None)
        if path is not None and path.exists() and not path.is_dir():
            parser.error(f"argument --{flag.replace('_', '-')}: {path} is not a folder")


def _check_attack(parser: Parser, args: argparse.Namespace) -> None:
    args.alpha_given = args.pgd_alpha is not None
    if DATASETS[args.dataset].epsilon_range == 1:
        given = f"--dataset {args.dataset}"
        if args.epsilon is None or args.pgd_alpha is None:
            parser.error(f"{given} needs --epsilon and --pgd-alpha, in [0, 1] units")
        if args.norm == "l_inf" and max(args.epsilon, args.pgd_alpha) > 1:
            parser.error(f"--epsilon and --pgd-alpha are in [0, 1] units for {given}")
    epsilon, step_size = PUBLISHED_ATTACKS[args.norm]
    args.epsilon = epsilon if args.epsilon is None else args.epsilon
    args.pgd_alpha = step_size if args.pgd_alpha is None else args.pgd_alpha


def _check_data(parser: Parser, args: argparse.Namespace) -> None:
    source = DATASETS[args.dataset]
    if args.data_url and not source.downloaded:
        parser.error(f"--data-url is for {', '.join(DOWNLOADED)}; {args.dataset} is not downloaded")
    if args.data_url and not args.data_url.startswith(("http://", "https://")):
        parser.error(f"--data-url: expected http:// or https://, got {args.data_url!r}")
    if args.data_name is None:
        return
    if args.dataset != "folder":
        parser.error("--data-name is for --dataset folder; other data sets have their own name")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", args.data_name) or args.data_name in DATASETS:
        parser.error(
            "argument --data-name: expected letters, digits, '.', '_' and '-', and no name of "
            f"another data set; got {args.data_name!r}"
        )


def _check_statistics(parser: Parser, args: argparse.Namespace) -> None:
    if (args.mean is None) != (args.std is None):
        parser.error("--mean and --std go together, a number for each channel")
    if args.mean and len(args.mean) != len(args.std):
        parser.error(f"--mean has {len(args.mean)} numbers, --std {len(args.std)}")
    if args.no_normalisation and args.mean:
        parser.error("--no-normalisation leaves out what --mean and --std ask for: drop one")


def _check_image_size(parser: Parser, args: argparse.Namespace) -> None:
    source = DATASETS[args.dataset]
    if args.image_size and len(source.image_sizes) == 1:
        parser.error("--image-size is for --dataset folder; other data sets have their own size")
    args.image_size = args.image_size or source.image_sizes[0]
    sizes = ARCHITECTURES.get(args.model)  # None of a factory, whose model will tell
    if sizes and args.image_size not in sizes:
        pixels = " or ".join(map(str, sizes))
        parser.error(
            f"--model {args.model} is for images of {pixels} pixels, not {args.image_size}"
        )


def check_training(parser: Parser, args: argparse.Namespace) -> None:
    """The flags of train.py."""
    parse_epochs(parser, "--checkpoint-epochs", args.checkpoint_epochs, args.epochs)
    if args.resume == "last" and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite deletes it: give one of them")
    if args.resume not in (None, "last") and args.resume >= args.epochs:
        parser.error(f"--resume {args.resume}: the run has --epochs {args.epochs} only")
    if args.lr_schedule == "multipledecay" and args.epochs < 10:
        parser.error("--lr-schedule multipledecay needs --epochs of 10 or more")
    for flag in TRAIN_FLAGS:
        by_mode = flag.only_with is not None and flag.only_with[0] == "train_mode"
        unread = by_mode and not flag.is_read(vars(args))
        if unread and getattr(args, flag.key) != parser.get_default(flag.key):
            parser.error(f"{flag.name}: --train-mode {args.train_mode} makes no use of it")
    if args.cuda_graph and args.device.type != "cuda":
        parser.error(f"--cuda-graph needs a GPU; the device is {args.device}")


def check_sweep(parser: Parser, args: argparse.Namespace) -> None:
    """The flags of eval.py."""
    args.epsilons = (args.epsilon,) if args.epsilons is None else _parse_radii(parser, args)
    if not (asked_inputs(args) or args.layerwise or args.ncc or args.ncc_layers or args.autoattack):
        parser.error(
            "nothing to measure: give --neural-collapse, --neural-collapse-gaussian, "
            "--neural-collapse-targeted, --layerwise, --ncc, --ncc-layers or --autoattack"
        )
    if args.autoattack and not find_autoattack():
        parser.error("--autoattack needs a package: pip install torchattacks, or autoattack")
    if args.layer_batch_size and not args.layerwise:
        parser.error("--layer-batch-size is for --layerwise")
    if args.layerwise and args.compile:
        parser.error("--layerwise reads what each block puts out, which --compile hides: drop one")
    if args.ncc_layers and args.compile:
        parser.error("--ncc-layers reads what blocks put out, which --compile hides: drop one")
    if args.ncc_layers and args.model in ARCHITECTURES:  # others' blocks are known when made
        model: Any = networks.build_model(args.model, args.image_size, 3, 2)
        unknown = unknown_layer(args, model.blocks())
        if unknown:
            parser.error(unknown)
    if args.checkpoint and args.out is None:
        parser.error("--checkpoint FILE and --out DIR go together: what to measure, and where to")
    if args.checkpoint and args.run:
        parser.error(f"--checkpoint names files, {args.run} a run: sweep one of them at a time")
    if args.checkpoint and args.checkpoints:
        parser.error("--checkpoints chooses among a run's epochs, --checkpoint names files")


def unknown_layer(settings: argparse.Namespace, blocks: list[tuple[str, Any]]) -> str | None:
    """One line on what --ncc-layers names and is no block, if anything."""
    names = [name for name, _ in blocks]
    unknown = [name for name in settings.ncc_layers or () if name not in names]
    if not unknown:
        return None
    return (
        f"argument --ncc-layers: {settings.model} has no block {unknown[0]!r}; its blocks are "
        f"{', '.join(names)}"
    )


def _parse_radii(parser: Parser, args: argparse.Namespace) -> tuple[float, ...]:
    """The radii of --epsilons, ascending."""
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
