"""train.py and eval.py as a user runs them: files left behind, resuming, bad input."""

import csv
import json
import math
import pickle
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_bf16, read_resume
from PIL import Image

import eval as eval_script
import train
import utils
from robust_nc import build
from robust_nc.build import load_data, prepare, strength
from robust_nc.data.datasets import as_float
from robust_nc.data.inputs import INPUTS
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.networks import architectures
from robust_nc.results.history import EpochSummary
from robust_nc.results.records import Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.series import metric_series
from robust_nc.training import resume
from robust_nc.training.modes import MODES
from utils import InputError


@pytest.fixture(autouse=True)
def tiny_models_unless_real(request):
    """A tiny network instead of the real ones, where a test does not ask for `real_models`."""
    if "real_models" not in request.fixturenames:
        request.getfixturevalue("tiny_models")


@pytest.fixture
def real_models():
    """Leaves the real networks in place."""


CIFAR_RUN = "--dataset=cifar --model=vgg11bn --seed 1 --norm l_inf --lr-max=0.1 --epsilon=8 "
CIFAR_RUN += "--pgd-alpha=2 --attack-iters=10 --epochs 2"
RUN_FOLDER = "models/cifar/vgg11bn/l_inf/eps8.0/{}/seed1"
TREE_FOLDER = Path("models/folder/vgg11bn/l_inf/eps8.0/std_train/seed1")

NC = {
    "nc1",
    "nc2_activation_norm",
    "nc2_classifier_norm",
    "nc2_activation_angle",
    "nc2_classifier_angle",
    "nc3",
    "nc4",
}
ROBUST_NC = {
    "robust_nc1",
    "robust_activation_nc2_norm",
    "robust_classifier_nc2_norm",
    "robust_activation_nc2_angle",
    "robust_classifier_nc2_angle",
    "robust_nc3",
    "robust_nc4",
    "clean_robust_dist",
    "clean_robust_angle",
    "clean_robust_dist_abs",
    "clean_robust_angle_abs",
    "muG_dist",
    "muG_angle",
}
NOISE_NC = {prefix + name for prefix in ("linf_label_", "new_gaussian_label_") for name in NC}
TARGETED_NC = {
    "targeted_nc1",
    "targeted_nc2_norm_M",
    "targeted_nc2_norm_W",
    "targeted_nc2_angle_M",
    "targeted_nc2_angle_W",
    "targeted_nc3",
    "targeted_nc4",
    "clean_target_dist",
    "clean_target_angle",
    "clean_target_dist_abs",
    "clean_target_angle_abs",
    "target_muG_dist",
    "target_muG_angle",
}
TRAINED = {"train_loss", "train_acc", "train_robust_loss", "train_robust_acc"}


def series(folder):
    return {path.stem: np.load(path) for path in (Path(folder) / "results").glob("*.npy")}


def rows(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_the_published_st_commands_leave_the_published_files(cifar_dir, run_script):
    flags = f"{CIFAR_RUN} --train-mode std_train"
    folder = Path(RUN_FOLDER.format("std_train"))
    assert run_script(train, flags)[0] == 0
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "model_0.pth",
        "model_1.pth",
        "resume.pth",
        "history.csv",
        "args.json",
        "output.log",
        "results",
    }
    assert not series(folder)
    checkpoint = torch.load(folder / "model_1.pth", weights_only=True)
    assert set(checkpoint) == {"state_dict", "epoch", "seed"}
    assert (checkpoint["epoch"], checkpoint["seed"]) == (1, 1)

    what = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"
    code, output, _ = run_script(eval_script, f"{flags} {what}")
    assert code == 0
    found = series(folder)
    assert set(found) == NC | ROBUST_NC | NOISE_NC | TARGETED_NC | TRAINED
    for name, values in found.items():
        assert values.shape == (2,) and np.isfinite(values).all(), name
    recorded = rows(folder / "results" / "metrics.csv")
    measured = [row["input"] for row in recorded if row["source"] == "eval"]
    assert measured == ["clean", "pgd", "gaussian", "sign", "targeted"] * 2
    clean = [row for row in recorded if (row["source"], row["input"]) == ("eval", "clean")]
    assert [float(row["nc1"]) for row in clean] == found["nc1"].tolist()
    assert [float(row["accuracy"]) for row in clean] == found["train_acc"].tolist()
    assert "targeted" in output and "targeted" in (folder / "eval.log").read_text()
    assert json.loads((folder / "args.json").read_text())["lr_max"] == 0.1


