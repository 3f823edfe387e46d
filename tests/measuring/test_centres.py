"""Layers against the clean training class means, and attacks on the classifiers by these means."""

import csv
import math
import shutil
from collections import Counter
from itertools import product

import cases
import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS, TinyNet
from test_scripts import TREE_FOLDER, rows

import eval as eval_script
import train
from attacks import gaussian_noise, margin_loss, pgd
from robust_nc.data import inputs
from robust_nc.data.datasets import Dataset, Selection, as_float, load_dataset
from robust_nc.data.inputs import INPUTS, Strength
from robust_nc.data.readers import Split
from robust_nc.measuring import centres
from robust_nc.measuring.centres import CentrePart
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.measuring.subject import InputPart, Subject
from robust_nc.networks.blocks import NearestCentre, block_outputs
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network
from utils import seed_everything

RESULTS = TREE_FOLDER / "results"
LAYERS, CENTRES = RESULTS / "layers.csv", RESULTS / "ncc.csv"
NEW = ("centre_accuracy", "target_centre_accuracy", "clean_distance", "clean_angle")
# Large enough for PGD to move the images of the tree across classes.
RADIUS = 60


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    """Attacks on the margin of few steps, where a test does not say otherwise."""
    monkeypatch.setattr(centres, "MARGIN_STEPS", 3)


@pytest.fixture
def flags(image_tree, tiny_models, run_script):
    """The flags of a run of three epochs, which is there, to be swept at a radius of its own."""
    tree = f"--dataset folder --data-dir {image_tree} --attack-iters 2"
    assert run_script(train, f"{tree} --epochs 3 --batch-size 4 --lr-max 0.01")[0] == 0
    return f"{tree} --epsilons {RADIUS}"


def value(text):
    return float(text) if text else math.nan


# ---------------------------------------------------------------------------------------------
# Every number again, by other code
# ---------------------------------------------------------------------------------------------


class Plain:
    """A checkpoint of the run, everything of it held in memory and in numpy."""

    def __init__(self, image_tree, epoch):
        self.epoch = epoch
        self.data = load_dataset("folder", Selection(image_tree))
        net = TinyNet(channels=3, classes=3)
        path = TREE_FOLDER / f"model_{epoch}.pth"
        net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        network = Network(net, self.data.mean, self.data.std).to_channels_last()
        self.network = FoldedNetwork(network)

    def images(self, split, name):
        """Images, labels that they are measured with, and true labels."""
        part = getattr(self.data, split)
        x, true = as_float(part.images), part.labels
        y = (true + 1) % 3 if name == "targeted" else true
        seed_everything(1, self.epoch, INPUTS[name].stream, *([1] if split == "test" else []))
        attack = {"epsilon": RADIUS / 255, "step_size": RADIUS / 4 / 255, "steps": 2}
        if name in ("pgd", "targeted"):
            x = x + pgd(self.network, x, y, targeted=name == "targeted", **attack)
        elif name == "gaussian":
            x = x + gaussian_noise(x, 8 / 255)
        return x, y.numpy(), true.numpy()

    def outputs(self, x, layer):
        with torch.no_grad():
            if layer == "stem":
                normed = (x - self.network.mean) / self.network.std
                return self.network.model.convolution(normed).flatten(1).double().numpy()
            return self.network(x, return_activations=True)[1].double().numpy()


def means_of(outputs, labels):
    return np.stack([outputs[labels == c].mean(0) for c in range(3)])


def nearest(outputs, means):
    return ((outputs[:, None] - means[None]) ** 2).sum(-1).argmin(1)


def centred(means):
    return means - means.mean(0)


