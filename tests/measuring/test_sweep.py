"""What a sweep takes from the run's folder, measures, keeps apart, and says of it."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_scripts import TREE_FOLDER, rows, series

import eval as eval_script
import train
from robust_nc.data import inputs
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.networks import architectures
from robust_nc.reports.attacks import others_in_words
from robust_nc.reports.runs import read_run
from robust_nc.results.files import read_rows
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import CentreRecord, LeapRecord, Record
from robust_nc.results.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_models")
ALL_INPUTS = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"


@pytest.fixture
def tree(image_tree):
    """The flags that name the data, with a short attack."""
    return f"--dataset folder --data-dir {image_tree} --attack-iters 2"


@pytest.fixture
def run_of_three(tree, run_script):
    """The flags of a run of three epochs, which is there."""
    assert run_script(train, f"{tree} --epochs 3")[::2] == (0, "")
    return tree


@pytest.fixture
def measured(monkeypatch):
    """How many images each pass through the network had, in order."""
    passes = []
    original = Evaluator.outputs

    def outputs(evaluator, images, labels, perturb=None):
        passes.append((len(images), perturb is not None))
        return original(evaluator, images, labels, perturb)

    monkeypatch.setattr(Evaluator, "outputs", outputs)
    return passes


def swept_epochs():
    return [
        int(r["epoch"]) for r in rows(TREE_FOLDER / "results/metrics.csv") if r["input"] == "pgd"
    ]


class TestWhatTheRunLeft:
    def test_the_number_of_epochs_need_not_be_repeated(self, run_of_three, run_script):
        assert run_script(eval_script, f"{run_of_three} --neural-collapse")[0] == 0
        assert swept_epochs() == [0, 1, 2]

    def test_a_number_of_epochs_that_is_given_must_be_the_run_s(self, run_of_three, run_script):
        flags = f"{run_of_three} --neural-collapse"
        assert run_script(eval_script, f"{flags} --epochs 3")[0] == 0
        code, _, error = run_script(eval_script, f"{flags} --epochs 400")
        assert code == 1 and "--epochs was 3, is 400 now" in error and error.count("\n") == 1

    def test_a_resume_that_keeps_other_epochs_leaves_nothing_missing(self, tree, run_script):
        flags = f"{tree} --epochs 6"
        assert run_script(train, f"{flags} --checkpoint-epochs 0,1,2")[0] == 0
        resumed = f"{flags} --checkpoint-epochs ::5 --resume 3 --overwrite"
        assert run_script(train, resumed)[0] == 0
        code, _, error = run_script(eval_script, f"{tree} --neural-collapse")
        assert (code, error) == (0, "")
        assert swept_epochs() == [0, 1, 2, 5]

    def test_a_run_under_way_is_swept_as_far_as_it_has_come(self, run_of_three, run_script):
        args = TREE_FOLDER / "args.json"
        args.write_text(args.read_text().replace('"epochs": 3', '"epochs": 30'))
        code, output, _ = run_script(eval_script, f"{run_of_three} --neural-collapse --epochs 30")
        assert code == 0 and "has come to epoch 2 of 29" in output
        assert swept_epochs() == [0, 1, 2]

    def test_a_finished_run_that_keeps_few_checkpoints_is_not_said_to_be_under_way(
        self, tree, run_script
    ):
        assert run_script(train, f"{tree} --epochs 5 --checkpoint-epochs 0,2")[0] == 0
        code, output, _ = run_script(eval_script, f"{tree} --neural-collapse")
        assert code == 0 and swept_epochs() == [0, 2]
        assert "has come to" not in output and "left out" not in output

    def test_a_last_checkpoint_that_is_gone_is_missed(self, run_of_three, run_script):
        (TREE_FOLDER / "model_2.pth").unlink()
        output = run_script(eval_script, f"{run_of_three} --neural-collapse")[1]
        assert "left out: model_2.pth\n" in output

    def test_of_a_folder_without_args_json_so_many_epochs_as_are_given_are_swept(
        self, run_of_three, run_script
    ):
        for name in ("args.json", "history.csv"):
            (TREE_FOLDER / name).unlink()
        assert run_script(eval_script, f"{run_of_three} --neural-collapse --epochs 2")[0] == 0
        assert swept_epochs() == [0, 1]

    def test_a_checkpoint_that_is_gone_is_left_out_with_a_word(self, run_of_three, run_script):
        (TREE_FOLDER / "model_1.pth").unlink()
        code, output, _ = run_script(eval_script, f"{run_of_three} --neural-collapse")
        assert code == 0 and "left out: model_1.pth\n" in output
        assert swept_epochs() == [0, 2]

    def test_a_folder_without_checkpoints_is_told_so(self, tree, run_script):
        code, _, error = run_script(eval_script, f"{tree} --neural-collapse")
        assert code == 1 and "model_0.pth: no such checkpoint" in error and error.count("\n") == 1


class TestRunFolder:
    """eval.py RUN_FOLDER takes everything from the run's args.json."""

    FLAGS = "--epochs 2 --train-mode pgd_train --norm l_2 --epsilon 100 --pgd-alpha 30 --seed 3"

    @pytest.fixture
    def folder(self, image_tree, run_script):
        flags = f"--dataset folder --data-dir {image_tree} --data-name ants --attack-iters 3"
        more = "--limit-train 9 --model PreActResNet18 --mean 0.5 0.5 0.5 --std 0.2 0.2 0.2"
        assert run_script(train, f"{flags} {more} {self.FLAGS} --precision fp32")[0] == 0
        return Path("models/ants/PreActResNet18/l_2/eps100.0/pgd_train/seed3")

    def test_nothing_else_need_be_given(self, folder, run_script):
        shutil.copytree(folder, "elsewhere/run")  # whatever its place
        for path in (folder, Path("elsewhere/run")):
            code, _, error = run_script(eval_script, f"{path} --neural-collapse")
            assert code == 0, error
            swept = [r for r in read_rows(path / "results/metrics.csv", Record)]
            robust = [r for r in swept if r.input == "pgd"]
            assert [(r.epoch, r.images, r.epsilon) for r in robust] == [(0, 9, 100), (1, 9, 100)]
            assert {(r.step_size, r.steps, r.precision) for r in robust} == {(30.0, 3, "fp32")}
        assert run_script(eval_script, f"{folder} --neural-collapse --epsilons 50")[0] == 0
        steps = {r.epsilon: r.step_size for r in read_rows(folder / "results/metrics.csv", Record)}
        assert steps[50.0] == 15.0

    def test_what_is_given_beside_it_and_names_another_run_is_refused_in_one_line(
        self, folder, run_script
    ):
        flags = "--neural-collapse --epsilon 50 --seed 4 --norm l_inf --train-mode std_train"
        code, _, error = run_script(eval_script, f"{folder} {flags}")
        assert code == 1 and error.count("\n") == 1
        for told in (
            *("--epsilon was 100.0, is 50.0 now", "--seed was 3, is 4 now"),
            *("--norm was l_2, is l_inf now", "--train-mode was pgd_train, is std_train now"),
            "--epsilons 50 attacks it",
        ):
            assert told in error
        assert not list((folder / "results").glob("robust*"))
        flags = "--neural-collapse --limit-train 12 --attack-iters 1 --pgd-alpha 7"
        assert run_script(eval_script, f"{folder} {flags}")[0] == 0  # what a sweep may choose
        [row, _] = [
            r for r in read_rows(folder / "results/metrics.csv", Record) if r.input == "pgd"
        ]
        assert (row.images, row.steps, row.step_size) == (12, 1, 7.0)

    def test_where_there_is_no_run_those_that_there_are_are_listed(
        self, folder, image_tree, run_script
    ):
        for path in ("models", folder.parent):
            code, _, error = run_script(eval_script, f"{path} --neural-collapse")
            assert code == 1 and error.count("\n") == 1
            assert f"{path}: no run there" in error and str(folder) in error
        flags = f"--dataset folder --data-dir {image_tree} --neural-collapse"
        code, _, error = run_script(eval_script, flags)
        assert code == 1 and "no such checkpoint" in error and error.count("\n") == 1
        assert f"the runs below models: {folder}" in error
        code, _, error = run_script(eval_script, f"{flags} --models-dir {image_tree}")
        assert code == 1 and f"there are no runs below {image_tree}" in error

    def test_a_run_that_can_only_be_read_is_swept_into_another_folder(self, folder, run_script):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        flags = f"{folder} --neural-collapse --layerwise --out res"
        code, output, error = run_script(eval_script, flags)
        assert code == 0, error
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        assert {"metrics.csv", "layers.csv", "eval_args.json", "eval.log", "nc1.npy"} <= {
            path.name for path in Path("res").iterdir()
        }
        code, output, _ = run_script(eval_script, flags)
        assert code == 0 and "0 checkpoints (2 done before)" in output
        shutil.copytree(folder, "other")  # of the same flags
        code, _, error = run_script(eval_script, flags.replace(str(folder), "other"))
        assert code == 1 and "it was of /" in error and error.count("\n") == 1
        code, _, error = run_script(eval_script, f"{folder} --ncc --checkpoint a.pth --out x")
        assert code == 2 and "one of them at a time" in error


