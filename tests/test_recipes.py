"""docs/extending.md: every recipe's code is added to a copy of the project, which is then run."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
RECIPE = re.compile(
    r'<!-- in (\S+)(?: (before|after) "(.+?)")? -->\n```(?:python)?\n(.*?)```', re.DOTALL
)
RUN = "--dataset arrays --data-dir arrays --train-mode mixed_train --lr-max 0.01 --device cpu"
DIGITS = "--dataset digits --limit-train 20 --limit-test 10 --device cpu"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with every recipe of docs/extending.md applied, and a run made before that."""
    folder = tmp_path_factory.mktemp("recipes")
    project = folder / "project"
    project.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, project)
    shutil.copytree(ROOT / "robust_nc", project / "robust_nc")
    rng = np.random.RandomState(0)
    (folder / "arrays").mkdir()
    arrays = {}
    for split, count in (("train", 18), ("test", 6)):
        labels = np.arange(count) % 3
        noise = rng.randint(0, 100, (count, 1, 32, 32)) + 50 * labels[:, None, None, None]
        arrays |= {f"{split}_x": noise.astype(np.uint8), f"{split}_y": labels.astype(np.int64)}
    np.savez(folder / "arrays" / "images.npz", **arrays)
    before = run(folder, "train.py", f"{DIGITS} --epochs 1")
    assert before.returncode == 0, before.stderr
    recipes = RECIPE.findall((ROOT / "docs" / "extending.md").read_text())
    assert len(recipes) == 23
    for path, place, anchor, code in recipes:
        insert(project / path, place, anchor, code)
    return folder


def insert(path, place, anchor, code):
    """Put code before or after the one line that begins with the anchor, or into a new file."""
    if not place:
        path.write_text(code)
        return
    lines = path.read_text().splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if line.startswith(anchor)]
    assert len(found) == 1, (path, anchor)
    blank = "\n\n" if code.startswith(("def ", "class ", "@")) else ""
    lines.insert(found[0] + (place == "after"), code + blank)
    path.write_text("".join(lines))


def run(folder, script, flags):
    return subprocess.run(
        [sys.executable, str(folder / "project" / script), *flags.split()],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_recipe_is_all_that_an_addition_needs(copy):
    flags = f"{RUN} --epochs 2 --lr-schedule root --no-shuffle --neural-collapse"
    flags += " --attack-iters 2 --restarts 2"
    trained = run(copy, "train.py", flags)
    assert trained.returncode == 0, trained.stderr
    what = "--neural-collapse --neural-collapse-gaussian --margins"
    swept = run(copy, "eval.py", f"{RUN} {what}")
    assert swept.returncode == 0, swept.stderr
    [folder] = copy.glob("models/arrays/vgg11bn/l_inf/eps8.0/mixed_train/seed1")
    records = rows(folder / "results" / "metrics.csv")
    # The metric is a column, in the log, and a panel; the kind of input has rows and series.
    assert all(float(row["mean_norm"]) > 0 for row in records)
    assert " norm " in swept.stdout and "flipped" in swept.stdout
    assert {"flipped", "seen", "pgd", "gaussian"} <= {row["input"] for row in records}
    assert {row["noise"] for row in records if row["input"] == "flipped"} == {""}
    assert (folder / "results" / "flipped_nc1.npy").exists()
    # The type of row has a table of its own, with the inputs that the other flags ask for.
    kinds = {row["input"] for row in rows(folder / "results" / "margins.csv")}
    assert kinds == {"clean", "pgd", "gaussian", "sign", "flipped"}
    assert "margin  images  epsilon" in swept.stdout
    # The schedule: 0.01 / sqrt(1 + t) at the end of each epoch.
    rates = [float(row["lr"]) for row in rows(folder / "history.csv")]
    np.testing.assert_allclose(rates, [0.01 / 2**0.5, 0.01 / 3**0.5])
    drawn = run(copy, "plot.py", f"{folder} --out figures --table")
    assert drawn.returncode == 0, drawn.stderr
    assert list((copy / "figures").glob("mixed_*.png"))
    assert "mean norm" in (copy / "figures" / "table.md").read_text()


def test_a_type_of_row_is_measured_recorded_and_shown(copy):
    """Also where its flag alone is given: of all kinds of input then."""
    run_of_one = copy / "models/digits/vgg11bn/l_inf/eps8.0/std_train/seed1"
    command = f"{run_of_one} --device cpu --attack-iters 1 --split test --margins"
    swept = run(copy, "eval.py", command)
    assert swept.returncode == 0, swept.stderr
    assert "margin  images  epsilon" in swept.stdout
    path = run_of_one / "results" / "margins.csv"
    recorded = rows(path)
    kinds = ["clean", "pgd", "gaussian", "sign", "targeted"]
    assert [row["input"] for row in recorded if row["input"] != "flipped"] == kinds
    assert all(float(row["margin"]) != 0 and row["images"] == "10" for row in recorded)
    assert recorded[-1]["steps"] == "1"


def test_runs_that_a_new_flag_sets_apart_are_never_mixed(copy):
    """A run of before the flag had its default: it is not resumed with another, nor averaged."""
    resumed = run(copy, "train.py", f"{DIGITS} --epochs 1 --no-shuffle --resume")
    assert resumed.returncode == 1
    assert "--no-shuffle was False, is True now" in resumed.stderr
    flags = f"{DIGITS} --epochs 1 --no-shuffle --seed 2"
    assert run(copy, "train.py", flags).returncode == 0
    folders = [f"models/digits/vgg11bn/l_inf/eps8.0/std_train/seed{seed}" for seed in (1, 2)]
    drawn = run(copy, "plot.py", f"{' '.join(folders)} --out apart --split test")
    assert drawn.returncode == 0, drawn.stderr
    assert "runs differ in --no-shuffle (off, on): drawn apart" in drawn.stdout
