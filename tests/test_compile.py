"""--compile with the real networks on the CPU: the same run within rounding. `pytest -m slow`."""

import csv

import pytest
import torch

import eval as sweep
import train

pytestmark = pytest.mark.slow

SMALL = "--dataset digits --limit-train 40 --limit-test 20 --lr-max 0.01 --attack-iters 2"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(found, expected, tolerance):
    """Rows of numbers, within rounding; accuracies of few images within two of them."""
    assert len(found) == len(expected)
    for row, reference in zip(found, expected, strict=True):
        for name, value in row.items():
            if name == "seconds" or not value:
                continue
            try:
                number = float(reference[name])
            except ValueError:
                assert value == reference[name]
                continue
            within = {"rel": tolerance, "abs": 0.11 if "acc" in name or name == "nc4" else 1e-3}
            assert float(value) == pytest.approx(number, **within), name


@pytest.mark.parametrize(
    ("model", "mode"),
    (
        ("vgg11bn", "std_train"),
        ("PreActResNet18", "pgd_train"),
        ("vgg11bn", "pgd_train_TRADES"),
        ("vgg11bn", "pgd_train_TRADES --trades-bn batch"),
    ),
)
def test_a_compiled_run_is_the_plain_one(model, mode, run_script, tmp_path):
    """Batches of 16 and a short one of 8, three epochs with a resume, then a sweep."""
    flags = f"{SMALL} --model {model} --train-mode {mode} --neural-collapse"
    folder = mode.split()[0] + ("_batch" if "batch" in mode else "")
    results = {}
    for compiled in ("", "--compile"):
        models = f"--models-dir models{compiled}"
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        for run in ("--epochs 3", "--epochs 3 --resume 2 --overwrite"):
            code, out, err = run_script(train, f"{flags} --batch-size 16 {run} {models} {compiled}")
            assert code == 0, err
            assert "cannot work" not in out
        code, out, err = run_script(
            sweep,
            f"{flags} --epochs 3 --checkpoints 2 --neural-collapse-gaussian "
            f"--neural-collapse-targeted {models} {compiled}",
        )
        assert code == 0, err
        assert bool(torch._dynamo.utils.counters["frames"]) == bool(compiled)
        path = tmp_path / f"models{compiled}/digits/{model}/l_inf/eps8.0/{folder}/seed1"
        results[compiled] = rows(path / "history.csv"), rows(path / "results" / "metrics.csv")
    for found, expected in zip(results["--compile"], results[""], strict=True):
        assert_same(found, expected, tolerance=0.05)
