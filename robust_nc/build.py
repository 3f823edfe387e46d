"""What is made of settings: the run's folder, data, networks, the attack, and what is trained."""

import math
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from attacks import CHUNK
from robust_nc.data.datasets import Dataset, Selection, load_dataset, units_of
from robust_nc.data.inputs import Strength
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.networks import any_network, architectures
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network, Statistics
from robust_nc.parsing import argument_value
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import STATISTICS, Settings, difference
from robust_nc.training.cuda_graphs import ReplayedStep, is_replayed
from robust_nc.training.epoch import Training
from robust_nc.training.modes import MODES, Learner, mode_name
from utils import (
    InputError,
    can_compile,
    computes_bf16,
    keep_freed_memory,
    logger,
    seed_everything,
)


def run_folder(settings: Settings) -> RunFolder:
    """The folder that the flags name, not opened yet."""
    mode = mode_name(settings.train_mode, settings.bn)
    model = any_network.folder_name(settings.model)
    path = settings.models_dir / (settings.data_name or settings.dataset) / model
    seed = f"seed{settings.seed}" + (f"_{settings.run_name}" if settings.run_name else "")
    path = settings.run_path or path / settings.norm / f"eps{settings.epsilon}" / mode / seed
    return RunFolder(path, standard=not MODES[mode].adversary)


def strength(settings: Settings) -> Strength:
    """How far inputs are perturbed, in units of images in [0, 1]."""
    unit = units_of(settings.dataset)
    attack = {
        "epsilon": settings.epsilon / unit,
        "step_size": settings.pgd_alpha / unit,
        "steps": settings.attack_iters,
        "norm": settings.norm,
    }
    return Strength(attack, settings.restarts, settings.noise_level / 255, settings.epsilon)


def strengths(settings: Settings) -> tuple[Strength, ...]:
    """One strength for each of --epsilons."""
    return tuple(
        strength(settings.replace(epsilon=radius, pgd_alpha=settings.step_sizes[f"{radius:g}"]))
        for radius in settings.epsilons
    )


def load_data(settings: Settings) -> Dataset:
    """The data that the flags name, on the device."""
    keep_freed_memory()
    names = ("data_dir", "image_size", "seed", "limit_train", "limit_test", "data_url")
    chosen = Selection(**{name: getattr(settings, name) for name in names})
    data = load_dataset(settings.dataset, chosen)
    refuse_large_radii(settings, data)
    return data.to(settings.device)


def refuse_large_radii(settings: Settings, data: Dataset) -> None:
    """Stop where a radius or the step is larger than any image: under l_2 that depends on its size.

    Raises:
        InputError: one is; the line names its flag.
    """
    unit = units_of(settings.dataset)
    largest = unit * (1 if settings.norm == "l_inf" else math.sqrt(data.train.images[0].numel()))
    sizes = {"--epsilon": settings.epsilon, "--pgd-alpha": settings.pgd_alpha}
    sizes["--epsilons"] = max(getattr(settings, "epsilons", (0.0,)))
    for name, size in sizes.items():
        if size > largest:
            raise InputError(
                f"{name} {size:g}: no two of these images are further apart than {largest:g} "
                f"under {settings.norm}"
            )


def statistics_given(settings: Settings) -> bool:
    """Whether the flags say what images are normalised with."""
    return settings.mean is not None or settings.no_normalisation


def normalisation(
    settings: Settings, data: Dataset, trained: dict[str, Any] | None = None
) -> Statistics:
    """What images are normalised with: the flags' mean and std, those of a run, or the data's own.

    Args:
        trained: what the args.json of the run tells.

    Raises:
        InputError: not a number for each channel.
    """
    channels, trained = data.train.images.shape[1], trained or {}
    if settings.no_normalisation:
        return (0.0,) * channels, (1.0,) * channels
    if settings.mean is None:
        return tuple(trained.get("mean", data.mean)), tuple(trained.get("std", data.std))
    if len(settings.mean) != channels:
        raise InputError(
            f"--mean and --std take a number for each of {channels} channels, got "
            f"{len(settings.mean)}"
        )
    return tuple(settings.mean), tuple(settings.std)


def build_networks(
    settings: Settings, data: Dataset, statistics: Statistics | None = None
) -> tuple[Network, FoldedNetwork]:
    """The network that the flags name, with fresh weights, and the one for eval mode.

    The second takes over the first one's weights by `refold`.

    Args:
        statistics: what images are normalised with, if not as the flags say.

    Raises:
        InputError: a factory's model that cannot be used.
    """
    seed_everything(settings.seed)
    shape, classes = tuple(data.train.images.shape[1:]), data.num_classes
    arguments = dict(word.split("=", 1) for word in settings.model_args or ())
    given = {key: argument_value(value) for key, value in arguments.items()}
    of_factory = {"arguments": given} if given else {}
    model = architectures.build_model(
        settings.model, settings.image_size, shape[0], classes, **of_factory
    )
    anatomy = None
    if any_network.is_factory(settings.model):
        anatomy = any_network.examine(settings.model, model, shape, classes)
    bf16 = settings.precision == "bf16"
    if bf16 and not computes_bf16(settings.device):
        logger.warning(
            f"--precision bf16: this {settings.device.type} has no bf16 arithmetic, and emulating "
            "it takes many times as long as --precision fp32"
        )
    mean, std = statistics or normalisation(settings, data)
    network = Network(model, mean, std, bf16, anatomy).to(settings.device)
    if anatomy is None or anatomy.channels_last:
        network.to_channels_last()
    folded = FoldedNetwork(network)
    if settings.compile and can_compile(settings.device):
        network.compile(dynamic=False)
        folded.compile(dynamic=False)
        size = eval_batch_size(settings)
        logger.info(f"--compile: full batches alone are compiled, in eval mode those of {size}")
    return network, folded