def test_every_layer_s_place_among_the_clean_class_means(flags, image_tree, run_script):
    code, output, error = run_script(eval_script, f"{flags} --layerwise --checkpoints 0,2")
    assert code == 0, error
    found = {(row["epoch"], row["split"], row["input"], row["layer"]): row for row in rows(LAYERS)}
    kinds = ("clean", "pgd", "gaussian", "targeted")
    shares = Counter()
    for epoch, split, name in product((0, 2), ("train", "test"), kinds):
        plain = Plain(image_tree, epoch)
        clean, labels, _ = plain.images("train", "clean")
        x, y, true = plain.images(split, name)
        for layer in ("stem", "features"):
            clean_means = means_of(plain.outputs(clean, layer), labels)
            outputs = plain.outputs(x, layer)
            closest, means = nearest(outputs, clean_means), means_of(outputs, y)
            a, b = centred(clean_means), centred(means)
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            row = found.pop((str(epoch), split, name, layer))
            assert float(row["centre_accuracy"]) == (closest == true).mean()
            if name == "targeted":
                assert float(row["target_centre_accuracy"]) == (closest == y).mean()
            else:
                assert row["target_centre_accuracy"] == ""
            distance = np.linalg.norm(a - b, axis=1).mean()
            assert float(row["clean_distance"]) == pytest.approx(distance, rel=1e-5, abs=1e-9)
            angle = np.arccos(cosines.clip(-1, 1)).mean()
            assert float(row["clean_angle"]) == pytest.approx(angle, rel=1e-5, abs=1e-6)
            if name == "targeted":  # from the clean images of their own class too
                b = centred(means_of(outputs, true))
                own = np.linalg.norm(a - b, axis=1).mean()
                assert float(row["own_distance"]) == pytest.approx(own, rel=1e-5, abs=1e-9)
                cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
                angle = np.arccos(cosines.clip(-1, 1)).mean()
                assert float(row["own_angle"]) == pytest.approx(angle, rel=1e-5, abs=1e-6)
            else:
                assert row["own_distance"] == row["own_angle"] == ""
            shares[split, name] += float(row["centre_accuracy"])
            if (split, name) == ("train", "clean"):
                assert row["centre_accuracy"] == row["ncc_accuracy"]
    assert not found
    # The attack moves images away from their class means, and noise does not.
    assert shares["train", "pgd"] < shares["train", "clean"] - 0.5
    assert shares["train", "gaussian"] > shares["train", "clean"] - 0.5
    assert "centre target angle own angle" in output


def test_targeted_images_are_compared_with_their_own_class_as_with_their_target_s(
    flags, run_script
):
    """A weak attack leaves images where they are: near their own class, far from the target's."""
    kinds = "--neural-collapse-targeted --neural-collapse --layerwise --checkpoints 2"
    flags = flags.replace(f"--epsilons {RADIUS}", "--epsilons 0.01")
    code, output, error = run_script(eval_script, f"{flags} {kinds}")
    assert code == 0, error
    swept = {r["input"]: r for r in rows(RESULTS / "metrics.csv") if r["source"] == "eval"}
    targeted = swept["targeted"]
    assert float(targeted["own_angle"]) < 0.1 < 1 < float(targeted["clean_angle"])
    assert float(targeted["own_distance"]) < 0.1 * float(targeted["clean_distance"])
    assert swept["pgd"]["own_angle"] == swept["clean"]["own_angle"] == ""
    [layer] = [
        row
        for row in rows(LAYERS)
        if (row["split"], row["input"], row["layer"]) == ("train", "targeted", "features")
    ]
    for name in ("own_angle", "own_distance", "clean_angle", "clean_distance"):
        assert float(layer[name]) == pytest.approx(float(targeted[name]), rel=1e-4)
    [line] = [line for line in output.splitlines() if " train targeted" in line]
    assert "from clean of the target's class: dist" in line and ", of their own: dist" in line


def test_the_classifiers_of_layers_on_clean_and_pgd_images(flags, image_tree, run_script):
    """And none is better under the attack on itself than without, or under the network's."""
    what = "--ncc --ncc-layers stem --checkpoints 2"
    code, output, error = run_script(eval_script, f"{flags} {what}")
    assert code == 0, error
    plain = Plain(image_tree, 2)
    found = {(row["layer"], row["means"], row["input"]): row for row in rows(CENTRES)}
    for layer, means in product(("features", "stem"), ("clean", "pgd")):
        x, y, _ = plain.images("train", means)
        centres = means_of(plain.outputs(x, layer), y)
        accuracies = {}
        for name in ("clean", "pgd"):
            x, y, _ = plain.images("test", name)
            row = found[layer, means, name]
            right = nearest(plain.outputs(x, layer), centres) == y
            assert float(row["ncc_accuracy"]) == right.mean()
            with torch.no_grad():
                right_by_network = plain.network(x).argmax(1).numpy() == y
            assert float(row["network_accuracy"]) == right_by_network.mean()
            assert row["attempts"] == "0"
            accuracies[name] = right.mean()
        row = found[layer, means, "adaptive"]
        assert float(row["ncc_accuracy"]) <= min(accuracies.values())
        assert row["attempts"] == "5"  # PGD, two on the margin, one towards each other class
    assert len(found) == len(rows(CENTRES)) == 12
    assert "stem      clean" in output


