"""Trees of image files, train/CLASS/* and val/CLASS/*, as they lie on people's disks."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils import InputError, logger

PARTS = ("train", "val")
# What the folders of a tree are called elsewhere, in the order in which they are proposed.
OTHER_NAMES = {
    "train": ("training", "Train", "Training", "TRAIN"),
    "val": ("valid", "validation", "test", "testing", "dev", "eval", "Val", "Test", "VAL", "TEST"),
}
# What systems leave in folders without being asked, besides what is hidden.
LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
LITTER |= {"__pycache__", "lost+found"}


class Listing(datasets.ImageFolder):
    """The image files of one folder per class, but for what is hidden or left by systems."""

    def __init__(self, root: Path):
        self.litter: list[str] = []  # names of what is passed over
        super().__init__(str(root), is_valid_file=self._is_image, allow_empty=True)
        for _, folders, files in os.walk(root):
            self.litter += [name for name in (*folders, *files) if is_litter(name)]
            folders[:] = [name for name in folders if not is_litter(name)]

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the classes, and the number of each; hidden folders are none."""
        with os.scandir(directory) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not is_litter(e.name))
        if not names:
            raise InputError(
                f"{directory}: holds no folders; expected one folder per class with images in it"
            )
        return names, {name: number for number, name in enumerate(names)}

    def _is_image(self, path: str) -> bool:
        parts = Path(path).relative_to(self.root).parts
        return path.lower().endswith(IMG_EXTENSIONS) and not any(map(is_litter, parts))


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left by a system."""
    return name.startswith(".") or name.lower() in LITTER


def list_tree(root: Path) -> tuple[Listing, Listing]:
    """The files of both parts of a tree, which hold the same classes.

    Raises:
        InputError: a part is missing, a class is empty or in one part alone, or there is but one;
            its text says what to do.
    """
    for part in PARTS:
        if not (root / part).is_dir():
            raise InputError(_without(root, part))
    listings = Listing(root / "train"), Listing(root / "val")
    litter = [name for listing in listings for name in listing.litter]
    if litter:
        names = ", ".join(list(dict.fromkeys(litter))[:3])
        logger.info(f"{root}: passed over, hidden or left by a system: {len(litter)}, like {names}")
    for listing in listings:
        _check_classes(listing)
    train, val = listings
    if train.classes != val.classes:
        raise InputError(_other_classes(root, train.classes, val.classes))
    if len(train.classes) < 2:
        raise InputError(f"{root / 'train'}: only one class; at least two are needed")
    return train, val


def _other_classes(root: Path, train: list[str], val: list[str]) -> str:
    """What to do where the parts of a tree hold different classes."""
    alone = {"train": [n for n in train if n not in val], "val": [n for n in val if n not in train]}
    listed = [
        f"only in {part}/ {', '.join(names[:3])}{', ...' if names[3:] else ''} ({len(names)})"
        for part, names in alone.items()
        if names
    ]
    letters = {_letters(name): name for name in alone["train"]}
    for name in alone["val"]:
        if _letters(name) in letters:
            advice = f"rename {root / 'val' / name} to {letters[_letters(name)]}"
            break
    else:
        part, names = next((part, names) for part, names in alone.items() if names)
        other = "val" if part == "train" else "train"
        advice = (
            f"make {root / other / names[0]} with its images, or move {root / part / names[0]} away"
        )
    return f"{root}: train/ and val/ hold different classes: {', '.join(listed)}; {advice}"


def _letters(name: str) -> str:
    """What two spellings of a name have in common: cats, Cat and cat_ are one."""
    return re.sub(r"[\W_]", "", name.lower()).removesuffix("s")


def _check_classes(listing: Listing) -> None:
    """Raise InputError where a class has no images."""
    counts: Counter[int] = Counter(listing.targets)
    empty = [name for number, name in enumerate(listing.classes) if not counts[number]]
    if empty:
        more = f" (and {len(empty) - 1} more classes)" if empty[1:] else ""
        folder = Path(listing.root) / empty[0]
        others = [path for path in folder.rglob("*") if path.is_file() and not is_litter(path.name)]
        kind = f", only {others[0].name} and the like, which is not read" if others else ""
        raise InputError(
            f"{folder}: a class without images{more}{kind}; put some there "
            f"({', '.join(IMG_EXTENSIONS)}), or delete this class's folder in train/ and in val/"
        )


def _without(root: Path, part: str) -> str:
    """What to do where a tree lacks a part."""
    expected = f"expected {root}/train/CLASS/* and {root}/val/CLASS/*"
    if not root.is_dir():
        return f"{root / part}: there is no folder {root}; {expected}"
    folders = sorted(e.name for e in root.iterdir() if e.is_dir() and not is_litter(e.name))
    others = {
        missing: next((name for name in OTHER_NAMES[missing] if name in folders), None)
        for missing in PARTS
        if missing not in folders
    }
    if other := others.get(part):
        links = [f"ln -s {name} {root / missing}" for missing, name in others.items() if name]
        return (
            f"{root / part}: missing; {root / other} is there: rename it to {part}, or link it: "
            f"{' && '.join(links)}"
        )
    whole = root.resolve()
    if whole.name in (*PARTS, *OTHER_NAMES["val"]) and (whole.parent / "train").is_dir():
        return (
            f"{root}: is itself the {whole.name}/ of a tree: name the folder that holds it and the "
            f"other part, --data-dir {root.parent if root.name == whole.name else whole.parent}"
        )
    inner = [name for name in folders if (root / name / "train").is_dir()]
    if inner:
        return f"{root / part}: missing; the tree is one level deeper: --data-dir {root / inner[0]}"
    if part == "train" and folders:
        names = ", ".join(folders[:3])
        return (
            f"{root / part}: missing; {root} holds {names}: where these are classes, share their "
            f"images out over train/CLASS and val/CLASS"
        )
    return f"{root / part}: missing; {expected}"


def open_rgb(path: Path) -> Image.Image:
    """An image of any mode as 8-bit RGB; grey values of 16 bits or floats keep their range.

    Raises:
        ValueError: its values are of no known range.
    """
    with Image.open(path) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return Image.fromarray(_as_bytes(image)).convert("RGB")
    return datasets.folder.default_loader(str(path))


def _as_bytes(image: Image.Image) -> np.ndarray:
    """Grey values as uint8, which Pillow would clip at 255."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise ValueError(f"grey values from {low:g} to {high:g}; floats are read from 0 to 1")
        return np.rint(values * 255.0).astype(np.uint8)
    if image.mode != "I" or image.format in ("PNG", "PPM"):
        return np.rint(values / 257.0).astype(np.uint8)  # 65535 is white
    if low < 0 or high > 255:
        raise ValueError(
            f"32-bit grey values from {low} to {high}; save it with 8 or 16 bits per pixel"
        )
    return values.astype(np.uint8)
