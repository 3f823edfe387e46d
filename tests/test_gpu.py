"""What needs a GPU: CUDA graphs, mixed precision there, halved batches."""

import csv

import pytest
import torch

import eval as sweep
import flags as run_flags
import train
from attacks import pgd
from cuda_graphs import ReplayedStep
from data import DATASETS, Dataset, Split
from measure import Evaluator
from networks import ARCHITECTURES
from utils import set_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = "--dataset digits --lr-max 0.01 --neural-collapse"
TRAINING = "--limit-test 50 --lr-schedule cosine"
MODES = ("std_train", "pgd_train", "pgd_train_TRADES", "pgd_train_TRADES --trades-bn batch")
MEANS = ("train_loss", "train_robust_loss", "test_loss", "grad_norm")


def history(tmp_path, models, mode):
    folder = mode.split()[0] + ("_batch" if "batch" in mode else "")
    path = tmp_path / models / "digits" / "vgg11bn" / "l_inf" / "eps8.0" / folder / "seed1"
    with (path / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("more", ("--cuda-graph", "--compile", "--cuda-graph --compile"))
@pytest.mark.parametrize("mode", MODES)
def test_a_replayed_or_compiled_run_is_the_plain_one(mode, more, run_script, tmp_path, monkeypatch):
    """Six epochs of 330 images: batches of 128 and 74 are both captured and replayed."""
    replayed_steps = []

    def replayed(step):
        replayed_steps.append(ReplayedStep(step))
        return replayed_steps[-1]

    monkeypatch.setattr("training.ReplayedStep", replayed)
    command = f"{SMALL} {TRAINING} --train-mode {mode} --limit-train 330 --epochs 6"
    for folder, switches in (("plain", ""), ("fast", more)):
        code, out, err = run_script(
            train, f"{command} --precision fp32 --models-dir {folder} {switches}"
        )
        assert code == 0, err
        assert "no CUDA graph" not in out and "cannot work here" not in out
    assert [set(step.captured) for step in replayed_steps] == (
        [{128, 74}] if "--cuda-graph" in more else []
    )
    for found, expected in zip(
        history(tmp_path, "fast", mode), history(tmp_path, "plain", mode), strict=True
    ):
        for name in MEANS:
            assert bool(found[name]) == bool(expected[name])
            if expected[name]:
                assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.05), name
        assert found["lr"] == expected["lr"]


def test_a_replayed_run_can_be_resumed_and_swept(run_script):
    shared = f"{SMALL} --limit-train 200 --precision bf16 --compile --epochs 2"
    training = f"{shared} {TRAINING} --cuda-graph"
    assert run_script(train, training)[0] == 0
    code, out, _ = run_script(train, f"{training} --resume")
    assert code == 0 and "is finished" in out
    code, out, err = run_script(sweep, shared)
    assert code == 0, err
    assert "of the GPU" in out


def make_evaluator(name, batch_size=None):
    """Fresh weights in batches of that size or the default, 600 random images, the attack."""
    settings = train.parse_args(f"--model {name} --precision fp32".split())
    set_precision("fp32")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(600) % 10)
    data = Dataset(split, split, 10, *DATASETS["cifar"].statistics).to(settings.device)
    _, folded = run_flags.build_networks(settings, data)
    size = batch_size or run_flags.eval_batch_size(settings)
    return Evaluator(folded, size), data.train, run_flags.strength(settings).attack


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
