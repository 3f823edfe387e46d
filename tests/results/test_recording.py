"""A sweep records each checkpoint at once, in a time that does not grow, and loses nothing."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from test_scripts import TREE_FOLDER, make_folder, make_record, rows, series

import eval as eval_script
import train
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.results import files
from robust_nc.results.records import Record
from utils import InputError

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture
def sweep(image_tree, run_script):
    """The flags of the sweep of a run of four epochs, which is there; and that sweep beside it."""
    flags = f"--dataset folder --data-dir {image_tree} --attack-iters 1"
    assert run_script(train, f"{flags} --epochs 4")[0] == 0
    shutil.copytree("models", "whole")
    flags += " --neural-collapse --layerwise"
    assert run_script(eval_script, f"{flags} --models-dir whole")[0] == 0
    return flags


def results():
    return TREE_FOLDER / "results", "whole" / TREE_FOLDER.relative_to("models") / "results"


def assert_as_if_never_stopped():
    found, whole = results()
    names = {path.name for path in whole.iterdir()} - {"eval_args.json"}
    assert {path.name for path in found.iterdir()} - {"eval_args.json"} == names
    for name in names:
        assert (found / name).read_bytes() == (whole / name).read_bytes(), name


def stop_at_pass(number, monkeypatch, stop):
    """Call `stop` in the middle of a checkpoint: at so many passes through the network."""
    passes = []
    original = Evaluator.outputs

    def outputs(*arguments):
        passes.append(1)
        if len(passes) == number:
            stop()
        return original(*arguments)

    monkeypatch.setattr(Evaluator, "outputs", outputs)


def kill_outright():
    """What SIGKILL leaves: nothing more is written."""
    raise SystemExit(137)


def test_a_signal_leaves_complete_series_and_tables(sweep, run_script, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at_pass(4, patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_script(eval_script, sweep)[0] == 143
    found, whole = results()
    assert not list(found.glob(".*.added"))
    recorded = rows(found / "metrics.csv")
    assert recorded == [row for row in rows(whole / "metrics.csv") if row in recorded]
    assert {row["epoch"] for row in recorded if row["source"] == "eval"} == {"0"}
    nc1 = series(TREE_FOLDER)["robust_nc1"]
    assert nc1.tolist() == np.load(whole / "robust_nc1.npy")[:1].tolist()
    code, output, _ = run_script(eval_script, sweep)
    assert code == 0 and "3 checkpoints (1 done before)" in output
    assert_as_if_never_stopped()


def test_a_kill_loses_the_checkpoint_under_way_alone(sweep, run_script, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at_pass(6, patched, kill_outright)
        patched.setattr(train.RunFolder, "settle", lambda self: None)
        run_script(eval_script, sweep)
    found, _ = results()
    left = files.appended_file(found / "metrics.csv")
    whole_lines = left.read_bytes()
    left.write_bytes(whole_lines[:-20])  # the last line cut off, as a power cut may
    code, output, _ = run_script(eval_script, sweep)
    assert code == 0 and "(1 done before)" in output
    assert_as_if_never_stopped()


def test_a_line_that_was_cut_off_spoils_no_later_one(tmp_path):
    """As where a rank's disk is full for a moment, while another goes on."""
    folder = make_folder(tmp_path)
    folder.append([make_record("clean", epoch=e, start=float(e)) for e in range(3)])
    beside = files.appended_file(folder.results / "metrics.csv")
    beside.write_bytes(beside.read_bytes()[:-30])
    folder.append([make_record("clean", epoch=5, start=5.0)])
    expected = [make_record("clean", epoch=e, start=float(e)) for e in (0, 1, 5)]
    assert repr(folder.rows(Record)) == repr(expected)
    beside.write_bytes(b"cut off in the header")
    folder.append([make_record("clean", epoch=7)])
    assert [row.epoch for row in folder.rows(Record)] == [7]


def test_rows_that_are_damaged_are_told_with_their_file(tmp_path):
    folder = make_folder(tmp_path)
    folder.append([make_record("clean")])
    beside = files.appended_file(folder.results / "metrics.csv")
    for content in (b"\xff\xfe\n", beside.read_bytes() + b"1,2,3" * 30 + b"\n"):
        beside.write_bytes(content)
        with pytest.raises(InputError, match=r"\.metrics\.csv\.added: damaged"):
            folder.rows(Record)


def test_recording_reads_and_writes_no_more_for_many_rows_than_for_few(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    folder.add([make_record(kind, epoch=e) for e in range(300) for kind in ("clean", "pgd")])
    before = {path.name: path.stat().st_mtime_ns for path in folder.results.iterdir()}
    monkeypatch.setattr(files, "read_rows", None)
    folder.append([make_record("clean", epoch=300)])
    monkeypatch.undo()
    after = {path.name: path.stat().st_mtime_ns for path in folder.results.iterdir()}
    assert after.keys() - before.keys() == {".metrics.csv.added"}
    assert all(after[name] == time for name, time in before.items() if name != ".records.lock")
    assert [row.epoch for row in folder.rows(Record)].count(300) == 1
    folder.settle()
    assert len(np.load(folder.results / "nc1.npy")) == 301
    assert not Path(folder.results / ".metrics.csv.added").exists()
