"""--compile with the real networks on the CPU: the same run within rounding. `pytest -m slow`."""

import csv

import pytest
import torch

import eval as sweep
import train

pytestmark = pytest.mark.slow

SMALL = "--dataset digits --limit-train 40 --lr-max 0.01 --attack-iters 2"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(found, expected):
    """Rows of numbers, within rounding, which grows from epoch to epoch on so few images."""
    assert len(found) == len(expected)
    for row, reference in zip(found, expected, strict=True):
        tolerance = 0.05 if row["epoch"] == "0" else 0.2
        for name, value in row.items():
            if name in ("source", "split", "input", "epoch", "lr"):
                assert value == reference[name]
            elif value and name != "seconds":
                # Accuracies of 40 images within four of them.
                margin = 0.11 if "acc" in name or name == "nc4" else 0.01
                assert float(value) == pytest.approx(
                    float(reference[name]), rel=tolerance, abs=margin
                ), (name, row)


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
            code, out, err = run_script(
                train, f"{flags} --limit-test 20 --batch-size 16 {run} {models} {compiled}"
            )
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
        metrics = [row for row in rows(path / "results" / "metrics.csv") if row["split"] == "train"]
        results[compiled] = rows(path / "history.csv"), metrics
    for found, expected in zip(results["--compile"], results[""], strict=True):
        assert_same(found, expected)
