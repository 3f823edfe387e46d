"""Training steps against the published trajectories, batch-norm modes, learning rates."""

import copy
import math
from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS, GOLDEN_SEED

from attacks import pgd
from robust_nc import build
from robust_nc.build import prepare
from robust_nc.data.datasets import Dataset, as_float
from robust_nc.data.inputs import Strength
from robust_nc.data.readers import Split
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network
from robust_nc.results.history import STEP_MEANS
from robust_nc.settings import Settings
from robust_nc.training.epoch import train_epoch
from robust_nc.training.modes import (
    MODES,
    TRAIN_MODES,
    Learner,
    Step,
    divergence,
    mart_objective,
    mode_name,
)
from robust_nc.training.schedules import learning_rate
from train import parse_args
from utils import InputError

TRAJECTORIES = [
    ("vgg11bn", "std_train", 8),
    ("vgg11bn", "pgd_train", 2),
    ("vgg11bn", "pgd_train_TRADES", 2),
    ("vgg11bn", "pgd_train_TRADES_batch", 2),
    # All steps that were recorded, in `make test-slow`.
    pytest.param("vgg11bn", "pgd_train", 8, marks=pytest.mark.slow),
    pytest.param("vgg11bn", "pgd_train_TRADES", 8, marks=pytest.mark.slow),
    pytest.param("vgg11bn", "pgd_train_TRADES_batch", 8, marks=pytest.mark.slow),
    pytest.param("PreActResNet18", "std_train", 8, marks=pytest.mark.slow),
    pytest.param("PreActResNet18", "pgd_train", 2, marks=pytest.mark.slow),
    pytest.param("PreActResNet18", "pgd_train_TRADES_batch", 2, marks=pytest.mark.slow),
]


def make_learner(network, lr, restarts=1, weights=None, **settings):
    attack = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10, "norm": "l_inf"}
    return Learner(
        network=network,
        folded=FoldedNetwork(network),
        optimizer=torch.optim.SGD(network.model.parameters(), lr=lr, **settings),
        strength=Strength(attack=attack, restarts=restarts, noise=8 / 255),
        settings=Settings(**{"trades_beta": 6.0, "mart_lambda": 5.0} | (weights or {})),
    )


@pytest.mark.parametrize(("name", "mode", "steps"), TRAJECTORIES)
def test_steps_follow_the_published_trajectory(name, mode, steps, golden_network, golden):
    network = golden_network(name).to_channels_last()  # as in a run
    bn = {"pgd_train_TRADES": "frozen", "pgd_train_TRADES_batch": "batch"}.get(mode)
    key = f"{name}.pgd_train_TRADES.{bn}" if bn else f"{name}.{mode}"
    expected = golden("trajectories")
    network.train()  # frozen TRADES leaves train mode by itself
    learner = make_learner(network, lr=0.02, momentum=0.9, weight_decay=5e-4)
    images = torch.from_numpy(cases.images(256, 3, 32, GOLDEN_SEED + 1)).split(32)
    labels = torch.from_numpy(cases.labels(256, 10, GOLDEN_SEED + 2)).split(32)
    torch.manual_seed(GOLDEN_SEED)
    for i, (x, y) in enumerate(zip(images[:steps], labels[:steps], strict=True)):
        means = MODES[mode].step(learner, x, y).means
        # Rounding grows from step to step; TRADES, which starts where the KL is flat, amplifies it.
        late = {None: 0.02, "frozen": 0.06, "batch": 0.04}[bn]
        tolerance = (1e-3 if mode == "std_train" else 2e-3) if i == 0 else late
        clean = expected[f"{key}.clean_loss"][i]
        assert means["train_loss"].item() == pytest.approx(clean, rel=tolerance), f"step {i}"
        if mode != "std_train":
            objective = expected[f"{key}.objective"][i]
            found = means["train_robust_loss"].item()
            assert found == pytest.approx(objective, rel=tolerance), f"step {i}"
    if steps == 8 and bn != "batch":  # whose logits have drifted apart by then
        with torch.no_grad():
            logits = network.eval()(images[0][:16]).numpy()
        final = expected[f"{key}.final_logits"]
        assert np.abs(logits - final).mean() < 0.15 * np.abs(final).mean()


