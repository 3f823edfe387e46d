"""What needs a GPU: CUDA graphs, mixed precision there, the memory probe."""

import csv

import pytest
import torch

import eval as sweep
import train
import utils

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = "--dataset digits --lr-max 0.01 --neural-collapse"
TRAINING = "--limit-test 50 --lr-schedule cosine"
MODES = ("std_train", "pgd_train", "pgd_train_TRADES", "pgd_train_TRADES --trades-bn batch")


def history(tmp_path, models, mode):
    folder = mode.split()[0] + ("_batch" if "batch" in mode else "")
    path = tmp_path / models / "digits" / "vgg11bn" / "l_inf" / "eps8.0" / folder / "seed1"
    with (path / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", MODES)
def test_a_replayed_run_is_the_plain_one(mode, run_script, tmp_path, monkeypatch):
    """Six epochs of 330 images: batches of 128 and 74 are both captured and replayed."""
    steps = []
    replayed = train.ReplayedStep
    monkeypatch.setattr(
        train, "ReplayedStep", lambda step: steps.append(replayed(step)) or steps[-1]
    )
    flags = f"{SMALL} {TRAINING} --train-mode {mode} --limit-train 330 --epochs 6 --precision fp32"
    for compiled in ("", "--compile"):
        code, out, err = run_script(train, f"{flags} --models-dir models{compiled} {compiled}")
        assert code == 0, err
        assert "no CUDA graph" not in out
    assert set(steps[0].captured) == {128, 74}
    plain, compiled = (history(tmp_path, f"models{c}", mode) for c in ("", "--compile"))
    for found, expected in zip(compiled, plain, strict=True):
        for name in ("train_loss", "train_robust_loss", "test_loss"):
            if expected[name]:
                assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.05)
        assert found["lr"] == expected["lr"]


def test_a_replayed_run_can_be_resumed_and_swept(run_script):
    flags = f"{SMALL} --limit-train 200 --precision bf16 --compile --epochs 2"
    assert run_script(train, f"{flags} {TRAINING}")[0] == 0
    code, out, _ = run_script(train, f"{flags} {TRAINING} --resume")
    assert code == 0 and "is finished" in out
    code, out, err = run_script(sweep, flags)
    assert code == 0, err
    assert "of the GPU" in out


@pytest.mark.parametrize("name", utils.MODELS)
def test_the_probed_batch_fits_and_its_results_are_those_of_small_batches(name):
    args = train.parse_args(f"--model {name} --precision fp32".split())
    images = torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8)
    split = utils.Split(images, torch.arange(600) % 10)
    data = utils.Dataset(split, split, 10, *utils.DATASETS["cifar"][1]).to(args.device)
    utils.set_precision("fp32")
    _, folded = utils.build_networks(args, data)
    batch_size = utils.eval_batch_size(args, folded, data.train.images)
    assert batch_size % 128 == 0 and batch_size >= 512
    attack = utils.attack_settings(args)
    losses = []
    for size in (128, batch_size):
        torch.manual_seed(0)
        measured = utils.measure(
            folded,
            data.train.images,
            data.train.labels,
            size,
            lambda x, y: train.pgd(folded, x, y, **attack),
        )
        losses.append(measured.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
