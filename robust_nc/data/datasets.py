"""Data sets in memory: a row of facts each in DATASETS, class-balanced subsets, batches.

Images are kept as uint8 tensors on the device of the run; readers.py decodes them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from robust_nc.data.readers import (
    Split,
    read_cifar,
    read_digits,
    read_folder,
    read_imagenette,
    read_mnist,
    read_svhn,
)
from utils import InputError


@dataclass(frozen=True)
class Dataset:
    """Both splits, and the statistics per channel, in [0, 1] units, that normalise them.

    digests: of the training and the test split, before a subset was taken of it.
    """

    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digests: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Dataset":
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class DataSource:
    """The facts of one data set.

    read: from its folder, the image size and the mirror's address (None: the published one) to
        both splits and the number of classes.
    statistics: mean and standard deviation per channel; None: those of the training split.
    image_sizes: the first is the default; a choice among several is --image-size.
    downloaded: whether it is downloaded where it is missing, from a mirror if there is one.
    per_class: training images kept of each class, drawn with the seed; None: all.
    epsilon_range: units of --epsilon and --pgd-alpha from black to white. Where it is 1 the
        published defaults, in 1/255, have no meaning, and both must be given.
    """

    read: Callable[[Path, int, str | None], tuple[Split, Split, int]]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    image_sizes: tuple[int, ...] = (32,)
    downloaded: bool = False
    per_class: int | None = None
    epsilon_range: int = 255


def units_of(dataset: str) -> float:
    """How many units of --epsilon there are from black to white: 255, or 1.

    dataset: a key of DATASETS, or the name that a folder was given, which is attacked in 1/255.
    """
    return DATASETS[dataset].epsilon_range if dataset in DATASETS else 255


@dataclass(frozen=True)
class Selection:
    """Which images of a data set a run takes."""

    data_dir: Path
    image_size: int = 32
    seed: int = 1
    limit_train: int | None = None
    limit_test: int | None = None
    data_url: str | None = None


def load_dataset(name: str, chosen: Selection) -> Dataset:
    """Read a data set of DATASETS into memory, downloading it where it is published.

    The limits keep class-balanced subsets drawn with the seed; a smaller subset is contained in a
    larger one of the same seed.

    Raises:
        InputError: data missing, unreadable, inconsistent, or fewer images kept than classes.
    """
    source, folder = DATASETS[name], chosen.data_dir
    train, test, num_classes = source.read(folder, chosen.image_size, chosen.data_url)
    for part, split in (("training", train), ("test", test)):
        fault = _fault_of_labels(split, num_classes)
        if fault:
            raise InputError(
                f"{folder}: labels of {name} do not fit its images and classes: the {part} split "
                f"has {fault}"
            )
    # Before any subset is taken: the same for every subset of the data.
    digests = (train.digest(), test.digest())
    mean, std = source.statistics or channel_statistics(train.images)
    if source.per_class:
        count = source.per_class * num_classes
        train = train.select(balanced_subset(train.labels, count, chosen.seed))
    splits = []
    for split, limit, flag in (
        (train, chosen.limit_train, "--limit-train"),
        (test, chosen.limit_test, "--limit-test"),
    ):
        if limit is not None and limit < num_classes:
            raise InputError(
                f"{flag} {limit} is less than one image for each of {num_classes} classes"
            )
        splits.append(
            split
            if limit is None
            else split.select(balanced_subset(split.labels, limit, chosen.seed))
        )
    return Dataset(splits[0], splits[1], num_classes, mean, std, digests)


def _fault_of_labels(split: Split, num_classes: int) -> str | None:
    """What is wrong with the labels of a split, in words."""
    if len(split.images) != len(split) or not len(split):
        return f"{len(split)} labels of {len(split.images)} images"
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= num_classes:
        return f"labels from {low} to {high}, expected 0 to {num_classes - 1}"
    return None


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


def equal_splits(data: Dataset, seed: int) -> Dataset:
    """Both splits with as many images of every class as the smallest class of either has.

    Raises:
        InputError: a class has no image in one of them.
    """
    splits = (data.train, data.test)
    counts = [torch.bincount(part.labels, minlength=data.num_classes) for part in splits]
    for name, numbers in zip(("training", "test"), counts, strict=True):
        if not numbers.all():
            missing = ", ".join(str(c) for c in (numbers == 0).nonzero().flatten().tolist()[:3])
            raise InputError(
                f"--equal-n: no image of class {missing} is in the {name} split, so that no number "
                "of images is the same for all; leave it out, or complete the data"
            )
    size = int(min(numbers.min() for numbers in counts)) * data.num_classes
    train, test = (
        part.select(balanced_subset(part.labels.cpu(), size, seed).to(part.labels.device))
        for part in splits
    )
    return replace(data, train=train, test=test)


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


def batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as float in [0, 1] with their labels, in order."""
    for part, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield as_float(part), y


DATASETS: dict[str, DataSource] = {
    "cifar": DataSource(
        partial(read_cifar, published=datasets.CIFAR10, classes=10),
        statistics=((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        downloaded=True,
    ),
    "cifar100": DataSource(
        partial(read_cifar, published=datasets.CIFAR100, classes=100),
        statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        downloaded=True,
    ),
    "imnet": DataSource(read_imagenette, statistics=((0.5,) * 3, (0.5,) * 3), image_sizes=(160,)),
    "mnist": DataSource(
        read_mnist,
        statistics=((0.1307,), (0.3081,)),
        downloaded=True,
        per_class=5000,
        epsilon_range=1,
    ),
    "digits": DataSource(read_digits),
    "svhn": DataSource(
        read_svhn,
        statistics=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        downloaded=True,
    ),
    "folder": DataSource(read_folder, image_sizes=(32, 160)),
}
DOWNLOADED = tuple(name for name, source in DATASETS.items() if source.downloaded)
