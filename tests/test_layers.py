"""Collapse layer by layer (--layerwise) and the nearest-centre classifier (--ncc)."""

import sys
from dataclasses import asdict
from itertools import product

import cases
import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS, TinyNet
from test_scripts import TREE_FOLDER, rows

import eval as eval_script
import train
import utils
from attacks import pgd
from nc_metrics import StreamingCollapse, compute_class_means, neural_collapse

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
}


def stream(features, labels, predictions, classes, batch_size):
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
    found = stream(h, y, logits.argmax(1), classes, batch_size)
    expected = neural_collapse(h, y, logits, w)
    assert_same_collapse(found.result(), expected)
    torch.testing.assert_close(found.class_means, expected.class_means)


def test_streaming_takes_a_missing_class_and_refuses_a_single_one():
    h, y, w, logits = map(torch.from_numpy, cases.features(100, 16, 5, 0.5, seed=0))
    some = y != 3
    found = stream(h[some], y[some], logits[some].argmax(1), 5, 10)
    assert not found.class_means[3].any()
    assert_same_collapse(found.result(), neural_collapse(h[some], y[some], logits[some], w))
    with pytest.raises(ValueError, match="two classes"):
        StreamingCollapse(1)


@pytest.mark.parametrize(("name", "size"), BLOCKS)
def test_blocks_are_those_of_the_architecture_and_end_in_the_features(name, size):
    torch.manual_seed(0)
    bf16 = size == 32  # under autocast too
    network = utils.Network(utils.build_model(name, size, 3, 10), *CIFAR_STATISTICS, bf16=bf16)
    x = torch.rand(2, 3, size, size)
    for seen in (network.eval(), utils.FoldedNetwork(network)):
        with torch.no_grad(), utils.block_outputs(seen) as found:
            _, features = seen(x, return_activations=True)
        shapes = BLOCKS[name, size]
        widths = [channels * height * width for channels, height, width in shapes.values()]
        assert {key: value.shape for key, value in found.items()} == {
            key: (2, width) for key, width in zip(shapes, widths, strict=True)
        }
        assert [key for key, _ in seen.model.blocks()] == list(shapes)
        assert torch.equal(found["features"].float(), features)
        if name == "vgg11bn":  # behind its ReLU, in the folded network too
            assert all((value >= 0).all() for value in found.values())
        else:
            assert (found["norm"] >= 0).all() and (found["layer4"] < 0).any()
    network(x)
    assert found["features"].shape == (2, 512) and not network.model.pool._forward_hooks


@pytest.mark.parametrize("name", utils.MODELS)
def test_blocks_measured_in_batches_equal_their_outputs_in_memory(name, golden_network):
    network = golden_network(name).eval()
    images = torch.from_numpy(cases.images(12, 3, 32, 1))
    labels = torch.arange(12) % 4
    with torch.no_grad(), utils.block_outputs(network) as found:
        logits = network(images)
    measured = utils.measure_blocks(network, images, labels, batch_size=5)
    assert list(measured) == list(found)
    for layer, (width, collapse) in measured.items():
        weight = torch.zeros(10, width)
        expected = neural_collapse(found[layer], labels, logits, weight)
        assert width == found[layer].shape[1]
        # The batch decides how convolutions round, so this is looser than the test above.
        assert collapse.nc1 == pytest.approx(expected.nc1, rel=1e-3)
        assert collapse.nc2_angle == pytest.approx(expected.nc2_angle_activation, rel=1e-3)
        assert collapse.ncc_accuracy == expected.ncc_accuracy


def test_a_network_that_diverged_is_refused(tiny_net):
    tiny_net.norm.weight.data[0] = float("nan")
    network = utils.Network(tiny_net, *CIFAR_STATISTICS)
    with pytest.raises(utils.InputError, match="not finite"):
        utils.measure_blocks(network, torch.rand(4, 3, 8, 8), torch.arange(4), 2)


@pytest.fixture
def flags(image_tree, monkeypatch):
    """The sweep of a run of three epochs on 18 training and 6 test images, with a tiny network."""
    monkeypatch.setattr(
        utils, "build_model", lambda name, size, channels, classes: TinyNet(channels, classes)
    )
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
    centres = rows(CENTRES)
    keys = [(row["epoch"], row["split"], row["means"], row["input"]) for row in centres]
    assert keys == [(epoch, "test", *key) for epoch in "02" for key in CENTRE_KEYS]
    for row in centres:
        assert 0 <= float(row["ncc_accuracy"]) <= 1 and 0 <= float(row["network_accuracy"]) <= 1
    assert "features" in output and "by class mean" in output


