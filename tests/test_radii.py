"""Radii as they are written: 8, 8/255, and what is told of one that is not meant."""

import json

import pytest
import torch

import eval as eval_script
import train
from attacks import pgd, trades
from robust_nc.comparing import agree_with_run

SWEEP = "--neural-collapse"


@pytest.fixture
def parse(caplog):
    """A script's settings of some flags, and the log lines."""

    def parse(script, flags):
        caplog.set_level("INFO")
        caplog.clear()
        settings = script.parse_args(f"{flags} --device cpu".split())
        return settings, [record.getMessage() for record in caplog.records]

    return parse


@pytest.mark.parametrize(
    ("flags", "expected"),
    (
        ("--epsilon 8/255 --pgd-alpha 2/255 --noise-level 4/255", (8.0, 2.0, 4.0)),
        ("--epsilon=0.1/255 --pgd-alpha 0.1/255", (0.1, 0.1, 8.0)),
        ("--epsilon 16/510 --pgd-alpha 0/255", (8.0, 0.0, 8.0)),
        ("--epsilon 7.5 --noise-level 0", (7.5, 2.0, 0.0)),
        ("--norm l_2 --epsilon 128/255", (128.0, 15.0, 8.0)),
        ("--dataset mnist --epsilon 0.2 --pgd-alpha 2/255", (0.2, 2 / 255, 8.0)),
        ("--dataset mnist --epsilon 7/255 --pgd-alpha 0.01", (7 / 255, 0.01, 8.0)),
    ),
)
@pytest.mark.parametrize("script", (train, eval_script))
def test_a_radius_is_read_as_it_is_written(script, flags, expected, parse):
    settings, _ = parse(script, f"{flags} {SWEEP}")
    *attack, noise = expected
    if script is eval_script:  # what is not given is the run's
        noise = noise if "--noise-level" in flags else None
        attack[1] = attack[1] if "--pgd-alpha" in flags else None
    assert [settings.epsilon, settings.pgd_alpha] == attack
    assert settings.noise_level == noise


def test_radii_of_a_sweep_are_read_as_they_are_written(parse):
    settings, _ = parse(eval_script, f"{SWEEP} --epsilons 4/255,2/255,8")
    assert settings.epsilons == (2.0, 4.0, 8.0)
    mnist = "--dataset mnist --epsilon 0.2 --pgd-alpha 0.05"
    settings, _ = parse(eval_script, f"{SWEEP} {mnist} --epsilons 0.2,51/255,8/255")
    assert settings.epsilons == (8 / 255, 0.2)


@pytest.mark.parametrize(
    ("flags", "line"),
    (
        ("--epsilon 0.031", "--epsilon 0.031 is 0.031/255; 8 or 8/255 is meant?"),
        ("--pgd-alpha 0.0078", "--pgd-alpha 0.0078 is 0.0078/255; 2 or 2/255 is meant?"),
        ("--norm l_2 --epsilon 0.5", "--epsilon 0.5 is 0.5/255; 128 or 128/255 is meant?"),
        ("--noise-level 0.0314", "--noise-level 0.0314 is 0.0314/255; 8 or 8/255 is meant?"),
        ("--epsilon 80", "--epsilon 80 is 80/255, 31% of the range: is that meant?"),
        ("--epsilons 8,0.0157", "--epsilons 0.0157 is 0.0157/255; 4 or 4/255 is meant?"),
    ),
)
def test_a_radius_that_is_hardly_meant_is_told_in_one_line(flags, line, parse):
    script = eval_script if "epsilons" in flags else train
    assert parse(script, f"{flags} {SWEEP}")[1] == [line]


@pytest.mark.parametrize(
    "flags",
    (
        *("--epsilon 0", "--epsilon 8", "--epsilon 64", "--epsilon 0.1", "--norm l_2"),
        "--dataset mnist --epsilon 0.3 --pgd-alpha 0.01",
    ),
)
def test_nothing_is_told_of_other_radii(flags, parse):
    assert parse(train, flags)[1] == []


@pytest.mark.parametrize(
    ("flags", "words"),
    (
        ("--epsilon 256", "--epsilon: 256 is more than the range"),
        ("--epsilon 8 --pgd-alpha 2/1", "--pgd-alpha: 510 is more than the range"),
        ("--dataset mnist --epsilon 8 --pgd-alpha 0.1", "--epsilon: 8 is more than the range"),
        ("--dataset mnist --epsilon 0.3 --pgd-alpha 2", "--pgd-alpha: 2 is more than the range"),
    ),
)
def test_a_radius_above_the_whole_range_is_refused(flags, words, run_script):
    code, _, error = run_script(train, flags)
    assert code == 2 and words in error and error.count("\n") == 1


def test_an_l2_radius_larger_than_any_image_is_refused(run_script):
    """Digits have 1 x 32 x 32 pixels: a diagonal of 32."""
    flags = "--dataset digits --norm l_2 --limit-train 10 --limit-test 10"
    code, _, error = run_script(train, f"{flags} --epsilon {32 * 255 + 1}")
    assert code == 1 and "--epsilon 8161: no two of these images" in error
    assert error.count("\n") == 1


def test_8_where_8_of_255_is_meant_is_refused_by_the_attacks(tiny_net):
    x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    attacks = (lambda **size: pgd(tiny_net, x, y, steps=1, **size),)
    attacks += (lambda **size: trades(tiny_net, x, steps=1, **size),)
    for attack in attacks:
        for size in ({"epsilon": 8, "step_size": 0.1}, {"epsilon": 0.1, "step_size": 2}):
            with pytest.raises(ValueError, match=r"images in \[0, 1\].*/255 is meant"):
                attack(**size)
        with pytest.raises(ValueError, match="epsilon"):
            attack(epsilon=float("nan"), step_size=0.1)
        with pytest.raises(ValueError, match=r"from 0 to 6\.9282 under l_2, got 128"):
            attack(epsilon=128, step_size=0.1, norm="l_2")
        assert attack(epsilon=1, step_size=1).abs().max() <= 1
        attack(epsilon=48**0.5, step_size=2, norm="l_2")


@pytest.mark.parametrize(
    ("more", "steps"),
    (("", {"0.2": 0.05, "0.4": 0.1}), ("--pgd-alpha 0.01", {"0.2": 0.01, "0.4": 0.01})),
)
def test_the_step_of_a_run_in_image_units_is_its_own_unless_given(more, steps, tmp_path, parse):
    told = {"dataset": "mnist", "epsilon": 0.2, "pgd_alpha": 0.05, "train_mode": "pgd_train"}
    (tmp_path / "args.json").write_text(json.dumps(told))
    settings, _ = parse(eval_script, f"{tmp_path} {SWEEP} --epsilons 0.2,0.4 {more}")
    assert settings.pgd_alpha == (0.01 if more else None)
    settings = agree_with_run(settings, eval_script.results_folder(settings))
    assert settings.step_sizes == pytest.approx(steps)
    assert settings.pgd_alpha == steps["0.2"]
