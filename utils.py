"""What train.py and eval.py share, section by section:

data sets         DATASETS, load_dataset: images in memory as uint8
networks          build_model, Network, FoldedNetwork for eval mode, NearestCentre
measurements      measure, measure_blocks; Record and the other rows of tables
the run folder    RunFolder, SERIES, checkpoints, Writer: every file that a run leaves
learning rates    learning_rate
seeds, device     seed_everything, select_device, set_precision, StopSignals, ranks, memory
flags and logs    add_run_flags and what is made of them, eval_batch_size, run_script
"""

import argparse
import copy
import csv
import ctypes
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision import datasets, transforms
from tqdm import tqdm

import preactresnet
import preactresnet_imagenet
import vgg
import vgg_imagenet
from attacks import CHUNK, NORMS, pgd
from nc_metrics import (
    LayerCollapse,
    NeuralCollapse,
    SimplexDistance,
    StreamingCollapse,
    neural_collapse,
)

logger = logging.getLogger("robust_nc")


class InputError(Exception):
    """Data, a file or a setting that the run cannot use; its text is one line for the user."""


class Stopped(BaseException):
    """A signal stopped the run; what it was asked to keep is on disk."""

    def __init__(self, number: int, where: str):
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.code = 128 + number


# ---------------------------------------------------------------------------------------------
# Data sets: decoded once, kept as uint8 tensors
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64 of the training or the test split."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> "Split":
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Both splits, and the statistics per channel, in [0, 1] units, that normalise them."""

    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to(self, device: torch.device) -> "Dataset":
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def load_dataset(
    name: str,
    data_dir: Path,
    *,
    image_size: int = 32,
    seed: int = 1,
    limit_train: int | None = None,
    limit_test: int | None = None,
    data_url: str | None = None,
) -> Dataset:
    """Read a data set of DATASETS into memory, downloading it to `data_dir` where it is published.

    `limit_train` and `limit_test` keep class-balanced subsets drawn with `seed`; a smaller subset
    is contained in a larger one of the same seed. `image_size` applies to `folder` alone.

    Raises:
        InputError: data missing, unreadable, inconsistent, or fewer images kept than classes.
    """
    reader, statistics = DATASETS[name]
    train, test, num_classes = reader(data_dir, image_size, data_url)
    for split in (train, test):
        if len(split.images) != len(split) or split.labels.max() >= num_classes:
            raise InputError(f"{data_dir}: labels of {name} do not fit its images and classes")
    # Before any subset is taken: the same normalisation for every subset of the data.
    mean, std = statistics or channel_statistics(train.images)
    if name == "mnist":
        train = train.select(balanced_subset(train.labels, MNIST_PER_CLASS * num_classes, seed))
    splits = []
    for split, limit, flag in (
        (train, limit_train, "--limit-train"),
        (test, limit_test, "--limit-test"),
    ):
        if limit is not None and limit < num_classes:
            raise InputError(
                f"{flag} {limit} is less than one image for each of {num_classes} classes"
            )
        splits.append(
            split if limit is None else split.select(balanced_subset(split.labels, limit, seed))
        )
    return Dataset(*splits, num_classes, mean, std)


def balanced_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices (<= size,), ascending, of a class-balanced random subset of labels (N,).

    Every class is put into a random order; images are taken by their rank in that order, so that
    classes differ by at most one image (or have run out) and subsets of one seed are nested.
    """
    permutation = np.random.RandomState(seed).permutation(len(labels))
    shuffled = labels.numpy()[permutation]
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], shuffled[by_class])
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - starts
    order = np.lexsort((shuffled, rank))
    return torch.from_numpy(np.sort(permutation[order[:size]]))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1] units, of uint8 images (N, C, H, W)."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share = counts / counts.sum()
        mean = (share * levels).sum()
        means.append(mean.item())
        stds.append((share * (levels - mean).square()).sum().sqrt().item())
    if min(stds) == 0:
        raise InputError("the training images are constant in a channel and cannot be normalised")
    return tuple(means), tuple(stds)


def as_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; float images as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _read_cifar(
    name: str, data_dir: Path, image_size: int, url: str | None
) -> tuple[Split, Split, int]:
    """CIFAR-10 or CIFAR-100 through torchvision."""
    published = getattr(datasets, name)

    class Cifar(published):
        def _check_integrity(self) -> bool:
            if super()._check_integrity():
                return True
            paths = [
                Path(self.root, self.base_folder, file)
                for file, _ in (*self.train_list, *self.test_list)
            ]
            if not all(path.is_file() for path in paths):
                return False
            for path in paths:
                _check_arrays_only(path)
            return True

        def _load_meta(self) -> None:
            """The class names are not used, and other data in this format may lack them."""

    Cifar.url = url or published.url
    hint = (
        f"put {published.filename}, or the folder {published.base_folder} of it, into {data_dir}, "
        "or name a mirror with --data-url"
    )
    with _download_errors(name, Cifar.url, hint):
        loaded = [Cifar(data_dir, train=train, download=True) for train in (True, False)]
    if not published._check_integrity(loaded[0]):
        logger.warning(
            f"{data_dir / published.base_folder} is not the published {name}: used as it is"
        )
    splits = [
        Split(
            torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))),
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in loaded
    ]
    return *splits, {"CIFAR10": 10, "CIFAR100": 100}[name]


