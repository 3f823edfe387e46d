"""Collapse layer by layer (--layerwise), the nearest-centre classifier (--ncc) and AutoAttack."""

import csv
import sys
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from itertools import product
from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS, HAS_BF16, TinyNet
from test_scripts import TREE_FOLDER, rows

import eval as eval_script
import train
from attacks import pgd
from nc_metrics import StreamingCollapse, compute_class_means, neural_collapse
from robust_nc.data.datasets import Dataset, Selection, as_float, load_dataset
from robust_nc.data.inputs import Strength
from robust_nc.data.readers import Split
from robust_nc.measuring import centres
from robust_nc.measuring.centres import CentrePart, centre_rows
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.measuring.subject import Subject
from robust_nc.networks.architectures import ARCHITECTURES, build_model
from robust_nc.networks.blocks import NearestCentre, block_outputs
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network
from robust_nc.results.files import read_rows
from robust_nc.results.layer_rows import LAYER_METRICS
from robust_nc.results.records import AutoAttackRecord, Record
from utils import InputError

BLOCKS = {
    ("vgg11bn", 32): {
        "conv1": (64, 16, 16),
        "conv2": (128, 8, 8),
        "conv3": (256, 8, 8),
        "conv4": (256, 4, 4),
        "conv5": (512, 4, 4),
        "conv6": (512, 2, 2),
        "conv7": (512, 2, 2),
        "conv8": (512, 2, 2),
        "features": (512, 1, 1),
    },
    ("vgg11bn", 160): {
        "conv1": (64, 80, 80),
        "conv2": (128, 40, 40),
        "conv3": (256, 40, 40),
        "conv4": (256, 20, 20),
        "conv5": (512, 20, 20),
        "conv6": (512, 10, 10),
        "conv7": (512, 10, 10),
        "conv8": (512, 5, 5),
        "features": (512, 1, 1),
    },
    ("PreActResNet18", 32): {
        "stem": (64, 32, 32),
        "layer1": (64, 32, 32),
        "layer2": (128, 16, 16),
        "layer3": (256, 8, 8),
        "layer4": (512, 4, 4),
        "norm": (512, 4, 4),
        "features": (512, 1, 1),
    },
    ("PreActResNet18", 160): {
        "stem": (64, 40, 40),
        "layer1": (64, 40, 40),
        "layer2": (128, 20, 20),
        "layer3": (256, 10, 10),
        "layer4": (512, 5, 5),
        "norm": (512, 5, 5),
        "features": (512, 1, 1),
    },
    ("ResNet18", 32): {
        "stem": (64, 32, 32),
        "layer1": (64, 32, 32),
        "layer2": (128, 16, 16),
        "layer3": (256, 8, 8),
        "layer4": (512, 4, 4),
        "features": (512, 1, 1),
    },
}


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    """Few attacks on a classifier, of few steps; tests/test_centres.py is on their strength."""
    monkeypatch.setattr(centres, "MARGIN_ATTACKS", 1)
    monkeypatch.setattr(centres, "RIVALS", 1)
    monkeypatch.setattr(centres, "MARGIN_STEPS", 3)


def stream(features, labels, predictions, *, classes, batch_size):
    """Both passes of StreamingCollapse."""
    collapse = StreamingCollapse(classes)
    parts = [tensor.split(batch_size) for tensor in (features, labels, predictions)]
    for h, y, _ in zip(*parts, strict=True):
        collapse.add_to_means(h, y)
    for h, y, predicted in zip(*parts, strict=True):
        collapse.add_to_spread(h, y, predicted)
    return collapse


