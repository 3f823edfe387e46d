"""What is compared in claims and reports: seeds alone are averaged, and like is set beside like."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from test_plot import filled
from test_reproduce import make_run

import reproduce
from robust_nc.reports import plan, report
from robust_nc.reports.claims import judge
from robust_nc.reports.groups import group_runs
from robust_nc.reports.readings import AT, FROZEN, ST
from robust_nc.reports.runs import copy_runs, read_runs
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import CentreRecord
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import Means, flag

FALL = "AT: NC1 of clean images, first epoch over last"
OVER_AT = "TRADES (frozen): NC1 of clean training images over AT's, last epoch of both"
PGD_OVER_AT = "TRADES (frozen): NC1 of PGD on the checkpoint over AT's, last epoch of both"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_with(mode, seed=1, place=None, swept=None, flags=None, **metrics):
    """A finished run with other flags of its training and of its sweep; in another models-dir."""
    path = make_run(mode, seed, **metrics)
    told = json.loads((path / "args.json").read_text()) | (flags or {})
    (path / "args.json").write_text(json.dumps(told))
    if swept is not None:
        (path / "results/eval_args.json").write_text(json.dumps({"epsilon": 8.0} | swept))
        leave_to_eval_args(path / "results/metrics.csv")
    if place:
        target = Path(place, *path.parts[1:])
        shutil.copytree(path, target)
        shutil.rmtree(path)
        return target
    return path


def leave_to_eval_args(table):
    """As versions wrote it whose rows did not tell the attack and the noise."""
    lines = list(csv.DictReader(table.read_text().splitlines()))
    names = [n for n in lines[0] if n not in ("step_size", "steps", "restarts", "noise")]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def values_of(runs, text):
    """differs -> seed -> value, of the findings of one criterion."""
    return {f.differs: f.values for f in judge(runs) if f.criterion.text == text}


@pytest.mark.parametrize(
    ("flag", "former", "now", "word"),
    (
        ("lr_max", 0.1, 0.01, "lr-max"),
        ("optimizer", "sgd", "adam", "optimizer"),
        ("batch_size", 128, 64, "batch-size"),
        ("attack_iters", 10, 1, "attack-iters"),
        ("lr_schedule", "piecewise", "cosine", "lr-schedule"),
        ("mean", [0.5], [0.0], "mean"),
    ),
)
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(flag, former, now, word):
    paths = [
        run_with(AT, 1, flags={flag: former}, clean__nc1=(80.0, 2.0)),
        run_with(AT, 2, flags={flag: now}, clean__nc1=(80.0, 20.0)),
        run_with(AT, 3, flags={flag: former}, clean__nc1=(80.0, 4.0)),
    ]
    runs = read_runs(paths)
    found = values_of(runs, FALL)
    assert list(found.values()) == [{1: 40.0, 3: 20.0}, {2: 4.0}]
    assert all(differs.startswith(f"{word} ") for differs in found)
    made = [report.finding_row(f) for f in judge(runs) if f.criterion.text == FALL]
    assert [row["differs"] for row in made] == list(found)
    words = report.findings_in_words(judge(runs))
    lines = [line for line in words.splitlines() if line.startswith(f"| {FALL}")]
    assert len(lines) == 2 and all(
        differs in line for differs, line in zip(found, lines, strict=True)
    )
    summary = report.summary_in_words(runs).splitlines()
    told = [line.split(" | ")[1:3] for line in summary if "train, clean" in line]
    assert [seeds for _, seeds in told] == ["2", "1"]
    assert all(word in where for where, _ in told)


def test_runs_of_other_numbers_of_epochs_are_no_seeds_of_one_another():
    short = run_with(AT, 2, flags={"epochs": 5}, epochs=(0, 4), clean__nc1=(80.0, 20.0))
    found = values_of(read_runs([run_with(AT, 1, clean__nc1=(80.0, 2.0)), short]), FALL)
    assert found == {"epochs 10": {1: 40.0}, "epochs 5": {2: 4.0}}


def test_seeds_alone_say_nothing_of_differences():
    runs = read_runs([run_with(AT, 1), run_with(AT, 2)])
    assert list(values_of(runs, FALL)) == [""]
    assert not any("differs" in report.finding_row(f) for f in judge(runs))


@pytest.mark.parametrize(("whose", "alike"), ((2, True), (1, False)))
def test_runs_that_start_from_weights_of_their_own_seed_are_seeds_of_one_another(whose, alike):
    started = [
        run_with(AT, seed, flags={"init": f"m/seed{of_seed}/model_4.pth", "init_sha256": f"{seed}"})
        for seed, of_seed in ((1, 1), (2, whose))
    ]
    assert len(group_runs(read_runs(started))) == (1 if alike else 2)


def test_modes_of_a_study_may_be_trained_in_other_ways():
    at = run_with(AT, flags={"epochs": 10, "lr_max": 0.05}, clean__nc1=(80.0, 2.0))
    trades = run_with(FROZEN, flags={"epochs": 10, "lr_max": 0.1}, clean__nc1=(80.0, 4.0))
    assert values_of(read_runs([at, trades]), OVER_AT) == {"": {1: 2.0}}


def test_each_way_of_one_mode_is_compared_with_its_like_of_the_other():
    slow, fast = ({"lr_max": rate} for rate in (0.01, 0.1))
    runs = read_runs(
        [
            run_with(AT, 1, "slow", flags=slow, clean__nc1=(80.0, 2.0)),
            run_with(AT, 1, "fast", flags=fast, clean__nc1=(80.0, 1.0)),
            run_with(FROZEN, 1, "slow", flags=slow, clean__nc1=(80.0, 6.0)),
            run_with(FROZEN, 1, "fast", flags=fast, clean__nc1=(80.0, 8.0)),
        ]
    )
    assert values_of(runs, OVER_AT) == {
        "AT: lr-max 0.01; TRADES (frozen): lr-max 0.01": {1: 3.0},
        "AT: lr-max 0.1; TRADES (frozen): lr-max 0.1": {1: 8.0},
    }
    # A single way of the other mode is compared with the one that is like it.
    assert values_of(runs[:3], OVER_AT) == {"AT: lr-max 0.01": {1: 3.0}}
    # Where neither is, with both, and the finding says with which.
    own = read_runs([run_with(FROZEN, flags={"lr_max": 0.3}, clean__nc1=(80.0, 4.0))])
    assert values_of([*runs[:2], *own], OVER_AT) == {
        "AT: lr-max 0.01": {1: 2.0},
        "AT: lr-max 0.1": {1: 4.0},
    }


def test_numbers_of_other_numbers_of_images_are_not_compared():
    at = run_with(AT, clean__nc1=(80.0, 2.0))
    few = run_with(FROZEN, clean__nc1=(80.0, 4.0), clean__images=(40, 40), pgd__images=(40, 40))
    assert values_of(read_runs([at, few]), OVER_AT) == {"": {}}
    assert values_of(read_runs([at, few]), PGD_OVER_AT) == {"": {}}
    untold = run_with(FROZEN, clean__nc1=(80.0, 4.0), clean__images=(0, 0))
    assert values_of(read_runs([at, untold]), OVER_AT) == {"": {1: 2.0}}
    # Nor is the first epoch with the last, or one kind of images with another.
    grown = run_with(ST, clean__nc1=(80.0, 2.0), clean__images=(40, 100))
    found = {f.criterion.text: f.values for f in judge(read_runs([grown]))}
    assert found["ST: NC1, first epoch over last"] == {}
    assert found["ST: NC1 under PGD over clean NC1"] == {1: 0.25}


@pytest.mark.parametrize(
    ("mine", "other"),
    (
        ({"attack_iters": 10}, {"attack_iters": 50}),
        ({"step_sizes": {"8": 2.0}}, {"step_sizes": {"8": 1.0}}),
        ({"restarts": 1}, {"restarts": 5}),
    ),
)
def test_modes_that_were_attacked_in_other_ways_are_not_compared(mine, other, caplog):
    caplog.set_level("INFO")
    at = run_with(AT, swept=mine, clean__nc1=(80.0, 2.0))
    trades = run_with(FROZEN, swept=other, clean__nc1=(80.0, 4.0))
    found = {f.criterion.text: f.values for f in judge(read_runs([at, trades]))}
    assert found[PGD_OVER_AT] == found[OVER_AT] == {}
    assert found[FALL] == {1: 40.0}
    trades = run_with(FROZEN, swept=mine, clean__nc1=(80.0, 4.0))
    assert values_of(read_runs([at, trades]), PGD_OVER_AT) == {"": {1: 1.0}}


def test_modes_on_other_images_of_one_name_are_not_compared():
    at = run_with(AT, flags={"train_digest": "a"}, clean__nc1=(80.0, 2.0))
    trades = run_with(FROZEN, flags={"train_digest": "b"}, clean__nc1=(80.0, 4.0))
    assert values_of(read_runs([at, trades]), OVER_AT) == {"": {}}


def test_nearest_centres_that_a_weak_attack_left_too_high_are_not_measured():
    paths = {attempts: run_with(ST, seed) for seed, attempts in ((1, 0), (2, 5))}
    for attempts, path in paths.items():
        key = {"epoch": 9, "split": "test", "means": "clean", "layer": "features", "epsilon": 8.0}
        row = filled(CentreRecord, 0.05, **key, input="adaptive", attempts=attempts)
        RunFolder(path).append([row])
    name = "ST: nearest-centre test accuracy under the attack on it"
    runs = read_runs(paths.values())
    assert values_of(runs, name) == {"": {2: 0.05}}
    assert "| 1 | test, attack on this classifier | 0.050 |" in report.centres_in_words(runs)


def test_runs_of_one_path_have_folders_of_their_own_in_the_evidence():
    paths = [run_with(AT, 1, place, flags={"lr_max": rate}) for place, rate in (("a", 1), ("b", 2))]
    key = {"index": 0, "features": 8}
    RunFolder(paths[0]).append(
        [filled(LayerRecord, 0.5, **key, epoch=9, split="train", input="clean", layer="b0")]
    )
    for _ in range(2):
        copy_runs(read_runs(paths), Path("out"))
        copies = sorted(Path("out").rglob("args.json"))
        assert [path.parent.name for path in copies] == ["seed1", "seed1_2"]
        assert [json.loads(path.read_text())["lr_max"] for path in copies] == [1, 2]
        assert [path.parent.parent.name for path in Path("out").rglob("layers.csv")] == ["seed1"]
    # What another run left in the folder is gone with it.
    copy_runs(read_runs(paths[1:]), Path("out"))
    assert json.loads(copies[0].read_text())["lr_max"] == 2
    assert not list(Path("out").rglob("layers.csv"))


def test_a_copy_never_overwrites_a_run_that_is_still_to_be_copied():
    copy_runs(read_runs([run_with(AT, 1, flags={"lr_max": 1})]), Path("out"))
    [copied] = [path.parent for path in Path("out").rglob("args.json")]
    before = (copied / "args.json").read_bytes()
    other = run_with(AT, 1, "b", flags={"lr_max": 2})
    copy_runs(read_runs([other, copied]), Path("out"))
    assert (copied / "args.json").read_bytes() == before


def test_a_run_in_a_folder_of_any_name_is_copied_below_the_report():
    shutil.copytree(run_with(AT), "mine")
    before = Path("mine/args.json").read_bytes()
    copy_runs(read_runs([Path("mine")]), Path("out"))
    [copied] = Path("out").rglob("args.json")
    assert copied.parent == Path("out/cifar/vgg11bn/l_inf/eps8.0/pgd_train/seed1")
    assert Path("mine/args.json").read_bytes() == before


def test_the_published_numbers_stand_beside_seeds_of_one_run(run_script):
    paths = [run_with(ST, seed, flags={"lr_max": rate}) for seed, rate in ((1, 0.1), (2, 0.01))]
    flags = f"--published st --runs {paths[0]} {paths[1]}"
    code, _, error = run_script(reproduce, flags)
    assert code == 1 and "differs from" in error and error.count("\n") == 1


PLANNED = {"optimizer": "sgd", "attack_iters": 10, "lr_max": 0.1, "epochs": 2}


@pytest.mark.parametrize(
    ("trained", "swept", "left_out"),
    (
        ({}, {}, None),
        ({"precision": "tf32", "neural_collapse": False, "device": "cuda"}, {}, None),
        ({"optimizer": "adam"}, {}, "--optimizer was adam, is sgd now"),
        ({"attack_iters": 1}, {}, "--attack-iters was 1, is 10 now"),
        ({"pgd_alpha": 8.0}, {}, "--pgd-alpha was 8.0"),
        ({"batch_size": 8}, {}, "--batch-size was 8, is 128 now"),
        ({"restarts": 3}, {}, "--restarts was 3"),
        ({"trades_beta": 1.0}, {}, None),  # which nothing reads under AT
        ({"precision": "bf16"}, {}, "--precision was bf16"),
        ({"mean": [0.0], "data_mean": [0.3]}, {}, "--mean was [0.0]"),
        ({}, {"attack_iters": 1}, "swept with other flags: --attack-iters was 1"),
        ({}, {"epsilon": 8.0, "step_sizes": {"8": 1.0}}, "swept with another attack"),
        ({}, {"equal_n": True}, "swept with other flags: --equal-n was True"),
    ),
)
def test_a_run_of_the_plan_has_all_flags_as_planned_or_by_default(trained, swept, left_out):
    args = reproduce.parse_args(["--scale", "full", "--seeds", "1", "--epochs", "2"])
    planned = next(run for run in plan.plan(args, None) if run.experiment.mode == AT)
    told = {"dataset": "cifar", "model": "vgg11bn", "norm": "l_inf", "epsilon": 8.0, "seed": 1}
    told |= PLANNED | {"train_mode": AT, "pgd_alpha": 2.0} | trained
    differing = plan.other_than_planned(planned, told, swept)
    assert differing is None if left_out is None else left_out in differing


@pytest.mark.parametrize("name", ("SWEEP_FLAGS", "TRAIN_FLAGS"))
def test_the_plan_knows_a_flag_that_is_added(name, monkeypatch):
    means = Means.MEASURE if name == "SWEEP_FLAGS" else Means.TRAIN
    row = flag("--new", means, default=3, former=None)
    monkeypatch.setattr(plan, name, (*getattr(plan, name), row))
    parser = plan.train_parser()
    if name == "TRAIN_FLAGS":
        parser.add_argument("--new", **row.options)
    monkeypatch.setattr(plan, "train_parser", lambda: parser)
    args = reproduce.parse_args(["--scale", "full", "--seeds", "1"])
    planned = plan.plan(args, None)[0]
    told = {"dataset": "cifar", "train_mode": ST, "epochs": 400}

    def differing(**new):
        swept = {"epsilon": 8.0, "pgd_alpha": 2.0}
        if name == "SWEEP_FLAGS":
            return plan.other_than_planned(planned, told, swept | new)
        return plan.other_than_planned(planned, told | new, swept)

    assert differing(new=3) is None
    assert "--new was 4, is 3 now" in differing(new=4)
    assert "--new was None, is 3 now" in differing()  # of before there was the flag


def test_a_seed_that_was_also_swept_with_a_stronger_attack_stays_a_seed():
    """What is shown are the rows of the run's own attack, whatever the last sweep was."""
    paths = [run_with(ST, seed, flags={"attack_iters": 10}) for seed in (1, 2)]
    table = paths[1] / "results/metrics.csv"
    lines = list(csv.DictReader(table.read_text().splitlines()))
    stronger = [row | {"steps": "50", "accuracy": "0.0"} for row in lines if row["input"] == "pgd"]
    with table.open("a", newline="") as file:
        csv.DictWriter(file, lines[0]).writerows(stronger)
    told = {"epsilon": 8.0, "attack_iters": 50}
    (paths[1] / "results/eval_args.json").write_text(json.dumps(told))
    (paths[0] / "results/eval_args.json").write_text(json.dumps({"epsilon": 8.0}))
    runs = read_runs(paths)
    assert len(runs[1].folder.rows(type(runs[1].records[0]))) > len(runs[1].records)
    [group] = group_runs(runs)
    assert [run.seed for run in group.runs] == [1, 2]
