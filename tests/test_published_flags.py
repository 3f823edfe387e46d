"""Commands of the published scripts, and flags that are misspelt."""

import pytest

import eval as eval_script
import train
from robust_nc.flags import sweep_parser, train_parser
from robust_nc.parsing import OTHER_NAMES
from robust_nc.published_flags import OF_EVAL, OF_TRAIN

BASE = "--dataset=cifar --seed 1 --train-mode pgd_train --lr-max=0.1 --epsilon=8 --pgd-alpha=2"
UNUSED = (
    "--fname cifar_model --chkpt-iters 10 --half --val --eval --l2 0 --l1=0.0 --width-factor 10 "
    "--cutout --cutout-len=16 --fgsm-init random --fgsm-alpha 1.25 --attack pgd --mixup-alpha 1.4"
)
TRAINING = "--batch-size 128 --optimizer=sgd --lr-schedule piecewise --lr-drop-epoch 100"
TRAINING += " --lr-one-drop 0.01 --resume 0 --mixup"


@pytest.mark.parametrize(
    ("script", "flags"),
    (
        (train, UNUSED),
        (eval_script, f"--neural-collapse {UNUSED} {TRAINING}"),
        (eval_script, f"{TRAINING} --l2 5e-4 --neural-collapse"),
        (eval_script, "--resume --neural-collapse"),
    ),
)
def test_published_flags_without_effect_are_named_in_one_line(script, flags, caplog):
    caplog.set_level("INFO")
    plain = "--neural-collapse" if script is eval_script else ""
    expected = vars(script.parse_args(f"{BASE} {plain} --device cpu".split()))
    assert not caplog.records
    settings = script.parse_args(f"{BASE} {flags} --device cpu".split())
    assert vars(settings) == expected
    given = [w.partition("=")[0] for w in flags.split() if w.startswith("--")]
    names = ", ".join(name for name in given if name != "--neural-collapse")
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"without effect, as in the published code: {names}"


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    (
        (train, "--l2 5e-4", "--l2 5e-4, a flag of the published code"),
        (train, "--l1=0.1", "--l1 0.1, a flag"),
        (train, "--mixup", "--mixup, a flag"),
        (train, "--attack fgsm", "--attack fgsm, a flag"),
        (train, "--attack none", "--train-mode std_train trains without one"),
        (eval_script, "--attack free", "--attack free, a flag"),
        (train, "--l2 nan", "--l2 nan, a flag"),
        (train, "--l2 much", "--l2 much, a flag"),
        (train, "--fname", "argument --fname: expected a value"),
        (train, "--half=1", "argument --half: expected no value"),
        (train, "--fname --half", "argument --fname: expected a value"),
        (train, "--half --fnam x", "did you mean"),
    ),
)
def test_published_flags_that_would_have_changed_the_run_are_refused(
    script, flags, words, run_script
):
    code, _, error = run_script(script, f"{flags} --epochs 2")
    if "did you mean" in words:
        assert code == 2 and "unrecognized arguments: --fnam x" in error
    else:
        assert code == 2 and words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("parser", "flags"), ((train_parser(), OF_TRAIN), (sweep_parser(), OF_EVAL))
)
def test_no_published_flag_is_one_of_ours(parser, flags):
    assert not {flag.name for flag in flags} & parser._option_string_actions.keys()
    assert all(flag.advice for flag in flags if flag.harmless is not None)


@pytest.mark.parametrize(
    ("flags", "meant"),
    (
        ("--epslion 8", "--epsilon"),
        ("--lr_max 0.1", "--lr-max"),
        ("--train-Mode pgd_train", "--train-mode"),
        ("-epochs 3", "--epochs"),
        ("--neural 1", "--neural-collapse"),
        ("--weightdecay=0.1 --momentun 0", "--weight-decay, --momentum"),
    ),
)
def test_a_flag_that_is_misspelt_is_answered_with_the_nearest(flags, meant, run_script):
    code, _, error = run_script(train, flags)
    assert code == 2 and f"; did you mean {meant}?" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "meant"),
    (
        ("--learning-rate 0.1 --wd 0", "--lr-max, --weight-decay"),
        ("--lr=0.1", "--lr-max"),
        ("--batchsize 8", "--batch-size"),
        ("--eps 8 --step_size 2", "--epsilon, --pgd-alpha"),
        ("--adam", "--optimizer adam"),
        ("--opt adamw --sched cosine", "--optimizer, --lr-schedule"),
        ("-b 128 -a resnet18", "--batch-size, --model"),
        ("--data-path x --output-dir y --gpu 0", "--data-dir, --models-dir, --device"),
        ("--attack-steps 7 --num_steps 7", "--attack-iters, --attack-iters"),
        ("--adv-train 1 --beta 6", "--train-mode pgd_train, --trades-beta"),
        ("--pretrained x.pth --amp", "--init, --precision bf16"),
    ),
)
def test_names_of_other_projects_are_answered_with_ours(flags, meant, run_script):
    code, _, error = run_script(train, flags)
    assert code == 2 and f"; did you mean {meant}?" in error and error.count("\n") == 1


def test_each_script_proposes_what_it_has(run_script):
    code, _, error = run_script(eval_script, "--ckpt a.pth --output-dir x --batchsize 9 --n-ex 10")
    assert code == 2
    assert "mean --checkpoint, --out, --eval-batch-size, --autoattack?" in error


def test_a_name_of_others_is_no_flag_of_ours():
    for parser in (train_parser(), sweep_parser()):
        ours = parser._option_string_actions
        there = [names.split() for flag, names in OTHER_NAMES.items() if flag.split()[0] in ours]
        assert not {f"--{name}" for names in there for name in names} & ours.keys()
    known = train_parser()._option_string_actions | sweep_parser()._option_string_actions
    assert {flag.split()[0] for flag in OTHER_NAMES} <= known.keys()


def test_a_word_that_is_near_to_nothing_is_not_guessed(run_script):
    code, _, error = run_script(train, "--zzz 1")
    assert code == 2 and "did you mean" not in error and "--zzz 1" in error
