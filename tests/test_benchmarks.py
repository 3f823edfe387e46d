"""The baseline computes what is compared with it, and the benchmark runs."""

import copy
import re
import subprocess
import sys
from contextlib import nullcontext

import baseline
import pytest
import sides
import switches
import torch
from conftest import BENCHMARKS, CIFAR_STATISTICS, HAS_BF16
from test_attacks import L_INF, share_equal
from test_fast_paths import make_learner

from attacks import pgd, trades
from nc_metrics import neural_collapse
from robust_nc.build import strength
from robust_nc.networks.network import Network
from robust_nc.training.cuda_graphs import ReplayedStep
from robust_nc.training.modes import MODES
from train import parse_args

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
    before = {name: value.clone() for name, value in network.state_dict().items()}
    device = torch.device("cpu")

    def loss():
        with torch.no_grad():
            logits = network(images.float() / 255)
        return torch.nn.functional.cross_entropy(logits, torch.arange(40) % 4).item()

    network.train(mode != "pgd_train_TRADES")  # as the mode trains
    first = loss()
    for _ in range(5):
        baseline.train_epoch(network, optimizer, loader, mode, SETTINGS, device)
    assert loss() < first
    baseline.test_epoch(network, loader, device)
    assert not network.training
    after = network.state_dict()
    trained = [name for name, _ in network.named_parameters()]
    assert not any(torch.equal(before[name], after[name]) for name in trained)
    assert Network(tiny_net, *CIFAR_STATISTICS).eval()(images.float() / 255).isfinite().all()


def test_the_benchmark_s_attack_is_the_one_of_the_flags():
    settings = parse_args(["--device", "cpu"])
    assert strength(settings).attack == {"norm": "l_inf", **sides.ATTACK}


@pytest.mark.parametrize("variant", ("fp32", "bf16"))
def test_the_warm_up_takes_the_steps_that_are_timed(variant, tiny_models):
    """Of one batch an AT step makes 10 passes to attack, one to step on and a clean one."""
    sides.forget()
    job = {"task": "at", "model": "vgg11bn", "images": 6, "device": torch.device("cpu")}
    sides.time_task(variant, **job, warm_up=True)
    training = sides.our_state(variant, "pgd_train", "vgg11bn", 6, job["device"])
    sizes = []
    training.learner.network.register_forward_hook(
        lambda _, inputs, __: sizes.append(len(inputs[0]))
    )
    for warm_up in (True, False):
        sizes.clear()
        assert sides.time_task(variant, **job, warm_up=warm_up) > 0
        assert sizes == [6] * 12
    sides.forget()


def test_a_replayed_step_is_warmed_up_until_the_short_batch_is_captured(monkeypatch):
    """The short batch comes once an epoch, and is captured after WARM_UP of its steps."""
    runs = []
    monkeypatch.setattr(sides, "prepare_ours", lambda *job: lambda: runs.append(job))
    for side, warm_up, expected in (
        ("fp32", True, 1),
        ("fp32+compile", True, 1),
        ("fp32+graph", True, ReplayedStep.WARM_UP + 1),
        ("bf16+compile+graph", True, ReplayedStep.WARM_UP + 1),
        ("bf16+compile+graph", False, 1),
    ):
        runs.clear()
        sides.time_task(side, "st", "vgg11bn", 6, torch.device("cpu"), warm_up)
        assert len(runs) == expected, side
        assert len(set(runs)) == 1


def test_what_cannot_differ_is_timed_once():
    variants = ("baseline", "fp32", "fp32+compile", "fp32+graph", "bf16", "bf16+compile+graph")
    timed = {
        task: [side for side in variants if sides.is_timed(task, side)] for task in sides.TASKS
    }
    assert timed["st"] == timed["at"] == timed["trades"] == list(variants)
    assert timed["pgd"] == timed["sweep"] == ["baseline", "fp32", "fp32+compile", "bf16"]
    assert timed["nc10"] == timed["nc100"] == ["baseline", "fp32"]


def run(*flags):
    command = [sys.executable, str(BENCHMARKS / "benchmark.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_benchmark_prints_its_tables():
    variants = ["fp32", "bf16"] if HAS_BF16 else ["fp32"]
    flags = "--scale 0.0004 --models vgg11bn --tasks st nc10 sweep --repeats 1 --variants"
    result = run(*flags.split(), *variants)
    assert result.returncode == 0, result.stderr

    def each(cell):
        return r" \| ".join([cell] * len(variants))

    seconds, ratio, hours = r"\d+\.\d\d s", r"\d+\.\d\dx", r"[\d,]+\.\d\d"
    rate = r"[\d,]+ GFLOP/s, \d+%"
    names, empty = r" \| ".join(variants), r" \| " * (len(variants) - 1)
    for row in (
        rf"task \| model \| baseline \| {names}",
        rf"ST epoch \(20 images\) \| vgg11bn \| {seconds} \| {each(ratio)}",
        rf"NC metrics, 10 classes \(50,000 x 512\) \| - \| {seconds} \| {ratio}{empty}",
        rf"checkpoint of the ST sweep \(20 images\) \| vgg11bn \| {seconds} \| {each(ratio)}",
        rf"ST epoch \| vgg11bn \| {each(rate)}",
        rf"checkpoint of the ST sweep \| vgg11bn \| {each(rate)}",
        rf"ST, 400 epochs \| vgg11bn \| {hours} \| {each(hours)}",
        rf"the ST sweep \| vgg11bn \| {hours} \| {each(hours)}",
    ):
        found = re.findall(rf"^\| {row} \|$", result.stdout, re.MULTILINE)
        assert len(found) == 1, (row, result.stdout)


@pytest.mark.slow
def test_a_bad_scale_is_refused():
    result = run("--scale", "2")
    assert result.returncode == 2 and "--scale 2.0: expected a share" in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_graph_without_a_gpu_is_refused():
    result = run("--variants", "fp32+graph")
    assert result.returncode == 2 and "--variants: invalid choice: 'fp32+graph'" in result.stderr


def test_the_benchmark_trains_with_the_defaults_of_train_py():
    cpu = torch.device("cpu")
    ours = vars(sides.our_settings("bf16", "pgd_train", "vgg11bn", cpu))
    defaults = vars(parse_args(["--device", "cpu"]))
    differing = {name for name, value in defaults.items() if ours[name] != value}
    assert differing == {"precision", "train_mode", "lr_max", "no_cuda_graph"}


@pytest.mark.parametrize("name", switches.SWITCHES)
def test_a_switch_changes_nothing_but_the_time(name, tiny_net):
    weights = []
    for switch in (nullcontext(), switches.SWITCHES[name].turned()):
        network = Network(copy.deepcopy(tiny_net), *CIFAR_STATISTICS).train()
        torch.manual_seed(0)
        x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
        with switch:
            MODES["pgd_train"].step(make_learner(network, lr=0.1), x, y)
        weights.append(network.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, msg=key)


def test_a_switch_is_turned_for_a_block_or_for_good(monkeypatch):
    switch = switches.Switch(sides, "IMAGES", 7)
    with pytest.raises(KeyError), switch.turned():
        assert sides.IMAGES == 7
        raise KeyError
    assert sides.IMAGES != 7
    monkeypatch.setattr(sides, "IMAGES", sides.IMAGES)
    monkeypatch.setitem(switches.SWITCHES, "seven", switch)
    switches.set_switches("seven")
    assert sides.IMAGES == 7


def test_an_unknown_switch_is_refused():
    with pytest.raises(SystemExit, match="no 'nothing'; there are no-biases-left-out, "):
        switches.set_switches("nothing")
