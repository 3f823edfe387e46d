"""One reader for each source of images: what lies on the disk, as both splits in uint8 tensors.

A reader is called with the folder, the image size and the address of a mirror (None: the published
one), and returns the training split, the test split and the number of classes. What cannot be read
is an InputError of one line that says which file belongs where.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets, transforms
from torchvision.datasets.utils import check_integrity

from robust_nc.data.image_tree import PARTS, list_tree, open_rgb
from utils import InputError, Progress, atomic_open, logger

DECODING = "2"  # another one where files are decoded otherwise: older caches are not read


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


def read_cifar(
    data_dir: Path, image_size: int, url: str | None, *, published: Any, classes: int
) -> tuple[Split, Split, int]:
    """CIFAR-10 or CIFAR-100 through torchvision, whose class of it is `published`."""
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
        labels = [torch.tensor(part.targets, dtype=torch.int64) for part in loaded]
    if not published._check_integrity(loaded[0]):
        logger.warning(
            f"{data_dir / published.base_folder} is not the published {name}: used as it is"
        )
    splits = [
        Split(
            torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))),
            targets,
        )
        for part, targets in zip(loaded, labels, strict=True)
    ]
    return splits[0], splits[1], classes


def _check_arrays_only(path: Path) -> None:
    """Refuse a CIFAR batch with an unknown checksum that holds more than arrays and numbers.

    torchvision reads these files with pickle, which can run code; the published files are known
    by their checksum, any other one is looked through first.
    """
    allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    for core in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
        allowed |= {(f"{core}.multiarray", "_reconstruct"), (f"{core}.multiarray", "scalar")}
        allowed |= {(f"{core}.numeric", "_frombuffer")}

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


def read_mnist(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
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


def read_svhn(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
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


def read_digits(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
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


def read_imagenette(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """ImageNette2-160 from its folders, centre-cropped to 160x160."""
    root = data_dir / "imagenette2-160"
    if not root.is_dir() and (data_dir / "train").is_dir():
        root = data_dir
    if not root.is_dir() and data_dir.resolve().name in PARTS:
        root = data_dir  # which list_tree says how to name
    if not root.is_dir():
        raise InputError(
            f"imnet: unpack imagenette2-160.tgz (fast.ai's ImageNette) so that {root}/train and "
            f"{root}/val exist, or name the folder that holds both with --data-dir"
        )
    return _read_tree(root, transforms.CenterCrop(160), "crop160")


def read_folder(data_dir: Path, image_size: int, url: str | None) -> tuple[Split, Split, int]:
    """Any train/CLASS/*, val/CLASS/* tree; the shorter side is resized, then centre-cropped."""
    fit = transforms.Compose([transforms.Resize(image_size), transforms.CenterCrop(image_size)])
    return _read_tree(data_dir, fit, f"fit{image_size}")


def _read_tree(root: Path, fit: Callable, fit_name: str) -> tuple[Split, Split, int]:
    listings = list_tree(root)
    splits = [
        Split(_decode(listing, fit, fit_name), torch.tensor(listing.targets, dtype=torch.int64))
        for listing in listings
    ]
    return splits[0], splits[1], len(listings[0].classes)


def _decode(listing: datasets.ImageFolder, fit: Callable, fit_name: str) -> Tensor:
    """All images of a folder as uint8 (N, 3, H, W), decoded in parallel or read from the cache.

    The cache lies in `.decoded` beside train/ and val/ and is keyed by every file's name, size and
    time of change, so that it is never older than the images.
    """
    root = Path(listing.root)
    paths = [Path(path) for path, _ in listing.samples]
    key = hashlib.sha256(f"{DECODING}{fit_name}".encode())
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
            image = fit(open_rgb(path))
        except Exception as error:  # Pillow raises many kinds
            raise InputError(f"{path}: cannot be read as an image ({error})") from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    decoded = []
    progress = Progress(len(paths), f"decoding {root}", "images")
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress:
        for image in pool.map(read, paths):
            decoded.append(image)
            progress.update()
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
