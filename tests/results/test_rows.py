"""A row type knows its table, who writes it and whether it has an epsilon: RunFolder asks it."""

import math
from dataclasses import dataclass, fields, replace

import pytest
from test_scripts import make_folder, make_record

from robust_nc.results import run_folder
from robust_nc.results.conditions import conditions_of, shown_conditions, shown_rows
from robust_nc.results.files import read_rows, write_rows
from robust_nc.results.records import TABLES, Record, at_epsilon
from robust_nc.results.rows import UNTOLD, Row, radius_of
from robust_nc.results.run_folder import RunFolder
from utils import InputError


@dataclass(frozen=True)
class Spectrum(Row):
    """A row type that is added: without an epsilon, and of both scripts."""

    file = "spectrum.csv"

    epoch: int
    script: str
    rank: int
    is_full: bool = False

    @property
    def key(self):
        return self.epoch, self.script

    @property
    def swept(self):
        return self.script == "eval.py"


def spectrum(epoch, script="eval.py", **values):
    return Spectrum(epoch, script, rank=10 + epoch, **values)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder with two tables, one of the type that is added."""
    monkeypatch.setattr(run_folder, "TABLES", (*TABLES, Spectrum))
    folder = make_folder(tmp_path / "models/digits/vgg11bn/l_inf/eps8.0")
    folder.add([make_record("clean", "train"), make_record("clean", "eval")])
    folder.append([spectrum(0, "train.py"), spectrum(1, is_full=True), spectrum(0)])
    return folder


def as_recorded(folder):
    return RunFolder(folder.path).rows(Spectrum)


def test_a_row_type_without_an_epsilon_is_read_and_rewritten(folder):
    expected = [spectrum(0), spectrum(0, "train.py"), spectrum(1, is_full=True)]
    assert as_recorded(folder) == expected
    RunFolder(folder.path).append([spectrum(2)], rank=1)
    folder.settle()
    assert as_recorded(folder) == [*expected, spectrum(2)]
    assert (folder.results / "spectrum.csv").read_text().splitlines()[:2] == [
        "epoch,script,rank,is_full",
        "0,eval.py,10,False",
    ]
    assert [radius_of(row) for row in expected] == [0.0] * 3
    assert at_epsilon(expected, 8.0) == expected


def test_overwrite_drops_of_it_what_eval_recorded(folder):
    assert folder.forget_sweep() == {"metrics.csv": 1, "spectrum.csv": 2}
    assert as_recorded(folder) == [spectrum(0, "train.py")]
    assert [row.source for row in folder.records] == ["train"]


def test_resuming_drops_of_it_what_is_later(folder):
    folder.forget_from(1)
    assert as_recorded(folder) == [spectrum(0), spectrum(0, "train.py")]


def test_a_new_run_deletes_it(folder):
    folder.append([spectrum(3)], rank=1)
    folder.delete()
    assert not list(folder.results.glob("*spectrum*"))


def test_copies_of_the_tables_have_it(folder, tmp_path):
    recorded = as_recorded(folder)
    folder.copy_tables(tmp_path / "copies")
    [copied] = (tmp_path / "copies").rglob("spectrum.csv")
    assert read_rows(copied, Spectrum) == recorded


def test_no_two_row_types_share_a_table():
    names = [row_type.file for row_type in TABLES]
    assert len(set(names)) == len(names) == 6


@pytest.mark.parametrize("row_type", TABLES)
def test_fields_of_a_row_type_start_with_what_names_the_row(row_type):
    assert {"epoch", "epsilon"} <= {field.name for field in fields(row_type)}
    assert "file" not in {field.name for field in fields(row_type)}


def test_rows_without_an_epsilon_get_the_run_s_where_they_are_attacked():
    old = make_record("pgd", "eval")
    assert math.isnan(old.epsilon) and old.as_now(8.0).epsilon == 8.0
    assert math.isnan(make_record("clean", "eval").as_now(8.0).epsilon)
    seen = make_record("pgd", "train").as_now(4.0)
    assert isinstance(seen, Record) and (seen.input, seen.epsilon) == ("seen", 4.0)


def test_rows_say_how_they_were_perturbed_as_args_json_tells():
    told = {"epsilon": 128.0, "pgd_alpha": 15.0, "attack_iters": 5, "precision": "fp32"}
    trades = conditions_of(told | {"train_mode": "pgd_train_TRADES", "norm": "l_2"})
    at = conditions_of(told | {"train_mode": "pgd_train", "norm": "l_2"})
    for conditions, step in ((trades, 2 * 128 / 5), (at, 15.0)):  # TRADES has steps of its own
        seen = make_record("seen", "train").as_now(128.0, conditions)
        assert (seen.step_size, seen.steps, seen.restarts) == (step, 5, 1)
        pgd = make_record("pgd", "eval").as_now(128.0, conditions)
        assert (pgd.step_size, pgd.precision) == (15.0, "fp32") and math.isnan(pgd.noise)
        noisy = make_record("gaussian", "eval").as_now(128.0, conditions)
        assert (noisy.noise, noisy.steps) == (8.0, 0) and math.isnan(noisy.step_size)
    assert at.step_at(64.0) == 7.5 and conditions_of({}) == UNTOLD


def test_of_one_kind_of_input_and_radius_one_attack_is_shown():
    own = conditions_of({"epsilon": 8.0, "pgd_alpha": 2.0, "attack_iters": 10})
    last = conditions_of({"epsilon": 8.0, "pgd_alpha": 2.0, "attack_iters": 50})
    other = conditions_of({"epsilon": 8.0, "pgd_alpha": 1.0, "attack_iters": 20})

    def made(conditions, epsilon=8.0):
        row = replace(make_record("pgd", "eval"), epsilon=epsilon)
        return row.as_now(8.0, replace(conditions, precision="fp32"))

    clean = make_record("clean", "eval")
    assert shown_rows([made(last), made(own), clean], own, last) == [clean, made(own)]
    assert shown_rows([made(last), made(other)], own, last) == [made(last)]
    assert len(shown_rows([made(other), made(replace(other, steps=21))], own, last)) == 1
    # At other radii too: what was measured with another one is left out.
    radii = [made(own, 4.0), made(last, 4.0), made(other, 16.0)]
    assert shown_rows(radii, own, last) == [made(own, 4.0)]
    assert made(own, 4.0).step_size == 1.0


# Rows as (radius, step size, steps), and those shown of a run of PGD-10, 8/255, step 2/255.
BY_RADIUS = {
    "in proportion": (
        ((4, 1, 10), (8, 2, 10), (16, 4, 10), (16, 2, 10)),
        ((4, 1), (8, 2), (16, 4)),
    ),
    "one step": (((4, 2, 10), (8, 2, 10), (16, 2, 10), (16, 4, 10)), ((4, 2), (8, 2), (16, 2))),
    "of one radius": (((8, 2, 10), (16, 1, 10)), ((8, 2),)),
    "of others": (((4, 1, 20), (16, 1, 20), (8, 1, 20), (8, 2, 20)), ((4, 1), (8, 1), (16, 1))),
    "own before more": (((8, 2, 10), (4, 1, 50), (8, 2, 50), (16, 4, 50)), ((8, 2),)),
}


def attacked_rows(rows):
    names = ("epsilon", "step_size", "steps")
    row = replace(make_record("pgd", "eval"), restarts=1, precision="fp32")
    return [replace(row, **dict(zip(names, map(float, told), strict=True))) for told in rows]


@pytest.mark.parametrize("case", BY_RADIUS)
def test_rows_of_several_radii_are_of_one_step_rule(case):
    rows, expected = BY_RADIUS[case]
    own = conditions_of({"epsilon": 8.0, "pgd_alpha": 2.0, "attack_iters": 10})
    shown = shown_rows(attacked_rows(rows), own, own)
    assert [(row.epsilon, row.step_size) for row in shown] == list(expected)
    assert len({row.steps for row in shown}) == 1


def test_an_attack_that_is_asked_for_is_shown_with_the_run_s_own_for_the_rest():
    rows = attacked_rows([(4, 1, 10), (8, 2, 10), (8, 2, 50), (16, 1, 10), (16, 1, 50)])
    own = conditions_of({"epsilon": 8.0, "pgd_alpha": 2.0, "attack_iters": 10})
    for asked, expected in (
        ({}, [(4, 10), (8, 10)]),
        ({"steps": 50}, [(8, 50)]),
        ({"step_size": 1.0}, [(4, 10), (16, 10)]),
        ({"step_size": 1.0, "steps": 50}, [(16, 50)]),
        ({"restarts": 2}, []),
    ):
        shown = shown_conditions(rows, own, own, asked)
        made = [(row.epsilon, row.steps) for row in rows if shown.matches(row)]
        assert made == expected, asked


def test_one_level_of_noise_is_shown():
    row = replace(make_record("gaussian", "eval"), precision="fp32")
    rows = [replace(row, noise=noise) for noise in (4.0, 8.0, 16.0)]
    own, last = (conditions_of({"epsilon": 8.0, "noise_level": level}) for level in (8.0, 16.0))
    assert shown_rows(rows, own, last) == rows[1:2]
    assert shown_rows([rows[0], rows[2]], own, last) == rows[2:]
    assert shown_conditions(rows, own, last, {"noise": 4.0}).noise == 4.0


def test_rows_of_one_precision_are_shown():
    told = {"epsilon": 8.0, "pgd_alpha": 2.0, "attack_iters": 10}
    own, last = (conditions_of(told | {"precision": name}) for name in ("tf32", "bf16"))
    clean, seen = make_record("clean", "eval"), make_record("clean", "train")
    pgd = replace(make_record("pgd", "eval"), epsilon=8.0)
    both = [row.as_now(8.0, under) for row in (clean, pgd) for under in (own, last)]
    trained, strong = seen.as_now(8.0, own), replace(both[3], steps=50)
    assert len({row.key for row in both}) == 4
    assert shown_rows([trained, *both], own, last) == [both[0], both[2], trained]
    assert shown_rows([trained, both[1], both[3]], own, last) == [both[1], both[3], trained]
    # An attack that is asked for, in the precision that it was measured in.
    shown = shown_conditions([*both, strong], own, last, {"steps": 50})
    assert [row for row in (*both, strong) if shown.matches(row)] == [both[1], strong]


def test_a_bool_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "spectrum.csv"
    written = [spectrum(0, is_full=True), spectrum(1, is_full=False)]
    write_rows(path, Spectrum, written)
    assert read_rows(path, Spectrum) == written
    path.write_text(path.read_text().replace("False", "no"))
    with pytest.raises(
        InputError, match=r"spectrum\.csv: damaged \('no' is neither True nor False"
    ):
        read_rows(path, Spectrum)