def steps_seen(network, mode, restarts=1):
    """How many times one step moves the running statistics."""
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    result = MODES[mode].step(make_learner(network, lr=0.1, restarts=restarts), x, y)
    if mode != "std_train":
        assert (result.perturbed - x).abs().max() <= 8 / 255 + 1e-6
    return network.model.norm.num_batches_tracked.item()


def test_every_train_mode_pass_moves_the_running_statistics(tiny_net):
    network = Network(tiny_net, *CIFAR_STATISTICS).train()
    passes = 0
    for mode, restarts, expected in (
        ("std_train", 1, 1),
        ("pgd_train", 1, 11 + 2),
        ("pgd_train", 2, 22 + 2),
        ("pgd_train_TRADES_batch", 1, 2),
        ("pgd_train_MART", 1, 2),
        ("pgd_train_MART", 2, 2),
    ):
        now = steps_seen(network, mode, restarts)
        assert now - passes == expected, (mode, restarts)
        passes = now
        assert network.training


def test_frozen_trades_trains_with_untouched_running_statistics(tiny_net):
    network = Network(tiny_net, *CIFAR_STATISTICS).train()
    before = tiny_net.convolution.weight.clone()
    assert steps_seen(network, "pgd_train_TRADES") == 0
    assert not tiny_net.norm.running_mean.any() and (tiny_net.norm.running_var == 1).all()
    assert not torch.equal(before, tiny_net.convolution.weight)
    assert not network.training


# Probabilities of two images, clean and perturbed, that a pocket calculator can follow.
CLEAN = ((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))
ATTACKED = ((0.2, 0.5, 0.3), (0.3, 0.2, 0.5))
LABELS = (0, 2)


def logits_of(probabilities):
    """Logits of these probabilities, shifted by what softmax does not see."""
    return (torch.tensor(probabilities, dtype=torch.float64).log() + 3).requires_grad_()


# KL(clean || perturbed) of the two.
DIVERGENCES = (
    0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.5) + 0.2 * math.log(0.2 / 0.3),
    0.1 * math.log(0.1 / 0.3) + 0.1 * math.log(0.1 / 0.2) + 0.8 * math.log(0.8 / 0.5),
)


def test_the_kl_term_of_trades_by_hand():
    found = divergence(logits_of(CLEAN), logits_of(ATTACKED))
    assert found.item() == pytest.approx(sum(DIVERGENCES) / 2, rel=1e-12)
    assert torch.autograd.gradcheck(divergence, (logits_of(CLEAN), logits_of(ATTACKED)))


@pytest.mark.parametrize("weight", (5.0, 0.0, 2.5))
def test_the_objective_of_mart_by_hand(weight):
    """The first image is mistaken for class 1; of the second class 0 comes nearest."""
    first = -math.log(0.2) - math.log(1 - 0.5) + weight * (1 - 0.5) * DIVERGENCES[0]
    second = -math.log(0.5) - math.log(1 - 0.3) + weight * (1 - 0.8) * DIVERGENCES[1]
    logits = logits_of(CLEAN), logits_of(ATTACKED)
    found = mart_objective(*logits, torch.tensor(LABELS), weight)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-12)
    assert torch.autograd.gradcheck(mart_objective, (*logits, torch.tensor(LABELS), weight))


def mart_by_probabilities(clean_logits, logits, y):
    """The objective of MART as the paper writes it; its logarithms are lost where p rounds to 1."""
    clean, attacked = clean_logits.softmax(1), logits.softmax(1)
    rows = torch.arange(len(y))
    others = attacked.masked_fill(torch.nn.functional.one_hot(y, attacked.shape[1]).bool(), 0)
    boosted = -attacked[rows, y].log() - (1 - others.amax(1)).log()
    divergences = (clean * (clean.log() - attacked.log())).sum(1)
    return (boosted + 5 * (1 - clean[rows, y]) * divergences).mean()