# ---------------------------------------------------------------------------------------------
# Perturbed images are made once
# ---------------------------------------------------------------------------------------------

INPUTS_OF_BOTH = (
    "--neural-collapse --neural-collapse-targeted --neural-collapse-gaussian --split both"
)
ALONE = (
    "--neural-collapse --split both",
    "--neural-collapse-targeted --neural-collapse-gaussian --split both",
    "--layerwise",
    "--ncc",
    "--ncc-layers stem",
    f"{INPUTS_OF_BOTH} --leaps",
    f"{INPUTS_OF_BOTH} --simplex",
)
TOGETHER = f"{INPUTS_OF_BOTH} --leaps --simplex --layerwise --ncc --ncc-layers stem"
RADII = f"--epsilons 8,{RADIUS} --checkpoints 0,2"


@pytest.fixture
def attacks_made(monkeypatch):
    """How many images each attack on a network itself had."""
    made = []

    def spy(model, x, y, **how):
        made.extend([len(x)] * (not isinstance(model, NearestCentre)))
        return pgd(model, x, y, **how)

    monkeypatch.setattr(inputs, "pgd", spy)
    return made


def tables():
    paths = [*RESULTS.glob("*.csv"), *RESULTS.glob("*.npy")]
    return {path.name: path.read_bytes() for path in paths}


def test_flags_together_give_the_bits_that_each_alone_gives(flags, run_script, attacks_made):
    shutil.copytree("models", "before")
    for what in ALONE:
        assert run_script(eval_script, f"{flags} {RADII} {what}")[0] == 0
    alone, made_alone = tables(), len(attacks_made)
    shutil.rmtree("models")
    shutil.move("before", "models")
    attacks_made.clear()
    assert run_script(eval_script, f"{flags} {RADII} {TOGETHER}")[0] == 0
    assert tables() == alone
    names = {"metrics.csv", "layers.csv", "ncc.csv", "leaps.csv", "simplex.csv"}
    assert names <= alone.keys()
    # Of two epochs, two splits, two radii: PGD and targeted, each once.
    assert sorted(attacks_made) == [6] * 8 + [18] * 8
    # Once more for layers, for leaps and for the simplex, twice for the centres.
    assert made_alone == 16 * 4 + 2 * 2 * 2 * 2


def test_perturbed_images_are_kept_for_those_alone_that_need_them(
    flags, run_script, monkeypatch, attacks_made
):
    subjects, original = [], Subject.images

    def spy(subject, epoch, part):
        found = original(subject, epoch, part)
        subjects.append((subject, len(subject._kept)))
        return found

    made, perturbed = [], Evaluator.perturbed
    monkeypatch.setattr(Evaluator, "perturbed", lambda *a: made.append(a) or perturbed(*a))
    monkeypatch.setattr(Subject, "images", spy)
    assert run_script(eval_script, f"{flags} --neural-collapse --checkpoints 0")[0] == 0
    assert not made and not any(kept for _, kept in subjects)
    what = "--neural-collapse --layerwise --ncc"
    assert run_script(eval_script, f"{flags} {what} --checkpoints 1,2")[0] == 0
    assert max(kept for _, kept in subjects) == 2  # PGD, of training and test images
    assert all(not subject._kept for subject, _ in subjects)
    # What was measured before needs no images: those of the rest are made for it alone.
    attacks_made.clear()
    assert run_script(eval_script, f"{flags} --neural-collapse --ncc --checkpoints 0")[0] == 0
    assert sorted(attacks_made) == [6, 18]


def test_kept_images_give_the_bits_of_a_real_network(golden_network):
    network = FoldedNetwork(golden_network("vgg11bn").to_channels_last())
    part = InputPart("test", "pgd", 8.0)
    subject = subject_of(network, cases.images(10, 3, 32, 5), torch.arange(10))
    images, perturb = subject.images(0, part)
    expected = subject.evaluator.outputs(images, subject.data.test.labels, perturb)
    with subject.keeping({part}):
        for _ in range(2):
            images, perturb = subject.images(0, part)
            assert perturb is None
            found = subject.evaluator.outputs(images, subject.data.test.labels, perturb)
            assert all(map(torch.equal, found, expected))
    assert not subject._kept


