"""A sweep records each checkpoint at once, in tables that are whole at any moment."""

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
from robust_nc.results import files, run_folder, run_search
from robust_nc.results.history import EpochSummary
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.run_search import list_runs
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


def make_summary(epoch):
    return EpochSummary(epoch, *8 * [0.5])


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


@pytest.mark.parametrize("most_at_once", (run_folder.MOST_AT_ONCE, 5))
def test_a_kill_loses_the_checkpoint_under_way_alone(most_at_once, sweep, run_script, monkeypatch):
    monkeypatch.setattr(run_folder, "MOST_AT_ONCE", most_at_once)
    with monkeypatch.context() as patched:
        stop_at_pass(6, patched, kill_outright)
        patched.setattr(RunFolder, "settle", lambda self, **_: None)
        run_script(eval_script, sweep)
    found, _ = results()
    assert len(list(found.glob(".*.0.added"))) == (0 if most_at_once > 5 else 2)
    for row_type in (Record, LayerRecord):
        recorded, all_rows = (RunFolder(f.parent).swept_rows(row_type) for f in results())
        assert repr(recorded) == repr([row for row in all_rows if repr(row) in repr(recorded)])
        assert {row.epoch for row in recorded} == {0, 1}
        if most_at_once > 5:  # the tables are whole at any moment
            in_table = [row for row in rows(found / row_type.file) if row.get("source") != "train"]
            assert len(in_table) == len(recorded)
    code, output, _ = run_script(eval_script, sweep)
    assert code == 0 and "(2 done before)" in output
    assert_as_if_never_stopped()


