"""Fixtures: the golden values, small data sets on disk, and scripts run as from the shell."""

import gzip
import json
import os
import pickle
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import utils
from robust_nc.data.datasets import DATASETS
from robust_nc.networks import architectures, network

# Tests that run side by side, as `make test` has them, take a core each: threads of several
# processes on the same cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts that tests start

GOLDEN = Path(__file__).parent / "golden"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path[:0] = [str(GOLDEN), str(BENCHMARKS)]

import cases  # noqa: E402

# Emulated, bf16 takes a minute where others take a second: small networks alone are tested in it.
HAS_BF16 = utils.computes_bf16(torch.device("cpu"))
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic")

GOLDEN_SEED = 7
# The published metrics, written out: tests do not take the list from the code that they test.
NC_METRICS = (
    "nc1",
    "nc2_norm_activation",
    "nc2_norm_classifier",
    "nc2_angle_activation",
    "nc2_angle_classifier",
    "nc3",
    "nc4",
)
CIFAR_STATISTICS = DATASETS["cifar"].statistics


def images_and_labels():
    """The 16 images and labels of the golden attacks."""
    return (
        torch.from_numpy(cases.images(16, 3, 32, GOLDEN_SEED + 1)),
        torch.from_numpy(cases.labels(16, 10, GOLDEN_SEED + 2)),
    )


def read_resume(folder):
    """What resume.pth holds."""
    return torch.load(folder / "resume.pth", weights_only=True)


@pytest.fixture(scope="session")
def golden():
    """Name -> a golden .npz, opened."""
    return lambda name: np.load(GOLDEN / f"{name}.npz")


@pytest.fixture(scope="session")
def golden_json():
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def golden_model(golden_json):
    """Name of golden/state_dicts.json -> our model with the golden weights."""
    shapes = golden_json("state_dicts")

    def build(name):
        architecture, _, imagenet = name.partition("_")
        model = architectures.build_model(architecture, 160 if imagenet else 32, 3, 10)
        weights = cases.weights(shapes[name], GOLDEN_SEED)
        model.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in weights.items()})
        return model

    return build


@pytest.fixture(scope="session")
def golden_network(golden_model):
    return lambda name: network.Network(golden_model(name), *CIFAR_STATISTICS)


class TinyNet(torch.nn.Module):
    """A fast model with batch norm, for what does not depend on the architecture."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.convolution = torch.nn.Conv2d(channels, 8, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(8)
        self.features = torch.nn.Identity()
        self.linear = torch.nn.Linear(8, classes)

    def forward(self, x, return_activations=False):
        features = self.features(torch.relu(self.norm(self.convolution(x))).mean((2, 3)))
        logits = self.linear(features)
        return (logits, features) if return_activations else logits

    def blocks(self):
        return [("stem", self.norm), ("features", self.features)]


class Operations(TorchDispatchMode):
    """Counts operations by name and by the type of what they give, or else of what they change.

    Args:
        shape: only those that give a tensor of this shape.
    """

    def __init__(self, shape=None):
        super().__init__()
        self.shape, self.counts = shape, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        value = args[0] if result is None else result
        value = value[0] if isinstance(value, list | tuple) else value
        if self.shape in (None, getattr(value, "shape", None)):
            self.counts[str(function).split(".")[1], getattr(value, "dtype", None)] += 1
        return result


@pytest.fixture
def tiny_net():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def tiny_models(monkeypatch):
    """A tiny network in place of the real ones, whatever --model says."""
    monkeypatch.setattr(
        architectures,
        "build_model",
        lambda name, size, channels, classes, arguments=None: TinyNet(channels, classes),
    )


@pytest.fixture
def image_tree(tmp_path):
    """A tree of random 32x32 PNGs: train/ with 3 classes of 6, val/ with 3 classes of 2."""
    rng = np.random.RandomState(0)
    root = tmp_path / "tree"
    for part, count in (("train", 6), ("val", 2)):
        for c, name in enumerate(("ant", "bee", "cat")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 100, (32, 32, 3)) + 70 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def cifar_dir(tmp_path):
    """CIFAR-10's format with 5 x 8 training and 10 test images: not the published checksums."""
    rng = np.random.RandomState(1)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        count = 10 if name == "test_batch" else 8
        labels = [(i + len(name)) % 10 for i in rng.permutation(count)]
        batch = {
            "data": rng.randint(0, 256, (count, 3072)).astype(np.uint8),
            "labels": labels,
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder.parent


@pytest.fixture
def mnist_dir(tmp_path):
    """MNIST's raw files with 20 training and 10 test images, as torchvision unpacks them."""
    rng = np.random.RandomState(2)
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{part}-images-idx3-ubyte": header + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 2049, count) + labels.tobytes(),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder.parent.parent


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Run a script's main in tmp_path with flags; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(module, flags):
        name = f"{module.__name__}.py"
        monkeypatch.setattr(sys, "argv", [name, *flags.split()])
        capsys.readouterr()
        try:
            utils.run_script(module.main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def bars(monkeypatch):
    """The progress bars of sweeps, each with the steps by which it moved."""
    made = []

    class Bar(utils.Progress):
        def __init__(self, *args, **_):
            super().__init__(*args, shown=False)
            self.steps = []
            made.append(self)

        def update(self, count=1):
            self.steps.append(count)
            super().update(count)

    monkeypatch.setattr("eval.Progress", Bar)
    return made
