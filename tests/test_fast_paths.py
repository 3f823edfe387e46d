"""Every shortcut against the plain float32 path: folding, layouts, bf16, merged passes, batches."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CIFAR_STATISTICS, GOLDEN_SEED, images_and_labels
from test_attacks import L_2, L_INF
from test_attacks import share_equal as share_of_equal_entries
from torch import nn

import train
import utils
from attacks import gaussian_noise, l2_noise, pgd, sign_noise, trades


def with_statistics(model):
    """Batch norms as after training: every parameter and statistic counts."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bf16", (False, True), ids=("fp32", "bf16"))
@pytest.mark.parametrize("size", (32, 160))
@pytest.mark.parametrize("name", utils.MODELS)
def test_a_folded_network_computes_the_same(name, size, bf16):
    model = with_statistics(utils.build_model(name, size, 3, 10))
    plain = utils.Network(model, *CIFAR_STATISTICS).eval()
    fast = utils.Network(model, *CIFAR_STATISTICS, bf16).to(memory_format=torch.channels_last)
    folded = utils.FoldedNetwork(fast)
    norms = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    expected = {"vgg11bn": (0, 0), "PreActResNet18": (9, 8)}[name][size == 160]
    assert len(norms) == expected  # those behind a sum stay
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        for found, reference in zip(folded(images, True), plain(images, True), strict=True):
            assert found.dtype == torch.float32
            assert relative(found, reference) < (2e-2 if bf16 else 1e-5)