class TestOnlyWhatIsMissing:
    def test_one_more_kind_of_input_leaves_the_others_alone(
        self, run_of_three, run_script, measured
    ):
        shutil.copytree("models", "at_once")
        assert run_script(eval_script, f"{run_of_three} --neural-collapse")[0] == 0
        measured.clear()
        assert run_script(eval_script, f"{run_of_three} --neural-collapse-gaussian")[0] == 0
        # Gaussian and sign noise of three epochs; the clean pass is for the class means that all
        # images are compared with.
        assert measured == [(18, False), (18, True), (18, True)] * 3
        measured.clear()
        assert run_script(eval_script, f"{run_of_three} --neural-collapse-targeted")[0] == 0
        assert measured == [(18, False), (18, True)] * 3
        at_once = f"{run_of_three} {ALL_INPUTS} --models-dir at_once"
        assert run_script(eval_script, at_once)[0] == 0
        other = "at_once" / TREE_FOLDER.relative_to("models")
        assert rows(TREE_FOLDER / "results/metrics.csv") == rows(other / "results/metrics.csv")
        found, expected = series(TREE_FOLDER), series(other)
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in found)

    def test_one_more_split_leaves_the_other_alone(self, run_of_three, run_script, measured):
        assert run_script(eval_script, f"{run_of_three} --neural-collapse")[0] == 0
        measured.clear()
        assert run_script(eval_script, f"{run_of_three} --neural-collapse --split both")[0] == 0
        # The test images, and the training images for their class means.
        assert measured == [(18, False), (6, False), (6, True)] * 3

    def test_a_sweep_that_was_killed_measures_the_rest(self, run_of_three, run_script, measured):
        flags = f"{run_of_three} --neural-collapse"
        assert run_script(eval_script, f"{flags} --checkpoints 0,1")[0] == 0
        measured.clear()
        code, output, _ = run_script(eval_script, flags)
        assert code == 0 and "1 checkpoints (2 done before)" in output
        assert len(measured) == 2


