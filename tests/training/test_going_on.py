"""Runs that go on: named by their folder, for more epochs, from other weights, or not at all."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import read_resume
from test_scripts import (
    TREE_FOLDER,
    assert_equal_runs,
    dying_after_the_second_checkpoint,
    rows,
)

import eval as eval_script
import train
from robust_nc.reports.groups import group_runs
from robust_nc.reports.runs import read_run
from robust_nc.training import modes

FLAGS = "--epochs 3 --attack-iters 2 --batch-size 4 --lr-max 0.01"
WHOLE = Path("whole") / TREE_FOLDER.relative_to("models")


@pytest.fixture
def flags(image_tree, tiny_models):
    return f"--dataset folder --data-dir {image_tree} {FLAGS}"


def tree_folder(mode, models="models"):
    return Path(models) / TREE_FOLDER.relative_to("models").parent.parent / mode / "seed1"


def told(folder):
    return json.loads((folder / "args.json").read_text())


@pytest.mark.parametrize("mode", ("pgd_train", "std_train"))
def test_frozen_batch_norm_stays_as_it_was_and_goes_on_to_the_same_bits(
    mode, flags, run_script, monkeypatch
):
    flags = f"{flags} --train-mode {mode} --bn frozen"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    with dying_after_the_second_checkpoint(monkeypatch):
        assert run_script(train, flags)[0] == 130
    assert run_script(train, f"{flags} --resume")[0] == 0
    folder = tree_folder(f"{mode}_frozen")
    assert_equal_runs(folder, tree_folder(f"{mode}_frozen", "whole"))
    content = torch.load(folder / "model_2.pth", weights_only=True)["state_dict"]
    assert (content["norm.running_mean"] == 0).all() and (content["norm.running_var"] == 1).all()
    sweep = flags.replace(" --batch-size 4", "")
    assert run_script(eval_script, f"{sweep} --neural-collapse")[0] == 0


# ---------------------------------------------------------------------------------------------
# --resume N
# ---------------------------------------------------------------------------------------------


def test_to_resume_an_epoch_deletes_nothing_unasked(flags, run_script):
    """Of a run with thinned checkpoints: rows, and weights that resume.pth alone holds."""
    flags = f"{flags} --checkpoint-epochs 0 --neural-collapse"
    assert run_script(train, flags)[0] == 0
    before = {path: path.read_bytes() for path in TREE_FOLDER.rglob("*.*") if path.is_file()}
    code, _, error = run_script(train, f"{flags} --resume 1")
    assert code == 1 and error.count("\n") == 1
    assert "the rows of epochs 1 to 2 in history.csv" in error and "metrics.csv" in error
    assert "the only weights of epoch 2, in resume.pth" in error and "--overwrite" in error
    assert {path: path.read_bytes() for path in before} == before
    assert run_script(train, f"{flags} --resume 1 --overwrite")[0] == 0
    assert len(rows(TREE_FOLDER / "history.csv")) == 3


def test_an_epoch_without_the_checkpoint_before_it_is_told_where_there_is_one(flags, run_script):
    flags = f"{flags} --epochs 5 --checkpoint-epochs 0,2"
    assert run_script(train, flags)[0] == 0
    for number in (2, 4):
        (TREE_FOLDER / f"model_{number}.pth").unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in TREE_FOLDER.rglob("*.*") if path.is_file()}
    code, _, error = run_script(train, f"{flags} --resume 4 --overwrite")
    assert code == 1 and error.count("\n") == 1
    assert "model_3.pth: no such checkpoint, which --resume 4 needs" in error
    assert "kept are those of epochs 0: --resume 1 trains on from model_0.pth" in error
    assert {path: path.read_bytes() for path in before} == before


# ---------------------------------------------------------------------------------------------
# More epochs
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    (
        "--lr-schedule constant",
        "--lr-milestones 1,2 --lr-gamma 0.5",
        "--lr-schedule onedrop --lr-drop-epoch 2",
    ),
)
def test_a_finished_run_becomes_longer_with_the_bits_of_the_longer_run(schedule, flags, run_script):
    flags = f"{flags} {schedule} --train-mode pgd_train"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    assert run_script(train, f"{flags} --epochs 2")[0] == 0
    assert run_script(train, f"{flags} --resume")[0] == 0
    folder = tree_folder("pgd_train")
    assert_equal_runs(folder, tree_folder("pgd_train", "whole"))
    assert told(folder)["epochs"] == 3
    code, _, error = run_script(train, f"{flags} --epochs 2 --resume")
    assert code == 1 and "--epochs was 3, is 2 now" in error  # never shorter


@pytest.mark.parametrize(
    "schedule", ("piecewise", "cosine", "linear", "milestones", "superconverge")
)
def test_a_schedule_that_follows_the_epochs_says_why_it_cannot_go_on(schedule, flags, run_script):
    flags = f"{flags} --lr-schedule {schedule}"
    assert run_script(train, flags)[0] == 0
    code, _, error = run_script(train, f"{flags} --epochs 6 --resume")
    assert code == 1 and error.count("\n") == 1
    assert "--epochs was 3, is 6 now" in error and "rates so far would have been others" in error
    assert told(TREE_FOLDER)["epochs"] == 3
    code, _, error = run_script(train, f"{flags} --epochs 60 --resume --lr-schedule multipledecay")
    assert code == 1 and "--lr-schedule was" in error and "--epochs was 3, is 60 now" in error


# ---------------------------------------------------------------------------------------------
# --resume RUN_FOLDER
# ---------------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_folder_alone(flags, run_script, monkeypatch, tmp_path):
    flags = f"{flags} --train-mode pgd_train --optimizer adamw --weight-decay 0.01 --restarts 2"
    flags += " --epsilon 6/255 --neural-collapse --mean 0.5 0.4 0.3 --std 0.2 0.3 0.4"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    with dying_after_the_second_checkpoint(monkeypatch):
        assert run_script(train, flags)[0] == 130
    [folder] = Path("models").rglob("seed1")
    before = told(folder)
    moved = folder.rename(tmp_path / "anywhere")
    code, output, error = run_script(train, f"--resume {moved}")
    assert code == 0 and "resuming at epoch" in output, error
    [whole] = Path("whole").rglob("seed1")
    assert_equal_runs(moved, whole)
    assert told(moved) == before | {"resume": "last"}
    code, output, _ = run_script(train, f"--resume {moved}/")
    assert code == 0 and "is finished" in output
    assert not list(Path("models").rglob("*.pth"))


def test_what_is_given_beside_the_folder_is_refused_in_one_message(flags, run_script):
    assert run_script(train, f"{flags} --lr-schedule constant")[0] == 0
    command = f"--resume {TREE_FOLDER}"
    code, _, error = run_script(
        train, f"{command} --seed 2 --weight-decay 0 --epsilon 4 --train-mode pgd_train"
    )
    assert code == 1 and error.count("\n") == 1
    for words in (
        "--epsilon was 8.0, is 4.0 now",
        "--seed was 1, is 2 now",
        "--train-mode was std_train, is pgd_train now",
        "--weight-decay was 0.0005, is 0.0 now",
    ):
        assert words in error
    code, _, error = run_script(train, f"{command} --epochs 4 --eval-batch-size 2")
    assert code == 0 and len(rows(TREE_FOLDER / "history.csv")) == 4, error


def test_a_folder_of_an_older_version_or_another_machine_goes_on(flags, run_script):
    flags = f"{flags} --train-mode pgd_train_TRADES --bn batch"
    assert run_script(train, flags)[0] == 0
    folder = tree_folder("pgd_train_TRADES_batch")
    new = ("bn", "run_name", "model_args", "weight_decay", "momentum", "nesterov", "init")
    older = {name: value for name, value in told(folder).items() if name not in new}
    older |= {"device": "cuda:99", "cuda_graph": True}
    (folder / "args.json").write_text(json.dumps(older))
    code, output, error = run_script(train, f"--resume {folder}")
    assert code == 0 and "is finished" in output, error


@pytest.mark.parametrize(
    ("told", "given", "asked"),
    (
        ({"cuda_graph": False}, "", (False, False)),  # of before --no-cuda-graph: as by default
        ({"cuda_graph": False, "no_cuda_graph": True}, "", (False, True)),
        ({"cuda_graph": True}, "", (True, False)),
        ({"cuda_graph": True}, "--no-cuda-graph", (False, True)),
        ({"no_cuda_graph": True}, "--cuda-graph", (True, False)),
    ),
)
def test_a_run_goes_on_with_its_cuda_graphs_or_those_that_are_asked_for(
    told, given, asked, tmp_path, monkeypatch
):
    monkeypatch.setattr("robust_nc.flags.select_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr("robust_nc.going_on.select_device", lambda name: torch.device("cuda", 0))
    (tmp_path / "args.json").write_text(json.dumps({"dataset": "digits"} | told))
    settings = train.parse_args(["--resume", str(tmp_path), *given.split()])
    assert (settings.cuda_graph, settings.no_cuda_graph) == asked


@pytest.mark.parametrize(
    ("content", "words"),
    ((None, "the folder of a run"), ("{", "args.json"), ('{"dataset": "moon"}', "moon")),
)
def test_a_folder_that_is_no_run_is_refused_in_one_line(content, words, run_script, tmp_path):
    (tmp_path / "run").mkdir()
    if content:
        (tmp_path / "run/args.json").write_text(content)
    code, _, error = run_script(train, "--resume run")
    assert code == (1 if content else 2) and words in error and error.count("\n") == 1


# ---------------------------------------------------------------------------------------------
# --run-name, --init, --model-args, the optimiser
# ---------------------------------------------------------------------------------------------


def test_runs_are_set_apart_by_a_name(flags, run_script):
    assert run_script(train, f"{flags} --epochs 1")[0] == 0
    code, _, error = run_script(train, f"{flags} --epochs 1 --weight-decay 0")
    assert code == 1 and "--weight-decay was 0.0005, is 0.0 now" in error
    assert "--run-name NAME" in error and error.count("\n") == 1
    code, _, error = run_script(train, f"{flags} --epochs 1 --weight-decay 0 --resume")
    assert code == 1 and "--run-name NAME" in error
    assert run_script(train, f"{flags} --epochs 1 --weight-decay 0 --run-name no_wd-0.1")[0] == 0
    assert TREE_FOLDER.with_name("seed1_no_wd-0.1").joinpath("model_0.pth").exists()
    sweep = flags.replace(" --batch-size 4", "") + " --epochs 1 --neural-collapse"
    code, output, error = run_script(eval_script, f"{sweep} --run-name no_wd-0.1")
    assert code == 0 and "seed1_no_wd-0.1/results" in output, error
    named = f"{flags} --epochs 1 --weight-decay 0 --run-name no_wd-0.1 --seed 2"
    assert run_script(train, named)[0] == 0
    for _ in range(2):
        runs = [read_run(path) for path in sorted(TREE_FOLDER.parent.glob("seed*"))]
        groups = [[(run.seed, run.path.name) for run in group.runs] for group in group_runs(runs)]
        assert groups == [[(1, "seed1")], [(1, "seed1_no_wd-0.1"), (2, "seed2_no_wd-0.1")]]
        for path in TREE_FOLDER.parent.glob("seed*/args.json"):
            path.unlink()  # their paths tell it as well


def test_training_starts_from_other_weights(flags, run_script, monkeypatch, tmp_path):
    flags = f"{flags} --lr-schedule constant"
    assert run_script(train, f"{flags} --models-dir first")[0] == 0
    [first] = Path("first").rglob("model_2.pth")
    start = tmp_path / "start.pth"
    start.write_bytes(first.read_bytes())
    seen, update = [], modes.update

    def keep(optimizer, loss):
        if not seen:
            seen.append([weight.clone() for weight in optimizer.param_groups[0]["params"]])
        return update(optimizer, loss)

    monkeypatch.setattr(modes, "update", keep)
    code, output, error = run_script(train, f"{flags} --init {start} --epochs 2")
    assert code == 0 and f"the weights are those of {start}" in output, error
    expected = torch.load(start, weights_only=True)["state_dict"]
    weights = [v for n, v in expected.items() if "running" not in n and "num_batches" not in n]
    assert all(torch.equal(a, b) for a, b in zip(seen[0], weights, strict=True))
    assert told(TREE_FOLDER)["init_sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    moved = start.rename(tmp_path / "moved.pth")  # the same content
    code, output, error = run_script(train, f"{flags} --init {moved} --epochs 2 --resume")
    assert code == 0 and "is finished" in output, error
    other = torch.load(moved, weights_only=True)
    torch.save(other | {"epoch": 7}, moved)
    code, _, error = run_script(train, f"{flags} --init {moved} --epochs 2 --resume")
    assert code == 1 and "moved.pth is another file than it was" in error
    moved.unlink()  # what was started goes on without it
    assert run_script(train, f"--resume {TREE_FOLDER} --epochs 3")[0] == 0


def test_the_weights_to_start_from_are_chosen_by_their_key(flags, run_script):
    assert run_script(train, f"{flags} --models-dir first --epochs 2")[0] == 0
    early, late = (
        torch.load(next(Path("first").rglob(f"model_{epoch}.pth")), weights_only=True)["state_dict"]
        for epoch in (0, 1)
    )
    torch.save({"state_dict": early, "ema_state_dict": late}, "two.pth")
    torch.save(late, "late.pth")
    start = f"{flags} --epochs 1 --init"
    code, output, _ = run_script(train, f"{start} two.pth --models-dir default")
    assert code == 0 and "those of state_dict are used, --weights-key chooses others" in output
    keyed = f"{start} two.pth --weights-key ema_state_dict --models-dir ema"
    code, output, error = run_script(train, keyed)
    assert code == 0 and "those of ema_state_dict are used" in output, error
    assert run_script(train, f"{start} late.pth --models-dir late")[0] == 0
    losses = {
        name: rows(next(Path(name).rglob("history.csv")))[0]["train_loss"]
        for name in ("default", "ema", "late")
    }
    assert losses["ema"] == losses["late"] != losses["default"]
    code, _, error = run_script(train, f"{start} two.pth --models-dir ema --resume")
    assert code == 1 and "--weights-key was ema_state_dict, is None now" in error
    code, _, error = run_script(train, f"{start} two.pth --weights-key best --models-dir best")
    assert code == 1 and "they are: state_dict, ema_state_dict" in error


def test_a_folder_that_is_missing_is_told_with_the_runs_that_are_there(flags, run_script):
    assert run_script(train, f"{flags} --epochs 1")[0] == 0
    assert run_script(train, f"{flags} --epochs 1 --models-dir other")[0] == 0
    for missing, there in (
        (TREE_FOLDER.with_name("seed2"), TREE_FOLDER),
        ("models/cifr/vgg11bn", TREE_FOLDER),  # beside the default's, at no such depth
        ("nowhere", TREE_FOLDER),
        (Path("other", *TREE_FOLDER.parts[1:]).with_name("seed7"), "other/"),
        (TREE_FOLDER / "results", f"it lies in the run {TREE_FOLDER}"),
        (TREE_FOLDER / "model_0.pth", f"it lies in the run {TREE_FOLDER}"),
    ):
        for script, words in ((train, f"--resume {missing}"), (eval_script, f"{missing} --ncc")):
            code, _, error = run_script(script, words)
            assert code in (1, 2) and error.count("\n") == 1
            assert "the run" in error and str(there) in error, (missing, error)


@pytest.mark.parametrize("content", (b"", b"no weights"))
def test_bad_weights_to_start_from_delete_no_run(content, flags, run_script, tmp_path):
    assert run_script(train, flags)[0] == 0
    before = read_resume(TREE_FOLDER)["epoch"]
    (tmp_path / "bad.pth").write_bytes(content)
    code, _, error = run_script(train, f"{flags} --init bad.pth --overwrite")
    assert code == 1 and "bad.pth" in error and error.count("\n") == 1
    assert read_resume(TREE_FOLDER)["epoch"] == before and (TREE_FOLDER / "model_2.pth").exists()


FACTORY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes, img_size, patch_size):
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, patch_size, stride=patch_size)
        self.position = torch.nn.Parameter(torch.zeros(8, (img_size // patch_size) ** 2))
        self.head = torch.nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(torch.relu(self.patch(x).flatten(2) + self.position).mean(2))

def create_model(model_name, pretrained=True, **kwargs):
    assert model_name == "tiny" and pretrained is False
    return Net(**kwargs)
"""


