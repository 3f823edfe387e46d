"""--compile with the real networks on the CPU: the same run within rounding. `pytest -m slow`."""

import copy
import csv
import shutil

import pytest
import torch
from conftest import CIFAR_STATISTICS, HAS_BF16

import eval as sweep
import train
from robust_nc.networks.architectures import ARCHITECTURES, build_model
from robust_nc.networks.network import Network

pytestmark = pytest.mark.slow

SMALL = "--dataset digits --limit-train 40 --lr-max 0.01 --attack-iters 2 --eval-batch-size 20"

# What a run may compile: full batches alone, with the one graph that tells whether compiling works.
MOST_GRAPHS = 5


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(found, expected, tolerance):
    """Rows of numbers, within a relative tolerance; accuracies of 40 images within four of them."""
    assert len(found) == len(expected)
    for row, reference in zip(found, expected, strict=True):
        for name, value in row.items():
            if name in ("source", "split", "input", "epoch", "lr", "precision"):
                assert value == reference[name]
            elif value and name not in ("seconds", "peak_memory"):
                margin = 0.11 if "acc" in name or name == "nc4" else 0.01
                assert float(value) == pytest.approx(
                    float(reference[name]), rel=tolerance, abs=margin
                ), (name, row)


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_compiled_network_has_the_same_outputs_and_gradients(name, training):
    """In bf16 it is as close to float32 as the plain network in bf16 is."""
    torch.manual_seed(0)
    model = build_model(name, 32, 3, 10)

    def outputs(bf16, compiled):
        network = Network(copy.deepcopy(model), *CIFAR_STATISTICS, bf16)
        network.to_channels_last().train(training)
        if compiled:
            network.compile(dynamic=False)
        x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = network(x)
        torch.nn.functional.cross_entropy(logits, torch.arange(16) % 10).backward()
        weights = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        statistics = torch.cat([buffer.flatten() for buffer in network.buffers()])
        return logits.detach(), x.grad, weights, statistics

    def errors(found):
        return [((f - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True)]

    exact = outputs(bf16=False, compiled=False)
    logits, x_gradient, weight_gradients, statistics = errors(outputs(bf16=False, compiled=True))
    assert logits < 1e-4 and statistics < 1e-4
    # A rounding that moves one activation across a ReLU's zero changes its gradient in a jump.
    assert x_gradient < 3e-2 and weight_gradients < 3e-2
    if not HAS_BF16:
        return
    plain, compiled = errors(outputs(True, False)), errors(outputs(True, True))
    assert all(c < 1.5 * p + 1e-6 for p, c in zip(plain, compiled, strict=True)), (plain, compiled)


@pytest.mark.parametrize(
    ("model", "mode"),
    (
        ("PreActResNet18", "std_train"),
        ("vgg11bn", "pgd_train"),
        ("vgg11bn", "pgd_train_TRADES"),
        ("vgg11bn", "pgd_train_TRADES --trades-bn batch"),
        ("vgg11bn", "pgd_train_MART"),
    ),
)
def test_a_compiled_run_is_the_plain_one(model, mode, run_script, tmp_path):
    """Batches of 16 and a short one of 8, three epochs with a resume, then a sweep."""
    command = f"{SMALL} --model {model} --train-mode {mode} --epochs 3 --neural-collapse"
    folder = mode.split()[0] + ("_batch" if "batch" in mode else "")
    path = f"digits/{model}/l_inf/eps8.0/{folder}/seed1"

    def run(script, more, compiled):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        code, out, err = run_script(script, f"{command} {more} {compiled}")
        assert code == 0, err
        assert "cannot work" not in out
        assert bool(torch._dynamo.utils.counters["frames"]) == bool(compiled)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= MOST_GRAPHS

    for compiled in ("", "--compile"):
        training = f"--limit-test 20 --batch-size 16 --models-dir models{compiled}"
        run(train, training, compiled)
        run(train, f"{training} --resume 2 --overwrite", compiled)
    histories = [rows(tmp_path / f"models{c}" / path / "history.csv") for c in ("--compile", "")]
    assert_same(*histories, tolerance=0.2)  # rounding grows under attack, on so few images

    shutil.copytree(tmp_path / "models", tmp_path / "copy")
    kinds = "--checkpoints 2 --neural-collapse-gaussian --neural-collapse-targeted"
    run(sweep, f"{kinds} --models-dir models", "")
    run(sweep, f"{kinds} --models-dir copy", "--compile")
    swept = [
        [r for r in rows(tmp_path / m / path / "results/metrics.csv") if r["source"] == "eval"]
        for m in ("copy", "models")
    ]
    assert_same(*swept, tolerance=0.02)