class TestOverwritingLosesNothing:
    """Rows are dropped only by a sweep whose checkpoints can all be measured."""

    @pytest.fixture
    def swept(self, run_of_three, run_script):
        flags = f"{run_of_three} {ALL_INPUTS} --layerwise --overwrite"
        assert run_script(eval_script, flags)[0] == 0
        return flags

    @staticmethod
    def contents():
        files = (TREE_FOLDER / "results").iterdir()
        return {path.name: path.read_bytes() for path in files if path.suffix in (".csv", ".npy")}

    @pytest.mark.parametrize("damage", ("truncated", "empty", "other network", "nan", "diverges"))
    def test_a_broken_checkpoint_is_noticed_before_rows_are_dropped(
        self, damage, swept, run_script
    ):
        before, last = self.contents(), TREE_FOLDER / "model_2.pth"
        content = torch.load(last, weights_only=True)
        if damage == "other network":
            del content["state_dict"]["norm.bias"]
        elif damage == "nan":
            content["state_dict"]["norm.bias"][0] = float("nan")
        elif damage == "diverges":  # finite weights whose outputs are not
            content["state_dict"]["norm.weight"].fill_(3e38)
            content["state_dict"]["linear.weight"].fill_(3e38)
        torch.save(content, last)
        if damage in ("truncated", "empty"):
            last.write_bytes(last.read_bytes()[: 900 if damage == "truncated" else 0])
        code, _, error = run_script(eval_script, swept)
        assert code == 1 and error.count("\n") == 1 and "model_2.pth: " in error
        assert self.contents() == before

    def test_a_broken_file_of_the_list_too(self, run_of_three, run_script, tmp_path):
        good = TREE_FOLDER / "model_0.pth"
        flags = f"{run_of_three} --neural-collapse --out res --overwrite --checkpoint {good}"
        assert run_script(eval_script, flags)[0] == 0
        before = Path("res/metrics.csv").read_bytes()
        (tmp_path / "broken.pth").write_bytes(good.read_bytes()[:900])
        code, _, error = run_script(eval_script, f"{flags} broken.pth")
        assert code == 1 and "broken.pth: truncated" in error
        assert Path("res/metrics.csv").read_bytes() == before