@pytest.mark.parametrize("mode", ("pgd_train", "pgd_train_TRADES", "pgd_train_MART"))
def test_the_published_robust_commands_leave_the_published_files(mode, cifar_dir, run_script):
    flags = f"{CIFAR_RUN} --train-mode {mode}"
    folder = Path(RUN_FOLDER.format(mode))
    assert run_script(train, f"{flags} --neural-collapse")[0] == 0
    trained = series(folder)
    assert set(trained) == NC | ROBUST_NC | TRAINED
    assert all(values.shape == (2,) for values in trained.values())
    assert trained["train_robust_loss"][0] > 0 and trained["clean_robust_dist"][0] > 0
    history = rows(folder / "history.csv")
    assert ",".join(history[0]) == (
        "epoch,lr,train_loss,train_acc,train_robust_loss,train_robust_acc,test_loss,test_acc,seconds,"
        "grad_norm,peak_memory"
    )
    assert [float(row["train_loss"]) for row in history] == trained["train_loss"].tolist()

    # The sweep adds the noise, and leaves what training saw as it is.
    assert run_script(eval_script, f"{flags} --neural-collapse --neural-collapse-gaussian")[0] == 0
    swept = series(folder)
    assert set(swept) == NC | ROBUST_NC | TRAINED | NOISE_NC
    for name, values in trained.items():
        assert (swept[name] == values).all(), name
    if mode == "pgd_train_TRADES":
        state = torch.load(folder / "model_1.pth", weights_only=True)["state_dict"]
        assert not state["norm.running_mean"].any()


def test_robust_nc_is_measured_on_the_images_that_were_trained_on(
    image_tree, run_script, monkeypatch
):
    stepped_on, measured = [], []
    mode, original_measure = MODES["pgd_train"], Evaluator.measure

    def step(*arguments):
        result = mode.step(*arguments)
        stepped_on.append(result.perturbed)
        return result

    def measure(evaluator, images, *rest):
        measured.append(images)
        return original_measure(evaluator, images, *rest)

    monkeypatch.setitem(MODES, "pgd_train", replace(mode, step=step))
    monkeypatch.setattr(Evaluator, "measure", measure)
    flags = f"--dataset folder --data-dir {image_tree} --epochs 1 --attack-iters 1 --batch-size 5"
    flags += " --train-mode pgd_train --neural-collapse --neural-collapse-gaussian"
    assert run_script(train, flags)[0] == 0
    test, clean, robust, noisy = measured
    assert len(test) == 6 and len(clean) == len(noisy) == 18
    assert torch.equal(
        torch.cat(stepped_on).flatten(1).sum(1).sort()[0], robust.flatten(1).sum(1).sort()[0]
    )
    assert (robust - as_float(clean)).abs().max() <= 8 / 255 + 1e-6
    folder = str(TREE_FOLDER).replace("std_train", "pgd_train")
    assert {f"gaussian_label_{name}" for name in NC} <= set(series(folder))


@pytest.fixture
def tree_flags(image_tree):
    return f"--dataset folder --data-dir {image_tree} --epochs 3 --attack-iters 2 --batch-size 7"


def assert_equal_runs(folder, other):
    """Every checkpoint and result of two runs is the same to the last bit."""
    checkpoints = sorted(path.name for path in folder.glob("model_*.pth"))
    assert checkpoints == sorted(path.name for path in other.glob("model_*.pth"))
    for name in checkpoints:
        states = [
            torch.load(run / name, weights_only=True)["state_dict"] for run in (folder, other)
        ]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), name
    assert {name: values.tolist() for name, values in series(folder).items()} == {
        name: values.tolist() for name, values in series(other).items()
    }
    histories = [
        [row | {"seconds": 0, "peak_memory": 0} for row in rows(run / "history.csv")]
        for run in (folder, other)
    ]
    assert histories[0] == histories[1]
    assert rows(folder / "results/metrics.csv") == rows(other / "results/metrics.csv")


@contextmanager
def dying_after_the_second_checkpoint(monkeypatch):
    save = resume.save_checkpoint

    def save_and_die(path, **content):
        save(path, **content)
        if path.name == "model_1.pth":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resume, "save_checkpoint", save_and_die)
        yield


def test_a_resumed_run_is_the_uninterrupted_one(tree_flags, run_script, monkeypatch):
    flags = f"{tree_flags} --train-mode pgd_train --neural-collapse"
    folder = Path(str(TREE_FOLDER).replace("std_train", "pgd_train"))
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    with dying_after_the_second_checkpoint(monkeypatch):
        assert run_script(train, flags)[0] == 130
    code, output, _ = run_script(train, f"{flags} --resume")
    assert code == 0 and "resuming at epoch 1" in output
    assert_equal_runs(folder, "whole" / folder.relative_to("models"))
    code, output, _ = run_script(train, f"{flags} --resume")
    assert code == 0 and "is finished" in output


