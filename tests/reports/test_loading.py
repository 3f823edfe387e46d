"""robust_nc.load_runs: all that runs have measured as one table."""

import sys
from types import SimpleNamespace

import pytest
from test_plot import make_run

from robust_nc import load_runs
from robust_nc.results.records import CentreRecord
from robust_nc.results.run_folder import RunFolder
from robust_nc.training.modes import MODES
from utils import InputError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """For pandas, which need not be there: a table is its rows."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))


def test_every_row_says_which_run_it_is_of():
    first = make_run(1, epochs=(0, 2), inputs=("clean", "pgd"), flags={"lr_max": 0.1, "epochs": 3})
    make_run(2, epochs=(2,), inputs=("clean",), flags={"lr_max": 0.1, "epochs": 3})
    make_run(3, epochs=(2,), inputs=("clean",), flags={"lr_max": 0.5, "epochs": 3})
    trades = {"train_mode": "pgd_train_TRADES", "trades_bn": "batch"}
    make_run(4, "pgd_train_TRADES_batch", (2,), ("pgd",), epsilon=4.0, flags=trades)
    rows = load_runs("models")
    told = [(row["run_epsilon"], row["train_mode"], row["bn"], row["seed"]) for row in rows]
    assert told == [
        (4.0, "pgd_train_TRADES", "batch", 4),
        *[(8.0, "std_train", "batch", 1)] * 4,
        (8.0, "std_train", "batch", 2),
        (8.0, "std_train", "batch", 3),
    ]
    assert {row["dataset"] for row in rows} == {"cifar"}
    assert [row["differs"] for row in rows] == ["", *["lr-max 0.1"] * 5, "lr-max 0.5"]
    assert [(r["epoch"], r["input"]) for r in rows[1:5]] == [
        (0, "clean"),
        (0, "pgd"),
        (2, "clean"),
        (2, "pgd"),
    ]
    assert rows[1]["path"] == str(first) and rows[2]["nc1"] == 0.5 and rows[2]["images"] == 100
    # A folder that is named twice, or as text, is one run.
    assert load_runs([first, str(first)]) == load_runs(first)
    assert len(load_runs([first])) == 4


@pytest.mark.parametrize("name", MODES)
def test_train_mode_and_bn_are_the_flags_that_choose_the_mode(name):
    mode = MODES[name]
    flags = {"train_mode": mode.train_mode, "bn": mode.bn, "epochs": 1}
    [row] = load_runs(make_run(1, name, (0,), ("clean",), flags=flags))
    assert (row["train_mode"], row["bn"]) == (mode.train_mode, mode.bn)


def test_a_copy_of_a_run_is_told_and_a_weak_attack_is_left_out():
    paths = [make_run(flags={"epochs": 3}, models=models) for models in ("models", "copies")]
    with pytest.warns(RuntimeWarning, match=r"copies.* of the same setting and seed as models"):
        load_runs(paths)
    row = {"epoch": 1, "split": "test", "means": "clean", "input": "adaptive"}
    row |= {"ncc_accuracy": 0.25, "network_accuracy": 0.5}
    RunFolder(paths[0]).append([CentreRecord(**row)])
    assert load_runs(paths[0], "ncc") == []


def test_other_tables_and_what_was_not_measured():
    path = make_run(flags={})
    assert load_runs(path, "layers") == []
    row = {"epoch": 1, "split": "test", "means": "clean", "input": "clean"}
    RunFolder(path).append([CentreRecord(**row, ncc_accuracy=0.25, network_accuracy=0.5)])
    [read] = load_runs(path, "ncc")
    assert (read["seed"], read["ncc_accuracy"], read["run_epsilon"]) == (1, 0.25, 8.0)


def test_runs_without_an_args_json_are_named_by_their_path():
    make_run(5, epochs=(1,), inputs=("clean",))
    [row] = load_runs("models")
    assert (row["model"], row["norm"], row["seed"]) == ("vgg11bn", "l_inf", 5)


def test_what_cannot_be_loaded_is_told(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_runs("nowhere")
    with pytest.raises(InputError, match="holds no run"):
        load_runs(tmp_path)
    with pytest.raises(ValueError, match="metrics, layers, ncc, autoattack"):
        load_runs(tmp_path, "collapse")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^load_runs needs pandas: pip install pandas$"):
        load_runs(tmp_path)


def test_pandas_makes_a_frame_of_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas")
    pytest.importorskip("pandas")
    frame = load_runs(make_run(flags={"epochs": 3}))
    assert {"dataset", "seed", "epsilon", "nc1"} <= {*frame.columns}
    assert frame.groupby(["train_mode", "input"]).nc1.mean().max() == 0.5
