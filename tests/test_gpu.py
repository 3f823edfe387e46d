"""What needs a GPU: replayed steps, mixed precision, halved batches, what nothing may wait for."""

import copy
import csv
import gc
import itertools
import math
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from test_attacks import check_golden_attacks
from test_nc_metrics import GOLDEN_CASES, check_golden_metrics
from test_scripts import assert_equal_runs

import attacks
import eval as sweep
import train
from attacks import NORMS, pgd
from nc_metrics import neural_collapse
from robust_nc import build
from robust_nc.build import prepare
from robust_nc.data.datasets import DATASETS, Dataset, as_float
from robust_nc.data.readers import Split
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.training.cuda_graphs import ReplayedStep
from robust_nc.training.epoch import run_epoch, set_rate, train_epoch
from robust_nc.training.modes import MODES
from robust_nc.training.resume import Snapshots, to_cpu
from utils import random_state, seed_everything, set_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parent.parent
DEVICE = torch.device("cuda", 0)
MODELS = ("vgg11bn", "PreActResNet18")
SMALL = "--dataset digits --lr-max 0.01 --neural-collapse"
TRAINING = "--limit-test 50 --lr-schedule cosine"
MEANS = ("train_loss", "train_robust_loss", "test_loss", "grad_norm")


def mode_flags(name):
    """The flags that choose a mode of MODES."""
    return f"--train-mode {MODES[name].train_mode} --bn {MODES[name].bn}"


def run_path(models, name):
    return Path(models) / f"digits/vgg11bn/l_inf/eps8.0/{name}/seed1"


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def repeatable(monkeypatch):
    """Kernels that are not chosen by their speed and repeat themselves, in scripts as well."""

    def set_and_pin(precision):
        set_precision(precision)
        torch.backends.cudnn.benchmark = False

    monkeypatch.setattr(train, "set_precision", set_and_pin)
    monkeypatch.setattr(sweep, "set_precision", set_and_pin)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    yield set_and_pin
    torch.backends.cudnn.benchmark = True


# ---------------------------------------------------------------------------------------------
# Replayed steps
# ---------------------------------------------------------------------------------------------


def random_images(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 10)


def make_training(command, count=70):
    """A run on random images of CIFAR-10's shape, in batches of 32."""
    command = f"--lr-max 0.01 --attack-iters 3 --batch-size 32 --device {DEVICE} {command}"
    settings = train.parse_args(command.split())
    data = Dataset(random_images(count), random_images(10), 10, *DATASETS["cifar"].statistics)
    return prepare(settings, build.run_folder(settings), data.to(DEVICE))