class TestAnyFile:
    @pytest.fixture
    def flags(self, tree, tmp_path):
        torch.manual_seed(0)
        weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict()
        torch.save({"state_dict": weights}, tmp_path / "a.pth")
        return f"{tree} --neural-collapse --checkpoint a.pth --out res"

    @pytest.mark.parametrize(
        ("other", "named"),
        (
            ("--epsilon 80", "--epsilon was 8.0, is 80.0 now"),
            ("--seed 3", "--seed was 1, is 3 now"),
            ("--norm l_2", "--epsilon was 8.0, is 128.0 now"),
            ("--norm l_2 --epsilon 8 --pgd-alpha 2", "--norm was l_inf, is l_2 now"),
            ("--model PreActResNet18", "--model was vgg11bn, is PreActResNet18 now"),
            ("--train-mode pgd_train", "--train-mode was std_train, is pgd_train now"),
            ("--data-name cats", "--data-name was None, is cats now"),
            ("--limit-train 9", "--limit-train was None, is 9 now"),
        ),
    )
    def test_results_of_other_flags_are_not_taken_for_these(self, other, named, flags, run_script):
        assert run_script(eval_script, flags)[0] == 0
        before = rows("res/metrics.csv")
        code, _, error = run_script(eval_script, f"{flags} {other}")
        assert code == 1 and error.count("\n") == 1
        assert named in error and "--overwrite" in error
        assert rows("res/metrics.csv") == before
        assert run_script(eval_script, f"{flags} {other} --overwrite")[0] == 0
        told = json.loads(Path("res/eval_args.json").read_text())
        flag, value = other.split()[:2]
        assert str(told[flag[2:].replace("-", "_")]).removesuffix(".0") == value

    def test_another_file_under_the_same_name_is_noticed(self, flags, run_script, tmp_path):
        assert run_script(eval_script, flags)[0] == 0
        before = rows("res/metrics.csv")
        assert run_script(eval_script, flags)[1].count("1 done before") == 1
        torch.manual_seed(1)
        weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict()
        torch.save({"state_dict": weights}, tmp_path / "a.pth")
        code, _, error = run_script(eval_script, flags)
        assert code == 1 and error.count("\n") == 1
        assert "a.pth was another file then" in error and "--overwrite" in error
        assert run_script(eval_script, f"{flags} --overwrite")[0] == 0
        assert rows("res/metrics.csv") != before

    def test_other_images_are_noticed(self, flags, run_script, image_tree):
        assert run_script(eval_script, flags)[0] == 0
        for path in (image_tree / "train" / "ant").iterdir():
            shutil.copy(image_tree / "train" / "bee" / path.name, path)
        code, _, error = run_script(eval_script, flags)
        assert code == 1 and "its images were others" in error and error.count("\n") == 1

    def test_other_test_images_and_other_labels_are_noticed(self, flags, run_script, image_tree):
        assert run_script(eval_script, flags)[0] == 0
        before = rows("res/metrics.csv")
        train_split, test_split = image_tree / "train", image_tree / "val"
        for split, name in ((train_split, "train"), (test_split, "test")):
            # The same images with two classes exchanged: their mean is what it was.
            for old, new in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
                (split / old).rename(split / new)
            code, _, error = run_script(eval_script, flags)
            assert code == 1 and error.count("\n") == 1
            assert f"its images were others: those of the {name} split have changed" in error
            for old, new in (("bee", "x"), ("ant", "bee"), ("x", "ant")):
                (split / old).rename(split / new)
        assert rows("res/metrics.csv") == before
        assert "1 done before" in run_script(eval_script, flags)[1]

    def test_a_file_is_known_by_its_content_whatever_its_name(self, flags, run_script, tmp_path):
        assert run_script(eval_script, flags)[0] == 0
        shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
        for name in (tmp_path / "a.pth", "b.pth"):
            code, output, _ = run_script(eval_script, flags.replace("a.pth", str(name)))
            assert code == 0 and "1 done before" in output

    def test_copies_of_a_file_have_the_same_numbers_wherever_they_stand(
        self, flags, run_script, tmp_path
    ):
        for name in ("b.pth", "c.pth"):
            shutil.copy(tmp_path / "a.pth", tmp_path / name)
        what = f"{ALL_INPUTS} --layerwise --ncc --ncc-layers stem"
        flags = flags.replace("--neural-collapse", what)
        three = flags.replace("a.pth", "c.pth a.pth b.pth")
        assert run_script(eval_script, f"{flags} --out alone".replace("--out res", ""))[0] == 0
        code, output, error = run_script(eval_script, three)
        assert code == 0, error
        for name in ("metrics.csv", "layers.csv", "ncc.csv"):
            by_file = {file: [] for file in ("c.pth", "a.pth", "b.pth")}
            for row in rows(f"res/{name}"):
                by_file[row.pop("checkpoint")].append(row | {"epoch": "0"})
            alone = [row | {"epoch": "0"} for row in rows(f"alone/{name}")]
            assert {row.pop("checkpoint") for row in alone} == {"a.pth"}
            assert all(of_file == alone for of_file in by_file.values()), name
        # The tables at the end have all of them.
        lines = output.splitlines()
        for file in ("c.pth", "a.pth", "b.pth"):
            kinds = [line.split()[0] for line in lines if line.endswith(f"  {file}")]
            centres = ["features"] * 6 + ["stem"] * 6
            assert kinds == ["clean", "pgd", "gaussian", "sign", "targeted", *centres]
            assert file in lines  # above its blocks

    def test_files_are_added_to_those_that_are_there(self, flags, run_script, tmp_path):
        assert run_script(eval_script, flags)[0] == 0
        before = rows("res/metrics.csv")
        torch.manual_seed(1)
        weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict()
        torch.save(weights, tmp_path / "b.pth")
        for files in ("b.pth", "b.pth a.pth"):
            code, output, error = run_script(eval_script, flags.replace("a.pth", files))
            assert code == 0, error
        assert "0 checkpoints (2 done before)" in output
        after = rows("res/metrics.csv")
        assert after[: len(before)] == before and len(after) == 2 * len(before)
        assert [(row["epoch"], row["checkpoint"]) for row in after[2:]] == [("1", "b.pth")] * 2
        torch.save(weights, tmp_path / "a.pth")  # one of two is another now
        code, _, error = run_script(eval_script, flags.replace("a.pth", "b.pth a.pth"))
        assert code == 1 and "a.pth was another file then" in error and error.count("\n") == 1
        assert rows("res/metrics.csv") == after

    def test_results_of_older_versions_get_the_names_that_their_sweep_told(
        self, flags, run_script, tmp_path
    ):
        shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
        flags = flags.replace("a.pth", "a.pth b.pth")
        assert run_script(eval_script, flags)[0] == 0
        now = rows("res/metrics.csv")
        told = json.loads(Path("res/eval_args.json").read_text())
        del told["files"]
        Path("res/eval_args.json").write_text(json.dumps(told))
        with Path("res/metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [n for n in now[0] if n != "checkpoint"])
            writer.writeheader()
            writer.writerows([{n: row[n] for n in writer.fieldnames} for row in now])
        found = RunFolder(Path("out"), results=Path("res")).rows(Record)
        assert [row.checkpoint for row in found] == ["a.pth"] * 2 + ["b.pth"] * 2
        code, output, _ = run_script(eval_script, flags)
        assert code == 0 and "2 done before" in output

    def test_the_folder_of_a_run_takes_no_results_of_other_files(self, flags, run_script):
        run = Path("run")
        (run / "results").mkdir(parents=True)
        (run / "args.json").write_text("{}")
        for folder in ("run", "run/results"):
            code, _, error = run_script(eval_script, flags.replace("--out res", f"--out {folder}"))
            assert code == 2 and error.count("\n") == 1
            assert f"argument --out: {folder} belongs to a run" in error
        assert not list((run / "results").iterdir())


class TestSayingSo:
    def test_overwrite_names_every_table_that_it_drops(self, run_of_three, run_script):
        everything = f"{run_of_three} {ALL_INPUTS} --layerwise --ncc --checkpoints 0,2"
        assert run_script(eval_script, everything)[0] == 0
        results = TREE_FOLDER / "results"
        (results / "autoattack.csv").write_text(
            "epoch,split,images,clean_accuracy,robust_accuracy\n0,test,6,0.5,0.25\n"
        )
        code, output, _ = run_script(eval_script, f"{run_of_three} --neural-collapse --overwrite")
        assert code == 0
        [line] = [line for line in output.splitlines() if "--overwrite drops" in line]
        assert line.endswith(
            ": 10 rows of metrics.csv, 32 rows of layers.csv, 12 rows of ncc.csv, "
            "1 rows of autoattack.csv"
        )
        assert not any(
            (results / f"{name}.csv").exists() for name in ("layers", "ncc", "autoattack")
        )
        assert "targeted_nc1" not in series(TREE_FOLDER)
        assert len(series(TREE_FOLDER)["nc1"]) == 3

    def test_features_that_are_all_zero_have_no_nc1(self, run_of_three, run_script):
        for path in TREE_FOLDER.glob("model_*.pth"):
            content = torch.load(path, weights_only=True)
            for name in ("norm.weight", "norm.bias"):
                content["state_dict"][name].zero_()
            torch.save(content, path)
        code, output, error = run_script(eval_script, f"{run_of_three} {ALL_INPUTS} --layerwise")
        assert (code, error) == (0, "")
        assert output.count("the class means of the features coincide") == 1
        recorded = rows(TREE_FOLDER / "results/metrics.csv")
        assert all(row["nc1"] == "" for row in recorded if row["source"] == "eval")
        features = [
            row for row in rows(TREE_FOLDER / "results/layers.csv") if row["layer"] == "features"
        ]
        assert features and all(row["nc1"] == "" for row in features)
        assert np.isnan(series(TREE_FOLDER)["nc1"]).all()


class TestNamedFolders:
    def test_two_data_sets_of_folders_have_run_folders_of_their_own(
        self, tree, image_tree, run_script
    ):
        for name in ("cats", "dogs.v2"):
            assert run_script(train, f"{tree} --epochs 1 --data-name {name}")[0] == 0
            folder = Path(str(TREE_FOLDER).replace("/folder/", f"/{name}/"))
            assert (folder / "model_0.pth").exists()
            assert json.loads((folder / "args.json").read_text())["data_name"] == name
            sweep = f"{tree} --data-name {name} --neural-collapse"
            assert run_script(eval_script, sweep)[0] == 0
            assert (folder / "results" / "robust_nc1.npy").exists()
        assert not TREE_FOLDER.exists()


def table(row_type, name):
    return read_rows(TREE_FOLDER / "results" / name, row_type)


class TestEpsilons:
    """Attacks at several radii: clean and noise once, the published series of the run's own."""

    def test_each_radius_has_its_rows_and_the_rest_is_measured_once(
        self, run_of_three, run_script, measured
    ):
        flags = f"{run_of_three} {ALL_INPUTS} --checkpoints 2"
        assert run_script(eval_script, flags)[0] == 0
        alone = {
            (r.input, r.epsilon): r for r in table(Record, "metrics.csv") if r.source == "eval"
        }
        series_of_8 = np.load(TREE_FOLDER / "results/robust_nc1.npy")
        measured.clear()
        code, output, _ = run_script(eval_script, f"{flags} --epsilons 2,8,80")
        assert code == 0 and "pgd 80" in output
        # Clean again for its class means, and PGD and the targeted attack at two more radii.
        assert measured == [(18, False)] + [(18, True)] * 4
        found = {
            (r.input, r.epsilon): r for r in table(Record, "metrics.csv") if r.source == "eval"
        }
        assert found.keys() - alone.keys() == {
            (name, radius) for name in ("pgd", "targeted") for radius in (2.0, 80.0)
        }
        assert all(repr(found[key]) == repr(row) for key, row in alone.items() if key in found)
        assert found["pgd", 80.0].loss > found["pgd", 8.0].loss > found["pgd", 2.0].loss
        now = np.load(TREE_FOLDER / "results/robust_nc1.npy")
        assert np.array_equal(series_of_8, now, equal_nan=True)

    def test_a_radius_is_attacked_with_a_quarter_of_it_as_step(
        self, run_of_three, run_script, monkeypatch
    ):
        used = []
        original = inputs.pgd

        def pgd(*args, **keywords):
            used.append((keywords["epsilon"] * 255, keywords["step_size"] * 255))
            return original(*args, **keywords)

        monkeypatch.setattr(inputs, "pgd", pgd)
        flags = f"{run_of_three} --neural-collapse --checkpoints 2"
        assert run_script(eval_script, f"{flags} --epsilons 16,8,2")[0] == 0
        assert used == [pytest.approx(pair) for pair in ((2, 0.5), (8, 2), (16, 4))]
        used.clear()
        assert run_script(eval_script, f"{flags} --epsilons 16 --pgd-alpha 1")[0] == 0
        assert used == [pytest.approx((16, 1))]  # beside the one of step 4
        used.clear()
        assert run_script(eval_script, f"{flags} --epsilons 4 --pgd-alpha 3")[0] == 0
        assert used == [pytest.approx((4, 3))]

    def test_an_epsilon_of_no_run_is_told_what_to_give_instead(self, run_of_three, run_script):
        flags = f"{run_of_three} --neural-collapse --checkpoints 2"
        code, _, error = run_script(eval_script, f"{flags} --epsilon 16")
        assert code == 1 and error.count("\n") == 1
        assert "eps16.0" in error and "no such checkpoint" in error
        advice = "--epsilon is what it was trained with: --epsilons 16 attacks it at 16"
        assert advice in error and str(TREE_FOLDER) in error
        code, output, _ = run_script(eval_script, f"{flags} --epsilon 8 --epsilons 16")
        assert code == 0 and "trained with epsilon 8, is attacked at 16" in output
        rows = [r for r in table(Record, "metrics.csv") if r.source == "eval"]
        assert [(r.input, r.epsilon) for r in rows if r.input == "pgd"] == [("pgd", 16.0)]
        assert not (TREE_FOLDER / "results/robust_nc1.npy").exists()

    def test_what_drops_a_sweep_never_goes_to_a_run_that_was_not_named(
        self, run_of_three, run_script
    ):
        flags = f"{run_of_three} --neural-collapse --checkpoints 2"
        assert run_script(eval_script, flags)[0] == 0
        before = (TREE_FOLDER / "results/metrics.csv").read_bytes()
        TREE_FOLDER.parents[1].rename(TREE_FOLDER.parents[2] / "eps20.0")
        for more in ("", "--overwrite", "--epsilon 4 --overwrite"):  # 8 is the default
            code, _, error = run_script(eval_script, f"{flags} {more}")
            assert code == 1 and "no such checkpoint" in error, more
        moved = TREE_FOLDER.parents[2] / "eps20.0/std_train/seed1/results/metrics.csv"
        assert moved.read_bytes() == before

    def test_the_step_is_that_of_the_run_s_own_attack_whatever_was_swept_before(
        self, run_of_three, run_script, monkeypatch
    ):
        used = {}
        original = inputs.pgd

        def pgd(*args, **keywords):
            used[round(keywords["epsilon"] * 255)] = keywords["step_size"] * 255
            return original(*args, **keywords)

        monkeypatch.setattr(inputs, "pgd", pgd)
        flags = f"{run_of_three} --neural-collapse"
        assert run_script(eval_script, f"{flags}-gaussian --checkpoints 2 --pgd-alpha 7")[0] == 0
        assert run_script(eval_script, f"{flags} --checkpoints 2 --pgd-alpha 3")[0] == 0
        assert run_script(eval_script, f"{flags} --checkpoints 1,2 --epsilons 4,8")[0] == 0
        assert used == {8: pytest.approx(2), 4: pytest.approx(1)}

    def test_all_tables_have_the_radius(self, run_of_three, run_script):
        flags = f"{run_of_three} --layerwise --ncc --checkpoints 2 --epsilons 2,8"
        assert run_script(eval_script, flags)[0] == 0
        layers, centres = table(LayerRecord, "layers.csv"), table(CentreRecord, "ncc.csv")
        assert {r.epsilon for r in layers if r.input in ("pgd", "targeted")} == {2.0, 8.0}
        assert all(np.isnan(r.epsilon) for r in layers if r.input in ("clean", "gaussian"))
        assert {r.epsilon for r in centres} == {2.0, 8.0}
        assert len({r.key for r in centres}) == len(centres) == 12


class TestWhatARowWasMeasuredWith:
    """Its attack, noise and precision are columns, and rows of several stand side by side."""

    @staticmethod
    def swept(name="pgd"):
        kept = [r for r in table(Record, "metrics.csv") if (r.source, r.input) == ("eval", name)]
        return {(r.epsilon, r.step_size, r.steps, r.restarts): r for r in kept}

    def test_budgets_of_attacks_stand_side_by_side(self, run_of_three, run_script, measured):
        flags = f"{run_of_three} --neural-collapse --layerwise --ncc --checkpoints 2"
        assert run_script(eval_script, flags)[0] == 0
        results = TREE_FOLDER / "results"
        published = {path.name: path.read_bytes() for path in results.glob("*.npy")}
        before = {r.key: r for r in table(Record, "metrics.csv")}
        for more in ("--attack-iters 5", "--pgd-alpha 3", "--restarts 2"):
            measured.clear()
            code, output, error = run_script(eval_script, f"{flags} {more}")
            assert code == 0, error
            # Clean images are measured for their class means; clean rows are not made anew.
            assert len(measured) == 2, more
            assert "0 done before" in output
            code, output, _ = run_script(eval_script, f"{flags} {more}")
            assert code == 0 and "1 done before" in output
        budgets = {(8.0, 2.0, 2, 1), (8.0, 2.0, 5, 1), (8.0, 3.0, 2, 1), (8.0, 2.0, 2, 2)}
        assert self.swept().keys() == budgets
        layers, centres = table(LayerRecord, "layers.csv"), table(CentreRecord, "ncc.csv")
        for kept in ([r for r in layers if r.input == "pgd"], centres):
            assert {(r.epsilon, r.step_size, r.steps, r.restarts) for r in kept} == budgets
        assert len([r for r in layers if r.input == "clean"]) == 4
        after = {r.key: r for r in table(Record, "metrics.csv")}
        assert all(repr(after[key]) == repr(row) for key, row in before.items())
        assert len({r.loss for r in self.swept().values()}) == 4
        # The tables at the end have them all, and name them where they are several.
        more = ("2, 8/255, step 2/255", "2, 8/255, step 2/255, 2 restarts")
        names = [f"PGD-{a}" for a in (*more, "5, 8/255, step 2/255", "2, 8/255, step 3/255")]
        lines = output.splitlines()
        found = [line.partition("  PGD-")[2] for line in lines if line.startswith("pgd  ")]
        assert sorted(f"PGD-{name}" for name in found) == sorted(names)
        [heads, *_] = [line.split(" | ") for line in lines if line.startswith("train   2 layer")]
        assert {head.strip() for head in heads} >= {f"pgd, {name}" for name in names}
        assert sum(line.startswith("features  ") and "PGD-" in line for line in lines) == 24
        # The series are of the run's own attack.
        assert published == {path.name: path.read_bytes() for path in results.glob("*.npy")}

    def test_precisions_stand_side_by_side(self, run_of_three, run_script, measured):
        """tf32, the run's own, and fp32: a CPU takes both, and computes the same."""
        flags = f"{run_of_three} --neural-collapse --layerwise --ncc --leaps --checkpoints 2"
        assert run_script(eval_script, f"{flags} --precision tf32")[0] == 0
        results = TREE_FOLDER / "results"
        types = (Record, LayerRecord, CentreRecord, LeapRecord)
        published = {path.name: path.read_bytes() for path in results.glob("*.npy")}
        before = {kind: [repr(row) for row in table(kind, kind.file)] for kind in types}
        code, output, error = run_script(eval_script, f"{flags} --precision fp32")
        assert code == 0 and "0 done before" in output, error
        for kind in types:
            both = [row for row in table(kind, kind.file) if row.swept]
            assert len(both) == 2 * len([row for row in both if row.precision == "tf32"])
            assert {row.precision for row in both} == {"tf32", "fp32"}
            assert {repr(row) for row in table(kind, kind.file)} >= set(before[kind])
        assert published == {path.name: path.read_bytes() for path in results.glob("*.npy")}
        lines = output.splitlines()
        assert [line.split()[-1] for line in lines if line.startswith("clean  ")] == [
            "fp32",
            "tf32",
        ]
        measured.clear()
        for name in ("tf32", "fp32"):
            code, output, _ = run_script(eval_script, f"{flags} --precision {name}")
            assert code == 0 and "1 done before" in output and not measured, name
        run = read_run(TREE_FOLDER)
        assert {row.precision for row in run.swept_rows} == {"tf32"}
        assert {row.precision for row in run.others} == {"fp32"}
        assert others_in_words([run]) == ["rows in fp32 (--precision fp32)"]

    def test_a_sweep_that_does_not_tell_its_precision_was_in_tf32(self, run_of_three, run_script):
        flags = f"{run_of_three} --neural-collapse --checkpoints 2"
        assert run_script(eval_script, flags)[0] == 0
        path = TREE_FOLDER / "results/metrics.csv"
        now = rows(path)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [name for name in now[0] if name != "precision"])
            writer.writeheader()
            writer.writerows([{n: row[n] for n in writer.fieldnames} for row in now])
        told = path.with_name("eval_args.json")
        arguments = json.loads(told.read_text())
        del arguments["precision"]
        told.write_text(json.dumps(arguments))
        assert run_script(eval_script, f"{flags} --precision fp32")[0] == 0
        recorded = [row for row in table(Record, "metrics.csv") if row.swept]
        assert sorted(row.precision for row in recorded) == ["fp32", "fp32", "tf32", "tf32"]

    def test_nc1_of_single_images_of_each_class_is_told_to_mean_nothing(self, tree, run_script):
        flags = f"{tree} --train-mode pgd_train --limit-train 3"
        outputs = [run_script(train, f"{flags} --epochs 1 --neural-collapse")[1]]
        outputs.append(run_script(eval_script, f"{flags} --neural-collapse --layerwise")[1])
        assert [output.count("no class has two samples: NC1") for output in outputs] == [1, 1]
        place = TREE_FOLDER.parent.parent / "pgd_train/seed1/results"
        kept = [r for r in read_rows(place / "metrics.csv", Record) if r.split == "train"]
        assert {r.source for r in kept} == {"train", "eval"}
        assert all(r.nc1 == pytest.approx(0, abs=1e-9) for r in kept)

    def test_log_lines_and_tables_name_the_attack(self, tree, run_script):
        mode = "--train-mode pgd_train"
        output = run_script(train, f"{tree} --epochs 1 {mode} --neural-collapse")[1]
        [line] = [line for line in output.splitlines() if " seen " in line]
        assert "train seen 8 (PGD-2, 8/255, step 2/255) acc" in line
        flags = f"{tree} {mode} --restarts 2 {ALL_INPUTS} --layerwise --epsilons 4"
        output = run_script(eval_script, flags)[1]
        attack = "PGD-2, 4/255, step 1/255, 2 restarts"
        for line in (f"train pgd 4 ({attack}) acc", f"train targeted 4 ({attack}) acc"):
            assert f"epoch   0 {line}" in output
        assert output.splitlines().count(f"attacks: {attack}") == 2  # of both tables

    def test_several_levels_of_noise_too_and_they_refuse_no_sweep_without(
        self, run_of_three, run_script
    ):
        noise = f"{run_of_three} --neural-collapse-gaussian --checkpoints 2"
        assert run_script(eval_script, noise)[0] == 0
        series_of_8 = np.load(TREE_FOLDER / "results/new_gaussian_label_nc1.npy")
        assert run_script(eval_script, f"{noise} --noise-level 20")[0] == 0
        attack = f"{run_of_three} --neural-collapse --checkpoints 2 --noise-level 30"
        assert run_script(eval_script, attack)[0] == 0
        rows = [r for r in table(Record, "metrics.csv") if r.source == "eval"]
        levels = {r.input: set() for r in rows}
        for row in rows:
            levels[row.input].add(row.noise)
        assert levels["gaussian"] == levels["sign"] == {8.0, 20.0}
        assert all(np.isnan(r.noise) for r in rows if r.input in ("clean", "pgd"))
        assert {r.precision for r in rows} == {"tf32"}
        now = np.load(TREE_FOLDER / "results/new_gaussian_label_nc1.npy")
        np.testing.assert_array_equal(now, series_of_8)

    def test_a_radius_has_one_accuracy_whatever_else_is_asked_for(self, tree, run_script):
        """By default the step is the run's own, which was not a quarter of the radius here."""
        own = f"{tree} --pgd-alpha 7"
        assert run_script(train, f"{own} --epochs 1")[0] == 0
        flags = f"{tree} --neural-collapse"
        shutil.copytree("models", "other")
        code, output, _ = run_script(eval_script, flags)
        assert code == 0 and "attacks: PGD-2, 8/255, step 7/255 (steps of the run's own" in output
        code, output, _ = run_script(eval_script, f"{flags} --epsilons 4,8 --models-dir other")
        assert "attacks: PGD-2, 4/255, step 3.5/255; PGD-2, 8/255, step 7/255" in output
        alone = self.swept()
        other = "other" / TREE_FOLDER.relative_to("models") / "results/metrics.csv"
        together = [r for r in read_rows(other, Record) if r.epsilon == 8.0 and r.source == "eval"]
        assert [repr(r) for r in together] == [repr(r) for r in alone.values()]
        assert alone.keys() == {(8.0, 7.0, 2, 1)}

    def test_what_is_not_given_is_the_run_s(self, image_tree, run_script):
        tree = f"--dataset folder --data-dir {image_tree}"
        flags = "--epochs 1 --train-mode pgd_train --attack-iters 3 --restarts 2 --noise-level 5"
        assert run_script(train, f"{tree} {flags} --neural-collapse")[0] == 0
        sweep = f"{tree} --train-mode pgd_train {ALL_INPUTS}"
        assert run_script(eval_script, sweep)[0] == 0
        path = Path(str(TREE_FOLDER).replace("std_train", "pgd_train")) / "results/metrics.csv"
        by_input = {r.input: r for r in read_rows(path, Record) if r.split == "train"}
        for name in ("seen", "pgd", "targeted"):
            row = by_input[name]
            assert (row.step_size, row.steps, row.restarts) == (2.0, 3, 2), name
        assert by_input["gaussian"].noise == by_input["sign"].noise == 5.0

    def test_rows_that_do_not_tell_are_of_what_their_sweep_told(self, run_of_three, run_script):
        flags = f"{run_of_three} --neural-collapse --neural-collapse-gaussian --layerwise"
        steps = "--attack-iters 4 --noise-level 20"
        assert run_script(eval_script, f"{flags} {steps}")[0] == 0
        for name in ("metrics.csv", "layers.csv"):
            path = TREE_FOLDER / "results" / name
            now = rows(path)
            told = ("step_size", "steps", "restarts", "noise", "precision", "checkpoint")
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, [n for n in now[0] if n not in told])
                writer.writeheader()
                writer.writerows([{n: row[n] for n in writer.fieldnames} for row in now])
        assert self.swept_steps(Record) == self.swept_steps(LayerRecord) == {4}
        # Another sweep replaces what eval_args.json told of them.
        assert run_script(eval_script, f"{run_of_three} --neural-collapse")[0] == 0
        assert self.swept_steps(Record) == {2, 4}
        assert self.swept_steps(LayerRecord) == {4}
        code, output, _ = run_script(eval_script, f"{flags} {steps}")
        assert code == 0 and "0 checkpoints (3 done before)" in output

    @staticmethod
    def swept_steps(row_type):
        recorded = RunFolder(TREE_FOLDER).swept_rows(row_type)
        return {row.steps for row in recorded if row.attacked}


