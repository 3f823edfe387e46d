"""Training steps against the published trajectories, batch-norm modes, learning rates."""

import argparse

import cases
import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS, GOLDEN_SEED

import train
import utils

TRAJECTORIES = [
    ("vgg11bn", "std_train", "frozen", 8),
    ("vgg11bn", "pgd_train", "frozen", 8),
    ("vgg11bn", "pgd_train_TRADES", "frozen", 8),
    ("vgg11bn", "pgd_train_TRADES", "batch", 8),
    ("PreActResNet18", "std_train", "frozen", 8),
    ("PreActResNet18", "pgd_train", "frozen", 2),
    ("PreActResNet18", "pgd_train_TRADES", "batch", 2),
]


def make_step(network, mode, bn="frozen", restarts=1):
    return train.make_step(
        argparse.Namespace(
            train_mode=mode,
            trades_bn=bn,
            dataset="cifar",
            epsilon=8,
            pgd_alpha=2,
            attack_iters=10,
            norm="l_inf",
            restarts=restarts,
        ),
        utils.FoldedNetwork(network),
    )


@pytest.mark.parametrize(("name", "mode", "bn", "steps"), TRAJECTORIES)
def test_steps_follow_the_published_trajectory(name, mode, bn, steps, golden_network, golden):
    network = golden_network(name).to(memory_format=torch.channels_last)  # as in a run
    key = f"{name}.{mode}.{bn}" if mode == "pgd_train_TRADES" else f"{name}.{mode}"
    expected = golden("trajectories")
    network.train()  # frozen TRADES leaves train mode by itself
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    images = torch.from_numpy(cases.images(256, 3, 32, GOLDEN_SEED + 1)).split(32)
    labels = torch.from_numpy(cases.labels(256, 10, GOLDEN_SEED + 2)).split(32)
    torch.manual_seed(GOLDEN_SEED)
    step = make_step(network, mode, bn)
    for i, (x, y) in enumerate(zip(images[:steps], labels[:steps], strict=True)):
        result = step(network, optimizer, x, y)
        # Rounding grows from step to step; TRADES, which starts where the KL is flat, amplifies it.
        late = 0.02 if "TRADES" not in mode else 0.06 if bn == "frozen" else 0.04
        tolerance = (1e-3 if mode == "std_train" else 2e-3) if i == 0 else late
        clean = expected[f"{key}.clean_loss"][i]
        assert result.clean_loss.item() == pytest.approx(clean, rel=tolerance), f"step {i}"
        if mode != "std_train":
            objective = expected[f"{key}.objective"][i]
            assert result.objective.item() == pytest.approx(objective, rel=tolerance), f"step {i}"
    if steps == 8 and bn != "batch":  # whose logits have drifted apart by then
        with torch.no_grad():
            logits = network.eval()(images[0][:16]).numpy()
        final = expected[f"{key}.final_logits"]
        assert np.abs(logits - final).mean() < 0.15 * np.abs(final).mean()


def steps_seen(network, mode, bn="frozen", restarts=1):
    """How many times one step moves the running statistics."""
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.1)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    result = make_step(network, mode, bn, restarts)(network, optimizer, x, y)
    if mode != "std_train":
        assert (result.perturbed - x).abs().max() <= 8 / 255 + 1e-6
    return network.model.norm.num_batches_tracked.item()


def test_every_train_mode_pass_moves_the_running_statistics(tiny_net):
    network = utils.Network(tiny_net, *CIFAR_STATISTICS).train()
    passes = 0
    for mode, bn, restarts, expected in (
        ("std_train", "frozen", 1, 1),
        ("pgd_train", "frozen", 1, 11 + 2),
        ("pgd_train", "frozen", 2, 22 + 2),
        ("pgd_train_TRADES", "batch", 1, 2),
    ):
        now = steps_seen(network, mode, bn, restarts)
        assert now - passes == expected, (mode, bn, restarts)
        passes = now
        assert network.training


def test_frozen_trades_trains_with_untouched_running_statistics(tiny_net):
    network = utils.Network(tiny_net, *CIFAR_STATISTICS).train()
    before = tiny_net.convolution.weight.clone()
    assert steps_seen(network, "pgd_train_TRADES") == 0
    assert not tiny_net.norm.running_mean.any() and (tiny_net.norm.running_var == 1).all()
    assert not torch.equal(before, tiny_net.convolution.weight)
    assert not network.training


def test_trades_has_finite_gradients_where_a_probability_underflows(tiny_net):
    with torch.no_grad():
        tiny_net.linear.bias[0] = 200.0  # the other probabilities are exactly zero in float32
    network = utils.Network(tiny_net, *CIFAR_STATISTICS)
    steps_seen(network, "pgd_train_TRADES")
    assert all(parameter.isfinite().all() for parameter in network.parameters())


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
        found = utils.learning_rate(schedule, t, epochs=400, lr_max=0.1)
        assert found == pytest.approx(expected, abs=1e-9), f"{schedule} at {t}"


def test_multipledecay_is_never_negative():
    assert utils.learning_rate("multipledecay", 19, epochs=19, lr_max=0.1) == 0


def test_an_epoch_visits_every_image_once_with_the_rate_of_each_step(tiny_net):
    data = utils.Split(
        torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 16, 16).contiguous(),
        torch.arange(10) % 4,
    )
    network = utils.Network(tiny_net, *CIFAR_STATISTICS).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    batches, rates = [], []

    def step(network, optimizer, x, y):
        batches.append((x[:, 0, 0, 0] * 255).round().int().tolist())
        rates.append(optimizer.param_groups[0]["lr"])
        logits = torch.nn.functional.one_hot(y, 4).float()
        return train.Step(torch.tensor(2.0), logits, torch.tensor(3.0), logits.roll(1, 1), x)

    args = argparse.Namespace(
        batch_size=4,
        epochs=10,
        neural_collapse=True,
        train_mode="pgd_train",
        lr_schedule="superconverge",
        lr_max=4.0,
        lr_drop_epoch=1,
        lr_one_drop=1.0,
    )
    sums, kept = train.train_epoch(network, optimizer, data, step, 1, args)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    visited = [image for batch in batches for image in batch]
    assert sorted(visited) == list(range(10)) != visited
    assert rates == pytest.approx([1 + 1 / 3, 1 + 2 / 3, 2])  # rises by 1 an epoch until 4
    assert (sums.clean_loss, sums.clean_accuracy) == (2, 1)
    assert (sums.objective, sums.robust_accuracy) == (3, 0)
    assert torch.equal(kept, utils.as_float(data.images))  # in data order