def test_training_anew_from_an_epoch_drops_what_a_sweep_recorded_of_later_ones(
    tree_flags, run_script
):
    sweep = tree_flags.replace("--batch-size 7", "--neural-collapse-gaussian")
    assert run_script(train, tree_flags)[0] == 0
    assert run_script(eval_script, sweep)[0] == 0
    before = [row for row in rows(TREE_FOLDER / "results/metrics.csv") if row["epoch"] == "0"]
    code, _, error = run_script(train, f"{tree_flags} --resume 1")
    assert code == 1 and "model_1.pth would be replaced" in error and "--overwrite" in error
    assert run_script(train, f"{tree_flags} --resume 1 --overwrite")[0] == 0
    recorded = rows(TREE_FOLDER / "results/metrics.csv")
    assert [row for row in recorded if row["epoch"] == "0"] == before
    assert {row["epoch"] for row in recorded if row["source"] == "eval"} == {"0"}


def test_a_run_of_a_version_without_a_flag_resumes_with_the_constant_of_then(
    tree_flags, run_script
):
    flags = f"{tree_flags} --train-mode pgd_train_TRADES --neural-collapse"
    folder = Path(str(TREE_FOLDER).replace("std_train", "pgd_train_TRADES"))
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    assert run_script(train, flags)[0] == 0
    told = json.loads((folder / "args.json").read_text())
    assert told.pop("trades_beta") == 6
    (folder / "args.json").write_text(json.dumps(told))
    code, _, error = run_script(train, f"{flags} --trades-beta 3 --resume 1 --overwrite")
    assert code == 1 and "--trades-beta was 6.0, is 3.0 now" in error
    assert run_script(train, f"{flags} --resume 1 --overwrite")[0] == 0
    assert json.loads((folder / "args.json").read_text())["trades_beta"] == 6
    code, _, error = run_script(train, f"{flags} --trades-beta 3 --resume")
    assert code == 1 and "--trades-beta was 6.0, is 3.0 now" in error


def test_resuming_an_empty_folder_starts_afresh(tree_flags, run_script):
    assert run_script(train, f"{tree_flags} --resume")[0] == 0
    assert (TREE_FOLDER / "model_2.pth").exists()


@pytest.mark.parametrize("with_optimizer", (True, False))
def test_a_published_checkpoint_resumes_and_is_swept(with_optimizer, tree_flags, run_script):
    """As if never stopped, where the file holds the optimiser state as the published ones do."""
    assert run_script(train, f"{tree_flags} --models-dir whole --lr-schedule onedrop")[0] == 0
    whole = "whole" / TREE_FOLDER.relative_to("models")
    assert run_script(train, f"{tree_flags} --epochs 2 --lr-schedule onedrop")[0] == 0
    published = read_resume(TREE_FOLDER)
    group = published["optimizer"]["param_groups"][0]
    for setting in ("foreach", "differentiable", "fused"):
        del group[setting]  # PyTorch 1.12, which the published code ran on, has none of them
    if not with_optimizer:
        del published["optimizer"]
    for path in TREE_FOLDER.rglob("*.*"):
        path.unlink()
    torch.save(published, TREE_FOLDER / "model_1.pth")

    code, output, _ = run_script(train, f"{tree_flags} --lr-schedule onedrop --resume 2")
    assert code == 0
    assert ("momentum starts at zero" in output) != with_optimizer
    assert [row["epoch"] for row in rows(TREE_FOLDER / "history.csv")] == ["2"]
    states = [
        torch.load(run / "model_2.pth", weights_only=True)["state_dict"]
        for run in (TREE_FOLDER, whole)
    ]
    same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert same == with_optimizer
    sweep = tree_flags.replace("--batch-size 7", "--neural-collapse --checkpoints 1:")
    assert run_script(eval_script, sweep)[0] == 0
    assert np.isnan(series(TREE_FOLDER)["nc1"]).tolist() == [True, False, False]


