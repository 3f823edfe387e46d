"""reproduce.py and the claims: the commands it runs, the report it writes, verdicts by hand."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from test_plot import filled
from test_scripts import rows

import eval as eval_script
import plot
import reproduce
import train
from robust_nc import build
from robust_nc.networks.architectures import build_model
from robust_nc.reports import claims, plan, report
from robust_nc.reports.bounds import keeps
from robust_nc.reports.claims import judge
from robust_nc.reports.criteria import CRITERIA
from robust_nc.reports.criterion import Criterion, Outcome
from robust_nc.reports.plan import CLAIMS_OF
from robust_nc.reports.readings import AT, AT_FROZEN, FROZEN, ST, Formula, NotRun, Study, last
from robust_nc.reports.runs import read_runs
from robust_nc.reports.setting import Setting
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import CentreRecord, Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import select_epochs
from robust_nc.training.modes import MODES

OWN = "share nearest to their own clean training class mean"
SCRIPTS = {"train.py": train, "eval.py": eval_script, "plot.py": plot}


def make_run(mode, seed=1, epochs=(0, 9), model="vgg11bn", limit_train=None, **metrics):
    """A finished run of ten epochs; `metrics` hold (input, metric, split) -> values by epoch."""
    train_mode = mode.removesuffix("_batch")
    path = Path("models/cifar") / model / "l_inf" / "eps8.0" / mode / f"seed{seed}"
    run = RunFolder(path, standard=mode == ST)
    run.open()
    told = {"dataset": "cifar", "model": model, "norm": "l_inf", "epsilon": 8.0}
    told |= {"train_mode": train_mode, "seed": seed, "epochs": 10, "precision": "fp32"}
    told |= {"trades_bn": "batch" if mode != train_mode else "frozen", "data_dir": "/private"}
    told |= {"limit_train": limit_train}
    run.args_file.write_text(json.dumps(told))
    kinds = ["clean", "pgd", "gaussian", "sign", "targeted", "seen"]
    records = []
    for place, epoch in enumerate(epochs):
        for name in kinds:
            for split in ("train", "test"):
                given = {
                    k.split("__")[1]: v for k, v in metrics.items() if k.startswith(name + "_")
                }
                values = {k: v[place] for k, v in given.items()}
                values["nc1_papyan"] = values.get("nc1", 0.5) / 10
                epsilon = 8.0 if name in ("pgd", "targeted", "seen") else math.nan
                source = "train" if name == "seen" else "eval"
                key = {"source": source, "epoch": epoch, "split": split, "input": name}
                records.append(filled(Record, 0.5, **key, epsilon=epsilon, **values))
    run.add(records)
    return path


def findings(*paths, claim=None):
    found = judge(read_runs(paths), [claim] if claim else claims.CLAIMS)
    return {finding.criterion.text: finding for finding in found}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_claim_has_criteria_and_every_bound_can_be_read():
    assert {criterion.claim for criterion in CRITERIA} == set(claims.CLAIMS) == set(range(1, 8))
    assert len({criterion.text for criterion in CRITERIA}) == len(CRITERIA)
    for criterion in CRITERIA:
        bound = float(criterion.bound.split()[1])
        step = 1e-9 if criterion.bound.startswith(">=") else -1e-9
        assert keeps(criterion.bound, bound) and keeps(criterion.bound, bound + step)
        assert not keeps(criterion.bound, bound - 2 * step)


def test_every_criterion_names_the_modes_that_it_is_about():
    for criterion in CRITERIA:
        assert criterion.modes and criterion.modes <= MODES.keys()
    over_standard = next(c for c in CRITERIA if c.text == "AT: the same angle over ST's")
    assert over_standard.modes == {AT, ST}


def test_a_fall_is_first_over_last_and_holds_only_if_every_seed_does(here):
    fallen = make_run(ST, 1, clean__nc1=(80.0, 2.0), clean__accuracy=(0.3, 1.0))
    not_fallen = make_run(ST, 2, clean__nc1=(80.0, 20.0), clean__accuracy=(0.3, 1.0))
    one = findings(fallen, claim=1)["ST: NC1, first epoch over last"]
    assert (one.values, one.verdict) == ({1: 40.0}, "holds")
    assert math.isnan(one.std)
    both = findings(fallen, not_fallen, claim=1)
    fall = both["ST: NC1, first epoch over last"]
    assert (fall.values, fall.mean) == ({1: 40.0, 2: 4.0}, 22.0)
    assert fall.std == pytest.approx(36 / math.sqrt(2))
    assert fall.verdict == "does not hold (1 of 2 seeds)"
    assert both["ST: NC4"].verdict == "does not hold"  # 0.5 of both


def test_what_is_missing_is_not_measured(here):
    found = findings(make_run(ST))
    assert found["AT: accuracy on training-time adversarial images"].verdict == "not measured"
    assert found["AT: the same, less ST's"].values == {}
    unfinished = findings(make_run(ST, 3, epochs=(0, 4)))
    assert unfinished["ST: NC4"].verdict == "not measured"  # of the last epoch


def test_only_a_mode_that_was_not_run_is_no_number(here):
    [run] = read_runs([make_run(ST)])
    study = Study({ST: run})
    missing = Criterion(1, "AT's", last(AT, "clean", "nc1"), ">= 1")
    assert not missing.outcome(study).known
    for value, error in (
        (last("pgd_trian", "clean", "nc1"), KeyError),  # no such mode
        # Faults of the criterion.
        (Formula((ST,), lambda run: run.series("clean", "nc1")[7]), KeyError),
        (last(ST, "clean", "nc5"), AttributeError),
    ):
        with pytest.raises(error):
            Criterion(1, "faulty", value, ">= 1").outcome(study)
    with pytest.raises(NotRun, match="AT"):
        study[AT]


def test_runs_on_other_numbers_of_images_are_not_compared(here):
    name = "TRADES (frozen): NC1 of clean training images over AT's, last epoch of both"
    at = make_run(AT, clean__nc1=(80.0, 2.0))
    for limit, expected in ((None, [{1: 2.0}]), (1000, [{}, {}])):
        trades = make_run(FROZEN, clean__nc1=(80.0, 4.0), limit_train=limit)
        found = judge(read_runs([at, trades]))
        assert [f.values for f in found if f.criterion.text == name] == expected


def test_the_words_tell_what_was_measured_and_once_what_was_not(here):
    paths = [make_run(ST, clean__nc1=(80.0, 2.0)), make_run(AT, model="PreActResNet18")]
    lines = report.findings_in_words(judge(read_runs(paths))).splitlines()
    fall = [line for line in lines if line.startswith("| ST: NC1, first epoch over last")]
    assert [line.split(" | ")[1] for line in fall] == ["cifar, vgg11bn, l_inf, epsilon 8"]
    [nowhere] = [line for line in lines if line.startswith("| AT: the same, less ST's")]
    assert nowhere.endswith("| - | >= 0.1 | - | - | not measured |")


def test_noise_and_attack_are_compared_with_clean(here):
    found = findings(
        make_run(
            ST,
            clean__accuracy=(0.3, 1.0),
            clean__nc1=(80.0, 2.0),
            pgd__nc1=(80.0, 150.0),
            pgd__accuracy=(0.0, 0.03),
            pgd__clean_angle=(0.4, 1.2),
            gaussian__nc1=(80.0, 3.2),
            targeted__nc1=(9.0, 10.0),
            clean__nc2_angle_activation=(0.6, 0.2),
            pgd__nc2_angle_activation=(0.6, 0.5),
            clean__nc3=(0.9, 0.25),
            pgd__nc3=(2.0, 1.0),
            pgd__nc4=(0.9, 0.8),
        )
    )
    values = {text: finding.values.get(1) for text, finding in found.items()}
    assert values["ST: NC1 under PGD over clean NC1"] == 75
    assert values["ST: NC1 under Gaussian noise over clean NC1"] == pytest.approx(1.6)
    assert found["ST: NC1 under Gaussian noise over clean NC1"].verdict == "does not hold"
    assert values["ST: NC1 under PGD over that of the targeted attack (target labels)"] == 15
    assert values["ST: angle between clean class means and those under PGD"] == 1.2
    assert values["ST: NC2 angle under PGD over clean NC2 angle"] == 2.5
    assert values["ST: NC3 under PGD over clean NC3"] == 4
    assert values["ST: NC4 under PGD"] == 0.8
    assert all(found[text].criterion.later for text in list(values) if "NC3 under" in text)


def test_at_falls_on_clean_and_on_seen_images(here):
    run = make_run(
        AT,
        clean__nc1=(100.0, 2.0),
        seen__nc1=(90.0, 3.0),
        pgd__nc1=(80.0, 4.0),
        clean__nc2_angle_activation=(0.8, 0.2),
        seen__nc2_angle_activation=(0.9, 0.3),
        clean__nc3=(1.0, 0.2),
        seen__nc3=(1.2, 0.3),
    )
    found = findings(run, claim=4)
    falls = {
        text.split(",")[0]: finding.values[1]
        for text, finding in found.items()
        if text.endswith("first epoch over last")
    }
    adversarial = "training-time adversarial images"
    assert falls == {
        "AT: NC1 of clean images": 50,
        f"AT: NC1 of {adversarial}": 30,
        "AT: NC1 of PGD on the checkpoint": 20,
        "AT: NC2 angle of clean images": pytest.approx(4),
        f"AT: NC2 angle of {adversarial}": pytest.approx(3),
        "AT: NC3 of clean images": pytest.approx(5),
        f"AT: NC3 of {adversarial}": pytest.approx(4),
    }


def test_trades_is_compared_with_at_at_equal_epochs(here):
    at = make_run(AT, clean__nc1=(100.0, 2.0), seen__nc1=(100.0, 4.0), pgd__nc1=(100.0, 5.0))
    trades = make_run(
        FROZEN, clean__nc1=(100.0, 16.0), seen__nc1=(100.0, 40.0), pgd__nc1=(100.0, 10.0)
    )
    found = findings(at, trades, claim=5)
    name = "TRADES (frozen): NC1 of"
    for images, ratio in (
        ("clean training images", 8),
        ("training-time adversarial images", 10),
        ("PGD on the checkpoint", 2),
    ):
        assert found[f"{name} {images} over AT's, last epoch of both"].values == {1: ratio}
    assert found[f"{name} clean training images fell less than tenfold"].values == {1: 6.25}


def test_layers_and_centres(here):
    for mode, accuracies, angles, robust in (
        (ST, (0.4, 0.3, 0.2, 0.05), (0.2, 0.3, 0.6, 1.0), 0.01),
        (AT, (0.2, 0.2, 0.2, 0.8), (0.1, 0.1, 0.1, 0.2), 0.4),
    ):
        run = RunFolder(make_run(mode))
        layers = [
            filled(
                LayerRecord,
                0.5,
                epoch=9,
                split=split,
                input=input,
                layer=f"b{index}",
                index=index,
                features=8,
                epsilon=8.0,
                centre_accuracy=shares[index] / (1 if split == "train" else 2),
                clean_angle=angles[index],
                target_centre_accuracy=0.5 if input == "targeted" else math.nan,
            )
            for split in ("train", "test")
            for index in range(4)
            for input, shares in (
                ("pgd", accuracies),
                ("clean", (0.5, 0.6, 0.8, 1.0)),
                ("targeted", (0.5, 0.4, 0.3, 0.2)),
            )
        ]
        centres = [
            filled(
                CentreRecord,
                0.5,
                epoch=9,
                split="test",
                means="clean",
                input="adaptive",
                layer="features",
                epsilon=8.0,
                ncc_accuracy=robust,
            )
        ]
        run.append(layers)
        run.append(centres)
    found = findings(*Path("models").glob("*/*/*/*/*/*"))
    assert {
        text: round(finding.values[1], 6)
        for text, finding in found.items()
        if finding.criterion.claim in (6, 7) and finding.values
    } == {
        "ST, PGD, training images: centre accuracy of the first half of the blocks, less the last "
        "one's": 0.3,
        "ST, PGD, test images: the same": 0.15,
        "ST, PGD: angle to the clean class means in the last block, less that of the first "
        "half": 0.75,
        "AT, PGD: the same angle in the last block": 0.2,
        "ST, PGD, training images: centre accuracy of the first half of the blocks over the clean "
        "one": round(0.35 / 0.55, 6),
        "ST: nearest-centre test accuracy under the attack on it": 0.01,
        "AT: the same, less ST's": 0.39,
    }
    [leap] = [f for text, f in found.items() if text.startswith("ST, targeted training images")]
    assert leap.values == {1: pytest.approx(0.3)}
    runs = read_runs(Path("models").glob("*/*/*/*/*/*"))
    blocks = report.blocks_in_words(runs)
    assert blocks.count("| images | seeds | `b0` | `b1` | `b2` | `b3` |") == 2
    assert f"| test, PGD: {OWN} | 1 | 0.200 | 0.150 | 0.100 | 0.025 |" in blocks.splitlines()
    centres = report.centres_in_words(runs).splitlines()[2:]
    robust = [line.split(" | ")[3:] for line in centres if line.startswith("| ST")]
    assert robust == [["test, attack on this classifier", "0.010", "0.500 |"]]
    words = report.summary_in_words(runs).splitlines()
    assert words[2].startswith("| AT | cifar, vgg11bn, l_inf, epsilon 8 | 1 | train, clean | 0.500")


def test_blocks_are_told_over_the_seeds_that_have_each_column(here):
    for seed, shares, number in ((1, math.nan, 0.2), (2, 0.4, 0.6)):
        run = RunFolder(make_run(ST, seed))
        key = {"epoch": 9, "split": "train", "input": "clean", "layer": "b0", "index": 0}
        run.append(
            [filled(LayerRecord, 0.5, **key, features=8, centre_accuracy=shares, nc1=number)]
        )
    for order in (1, -1):
        runs = read_runs(sorted(Path("models").glob("*/*/*/*/*/*")))[::order]
        lines = report.blocks_in_words(runs).splitlines()
        assert f"| train, clean: {OWN} | 1 | 0.400 |" in lines
        assert "| train, clean: NC1 | 2 | 0.4 ± 0.283 |" in lines


def test_radii_are_told_over_the_seeds_that_were_attacked_at_all_of_them(here):
    paths = [make_run(ST, seed) for seed in (1, 2, 3)]
    for seed, path in zip((1, 2), paths, strict=False):
        key = {"source": "eval", "epoch": 9, "split": "test", "input": "pgd"}
        row = filled(Record, 0.5, **key, epsilon=2.0, accuracy=0.2 + 0.1 * seed)
        RunFolder(path).add([row])
    lines = report.radii_in_words(read_runs(paths)).splitlines()[2:]
    assert [line.split(" | ")[2:6] for line in lines] == [
        ["2", "test", "clean", "0.500 ± 0.000"],
        ["2", "test", "2/255", "0.350 ± 0.071"],
        ["2", "test", "8/255", "0.500 ± 0.000"],
    ]


def test_blocks_have_their_names_whichever_seed_was_measured(here):
    paths = [make_run(ST, seed) for seed in (1, 2)]
    key = {"epoch": 9, "split": "test", "input": "pgd", "features": 8, "epsilon": 8.0}
    rows = [filled(LayerRecord, 0.5, **key, layer=f"b{i}", index=i) for i in range(2)]
    RunFolder(paths[1]).append(rows)
    lines = report.blocks_in_words(read_runs(paths)).splitlines()
    assert "| images | seeds | `b0` | `b1` |" in lines
    assert f"| test, PGD: {OWN} | 1 | 0.500 | 0.500 |" in lines


@pytest.mark.parametrize("flags", ("--scale small", "--scale full", "--scale small --epochs 3"))
def test_every_command_is_one_that_the_scripts_take(flags, run_script, monkeypatch, tmp_path):
    code, output, _ = run_script(reproduce, f"{flags} --list")
    assert code == 0
    lines = output.splitlines()
    assert len(lines) == {"full": 84}.get(flags.split()[1], 19)
    folders = set()
    for line in lines:
        commands = [command.split() for command in line.split(" && ")]
        assert [command[:2] for command in commands[:2]] == [
            ["python", "train.py"],
            ["python", "eval.py"],
        ]
        for _, script, *words in commands:
            SCRIPTS[script].parse_args(words)
        settings = train.parse_args(commands[0][2:])
        folders.add(build.run_folder(settings).path)
    assert len(folders) == len(lines)  # no two runs share one
    planned = plan.plan(reproduce.parse_args(flags.split()), None)
    assert {one.folder for one in planned} == folders


@pytest.mark.parametrize(
    ("given", "expected"),
    (
        ("", (2000, 1000, 30, 64)),
        ("--limit-train 80 --limit-test 40 --epochs 3", (80, 40, 3, 64)),
    ),
)
def test_all_small_runs_of_adversarial_training_have_one_recipe(given, expected):
    args = reproduce.parse_args(f"--scale small --data-dir . {given}".split())
    planned = [p for p in plan.plan(args, None) if p.experiment.mode == AT]
    assert {p.experiment.model for p in planned} == {"vgg11bn", "PreActResNet18"}
    for one in planned:
        settings = train.parse_args(one.commands[0][1:])
        told = (settings.limit_train, settings.limit_test, settings.epochs, settings.batch_size)
        assert told == expected
        assert (settings.lr_max, settings.lr_schedule) == (0.05, "cosine")


@pytest.mark.parametrize(
    ("flags", "epochs"),
    (
        ("--scale small --data-dir .", {"vgg11bn": 40, "PreActResNet18": 60}),
        ("--scale small", {"vgg11bn": 10, "PreActResNet18": 10}),  # on digits
        ("--scale small --data-dir . --epochs 3", {"vgg11bn": 3, "PreActResNet18": 3}),
        ("--scale full", {"vgg11bn": 400, "PreActResNet18": 400}),
    ),
)
def test_standard_training_lasts_until_it_fits_and_small_runs_tell_when(flags, epochs):
    planned = plan.plan(reproduce.parse_args(flags.split()), None)
    standard = [one for one in planned if one.experiment.mode == ST]
    assert {one.experiment.model: one.training["epochs"] for one in standard} == epochs
    assert {one.training["neural_collapse"] for one in standard} == {"small" in flags}


@pytest.mark.parametrize("flags", ("small", "full", "small --epochs 3"))
def test_frozen_adversarial_training_starts_from_a_checkpoint_that_was_made_before(flags):
    planned = plan.plan(reproduce.parse_args(f"--scale {flags}".split()), None)
    kept, starts = set(), []
    for one in planned:
        settings = train.parse_args(one.commands[0][1:])
        run, epochs = build.run_folder(settings), settings.epochs
        if one.experiment.mode == AT_FROZEN:
            starts.append(settings.init in kept)
        kept |= {run.checkpoint(e) for e in select_epochs(settings.checkpoint_epochs, epochs)}
        kept.add(run.checkpoint(epochs - 1))
    assert starts and all(starts)


def test_noise_is_as_large_as_the_attack():
    digits = {("digits", "l_inf", 20.0, 20.0), ("digits", "l_2", 320.0, 20.0)}
    images = {("folder", "l_inf", 8.0, 8.0), ("folder", "l_2", 128.0, 8.0)}
    for flags, expected in (("", digits), ("--data-dir .", images)):
        planned = plan.plan(reproduce.parse_args(f"--scale small {flags}".split()), None)
        settings = [train.parse_args(one.commands[0][1:]) for one in planned]
        told = {(s.dataset, s.norm, s.epsilon, s.noise_level) for s in settings}
        assert told == {("mnist", "l_inf", 0.2, 51.0), *expected}  # 0.2 of 255


def test_only_takes_the_runs_of_a_claim():
    for claim, modes in ((1, {ST}), (4, {ST, AT}), (5, set(CLAIMS_OF)), (7, {ST, AT})):
        args = reproduce.parse_args(f"--scale full --only {claim}".split())
        assert {one.experiment.mode for one in plan.plan(args, args.only)} == modes
    assert {e.mode for e in plan.FULL} == set(MODES) - {"pgd_train_MART_frozen"}  # no claim's


def test_first_seeds_come_first_and_given_seeds_take_their_place():
    planned = plan.plan(reproduce.parse_args(["--scale", "small", "--seeds", "7", "8"]), None)
    seeds = [one.seed for one in planned]
    assert seeds == sorted(seeds) and set(seeds) == {7, 8}
    assert sum(one.experiment.mode == ST for one in planned if one.seed == 8) == 1
    deep = {one.seed for one in planned if any("--layerwise" in c for c in one.commands)}
    assert deep == {7}


@pytest.fixture
def in_process(run_script, monkeypatch, tiny_models):
    """The scripts in this process, on models that take no time; what they were called with."""
    called = []

    def run(child, command):
        called.append(shlex.join(command))
        return run_script(SCRIPTS[command[0]], " ".join(command[1:]))[0]

    monkeypatch.setattr(reproduce.Child, "run", run)
    monkeypatch.setattr(plot, "draw", lambda _: Figure(figsize=(1, 1)))
    few = tuple(e for e in plan.SMALL if (e.model, e.norm, e.dataset) == ("vgg11bn", "l_inf", None))
    monkeypatch.setattr(plan, "SMALL", few)
    monkeypatch.setattr(plan, "EARLY_BLOCK", {"vgg11bn": "stem"})  # of the tiny network
    return called


SIZES = "--scale small --epochs 2 --limit-train 20 --limit-test 10"
SHORT = f"{SIZES} --only 1 4"


def test_the_report_is_made_of_the_runs_and_can_be_made_again(in_process, run_script, tmp_path):
    assert run_script(reproduce, f"{SHORT} --seeds 4 5")[0] == 0
    assert sum("train.py" in call for call in in_process) == 4
    out = tmp_path / "reproduction/small"
    made = rows(out / "claims.csv")
    # Claims that were not asked for are told too, as far as the runs go.
    assert {row["claim"] for row in made} == {str(number) for number in claims.CLAIMS}
    assert {row["verdict"] for row in made if row["claim"] in "67"} == {"not measured"}
    assert all(row["seeds"] == "4 5" for row in made if row["verdict"] != "not measured")
    assert {row["epochs"] for row in rows(out / "runs.csv")} == {"2 of 2"}
    assert {row["train_images"] for row in rows(out / "runs.csv")} == {"20"}
    assert list((out / "figures").glob("st_*.png")) and (out / "figures/table.csv").exists()
    # A value of claims.csv by hand from the tables beside it.
    [metrics] = (out / "runs").glob("digits/*/*/*/std_train/seed4/results/metrics.csv")
    swept = [row for row in rows(metrics) if (row["source"], row["split"]) == ("eval", "train")]
    nc1 = {int(row["epoch"]): float(row["nc1"]) for row in swept if row["input"] == "clean"}
    row = next(row for row in made if row["criterion"] == "ST: NC1, first epoch over last")
    assert float(row["values"].split()[0]) == nc1[0] / nc1[1]
    told = (out / "runs").rglob("args.json")
    assert all(str(tmp_path) not in path.read_text() for path in told)
    # The copies are run folders too.
    before = (out / "claims.csv").read_bytes()
    in_process.clear()
    assert run_script(reproduce, f"{SIZES} --seeds 4 5 --report --models-dir {out}/runs")[0] == 0
    assert [call.split()[0] for call in in_process] == ["plot.py"]
    assert (out / "claims.csv").read_bytes() == before


def test_a_call_for_one_claim_keeps_what_others_have_run_in_the_report(in_process, run_script):
    flags = f"{SIZES} --seeds 4"
    assert run_script(reproduce, f"{flags} --only 1")[0] == 0
    assert not any("pgd_train" in call for call in in_process)
    assert [row["mode"] for row in rows("reproduction/small/runs.csv")] == ["std_train"]
    assert run_script(reproduce, f"{flags} --only 4")[0] == 0
    modes = [row["mode"] for row in rows("reproduction/small/runs.csv")]
    assert sorted(modes) == ["pgd_train", "std_train"]
    seeds = {row["criterion"]: row["seeds"] for row in rows("reproduction/small/claims.csv")}
    assert seeds["AT: NC1 of clean images, first epoch over last"] == "4"
    assert seeds["ST: NC1, first epoch over last"] == "4"


@pytest.mark.slow
@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_what_a_claim_needs_is_all_measured(in_process, run_script, claim):
    assert run_script(reproduce, f"{SIZES} --seeds 4 --only {claim}")[0] == 0
    made = [row for row in rows("reproduction/small/claims.csv") if row["claim"] == str(claim)]
    # A ratio to zero, or an accuracy that AT does not reach, has no value.
    free = {"the same against AT's epoch", "over the clean one", "over clean", "first epoch over"}
    missing = [row["criterion"] for row in made if row["verdict"] == "not measured"]
    assert [text for text in missing if not any(part in text for part in free)] == []
    assert len(missing) < len(made)


def test_a_run_that_fails_is_left_out_and_told(in_process, run_script, monkeypatch, tmp_path):
    whole = reproduce.Child.run

    def run(child, command):
        failing = "pgd_train" in command and command[0] == "eval.py"
        return 1 if failing else whole(child, command)

    monkeypatch.setattr(reproduce.Child, "run", run)
    code, _, error = run_script(reproduce, f"{SHORT} --seeds 4")
    assert code == 1 and "1 of 2 runs failed: AT, vgg11bn, l_inf, digits, seed 4" in error
    made = rows("reproduction/small/claims.csv")
    assert {row["verdict"] for row in made if row["claim"] == "4"} == {"not measured"}
    assert [row["mode"] for row in rows("reproduction/small/runs.csv")] == ["std_train"]


def test_what_is_not_as_asked_or_not_whole_is_left_out_of_the_report(
    in_process, run_script, tmp_path
):
    assert run_script(reproduce, f"{SHORT} --seeds 4")[0] == 0
    code, output, error = run_script(reproduce, f"{SIZES} --seeds 4 --report --epochs 3")
    assert code == 1 and "holds none of the runs" in error
    assert output.count("--epochs was 2") == 2
    [history] = tmp_path.glob("models/*/*/*/*/pgd_train/seed4/history.csv")
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
    assert run_script(reproduce, f"{SIZES} --seeds 4 --report")[0] == 0
    assert [(row["mode"], row["train_images"]) for row in rows("reproduction/small/runs.csv")] == [
        ("std_train", "20")
    ]


def test_the_runs_so_far_tell_how_many_hours_are_left(here, monkeypatch):
    """The first takes an hour and makes 50 million passes, as many as both others together."""
    args = reproduce.parse_args(["--scale", "full", "--seeds", "1"])
    planned = plan.plan(args, None)[:3]
    lines, clock = [], [0.0]

    def run(child, command):
        clock[0] += 3600 if command[0] == "train.py" else 0
        return 0

    monkeypatch.setattr(reproduce.Child, "run", run)
    monkeypatch.setattr(reproduce.logger, "info", lines.append)
    monkeypatch.setattr(reproduce.time, "perf_counter", lambda: clock[0])
    trainings = {run.folder: t for run, t in zip(planned, (40e6, 10e6, 20e6), strict=True)}
    monkeypatch.setattr(reproduce, "training_passes", lambda run: trainings[run.folder])
    monkeypatch.setattr(reproduce, "sweep_passes", lambda _: 10e6)
    assert reproduce.run_all(planned) == []
    first, second, third = lines
    assert first == f"run 1 of 3: {planned[0].name}"
    assert second == f"run 2 of 3: {planned[1].name}; about 1.0 hours left at the pace so far"
    # Both runs took 2 hours and made 70 million passes.
    assert third == f"run 3 of 3: {planned[2].name}; about 0.9 hours left at the pace so far"
    # Of a run that is half trained half of the training is left; its pace counts as well.
    trained = {planned[0].folder: 0.5, planned[1].folder: 1.0}
    monkeypatch.setattr(reproduce, "progress", lambda run: trained.get(run.folder, 0.0))
    lines.clear()
    reproduce.run_all(planned)
    assert [line.partition("about ")[2][:3] for line in lines] == ["", "1.3", "1.0"]


def test_it_says_first_how_many_passes_and_how_much_disk_the_runs_take(here, monkeypatch):
    lines = []
    monkeypatch.setattr(reproduce.logger, "info", lines.append)
    reproduce.tell_cost(plan.plan(reproduce.parse_args(["--scale", "full"]), None))
    [line] = lines
    cost = (Path(__file__).parents[2] / "reproduction/full/cost.md").read_text().splitlines()[-1]
    *_, passes, disk, _ = (cell.strip() for cell in cost.split("|"))
    assert line.startswith(f"84 runs: {passes} million passes of an image")
    assert f"and {disk} GiB of disk, of which " in line


def test_args_that_do_not_tell_the_epochs_are_told_in_one_line(in_process, run_script, tmp_path):
    path = make_run(ST)
    arguments = json.loads((path / "args.json").read_text())
    del arguments["epochs"]
    (path / "args.json").write_text(json.dumps(arguments))
    code, _, error = run_script(reproduce, f"--scale full --report --runs {path}")
    assert code == 1 and f"{path}/args.json does not tell epochs" in error
    assert error.count("\n") == 1


def test_runs_of_ones_own_are_reported_however_they_were_trained(in_process, run_script):
    own = [make_run(ST, clean__nc1=(80.0, 2.0), clean__accuracy=(0.3, 1.0)), make_run(AT, 7)]
    in_process.clear()
    flags = f"--scale full --report --out report --runs {own[0]} {own[1]}"
    assert run_script(reproduce, flags)[0] == 0
    assert [call.split()[0] for call in in_process] == ["plot.py"]
    told = [(row["mode"], row["seed"]) for row in rows("report/full/runs.csv")]
    assert told == [("std_train", "1"), ("pgd_train", "7")]
    # A folder with runs below it stands for them, one that was given already counts once.
    assert run_script(reproduce, f"{flags} models")[0] == 0
    assert len(rows("report/full/runs.csv")) == 2
    shutil.copytree(own[0], "again")
    code, _, error = run_script(reproduce, f"{flags} {own[0]} again")
    assert code == 1 and f"--runs again: of the same setting and seed as {own[0]}" in error
    verdicts = {row["criterion"]: row["verdict"] for row in rows("report/full/claims.csv")}
    assert verdicts["ST: NC1, first epoch over last"] == "holds"
    assert (
        Path("report/full/claims.md")
        .read_text()
        .startswith("# The claims, in the runs that were named\n")
    )


@pytest.mark.parametrize(
    ("flags", "place"),
    (
        ("", "report"),
        ("--out mine", "mine"),
        ("--scale small", "report/small"),
        ("--scale full --out reproduction/short", "reproduction/short/full"),
    ),
)
def test_a_report_on_ones_own_runs_never_takes_the_place_of_the_reproduction(
    in_process, run_script, flags, place
):
    for scale in ("small", "full"):
        Path("reproduction", scale).mkdir(parents=True)
    assert run_script(reproduce, f"--report {flags} --runs {make_run(ST)}")[0] == 0
    assert [path.parent for path in Path().rglob("claims.csv")] == [Path(place)]
    assert in_process[-1].endswith(f"--out {place}/figures --table")


def test_the_block_that_is_attacked_itself_is_an_early_one():
    for model, name in plan.EARLY_BLOCK.items():
        blocks = [block for block, _ in build_model(model, 32, 3, 10).blocks()]
        assert name in blocks[: len(blocks) // 2], blocks


def test_only_what_the_claims_need_is_measured():
    def commands(flags):
        args = reproduce.parse_args(f"--scale small {flags}".split())
        planned = plan.plan(args, args.only)
        return [" ".join(command) for one in planned for command in one.commands]

    assert any("--dataset mnist" in c for c in commands("--only 2"))
    assert not any("--layerwise" in c or "--epsilons" in c for c in commands("--only 2"))
    assert any("--layerwise" in c for c in commands("--only 6"))
    assert any("--layerwise" in c for c in commands("--only 3"))
    assert any("--dataset mnist" in c for c in commands("--only 3"))
    assert not any("--dataset mnist" in c for c in commands("--only 6 7"))


def test_bad_input_is_told_in_one_line(here, run_script):
    Path("FILE").write_text("")
    for flags, said in (
        ("--scale tiny", "--scale"),
        ("--scale small --only 8", "--only"),
        ("--scale small --list --report", "--list"),
        ("--scale small --only 4 --report", "--only"),
        ("--scale small --cost --report", "--cost"),
        ("--scale full --runs models", "--report"),
        ("--report", "--scale"),
        ("--report --runs models --out FILE", "--out"),
        ("--published st", "--runs"),
        ("--published trades --runs models", "--published"),
        ("--published st --runs models --scale full", "--scale"),
        ("--published seeds --runs models", "--runs"),
        ("--published seeds --tables copies", "--runs"),
        ("--published st --runs models --report", "--published"),
        ("--scale full --report --runs models --tables copies", "--tables"),
        ("--scale small --data-dir nowhere", "--data-dir"),
        ("--scale small --seeds -1", "--seeds"),
        ("--scale small --epochs 0", "--epochs"),
    ):
        code, _, error = run_script(reproduce, flags)
        assert code == 2 and said in error and error.count("\n") == 1, flags
    code, _, error = run_script(reproduce, "--scale small --report")
    assert code == 1 and "holds none of the runs" in error
    for flags in ("--scale full --report", "--published at"):
        code, _, error = run_script(reproduce, f"{flags} --runs nowhere")
        assert code == 1 and "--runs nowhere: holds no run" in error and error.count("\n") == 1


def test_a_row_of_claims_csv_has_what_names_it():
    setting = Setting("cifar", "m", "l_2", 128.0, 1000)
    row = report.finding_row(claims.Finding(CRITERIA[0], setting, {1: Outcome(0.5)}))
    names = ("dataset", "model", "norm", "epsilon", "limit_train")
    assert [row[name] for name in names] == ["cifar", "m", "l_2", 128.0, 1000]