@pytest.mark.parametrize("classes", (2, 3, 10))
def test_the_gradient_of_mart_flows_through_both_passes(classes):
    generator = torch.Generator().manual_seed(0)
    drawn = 3 * torch.randn(2, 50, classes, generator=generator, dtype=torch.float64)
    pairs = [[part.clone().requires_grad_() for part in drawn] for _ in range(2)]
    y = torch.arange(50) % classes
    expected = mart_by_probabilities(*pairs[0], y)
    found = mart_objective(*pairs[1], y, 5.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    expected.backward()
    found.backward()
    for theirs, ours in zip(*pairs, strict=True):
        assert theirs.grad.abs().max() > 1e-3
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_mart_stays_finite_and_exact_where_probabilities_round_to_0_and_1():
    """Logits 120 apart; where the perturbed image is wrong, both logarithms of it count."""
    right, wrong = (-60.0, 60.0, -60.0), (60.0, -60.0, -60.0)  # of label 1
    clean = torch.tensor((wrong, right, wrong, right), requires_grad=True)
    attacked = torch.tensor((wrong, wrong, right, right), requires_grad=True)
    found = mart_objective(clean, attacked, torch.ones(4, dtype=torch.int64), 5.0)
    boosted = 120 + (120 - math.log(2))  # p_y is e^-120, and 1 - p_k twice that
    assert found.item() == pytest.approx((2 * boosted + 5 * 120) / 4, rel=1e-6)
    found.backward()
    assert clean.grad.isfinite().all() and attacked.grad.isfinite().all()
    # The gradient of -log p_y is (1, -1, 0), that of -log(1 - p_0) is (1, -1/2, -1/2).
    torch.testing.assert_close(attacked.grad[1], torch.tensor((2.0, -1.5, -0.5)) / 4)


@pytest.mark.parametrize("restarts", (1, 2))
def test_the_attack_of_mart_is_pgd_in_eval_mode(restarts, tiny_net):
    network = Network(tiny_net, *CIFAR_STATISTICS).train()
    learner = make_learner(network, lr=0.1, restarts=restarts)
    with torch.no_grad():  # what an earlier step would have changed
        tiny_net.linear.weight.mul_(-1)
        tiny_net.norm.running_mean.fill_(0.2)
        tiny_net.norm.running_var.fill_(0.7)
    twin = Network(copy.deepcopy(tiny_net), *CIFAR_STATISTICS).eval()
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    torch.manual_seed(1)
    found = MODES["pgd_train_MART"].step(learner, x, y).perturbed
    torch.manual_seed(1)
    expected = x + pgd(twin, x, y, restarts=restarts, **learner.strength.attack)
    assert ((found - expected).abs() < 1e-6).float().mean() > 0.99


@pytest.mark.parametrize("mode", ("pgd_train_TRADES", "pgd_train_TRADES_batch", "pgd_train_MART"))
def test_gradients_are_finite_where_a_probability_underflows(mode, tiny_net):
    with torch.no_grad():
        tiny_net.linear.bias[0] = 200.0  # the other probabilities are exactly zero in float32
    network = Network(tiny_net, *CIFAR_STATISTICS)
    steps_seen(network, mode)
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("mode", "weights"),
    (
        *((mode, {}) for mode in MODES),
        ("pgd_train_TRADES", {"trades_beta": 2.5}),
        ("pgd_train_TRADES_batch", {"trades_beta": 0.0}),
    ),
)
def test_a_step_tells_the_means_of_its_batch(mode, weights, tiny_net):
    """Those of the weights before it, but for the running statistics that its passes move."""
    network = Network(tiny_net, *CIFAR_STATISTICS).train()
    learner = make_learner(network, lr=0.1, weights=weights)
    twin = Network(type(tiny_net)(), *CIFAR_STATISTICS)
    twin.load_state_dict(learner.network.state_dict())
    twin.train(MODES[mode].bn == "batch")
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    result = MODES[mode].step(learner, x, y)
    kind = MODES[mode].train_mode
    standard = kind == "std_train"
    assert (result.perturbed is None) == standard
    robust = set() if standard else {"train_robust_loss", "train_robust_acc"}
    assert set(result.means) == {"train_loss", "train_acc", "grad_norm"} | robust
    logits = twin(x)
    loss = torch.nn.functional.cross_entropy(logits, y)
    objective, expected = loss, {"train_loss": loss, "train_acc": (logits.argmax(1) == y).sum() / 8}
    if not standard:
        robust_logits = twin(result.perturbed)
        if kind == "pgd_train":
            objective = torch.nn.functional.cross_entropy(robust_logits, y)
        elif kind == "pgd_train_MART":
            objective = mart_by_probabilities(logits, robust_logits, y)
        else:
            clean, attacked = logits.softmax(1), robust_logits.softmax(1)
            beta = weights.get("trades_beta", 6)
            objective = loss + beta * (clean * (clean / attacked).log()).sum() / 8
        expected["train_robust_loss"] = objective
        expected["train_robust_acc"] = (robust_logits.argmax(1) == y).sum() / 8
    objective.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in twin.parameters()])
    expected["grad_norm"] = gradient.norm()
    for name, value in expected.items():
        found = result.means[name]
        assert found.shape == () and not found.requires_grad
        assert found.item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize(
    ("schedule", "points"),
    (
        ("piecewise", {0.5: 0.1, 99.9: 0.1, 100: 0.01, 149.9: 0.01, 150: 0.001, 400: 0.001}),
        ("superconverge", {0: 0, 80: 0.05, 160: 0.1, 280: 0.05, 400: 0}),
        ("linear", {0: 0.1, 133: 0.1, 266: 0.01, 400: 0.001, 333: 0.0055}),
        ("onedrop", {50: 0.1, 99.9: 0.1, 100: 0.01, 400: 0.01}),
        ("multipledecay", {1: 0.1, 39.9: 0.1, 40: 0.09, 200: 0.05, 399: 0.01, 400: 0}),
        ("cosine", {0: 0.1, 200: 0.05, 400: 0}),
    ),
)
def test_learning_rates(schedule, points):
    for t, expected in points.items():
        found = learning_rate(schedule, t, epochs=400, lr_max=0.1)
        assert found == pytest.approx(expected, abs=1e-9), f"{schedule} at {t}"