def eval_batch_size(settings: Settings) -> int:
    """Images per batch in eval mode to begin with; a size that does not fit is halved.

    Whole chunks of random draws on a GPU, few enough for the caches on a CPU.
    """
    if settings.eval_batch_size:
        return settings.eval_batch_size
    size_factor = max(1, (settings.image_size // 32) ** 2)
    if settings.device.type == "cuda":
        return max(CHUNK, 8 * CHUNK // size_factor)
    return max(1, CHUNK // size_factor)


def refuse_other_data(run: RunFolder, data: Dataset, statistics: Statistics) -> None:
    """Stop if the run in the folder had other images, or if these were normalised otherwise."""
    trained = run.trained_with()
    other = other_images(data, trained)
    if other:
        raise InputError(f"{run.path} was trained on other images: {other}")
    differing = difference(dict(zip(STATISTICS, statistics, strict=True)), trained, STATISTICS)
    if differing:
        raise InputError(f"{run.path} was trained with other flags: {differing}")


# Of the settings, what is no flag and no part of what a run is.
DERIVED = ("run_path",)
# In args.json, what tells the images and labels of each split from others.
DIGESTS = ("train_digest", "test_digest")


def other_images(data: Dataset, recorded: dict[str, Any]) -> str | None:
    """One line if a run's or sweep's arguments tell of other images or labels than these.

    Older ones tell but the mean of the training images, or what they were normalised with, which
    was the same then.
    """
    for name, digest in zip(DIGESTS, data.digests, strict=False):
        if recorded.get(name, digest) != digest:
            split = name.removesuffix("_digest")
            return f"those of the {split} split have changed; check --data-dir"
    if recorded.get("data_mean", recorded.get("mean")) not in (None, list(data.mean)):
        return "their mean was another; check --data-dir"
    return None


def describe_run(settings: Settings, data: Dataset, statistics: Statistics) -> dict[str, Any]:
    """What args.json records: every flag as resolved, and what the run was made with.

    `mean` and `std` are what images are normalised with, `data_mean` is the mean of the images, or
    the published one of the data set; the digests tell the images and labels themselves.
    """
    gpu = settings.device.type == "cuda"
    changes = _git("status", "--porcelain", "--untracked-files=no")
    flags = {name: value for name, value in vars(settings).items() if name not in DERIVED}
    return flags | {
        "mean": statistics[0],
        "std": statistics[1],
        "data_mean": data.mean,
        **dict(zip(DIGESTS, data.digests, strict=False)),
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_dirty": None if changes is None else bool(changes),
        "torch": torch.__version__,
        "ran_on": torch.cuda.get_device_name(settings.device) if gpu else "CPU",
    }


def _git(*command: str) -> str | None:
    """What git says of this code; None if it does not know it."""
    try:
        done = subprocess.run(
            ("git", "-C", str(Path(__file__).parent), *command), capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def prepare(settings: Settings, run: RunFolder, data: Dataset) -> Training:
    """What the flags name to train on the data, with fresh weights.

    Raises:
        InputError: the network cannot be trained, or not on a last batch of so many images.
    """
    network, folded = build_networks(settings, data)
    takes_one_image = network.anatomy is None or network.anatomy.takes_one_image
    if len(data.train) % settings.batch_size == 1 % settings.batch_size and not takes_one_image:
        raise InputError(
            f"--batch-size {settings.batch_size}: of {len(data.train)} images the last batch is of "
            f"one, on which --model {settings.model} cannot be trained, for its batch norm"
        )
    mode = MODES[mode_name(settings.train_mode, settings.bn)]
    replayed = is_replayed(settings, mode, network)
    optimizer = make_optimizer(settings, network.model, replayed)
    return Training(
        settings,
        mode,
        run,
        data,
        Learner(network, folded, optimizer, strength(settings), settings),
        ReplayedStep(mode.step) if replayed else mode.step,
        Evaluator(folded, eval_batch_size(settings)),
    )


def make_optimizer(settings: Settings, model: nn.Module, replayed: bool) -> optim.Optimizer:
    """The optimiser that the flags name, of the model's weights, for steps that may be replayed."""
    options: dict[str, Any] = {"lr": settings.lr_max, "weight_decay": settings.weight_decay}
    gpu = settings.device.type == "cuda"
    if gpu:
        # The rate as a tensor: a step captured as a CUDA graph reads it anew at each replay.
        options |= {"lr": torch.tensor(settings.lr_max, device=settings.device), "fused": True}
    if settings.optimizer == "sgd":
        options |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return optim.SGD(model.parameters(), **options)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[settings.optimizer]
    return kind(model.parameters(), capturable=replayed, **options)
