"""Data sets: what is read, which subset is kept, and what is refused."""

import errno
import http.server
import os
import pickle
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from robust_nc.data.datasets import DATASETS, Selection, balanced_subset, load_dataset
from utils import InputError


def load(name, folder, **chosen):
    """A data set, with the images that keywords of Selection choose."""
    return load_dataset(name, Selection(folder, **chosen))


def test_subsets_are_balanced_nested_and_drawn_with_the_seed():
    labels = torch.from_numpy(np.random.RandomState(0).permutation(np.arange(100) % 5))
    large, small = balanced_subset(labels, 53, seed=1), balanced_subset(labels, 20, seed=1)
    assert len(large) == 53 and len(set(large.tolist())) == 53
    counts = torch.bincount(labels[large])
    assert counts.max() - counts.min() == 1
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(large, balanced_subset(labels, 53, seed=1))
    assert not torch.equal(large, balanced_subset(labels, 53, seed=2))
    assert len(balanced_subset(labels, 1000, seed=1)) == 100


def test_subsets_take_all_of_a_class_that_runs_out():
    labels = torch.tensor([0] * 2 + [1] * 50)
    assert torch.bincount(labels[balanced_subset(labels, 20, seed=0)]).tolist() == [2, 18]


def test_digits_are_built_in_with_a_fixed_stratified_split(tmp_path):
    data = load("digits", tmp_path, seed=1)
    assert data.train.images.shape == (1437, 1, 32, 32) and len(data.test) == 360
    assert data.train.images.dtype == torch.uint8 and data.train.images.max() == 255
    share = torch.bincount(data.train.labels) / torch.bincount(data.test.labels)
    assert share.min() > 3.5 and share.max() < 4.5
    other = load("digits", tmp_path, seed=2)
    assert torch.equal(data.train.images, other.train.images)
    pixels = data.train.images.double() / 255
    assert data.mean[0] == pytest.approx(pixels.mean().item())
    assert data.std[0] == pytest.approx(pixels.std().item(), rel=1e-4)


def test_a_subset_keeps_the_statistics_of_the_whole_split(tmp_path):
    whole = load("digits", tmp_path)
    part = load("digits", tmp_path, limit_train=100, limit_test=20)
    assert (len(part.train), len(part.test)) == (100, 20)
    assert (part.mean, part.std) == (whole.mean, whole.std)
    with pytest.raises(InputError, match="--limit-train 5"):
        load("digits", tmp_path, limit_train=5)


def test_cifar_format_is_read_with_a_word_about_its_checksum(cifar_dir, caplog):
    data = load("cifar", cifar_dir)
    assert data.train.images.shape == (40, 3, 32, 32) and len(data.test) == 10
    assert "not the published" in caplog.text
    batch = pickle.loads((cifar_dir / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    assert torch.equal(data.train.images[0].flatten(), torch.from_numpy(batch["data"][0]))
    assert data.train.labels[:8].tolist() == batch["labels"]


def test_cifar100_has_its_hundred_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 200), ("test", 100)):
        pixels = np.full((count, 3072), np.arange(count)[:, None] % 100, np.uint8)
        batch = {"data": pixels, "fine_labels": [i % 100 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch | {"coarse_labels": [0] * count}))
    data = load("cifar100", tmp_path, limit_train=150)
    assert data.num_classes == 100 and len(data.train) == 150 and len(data.test) == 100
    assert (data.train.images[:, 0, 0, 0] == data.train.labels).all()
    assert data.mean == (0.5071, 0.4865, 0.4409)


def test_labels_beyond_the_classes_are_refused(cifar_dir):
    path = cifar_dir / "cifar-10-batches-py" / "data_batch_2"
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(batch | {"labels": [12] * 8}))
    with pytest.raises(InputError, match="labels of cifar"):
        load("cifar", cifar_dir)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match="cannot be read"):
        load("cifar", cifar_dir)


def test_a_cifar_batch_that_would_run_code_is_refused(cifar_dir, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    path = cifar_dir / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Hostile(), "labels": []}))
    with pytest.raises(InputError, match="data_batch_3: not a CIFAR batch"):
        load("cifar", cifar_dir)
    assert not (tmp_path / "hacked").exists()