class TestHowManyImages:
    def test_every_row_tells(self, run_of_three, run_script):
        flags = f"{run_of_three} --checkpoints 2 --limit-train 9 --limit-test 3"
        kinds = f"{ALL_INPUTS} --layerwise --ncc --split both"
        assert run_script(eval_script, f"{flags} {kinds}")[0] == 0
        for row in table(Record, "metrics.csv"):
            full = {"train": 18, "test": 6}
            swept = {"train": 9, "test": 3}
            assert row.images == (full if row.source == "train" else swept)[row.split]
        for row in table(LayerRecord, "layers.csv"):
            assert row.images == {"train": 9, "test": 3}[row.split]
        for row in table(CentreRecord, "ncc.csv"):
            assert (row.images, row.centre_images) == (3, 9)

    def test_equal_n_takes_as_many_of_each_class_from_both_splits(self, run_of_three, run_script):
        flags = f"{run_of_three} --checkpoints 2 --split both --neural-collapse"
        assert run_script(eval_script, f"{flags} --equal-n")[0] == 0
        assert {r.images for r in table(Record, "metrics.csv") if r.source == "eval"} == {6}
        code, _, error = run_script(eval_script, flags)
        assert code == 1 and "--equal-n was True, is False now" in error

    def test_equal_n_is_not_mixed_with_an_older_sweep(self, run_of_three, run_script):
        flags = f"{run_of_three} --checkpoints 2 --neural-collapse"
        assert run_script(eval_script, flags)[0] == 0
        told = json.loads((TREE_FOLDER / "results/eval_args.json").read_text())
        del told["equal_n"]  # which older versions did not know
        (TREE_FOLDER / "results/eval_args.json").write_text(json.dumps(told))
        code, _, error = run_script(eval_script, f"{flags} --equal-n --split both")
        assert code == 1 and "--equal-n was False, is True now" in error
        assert run_script(eval_script, flags)[0] == 0


