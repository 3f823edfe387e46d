"""Flags that fit together: defaults that depend on other flags, and combinations without a meaning.

Each check ends the script with one line and exit code 2. None looks at a run's folder.
"""

import argparse
import math
import os
import re
from collections.abc import Collection
from typing import Any

from robust_nc.data.datasets import DATASETS, DOWNLOADED, units_of
from robust_nc.data.inputs import PUBLISHED_ATTACKS
from robust_nc.flags import TRAIN_FLAGS
from robust_nc.measuring.autoattack import find_autoattack
from robust_nc.measuring.sweep import TASKS, asked_tasks
from robust_nc.networks import architectures
from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.parsing import Parser, Radius, parse_epochs, radius
from robust_nc.settings import flag_name
from robust_nc.training.modes import DEFAULT_BN
from utils import logger


def check_run(parser: Parser, args: argparse.Namespace) -> None:
    """The flags that both scripts share.

    `run_path` is the folder of a run that was named by it instead of by the flags.
    """
    args.run_path = getattr(args, "run_path", None)
    if parser.without_effect:
        tell(f"without effect, as in the published code: {', '.join(parser.without_effect)}")
    _check_attack(parser, args)
    _check_data(parser, args)
    _check_statistics(parser, args)
    _check_image_size(parser, args)
    _check_model_args(parser, args)
    _check_bn(parser, args)
    for flag in ("data_dir", "models_dir", "out"):
        path = getattr(args, flag, None)
        if path is not None and path.exists() and not path.is_dir():
            parser.error(f"argument {flag_name(flag)}: {path} is not a folder")


def tell(line: str) -> None:
    """Log a line, of the ranks that torchrun started the first alone."""
    if os.environ.get("RANK", "0") == "0":
        logger.info(line)


def _check_bn(parser: Parser, args: argparse.Namespace) -> None:
    """--bn, perhaps under its older name; --trades-bn is from here on what older readers expect."""
    is_trades = args.train_mode == "pgd_train_TRADES"
    if args.trades_bn == "batch" and not is_trades:
        parser.error("--trades-bn batch is for --train-mode pgd_train_TRADES; --bn for all modes")
    older = args.trades_bn if is_trades else None
    if args.bn and older and args.bn != older:
        parser.error(f"--trades-bn {older} is the older name of --bn, which is {args.bn}: drop it")
    args.bn = args.bn or older or DEFAULT_BN[args.train_mode]
    args.trades_bn = args.bn if is_trades else "frozen"


def _check_attack(parser: Parser, args: argparse.Namespace) -> None:
    """Radius, step and noise as numbers in their units, from here on."""
    unit = units_of(args.dataset)
    run = getattr(args, "run", None)  # of eval.py: a folder, which tells the step size
    if unit == 1 and (args.epsilon is None or (args.pgd_alpha is None and not run)):
        parser.error(f"--dataset {args.dataset} needs --epsilon and --pgd-alpha, in [0, 1] units")
    args.epsilon = _in_units(args.epsilon, unit, PUBLISHED_ATTACKS[args.norm][0])
    check_size(parser, "--epsilon", [args.epsilon], args)
    if args.pgd_alpha is not None:  # otherwise train.py's own, or eval.py: the run's
        args.pgd_alpha = _in_units(args.pgd_alpha, unit, math.nan)
        check_size(parser, "--pgd-alpha", [args.pgd_alpha], args)
    if args.noise_level is not None:  # eval.py: otherwise the run's
        _check_noise(parser, args)


def _check_noise(parser: Parser, args: argparse.Namespace) -> None:
    level = args.noise_level = _in_units(args.noise_level, 255, math.nan)
    if level > 255:
        parser.error(f"argument --noise-level: {level:g}/255 is more than all the range")
    if 0 < level < LIKELY["l_inf"][0]:
        tell(f"--noise-level {level:g} is {_meant(level)}")


def _meant(size: float) -> str:
    """What a size in 1/255 units is that was hardly meant in them: 0.031 was in [0, 1] units."""
    meant = f"{round(size * 255) or size * 255:.3g}"
    return f"{size:g}/255; {meant} or {meant}/255 is meant?"


def _in_units(given: Radius | float | None, unit: float, default: float) -> float:
    """A value as it was written, or that of a run, in units of which black to white has so many."""
    if isinstance(given, Radius):
        return given.in_units(unit)
    return default if given is None else given


# Norm -> the least and the most, in 1/255 units, that a radius or a step is likely to be.
LIKELY = {"l_inf": (0.1, 64.0), "l_2": (2.0, math.inf)}


def check_size(
    parser: Parser, name: str, sizes: Collection[float], args: argparse.Namespace
) -> None:
    """Refuse radii or steps that cover all images; a line where one is unlikely to be meant."""
    unit = units_of(args.dataset)
    largest = max(sizes)
    if args.norm == "l_inf" and largest > unit:
        units = "[0, 1] units" if unit == 1 else "1/255 units"
        parser.error(
            f"argument {name}: {largest:g} is more than the range from black to white, {unit} "
            f"in the {units} of --dataset {args.dataset}"
        )
    low, high = LIKELY[args.norm]
    for size in sizes:
        in_255 = size * 255 / unit
        if 0 < in_255 < low and unit == 255:
            tell(f"{name} {size:g} is {_meant(size)}")
        elif 0 < in_255 < low:
            tell(f"{name} {size:g} is {in_255:.2g}/255 of the range: is that meant?")
        elif in_255 > high and unit == 255:
            share = f"{size / 255:.0%} of the range"
            tell(f"{name} {size:g} is {size:g}/255, {share}: is that meant?")


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
            f"--model {args.model} is for images of {pixels} pixels, not {args.image_size} "
            "(--image-size); networks of other packages may take any"
        )