def test_a_kill_while_a_table_is_written_leaves_it_as_it_was(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    folder.append([make_record("clean", epoch=0)])
    before = (folder.results / "metrics.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: kill_outright())
        with pytest.raises(SystemExit):
            folder.append([make_record("clean", epoch=1)])
    assert (folder.results / "metrics.csv").read_bytes() == before
    assert [row.epoch for row in make_folder(tmp_path).rows(Record)] == [0]


def test_every_checkpoint_is_in_the_table_at_once_and_no_row_is_read_or_made_twice(
    tmp_path, monkeypatch
):
    folder = make_folder(tmp_path)
    folder.add([make_record(kind, epoch=e) for e in range(300) for kind in ("clean", "pgd")])
    folder = make_folder(tmp_path)
    folder.append([make_record("clean", epoch=300)])
    made = []
    original = files._lines

    def lines(row_type, added):
        made.extend(added)
        return original(row_type, added)

    monkeypatch.setattr(files, "read_rows", None)
    monkeypatch.setattr(files, "_lines", lines)
    folder.append([make_record("clean", epoch=301), make_record("clean", epoch=2, start=9.0)])
    monkeypatch.undo()
    assert [row.epoch for row in made] == [301, 2]
    recorded = make_folder(tmp_path).rows(Record)
    assert len(recorded) == 602 and recorded == sorted(recorded, key=lambda row: row.key)
    assert sum(row.loss == 9.0 for row in recorded) == 1
    assert not list(folder.results.glob("*.npy"))  # the series follow
    folder.settle()
    assert len(np.load(folder.results / "nc1.npy")) == 302


def written_files(monkeypatch):
    """The names of the files that are written from here on."""
    names, atomic_open = [], files.atomic_open

    def noted(path):
        names.append(path.name)
        return atomic_open(path)

    monkeypatch.setattr(files, "atomic_open", noted)
    return names


def test_a_long_table_is_not_written_for_every_checkpoint(tmp_path, monkeypatch):
    """What is added lies beside it, whole lines of which are read whatever a kill leaves."""
    monkeypatch.setattr(run_folder, "MOST_AT_ONCE", 3)
    folder, journal = make_folder(tmp_path), "results/.metrics.csv.0.added"
    written, sizes = written_files(monkeypatch), []
    for epoch in range(10):
        folder.append([make_record("clean", epoch=epoch)])
        assert [row.epoch for row in make_folder(tmp_path).records] == list(range(epoch + 1))
        sizes.append((folder.path / journal).stat().st_size if epoch > 2 else 0)
    assert len(written) == 3 and sizes[-1] - sizes[-2] == sizes[4] - sizes[3]
    folder.append([make_record("clean", epoch=2, start=9.0)])
    with (folder.path / journal).open("ab") as file:
        file.write(b"eval,10,train,cl")
    assert [row.loss for row in make_folder(tmp_path).records] == [0.0, 0.0, 9.0] + 7 * [0.0]
    read = files.read_rows
    monkeypatch.setattr(run_folder, "read_rows", lambda path, _: read(path, EpochSummary))
    folder.settle()  # from memory: of tables, history.csv alone is read
    monkeypatch.undo()
    assert not list(folder.results.glob(".*")) and len(rows(folder.results / "metrics.csv")) == 10
    assert len(make_folder(tmp_path).records) == len(np.load(folder.results / "nc1.npy")) == 10


def test_a_full_disk_is_told_with_the_file_of_a_long_table(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "MOST_AT_ONCE", 0)
    folder = make_folder(tmp_path)

    def fill_up(_):
        raise OSError(28, "No space left")

    monkeypatch.setattr(files.os, "fsync", fill_up)
    with pytest.raises(InputError, match=r"\.metrics\.csv\.0\.added: cannot be written: No space"):
        folder.append([make_record("clean")])


def test_an_epoch_of_training_reads_nothing_and_writes_two_tables(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    folder.write_arguments(folder.args_file, {"epsilon": 8.0, "pgd_alpha": 2.0})
    folder.add([make_record("clean", "train", 0)], make_summary(0))
    monkeypatch.setattr(run_folder, "read_json", None)
    monkeypatch.setattr(run_folder, "read_rows", None)
    written = written_files(monkeypatch)
    folder.add([make_record("clean", "train", 1)], make_summary(1))
    assert written == ["history.csv", "metrics.csv"]
    assert len(folder.history) == len(folder.records) == 2


def test_what_others_have_written_is_read_again_from_when_the_folder_is_locked(tmp_path):
    folder, other = make_folder(tmp_path), make_folder(tmp_path)
    for epsilon in (8.0, 4.0):
        other.write_arguments(other.args_file, {"epsilon": epsilon})
        other.add([make_record("clean", "train", int(epsilon))], make_summary(int(epsilon)))
        with folder.lock("eval.py"):
            assert folder.epsilon() == epsilon
            assert folder.records[0].epoch == folder.history[0].epoch == epsilon
    other.delete()
    assert not (other.trained_with() or other.records or other.history)


class TestSharedSweeps:
    """Every rank records for itself, and nobody loses what another has written."""

    def test_ranks_record_beside_each_other_until_all_are_done(self, tmp_path):
        ranks = [make_folder(tmp_path) for _ in range(3)]
        ranks[0].add([make_record("clean", "train", 0)])
        for epoch in range(6):
            ranks[epoch % 3].append([make_record("clean", epoch=epoch)], epoch % 3)
            seen = make_folder(tmp_path).rows(Record)
            assert [row.epoch for row in seen if row.swept] == list(range(epoch + 1))
        beside = {".metrics.csv.1.added", ".metrics.csv.2.added"}
        assert {path.name for path in ranks[0].results.glob(".*")} == beside
        ranks[0].settle()
        assert not list(ranks[0].results.glob(".*"))
        assert len(rows(ranks[0].results / "metrics.csv")) == 7
        assert len(np.load(ranks[0].results / "nc1.npy")) == 6

    def test_a_rank_that_outlives_the_first_loses_nothing(self, tmp_path):
        """As after a signal: the first settles while another is about to record."""
        first, other = make_folder(tmp_path), make_folder(tmp_path)
        first.append([make_record("clean", epoch=0)])
        other.append([make_record("clean", epoch=1)], rank=1)
        first.settle(all_done=False)
        assert len(np.load(first.results / "nc1.npy")) == 2
        other.append([make_record("clean", epoch=3)], rank=1)
        assert [row.epoch for row in make_folder(tmp_path).rows(Record)] == [0, 1, 3]
        following = make_folder(tmp_path)
        following.merge()
        following.append([make_record("clean", epoch=2)], rank=1)
        assert [row.epoch for row in make_folder(tmp_path).rows(Record)] == [0, 1, 2, 3]

    def test_what_ranks_have_left_is_deleted_and_dropped_with_the_rest(self, tmp_path):
        for end in (RunFolder.delete, RunFolder.forget_sweep, lambda run: run.forget_from(0)):
            folder = make_folder(tmp_path)
            folder.append([make_record("clean", epoch=0)], rank=1)
            assert folder.holds_run()
            end(make_folder(tmp_path))
            assert not make_folder(tmp_path).rows(Record)
            assert not list(folder.results.glob(".*"))


class TestAnEarlierVersionsJournal:
    """It appended rows to .TABLE.added, whose last line a kill may have cut off."""

    def test_its_whole_lines_are_read_and_merged(self, tmp_path):
        folder = make_folder(tmp_path)
        folder.append([make_record("clean", epoch=e) for e in (0, 1)])
        other = make_folder(tmp_path / "other")
        other.append([make_record("clean", epoch=e, start=5.0) for e in (1, 2, 3)])
        journal = folder.results / ".metrics.csv.added"
        journal.write_bytes((other.results / "metrics.csv").read_bytes()[:-30])
        folder = make_folder(tmp_path)
        expected = [
            make_record("clean"),
            make_record("clean", epoch=1, start=5.0),
            make_record("clean", epoch=2, start=5.0),
        ]
        assert repr(folder.rows(Record)) == repr(expected)
        folder.merge()
        assert not journal.exists()
        assert repr(make_folder(tmp_path).rows(Record)) == repr(expected)
        journal.write_bytes(b"cut off in the header")
        assert repr(make_folder(tmp_path).rows(Record)) == repr(expected)

    def test_damage_is_told_with_the_file(self, tmp_path):
        folder = make_folder(tmp_path)
        folder.append([make_record("clean")])
        journal = folder.results / ".metrics.csv.added"
        whole = (folder.results / "metrics.csv").read_bytes()
        for content in (b"\xff\xfe\n", whole + b"1,2,3" * 30 + b"\n"):
            journal.write_bytes(content)
            with pytest.raises(InputError, match=r"\.metrics\.csv\.added: damaged"):
                make_folder(tmp_path).rows(Record)


def test_the_search_for_runs_ends_after_some_seconds(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    folder.write_arguments(folder.args_file, {"epsilon": 8.0})
    monkeypatch.chdir(tmp_path)  # nothing of a path that is there: runs of models are meant
    assert list_runs(Path("missing")) == "there are no runs below models"
    assert list_runs(tmp_path / "missing") == f"the runs below {tmp_path}: {folder.path}"
    monkeypatch.setattr(run_search, "SEARCH_SECONDS", -1.0)
    assert list_runs(tmp_path, tmp_path) == f"there are no runs below {tmp_path}"