def test_a_sweep_goes_on_where_it_stopped_and_mixes_nothing(tree_flags, run_script, monkeypatch):
    sweep = tree_flags.replace(" --batch-size 7", "")
    assert run_script(train, tree_flags)[0] == 0
    assert run_script(eval_script, f"{sweep} --neural-collapse --checkpoints 0,2")[0] == 0
    nc1 = series(TREE_FOLDER)["nc1"]
    assert np.isnan(nc1).tolist() == [False, True, False]

    measured = []
    original = Evaluator.measure
    monkeypatch.setattr(Evaluator, "measure", lambda *a: measured.append(1) or original(*a))
    code, output, _ = run_script(eval_script, f"{sweep} --neural-collapse --checkpoints 0,2")
    assert code == 0 and not measured and "2 done before" in output
    assert run_script(eval_script, f"{sweep} --neural-collapse")[0] == 0
    assert len(measured) == 2  # clean and PGD of epoch 1
    swept = series(TREE_FOLDER)
    assert (swept["nc1"][[0, 2]] == nc1[[0, 2]]).all()

    other = sweep.replace("--attack-iters 2", "--attack-iters 3")
    assert run_script(eval_script, f"{other} --neural-collapse")[0] == 0  # side by side
    now = series(TREE_FOLDER)
    assert all((now[name] == swept[name]).all() for name in swept)
    assert run_script(eval_script, f"{other} --neural-collapse --overwrite")[0] == 0
    assert (series(TREE_FOLDER)["nc1"] == swept["nc1"]).all()
    assert (series(TREE_FOLDER)["robust_nc1"] != swept["robust_nc1"]).all()


def test_eval_uses_the_training_images_of_the_run(tree_flags, run_script):
    assert run_script(train, f"{tree_flags} --limit-train 9 --epochs 1")[0] == 0
    sweep = tree_flags.replace(" --batch-size 7", " --epochs 1")
    code, output, _ = run_script(eval_script, f"{sweep} --neural-collapse-gaussian")
    assert code == 0 and "9 training images" in output
    code, _, error = run_script(eval_script, f"{sweep} --neural-collapse-gaussian --lr-max 0.2")
    assert code == 1 and "--lr-max was 0.1, is 0.2 now" in error


def test_emulated_bf16_is_told_of(tree_flags, run_script, monkeypatch):
    shared = tree_flags.replace(" --epochs 3", " --epochs 1 --overwrite")
    swept = shared.replace(" --batch-size 7", " --neural-collapse")
    for native, precision in ((True, "bf16"), (False, "fp32"), (False, "bf16")):
        monkeypatch.setattr(build, "computes_bf16", lambda device, native=native: native)
        for script, flags in ((train, shared), (eval_script, swept)):
            code, output, error = run_script(script, f"{flags} --precision {precision}")
            assert code == 0, error
            told = "--precision bf16: this cpu has no bf16 arithmetic" in output + error
            assert told == (precision == "bf16" and not native)


@pytest.mark.parametrize(
    "flags",
    (
        "--dataset folder --norm l_2 --optimizer adam --lr-schedule cosine --lr-max 0.001",
        pytest.param(
            "--dataset folder --train-mode pgd_train --norm l_2 --restarts 2 --precision bf16",
            marks=needs_bf16,
        ),
        "--dataset folder --train-mode pgd_train_TRADES --trades-bn batch --norm l_2 "
        "--trades-beta 2",
        "--dataset folder --train-mode pgd_train_MART --mart-lambda 2 --restarts 2",
        "--dataset folder --train-mode pgd_train_TRADES --lr-schedule superconverge --lr-max 0.01",
        pytest.param(
            "--dataset folder --model preactresnet18 --lr-schedule linear --precision fp32",
            marks=pytest.mark.slow,
        ),
        "--dataset folder --lr-schedule onedrop --lr-drop-epoch 1 --lr-one-drop 0.001",
        "--dataset mnist --train-mode pgd_train --epsilon 0.3 --pgd-alpha 0.1",
        pytest.param("--dataset imnet --limit-train 3 --limit-test 3", marks=pytest.mark.slow),
        "--dataset imnet --limit-train 3 --limit-test 3 --model PreActResNet18",
    ),
)
def test_every_mode_model_norm_and_data_set_trains_and_is_swept(
    flags, image_tree, mnist_dir, tmp_path, run_script, real_models
):
    root = mnist_dir if "mnist" in flags else image_tree
    flags += f" --data-dir {root} --epochs 2 --attack-iters 1"
    code, _, error = run_script(train, f"{flags} --neural-collapse")
    assert code == 0, error
    folder = next(tmp_path.glob("models/*/*/*/*/*/seed1"))
    assert folder.parent.name.endswith("_batch") == ("--trades-bn batch" in flags)
    only_train = ("lr-", "optimizer", "limit-test", "trades-beta", "mart-lambda")
    shared = "".join(
        f"--{flag}" for flag in flags.split("--")[1:] if not flag.startswith(only_train)
    )
    code, _, error = run_script(
        eval_script,
        f"{shared} --neural-collapse --neural-collapse-gaussian --neural-collapse-targeted "
        "--checkpoints ::2",
    )
    assert code == 0, error
    assert np.isfinite(series(folder)["targeted_nc1"][0])
    # Two epochs learn little, but they train, and do not blow up: near the loss of guessing.
    history = rows(folder / "history.csv")
    states = [
        torch.load(folder / f"model_{e}.pth", weights_only=True)["state_dict"] for e in (0, 1)
    ]
    moved = [
        not torch.equal(value, states[1][n]) for n, value in states[0].items() if value.ndim == 4
    ]
    # Some schedules end at a rate of zero, and here an epoch has a single step.
    assert set(moved) == {float(history[-1]["lr"]) > 0}
    guessing = math.log(10 if "mnist" in flags else 3)
    assert float(history[-1]["train_loss"]) < guessing + 3