@pytest.fixture
def mirror(tmp_path):
    """A web server on this machine; returns its address, ending in /."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "wrong.tar.gz").write_bytes(b"something else")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "file"),
    (
        ("cifar", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("mnist", "four files"),
    ),
)
def test_data_that_cannot_be_downloaded_says_where_to_put_it(name, file, mirror, tmp_path):
    with pytest.raises(InputError) as caught:
        load(name, tmp_path / "data", data_url=f"{mirror}nothing")
    message = str(caught.value)
    assert file in message and str(tmp_path / "data") in message
    assert f"{mirror}nothing" in message and "\n" not in message


def test_a_mirror_must_have_the_published_checksum(mirror, tmp_path):
    with pytest.raises(InputError, match=r"wrong\.tar\.gz.*(corrupted|integrity|checksum)"):
        load("cifar", tmp_path / "data", data_url=f"{mirror}wrong.tar.gz")


def test_mnist_is_padded_to_32(mnist_dir):
    data = load("mnist", mnist_dir)
    assert data.train.images.shape == (20, 1, 32, 32)
    assert not data.train.images[:, :, :2].any() and not data.train.images[..., -2:].any()
    raw = datasets.MNIST(mnist_dir).data
    assert torch.equal(data.train.images[:, 0, 2:-2, 2:-2], raw)


def test_mnist_keeps_a_fixed_number_per_class(mnist_dir, monkeypatch):
    assert DATASETS["mnist"].per_class == 5000
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], per_class=1))
    first, second = (load("mnist", mnist_dir, seed=seed).train for seed in (1, 2))
    assert torch.bincount(first.labels).tolist() == [1] * 10
    assert not torch.equal(first.images, second.images)


def test_a_folder_is_decoded_once_and_again_when_it_changes(image_tree, monkeypatch):
    first = load("folder", image_tree)
    assert first.train.images.shape == (18, 3, 32, 32) and first.num_classes == 3
    pixels = np.array(Image.open(image_tree / "train" / "bee" / "0.png"))
    assert torch.equal(first.train.images[6], torch.from_numpy(pixels).permute(2, 0, 1))

    read = []
    loader = datasets.folder.default_loader
    monkeypatch.setattr(datasets.folder, "default_loader", lambda p: read.append(p) or loader(p))
    second = load("folder", image_tree)
    assert not read
    assert torch.equal(first.train.images, second.train.images)
    Image.new("RGB", (32, 32), "red").save(image_tree / "train" / "bee" / "0.png")
    third = load("folder", image_tree)
    assert len(read) == 18  # the training split alone
    assert third.train.images[6, 0].min() == 255


def test_a_damaged_cache_is_decoded_anew(image_tree):
    first = load("folder", image_tree)
    cache = image_tree / ".decoded" / "train-fit32.pt"
    cache.write_bytes(cache.read_bytes()[:100])
    assert torch.equal(first.train.images, load("folder", image_tree).train.images)


def take_the_folder_s_name(root, monkeypatch):
    (root / ".decoded").write_bytes(b"a file, not a folder")


def fill_the_disk(root, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    ("prevent", "reason"),
    ((take_the_folder_s_name, "File exists"), (fill_the_disk, "No space left on device")),
)
def test_a_cache_that_cannot_be_written_costs_one_line(
    prevent, reason, image_tree, run_script, monkeypatch
):
    expected = load("folder", image_tree)
    for cache in (image_tree / ".decoded").iterdir():
        cache.unlink()
    (image_tree / ".decoded").rmdir()
    prevent(image_tree, monkeypatch)
    loaded = []
    script = SimpleNamespace(
        __name__="script", main=lambda: loaded.append(load("folder", image_tree))
    )
    code, output, error = run_script(script, "")
    assert code == 0, error
    (line,) = (output + error).splitlines()
    assert "not cached" in line and reason in line and str(image_tree) in line
    for name in ("train", "test"):
        found, kept = getattr(loaded[0], name), getattr(expected, name)
        assert torch.equal(found.images, kept.images) and torch.equal(found.labels, kept.labels)
    left = (image_tree / ".decoded").iterdir() if prevent is fill_the_disk else ()
    assert not list(left)


def test_images_of_any_size_and_mode_are_fitted(image_tree):
    Image.new("L", (100, 50), 200).save(image_tree / "train" / "ant" / "0.png")
    small = load("folder", image_tree)
    assert small.train.images.shape[2:] == (32, 32)
    assert (small.train.images[0] == 200).all()
    large = load("folder", image_tree, image_size=160)
    assert large.train.images.shape[2:] == (160, 160)


def test_imagenette_is_centre_cropped(image_tree, tmp_path):
    image_tree.rename(tmp_path / "imagenette2-160")
    wide = np.zeros((160, 200, 3), np.uint8)
    wide[:, 20:180] = 9
    Image.fromarray(wide).save(tmp_path / "imagenette2-160" / "train" / "ant" / "0.png")
    data = load("imnet", tmp_path)
    assert data.train.images.shape[1:] == (3, 160, 160)
    assert (data.train.images[0] == 9).all()
    assert data.mean == (0.5, 0.5, 0.5)


def break_nothing_there(root):
    (root / "val").rename(root / "elsewhere")
    return "val"


def break_empty_class(root):
    for path in (root / "train" / "ant").iterdir():
        path.unlink()
    return "train"


def break_classes(root):
    (root / "val" / "ant").rename(root / "val" / "dog")
    return "different classes"


def break_image(root):
    (root / "train" / "cat" / "3.png").write_bytes(b"no image")
    return "3.png: cannot be read"


def break_truncated(root):
    path = root / "train" / "cat" / "4.png"
    path.write_bytes(path.read_bytes()[:200])
    return "4.png: cannot be read"


@pytest.mark.parametrize(
    "damage",
    (break_nothing_there, break_empty_class, break_classes, break_image, break_truncated),
)
def test_a_damaged_folder_is_refused_in_one_line(damage, image_tree):
    expected = damage(image_tree)
    with pytest.raises(InputError, match=expected) as caught:
        load("folder", image_tree)
    assert "\n" not in str(caught.value)