def subject_of(network, images, labels, classes=10):
    """A subject whose training and test images are the same ones, in batches of four."""
    images = torch.as_tensor(images)
    mean, std = CIFAR_STATISTICS
    attack = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 2, "norm": "l_inf"}
    part = Split(images, labels)
    return Subject(
        evaluator=Evaluator(network, batch_size=4),
        layers=Evaluator(network, batch_size=4),
        data=Dataset(train=part, test=part, num_classes=classes, mean=mean, std=std),
        strengths=(Strength(attack=attack, restarts=1, noise=8 / 255, radius=8.0),),
        seed=1,
    )


SHARED = "--neural-collapse --leaps --simplex"


@pytest.mark.parametrize("what", (*ALONE[1:4], "--neural-collapse --ncc", SHARED, TOGETHER))
def test_the_progress_bar_moves_with_each_batch_and_ends_whole(what, flags, run_script, bars):
    """Also where a sweep lacks but some parts of a checkpoint; it never falls, nor is too full."""
    radii = f"--epsilons 8,{RADIUS} --eval-batch-size 4"
    assert run_script(eval_script, f"{flags} {radii} {what} --checkpoints 1")[0] == 0
    lose_rows(LAYERS, lambda row: (row["split"], row["input"]) == ("train", "clean"))
    lose_rows(CENTRES, lambda row: row["epsilon"] == "8.0")
    assert run_script(eval_script, f"{flags} {radii} {what} --checkpoints 0,1")[0] == 0
    for bar in bars:
        assert bar.done == bar.total == sum(bar.steps) > 0
        assert min(bar.steps) >= 0
        # No more than a batch at a time, but for what is left over at the end of a checkpoint.
        assert sum(step for step in bar.steps if step <= 4) > 0.7 * bar.total
    assert len(bars) == 2


def lose_rows(path, lost):
    """Take rows out of a table, if it is there."""
    if path.exists():
        rewrite(path, [row for row in rows(path) if not lost(row)])


def rewrite(path, table):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


# ---------------------------------------------------------------------------------------------
# What was measured before
# ---------------------------------------------------------------------------------------------


def test_a_sweep_that_lost_a_part_goes_on_to_the_same_bits(flags, run_script):
    what = f"{flags} --layerwise --ncc-layers stem --checkpoints 0,2"
    assert run_script(eval_script, what)[0] == 0
    whole = tables()
    lose_rows(LAYERS, lambda r: (r["epoch"], r["split"], r["input"]) == ("2", "test", "pgd"))
    lose_rows(CENTRES, lambda r: (r["epoch"], r["means"], r["input"]) == ("0", "pgd", "adaptive"))
    assert tables() != whole
    code, output, _ = run_script(eval_script, what)
    assert code == 0 and "2 checkpoints (0 done before)" in output
    assert "2 rows of layers.csv" in output and "3 rows of ncc.csv" in output
    assert tables() == whole


def test_rows_of_older_versions_are_read_and_measured_again(flags, run_script):
    what = f"{flags} --layerwise --ncc --checkpoints 0,2"
    assert run_script(eval_script, what)[0] == 0
    whole = tables()
    for path, gone in ((LAYERS, NEW), (CENTRES, ("layer", "attempts"))):
        kept = [{name: v for name, v in r.items() if name not in gone} for r in rows(path)]
        rewrite(path, kept)
    # A sweep of something else leaves them as they are.
    assert run_script(eval_script, f"{flags} --neural-collapse --checkpoints 0")[0] == 0
    assert NEW[0] not in rows(LAYERS)[0]
    assert run_script(eval_script, f"{flags} --layerwise --ncc --checkpoints 0")[0] == 0
    found = {row["epoch"]: row for row in rows(LAYERS)}
    assert found["0"][NEW[0]] and not found["2"][NEW[0]]
    assert {row["layer"] for row in rows(CENTRES)} == {"features"}
    code, output, _ = run_script(eval_script, what)
    assert code == 0 and "1 checkpoints (1 done before)" in output
    assert {name: tables()[name] for name in ("layers.csv", "ncc.csv")} == {
        name: whole[name] for name in ("layers.csv", "ncc.csv")
    }


# ---------------------------------------------------------------------------------------------
# --ncc-layers
# ---------------------------------------------------------------------------------------------