@pytest.mark.parametrize(
    ("script", "flags", "named"),
    (
        (train, "--dataset emnist", "--dataset"),
        (train, "--model resnet50", "--model"),
        (train, "--train-mode robust", "--train-mode"),
        (train, "--norm l_1", "--norm"),
        (train, "--epsilon=-1", "--epsilon"),
        (train, "--epsilon nan", "--epsilon"),
        (train, "--epochs 0", "--epochs"),
        (train, "--epochs 3.5", "--epochs"),
        (train, "--seed one", "--seed"),
        (train, "--lr-max inf", "--lr-max"),
        (train, "--device tpu9", "--device"),
        (train, "--resume 400", "--resume"),
        (train, "--resume never", "--resume"),
        (train, "--resume --overwrite", "--overwrite"),
        (train, "--dataset mnist", "--epsilon"),
        (train, "--dataset mnist --epsilon 8 --pgd-alpha 2", "--epsilon"),
        (train, "--data-url http://x --dataset digits", "--data-url"),
        (train, "--data-url file:///x", "--data-url"),
        (train, "--image-size 160", "--image-size"),
        (train, "--trades-bn batch", "--trades-bn"),
        (train, "--restarts 2", "--restarts"),
        (train, "--train-mode pgd_train_TRADES --restarts 2", "--restarts"),
        (train, "--train-mode pgd_train --trades-beta 5", "--trades-beta"),
        (train, "--train-mode pgd_train_MART --trades-beta 5", "--trades-beta"),
        (train, "--train-mode pgd_train_TRADES --mart-lambda 6", "--mart-lambda"),
        (train, "--train-mode pgd_train_MART --trades-bn batch", "--trades-bn"),
        (train, "--lr-schedule multipledecay --epochs 5", "--lr-schedule"),
        (train, "--cuda-graph --device cpu", "--cuda-graph"),
        (train, "--no-such-flag", "--no-such-flag"),
        (eval_script, "", "--neural-collapse"),
        (eval_script, "--neural-collapse --checkpoints 400", "--checkpoints"),
        (eval_script, "--neural-collapse --checkpoints a:b", "--checkpoints"),
    ),
)
def test_a_bad_flag_ends_with_one_line_that_names_it(script, flags, named, run_script, tmp_path):
    code, _, error = run_script(script, flags)
    assert code == 2
    assert named in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_run_is_never_overwritten_unasked(tree_flags, run_script):
    assert run_script(train, f"{tree_flags} --epochs 1")[0] == 0
    before = (TREE_FOLDER / "model_0.pth").read_bytes()
    code, _, error = run_script(train, f"{tree_flags} --epochs 1")
    assert code == 1 and "--resume" in error and "--overwrite" in error
    code, _, error = run_script(train, f"{tree_flags} --resume")
    assert code == 1 and "--epochs was 1, is 3 now" in error
    assert (TREE_FOLDER / "model_0.pth").read_bytes() == before
    (TREE_FOLDER / "mine.txt").write_text("notes")
    again = f"{tree_flags} --epochs 1 --seed 1 --lr-max 0.2 --overwrite"
    code, output, _ = run_script(train, again)
    assert code == 0 and "--overwrite deletes the run that is there: 1 checkpoints" in output
    assert (TREE_FOLDER / "model_0.pth").read_bytes() != before
    assert (TREE_FOLDER / "mine.txt").exists()


def test_a_loss_that_is_no_longer_finite_stops_the_run(tree_flags, run_script):
    code, _, error = run_script(train, f"{tree_flags} --lr-max 1e30")
    assert code == 1 and "no longer finite" in error and error.count("\n") == 1
    assert re.search(r"epoch \d: step \d of 3, learning rate 1e\+30: the training loss", error)
    for path in TREE_FOLDER.glob("model_*.pth"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def damage_missing(path):
    path.unlink()
    return "no such checkpoint"


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:5000])
    return "truncated"