def test_a_folded_network_follows_the_weights_and_stays_in_eval_mode(tiny_net):
    network = utils.Network(with_statistics(tiny_net), *CIFAR_STATISTICS).train()
    folded = utils.FoldedNetwork(network)
    images = torch.rand(4, 3, 16, 16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    train.standard_step(network, optimizer, images, torch.arange(4))
    assert relative(folded(images), network.eval()(images)) > 1e-2
    torch.testing.assert_close(folded.refold()(images), network(images))
    assert not folded.train().training and not any(m.training for m in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not {id(p) for p in folded.parameters()} & {id(p) for p in network.parameters()}


def test_a_convolution_that_something_else_uses_too_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.alone = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.norm, self.behind = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x, return_activations=False):
            x = self.convolution(x)
            return self.behind(self.alone(x + self.norm(x)))

    assert utils.conv_norm_pairs(Shared()) == [("alone", "behind")]


@pytest.mark.parametrize("bf16", (False, True), ids=("fp32", "bf16"))
@pytest.mark.parametrize("name", utils.MODELS)
def test_attacks_on_the_fast_network_are_as_strong_as_the_golden_ones(
    name, bf16, golden_network, golden
):
    """Strong against the plain network, whichever network they were made with."""
    plain, expected = golden_network(name).eval(), golden("attacks")
    fast = utils.FoldedNetwork(
        utils.Network(plain.model, *CIFAR_STATISTICS, bf16).to(memory_format=torch.channels_last)
    )
    plain = golden_network(name).eval()
    x, y = images_and_labels()
    for attack, settings in (
        ("pgd_linf", L_INF),
        ("pgd_l2", L_2),
        ("pgd_linf_targeted", L_INF | {"targeted": True}),
    ):
        torch.manual_seed(GOLDEN_SEED)
        delta = pgd(fast, x, y, **settings)
        losses = F.cross_entropy(plain(x + delta), y, reduction="none").detach()
        np.testing.assert_allclose(
            losses,
            expected[f"{name}.{attack}.loss"],
            rtol=0.03,
            atol=0.03 if bf16 else 1e-6,
            err_msg=attack,
        )
        # Signs of tiny gradients flip with rounding; bf16 rounds the l_2 steps of every pixel.
        if settings["norm"] == "l_inf":
            share = share_of_equal_entries(delta, expected[f"{name}.{attack}"])
            assert share > (0.5 if bf16 else 0.8), attack
    if bf16:
        return  # TRADES starts where these artificial weights' KL is below bf16's rounding
    torch.manual_seed(GOLDEN_SEED)
    delta = trades(fast, x, **L_INF)
    with torch.no_grad():
        logs, clean = F.log_softmax(plain(x + delta), 1), F.softmax(plain(x), 1)
    divergence = F.kl_div(logs, clean, reduction="none").sum(1)
    np.testing.assert_allclose(divergence, expected[f"{name}.trades_linf.kl"], rtol=0.05)


@pytest.mark.parametrize("bf16", (False, True), ids=("fp32", "bf16"))
@pytest.mark.parametrize("name", utils.MODELS)
def test_metrics_of_the_fast_network_are_those_of_the_plain_one(name, bf16):
    model = with_statistics(utils.build_model(name, 32, 3, 10))
    plain = utils.Network(model, *CIFAR_STATISTICS)
    images = torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(160) % 10
    images += (labels * 5).to(torch.uint8).view(-1, 1, 1, 1)  # classes that differ
    expected = utils.measure(plain, images, labels, 64)
    fast = utils.Network(model, *CIFAR_STATISTICS, bf16).to(memory_format=torch.channels_last)
    found = utils.measure(utils.FoldedNetwork(fast), images, labels, 160)
    tolerance = {"rel": 0.03, "abs": 0.03} if bf16 else {"rel": 1e-3, "abs": 1e-5}
    assert found.loss == pytest.approx(expected.loss, **tolerance)
    for metric in utils.NC_METRICS:
        value, reference = (getattr(m.collapse, metric) for m in (found, expected))
        assert value == pytest.approx(reference, **tolerance), metric


@pytest.mark.parametrize("restarts", (1, 2))
def test_at_merges_two_equal_passes_without_a_change(restarts, tiny_net):
    """The pass that scores a restart and the pass that is stepped on are one, and count as two."""
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    networks = [utils.Network(net, *CIFAR_STATISTICS) for net in (tiny_net, type(tiny_net)())]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [torch.optim.SGD(n.train().parameters(), lr=0.1) for n in networks]
    passes = []
    tiny_net.register_forward_hook(lambda *_: passes.append(1))

    torch.manual_seed(1)
    train.adversarial_step(
        networks[0],
        optimizers[0],
        x,
        y,
        attack=lambda *args, **kwargs: pgd(*args, **L_INF, **kwargs),
        restarts=restarts,
    )
    assert len(passes) == {1: 10 + 1 + 1, 2: 2 * 11 + 1 + 1}[restarts]

    torch.manual_seed(1)
    plain = networks[1]
    loss = F.cross_entropy(plain(x + pgd(plain, x, y, restarts=restarts, **L_INF)), y)
    with torch.no_grad():
        plain(x)
    train.update(optimizers[1], loss)
    for (name, found), expected in zip(
        networks[0].state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, msg=name)
    assert networks[0].model.norm.momentum == 0.1


@pytest.mark.parametrize("settings", (L_INF, L_2), ids=("l_inf", "l_2"))
def test_an_image_s_perturbation_does_not_depend_on_its_batch(settings, tiny_net):
    torch.manual_seed(0)
    x, y = torch.rand(300, 3, 16, 16), torch.arange(300) % 4
    tiny_net.eval()
    for perturb in (
        lambda x, y: pgd(tiny_net, x, y, restarts=2, **settings),
        lambda x, y: trades(tiny_net, x, **settings),
        lambda x, y: gaussian_noise(x, 0.1),
        lambda x, y: sign_noise(x, 0.1),
        lambda x, y: l2_noise(x, 0.5),
    ):
        found = []
        for batch_size in (128, 256, 300):
            torch.manual_seed(4)
            batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
            found.append(torch.cat([perturb(*batch) for batch in batches]))
        assert share_of_equal_entries(found[0], found[1].numpy()) > 0.999
        assert share_of_equal_entries(found[0], found[2].numpy()) > 0.999


def test_the_batch_that_fits_is_whole_chunks_where_it_can_be():
    assert utils.fitting_batch(free=8e9, per_image=8e6, largest=4096) == 512
    assert utils.fitting_batch(free=80e9, per_image=1e6, largest=4096) == 4096
    assert utils.fitting_batch(free=1e9, per_image=8e6, largest=4096) == 75
    assert utils.fitting_batch(free=1e6, per_image=8e6, largest=4096) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Pages of a tensor above 32 MiB are cleared by the system once, not at each allocation."""
    script = """
import resource, torch, utils
utils.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(20):  # until small blocks between the large ones have found their places
    faults()
print(max(faults() for _ in range(5)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if "musl" in result.stderr:
        pytest.skip("not glibc")
    assert int(result.stdout) < 1000, result.stderr  # 80 MB are 19,531 pages


def test_what_cannot_be_compiled_runs_as_it_is_with_one_line(run_script, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", no_compiler)
    flags = "--dataset digits --limit-train 20 --limit-test 10 --epochs 1 --lr-max 0.01 --compile"
    code, out, _ = run_script(train, flags)
    assert code == 0
    assert out.count("--compile") == 1
    assert "--compile cannot work here and is left out: no C++ compiler\n" in out
    assert "finished; peak memory" in out


class FakeCuda:
    """Stands in for torch.cuda's graphs: replays by calling the step again."""

    def __init__(self, monkeypatch, fails=False):
        self.fails, self.replays, self.captures = fails, 0, 0
        fake = self

        class Nothing:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return False

            def wait_stream(self, _):
                pass

        class Graph(Nothing):
            def replay(self):
                fake.replays += 1

        def capture(graph):
            fake.captures += 1
            if fake.fails:
                raise RuntimeError("operation not permitted\nwhile capturing")
            return graph

        for name, value in {
            "Stream": Nothing,
            "current_stream": Nothing,
            "stream": lambda stream: stream,
            "CUDAGraph": Graph,
            "graph": capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("fails", (False, True))
def test_a_step_is_captured_once_per_batch_size_after_its_warm_up(
    fails, tiny_net, monkeypatch, caplog
):
    cuda = FakeCuda(monkeypatch, fails)
    caplog.set_level("WARNING", logger="robust_nc")
    network = utils.Network(tiny_net, *CIFAR_STATISTICS).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    calls = []

    def step(network, optimizer, x, y):
        calls.append((x, y))
        return train.standard_step(network, optimizer, x, y)

    replayed = train.ReplayedStep(step)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    for i in range(6):
        replayed(network, optimizer, x + i, y)
        replayed(network, optimizer, x[:4], y[:4])
    if fails:
        assert cuda.captures == 1 and cuda.replays == 0 and len(calls) == 12
        assert [record.getMessage() for record in caplog.records] == [
            "--compile: no CUDA graph of the training step: operation not permitted"
        ]
        return
    assert cuda.captures == 2 and cuda.replays == 2 * 3
    assert len(calls) == 2 * (train.ReplayedStep.WARM_UP + 1)
    captured = next(x for x, _ in calls[2 * train.ReplayedStep.WARM_UP :] if len(x) == 8)
    assert torch.equal(captured, x + 5)  # what is replayed reads the present batch