def test_layers_alone_and_the_features_added_later(flags, run_script):
    assert run_script(eval_script, f"{flags} --ncc-layers stem stem --checkpoints 2")[0] == 0
    first = rows(CENTRES)
    assert [(row["layer"], row["means"], row["input"]) for row in first] == [
        ("stem", *key) for key in product(("clean", "pgd"), ("clean", "pgd", "adaptive"))
    ]
    code, output, _ = run_script(eval_script, f"{flags} --ncc --ncc-layers stem --checkpoints 2")
    assert code == 0 and "6 rows of ncc.csv" in output
    assert [row for row in rows(CENTRES) if row["layer"] == "stem"] == first
    assert len(rows(CENTRES)) == 12
    # The last block puts out the network's features: no row is measured twice.
    output = run_script(eval_script, f"{flags} --ncc-layers features stem --checkpoints 2")[1]
    assert "1 done before" in output


def test_a_layer_that_there_is_not_ends_with_one_line_of_those_there_are(flags, run_script):
    code, _, error = run_script(eval_script, f"{flags} --ncc-layers stem conv9")
    assert code == 2 and error.count("\n") == 1
    assert "no block 'conv9'; its blocks are stem, features" in error
    code, _, error = run_script(eval_script, f"{flags} --ncc-layers stem --compile")
    assert code == 2 and error.count("\n") == 1 and "--compile" in error
    assert not CENTRES.exists()


class Steep(torch.nn.Module):
    """Features 1000 times the brightness, after which nothing is said of any class."""

    def __init__(self):
        super().__init__()
        self.stem, self.features = torch.nn.Identity(), torch.nn.Identity()
        self.linear = torch.nn.Linear(1, 2)
        torch.nn.init.zeros_(self.linear.weight)

    def forward(self, x, return_activations=False):
        brightness = self.stem(1000 * x.mean((1, 2, 3)).unsqueeze(1))
        features = self.features(brightness)
        logits = self.linear(features)
        return (logits, features) if return_activations else logits

    def blocks(self):
        return [("stem", self.stem), ("features", self.features)]


@pytest.mark.parametrize("layer", ("stem", "features"))
def test_a_classifier_that_hides_its_gradient_does_not_pass_for_robust(layer, monkeypatch):
    """Images lie far out beside class means that are close: the cross-entropy is 0 to the last bit.

    So PGD on it has no gradient and stays where it starts, though a brightness of less than
    epsilon separates every image from the other class.
    """
    network = Network(Steep(), [0.0] * 3, [1.0] * 3)
    brightness = torch.tensor([0.480, 0.519, 0.481, 0.520])  # means at -0.5 and 0.5 around 500
    images = brightness.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    labels = torch.tensor([0, 0, 1, 1])
    right = [0, 3]  # of the four, those that the nearest mean gets right
    subject = subject_of(network, images, labels, classes=2)

    def accuracies():
        found = list(centres.centre_rows(subject, 0, [CentrePart(layer, "clean", 8.0)]))
        return {row.input: row.ncc_accuracy for row in found}

    classifier = NearestCentre(network, torch.tensor([[499.5], [500.5]]), layer)
    with torch.no_grad():
        assert (classifier(images).argmax(1) == labels).nonzero().flatten().tolist() == right
    monkeypatch.setattr(centres, "MARGIN_ATTACKS", 0)  # PGD on the cross-entropy alone
    monkeypatch.setattr(centres, "RIVALS", 0)
    monkeypatch.setattr(centres, "MARGIN_STEPS", 10)
    assert accuracies() == {"clean": 0.5, "pgd": 0.5, "adaptive": 0.5}
    monkeypatch.setattr(centres, "MARGIN_ATTACKS", 1)  # which has a gradient
    assert accuracies() == {"clean": 0.5, "pgd": 0.5, "adaptive": 0.0}
    monkeypatch.undo()
    assert accuracies() == {"clean": 0.5, "pgd": 0.5, "adaptive": 0.0}