def damage_empty(path):
    path.write_bytes(b"")
    return "is empty"


def damage_hostile(path):
    class Hostile:
        def __reduce__(self):
            return print, ("hacked",)

    path.write_bytes(pickle.dumps(Hostile()))
    return "refused"


def damage_other_architecture(path):
    torch.save(
        {"state_dict": architectures.build_model("PreActResNet18", 32, 3, 3).state_dict()}, path
    )
    return "another network"


def damage_other_classes(path):
    torch.save({"state_dict": architectures.build_model("vgg11bn", 32, 3, 7).state_dict()}, path)
    return "its network has 7 classes, the data has 3"


def damage_diverged(path):
    weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict()
    weights["classifier.bias"] += float("nan")
    torch.save({"state_dict": weights}, path)
    return "classifier.bias is not finite"


def damage_no_weights(path):
    torch.save({"epoch": 3, "state_dict": {}}, path)
    return "holds no weights"


def damage_folder(path):
    path.unlink()
    path.mkdir()
    return "model_0.pth"


@pytest.mark.parametrize(
    "damage",
    (
        damage_missing,
        damage_truncated,
        damage_empty,
        damage_hostile,
        damage_other_architecture,
        damage_other_classes,
        damage_no_weights,
        damage_diverged,
        damage_folder,
    ),
)
def test_a_damaged_checkpoint_is_named_with_what_is_wrong(
    damage, tree_flags, run_script, real_models
):
    TREE_FOLDER.mkdir(parents=True)
    path = TREE_FOLDER / "model_0.pth"
    torch.save({"state_dict": architectures.build_model("vgg11bn", 32, 3, 3).state_dict()}, path)
    expected = damage(path)
    sweep = tree_flags.replace(" --batch-size 7", " --checkpoints 0 --neural-collapse")
    commands = [(eval_script, sweep), (train, f"{tree_flags} --resume 1")]
    for script, flags in commands:
        code, output, error = run_script(script, flags)
        assert code == 1
        assert "model_0.pth" in error and expected in error and error.count("\n") == 1
        assert "hacked" not in output


NC_FIELDS = (
    "nc1 nc2_norm_activation nc2_norm_classifier nc2_angle_activation nc2_angle_classifier nc3 nc4"
)
PLAIN = (
    "nc1 nc2_activation_norm nc2_classifier_norm nc2_activation_angle nc2_classifier_angle nc3 nc4"
)
PUBLISHED_SERIES = {
    "clean": PLAIN,
    "pgd": "robust_nc1 robust_activation_nc2_norm robust_classifier_nc2_norm "
    "robust_activation_nc2_angle robust_classifier_nc2_angle robust_nc3 robust_nc4",
    "gaussian": " ".join(f"new_gaussian_label_{name}" for name in PLAIN.split()),
    "sign": " ".join(f"linf_label_{name}" for name in PLAIN.split()),
    "gaussian_l2": " ".join(f"gaussian_label_{name}" for name in PLAIN.split()),
    "targeted": "targeted_nc1 targeted_nc2_norm_M targeted_nc2_norm_W targeted_nc2_angle_M "
    "targeted_nc2_angle_W targeted_nc3 targeted_nc4",
}
DISTANCE_FIELDS = (
    "clean_distance clean_angle clean_distance_abs clean_angle_abs clean_mean_distance "
    "clean_mean_angle"
)
PUBLISHED_DISTANCES = {
    "pgd": "clean_robust_dist clean_robust_angle clean_robust_dist_abs clean_robust_angle_abs "
    "muG_dist muG_angle",
    "targeted": "clean_target_dist clean_target_angle clean_target_dist_abs "
    "clean_target_angle_abs target_muG_dist target_muG_angle",
}


def make_record(input, source="eval", epoch=0, start=0.0):
    fields = f"loss accuracy ncc_accuracy {NC_FIELDS} {DISTANCE_FIELDS}".split()
    numbers = {name: start + i for i, name in enumerate(fields)}
    return Record(source=source, epoch=epoch, split="train", input=input, **numbers)


def make_folder(path, train_mode="std_train"):
    folder = RunFolder(path / train_mode, standard=train_mode == "std_train")
    folder.open()
    return folder


