"""What each flag means when runs are compared: resumed, swept, or averaged as seeds."""

import json
from pathlib import Path

import pytest

import eval as eval_script
import train
from robust_nc import build, comparing, going_on
from robust_nc.flags import SWEEP_FLAGS, TRAIN_FLAGS, train_parser
from robust_nc.reports import captions
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import ALWAYS_THERE, RUN_MEANS, Means, flag, keys_that, with_former_values
from robust_nc.training import schedules
from robust_nc.training.modes import MODES
from utils import InputError

NAMING = {"dataset", "data_name", "model", "norm", "epsilon", "train_mode", "bn"} | {"run_name"}
TRAINED = {
    *("epochs", "lr_max", "mean", "std", "image_size", "limit_train", "pgd_alpha", "attack_iters"),
    *("restarts", "noise_level", "precision", "batch_size", "optimizer", "lr_schedule"),
    *("lr_drop_epoch", "lr_one_drop", "lr_milestones", "lr_gamma", "trades_beta", "mart_lambda"),
    *("model_args", "weight_decay", "momentum", "nesterov", "init", "weights_key"),
}
RECORDED = {"no_normalisation", "limit_test", "neural_collapse", "neural_collapse_gaussian"}
MEASURED = {
    *("attack_iters", "pgd_alpha", "restarts", "noise_level", "limit_train", "limit_test"),
    *("equal_n", "image_size", "precision", "checkpoint", "weights_key"),
}
OF_ROWS = {
    *("attack_iters", "pgd_alpha", "restarts", "noise_level"),
    *("precision", "checkpoint", "weights_key"),
}
FREE = {
    *("data_dir", "data_url", "models_dir", "device", "compile", "cuda_graph"),
    "no_cuda_graph",
    *("checkpoint_epochs", "eval_batch_size", "resume", "overwrite", "trades_bn"),
}


def test_every_flag_of_training_has_its_meaning():
    """Written out here: a flag that changes its meaning, or is added, is looked at."""
    assert keys_that(TRAIN_FLAGS, Means.NAME) == NAMING
    assert keys_that(TRAIN_FLAGS, Means.SEED) == {"seed"}
    assert keys_that(TRAIN_FLAGS, Means.TRAIN) == TRAINED
    assert keys_that(TRAIN_FLAGS, Means.RECORD) == RECORDED
    assert keys_that(TRAIN_FLAGS, Means.PLACE) == {"data_dir", "data_url"}
    started = {"models_dir", "resume", "overwrite", "trades_bn"}
    assert keys_that(TRAIN_FLAGS, Means.START) == started
    assert {row.key for row in TRAIN_FLAGS} == NAMING | {"seed"} | TRAINED | RECORDED | FREE


def test_every_flag_of_a_sweep_has_its_meaning():
    assert keys_that(SWEEP_FLAGS, Means.MEASURE) == MEASURED
    assert keys_that(SWEEP_FLAGS, Means.ROW) == OF_ROWS
    assert keys_that(SWEEP_FLAGS, Means.SUBSET) == {"limit_train", "limit_test"}
    assert keys_that(SWEEP_FLAGS, Means.NAME | Means.SEED) == NAMING | {"seed"}


def test_a_resumed_run_is_compared_in_all_but_the_free_flags():
    assert NAMING | {"seed"} | TRAINED | RECORDED == keys_that(TRAIN_FLAGS, RUN_MEANS)


def test_what_a_run_of_an_older_version_does_not_tell_was_the_default_then():
    rows = (
        flag("--old", Means.TRAIN, default=3),
        flag("--switch", Means.TRAIN, action="store_true"),
        flag("--other", Means.TRAIN, default=0.9, former=0.0),
        flag("--first", Means.TRAIN, default=400, former=ALWAYS_THERE),
        flag("--none", Means.TRAIN, default=0.9, former=None),
    )
    former = {"switch": False, "other": 0.0, "none": None}
    assert with_former_values({"old": 5}, rows) == {"old": 5} | former
    assert with_former_values({}, rows) == {}  # of which nothing is known