@pytest.mark.parametrize("what", ("--layerwise", "--ncc"))
def test_each_alone_goes_on_where_it_stopped(what, trained, run_script, monkeypatch):
    path = LAYERS if what == "--layerwise" else CENTRES
    measured = []
    for name in ("measure_blocks", "outputs"):
        original = getattr(eval_script, name)

        def spy(*args, original=original):
            measured.append(1)
            return original(*args)

        monkeypatch.setattr(eval_script, name, spy)
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
    # A checkpoint of which rows are missing is measured again, and the file is the same.
    path.write_bytes(b"\n".join(whole.splitlines()[:-1]) + b"\n")
    measured.clear()
    assert run_script(eval_script, f"{trained} {what}")[0] == 0
    assert len(measured) == per_checkpoint and path.read_bytes() == whole
    # Other attacks are not mixed in, unless the earlier sweep is dropped.
    other = f"{trained} {what} --attack-iters 3"
    code, _, error = run_script(eval_script, other)
    assert code == 1 and "--attack-iters was 2, is 3 now" in error
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
def centres(golden_network):
    """The nearest-centre classifier of a network's features of 16 images, and those images."""
    network = golden_network("vgg11bn").eval()
    images = torch.from_numpy(cases.images(16, 3, 32, 5))
    labels = torch.arange(16) % 10
    with torch.no_grad():
        _, features = network(images, return_activations=True)
    means = compute_class_means(features.double(), labels, 10)
    return utils.NearestCentre(network, means).eval(), images, features


def test_logits_of_the_nearest_centre_are_negative_squared_distances(centres):
    classifier, images, features = centres
    means = classifier.class_means
    distances = torch.cdist(features.double(), means)
    unit = (means - means.mean(0)).square().sum(1).mean() / 10
    logits = classifier(images).detach()
    assert torch.equal(logits.argmax(1), distances.argmin(1))
    torch.testing.assert_close(logits, -distances.square() / unit, rtol=1e-5, atol=1e-4)
    # A common factor of features and means changes no logit, so it does not weaken an attack.
    scaled = utils.NearestCentre(classifier.network, 1e4 * means)
    torch.testing.assert_close(scaled.classify(1e4 * features), logits, rtol=1e-5, atol=1e-4)


def test_pgd_against_the_nearest_centre_lowers_its_accuracy_more_than_noise(centres):
    classifier, images, _ = centres
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
    part = utils.Split(images, torch.arange(16) % 4)
    data = utils.Dataset(part, part, 10, *CIFAR_STATISTICS)
    args = eval_script.parse_args(["--ncc", "--attack-iters", "4"])
    found = {
        (row.means, row.input): row.ncc_accuracy
        for row in eval_script.measure_centres(args, network, data, 0, 16, lambda size: None)
    }
    assert found.keys() == set(CENTRE_KEYS)
    for means in ("clean", "pgd"):
        assert found[means, "pgd"] > 0.9
        assert found[means, "adaptive"] <= found[means, "pgd"] - 0.5


def test_test_images_have_series_of_their_own(image_tree, run_script):
    flags = f"--dataset folder --data-dir {image_tree} --epochs 1 --attack-iters 2"
    assert run_script(train, f"{flags} --batch-size 7")[0] == 0
    kinds = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"
    results = TREE_FOLDER / "results"
    assert run_script(eval_script, f"{flags} {kinds}")[0] == 0
    trained = {path.name for path in results.glob("*.npy")}
    assert not any(name.startswith("test_") for name in trained)
    code, output, _ = run_script(eval_script, f"{flags} {kinds} --split both")
    assert code == 0 and "test input epoch" in output
    renamed = {f"test_{name.removeprefix('train_')}" for name in trained}
    assert {path.name for path in results.glob("test_*.npy")} == renamed
    records = utils.read_rows(results / "metrics.csv", utils.Record)
    found = {row.input: row for row in records if (row.source, row.split) == ("eval", "test")}
    assert found["pgd"].nc1 == np.load(results / "test_robust_nc1.npy")[0]
    assert found["clean"].accuracy == np.load(results / "test_acc.npy")[0]
    seen = next(row for row in records if (row.source, row.split) == ("train", "test"))
    assert found["clean"].loss == pytest.approx(seen.loss, rel=1e-6)


def test_autoattack_s_robust_accuracy_is_recorded(image_tree, run_script, monkeypatch):
    """With a stand-in for the package, whose attack turns every other image to black."""
    flags = f"--dataset folder --data-dir {image_tree} --epochs 1"
    assert run_script(train, f"{flags} --batch-size 7")[0] == 0
    code, _, error = run_script(eval_script, f"{flags} --autoattack 6")
    if not eval_script.find_autoattack():
        assert code == 2 and "--autoattack needs a package" in error
    made = []

    class AutoAttack:
        def __init__(self, model, **settings):
            made.append(settings)

        def run_standard_evaluation(self, x, y, bs):
            return x * (torch.arange(len(x)) % 2).view(-1, 1, 1, 1)

    monkeypatch.setattr(eval_script, "find_autoattack", lambda: "autoattack")
    module = type(sys)("autoattack")
    module.AutoAttack = AutoAttack
    monkeypatch.setitem(sys.modules, "autoattack", module)
    code, output, error = run_script(eval_script, f"{flags} --autoattack 6 --epsilon 8")
    assert code == 0, error
    assert made[0]["eps"] == pytest.approx(8 / 255) and made[0]["norm"] == "Linf"
    (row,) = utils.read_rows(TREE_FOLDER / "results/autoattack.csv", utils.AutoAttackRecord)
    assert row.images == 6 and row.robust_accuracy <= row.clean_accuracy
    code, output, _ = run_script(eval_script, f"{flags} --autoattack 6")
    assert code == 0 and "1 done before" in output and len(made) == 1
