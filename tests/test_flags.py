"""What each flag means when runs are compared: resumed, swept, or averaged as seeds."""

import pytest

import eval as eval_script
import train
from robust_nc import build
from robust_nc.flags import SWEEP_FLAGS, TRAIN_FLAGS
from robust_nc.settings import ALWAYS_THERE, Means, flag, keys_that, with_former_values
from robust_nc.training.modes import MODES

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
    assert {row.key for row in TRAIN_FLAGS} == NAMING | {"seed"} | TRAINED | RECORDED | FREE


def test_every_flag_of_a_sweep_has_its_meaning():
    assert keys_that(SWEEP_FLAGS, Means.MEASURE) == MEASURED
    assert keys_that(SWEEP_FLAGS, Means.NAME | Means.SEED) == NAMING | {"seed"}


def test_a_resumed_run_is_compared_in_all_but_the_free_flags():
    in_use = {"mean", "std"}  # known, and compared, once there are images
    assert (NAMING | {"seed"} | TRAINED | RECORDED) - in_use == train.COMPARED


def test_what_a_run_of_an_older_version_does_not_tell_was_the_default_then():
    rows = (
        flag("--old", Means.TRAIN, default=3),
        flag("--switch", Means.TRAIN, action="store_true"),
        flag("--other", Means.TRAIN, default=0.9, former=0.0),
        flag("--first", Means.TRAIN, default=400, former=ALWAYS_THERE),
    )
    assert with_former_values({"old": 5}, rows) == {"old": 5, "switch": False, "other": 0.0}
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