def test_a_flag_without_a_meaning_cannot_be_added():
    with pytest.raises(TypeError):
        flag("--new", default=3)


@pytest.mark.parametrize(
    ("settings", "unread"),
    (
        ({"train_mode": "std_train"}, {"restarts", "trades_beta", "mart_lambda"}),
        ({"train_mode": "pgd_train"}, {"trades_beta", "mart_lambda"}),
        ({"train_mode": "pgd_train_TRADES"}, {"restarts", "mart_lambda"}),
        ({"train_mode": "pgd_train_MART"}, {"trades_beta"}),
    ),
)
def test_each_mode_reads_its_own_flags(settings, unread):
    settings |= {"lr_schedule": "onedrop", "optimizer": "adamw"}
    unread = unread | {"lr_milestones", "lr_gamma", "momentum", "nesterov"}
    assert {row.key for row in TRAIN_FLAGS if not row.is_read(settings)} == unread
    settings |= {"lr_schedule": "cosine", "optimizer": "sgd"}
    unread = unread - {"momentum", "nesterov"} | {"lr_drop_epoch", "lr_one_drop"}
    assert {row.key for row in TRAIN_FLAGS if not row.is_read(settings)} == unread


@pytest.mark.parametrize(
    "words",
    (
        "--momentum 0.5 --optimizer adam",
        "--trades-beta 3",
        "--restarts 2",
        "--lr-gamma 0.5",
        "--lr-milestones 0.5 --lr-schedule cosine",
        "--lr-drop-epoch 5",
        "--lr-one-drop 0.1 --lr-schedule milestones",
    ),
)
def test_a_flag_that_nothing_reads_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse_args(words.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"{words.split()[0]}: --" in error and "makes no use of it" in error


def test_every_flag_that_is_read_with_others_names_their_values():
    choices = {row.key: row.options.get("choices") for row in TRAIN_FLAGS}
    needing = [row for row in TRAIN_FLAGS if row.only_with]
    assert all({*row.only_with[1]} <= {*choices[row.only_with[0]]} for row in needing)
    [restarts] = [row for row in needing if row.key == "restarts"]
    assert {*restarts.only_with[1]} == {m.train_mode for m in MODES.values() if m.restarts}


def test_a_flag_that_nothing_reads_does_not_keep_an_older_run_from_going_on(tmp_path):
    told = {"train_mode": "std_train", "lr_schedule": "piecewise", "lr_drop_epoch": 50}
    (tmp_path / "args.json").write_text(json.dumps(told))
    run = RunFolder(tmp_path)
    assert comparing.other_run(train.parse_args(["--device", "cpu"]), run) is None
    settings = train.parse_args(["--device", "cpu", "--lr-schedule", "onedrop"])
    assert "--lr-drop-epoch was 50, is 100 now" in comparing.other_run(settings, run)


def sweep_settings(words, monkeypatch, **rows_and_values):
    """Settings of a sweep, with rows of shared flags and their values that are added."""
    rows = tuple(row for row, _ in rows_and_values.values())
    monkeypatch.setattr(comparing, "SHARED_FLAGS", (*comparing.SHARED_FLAGS, *rows))
    monkeypatch.setattr(comparing, "SWEEP_FLAGS", (*comparing.SWEEP_FLAGS, *rows))
    settings = eval_script.parse_args(["--device", "cpu", "--ncc", *words])
    return settings.replace(**{name: value for name, (_, value) in rows_and_values.items()})


@pytest.mark.parametrize(
    ("means", "chosen"),
    (
        (Means.TRAIN, False),
        (Means.TRAIN | Means.MEASURE, False),
        (Means.TRAIN | Means.MEASURE | Means.ROW, True),
        (Means.TRAIN | Means.MEASURE | Means.SUBSET, True),
    ),
)
def test_a_sweep_has_the_flags_of_its_run_but_those_that_it_may_choose(
    means, chosen, tmp_path, monkeypatch
):
    row = flag("--new", means, default=3)
    (tmp_path / "args.json").write_text(json.dumps({"epochs": 2, "new": 5, "attack_iters": 7}))
    run = RunFolder(tmp_path)
    settings = sweep_settings([], monkeypatch, new=(row, None))
    agreed = comparing.agree_with_run(settings, run)
    assert (agreed.new, agreed.attack_iters, agreed.epochs) == (5, 7, None)
    if chosen:
        assert comparing.agree_with_run(settings.replace(new=4), run).new == 4
    else:
        with pytest.raises(InputError, match="trained with other flags: --new was 5, is 4 now"):
            comparing.agree_with_run(settings.replace(new=4), run)
    run.write_arguments(run.args_file, {"epochs": 2})  # of before there was the flag
    agreed = comparing.agree_with_run(settings, run)
    assert (agreed.new, agreed.attack_iters, agreed.noise_level) == (3, 10, 8.0)


@pytest.mark.parametrize(
    ("means", "mixed"), ((Means.MEASURE, False), (Means.MEASURE | Means.ROW, True))
)
def test_a_sweep_is_mixed_with_one_of_other_flags_where_rows_tell_them(means, mixed, monkeypatch):
    settings = sweep_settings([], monkeypatch, new=(flag("--new", means, default=3), 4))
    now = vars(settings) | {"mean": [0.5], "std": [0.5]}
    differing = comparing.other_sweep(now, {"mean": [0.5]}, None)
    assert differing == (None if Means.ROW in means else "--new was 3, is 4 now")


def test_a_sweep_by_the_folder_takes_over_what_names_and_measures_and_where_images_lie(tmp_path):
    """Nothing of the machine, which train.py takes over too, and of how the run was started."""
    settings = train.parse_args(
        ["--device", "cpu", "--limit-train", "50", "--eval-batch-size", "8"]
    )
    told = vars(settings) | {"models_dir": "there", "data_dir": "here", "resume": "last"}
    (tmp_path / "args.json").write_text(json.dumps(told, default=str))
    swept, trained = going_on.swept_by_folder(tmp_path), going_on.flags_of_run(tmp_path)
    assert swept["limit_train"] == 50 and swept["pgd_alpha"] == 2.0 and swept["data_dir"] == "here"
    assert not swept.keys() & {"epochs", "lr_max", "device", "eval_batch_size", "momentum"}
    assert trained["eval_batch_size"] == 8 and swept.items() <= trained.items()
    assert not trained.keys() & {"models_dir", "resume", "overwrite", "trades_bn"}


@pytest.mark.parametrize(
    "args",
    (
        ["--lr-milestones", "0.25,0.5", "--mean", "0.5", "--std", "0.5", "--seed", "7"],
        ["--nesterov", "--limit-train", "50", "--checkpoint-epochs", "log", "--run-name", "1.5"],
    ),
)
def test_every_flag_accepts_what_a_run_writes_of_it(args):
    written = json.loads(json.dumps(vars(train.parse_args(args)), default=str))
    refused = [flag.key for flag in TRAIN_FLAGS if not flag.accepts(written[flag.key])]
    assert all(written[key] is None for key in refused)


@pytest.mark.parametrize(
    ("key", "value"),
    (
        ("seed", [1]),
        ("seed", 1.5),
        ("epochs", True),
        ("mean", [[0.5]]),
        ("lr_milestones", 0.5),
        ("lr_schedule", ["piecewise"]),
        ("dataset", {"cifar": 1}),
        ("data_dir", 5),
        ("run_name", 5),
        ("compile", "yes"),
        ("precision", "fp8"),
    ),
)
def test_a_run_of_a_damaged_file_is_refused_in_a_line_that_names_the_flag(key, value, tmp_path):
    told = vars(train.parse_args([])) | {key: value}
    (tmp_path / "args.json").write_text(json.dumps(told, default=str))
    line = f"{tmp_path}/args.json: --{key.replace('_', '-')} is .* not known here"
    with pytest.raises(InputError, match=line):
        going_on.flags_of_run(tmp_path)


def test_whether_there_is_a_run_is_no_matter_of_the_type_of_a_flag():
    parser = train_parser()
    assert parser.parse_args(["--resume", "no/such/run"]).resume == Path("no/such/run")
    assert parser.parse_args(["--resume", "3"]).resume == 3


def test_schedules_of_runs_that_can_be_made_longer(monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULES, "root", lambda t, rates: rates.lr_max / (1 + t) ** 0.5)
    longer = {"onedrop", "constant", "milestones", "root"}
    assert {*schedules.schedules_without_an_end()} == longer


def test_figures_call_flags_what_papers_do():
    keys = {row.key for row in (*TRAIN_FLAGS, *SWEEP_FLAGS)}
    assert {name.replace("-", "_") for name in captions.WORDS} <= keys
    differs = {
        "model": "vgg11bn",
        "mart-lambda": "5",
        "weight-decay": "0.1",
        "attack-iters of the sweep": "20",
        "restarts of the sweep": "2",
        "test images": "40",
    }
    assert captions.in_words_of_papers(differs) == (
        "vgg11bn, lambda 5, weight decay 0.1, steps of PGD in the sweep 20, restarts in the sweep "
        "2, test images 40"
    )


@pytest.mark.parametrize("script", (train, eval_script))
def test_every_row_is_a_flag_of_its_script(script):
    words = ["--neural-collapse", "--device", "cpu"]
    settings = vars(script.parse_args(words))
    rows = TRAIN_FLAGS if script is train else SWEEP_FLAGS
    # `run` is no flag of eval.py, but its only word without one.
    derived = {"run_path"} | (set() if script is train else {"run"})
    assert settings.keys() - derived == {row.key for row in rows}


@pytest.mark.parametrize(
    ("words", "folder"),
    (
        ("std_train", "std_train"),
        ("std_train --bn batch", "std_train"),
        ("std_train --trades-bn frozen", "std_train"),  # which TRADES alone reads
        ("std_train --bn frozen", "std_train_frozen"),
        ("pgd_train --bn frozen", "pgd_train_frozen"),
        ("pgd_train_MART --bn frozen", "pgd_train_MART_frozen"),
        ("pgd_train_TRADES", "pgd_train_TRADES"),
        ("pgd_train_TRADES --bn frozen", "pgd_train_TRADES"),
        ("pgd_train_TRADES --bn batch", "pgd_train_TRADES_batch"),
        ("pgd_train_TRADES --trades-bn batch", "pgd_train_TRADES_batch"),
        ("pgd_train_TRADES --trades-bn batch --bn batch", "pgd_train_TRADES_batch"),
    ),
)
def test_batch_norm_is_in_the_path_where_it_is_not_the_default_of_the_mode(words, folder):
    command = f"--device cpu --train-mode {words}".split()
    settings = train.parse_args(command)
    assert build.run_folder(settings).path.parts[-2] == folder
    assert build.run_folder(eval_script.parse_args([*command, "--ncc"])).path.parts[-2] == folder
    assert MODES[folder].bn == settings.bn


@pytest.mark.parametrize(
    ("told", "bn"),
    (
        ({"train_mode": "std_train", "trades_bn": "frozen"}, "batch"),
        ({"train_mode": "pgd_train"}, "batch"),
        ({"train_mode": "pgd_train_TRADES"}, "frozen"),
        ({"train_mode": "pgd_train_TRADES", "trades_bn": "batch"}, "batch"),
    ),
)
def test_the_batch_norm_of_a_run_of_an_older_version(told, bn):
    assert with_former_values(told, TRAIN_FLAGS)["bn"] == bn


@pytest.mark.parametrize(
    "words", ("std_train --trades-bn batch", "pgd_train_TRADES --bn batch --trades-bn frozen")
)
def test_batch_norm_told_in_two_ways_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(f"--train-mode {words}".split())
    assert "--trades-bn" in capsys.readouterr().err