def follow(training, steps=8, size=32):
    """What so many steps leave, to the last bit; on the way rate and seed change."""
    learner, split = training.learner, training.data.train
    seen = []
    learner.network.train()
    seed_everything(1, 0)
    for i in range(steps):
        if i == 5:
            seed_everything(1, 1)
        set_rate(learner.optimizer, 0.01 if i < 6 else 0.001)
        start = i % 3 * 8
        part = slice(start, start + (size if i != steps - 2 else size // 2))
        x, y = as_float(split.images[part]), split.labels[part]
        result = training.step(learner, x, y)
        seen.append(to_cpu(result.means | {"perturbed": result.perturbed}))
    return {
        "seen": seen,
        "weights": to_cpu(learner.network.model.state_dict()),
        "optimizer": to_cpu(learner.optimizer.state_dict()["state"]),
        "random": random_state(DEVICE),
        "folded": to_cpu(learner.folded.state_dict()),
    }


def assert_same(found, expected, place="all"):
    """Nested dicts and lists of the same tensors."""
    assert type(found) is type(expected), place
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected), (place, (found - expected).abs().max())
    elif isinstance(found, dict):
        assert found.keys() == expected.keys(), place
        for key, value in found.items():
            assert_same(value, expected[key], f"{place}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(expected), place
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{place}[{i}]")
    else:
        assert found == expected, place


def replayed_cases():
    """Every mode with every network, each twice, with the other three flags changed in between.

    So that every pair of values of any two of the five is there: all 128 take too long.
    """
    eight = list(itertools.product(NORMS, ("fp32", "bf16"), ("sgd", "adam")))
    for i, (mode, model) in enumerate(itertools.product(MODES, MODELS)):
        place = (i + i // 2) % 4
        yield mode, model, *eight[place]
        yield mode, model, *eight[7 - place]


@pytest.mark.parametrize(
    ("mode", "model", "norm", "precision", "optimizer"), list(replayed_cases())
)
def test_replayed_steps_are_the_plain_ones_to_the_last_bit(
    mode, model, norm, precision, optimizer, repeatable
):
    """Weights, momentum, running statistics, draws, perturbed images and what is logged."""
    repeatable(precision)
    command = f"{mode_flags(mode)} --model {model} --norm {norm} --precision {precision}"
    command += f" --optimizer {optimizer}"
    expected = follow(make_training(f"{command} --no-cuda-graph"))
    training = make_training(command)
    found = follow(training)
    assert set(training.step.captured) == {32} and training.step.works
    assert_same(found, expected)
    assert all(value.isfinite().all() for value in found["weights"].values())


class OfEpoch:
    """In place of StopSignals: calls `end` after so many steps of an epoch; never stops it."""

    def __init__(self, steps, end):
        self.left, self.end = steps, end

    @property
    def received(self):
        self.left -= 1
        if self.left == 0:
            self.end()
        return 0


@pytest.mark.parametrize("switch", ("", "--no-cuda-graph"))
@pytest.mark.parametrize("mode", MODES)
def test_nothing_waits_for_the_device_within_an_epoch(mode, switch):
    """From the first step on to the end of the last."""
    set_precision("tf32")
    training = make_training(f"{mode_flags(mode)} --neural-collapse --norm l_2 {switch}")
    for epoch in range(ReplayedStep.WARM_UP + 1):  # tunes, makes state, captures
        train_epoch(training, epoch, None, None)
    step, set_mode = training.step, torch.cuda.set_sync_debug_mode

    def forbid_and_step(*args):
        set_mode("error")
        return step(*args)

    watched = copy.copy(training)
    object.__setattr__(watched, "step", forbid_and_step)
    try:
        train_epoch(watched, 9, None, OfEpoch(3, lambda: set_mode("default")))
    finally:
        set_mode("default")
    if not switch:
        assert set(training.step.captured) == {32, 6}


def gpu_memory():
    """Bytes that the allocator holds once it has given back what it can."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


@pytest.mark.parametrize("noticed", (True, False), ids=("before it is captured", "in the capture"))
def test_a_step_that_cannot_be_captured_goes_on_with_the_right_draws(noticed, repeatable, caplog):
    """The second batch size fails; where it is noticed in the capture, the first is captured."""
    repeatable("fp32")
    mode = MODES["pgd_train"].step

    def faulty(learner, x, y):
        result = mode(learner, x, y)
        if noticed or (torch.cuda.is_current_stream_capturing() and len(y) == 16):
            result.means["train_loss"].item()
        return result

    plain = "--train-mode pgd_train --no-cuda-graph"

    def both_sizes(step):
        training = make_training(plain)
        object.__setattr__(training, "step", step)
        return [follow(training, size=size) for size in (32, 16)]

    expected = both_sizes(mode)
    current, before = torch.cuda.current_stream(), gpu_memory()
    replayed = ReplayedStep(faulty)
    assert_same(both_sizes(replayed), expected)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and messages[0].startswith("no CUDA graph of the training step")
    assert not replayed.works and not replayed.captured
    assert torch.cuda.current_stream() == current
    # No pool is left: of a workspace for each library and stream there may be more than before.
    assert gpu_memory() < before + 2**28
    training = make_training(plain)
    follow(training)
    held = torch.cuda.memory_reserved()
    follow(training)
    assert torch.cuda.memory_reserved() < held + 2**26


@pytest.mark.parametrize(
    "more",
    (
        "",
        pytest.param("--compile --no-cuda-graph", marks=pytest.mark.slow),
        pytest.param("--compile", marks=pytest.mark.slow),
    ),
)
@pytest.mark.parametrize("mode", MODES)
def test_a_replayed_or_compiled_run_is_the_plain_one(mode, more, run_script, monkeypatch):
    """Six epochs of 330 images: batches of 128 and 74 are both captured and replayed."""
    replayed_steps = []

    def replayed(step):
        replayed_steps.append(ReplayedStep(step))
        return replayed_steps[-1]

    monkeypatch.setattr("robust_nc.build.ReplayedStep", replayed)
    command = f"{SMALL} {TRAINING} {mode_flags(mode)} --limit-train 330 --epochs 6"
    for folder, switches in (("plain", "--no-cuda-graph"), ("fast", more)):
        code, out, err = run_script(
            train, f"{command} --precision fp32 --models-dir {folder} {switches}"
        )
        assert code == 0, err
        assert "no CUDA graph" not in out and "cannot work here" not in out
    assert [set(step.captured) for step in replayed_steps] == (
        [] if "--no-cuda-graph" in more else [{128, 74}]
    )
    histories = [history(run_path(folder, mode)) for folder in ("fast", "plain")]
    for found, expected in zip(*histories, strict=True):
        for name in MEANS:
            assert bool(found[name]) == bool(expected[name])
            if expected[name]:
                assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.05), name
        assert found["lr"] == expected["lr"]


@pytest.mark.parametrize("more", ("", pytest.param("--compile", marks=pytest.mark.slow)))
def test_a_replayed_run_can_be_resumed_and_swept(more, run_script):
    shared = f"{SMALL} --limit-train 200 --precision bf16 {more} --epochs 2"
    training = f"{shared} {TRAINING}"
    assert run_script(train, training)[0] == 0
    code, out, _ = run_script(train, f"{training} --resume")
    assert code == 0 and "is finished" in out
    code, out, err = run_script(sweep, shared)
    assert code == 0, err
    assert "of the GPU" in out


# ---------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ("std_train", "pgd_train"))
def test_a_replayed_run_stopped_in_mid_epoch_ends_with_the_same_bits(
    mode, run_script, monkeypatch, repeatable
):
    """Three steps an epoch; the short batch is replayed from the fifth epoch on."""
    steps_taken, stops = [], {11, 16}

    class Stopping(ReplayedStep):
        def __call__(self, *args):
            steps_taken.append(1)
            if len(steps_taken) in stops:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(*args)

    flags = f"{SMALL} {TRAINING} {mode_flags(mode)} --limit-train 330 --epochs 7"
    flags += " --attack-iters 2"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    monkeypatch.setattr("robust_nc.build.ReplayedStep", Stopping)
    codes = [run_script(train, f"{flags} --resume")[0] for _ in range(3)]
    assert codes == [143, 143, 0] and len(steps_taken) == 7 * 3
    assert_equal_runs(run_path("models", mode), run_path("whole", mode))


@pytest.mark.parametrize("switch", ("", "--no-cuda-graph"))
@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_a_run_goes_on_on_another_device(optimizer, switch, run_script):
    """From a CPU on the GPU, and back."""
    flags = f"{SMALL} {TRAINING} --limit-train 200 --optimizer {optimizer} --lr-schedule onedrop"
    flags += " --precision fp32"
    devices = ("cpu", f"{DEVICE} {switch}", "cpu")
    for epochs, device in enumerate(devices, start=1):
        args = run_path("models", "std_train") / "args.json"
        if args.exists():  # a longer run
            former = f'"epochs": {epochs - 1}'
            args.write_text(args.read_text().replace(former, f'"epochs": {epochs}'))
        code, _, error = run_script(train, f"{flags} --epochs {epochs} --device {device} --resume")
        assert code == 0, error
    assert run_script(train, f"{flags} --epochs 3 --device cpu --models-dir whole")[0] == 0
    found, expected = (history(run_path(f, "std_train")) for f in ("models", "whole"))
    assert [row["epoch"] for row in found] == ["0", "1", "2"]
    for row, reference in zip(found, expected, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(reference["train_loss"]), rel=0.05)


def test_a_compiled_run_compiles_in_its_first_epoch_alone():
    set_precision("tf32")
    torch.compiler.reset()
    training = make_training("--compile --no-cuda-graph")
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    run_epoch(training, 0)
    first = stats["unique_graphs"]
    assert before < first <= before + 4
    for epoch in (1, 2):
        run_epoch(training, epoch)
    assert stats["unique_graphs"] == first
    torch.compiler.reset()


def test_a_process_that_torchrun_started_sweeps_alone(run_script, tmp_path):
    flags = f"{SMALL} --limit-train 40 --limit-test 20 --epochs 1 --attack-iters 2"
    code, _, error = run_script(train, f"{flags} --device {DEVICE}")
    assert code == 0, error
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    result = subprocess.run(
        [*command, str(ROOT / "eval.py"), *flags.split(), "--device", DEVICE.type],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / run_path("models", "std_train") / "results/nc1.npy").exists()


def test_a_snapshot_is_what_was_there_when_it_was_taken():
    """Whatever the device goes on with; in pinned memory, of which there are two sets."""
    training = make_training("--optimizer adam --no-cuda-graph")
    learner, snapshots, seen = training.learner, Snapshots(DEVICE), []
    for _ in range(3):
        follow(training, steps=2)
        state = {"w": learner.network.model.state_dict(), "o": learner.optimizer.state_dict()}
        expected = to_cpu(state)
        seen.append(snapshots.take(state))
        with torch.no_grad():
            for parameter in learner.network.parameters():
                parameter.add_(1)
        assert_same(seen[-1], expected)
    first, second, third = (taken["w"]["classifier.weight"] for taken in seen)
    assert first.is_pinned() and first.data_ptr() == third.data_ptr() != second.data_ptr()


# ---------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_attacks_are_golden_on_the_device(name, golden_network, golden, monkeypatch):
    """From the draws of the CPU, which the golden values were made with."""
    set_precision("fp32")
    draw = attacks._draw
    monkeypatch.setattr(attacks, "_draw", lambda x, make: draw(x.cpu(), make).to(x.device))
    check_golden_attacks(name, golden_network(name), golden("attacks"), DEVICE)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_metrics_are_golden_on_the_device(name, golden_json, golden):
    check_golden_metrics(golden_json("nc_metrics")[name], golden("class_means")[name], DEVICE)


@pytest.mark.parametrize("classes", (10, 100))
def test_metrics_are_those_of_the_cpu(classes):
    set_precision("tf32")
    features = [torch.from_numpy(a) for a in cases.features(4000, 512, classes, 0.3, seed=4)]
    h, y, w, logits = features
    expected = neural_collapse(h, y, logits, w)
    found = neural_collapse(*(tensor.to(DEVICE) for tensor in (h, y, logits, w)))
    for field in fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, float):
            assert math.isfinite(other)
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12), field.name
        elif isinstance(other, torch.Tensor):
            np.testing.assert_allclose(one.cpu(), other, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------
# Batches in eval mode
# ---------------------------------------------------------------------------------------------


def make_evaluator(name, batch_size=None):
    """Fresh weights in batches of that size or the default, 600 random images, the attack."""
    settings = train.parse_args(f"--model {name} --precision fp32".split())
    set_precision("fp32")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(600) % 10)
    data = Dataset(split, split, 10, *DATASETS["cifar"].statistics).to(settings.device)
    _, folded = build.build_networks(settings, data)
    size = batch_size or build.eval_batch_size(settings)
    return Evaluator(folded, size), data.train, build.strength(settings).attack


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_default_batch_is_whole_chunks_and_gives_the_results_of_small_batches(name):
    losses = []
    for batch_size in (128, None):
        evaluator, split, attack = make_evaluator(name, batch_size)
        if batch_size is None:
            assert evaluator.batch_size % 128 == 0 and evaluator.batch_size >= 512
        torch.manual_seed(0)
        measured = evaluator.measure(
            split.images,
            split.labels,
            lambda x, y, network=evaluator.network, attack=attack: pgd(network, x, y, **attack),
        )
        losses.append(measured.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_halved_batch_keeps_the_draws_and_the_results(name, caplog):
    """One attack step, whose result tells the draw of every pixel."""

    def perturbed(evaluator, split, attack):
        torch.manual_seed(0)
        return evaluator.perturbed(
            split.images,
            split.labels,
            lambda x, y: pgd(evaluator.network, x, y, **attack | {"steps": 1}),
        )

    expected = perturbed(*make_evaluator(name, batch_size=128))
    evaluator, split, attack = make_evaluator(name, batch_size=512)

    def allocate(_, inputs):
        if len(inputs[0]) > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")

    evaluator.network.register_forward_pre_hook(allocate)
    caplog.set_level("WARNING", logger="robust_nc")
    found = perturbed(evaluator, split, attack)
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: from here on batches of {size} images" for size in (256, 128)
    ]
    # Signs of tiny gradients flip with rounding; other draws leave few pixels equal.
    assert ((found - expected).abs() < 1e-4).float().mean() > 0.95


def test_a_batch_is_halved_where_the_memory_does_not_hold_it(caplog):
    """Of memory that is short in truth: a quarter of what 8,192 images need."""
    caplog.set_level("WARNING", logger="robust_nc")
    expected, split, attack = make_evaluator("vgg11bn", batch_size=128)
    repeated = Split(split.images.repeat(14, 1, 1, 1)[:8192], split.labels.repeat(14)[:8192])
    evaluator, _, _ = make_evaluator("vgg11bn", batch_size=8192)

    def measure(evaluator):
        torch.manual_seed(0)
        steps = attack | {"steps": 1}
        perturb = lambda x, y: pgd(evaluator.network, x, y, **steps)  # noqa: E731
        return evaluator.measure(repeated.images, repeated.labels, perturb)

    loss = measure(expected).loss
    allowed = gpu_memory() + 2**30 + 2**29
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total, DEVICE)
    try:
        found = measure(evaluator)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    sizes = [8192 // 2**i for i in range(1, 1 + len(caplog.records))]
    assert 128 <= evaluator.batch_size == sizes[-1]
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: from here on batches of {size} images" for size in sizes
    ]
    assert found.loss == pytest.approx(loss, rel=1e-2)