def _check_model_args(parser: Parser, args: argparse.Namespace) -> None:
    if not args.model_args:
        return
    if args.model in ARCHITECTURES:
        parser.error(
            f"argument --model-args: is for --model PACKAGE.MODULE:FACTORY, not for {args.model}"
        )
    keys = [word.partition("=")[0] for word in args.model_args]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        parser.error(f"argument --model-args: {twice} is given twice")
    args.model_args = tuple(sorted(args.model_args))


def check_training(parser: Parser, args: argparse.Namespace) -> None:
    """The flags of train.py."""
    if args.pgd_alpha is None:
        args.pgd_alpha = PUBLISHED_ATTACKS[args.norm][1]
    parse_epochs(parser, "--checkpoint-epochs", args.checkpoint_epochs, args.epochs)
    _check_schedule(parser, args)
    if args.resume == "last" and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite deletes it: give one of them")
    if args.resume not in (None, "last") and args.resume >= args.epochs:
        parser.error(f"--resume {args.resume}: the run has --epochs {args.epochs} only")
    for flag in TRAIN_FLAGS:
        is_given = getattr(args, flag.key) != parser.get_default(flag.key)
        if is_given and flag.only_with and not flag.is_read(vars(args)):
            other = flag.only_with[0]
            value = getattr(args, other)
            parser.error(
                f"{flag.name}: {flag_name(other)} {value} makes no use of it: leave it out"
            )
    if args.nesterov and not args.momentum:
        parser.error("--nesterov needs a --momentum above 0")
    fresh = args.resume is None
    if args.init and fresh and not args.init.is_file():
        parser.error(f"argument --init: {args.init}: no such file")
    if args.cuda_graph and args.no_cuda_graph:
        parser.error("--cuda-graph and --no-cuda-graph: give one of them")
    if args.weights_key is not None and not args.init:
        parser.error("--weights-key is for --init: which weights of its file training starts from")
    if args.cuda_graph and args.device.type != "cuda":
        parser.error(f"--cuda-graph needs a GPU; the device is {args.device}")


def _check_schedule(parser: Parser, args: argparse.Namespace) -> None:
    if args.lr_schedule is None:
        args.lr_schedule = "milestones" if args.lr_milestones else "piecewise"
    if args.lr_schedule == "milestones" and args.lr_milestones is None:
        args.lr_milestones = (0.25, 0.375)
    if args.lr_schedule == "multipledecay" and args.epochs < 10:
        parser.error("--lr-schedule multipledecay needs --epochs of 10 or more")


def check_sweep(parser: Parser, args: argparse.Namespace) -> None:
    """The flags of eval.py."""
    args.epsilons = (args.epsilon,) if args.epsilons is None else _parse_radii(parser, args)
    args.simplex = _corners(parser, args.simplex)
    if not asked_tasks(args):
        flags = [flag_name(flag) for task in TASKS for flag in task.flags]
        parser.error(f"nothing to measure: give {', '.join(flags[:-1])} or {flags[-1]}")
    if args.autoattack and not find_autoattack():
        parser.error("--autoattack needs a package: pip install torchattacks, or autoattack")
    if args.layer_batch_size and not args.layerwise:
        parser.error("--layer-batch-size is for --layerwise")
    if args.layerwise and args.compile:
        parser.error("--layerwise reads what each block puts out, which --compile hides: drop one")
    if args.ncc_layers and args.compile:
        parser.error("--ncc-layers reads what blocks put out, which --compile hides: drop one")
    if args.ncc_layers and args.model in ARCHITECTURES:  # others' blocks are known when made
        model: Any = architectures.build_model(args.model, args.image_size, 3, 2)
        unknown = unknown_layer(args, model.blocks())
        if unknown:
            parser.error(unknown)
    if args.checkpoint and args.out is None:
        parser.error("--checkpoint FILE and --out DIR go together: what to measure, and where to")
    if args.weights_key is not None and not args.checkpoint:
        parser.error("--weights-key is for --checkpoint: which weights of a file it measures")
    if args.checkpoint and args.run:
        parser.error(f"--checkpoint names files, {args.run} a run: sweep one of them at a time")
    if args.checkpoint and args.checkpoints:
        parser.error("--checkpoints chooses among a run's epochs, --checkpoint names files")


def _corners(parser: Parser, given: list[int] | None) -> tuple[int, ...] | None:
    """The three classes of --simplex, if it is given."""
    if given is None:
        return None
    classes = tuple(given) or (0, 1, 2)
    if len(set(classes)) != 3 or len(classes) != 3:
        parser.error(
            "argument --simplex: expected three different classes like 0 1 2, or none; got "
            f"{' '.join(map(str, classes))}"
        )
    return classes


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
    unit = units_of(args.dataset)
    try:
        radii = sorted({radius(text).in_units(unit) for text in args.epsilons.split(",")})
    except argparse.ArgumentTypeError:
        radii = []
    if not radii or radii[0] == 0:
        units = "[0, 1] units" if unit == 1 else "1/255 units"
        parser.error(
            f"argument --epsilons: expected radii above 0 in {units} like 2,4,8,16, or fractions "
            f"like 2/255,4/255; got {args.epsilons!r}"
        )
    check_size(parser, "--epsilons", radii, args)
    return tuple(radii)