def test_a_factory_of_other_packages_gets_its_arguments(
    image_tree, run_script, tmp_path, monkeypatch
):
    (tmp_path / "a_hub.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    flags = f"--dataset folder --data-dir {image_tree} {FLAGS} --train-mode pgd_train"
    flags += " --model a_hub:create_model --image-size 24 --epochs 1"
    args = "--model-args model_name=tiny img_size=24 patch_size=4 pretrained=false"
    code, _, error = run_script(train, flags)
    assert code == 1 and "model_name" in error and error.count("\n") == 1
    code, _, error = run_script(train, f"{flags} {args}")
    assert code == 0, error
    sweep = flags.replace(" --batch-size 4", "") + " --neural-collapse --layerwise"
    code, output, error = run_script(eval_script, sweep)  # with those of the run
    assert code == 0, error
    code, output, error = run_script(eval_script, f"{sweep} {args}")
    assert code == 0 and "1 done before" in output, error
    code, _, error = run_script(eval_script, f"{sweep} {args.replace('=4', '=8')}")
    assert code == 1 and "--model-args was" in error
    code, output, error = run_script(train, f"{flags} {args.replace('false', 'False')} --resume")
    assert code == 0 and "is finished" in output, error
    code, _, error = run_script(train, f"{flags} {args.replace('=4', '=8')} --resume")
    assert code == 1 and "patch_size=4" in error and "patch_size=8" in error


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    (
        ("", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}),
        (
            "--momentum 0.5 --nesterov --weight-decay 1e-3",
            torch.optim.SGD,
            {"momentum": 0.5, "weight_decay": 1e-3, "nesterov": True},
        ),
        ("--optimizer adam --weight-decay 0", torch.optim.Adam, {"weight_decay": 0}),
        ("--optimizer adamw --weight-decay 0.05", torch.optim.AdamW, {"weight_decay": 0.05}),
    ),
)
def test_the_optimiser_is_the_one_that_the_flags_name(
    words, kind, expected, flags, run_script, monkeypatch
):
    made = []
    original = train.build.make_optimizer
    monkeypatch.setattr(
        train.build, "make_optimizer", lambda *a: made.append(original(*a)) or made[-1]
    )
    with dying_after_the_second_checkpoint(monkeypatch):
        assert run_script(train, f"{flags} {words}")[0] == 130
    assert run_script(train, f"{flags} {words} --resume")[0] == 0
    assert run_script(train, f"{flags} {words} --models-dir whole")[0] == 0
    assert_equal_runs(TREE_FOLDER, WHOLE)
    assert type(made[0]) is kind
    assert {name: made[0].defaults[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "flag"),
    (
        ("--nesterov --optimizer adamw", "--nesterov: --optimizer adamw makes no use of it"),
        ("--nesterov --momentum 0", "--nesterov needs a --momentum above 0"),
        ("--lr-milestones 0.5 --lr-schedule cosine", "--lr-milestones: --lr-schedule cosine"),
        ("--lr-gamma 0.5", "--lr-gamma: --lr-schedule piecewise makes no use of it"),
        ("--model vgg11bn --model-args depth=4", "--model-args: is for --model PACKAGE"),
        ("--dataset folder --image-size 64", "images of 32 or 160 pixels, not 64 (--image-size)"),
    ),
)
def test_flags_without_a_use_are_refused(words, flag, run_script):
    code, _, error = run_script(train, words)
    assert code == 2 and flag in error and error.count("\n") == 1