def test_multipledecay_is_never_negative():
    assert learning_rate("multipledecay", 19, epochs=19, lr_max=0.1) == 0


def make_training(monkeypatch, data, step, command):
    """A run's Training on the data, whose steps are replaced."""
    settings = parse_args(f"--dataset cifar --device cpu {command}".split())
    return replace(prepare(settings, build.run_folder(settings), data), step=step)


def test_the_weights_of_the_objectives_are_those_of_the_flags(tiny_models, monkeypatch):
    part = Split(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.arange(6) % 4)
    data = Dataset(part, part, 4, *CIFAR_STATISTICS)
    trades = "--train-mode pgd_train_TRADES --trades-beta 2.5"
    for command, expected in (
        ("", (6, 5)),
        (trades, (2.5, 5)),
        (f"{trades} --trades-bn batch", (2.5, 5)),
        ("--train-mode pgd_train_MART --mart-lambda 1.5", (6, 1.5)),
    ):
        learner = make_training(monkeypatch, data, None, command).learner
        settings = learner.settings
        assert (settings.trades_beta, settings.mart_lambda) == expected


def test_an_epoch_visits_every_image_once_with_the_rate_of_each_step(tiny_models, monkeypatch):
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 16, 16)
    part = Split(images.contiguous(), torch.arange(10) % 4)
    data = Dataset(part, part, 4, *CIFAR_STATISTICS)
    batches, rates = [], []

    def step(learner, x, y):
        batches.append((x[:, 0, 0, 0] * 255).round().int().tolist())
        rates.append(learner.optimizer.param_groups[0]["lr"])
        number = float(len(batches))  # 1, 2, 3: of batches of 4, 4 and 2 images
        means = {
            "train_loss": torch.tensor(2 * number),
            "train_acc": torch.tensor(number / 10, dtype=torch.float64),
            "train_robust_loss": torch.tensor(3 * number),
            "train_robust_acc": torch.tensor(0.0, dtype=torch.float64),
            "grad_norm": torch.tensor(5 * number),
        }
        return Step(means, x)

    training = make_training(
        monkeypatch,
        data,
        step,
        "--train-mode pgd_train --batch-size 4 --epochs 10 --lr-schedule superconverge "
        "--lr-max 4 --neural-collapse",
    )
    means, kept = train_epoch(training, epoch=1, unfinished=None, signals=None)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    visited = [image for batch in batches for image in batch]
    assert sorted(visited) == list(range(10)) != visited
    assert rates == pytest.approx([1 + 1 / 3, 1 + 2 / 3, 2])  # rises by 1 an epoch until 4
    of_images = (4 * 1 + 4 * 2 + 2 * 3) / 10
    assert means == {
        "train_loss": pytest.approx(2 * of_images),
        "train_acc": pytest.approx(of_images / 10),
        "train_robust_loss": pytest.approx(3 * of_images),
        "train_robust_acc": 0,
        "grad_norm": pytest.approx(5 * 2),  # over the steps, whatever their size
    }
    assert torch.equal(kept, as_float(part.images))  # in data order