def test_the_worst_of_all_attempts_counts(monkeypatch):
    """Also what the network's PGD found, and the clean image itself: stand-ins attack here."""
    network = Network(Steep(), [0.0] * 3, [1.0] * 3)
    brightness = torch.tensor([0.2, 0.25, 0.3, 0.35, 0.6, 0.65, 0.7, 0.75])
    images = brightness.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 0])  # the last one is wrong as it is
    subject = subject_of(network, images, labels, classes=2)
    # The network's PGD first: it moves the last image to where it is right.
    to_move = iter([[0, 7], [1], [2, 0], [], [4]])
    asked, aims = [], []

    def stand_in(model, x, y, **how):
        aims.append((how.get("targeted", False), y.tolist()))
        moved = next(to_move)
        of = [int((images[:, 0, 0, 0] - b[0, 0, 0]).abs().argmin()) for b in x]
        asked.append(of)
        moves = [(0.6 if brightness[i] < 0.5 else -0.6) * (i in moved) for i in of]
        return torch.tensor(moves).view(-1, 1, 1, 1).expand_as(x)

    subject.evaluator.batch_size = 8
    monkeypatch.setattr(inputs, "pgd", stand_in)
    monkeypatch.setattr(centres, "pgd", stand_in)
    found = list(centres.centre_rows(subject, 0, [CentrePart("features", "clean", 8.0)]))
    accuracy = {row.input: row.ncc_accuracy for row in found}
    assert accuracy == {"clean": 7 / 8, "pgd": 7 / 8, "adaptive": 3 / 8}
    # What fell once is not attacked again.
    assert asked == [
        list(range(8)),
        [1, 2, 3, 4, 5, 6],
        [2, 3, 4, 5, 6],
        [3, 4, 5, 6],
        [3, 4, 5, 6],
    ]
    # The last one is towards the other class mean.
    assert aims[-1] == (True, [1, 0, 0, 0])
    assert aims[-2] == (False, [0, 1, 1, 1])


def test_images_of_the_attempts_stay_in_the_ball(monkeypatch):
    network = Network(TinyNet(channels=3, classes=4), *CIFAR_STATISTICS).eval()
    images = torch.rand(8, 3, 8, 8)
    subject = subject_of(network, images, torch.arange(8) % 4, classes=4)
    seen = []
    original = centres.layer_outputs
    monkeypatch.setattr(
        centres, "layer_outputs", lambda n, x, names: seen.append(x) or original(n, x, names)
    )
    list(centres.centre_rows(subject, 0, [CentrePart("stem", "clean", 8.0)]))
    assert len(seen) > 6
    for x in seen:
        assert x.min() >= 0 and x.max() <= 1
        nearest_image = (x.unsqueeze(1) - images).abs().flatten(2).amax(2).amin(1)
        assert nearest_image.max() <= 8 / 255 + 1e-6


def test_the_margin_loss_is_the_largest_other_logit_above_the_own():
    torch.manual_seed(0)
    logits, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 5
    expected = [
        max(v for k, v in enumerate(z) if k != c) - z[c] for z, c in zip(logits, y, strict=True)
    ]
    found = margin_loss(logits, y, reduction="none")
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)
    assert margin_loss(logits, y).item() == pytest.approx(found.mean().item())
    assert margin_loss(logits, y, reduction="sum").item() == pytest.approx(found.sum().item())


@pytest.mark.parametrize("targeted", (False, True))
@pytest.mark.parametrize("norm", ("l_inf", "l_2"))
def test_pgd_on_the_margin_moves_logits_at_which_the_cross_entropy_has_no_gradient(norm, targeted):
    torch.manual_seed(0)
    weight = 1e4 * torch.randn(5, 3 * 8 * 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5, bias=False))
    model[1].weight.data = weight
    x = torch.rand(12, 3, 8, 8)
    y = (model(x).argmax(1) + targeted) % 5
    ball = {"l_inf": 0.1, "l_2": 1.4}[norm]
    how = {"epsilon": ball, "step_size": ball / 4, "steps": 10, "norm": norm, "targeted": targeted}
    with torch.no_grad():
        by_entropy, by_margin = (
            margin_loss(model(x + pgd(model, x, y, loss=loss, **how)), y, reduction="none")
            for loss in (torch.nn.functional.cross_entropy, margin_loss)
        )
    if targeted:  # where the cross-entropy has a gradient: both are lowered
        assert (by_margin < margin_loss(model(x), y, reduction="none")).all()
    else:
        assert (by_entropy < 0).float().mean() > 0.5
        assert (by_margin > 0).all()


def test_of_a_block_alone_no_other_output_is_kept(tiny_net):
    network = Network(tiny_net, *CIFAR_STATISTICS)
    with torch.no_grad(), block_outputs(network, ["stem"]) as found:
        network(torch.rand(2, 3, 8, 8))
    assert list(found) == ["stem"]