class TestRandomStreams:
    def test_the_order_of_the_kinds_of_input_changes_no_number(
        self, run_of_three, run_script, request
    ):
        shutil.copytree("models", "reordered")
        flags = f"{run_of_three} {ALL_INPUTS} --checkpoints 2"
        assert run_script(eval_script, flags)[0] == 0
        expected = {row["input"]: row for row in rows(TREE_FOLDER / "results/metrics.csv")}
        former = dict(inputs.INPUTS)
        request.addfinalizer(lambda: (inputs.INPUTS.clear(), inputs.INPUTS.update(former)))
        for name in ("pgd", "clean"):  # to the end, in place: other files hold the same dict
            inputs.INPUTS[name] = inputs.INPUTS.pop(name)
        assert [*inputs.INPUTS][-2:] == ["pgd", "clean"]
        assert run_script(eval_script, f"{flags} --models-dir reordered")[0] == 0
        other = "reordered" / TREE_FOLDER.relative_to("models") / "results/metrics.csv"
        assert {row["input"]: row for row in rows(other)} == expected


class TestOlderTables:
    def test_rows_that_do_not_tell_are_of_the_run_s_epsilon(self, tree, run_script):
        mode = "--train-mode pgd_train --epochs 2"
        assert run_script(train, f"{tree} {mode} --neural-collapse")[0] == 0
        assert run_script(eval_script, f"{tree} {mode} --neural-collapse")[0] == 0
        folder = Path(str(TREE_FOLDER).replace("std_train", "pgd_train"))
        path = folder / "results/metrics.csv"
        now = read_rows(path, Record)
        assert {r.input for r in now if r.source == "train"} == {"clean", "seen"}
        old = rows(path)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [n for n in old[0] if n not in ("images", "epsilon")])
            writer.writeheader()
            for row in old:
                kept = {name: row[name] for name in writer.fieldnames}
                writer.writerow(kept | {"input": row["input"].replace("seen", "pgd")})
        found = RunFolder(folder).rows(Record)
        assert [repr(replace(row, images=0)) for row in now] == [repr(row) for row in found]
        code, output, _ = run_script(eval_script, f"{tree} {mode} --neural-collapse")
        assert code == 0 and "0 checkpoints (2 done before)" in output
