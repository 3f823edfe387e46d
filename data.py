"""Data sets in memory: one reader and one row of facts in DATASETS for each.

Images are decoded once and kept as uint8 tensors, on the device of the run.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets, transforms
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from files import atomic_open
from utils import InputError, logger


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

    def digest(self) -> str:
        """What tells these images and labels from others: 16 hexadecimal digits of a SHA-256."""
        key = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            key.update(np.ascontiguousarray(tensor.numpy()).data)
        return key.hexdigest()[:16]


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
    for split in (train, test):
        if len(split.images) != len(split) or split.labels.max() >= num_classes:
            raise InputError(f"{folder}: labels of {name} do not fit its images and classes")
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
    """Both splits with as many images of every class as the smallest class of either has."""
    splits = (data.train, data.test)
    counts = [torch.bincount(part.labels, minlength=data.num_classes).min() for part in splits]
    size = int(min(counts)) * data.num_classes
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


def _read_cifar(
    published: Any, classes: int, data_dir: Path, image_size: int, url: str | None
) -> tuple[Split, Split, int]:
    """CIFAR-10 or CIFAR-100 through torchvision."""
    name = published.__name__

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
    return splits[0], splits[1], classes


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
    return splits[0], splits[1], 10


def _read_svhn(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """SVHN's cropped digits through torchvision, without the extra images."""
    published = datasets.SVHN
    loaded = []
    for part in ("train", "test"):
        address, file, checksum = published.split_list[part]
        address = f"{url.rstrip('/')}/{file}" if url else address
        names: dict[str, Any] = {"split_list": {part: [address, file, checksum]}}
        other = (data_dir / file).is_file() and not check_integrity(data_dir / file, checksum)
        if other:
            logger.warning(f"{data_dir / file} is not the published one: used as it is")
            names["_check_integrity"] = lambda self: True
        with _download_errors("SVHN", address, f"put {file} into {data_dir}, or name a mirror"):
            svhn = type("SVHN", (published,), names)
            loaded.append(svhn(data_dir, split=part, download=not other))
    splits = [
        Split(torch.from_numpy(np.ascontiguousarray(part.data)), torch.from_numpy(part.labels))
        for part in loaded
    ]
    return splits[0], splits[1], 10


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
    return splits[0], splits[1], len(train.classes)


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
    except (OSError, InputError) as error:
        # The same text for both splits, of which run_script shows one.
        reason = str(error).removeprefix(f"{cache}: ")
        warnings.warn(f"{cache.parent}: decoded images are not cached: {reason}", stacklevel=2)
    return images


DATASETS: dict[str, DataSource] = {
    "cifar": DataSource(
        partial(_read_cifar, datasets.CIFAR10, 10),
        statistics=((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        downloaded=True,
    ),
    "cifar100": DataSource(
        partial(_read_cifar, datasets.CIFAR100, 100),
        statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        downloaded=True,
    ),
    "imnet": DataSource(_read_imagenette, statistics=((0.5,) * 3, (0.5,) * 3), image_sizes=(160,)),
    "mnist": DataSource(
        _read_mnist,
        statistics=((0.1307,), (0.3081,)),
        downloaded=True,
        per_class=5000,
        epsilon_range=1,
    ),
    "digits": DataSource(_read_digits),
    "svhn": DataSource(
        _read_svhn,
        statistics=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        downloaded=True,
    ),
    "folder": DataSource(_read_folder, image_sizes=(32, 160)),
}
DOWNLOADED = tuple(name for name, source in DATASETS.items() if source.downloaded)