def _check_arrays_only(path: Path) -> None:
    """Refuse a CIFAR batch with an unknown checksum that holds more than arrays and numbers.

    torchvision reads these files with pickle, which can run code; the published files are known
    by their checksum, any other one is looked through first.
    """
    allowed = {
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    class ArraysOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
            return super().find_class(module, name)

    try:
        with path.open("rb") as file:
            ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: not a CIFAR batch: {error}") from error


def _read_mnist(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """MNIST through torchvision, padded with black to 32x32."""
    # torchvision names the folder after the class.
    mirrors = [url.rstrip("/") + "/"] if url else datasets.MNIST.mirrors
    mirrored = type("MNIST", (datasets.MNIST,), {"mirrors": mirrors})
    hint = f"put its four files, unpacked, into {data_dir / 'MNIST' / 'raw'}"
    with _download_errors("MNIST", mirrors[0], hint):
        loaded = [mirrored(data_dir, train=train, download=True) for train in (True, False)]
    splits = [
        Split(F.pad(part.data.unsqueeze(1), (2, 2, 2, 2)), part.targets.long()) for part in loaded
    ]
    return *splits, 10


MNIST_PER_CLASS = 5000


@contextmanager
def _download_errors(name: str, url: str, hint: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torchvision and urllib raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{name} cannot be read, or downloaded from {url} ({reason}); {hint}"
        ) from error


def _read_digits(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """scikit-learn's 1,797 handwritten 8x8 digits, up-sampled to 32x32; fixed stratified 80/20."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    whole = Split((images * 255).round().to(torch.uint8), torch.from_numpy(digits.target).long())
    train, test = train_test_split(
        np.arange(len(whole)), test_size=0.2, stratify=digits.target, random_state=0
    )
    return whole.select(torch.from_numpy(train)), whole.select(torch.from_numpy(test)), 10


def _read_imagenette(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """ImageNette2-160 from its folders, centre-cropped to 160x160."""
    root = data_dir / "imagenette2-160"
    if not root.is_dir() and (data_dir / "train").is_dir():
        root = data_dir
    if not root.is_dir():
        raise InputError(
            f"imnet: unpack imagenette2-160.tgz (fast.ai's ImageNette) so that {root}/train and "
            f"{root}/val exist, or name the folder that holds both with --data-dir"
        )
    return _read_tree(root, transforms.CenterCrop(160), "crop160")


def _read_folder(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """Any train/CLASS/*, val/CLASS/* tree; the shorter side is resized, then centre-cropped."""
    fit = transforms.Compose([transforms.Resize(image_size), transforms.CenterCrop(image_size)])
    return _read_tree(data_dir, fit, f"fit{image_size}")


def _read_tree(root: Path, fit: Callable, fit_name: str) -> tuple[Split, Split, int]:
    listings = []
    for part in ("train", "val"):
        try:
            listings.append(datasets.ImageFolder(root / part))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{root / part}: {' '.join(str(error).split())}; expected one folder per class "
                "with images in it"
            ) from error
    train, val = listings
    if train.classes != val.classes:
        raise InputError(
            f"{root}: train/ and val/ hold different classes; only in train/: "
            f"{sorted(set(train.classes) - set(val.classes))}, only in val/: "
            f"{sorted(set(val.classes) - set(train.classes))}"
        )
    if len(train.classes) < 2:
        raise InputError(f"{root / 'train'}: only one class; at least two are needed")
    splits = [
        Split(_decode(listing, fit, fit_name), torch.tensor(listing.targets, dtype=torch.int64))
        for listing in listings
    ]
    return *splits, len(train.classes)


def _decode(listing: datasets.ImageFolder, fit: Callable, fit_name: str) -> Tensor:
    """All images of a folder as uint8 (N, 3, H, W), decoded in parallel or read from the cache.

    The cache lies in `.decoded` beside train/ and val/ and is keyed by every file's name, size and
    time of change, so that it is never older than the images.
    """
    root = Path(listing.root)
    paths = [Path(path) for path, _ in listing.samples]
    key = hashlib.sha256(fit_name.encode())
    for path in paths:
        status = path.stat()
        key.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    cache = root.parent / ".decoded" / f"{root.name}-{fit_name}.pt"
    try:
        stored = torch.load(cache, weights_only=True)
        if stored["key"] == key.hexdigest():
            return stored["images"]
    except Exception:
        logger.debug(f"{cache}: none yet, or damaged")

    def read(path: Path) -> Tensor:
        try:
            image = fit(datasets.folder.default_loader(str(path)))
        except Exception as error:  # Pillow raises many kinds
            raise InputError(f"{path}: cannot be read as an image ({error})") from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(
            tqdm(pool.map(read, paths), f"decoding {root}", len(paths), unit="img", disable=None)
        )
    images = torch.stack(decoded)
    try:
        cache.parent.mkdir(exist_ok=True)
        with atomic_open(cache) as file:
            torch.save({"key": key.hexdigest(), "images": images}, file)
    except OSError as error:
        logger.warning(f"{cache}: decoded images are not cached: {error}")
    return images


# Name -> (reader, (mean, std) per channel or None for those of the training split).
DATASETS: dict[str, tuple[Callable, tuple | None]] = {
    "cifar": (
        partial(_read_cifar, "CIFAR10"),
        ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    ),
    "cifar100": (
        partial(_read_cifar, "CIFAR100"),
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "imnet": (_read_imagenette, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    "mnist": (_read_mnist, ((0.1307,), (0.3081,))),
    "digits": (_read_digits, None),
    "folder": (_read_folder, None),
}
DOWNLOADED = ("cifar", "cifar100", "mnist")


# ---------------------------------------------------------------------------------------------
# Networks: images in [0, 1] -> logits
# ---------------------------------------------------------------------------------------------

MODELS = ("vgg11bn", "PreActResNet18")


def build_model(name: str, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
    """The architecture of MODELS for 32x32 or 160x160 images, with fresh weights."""
    if image_size == 160:
        factory = {
            "vgg11bn": vgg_imagenet.vgg11_bn_pool,
            "PreActResNet18": preactresnet_imagenet.preact_resnet18,
        }[name]
        return factory(num_classes=num_classes)
    factory = {"vgg11bn": vgg.vgg11_bn, "PreActResNet18": preactresnet.PreActResNet18}[name]
    return factory(in_channels=in_channels, num_classes=num_classes)


class Network(nn.Module):
    """A model behind the normalisation of its data, so that attacks see images in [0, 1].

    With `bf16` the model runs under autocast; logits and features come out as float32 all the
    same. Checkpoints hold the bare `model`.
    """

    def __init__(
        self, model: nn.Module, mean: Iterable[float], std: Iterable[float], bf16: bool = False
    ):
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1))

    def forward(
        self, images: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), and features (N, D) if asked."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits, features = self.model((images - self.mean) / self.std, return_activations=True)
        return (logits.float(), features.float()) if return_activations else logits.float()

    @property
    def classifier_weight(self) -> Tensor:
        """Weight (classes, D) of the last linear layer, the only one that the models have."""
        return next(m for m in self.model.modules() if isinstance(m, nn.Linear)).weight.detach()


class FoldedNetwork(Network):
    """A copy of a network for eval mode: a batch norm behind a convolution is folded into it.

    In eval mode a batch norm is an affine map per channel, so the folded network computes the same
    with fewer passes over the activations, forward and backward. With bf16 the convolutions'
    weights are rounded once, here, not in every forward pass. `refold` follows the network's
    weights.
    """

    def __init__(self, network: Network):
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        super().__init__(copy.deepcopy(network.model), mean, std, network.bf16)
        self._source = [network.model]  # in a list: not a part of this module
        self._pairs = conv_norm_pairs(self.model)
        for conv_name, norm_name in self._pairs:
            conv = self.model.get_submodule(conv_name)
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            parent, _, child = norm_name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, nn.Identity())
        if self.bf16:
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d):
                    module.bfloat16()
        self.to(network.mean.device).eval().requires_grad_(False)
        self.refold()

    def train(self, mode: bool = False) -> "FoldedNetwork":
        """Stays in eval mode, the only one that it has."""
        return super().train(False)

    @torch.no_grad()
    def refold(self) -> "FoldedNetwork":
        """Take over the present weights and statistics of the network; returns itself."""
        (model,) = self._source
        state = model.state_dict()
        for conv_name, norm_name in self._pairs:
            conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
            state[f"{conv_name}.weight"], state[f"{conv_name}.bias"] = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
        for name, value in self.model.state_dict().items():
            value.copy_(state[name])
        return self


class NearestCentre(nn.Module):
    """A classifier by the nearest class mean of a network's features, to be attacked like one.

    Its logits are the negative squared distances to the class means (C, D), in units of a tenth of
    the mean squared distance between the means and their centre. The unit changes no prediction,
    but the attack: where logits lie hundreds apart, as those of large features do, the gradient of
    the cross-entropy vanishes and the attack only seems to fail; where they hardly differ, it
    flees its own class towards none. At a tenth PGD was at its strongest or near it.

    Source: Su et al. 2024, nearest-centre classifier.
    """

    def __init__(self, network: Network, class_means: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("class_means", class_means.double())
        spread = (self.class_means - self.class_means.mean(0)).square().sum(1).mean()
        self.register_buffer("unit", (spread / 10).clamp(min=torch.finfo(torch.float64).tiny))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), float64."""
        _, features = self.network(images, return_activations=True)
        return self.classify(features)

    def classify(self, features: Tensor) -> Tensor:
        """Features (N, D) -> logits (N, classes), float64."""
        features = features.double()
        squared = (
            features.square().sum(1, keepdim=True)
            - 2 * features @ self.class_means.T
            + self.class_means.square().sum(1)
        )
        return -squared / self.unit


def conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the (convolution, batch norm) pairs in which the norm alone uses the convolution."""
    modules = dict(model.named_modules())
    graph = fx.symbolic_trace(model, concrete_args={"return_activations": False}).graph
    pairs = []
    for node in graph.nodes:
        if isinstance(modules.get(str(node.target)), nn.BatchNorm2d):
            source = node.args[0]
            if isinstance(modules.get(str(source.target)), nn.Conv2d) and len(source.users) == 1:
                pairs.append((source.target, node.target))
    return pairs


# ---------------------------------------------------------------------------------------------
# Measurements: one forward pass per input kind, one record per epoch, split and input kind
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy, accuracy in [0, 1] and neural collapse of one network on one input."""

    loss: float
    accuracy: float
    collapse: NeuralCollapse


@torch.no_grad()
def measure(
    network: Network,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    perturb: Callable[[Tensor, Tensor], Tensor] | None = None,
    on_batch: Callable[[int], Any] = lambda size: None,
) -> Measurement:
    """Measure a network in eval mode (in which it is left) with one forward pass per image.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1].
        labels: (N,); the targets where the input is a targeted attack.
        perturb: from images and labels of a batch to the perturbation that is added.
        on_batch: told the size of each finished batch, for a progress bar.

    Raises:
        InputError: features or logits that are not finite.
    """
    logits, features = outputs(network, images, labels, batch_size, perturb, on_batch)
    return Measurement(
        loss=F.cross_entropy(logits.double(), labels).item(),
        accuracy=accuracy(logits, labels),
        collapse=neural_collapse(features, labels, logits, network.classifier_weight),
    )


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share in [0, 1] of labels (N,) that have the largest of the logits (N, C)."""
    return (logits.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def outputs(
    network: Network,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    perturb: Callable[[Tensor, Tensor], Tensor] | None = None,
    on_batch: Callable[[int], Any] = lambda size: None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D) of all images; arguments and errors as in `measure`."""
    network.eval()
    features, logits = [], []
    for x, y in batches(images, labels, batch_size):
        if perturb is not None:
            x = x + perturb(x, y)
        batch_logits, batch_features = network(x, return_activations=True)
        logits.append(batch_logits)
        features.append(batch_features)
        on_batch(len(x))
    features, logits = torch.cat(features), torch.cat(logits)
    if not (features.isfinite().all() and logits.isfinite().all()):
        raise InputError(NOT_FINITE)
    return logits, features


def batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as float in [0, 1] with their labels, in order."""
    for part, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield as_float(part), y


@torch.no_grad()
def measure_blocks(
    network: Network, images: Tensor, labels: Tensor, batch_size: int
) -> dict[str, tuple[int, LayerCollapse]]:
    """Width and collapse of every block of a network in eval mode (in which it is left), by name.

    Two forward passes per image, of which no more than a batch's outputs are kept. The network
    must not be compiled: compiled code does not tell what its blocks put out.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1]; perturbed already.
        labels: (N,); the targets where the input is a targeted attack.

    Raises:
        InputError: outputs that are not finite.
    """
    network.eval()
    classes = len(network.classifier_weight)
    collapses = {name: StreamingCollapse(classes) for name, _ in network.model.blocks()}
    with block_outputs(network) as found:
        for x, y in batches(images, labels, batch_size):
            network(x)
            for name, collapse in collapses.items():
                collapse.add_to_means(found[name], y)
        if not all(collapse.class_means.isfinite().all() for collapse in collapses.values()):
            raise InputError(NOT_FINITE)
        for x, y in batches(images, labels, batch_size):
            predictions = network(x).argmax(1)
            for name, collapse in collapses.items():
                collapse.add_to_spread(found[name], y, predictions)
    return {
        name: (collapse.class_means.shape[1], collapse.result())
        for name, collapse in collapses.items()
    }


@contextmanager
def block_outputs(network: Network) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass leaves each block's flattened output (N, D) under its name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        found[name] = output.flatten(1)

    hooks = [
        module.register_forward_hook(partial(keep, name)) for name, module in network.model.blocks()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


NOT_FINITE = "the network's outputs are not finite: its training has diverged"

# The metrics of NeuralCollapse that are recorded per epoch.
NC_METRICS = (
    "nc1",
    "nc2_norm_activation",
    "nc2_norm_classifier",
    "nc2_angle_activation",
    "nc2_angle_classifier",
    "nc3",
    "nc4",
)

# Each kind of input has its own random stream, so this order must not change.
INPUTS = ("clean", "pgd", "gaussian", "sign", "targeted", "gaussian_l2")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Record:
    """A row of metrics.csv: one epoch's network on one input. NaN where not measured.

    `source` is the script that measured ("train" or "eval"); the `clean_*` fields compare the
    class means with those of the clean images (means over classes, SimplexDistance).
    """

    source: str
    epoch: int
    split: str
    input: str
    loss: float
    accuracy: float
    ncc_accuracy: float
    nc1: float
    nc2_norm_activation: float
    nc2_norm_classifier: float
    nc2_angle_activation: float
    nc2_angle_classifier: float
    nc3: float
    nc4: float
    clean_distance: float = math.nan
    clean_angle: float = math.nan
    clean_distance_abs: float = math.nan
    clean_angle_abs: float = math.nan
    clean_mean_distance: float = math.nan
    clean_mean_angle: float = math.nan

    @property
    def key(self) -> tuple:
        """What no two rows share, and the order of the rows."""
        return self.epoch, self.source, self.split, INPUTS.index(self.input)

    @classmethod
    def of(
        cls,
        measurement: Measurement,
        *,
        source: str,
        epoch: int,
        split: str,
        input: str,
        from_clean: SimplexDistance | None = None,
    ) -> "Record":
        collapse = measurement.collapse
        distances = {}
        if from_clean is not None:
            distances = {
                "clean_distance": from_clean.distance.mean().item(),
                "clean_angle": from_clean.angle.mean().item(),
                "clean_distance_abs": from_clean.distance_abs.mean().item(),
                "clean_angle_abs": from_clean.angle_abs.mean().item(),
                "clean_mean_distance": from_clean.mean_distance,
                "clean_mean_angle": from_clean.mean_angle,
            }
        return cls(
            source=source,
            epoch=epoch,
            split=split,
            input=input,
            loss=measurement.loss,
            accuracy=measurement.accuracy,
            **{name: getattr(collapse, name) for name in ("ncc_accuracy", *NC_METRICS)},
            **distances,
        )


@dataclass(frozen=True)
class LayerRecord:
    """A row of layers.csv: one block of one epoch's network on one split and input.

    `index` counts the blocks from 0 in forward order, `features` is the width of the block's
    output; the metrics are those of LayerCollapse, with the split's own class means.
    """

    epoch: int
    split: str
    input: str
    layer: str
    index: int
    features: int
    nc1: float
    nc2_norm: float
    nc2_angle: float
    ncc_accuracy: float
    ncc_agreement: float

    @property
    def key(self) -> tuple:
        """What no two rows share, and the order of the rows."""
        return self.epoch, SPLITS.index(self.split), INPUTS.index(self.input), self.index


# What the nearest-centre classifier is tested on; "adaptive" is PGD against itself.
CENTRE_INPUTS = ("clean", "pgd", "adaptive")


@dataclass(frozen=True)
class CentreRecord:
    """A row of ncc.csv: one epoch's nearest-centre classifier, and the network, on one input.

    `means` names the training images that the class means are of: clean, or perturbed by PGD.
    """

    epoch: int
    split: str
    means: str
    input: str
    ncc_accuracy: float
    network_accuracy: float

    @property
    def key(self) -> tuple:
        """What no two rows share, and the order of the rows."""
        means, input = INPUTS.index(self.means), CENTRE_INPUTS.index(self.input)
        return self.epoch, SPLITS.index(self.split), means, input


@dataclass(frozen=True)
class AutoAttackRecord:
    """A row of autoattack.csv: accuracy of so many test images, clean and under AutoAttack."""

    epoch: int
    split: str
    images: int
    clean_accuracy: float
    robust_accuracy: float

    @property
    def key(self) -> tuple:
        """What no two rows share, and the order of the rows."""
        return self.epoch, self.images


# The tables that eval.py alone fills.
TABLES = {
    LayerRecord: "layers.csv",
    CentreRecord: "ncc.csv",
    AutoAttackRecord: "autoattack.csv",
}

NC1_SCALE = "nc1 is tr(Sigma_W Sigma_B^+), not divided by the number of classes"


def format_record(record: Record) -> str:
    """One line for the log. NC2 is printed for the class means, not for the classifier."""
    line = (
        f"{record.input:<11} acc {record.accuracy:.4f} loss {record.loss:.4f} "
        f"nc1 {record.nc1:.3e} nc2 norm {record.nc2_norm_activation:.3f} "
        f"angle {record.nc2_angle_activation:.3f} nc3 {record.nc3:.3f} nc4 {record.nc4:.4f}"
    )
    if math.isnan(record.clean_distance):
        return line
    return line + f" | from clean: dist {record.clean_distance:.3f} angle {record.clean_angle:.3f}"


@dataclass(frozen=True)
class EpochSummary:
    """A row of history.csv. Accuracies in [0, 1]; NaN where a mode has no such quantity.

    `train_robust_loss` is the objective that was stepped on (AT and TRADES); train_* are running
    averages over the epoch's batches, test_* those of the epoch's network in eval mode.
    """

    epoch: int
    lr: float
    train_loss: float
    train_acc: float
    train_robust_loss: float
    train_robust_acc: float
    test_loss: float
    test_acc: float
    seconds: float


# ---------------------------------------------------------------------------------------------
# The run folder: checkpoints, records, and the published .npy series made from them
# ---------------------------------------------------------------------------------------------


def _nc_series(*names: str) -> dict[str, str]:
    return dict(zip(NC_METRICS, names, strict=True))


def _prefixed_series(prefix: str) -> dict[str, str]:
    return _nc_series(
        f"{prefix}nc1",
        f"{prefix}nc2_activation_norm",
        f"{prefix}nc2_classifier_norm",
        f"{prefix}nc2_activation_angle",
        f"{prefix}nc2_classifier_angle",
        f"{prefix}nc3",
        f"{prefix}nc4",
    )


def _distance_series(prefix: str, mean_prefix: str) -> dict[str, str]:
    return {
        "clean_distance": f"{prefix}_dist",
        "clean_angle": f"{prefix}_angle",
        "clean_distance_abs": f"{prefix}_dist_abs",
        "clean_angle_abs": f"{prefix}_angle_abs",
        "clean_mean_distance": f"{mean_prefix}_dist",
        "clean_mean_angle": f"{mean_prefix}_angle",
    }


# Input kind -> {field of Record: published name of the .npy series}.
SERIES: dict[str, dict[str, str]] = {
    "clean": _prefixed_series(""),
    "pgd": _nc_series(
        "robust_nc1",
        "robust_activation_nc2_norm",
        "robust_classifier_nc2_norm",
        "robust_activation_nc2_angle",
        "robust_classifier_nc2_angle",
        "robust_nc3",
        "robust_nc4",
    )
    | _distance_series("clean_robust", "muG"),
    "gaussian": _prefixed_series("new_gaussian_label_"),
    "gaussian_l2": _prefixed_series("gaussian_label_"),
    "sign": _prefixed_series("linf_label_"),
    "targeted": _nc_series(
        "targeted_nc1",
        "targeted_nc2_norm_M",
        "targeted_nc2_norm_W",
        "targeted_nc2_angle_M",
        "targeted_nc2_angle_W",
        "targeted_nc3",
        "targeted_nc4",
    )
    | _distance_series("clean_target", "target_muG"),
}
# As published: under ST the accuracies and losses are those of the saved checkpoints, under AT
# and TRADES those seen in training.
ST_SERIES = {
    "clean": {"loss": "train_loss", "accuracy": "train_acc"},
    "pgd": {"loss": "train_robust_loss", "accuracy": "train_robust_acc"},
}
# Of the test images, for whatever training mode; all other names have test_ in front.
TEST_SERIES = {
    "clean": {"loss": "test_loss", "accuracy": "test_acc"},
    "pgd": {"loss": "test_robust_loss", "accuracy": "test_robust_acc"},
}
HISTORY_SERIES = ("train_loss", "train_acc", "train_robust_loss", "train_robust_acc")


class RunFolder:
    """Every file of one run: model_{epoch}.pth, resume.pth, history.csv, args.json and results/.

    metrics.csv and history.csv are the truth; the .npy series are written from them, indexed by
    epoch, with NaN where an epoch was not measured.
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        dataset: str,
        model: str,
        norm: str,
        epsilon: float,
        train_mode: str,
        trades_bn: str,
        seed: int,
    ):
        mode = f"{train_mode}_batch" if trades_bn == "batch" else train_mode
        self.path = models_dir / dataset / model / norm / f"eps{epsilon}" / mode / f"seed{seed}"
        self.results = self.path / "results"
        self.standard = train_mode == "std_train"
        self.records: list[Record] = []
        self.history: list[EpochSummary] = []

    def move_to(self, path: Path) -> None:
        """Keep everything in another folder, for checkpoints that lie outside ours."""
        self.path = self.results = path

    def open(self) -> None:
        """Make the folder and read the records that are in it already."""
        self.results.mkdir(parents=True, exist_ok=True)
        self._read()

    @contextmanager
    def lock(self, script: str) -> Iterator[None]:
        """Hold the folder alone inside; it is made if need be.

        Raises:
            InputError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            if not _flock(file, wait=False):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(f"{self.path} is in use by {holder}: wait for it, or stop it")
            file.truncate(0)
            file.write(
                f"{script} on {socket.gethostname()}, process {os.getpid()}, since "
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            file.flush()
            for folder in (self.path, self.results):
                for left_by_a_killed_run in folder.glob(".*.tmp"):
                    left_by_a_killed_run.unlink(missing_ok=True)
            yield

    def holds_run(self) -> bool:
        """Whether a former run left checkpoints or records here."""
        files = (self.resume_file, self.path / "history.csv", self.results / "metrics.csv")
        return bool(self.epochs()) or any(file.exists() for file in files)

    def checkpoint(self, epoch: int) -> Path:
        return self.path / f"model_{epoch}.pth"

    @property
    def resume_file(self) -> Path:
        return self.path / "resume.pth"

    def epochs(self) -> list[int]:
        """Epochs of the checkpoints in the folder, ascending."""
        names = [path.stem.removeprefix("model_") for path in self.path.glob("model_*.pth")]
        return sorted(int(name) for name in names if name.isdigit())

    def clear(self, from_epoch: int = 0) -> None:
        """Delete a former run from an epoch on: what it left, and nothing else."""
        self.resume_file.unlink(missing_ok=True)
        if from_epoch == 0:
            series = {name for names in SERIES.values() for name in names.values()}
            series |= {f"test_{name}" for name in series}
            series |= {name for names in TEST_SERIES.values() for name in names.values()}
            for path in (
                self.results / "metrics.csv",
                self.path / "history.csv",
                *(self.results / f"{name}.npy" for name in series | set(HISTORY_SERIES)),
                *(self.results / name for name in TABLES.values()),
                self.results / "eval_args.json",
                self.path / "args.json",
                self.path / "output.log",
                self.path / "eval.log",
            ):
                path.unlink(missing_ok=True)
        for epoch in self.epochs():
            if epoch >= from_epoch:
                self.checkpoint(epoch).unlink()

    def add(self, records: list[Record], summary: EpochSummary | None = None) -> None:
        """Put records into metrics.csv, and an epoch into history.csv, in place of equal keys."""
        with self._turn():
            self._read()
            self.records = _merged(self.records, records)
            if summary is not None:
                others = [row for row in self.history if row.epoch != summary.epoch]
                self.history = [*others, summary]
                _write_rows(self.path / "history.csv", EpochSummary, self.history)
            self._write_records()

    def rows(self, row_type: type) -> list:
        """What is recorded in one of TABLES."""
        return read_rows(self.results / TABLES[row_type], row_type)

    def add_rows(self, rows: list) -> None:
        """Put rows of one type into their table of TABLES, in place of equal keys."""
        row_type = type(rows[0])
        with self._turn():
            merged = _merged(self.rows(row_type), rows)
            _write_rows(self.results / TABLES[row_type], row_type, merged)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The ranks of a shared sweep take turns in adding to the results."""
        with (self.results / ".records.lock").open("a") as file:
            _flock(file, wait=True)
            yield

    def drop(self, from_epoch: int, source: str | None = None) -> None:
        """Forget what was recorded from an epoch on, by one script or by both."""
        self._read()
        before = self._series().keys()
        self.records = [
            record
            for record in self.records
            if record.epoch < from_epoch or source not in (None, record.source)
        ]
        if source != "eval" and self.history:
            self.history = [row for row in self.history if row.epoch < from_epoch]
            _write_rows(self.path / "history.csv", EpochSummary, self.history)
        self._write_records()
        for name in before - self._series().keys():
            (self.results / f"{name}.npy").unlink(missing_ok=True)
        for row_type in TABLES:
            rows = self.rows(row_type)
            if rows:
                kept = [row for row in rows if row.epoch < from_epoch]
                _write_rows(self.results / TABLES[row_type], row_type, kept)

    def _read(self) -> None:
        self.records = read_rows(self.results / "metrics.csv", Record)
        self.history = read_rows(self.path / "history.csv", EpochSummary)

    def _write_records(self) -> None:
        _write_rows(self.results / "metrics.csv", Record, self.records)
        for name, values in self._series().items():
            with atomic_open(self.results / f"{name}.npy") as file:
                np.save(file, values)

    def _series(self) -> dict[str, np.ndarray]:
        """Published name -> values by epoch, of every series that there are records for."""
        series = {}
        for input, names in SERIES.items():
            rows = [r for r in self.records if r.input == input and r.split == "train"]
            swept = [r for r in rows if r.source == "eval"]
            # What train.py saw on exactly its training inputs comes before a later sweep.
            series |= _by_epoch(swept + [r for r in rows if r.source == "train"], names)
            if self.standard:
                series |= _by_epoch(swept, ST_SERIES.get(input, {}))
            tested = [
                r for r in self.records if (r.input, r.split, r.source) == (input, "test", "eval")
            ]
            series |= _by_epoch(tested, {f: f"test_{n}" for f, n in names.items()})
            series |= _by_epoch(tested, TEST_SERIES.get(input, {}))
        if not self.standard:
            series |= _by_epoch(self.history, {name: name for name in HISTORY_SERIES})
        return series


def _merged(rows: list, added: list) -> list:
    """Rows with others added in place of equal keys, in the order of their keys."""
    replaced = {row.key for row in added}
    kept = [row for row in rows if row.key not in replaced]
    return sorted(kept + added, key=lambda row: row.key)


def _by_epoch(rows: list, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Fields of rows under their published names, indexed by epoch; a later row wins."""
    series = {}
    for field, name in names.items() if rows else ():
        series[name] = np.full(max(row.epoch for row in rows) + 1, np.nan)
        for row in rows:
            series[name][row.epoch] = getattr(row, field)
    return series


def _flock(file: Any, wait: bool) -> bool:
    """Lock an open file until it is closed; whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logger.warning(f"{file.name}: cannot be locked ({error.strerror}): let one run write here")
    return True


@contextmanager
def atomic_open(path: Path) -> Iterator[Any]:
    """A binary file that appears under its name only once it is complete and on disk.

    Raises:
        InputError: it cannot be written, a full disk for example; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())[:200]
        raise InputError(f"{path}: cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def free_disk(path: Path) -> int:
    """Free bytes where a folder lies, or will."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_json(path: Path, content: dict) -> None:
    with atomic_open(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict | None:
    """The content of a JSON file, None if there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error


def _write_rows(path: Path, row_type: type, rows: list) -> None:
    names = [field.name for field in fields(row_type)]
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow("" if value != value else value for value in values)
    with atomic_open(path) as file:
        file.write(lines.getvalue().encode())


def read_rows(path: Path, row_type: type) -> list:
    """Rows written by _write_rows, the same floats to the last bit; [] if there is no file.

    Raises:
        InputError: the file is damaged, or has other columns than the fields of the row's type.
    """
    columns = {field.name: field.type for field in fields(row_type)}
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, restval="cut off")
            if reader.fieldnames != list(columns):
                raise InputError(f"{path}: its columns are not those of this version; move it away")
            return [
                row_type(
                    **{
                        name: math.nan if not row[name] and kind is float else kind(row[name])
                        for name, kind in columns.items()
                    }
                )
                for row in reader
            ]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}); move it away") from error


def save_checkpoint(path: Path, **content: Any) -> None:
    with atomic_open(path) as file:
        torch.save(content, file)


def to_cpu(state: Any) -> Any:
    """Nested dicts and lists with a contiguous copy in main memory in place of every tensor."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [to_cpu(value) for value in state]
    return state


class Writer:
    """Writes in a thread of its own, so that training goes on; one epoch behind it at most.

    An error there is raised by the next `submit`, or at the end of the `with` block.
    """

    def __enter__(self) -> "Writer":
        self._thread = ThreadPoolExecutor(1)
        self._last: Future | None = None
        return self

    def submit(self, write: Callable, *arguments: Any) -> None:
        self._wait()
        self._last = self._thread.submit(write, *arguments)

    def __exit__(self, error: type | None, *_: Any) -> None:
        self._thread.shutdown(wait=True)  # what was handed over is written in any case
        if error is None or issubclass(error, Stopped):  # which says that it is
            self._wait()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()


def load_checkpoint(path: Path, model: nn.Module) -> dict:
    """Load the weights of a checkpoint, ours, a published or another one, into a bare model.

    The weights may lie under `state_dict`, `model` or `net` or be the file's whole content, and
    their names may begin with `module.`, as nn.DataParallel saves them.

    Returns:
        The checkpoint's other entries: `epoch`, `seed`, perhaps `optimizer`.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, of another network, or holds
            numbers that are not finite.
    """
    checkpoint = _read_tensors(path)
    rest = {}
    if isinstance(checkpoint, dict):
        key = next((k for k in WEIGHT_KEYS if isinstance(checkpoint.get(k), dict)), None)
        weights = checkpoint[key] if key else checkpoint
        rest = {k: value for k, value in checkpoint.items() if key and k != key}
    if not isinstance(checkpoint, dict) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(
            f"{path}: holds no weights: expected a dict of tensors, bare or under "
            f"{', '.join(map(repr, WEIGHT_KEYS))}"
        )
    weights = {str(name).removeprefix("module."): value for name, value in weights.items()}
    _check_fit(path, weights, model)
    infinite = next(
        (n for n, v in weights.items() if v.is_floating_point() and not v.isfinite().all()), None
    )
    if infinite:
        raise InputError(f"{path}: {infinite} is not finite: the training had diverged")
    model.load_state_dict(weights)
    return rest


WEIGHT_KEYS = ("state_dict", "model", "net")


def _read_tensors(path: Path) -> Any:
    """The content of a file of torch.save, as long as it is data and not code."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a checkpoint") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it is not a file of weights alone") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path}: truncated, or not a PyTorch checkpoint") from error


def _check_fit(path: Path, weights: dict, model: nn.Module) -> None:
    """Raise InputError if the weights are not those of the model, by name and shape."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in weights.items()
    }
    differing = [n for n in (expected | found) if expected.get(n) != found.get(n)]
    last = [name for name in list(expected)[-2:] if name in found]
    if differing and set(differing) <= set(last):
        raise InputError(
            f"{path}: its network has {found[last[0]][0]} classes, the data has "
            f"{expected[last[0]][0]}"
        )
    if differing:
        raise InputError(
            f"{path}: weights of another network: {differing[0]} is "
            f"{found.get(differing[0], 'missing')}, this network has "
            f"{expected.get(differing[0], 'no such entry')}"
        )


# ---------------------------------------------------------------------------------------------
# Learning-rate schedules
# ---------------------------------------------------------------------------------------------

SCHEDULES = ("piecewise", "superconverge", "linear", "onedrop", "multipledecay", "cosine")


def learning_rate(
    schedule: str,
    t: float,
    *,
    epochs: int,
    lr_max: float,
    drop_epoch: int = 100,
    drop_lr: float = 0.01,
) -> float:
    """Learning rate at the fractional epoch t in (0, epochs].

    `drop_epoch` and `drop_lr` are those of the schedule `onedrop`.
    """
    if schedule == "piecewise":
        if t < 0.25 * epochs:
            return lr_max
        return lr_max / 10 if t < 0.375 * epochs else lr_max / 100
    if schedule == "superconverge":
        return float(np.interp(t, [0, 2 * epochs // 5, epochs], [0, lr_max, 0]))
    if schedule == "linear":
        knots = [0, epochs // 3, 2 * epochs // 3, epochs]
        return float(np.interp(t, knots, [lr_max, lr_max, lr_max / 10, lr_max / 100]))
    if schedule == "onedrop":
        return lr_max if t < drop_epoch else drop_lr
    if schedule == "multipledecay":
        # Never negative, which it would be late in a run whose epochs are no multiple of ten.
        return max(0.0, lr_max - t // (epochs // 10) * lr_max / 10)
    if schedule == "cosine":
        return lr_max / 2 * (1 + math.cos(math.pi * t / epochs))
    raise ValueError(f"unknown schedule {schedule!r}")


# ---------------------------------------------------------------------------------------------
# Seeds, device, precision, signals
# ---------------------------------------------------------------------------------------------


def seed_everything(seed: int, *stream: int) -> None:
    """Seed PyTorch's generators (all devices) from the run's seed and, say, an epoch.

    Draws depend on these numbers alone, so that an epoch repeats whatever ran before it.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, *stream)).generate_state(1)[0]))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that a run on the device draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class StopSignals:
    """SIGTERM, which SLURM sends before it kills, and Ctrl-C ask to stop; a second one insists.

    `received` is the signal's number, 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        self._former = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.received:
            raise Stopped(number, ", the second signal: at once")
        self.received = number
        logger.info(f"{signal.Signals(number).name}: stopping behind the present step")


def select_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        ValueError: not a device of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).double().item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return device


def set_precision(precision: str) -> None:
    """fp32 turns TF32 off; tf32 and bf16 leave it on for what runs in float32 on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True


def join_ranks(args: argparse.Namespace) -> tuple[int, int]:
    """This process's rank and the number of ranks that torchrun started; (0, 1) without it.

    On GPUs each rank takes its own. Ranks exchange nothing but barriers, so gloo serves everywhere.
    """
    if "RANK" not in os.environ:
        return 0, 1
    if args.device.type == "cuda":
        args.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(args.device)
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def wait_for_ranks(world_size: int) -> None:
    if world_size > 1:
        torch.distributed.barrier()


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, where it is glibc.

    Otherwise a CPU tensor above 32 MiB (64 channels of 128 images) is mapped, cleared page by page
    and unmapped again each time, which takes as long as the arithmetic on it.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here; one warning line if it does not."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: (x.sin() * x).sum())(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler, an unsupported Python: many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning(f"--compile cannot work here and is left out: {reason}")
        return False
    # Modes, gradients, batch sizes and the folded network: each combination is compiled once.
    torch._dynamo.config.cache_size_limit = 64
    return True


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has held so far, for the end of a log."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_reserved(device)
        return f"peak memory {held / 2**30:.2f} GiB of the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"peak memory {held / 2**30:.2f} GiB"


# ---------------------------------------------------------------------------------------------
# Flags of both scripts, logs
# ---------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


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


def select_epochs(text: str | None, epochs: int) -> list[int]:
    """Epochs that "0,10,399", a slice like "::10" or "log" selects out of range(epochs).

    "log" is ten per decade of the number of finished epochs, and the last one. None is all.

    Raises:
        ValueError: none of these, an epoch out of range, or no epoch at all.
    """
    if text is None:
        return list(range(epochs))
    if text == "log":
        counts = (round(10 ** (i / 10)) for i in range(math.ceil(10 * math.log10(epochs)) + 1))
        return sorted({count - 1 for count in counts if count <= epochs} | {epochs - 1})
    if ":" in text:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        selected = list(range(epochs))[slice(*parts)] if len(parts) <= 3 else []
    else:
        selected = sorted({int(part) for part in text.split(",")})
    if not selected or not set(selected) <= set(range(epochs)):
        raise ValueError
    return sorted(selected)


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
    """Model names in any case, as MODELS spells them."""
    return next((name for name in MODELS if name.lower() == text.lower()), text)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that train.py and eval.py share: they name the run, its data and its attack."""
    run = parser.add_argument_group("the run")
    run.add_argument("--model", type=_model_name, choices=MODELS, default="vgg11bn")
    run.add_argument(
        "--train-mode",
        choices=("std_train", "pgd_train", "pgd_train_TRADES"),
        default="std_train",
        help="standard, PGD-adversarial or TRADES training (default: %(default)s)",
    )
    run.add_argument(
        "--trades-bn",
        choices=("frozen", "batch"),
        default="frozen",
        help="batch norm under TRADES: frozen at its initial statistics, as in the published "
        "code, or batch statistics, as in the TRADES paper (default: %(default)s)",
    )
    run.add_argument("--seed", type=seed_number, default=1, help="default: %(default)s")
    run.add_argument("--epochs", type=positive_int, default=400, help="default: %(default)s")
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

    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=DATASETS, default="cifar", help="default: %(default)s")
    data.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder of the data, downloaded to it where published (default: %(default)s)",
    )
    data.add_argument(
        "--data-url", help=f"mirror to download from, for {', '.join(DOWNLOADED)}; checksums hold"
    )
    data.add_argument(
        "--image-size",
        type=int,
        choices=(32, 160),
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

    attack = parser.add_argument_group("attack and noise")
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

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    machine.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default="tf32",
        help="of matrix products; tf32 is fp32 where the device has none (default: %(default)s)",
    )
    machine.add_argument(
        "--compile",
        action="store_true",
        help="compile the network with torch.compile, and on a GPU replay the training step as a "
        "CUDA graph: the same results within rounding, after a minute or so of compiling",
    )
    machine.add_argument(
        "--eval-batch-size",
        type=positive_int,
        metavar="N",
        help="images per batch in eval mode (default: on a GPU what its free memory holds, on a "
        "CPU what suits its caches)",
    )


def complete_run_flags(parser: Parser, args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on other flags; refuse combinations without a meaning."""
    if args.dataset == "mnist":
        if args.epsilon is None or args.pgd_alpha is None:
            parser.error("--dataset mnist needs --epsilon and --pgd-alpha, in [0, 1] units")
        if args.norm == "l_inf" and max(args.epsilon, args.pgd_alpha) > 1:
            parser.error("--epsilon and --pgd-alpha are in [0, 1] units for --dataset mnist")
    if args.epsilon is None:
        args.epsilon = 8.0 if args.norm == "l_inf" else 128.0
    if args.pgd_alpha is None:
        args.pgd_alpha = 2.0 if args.norm == "l_inf" else 15.0
    if args.data_url and args.dataset not in DOWNLOADED:
        parser.error(f"--data-url is for {', '.join(DOWNLOADED)}; {args.dataset} is not downloaded")
    if args.data_url and not args.data_url.startswith(("http://", "https://")):
        parser.error(f"--data-url: expected http:// or https://, got {args.data_url!r}")
    if args.image_size and args.dataset != "folder":
        parser.error("--image-size is for --dataset folder; other data sets have their own size")
    if args.trades_bn == "batch" and args.train_mode != "pgd_train_TRADES":
        parser.error("--trades-bn batch is for --train-mode pgd_train_TRADES")
    if args.image_size is None:
        args.image_size = 160 if args.dataset == "imnet" else 32
    for flag in ("data_dir", "models_dir", "out"):
        path = getattr(args, flag, None)
        if path is not None and path.exists() and not path.is_dir():
            parser.error(f"argument --{flag.replace('_', '-')}: {path} is not a folder")
    try:
        args.device = select_device(args.device)
    except ValueError as error:
        parser.error(f"--device {args.device} cannot be used here: {error}")


def run_folder(args: argparse.Namespace) -> RunFolder:
    """The folder that the flags name, not opened yet."""
    return RunFolder(
        args.models_dir,
        dataset=args.dataset,
        model=args.model,
        norm=args.norm,
        epsilon=args.epsilon,
        train_mode=args.train_mode,
        trades_bn=args.trades_bn,
        seed=args.seed,
    )


def load_run(args: argparse.Namespace) -> tuple[Dataset, Network, FoldedNetwork]:
    """The data that the flags name and a network for it with fresh weights, on the device.

    The third is the network for eval mode; its weights are taken over by `refold`.
    """
    keep_freed_memory()
    data = load_dataset(
        args.dataset,
        args.data_dir,
        image_size=args.image_size,
        seed=args.seed,
        limit_train=args.limit_train,
        limit_test=args.limit_test,
        data_url=args.data_url,
    ).to(args.device)
    return data, *build_networks(args, data)


def build_networks(args: argparse.Namespace, data: Dataset) -> tuple[Network, FoldedNetwork]:
    """The network that the flags name, and the one for eval mode, as fast as this machine can."""
    seed_everything(args.seed)
    channels = data.train.images.shape[1]
    model = build_model(args.model, args.image_size, channels, data.num_classes)
    network = Network(model, data.mean, data.std, bf16=args.precision == "bf16")
    network.to(args.device, memory_format=torch.channels_last)
    folded = FoldedNetwork(network)
    args.compile = args.compile and can_compile(args.device)
    if args.compile:
        network.compile(dynamic=False)
        folded.compile(dynamic=False)
    return network, folded


def attack_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords that `pgd` and `trades` share, in units of images in [0, 1]."""
    unit = 1 if args.dataset == "mnist" else 255
    return {
        "epsilon": args.epsilon / unit,
        "step_size": args.pgd_alpha / unit,
        "steps": args.attack_iters,
        "norm": args.norm,
    }


def eval_batch_size(args: argparse.Namespace, folded: FoldedNetwork, images: Tensor) -> int:
    """Images per batch in eval mode, where an image's result does not depend on it.

    On a GPU as many as its free memory holds in an attack; on a CPU few enough for its caches.
    """
    if args.eval_batch_size:
        return args.eval_batch_size
    size_factor = (args.image_size // 32) ** 2
    if args.device.type != "cuda":
        return max(1, CHUNK // size_factor)
    peaks = {}
    for count in (CHUNK // 4, CHUNK // 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(args.device)
        before = torch.cuda.memory_allocated(args.device)
        x = as_float(images[:1].expand(count, -1, -1, -1))
        pgd(folded, x, x.new_zeros(count).long(), epsilon=0.1, step_size=0.1, steps=1)
        peaks[count] = torch.cuda.max_memory_allocated(args.device) - before
    per_image = (peaks[CHUNK // 2] - peaks[CHUNK // 4]) / (CHUNK // 4)
    free, _ = torch.cuda.mem_get_info(args.device)
    batch_size = fitting_batch(free, per_image, largest=max(CHUNK, 4096 // size_factor))
    torch.cuda.empty_cache()
    return batch_size


def fitting_batch(free: float, per_image: float, largest: int) -> int:
    """The images of `per_image` bytes that 60 % of the free memory holds, 1 to `largest`.

    In whole chunks where it holds one: then random draws do not depend on the batch size either.
    """
    fitting = min(largest, int(0.6 * free / per_image))
    return max(1, fitting if fitting < CHUNK else fitting // CHUNK * CHUNK)


def refuse_other_data(run: RunFolder, data: Dataset) -> None:
    """Stop if the run in the folder was trained on other images, by their statistics."""
    trained = read_json(run.path / "args.json") or {}
    if trained.get("mean", list(data.mean)) != list(data.mean):
        raise InputError(f"{run.path} was trained on other images: check --data-dir")


def describe_run(args: argparse.Namespace, data: Dataset) -> dict[str, Any]:
    """What args.json records: every flag as resolved, and what the run was made with."""
    git = ("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
    derived = ("sweep", "inputs", "splits", "kept_epochs")
    return {name: value for name, value in vars(args).items() if name not in derived} | {
        "mean": data.mean,
        "std": data.std,
        "git_commit": commit,
        "torch": torch.__version__,
        "ran_on": name,
    }


def differing_flag(args: argparse.Namespace, earlier: dict, names: Iterable[str]) -> str | None:
    """One line on the first of the flags that is not what an earlier run of the folder had."""
    for name in sorted(names):
        value = json.loads(json.dumps(getattr(args, name), default=str))
        if name in earlier and earlier[name] != value:
            return f"--{name.replace('_', '-')} was {earlier[name]}, is {value} now"
    return None


class _TqdmHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def log_to(path: Path) -> None:
    """From here on, log lines also go to a file, with the time in front."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; what a user can mend ends as one line on stderr and exit code 1."""
    logger.setLevel(logging.INFO)
    logger.handlers = [_TqdmHandler()]
    former = signal.signal(signal.SIGTERM, _stop)
    code = 1
    try:
        main()
        return
    except InputError as error:
        message = str(error)
    except Stopped as error:
        message, code = str(error), error.code
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except torch.OutOfMemoryError as error:
        message = f"{str(error).splitlines()[0]} --eval-batch-size can be lowered"
    except OSError as error:
        # A folder without permission, for example: the system's message names the file.
        message = str(error)
    finally:
        signal.signal(signal.SIGTERM, former)
    if len(logger.handlers) > 1:
        logger.handlers[1].emit(logging.makeLogRecord({"msg": f"error: {message}"}))
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


def _stop(number: int, _: Any) -> None:
    raise Stopped(number, "; the same command goes on behind what is finished")
