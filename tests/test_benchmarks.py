"""The baseline computes what is compared with it, and the benchmark runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CIFAR_STATISTICS
from test_attacks import L_INF, share_equal

import utils
from attacks import pgd, trades
from nc_metrics import neural_collapse

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import baseline  # noqa: E402

SETTINGS = {key: L_INF[key] for key in ("epsilon", "step_size", "steps")}


@pytest.mark.parametrize("classes", (10, 100))
def test_the_baseline_s_metrics_are_ours(classes):
    torch.manual_seed(0)
    labels = torch.arange(400) % classes
    features = torch.randn(400, 128) + 3 * torch.randn(classes, 128)[labels]
    logits, weight = torch.randn(400, classes), torch.randn(classes, 128)
    means = baseline.class_means([features], [labels], classes)
    found = baseline.collapse_by_sample(features, labels, logits, weight, means)
    ours = neural_collapse(features, labels, logits, weight)
    for name, value in found.items():
        assert value == pytest.approx(getattr(ours, name), rel=2e-3), name


def test_the_baseline_s_attacks_are_ours(tiny_net):
    network = baseline.PlainNetwork(tiny_net, *CIFAR_STATISTICS).eval()
    x, y = torch.rand(32, 3, 16, 16), torch.arange(32) % 4
    for attack, ours in (
        (
            lambda: baseline.attack_pgd(network, x, y, **SETTINGS),
            lambda: pgd(network, x, y, **L_INF),
        ),
        (
            lambda: baseline.attack_trades(network, x, **SETTINGS),
            lambda: trades(network, x, **L_INF),
        ),
    ):
        torch.manual_seed(1)
        found = attack()
        torch.manual_seed(1)
        assert share_equal(found, ours().numpy()) > 0.99


@pytest.mark.parametrize("mode", ("std_train", "pgd_train", "pgd_train_TRADES"))
def test_the_baseline_trains(mode, tiny_net):
    network = baseline.PlainNetwork(tiny_net, *CIFAR_STATISTICS)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    loader = baseline.make_loader(images, torch.arange(40) % 4, shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = tiny_net.linear.weight.clone()
    device = torch.device("cpu")
    baseline.train_epoch(network, optimizer, loader, mode, SETTINGS, device)
    baseline.test_epoch(network, loader, device)
    assert not torch.equal(before, tiny_net.linear.weight)
    assert utils.Network(tiny_net, *CIFAR_STATISTICS).eval()(images.float() / 255).isfinite().all()


def run(*flags):
    command = [sys.executable, str(BENCHMARKS / "benchmark.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_benchmark_prints_its_tables():
    flags = "--scale 0.0004 --models vgg11bn --tasks st nc10 sweep --variants fp32 bf16 --repeats 1"
    result = run(*flags.split())
    assert result.returncode == 0, result.stderr
    for line in ("| ST epoch (20 images) | vgg11bn |", "| the ST sweep | vgg11bn |", "GFLOP/s"):
        assert line in result.stdout


@pytest.mark.slow
def test_a_bad_scale_is_refused():
    result = run("--scale", "2")
    assert result.returncode == 2 and "--scale" in result.stderr
