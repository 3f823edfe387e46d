"""Trees of images as people have them: litter, folders of other names, images of other modes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_datasets import load

from robust_nc.data import datasets
from robust_nc.data.datasets import equal_splits
from utils import InputError


def litter(root):
    """What notebooks, systems and archives leave behind; how many files and folders."""
    notebook = root / "train" / ".ipynb_checkpoints"
    notebook.mkdir()
    (notebook / "0-checkpoint.png").write_bytes(b"no image")
    inner = root / "val" / "bee" / "__MACOSX"
    inner.mkdir()
    (inner / "0.png").write_bytes(b"no image")
    (root / "train" / "__MACOSX").mkdir()
    for file in ("train/ant/._0.png", "train/cat/Thumbs.db", "val/.DS_Store", "train/cat/.x.jpg"):
        (root / file).write_bytes(b"no image")
    return 7


@pytest.mark.parametrize("name", ("folder", "imnet"))
def test_what_is_hidden_or_left_by_systems_is_passed_over_in_one_line(name, image_tree, caplog):
    caplog.set_level("INFO", logger="robust_nc")
    clean = load(name, image_tree)
    assert not caplog.records
    count = litter(image_tree)
    data = load(name, image_tree)
    assert data.num_classes == 3 and torch.equal(data.train.images, clean.train.images)
    [line] = [record.getMessage() for record in caplog.records]
    assert f"passed over, hidden or left by a system: {count}, like" in line


def rename_val(to):
    def change(root):
        (root / "val").rename(root / to)
        return (
            root,
            f"{root}/val: missing; {root}/{to} is there: rename it to val, or link it: ln -s",
        )

    return change


def name_train(root):
    return root / "train", f"is itself the train/ of a tree: .* --data-dir {root}$"


def name_val(root):
    return root / "val", f"is itself the val/ of a tree: .* --data-dir {root}$"


def name_the_one_above(root):
    return root.parent, f"the tree is one level deeper: --data-dir {root}$"


def empty_train(root):
    for path in (root / "train" / "bee").iterdir():
        path.unlink()
    return root, f"{root}/train/bee: a class without images; put some there .* or delete"


def leave_litter_alone_in_val(root):
    for path in (root / "val" / "bee").iterdir():
        path.rename(path.with_name("._" + path.name))
    return root, f"{root}/val/bee: a class without images"


def take_out_the_parts(root):
    for path in (root / "train").iterdir():
        path.rename(root / path.name)
    (root / "train").rmdir()
    (root / "val").rename(root.parent / "elsewhere")
    return root, "holds ant, bee, cat: where these are classes, share .* train/CLASS and val/CLASS"


def flatten(root):
    for i, path in enumerate((root / "train").glob("*/*.png")):
        path.rename(root / "train" / f"{i}.png")
    for folder in ("ant", "bee", "cat"):
        (root / "train" / folder).rmdir()
    return root, "train: holds no folders; expected one folder per class"


def name_nothing(root):
    return root / "nowhere", f"there is no folder {root}/nowhere; expected"


def rename_both(root):
    (root / "val").rename(root / "valid")
    (root / "train").rename(root / "training")
    return root, f"ln -s training {root}/train && ln -s valid {root}/val$"


def save_as_gif(root):
    for path in (root / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".gif"))
    return (
        root,
        rf"{root}/train/bee: a class without images, only \d\.gif and the like, which is not",
    )


def name_a_class_otherwise(root):
    (root / "val" / "bee").rename(root / "val" / "Bees")
    return root, (
        r"different classes: only in train/ bee \(1\), only in val/ Bees \(1\); rename "
        f"{root}/val/Bees to bee$"
    )


def leave_out_classes(root):
    for number in range(4):
        shutil.copytree(root / "train" / "ant", root / "train" / f"class{number}")
    return root, (
        r"only in train/ class0, class1, class2, \.\.\. \(4\); make "
        f"{root}/val/class0 with its images, or move {root}/train/class0 away$"
    )


CHANGES = (
    *(name_a_class_otherwise, leave_out_classes, rename_both, save_as_gif),
    *map(rename_val, ("test", "valid", "validation")),
    *(name_train, name_val, name_the_one_above, empty_train, leave_litter_alone_in_val),
    *(take_out_the_parts, flatten, name_nothing),
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_tree_that_is_laid_out_otherwise_is_told_what_to_do(change, image_tree):
    folder, expected = change(image_tree)
    with pytest.raises(InputError, match=expected) as caught:
        load("folder", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", (rename_val("test"), name_train, name_val, empty_train))
def test_imagenette_likewise(change, image_tree):
    folder, expected = change(image_tree)
    with pytest.raises(InputError, match=expected):
        load("imnet", folder)


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


def saved(image_tree, image, suffix="png", **options):
    """The first image of the data once this image has taken its place, in [0, 1], (3, 32, 32)."""
    (image_tree / "train" / "ant" / "0.png").unlink()
    image.save(image_tree / "train" / "ant" / f"0.{suffix}", **options)
    return load("folder", image_tree).train.images[0].double() / 255


@pytest.mark.parametrize("suffix", ("png", "tiff", "pgm"))
def test_16_bit_grey_is_scaled_to_its_range(suffix, image_tree):
    values = Image.fromarray((RAMP * 65535).astype(np.uint16))
    found = saved(image_tree, values, suffix)
    for channel in found:
        np.testing.assert_allclose(channel, RAMP, atol=0.0021)


def test_floats_from_0_to_1_are_scaled_to_it(image_tree):
    found = saved(image_tree, Image.fromarray(RAMP.astype(np.float32)), "tiff")
    np.testing.assert_allclose(found[1], RAMP, atol=0.0021)


@pytest.mark.parametrize(
    ("values", "expected"),
    (
        ((RAMP * 200).astype(np.float32), "grey values from 0 to 200; floats are read from 0 to 1"),
        ((RAMP - 0.5).astype(np.float32), "grey values from -0.5 to 0.5"),
        (np.full((32, 32), np.nan, np.float32), "grey values from nan to nan"),
        ((RAMP * 70000).astype(np.int32), "32-bit grey values from 0 to 70000; save it with 8 or"),
        ((RAMP * -9).astype(np.int32), "32-bit grey values from -9 to 0"),
    ),
)
def test_grey_values_of_an_unknown_range_are_refused(values, expected, image_tree):
    with pytest.raises(InputError, match=rf"0\.tiff: cannot be read as an image \({expected}"):
        saved(image_tree, Image.fromarray(values), "tiff")


@pytest.mark.parametrize(
    ("mode", "suffix"),
    (("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "tiff")),
)
def test_images_of_other_modes_keep_their_colours(mode, suffix, image_tree):
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[:, 16:] = 255
    found = saved(image_tree, Image.fromarray(colour).convert(mode), suffix)
    np.testing.assert_allclose(found, colour.transpose(2, 0, 1) / 255, atol=0.01)


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    (
        ("train", lambda labels: labels - 1, "the training split has labels from -1 to 8"),
        ("test", lambda labels: labels - 1, "the test split has labels from -1 to 8, expected 0"),
        ("test", lambda labels: labels + 3, "the test split has labels from 3 to 12"),
        ("test", lambda labels: labels[:-1], "the test split has 359 labels of 360 images"),
    ),
)
def test_labels_that_are_no_class_are_refused(part, change, expected, tmp_path, monkeypatch):
    source = datasets.DATASETS["digits"]

    def read(*args):
        splits = dict(zip(("train", "test"), source.read(*args), strict=False))
        splits[part] = replace(splits[part], labels=change(splits[part].labels))
        return splits["train"], splits["test"], 10

    monkeypatch.setitem(datasets.DATASETS, "digits", replace(source, read=read))
    with pytest.raises(InputError, match=expected):
        load("digits", tmp_path)


@pytest.mark.parametrize(("part", "name"), (("train", "training"), ("test", "test")))
def test_a_class_missing_in_a_split_has_no_equal_number(part, name, tmp_path):
    data = load("digits", tmp_path)
    split = getattr(data, part)
    without = split.select((split.labels != 4).nonzero().flatten())
    with pytest.raises(InputError, match=f"--equal-n: no image of class 4 is in the {name} split"):
        equal_splits(replace(data, **{part: without}), seed=1)