@pytest.mark.parametrize(
    ("command", "keeps"),
    (
        ("--train-mode std_train --neural-collapse", False),
        ("--train-mode pgd_train", False),
        ("--train-mode pgd_train_TRADES --neural-collapse", True),
        ("--train-mode pgd_train_MART --neural-collapse", True),
    ),
)
def test_perturbed_images_are_kept_where_their_collapse_is_asked_for(
    command, keeps, tiny_models, monkeypatch
):
    part = Split(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.arange(6) % 4)
    means = dict.fromkeys(STEP_MEANS, torch.tensor(1.0))
    training = make_training(
        monkeypatch,
        Dataset(part, part, 4, *CIFAR_STATISTICS),
        lambda learner, x, y: Step(means, x + 0.25),
        command,
    )
    _, kept = train_epoch(training, epoch=0, unfinished=None, signals=None)
    assert (kept is not None) == keeps
    if keeps:
        assert torch.equal(kept, torch.full((6, 3, 16, 16), 0.25))


@pytest.mark.parametrize(
    ("mode", "change", "expected"),
    (
        ("std_train", {"train_margin": 1.0}, r"reports 'train_margin'.*add a field.*history\.py"),
        ("pgd_train", {"train_margin": 1.0}, r"reports 'train_margin'.*add a field.*history\.py"),
        ("std_train", {"train_robust_acc": None}, None),  # which has no perturbed images
        ("pgd_train", {}, None),
    ),
)
def test_a_mean_without_a_column_is_told_at_the_first_step(
    mode, change, expected, tiny_models, monkeypatch
):
    part = Split(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.arange(6) % 4)
    values = dict.fromkeys(STEP_MEANS, 1.0) | change
    means = {name: torch.tensor(value) for name, value in values.items() if value is not None}
    steps = []

    def step(learner, x, y):
        steps.append(1)
        return Step(means, x)

    command = f"--train-mode {mode} --batch-size 2"
    training = make_training(monkeypatch, Dataset(part, part, 4, *CIFAR_STATISTICS), step, command)
    if expected is None:
        train_epoch(training, epoch=0, unfinished=None, signals=None)
        assert len(steps) == 3
        return
    with pytest.raises(InputError, match=f"--train-mode {mode}.*{expected}") as caught:
        train_epoch(training, epoch=0, unfinished=None, signals=None)
    assert len(steps) == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize("train_mode", TRAIN_MODES)
def test_frozen_batch_norm_moves_no_running_statistic(train_mode, tiny_net):
    """Whatever mode the network was left in; and it learns something else than with --bn batch."""
    frozen = Network(tiny_net, *CIFAR_STATISTICS).train()
    batch = copy.deepcopy(frozen)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    for network, bn in ((frozen, "frozen"), (batch, "batch")):
        torch.manual_seed(1)
        for _ in range(2):
            learner = make_learner(network, lr=0.1)
            MODES[mode_name(train_mode, bn)].step(learner, x, y)
    norm = frozen.model.norm
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
    assert norm.num_batches_tracked == 0 and batch.model.norm.num_batches_tracked > 0
    assert not torch.equal(frozen.model.linear.weight, batch.model.linear.weight)


@pytest.mark.parametrize("restarts", (1, 2))
def test_frozen_adversarial_training_attacks_in_eval_mode(restarts, tiny_net):
    """The perturbed images, and the step on them, are those of a network in eval mode."""
    network = Network(tiny_net, *CIFAR_STATISTICS).train()
    twin = copy.deepcopy(network).eval()
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    learner = make_learner(network, lr=0.1, restarts=restarts)
    torch.manual_seed(1)
    result = MODES["pgd_train_frozen"].step(learner, x, y)
    torch.manual_seed(1)
    expected = x + pgd(twin, x, y, restarts=restarts, **learner.strength.attack)
    assert ((result.perturbed - expected).abs() < 1e-6).float().mean() > 0.99
    loss = torch.nn.functional.cross_entropy(twin(result.perturbed), y)
    assert result.means["train_robust_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
