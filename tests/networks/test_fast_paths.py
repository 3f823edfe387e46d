"""Every shortcut against the plain float32 path: folding, layouts, bf16, merged passes, batches."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CIFAR_STATISTICS,
    GOLDEN_SEED,
    HAS_BF16,
    NC_METRICS,
    images_and_labels,
    needs_bf16,
)
from test_attacks import L_2, L_INF
from test_attacks import share_equal as share_of_equal_entries
from torch import nn

import eval as sweep
import train
from attacks import gaussian_noise, l2_noise, pgd, sign_noise, trades
from robust_nc import build
from robust_nc.data.inputs import Strength
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.networks.architectures import ARCHITECTURES, build_model
from robust_nc.networks.folding import FoldedNetwork, conv_norm_pairs
from robust_nc.networks.network import Network
from robust_nc.settings import Settings
from robust_nc.training.modes import Learner, adversarial_step, standard_step, update
from utils import InputError

PRECISIONS = ("fp32", "bf16")
PUBLISHED = ("vgg11bn", "PreActResNet18")  # which there are golden values of
VGG_AND_SLOW_OTHERS = [
    pytest.param(name, marks=() if name == "vgg11bn" else pytest.mark.slow)
    for name in ARCHITECTURES
]
# Batch norms that do not follow a convolution, but a sum.
NORMS_LEFT = {
    ("vgg11bn", 32): 0,
    ("vgg11bn", 160): 0,
    ("PreActResNet18", 32): 9,
    ("PreActResNet18", 160): 8,
    ("ResNet18", 32): 0,
}


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


def make_learner(network, lr, restarts=1):
    return Learner(
        network=network,
        folded=FoldedNetwork(network),
        optimizer=torch.optim.SGD(network.parameters(), lr=lr),
        strength=Strength(attack=L_INF, restarts=restarts, noise=8 / 255),
        settings=Settings(trades_beta=6.0, mart_lambda=5.0),
    )


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bf16", (False, True), ids=PRECISIONS)
@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name in ARCHITECTURES for size in ARCHITECTURES[name]]
)
def test_a_folded_network_computes_the_same(name, size, bf16):
    if bf16 and size == 160 and not HAS_BF16:
        pytest.skip("this CPU has no bf16 arithmetic")
    model = with_statistics(build_model(name, size, 3, 10))
    plain = Network(model, *CIFAR_STATISTICS).eval()
    fast = Network(model, *CIFAR_STATISTICS, bf16).to_channels_last()
    folded = FoldedNetwork(fast)
    norms = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == NORMS_LEFT[name, size]
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        for found, reference in zip(folded(images, True), plain(images, True), strict=True):
            assert found.dtype == torch.float32
            assert relative(found, reference) < (2e-2 if bf16 else 1e-5)


def test_a_folded_network_follows_the_weights_and_stays_in_eval_mode(tiny_net):
    network = Network(with_statistics(tiny_net), *CIFAR_STATISTICS).train()
    learner = make_learner(network, lr=0.5)
    folded = learner.folded
    images = torch.rand(4, 3, 16, 16)
    standard_step(learner, images, torch.arange(4))
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
            self.norm, self.after = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x, return_activations=False):
            x = self.convolution(x)
            return self.after(self.alone(x + self.norm(x)))

    assert conv_norm_pairs(Shared()) == [("alone", "after")]


@pytest.mark.slow
@pytest.mark.parametrize("bf16", (False, pytest.param(True, marks=needs_bf16)), ids=PRECISIONS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_attacks_on_the_fast_network_are_as_strong_as_the_golden_ones(
    name, bf16, golden_network, golden
):
    """Strong against the plain network, whichever network they were made with."""
    plain, expected = golden_network(name).eval(), golden("attacks")
    fast = FoldedNetwork(Network(plain.model, *CIFAR_STATISTICS, bf16).to_channels_last())
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


@pytest.mark.parametrize("bf16", (False, pytest.param(True, marks=needs_bf16)), ids=PRECISIONS)
@pytest.mark.parametrize("name", VGG_AND_SLOW_OTHERS)
def test_metrics_of_the_fast_network_are_those_of_the_plain_one(name, bf16):
    model = with_statistics(build_model(name, 32, 3, 10))
    plain = Network(model, *CIFAR_STATISTICS)
    images = torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(160) % 10
    images += (labels * 5).to(torch.uint8).view(-1, 1, 1, 1)  # classes that differ
    expected = Evaluator(plain, batch_size=64).measure(images, labels)
    fast = Network(model, *CIFAR_STATISTICS, bf16).to_channels_last()
    found = Evaluator(FoldedNetwork(fast), batch_size=160).measure(images, labels)
    tolerance = {"rel": 0.03, "abs": 0.03} if bf16 else {"rel": 1e-3, "abs": 1e-5}
    assert found.loss == pytest.approx(expected.loss, **tolerance)
    for metric in NC_METRICS:
        value, reference = (getattr(m.collapse, metric) for m in (found, expected))
        assert value == pytest.approx(reference, **tolerance), metric


@pytest.mark.parametrize("restarts", (1, 2))
def test_at_merges_two_equal_passes_without_a_change(restarts, tiny_net):
    """The pass that scores a restart and the pass that is stepped on are one, and count as two."""
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    merged, plain = (Network(net, *CIFAR_STATISTICS) for net in (tiny_net, type(tiny_net)()))
    plain.load_state_dict(merged.state_dict())
    learner = make_learner(merged.train(), lr=0.1, restarts=restarts)
    optimizer = torch.optim.SGD(plain.train().parameters(), lr=0.1)
    passes = []
    tiny_net.register_forward_hook(lambda *_: passes.append(1))

    torch.manual_seed(1)
    adversarial_step(learner, x, y)
    assert len(passes) == {1: 10 + 1 + 1, 2: 2 * 11 + 1 + 1}[restarts]

    torch.manual_seed(1)
    loss = F.cross_entropy(plain(x + pgd(plain, x, y, restarts=restarts, **L_INF)), y)
    with torch.no_grad():
        plain(x)
    update(optimizer, loss)
    for (name, found), expected in zip(
        merged.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, msg=name)
    assert merged.model.norm.momentum == 0.1


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


class SmallMemory:
    """Memory for no more than `holds` images a pass, from pass number `from_pass` on."""

    ERRORS = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    )

    def __init__(self, network, holds, from_pass=1, error=ERRORS[0]):
        self.holds, self.from_pass, self.error = holds, from_pass, error
        self.sizes = []
        network.register_forward_pre_hook(self._allocate)

    def _allocate(self, _, inputs):
        self.sizes.append(len(inputs[0]))
        if len(self.sizes) >= self.from_pass and len(inputs[0]) > self.holds:
            raise type(self.error)(*self.error.args)


@pytest.fixture
def measured_network(tiny_net):
    return Network(with_statistics(tiny_net), *CIFAR_STATISTICS)


def many_images(count=600):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 4


def attacked(evaluator, restarts=1):
    """Logits and features of many_images under PGD."""
    torch.manual_seed(4)
    return evaluator.outputs(
        *many_images(),
        lambda x, y: pgd(evaluator.network, x, y, restarts=restarts, **L_INF),
    )


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("error", SmallMemory.ERRORS, ids=("gpu", "cpu"))
@pytest.mark.parametrize("restarts", (1, 2))
@pytest.mark.parametrize("from_pass", (1, 11, 15))  # in an attack, after it, in the second batch
def test_results_are_the_same_to_the_last_bit_where_memory_runs_out(
    from_pass, restarts, error, measured_network, caplog
):
    expected = [attacked(Evaluator(measured_network, size), restarts) for size in (128, 256)]
    caplog.set_level("WARNING", logger="robust_nc")
    memory = SmallMemory(measured_network, holds=128, from_pass=from_pass, error=error)
    finished = []  # the last pass through the network of every batch

    def note(_, inputs, keywords, __):
        if keywords.get("return_activations"):
            finished.append(len(inputs[0]))

    measured_network.register_forward_hook(note, with_kwargs=True)
    evaluator = Evaluator(measured_network, batch_size=256)
    found = attacked(evaluator, restarts)
    for whole in expected:
        for values, reference in zip(found, whole, strict=True):
            assert torch.equal(values, reference)
    assert warnings_of(caplog) == ["out of memory: from here on batches of 128 images"]
    assert evaluator.batch_size == 128  # and stays so
    assert memory.sizes.count(256) == from_pass
    first = [256] if from_pass > 11 * restarts else []
    assert finished == [*first, *[128] * (4 - 2 * len(first)), 88]


def test_the_batch_is_halved_until_it_fits_with_one_warning_each(measured_network, caplog):
    expected = attacked(Evaluator(measured_network, batch_size=128))
    caplog.set_level("WARNING", logger="robust_nc")
    SmallMemory(measured_network, holds=200)
    evaluator = Evaluator(measured_network, batch_size=512)
    found = attacked(evaluator)
    assert all(map(torch.equal, found, expected))
    assert warnings_of(caplog) == [
        f"out of memory: from here on batches of {size} images" for size in (256, 128)
    ]
    assert attacked(evaluator)[0].shape == (600, 4)
    assert len(warnings_of(caplog)) == 2  # none for a batch that is known to fit


@pytest.mark.parametrize("from_pass", (1, 5))  # for the class means, and for what needs them
def test_blocks_are_the_same_to_the_last_bit_where_memory_runs_out(
    from_pass, measured_network, caplog
):
    expected, _ = Evaluator(measured_network, batch_size=128).blocks(*many_images())
    caplog.set_level("WARNING", logger="robust_nc")
    memory = SmallMemory(measured_network, holds=128, from_pass=from_pass)
    evaluator = Evaluator(measured_network, batch_size=256)
    assert evaluator.blocks(*many_images())[0] == expected
    assert list(expected) == ["stem", "features"]
    assert warnings_of(caplog) == ["out of memory: from here on batches of 128 images"]
    assert evaluator.batch_size == 128
    assert memory.sizes[from_pass:] == 2 * [128, 128, 128, 128, 88]  # both passes anew


@pytest.mark.parametrize("method", ("outputs", "measure", "blocks"))
def test_a_batch_of_one_image_that_does_not_fit_ends_the_measurement(
    method, measured_network, caplog
):
    caplog.set_level("WARNING", logger="robust_nc")
    SmallMemory(measured_network, holds=0)
    evaluator = Evaluator(measured_network, batch_size=5)
    with pytest.raises(InputError, match=r"^out of memory with a batch of one image$"):
        getattr(evaluator, method)(*many_images(8))
    assert warnings_of(caplog) == [
        f"out of memory: from here on batches of {size} images" for size in (2, 1)
    ]


@pytest.mark.parametrize("method", ("outputs", "measure", "blocks"))
def test_another_error_halves_no_batch(method, measured_network, caplog):
    caplog.set_level("WARNING", logger="robust_nc")
    SmallMemory(measured_network, holds=0, error=RuntimeError("shapes cannot be multiplied"))
    evaluator = Evaluator(measured_network, batch_size=4)
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        getattr(evaluator, method)(*many_images(8))
    assert warnings_of(caplog) == [] and evaluator.batch_size == 4


@pytest.mark.slow
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
    command = "--dataset digits --limit-train 20 --limit-test 10 --epochs 1 --lr-max 0.01 --compile"
    code, out, _ = run_script(train, command)
    assert code == 0
    assert out.count("--compile") == 1
    assert "--compile cannot work here and is left out: no C++ compiler\n" in out
    assert "finished; peak memory" in out


@pytest.mark.parametrize(
    ("mode", "in_training"),
    (
        # Of full batches each pass that differs in mode, momentum or what it differentiates.
        ("std_train", 1),
        ("pgd_train", 3),
        ("pgd_train --precision bf16", 3),
        ("pgd_train_TRADES", 2),
        ("pgd_train_TRADES --trades-bn batch", 3),
        ("pgd_train_MART", 2),
    ),
)
def test_a_compiled_run_compiles_in_its_first_epoch_alone(
    mode, in_training, run_script, tiny_models, monkeypatch
):
    """Traced as for a compiler, but run as it is: what is counted does not depend on that.

    Short batches, the last one of an epoch and of what is evaluated, are not even traced.
    """
    compile_module, found, sizes = nn.Module.compile, [], set()

    def backend(graph, inputs):
        sizes.update(value.shape[0] for value in inputs if value.dim() == 4 and value.shape[2] > 3)
        return graph

    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_module(self, backend=backend, **how)
    )
    monkeypatch.setattr(build, "can_compile", lambda device: True)
    run_epoch, stats = train.run_epoch, torch._dynamo.utils.counters["stats"]

    def counted(*args):
        before = stats["unique_graphs"]
        result = run_epoch(*args)
        found.append(stats["unique_graphs"] - before)
        return result

    monkeypatch.setattr(train, "run_epoch", counted)
    flags = "--dataset digits --limit-train 40 --lr-max 0.01 --attack-iters 2 --compile --epochs 3"
    flags += f" --neural-collapse --train-mode {mode}"
    torch.compiler.reset()
    flags += " --eval-batch-size 18"
    code, out, error = run_script(train, f"{flags} --limit-test 20 --batch-size 16")
    assert code == 0, error
    assert found == [in_training + 1, 0, 0] and sizes == {16, 18}
    assert out.count("full batches alone are compiled, in eval mode those of 18") == 1
    torch.compiler.reset()
    sizes.clear()
    before = stats["unique_graphs"]
    code, _, error = run_script(sweep, f"{flags} --neural-collapse-targeted")
    assert code == 0, error
    # With the input's gradient and without.
    assert stats["unique_graphs"] - before == 2 and sizes == {18}


def test_two_cuda_graph_flags_are_refused_in_one_line(run_script):
    code, out, err = run_script(train, "--device cpu --cuda-graph --no-cuda-graph")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "--cuda-graph and --no-cuda-graph: give one of them" in err


def test_a_cuda_graph_without_a_gpu_is_refused_in_one_line(run_script):
    code, out, err = run_script(train, "--dataset digits --device cpu --cuda-graph")
    assert code == 2 and out == ""
    assert err.startswith("train.py: error: --cuda-graph needs a GPU; the device is cpu")
    assert err.count("\n") == 1