def assert_same_collapse(found, expected):
    """A LayerCollapse against a NeuralCollapse of the same features."""
    assert asdict(found) == pytest.approx(
        {
            "nc1": expected.nc1,
            "nc2_norm": expected.nc2_norm_activation,
            "nc2_angle": expected.nc2_angle_activation,
            "ncc_accuracy": expected.ncc_accuracy,
            "ncc_agreement": 1 - expected.nc4,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize("batch_size", (1, 7, 300))
@pytest.mark.parametrize(
    ("dimension", "classes", "spread"), ((40, 10, 1.0), (40, 10, 1e-4), (5, 12, 0.5))
)
def test_streaming_equals_neural_collapse_in_memory(dimension, classes, spread, batch_size):
    arrays = cases.features(300, dimension, classes, spread, seed=3)
    h, y, w, logits = map(torch.from_numpy, arrays)
    found = stream(h, y, logits.argmax(1), classes=classes, batch_size=batch_size)
    expected = neural_collapse(h, y, logits, w)
    assert_same_collapse(found.result(), expected)
    torch.testing.assert_close(found.class_means, expected.class_means)


def test_streaming_takes_a_missing_class_and_refuses_a_single_one():
    h, y, w, logits = map(torch.from_numpy, cases.features(100, 16, 5, 0.5, seed=0))
    some = y != 3
    found = stream(h[some], y[some], logits[some].argmax(1), classes=5, batch_size=10)
    assert not found.class_means[3].any()
    assert_same_collapse(found.result(), neural_collapse(h[some], y[some], logits[some], w))
    with pytest.raises(ValueError, match="two classes"):
        StreamingCollapse(1)


@pytest.mark.parametrize(("name", "size"), BLOCKS)
def test_blocks_are_those_of_the_architecture_and_end_in_the_features(name, size):
    torch.manual_seed(0)
    bf16 = size == 32 and HAS_BF16  # under autocast too
    model = build_model(name, size, in_channels=3, num_classes=10)
    network = Network(model, *CIFAR_STATISTICS, bf16=bf16)
    x = torch.rand(2, 3, size, size)
    for seen in (network.eval(), FoldedNetwork(network)):
        with torch.no_grad(), block_outputs(seen) as found:
            _, features = seen(x, return_activations=True)
        shapes = BLOCKS[name, size]
        widths = [channels * height * width for channels, height, width in shapes.values()]
        assert {key: value.shape for key, value in found.items()} == {
            key: (2, width) for key, width in zip(shapes, widths, strict=True)
        }
        assert [key for key, _ in seen.model.blocks()] == list(shapes)
        assert torch.equal(found["features"].float(), features)
        if name == "PreActResNet18":  # the norm after the last sum has a ReLU, the blocks have none
            assert (found["norm"] >= 0).all() and (found["layer4"] < 0).any()
        else:  # after its ReLU, in the folded network too
            assert all((value >= 0).all() for value in found.values())
    network(x)
    assert found["features"].shape == (2, 512) and not network.model.pool._forward_hooks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_measured_in_batches_equal_their_outputs_in_memory(name, golden_network):
    if name == "ResNet18":  # which was not published
        torch.manual_seed(0)
        network = Network(build_model(name, 32, in_channels=3, num_classes=10), *CIFAR_STATISTICS)
    else:
        network = golden_network(name)
    network.eval()
    images = torch.from_numpy(cases.images(12, 3, 32, 1))
    labels = torch.arange(12) % 4
    with torch.no_grad(), block_outputs(network) as found:
        logits = network(images)
    measured, _ = Evaluator(network, batch_size=5).blocks(images, labels)
    assert list(measured) == list(found)
    for layer, block in measured.items():
        width = block["features"]
        weight = torch.zeros(10, width)
        expected = neural_collapse(found[layer], labels, logits, weight)
        assert width == found[layer].shape[1]
        # The batch decides how convolutions round, so this is looser than the test above.
        assert block["nc1"] == pytest.approx(expected.nc1, rel=1e-3)
        assert block["nc2_angle"] == pytest.approx(expected.nc2_angle_activation, rel=1e-3)
        assert block["ncc_accuracy"] == expected.ncc_accuracy


def test_a_metric_of_blocks_is_its_row_and_its_value(tiny_net):
    """What is measured of targeted images is each metric of LayerRecord, and the width."""
    evaluator = Evaluator(Network(tiny_net, *CIFAR_STATISTICS), batch_size=4)
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    blocks, means = evaluator.blocks(images, labels)
    assert all(values.keys() < {*LAYER_METRICS, "features"} for values in blocks.values())
    blocks, _ = evaluator.blocks(images, labels, means, torch.tensor([1, 2, 3, 0]))
    assert all(values.keys() == {*LAYER_METRICS, "features"} for values in blocks.values())


def test_a_network_that_diverged_is_refused(tiny_net):
    tiny_net.norm.weight.data[0] = float("nan")
    network = Network(tiny_net, *CIFAR_STATISTICS)
    with pytest.raises(InputError, match="not finite"):
        Evaluator(network, batch_size=2).blocks(torch.rand(4, 3, 8, 8), torch.arange(4))


@pytest.fixture
def flags(image_tree, tiny_models):
    """The sweep of a run of three epochs on 18 training and 6 test images, with a tiny network."""
    return f"--dataset folder --data-dir {image_tree} --epochs 3 --attack-iters 2"


@pytest.fixture
def trained(flags, run_script):
    assert run_script(train, f"{flags} --batch-size 4 --lr-max 0.01")[0] == 0
    return flags


LAYERS = TREE_FOLDER / "results/layers.csv"
CENTRES = TREE_FOLDER / "results/ncc.csv"
LAYER_KEYS = list(
    product(("train", "test"), ("clean", "pgd", "gaussian", "targeted"), ("stem", "features"))
)
CENTRE_KEYS = list(product(("clean", "pgd"), ("clean", "pgd", "adaptive")))


def test_layers_and_centres_of_a_sweep(trained, run_script):
    what = "--layerwise --ncc --neural-collapse --checkpoints 0,2"
    code, output, error = run_script(eval_script, f"{trained} {what}")
    assert code == 0, error
    layers = rows(LAYERS)
    keys = [(row["epoch"], row["split"], row["input"], row["layer"]) for row in layers]
    assert keys == [(epoch, *key) for epoch in "02" for key in LAYER_KEYS]
    widths = {(row["layer"], row["index"], row["features"]) for row in layers}
    assert widths == {("stem", "0", str(8 * 15 * 15)), ("features", "1", "8")}
    # The last layer is what the sweep measures anyway, on the same perturbed images.
    swept = {
        (row["epoch"], row["input"]): row
        for row in rows(TREE_FOLDER / "results/metrics.csv")
        if row["source"] == "eval"
    }
    for row in layers:
        if (row["split"], row["layer"]) == ("train", "features") and row["input"] in (
            "clean",
            "pgd",
        ):
            other = swept[row["epoch"], row["input"]]
            assert float(row["nc1"]) == pytest.approx(float(other["nc1"]), rel=1e-6)
            assert float(row["ncc_accuracy"]) == pytest.approx(float(other["ncc_accuracy"]))
            assert float(row["ncc_agreement"]) == pytest.approx(1 - float(other["nc4"]))
    found = rows(CENTRES)
    keys = [(row["epoch"], row["split"], row["means"], row["input"]) for row in found]
    assert keys == [(epoch, "test", *key) for epoch in "02" for key in CENTRE_KEYS]
    for row in found:
        assert 0 <= float(row["ncc_accuracy"]) <= 1 and 0 <= float(row["network_accuracy"]) <= 1
    assert "features" in output and "by class mean" in output


# Of --layerwise: its images are perturbed, and the clean class means and its blocks measured.
def rows_of(content):
    return list(csv.DictReader(content.decode().splitlines()))


@pytest.mark.parametrize(("what", "calls_for_one"), (("--layerwise", 3), ("--ncc", 6)))
def test_each_alone_goes_on_where_it_stopped(what, calls_for_one, trained, run_script, monkeypatch):
    path = LAYERS if what == "--layerwise" else CENTRES
    measured = []
    for name in ("blocks", "block_means", "over_batches"):
        original = getattr(Evaluator, name)

        def spy(*args, original=original):
            measured.append(1)
            return original(*args)

        monkeypatch.setattr(Evaluator, name, spy)
    code, _, error = run_script(eval_script, f"{trained} {what} --checkpoints 0,2")
    assert code == 0, error
    per_checkpoint = len(measured) // 2
    before = path.read_bytes()
    measured.clear()
    code, output, _ = run_script(eval_script, f"{trained} {what} --checkpoints 0,2")
    assert code == 0 and "2 done before" in output and not measured
    assert path.read_bytes() == before
    assert run_script(eval_script, f"{trained} {what}")[0] == 0
    assert len(measured) == per_checkpoint
    whole = path.read_bytes()
    # A part of a checkpoint of which a row is missing is measured again, and the file is the same.
    path.write_bytes(b"\n".join(whole.splitlines()[:-1]) + b"\n")
    measured.clear()
    code, output, error = run_script(eval_script, f"{trained} {what}")
    assert code == 0, error
    assert "1 checkpoints (2 done before)" in output and path.read_bytes() == whole
    assert len(measured) == calls_for_one < per_checkpoint
    # Another attack stands beside it; other images do not, unless the earlier sweep is dropped.
    other = f"{trained} {what} --attack-iters 3"
    assert run_script(eval_script, other)[0] == 0
    assert [r for r in rows(path) if r["steps"] != "3"] == rows_of(whole)
    code, _, error = run_script(eval_script, f"{trained} {what} --limit-test 3")
    assert code == 1 and "--limit-test was None, is 3 now" in error
    assert run_script(eval_script, f"{other} --checkpoints 1 --overwrite")[0] == 0
    assert {row["epoch"] for row in rows(path)} == {"1"}


def test_batch_sizes_do_not_change_the_layers(trained, run_script):
    assert run_script(eval_script, f"{trained} --layerwise --checkpoints 2")[0] == 0
    whole = rows(LAYERS)
    flags = f"{trained} --layerwise --checkpoints 2 --layer-batch-size 4 --overwrite"
    assert run_script(eval_script, flags)[0] == 0
    for row, expected in zip(rows(LAYERS), whole, strict=True):
        assert float(row["nc1"]) == pytest.approx(float(expected["nc1"]), rel=1e-3)
        assert row["ncc_accuracy"] == expected["ncc_accuracy"]


def test_training_anew_drops_the_layers_of_later_epochs(trained, run_script):
    assert run_script(eval_script, f"{trained} --layerwise --ncc")[0] == 0
    before = [row for row in rows(LAYERS) if row["epoch"] == "0"]
    again = f"{trained} --batch-size 4 --lr-max 0.01 --resume 1 --overwrite"
    code, _, error = run_script(train, again)
    assert code == 0, error
    assert rows(LAYERS) == before
    assert {row["epoch"] for row in rows(CENTRES)} == {"0"}
    assert run_script(train, f"{trained} --lr-max 0.01 --overwrite")[0] == 0
    assert not LAYERS.exists() and not CENTRES.exists()


@pytest.fixture
def nearest_centres(golden_network):
    """The nearest-centre classifier of a network's features of 16 images, and those images."""
    network = golden_network("vgg11bn").eval()
    images = torch.from_numpy(cases.images(16, 3, 32, 5))
    labels = torch.arange(16) % 10
    with torch.no_grad():
        _, features = network(images, return_activations=True)
    means = compute_class_means(features.double(), labels, 10)
    return NearestCentre(network, means).eval(), images, features


def test_logits_of_the_nearest_centre_are_negative_squared_distances(nearest_centres):
    classifier, images, features = nearest_centres
    means = classifier.class_means
    distances = torch.cdist(features.double(), means)
    unit = (means - means.mean(0)).square().sum(1).mean() / 10
    logits = classifier(images).detach()
    assert torch.equal(logits.argmax(1), distances.argmin(1))
    torch.testing.assert_close(logits, -distances.square() / unit, rtol=1e-5, atol=1e-4)
    # A common factor of features and means changes no logit, so it does not weaken an attack.
    scaled = NearestCentre(classifier.network, 1e4 * means)
    torch.testing.assert_close(scaled.classify(1e4 * features), logits, rtol=1e-5, atol=1e-4)


def test_pgd_against_the_nearest_centre_lowers_its_accuracy_more_than_noise(nearest_centres):
    classifier, images, _ = nearest_centres
    labels = classifier(images).argmax(1)  # all right on clean images
    delta = pgd(classifier, images, labels, epsilon=8 / 255, step_size=2 / 255, steps=5)
    assert delta.abs().max() <= 8 / 255 + 1e-6
    noise = 8 / 255 * torch.randn_like(images).sign()
    with torch.no_grad():
        attacked, noisy = (
            (classifier((images + d).clamp(0, 1)).argmax(1) == labels).double().mean()
            for d in (delta, noise)
        )
    assert attacked < noisy
    assert attacked <= 0.5


def test_the_adaptive_attack_is_made_against_the_nearest_centre(golden_network):
    """A network that always answers the same gives PGD no gradient, its features give one."""
    network = golden_network("vgg11bn").eval()
    network.model.classifier.weight.data.zero_()
    images = torch.from_numpy(cases.images(16, 3, 32, 5))
    part = Split(images, labels=torch.arange(16) % 4)
    mean, std = CIFAR_STATISTICS
    attack = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 4, "norm": "l_inf"}
    evaluator = Evaluator(network, batch_size=16)
    subject = Subject(
        evaluator=evaluator,
        layers=evaluator,
        data=Dataset(train=part, test=part, num_classes=10, mean=mean, std=std),
        strengths=(Strength(attack=attack, restarts=1, noise=8 / 255, radius=8.0),),
        seed=1,
    )
    parts = [CentrePart("features", means, 8.0) for means in ("clean", "pgd")]
    found = {
        (row.means, row.input): row.ncc_accuracy
        for row in centre_rows(subject, epoch=0, parts=parts)
    }
    assert found.keys() == set(CENTRE_KEYS)
    for means in ("clean", "pgd"):
        assert found[means, "pgd"] > 0.9
        assert found[means, "adaptive"] <= found[means, "pgd"] - 0.5


def test_test_images_have_series_of_their_own(image_tree, tiny_models, run_script):
    flags = f"--dataset folder --data-dir {image_tree} --epochs 1 --attack-iters 2"
    assert run_script(train, f"{flags} --batch-size 7")[0] == 0
    kinds = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"
    results = TREE_FOLDER / "results"
    assert run_script(eval_script, f"{flags} {kinds}")[0] == 0
    trained = {path.name for path in results.glob("*.npy")}
    assert not any(name.startswith("test_") for name in trained)
    code, output, _ = run_script(eval_script, f"{flags} {kinds} --split both")
    assert code == 0 and "test input epsilon" in output
    renamed = {f"test_{name.removeprefix('train_')}" for name in trained}
    assert {path.name for path in results.glob("test_*.npy")} == renamed
    records = read_rows(results / "metrics.csv", Record)
    found = {row.input: row for row in records if (row.source, row.split) == ("eval", "test")}
    assert found["pgd"].nc1 == np.load(results / "test_robust_nc1.npy")[0]
    assert found["clean"].accuracy == np.load(results / "test_acc.npy")[0]
    seen = next(row for row in records if (row.source, row.split) == ("train", "test"))
    assert found["clean"].loss == pytest.approx(seen.loss, rel=1e-6)


# The brightness, 0 to 1, at which the network of `brightness_file` turns from class to class.
STEPS = (0.52, 0.68)
# What the stand-in attack does to the brightness of ant, ant, bee, bee, cat, cat.
SHIFTS = (0.1, -0.1, 0.1, -0.1, -0.1, -0.1)
EPSILON = 30  # in 1/255, a little more than the shifts


@pytest.fixture
def brightness_file(image_tree, tiny_models, tmp_path):
    """A checkpoint whose network classifies by brightness: it takes bees (0.47) for ants (0.19).

    Cats (0.74) it knows. A bee that is a little brighter it knows too, a darker cat it does not.
    """
    data, net = load_dataset("folder", Selection(image_tree)), TinyNet(channels=3, classes=3)
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
        # The convolution undoes the normalisation and takes the mean of its pixels.
        net.convolution.weight[0] = torch.tensor(data.std).view(3, 1, 1) / 27
        net.convolution.bias[0] = sum(data.mean) / 3
        net.norm.weight[0] = 1
        # Of lines that cross at the steps, the uppermost wins.
        net.linear.weight[:, 0] = torch.tensor([0.0, 1.0, 2.0])
        net.linear.bias.copy_(torch.tensor([0.0, -STEPS[0], -sum(STEPS)]))
    path = tmp_path / "brightness.pth"
    torch.save({"state_dict": net.state_dict(), "epoch": 0}, path)
    return path


def shifted(x, y):
    return (x + torch.tensor(SHIFTS).view(-1, 1, 1, 1)).clamp(0, 1)


def autoattack_flags(image_tree, file, more=""):
    attack = f"--autoattack 100 --epsilon {EPSILON}"
    return f"--dataset folder --data-dir {image_tree} {attack} --checkpoint {file} --out out {more}"


def stand_in(name, attack, made):
    """A module in place of an AutoAttack package: `attack` of images and labels is its attack."""

    class Targeted:
        n_target_classes = 9

    class AutoAttack:
        def __init__(self, model, **settings):
            self.settings, self.apgd_targeted, self.fab = settings, Targeted(), Targeted()
            made.append(self)

        def run_standard_evaluation(self, x, y, bs):
            return attack(x, y)

        def __call__(self, x, y):
            return attack(x, y)

    AutoAttack.__module__ = name
    module = type(sys)(name)
    module.AutoAttack, module.__spec__ = AutoAttack, ModuleSpec(name, None)
    return module


@pytest.fixture
def install(monkeypatch):
    """Make one of the AutoAttack packages importable, with a given attack; returns what it made."""
    for name in ("autoattack", "torchattacks"):
        monkeypatch.setitem(sys.modules, name, None)

    def put(name, attack):
        made = []
        monkeypatch.setitem(sys.modules, name, stand_in(name, attack, made))
        return made

    return put


def test_without_an_autoattack_package_one_line_says_so(
    image_tree, brightness_file, install, run_script
):
    code, _, error = run_script(eval_script, autoattack_flags(image_tree, brightness_file))
    assert code == 2 and "--autoattack needs a package" in error and error.count("\n") == 1


@pytest.mark.parametrize("package", ("autoattack", "torchattacks"))
def test_autoattack_s_robust_accuracy_is_that_of_the_images_it_returns(
    package, image_tree, brightness_file, install, run_script, bars
):
    """Measured by a plain pass; a wrong image that the attack puts right counts as right."""
    data = load_dataset("folder", Selection(image_tree))
    net = TinyNet(channels=3, classes=3)
    net.load_state_dict(torch.load(brightness_file, weights_only=True)["state_dict"])
    x, y = as_float(data.test.images), data.test.labels
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    with torch.no_grad():
        clean, robust = (
            net.eval()((images - mean) / std).argmax(1) == y for images in (x, shifted(x, y))
        )
    assert clean.tolist() == [True, True, False, False, True, True]
    assert robust.tolist() == [True, True, True, False, False, False]

    made = install(package, shifted)
    code, output, error = run_script(eval_script, autoattack_flags(image_tree, brightness_file))
    assert code == 0, error
    assert made[0].settings["eps"] == pytest.approx(EPSILON / 255)
    assert made[0].settings["norm"] == "Linf" and made[0].settings["seed"] == 1
    (row,) = read_rows(Path("out/autoattack.csv"), AutoAttackRecord)
    assert row.images == 6 and row.robust_accuracy <= row.clean_accuracy
    assert row.clean_accuracy == clean.double().mean().item() == 4 / 6
    assert row.robust_accuracy == robust.double().mean().item() == 3 / 6
    assert "0.6667           0.5000" in output
    [bar] = bars
    assert bar.done == bar.total == 18 and bar.steps[:2] == [6, 6]


def test_autoattack_takes_all_images_where_more_are_asked_for(
    image_tree, tiny_models, install, run_script
):
    flags = f"--dataset folder --data-dir {image_tree} --epochs 1 --epsilon {EPSILON}"
    assert run_script(train, f"{flags} --batch-size 7")[0] == 0
    made = install("autoattack", shifted)
    assert run_script(eval_script, f"{flags} --autoattack 100")[0] == 0
    folder = Path(str(TREE_FOLDER).replace("eps8.0", f"eps{EPSILON}.0"))
    table = folder / "results/autoattack.csv"
    before = table.read_bytes()
    assert [row.images for row in read_rows(table, AutoAttackRecord)] == [6]
    code, output, _ = run_script(eval_script, f"{flags} --autoattack 100")
    assert code == 0 and "0 checkpoints (1 done before)" in output and len(made) == 1
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("package", "found"), (("autoattack", None), ("torchattacks", 3)), ids=("authors", "other")
)
def test_autoattack_knows_how_many_classes_there_are(
    package, found, image_tree, brightness_file, install, run_script
):
    """There are two other classes to aim at among three, where the authors' package takes nine."""
    made = install(package, shifted)
    assert run_script(eval_script, autoattack_flags(image_tree, brightness_file))[0] == 0
    assert made[0].settings.get("n_classes") == found
    if package == "autoattack":
        assert made[0].apgd_targeted.n_target_classes == made[0].fab.n_target_classes == 2


@pytest.mark.parametrize("package", ("autoattack", "torchattacks"))
@pytest.mark.parametrize(
    ("leave", "more"),
    (
        (lambda x, y: (x - 40 / 255).clamp(0, 1), ""),
        (lambda x, y: x + 30 / 255, ""),
        (lambda x, y: x - 30 / 255, ""),
        (lambda x, y: x * float("nan"), ""),
        (lambda x, y: (x - 1 / 255).clamp(0, 1), "--norm l_2"),  # far in l_2, close in l_inf
    ),
    ids=("ball", "above_white", "below_black", "nan", "l_2_ball"),
)
def test_an_autoattack_that_leaves_its_bounds_ends_with_one_line(
    leave, more, package, image_tree, brightness_file, install, run_script
):
    install(package, leave)
    code, _, error = run_script(eval_script, autoattack_flags(image_tree, brightness_file, more))
    assert code == 1 and error.count("\n") == 1
    assert f"AutoAttack of {package} left the epsilon-ball" in error
    assert not Path("out/autoattack.csv").exists()