def test_no_two_series_share_a_name():
    names = [name for input in INPUTS for name in metric_series(input).values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("input", PUBLISHED_SERIES)
def test_every_field_goes_to_its_published_series(input, tmp_path):
    folder, record = make_folder(tmp_path), make_record(input)
    folder.add([record])
    folder.settle()
    expected = dict(zip(PUBLISHED_SERIES[input].split(), NC_FIELDS.split(), strict=True))
    if input in PUBLISHED_DISTANCES:
        distances = PUBLISHED_DISTANCES[input].split()
        expected |= dict(zip(distances, DISTANCE_FIELDS.split(), strict=True))
    if input == "clean":
        expected |= {"train_loss": "loss", "train_acc": "accuracy"}
    if input == "pgd":
        expected |= {"train_robust_loss": "loss", "train_robust_acc": "accuracy"}
    found = series(folder.path)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: [getattr(record, field)] for name, field in expected.items()
    }


def test_history_tells_the_gradient_s_norm_and_the_memory(tree_flags, run_script):
    """One step an epoch from weights that are known: its gradient by a plain backward pass."""
    flags = tree_flags.replace("--batch-size 7", "--batch-size 18")
    assert run_script(train, flags)[0] == 0
    settings = train.parse_args(flags.split())
    data = load_data(settings)
    training = prepare(settings, RunFolder(Path("none")), data)
    network, data = training.learner.network, data.train
    weights = torch.load(TREE_FOLDER / "model_0.pth", weights_only=True)["state_dict"]
    network.model.load_state_dict(weights)
    loss = torch.nn.functional.cross_entropy(network.train()(as_float(data.images)), data.labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    history = rows(TREE_FOLDER / "history.csv")
    assert float(history[1]["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert all(0.1 < float(row["peak_memory"]) < 64 for row in history)


def test_a_run_of_an_older_version_is_resumed_swept_and_read(tree_flags, run_script):
    """Its tables lack the columns that came later; what they hold is kept."""
    assert run_script(train, f"{tree_flags} --neural-collapse")[0] == 0
    torch.save(read_resume(TREE_FOLDER) | {"epoch": 1}, TREE_FOLDER / "resume.pth")
    (TREE_FOLDER / "model_2.pth").unlink()
    older = {}
    for file, last in (("history.csv", "seconds"), ("results/metrics.csv", "clean_mean_angle")):
        table = [line.split(",") for line in (TREE_FOLDER / file).read_text().splitlines()]
        width = table[0].index(last) + 1
        older[file] = [
            row[:width] for row in table if row[0] in ("epoch", "source", "0", "1", "train")
        ]
        (TREE_FOLDER / file).write_text("".join(",".join(row) + "\n" for row in older[file]))
    assert run_script(train, f"{tree_flags} --neural-collapse --resume")[0] == 0
    assert (
        run_script(eval_script, tree_flags.replace("--batch-size 7", "--neural-collapse"))[0] == 0
    )
    history = rows(TREE_FOLDER / "history.csv")
    assert [row["grad_norm"] == "" for row in history] == [True, True, False]
    assert [list(row.values())[:9] for row in history[:2]] == older["history.csv"][1:3]
    assert len(rows(TREE_FOLDER / "results/metrics.csv")) == 3 * 2 + 3 * 2


def test_training_values_come_before_swept_ones_epoch_by_epoch(tmp_path):
    folder = make_folder(tmp_path, "pgd_train")
    folder.add([make_record("pgd", "eval", epoch, start=100) for epoch in (0, 1)])
    folder.add([make_record("pgd", "train", 1, start=200)])
    folder.settle()
    assert series(folder.path)["robust_nc1"].tolist() == [103, 203]


def test_both_scripts_may_write_records_of_one_run(tmp_path):
    one, other = make_folder(tmp_path, "pgd_train"), make_folder(tmp_path, "pgd_train")
    summary = EpochSummary(
        epoch=0,
        lr=0.1,
        train_loss=1.0,
        train_acc=2.0,
        train_robust_loss=3.0,
        train_robust_acc=4.0,
        test_loss=5.0,
        test_acc=6.0,
        seconds=7.0,
    )
    one.add([make_record("pgd", "train")], summary)
    other.add([make_record("sign", "eval")])
    assert [record.input for record in make_folder(tmp_path, "pgd_train").records] == [
        "sign",
        "seen",  # what train.py saw, whatever older versions call it
    ]
    assert len(rows(one.path / "history.csv")) == 1


def test_series_that_no_record_explains_are_kept(tmp_path):
    folder = make_folder(tmp_path)
    np.save(folder.results / "targeted_nc1.npy", np.arange(400))
    folder.add([make_record("clean")])
    folder.forget_from(0)
    assert list(series(folder.path)) == ["targeted_nc1"]


@pytest.mark.parametrize(
    ("dataset", "norm", "epsilon", "alpha"),
    (("cifar", "l_inf", 8 / 255, 2 / 255), ("digits", "l_2", 128 / 255, 15 / 255)),
)
def test_the_attack_has_the_units_of_its_data_set(dataset, norm, epsilon, alpha, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--dataset", dataset, "--norm", norm])
    attack = strength(train.parse_args()).attack
    assert attack == {"epsilon": epsilon, "step_size": alpha, "steps": 10, "norm": norm}


def test_mnist_has_its_attack_in_image_units(monkeypatch):
    flags = "train.py --dataset mnist --epsilon 0.3 --pgd-alpha 0.01 --attack-iters 7"
    monkeypatch.setattr("sys.argv", flags.split())
    attack = strength(train.parse_args()).attack
    assert attack == {"epsilon": 0.3, "step_size": 0.01, "steps": 7, "norm": "l_inf"}


def test_a_sweep_measures_each_input_as_named(tree_flags, run_script, monkeypatch):
    assert run_script(train, f"{tree_flags} --epochs 1")[0] == 0
    seen = []
    original = Evaluator.measure

    def spy(evaluator, images, labels, perturb=None):
        network = evaluator.network
        x = as_float(images)
        seen.append((labels, None if perturb is None else perturb(x, labels)))
        if perturb is not None and len(seen) == 5:
            network.eval()
            with torch.no_grad():
                losses = [
                    torch.nn.functional.cross_entropy(network(images), labels)
                    for images in (x, x + seen[-1][1])
                ]
            assert losses[1] < losses[0]  # towards the target
        return original(evaluator, images, labels, perturb)

    monkeypatch.setattr(Evaluator, "measure", spy)
    sweep = tree_flags.replace("--batch-size 7", "--epochs 1 --noise-level 20 --epsilon 8")
    what = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"
    assert run_script(eval_script, f"{sweep} {what}")[0] == 0
    clean, pgd, gaussian, sign, targeted = seen
    assert clean[1] is None
    assert pgd[1].abs().max().item() == pytest.approx(8 / 255, rel=1e-4)
    assert gaussian[1].std().item() == pytest.approx(20 / 255, rel=0.1)
    assert sign[1].abs().median().item() == pytest.approx(20 / 255, rel=1e-4)
    assert sign[1].abs().max().item() == pytest.approx(20 / 255, rel=1e-4)
    for labels, _ in (pgd, gaussian, sign):
        assert torch.equal(labels, clean[0])
    assert torch.equal(targeted[0], (clean[0] + 1) % 3)
    assert targeted[1].abs().max().item() == pytest.approx(8 / 255, rel=1e-4)


def test_an_optimizer_state_of_another_kind_is_refused(tree_flags, run_script):
    assert run_script(train, f"{tree_flags} --optimizer adam --lr-max 0.001 --epochs 1")[0] == 0
    (TREE_FOLDER / "args.json").unlink()
    torch.save(read_resume(TREE_FOLDER), TREE_FOLDER / "model_0.pth")
    code, _, error = run_script(train, f"{tree_flags} --resume 1")
    assert code == 1 and "another optimiser" in error and error.count("\n") == 1


def test_other_images_in_the_data_folder_are_noticed(tree_flags, image_tree, run_script):
    assert run_script(train, f"{tree_flags} --epochs 1")[0] == 0
    Image.new("RGB", (32, 32), "blue").save(image_tree / "train" / "ant" / "0.png")
    sweep = tree_flags.replace("--batch-size 7", "--epochs 1 --neural-collapse")
    code, _, error = run_script(eval_script, sweep)
    assert code == 1 and "trained on other images" in error


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "series.npy"
    path.write_bytes(b"before")
    for raised, seen in ((KeyboardInterrupt, KeyboardInterrupt), (OSError, InputError)):
        with pytest.raises(seen), utils.atomic_open(path) as file:
            file.write(b"half")
            raise raised(28, "No space left on device")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_records_survive_the_csv_to_the_last_bit(tmp_path):
    folder = make_folder(tmp_path)
    values = (1 / 3, 0.1, 2e-17, 1e300, 5.0, 0.0, 1.0)
    metrics = dict(zip(NC_FIELDS.split(), values, strict=True))
    key = {"source": "eval", "epoch": 3, "split": "train", "input": "clean"}
    record = Record(**key, loss=0.7, accuracy=1 / 7, ncc_accuracy=0.9, **metrics)
    folder.add([record])
    folder.settle()
    assert repr(make_folder(tmp_path).records) == repr([record])
    assert np.isnan(np.load(folder.results / "nc1.npy")).tolist() == [True, True, True, False]
