"""Attacks and noise beside each other: figures are of one, tables of all; flags draw another."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_plot import filled, make_run, record, write_table

import plot
from robust_nc.reports.figures import all_plots
from robust_nc.reports.groups import View, group_runs
from robust_nc.reports.report import radii_in_words, summary_in_words
from robust_nc.reports.runs import read_run
from robust_nc.results.records import AutoAttackRecord, LeapRecord

NAME = "st_cifar_vgg11bn_l_inf_eps8.0"
OWN = {"pgd_alpha": 2.0, "attack_iters": 10, "restarts": 1, "epochs": 3, "noise_level": 8.0}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "draw", lambda _: Figure(figsize=(1, 1)))


def pgd(value, radius=8.0, step=2.0, steps=10, epoch=2, kind="pgd", **known):
    attack = {"epsilon": radius, "step_size": step, "steps": steps, "restarts": 1}
    return record(epoch, kind, value, **{"precision": "fp32"} | attack | known)


def noisy(value, noise):
    return record(2, "gaussian", value, precision="fp32", noise=noise)


def clean(value=0.9, source="eval", **known):
    return record(2, "clean", value, source, **{"precision": "fp32"} | known)


def run_of(*rows, seed=1, mode="std_train", **flags):
    return make_run(seed, mode, records=[clean(), *rows], flags=OWN | flags)


def heights(plots, name, panel=0):
    """Label of a line -> its values, of a panel of the figure."""
    [figure] = [figure for figure in plots if figure.name == name]
    return {c.style.label: c.points()[1].tolist() for c in figure.panels[panel][1]}


def drawn(*paths, view=View(), **asked):  # noqa: B008 (a NamedTuple)
    return all_plots(group_runs([read_run(path, asked) for path in paths]), view)


def table():
    with open("figures/table.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]


def test_budgets_are_rows_of_the_table_and_figures_draw_the_run_s_own(run_script):
    path = run_of(pgd(0.5), pgd(0.25, steps=50), noisy(0.7, 8.0), noisy(0.6, 4.0))
    _, output, _ = run_script(plot, f"{path} --table")
    told = [(r["input"], r["attack"], r["steps"], r["step_size"], r["mean"]) for r in table()]
    assert told == [
        ("clean", "", "", "", "0.9"),
        ("pgd", "PGD-10, 8/255, step 2/255", "10", "2.0", "0.5"),
        ("pgd", "PGD-50, 8/255, step 2/255", "50", "2.0", "0.25"),
        ("gaussian", "noise 8/255", "", "", "0.7"),
        ("gaussian", "noise 4/255", "", "", "0.6"),
    ]
    lines = Path("figures/table.md").read_text().splitlines()
    [line] = [line for line in lines if "PGD-50, 8/255, step 2/255" in line]
    assert line.startswith("| pgd | train | 100 | 8/255 | 2 | 0.2500 |")
    others = "PGD-50, 8/255, step 2/255 (--attack-iters 50); noise 4/255 (--noise-level 4)"
    assert f"{NAME}: measured as well, and not drawn: {others}" in output.splitlines()
    found = heights(drawn(path), NAME)
    assert (found["PGD"], found["Gaussian noise"]) == ([0.5], [0.7])


def test_an_attack_of_several_seeds_is_named_once(run_script):
    first = run_of(pgd(0.5), pgd(0.2, steps=50), pgd(0.3, 4.0, 1.0, 50))
    second = run_of(pgd(0.6), pgd(0.1, steps=50), seed=2)
    output = run_script(plot, f"{first} {second}")[1]
    told = "PGD-50, 4/255, step 1/255; PGD-50, 8/255, step 2/255 (--attack-iters 50)"
    assert f"{NAME}: measured as well, and not drawn: {told}" in output.splitlines()


def test_flags_draw_another_attack_under_a_name_of_its_own(run_script):
    path = run_of(pgd(0.5), pgd(0.25, steps=50), pgd(0.3, step=1.0, steps=50))
    _, output, _ = run_script(plot, f"{path} --attack-iters 50 --table")
    assert f"figures/{NAME}_attack-iters50.png" in output
    assert "(--attack-iters 50 --pgd-alpha 1)" in output and "(--attack-iters 10)" in output
    assert len(table()) == 4  # the table has all, whatever is drawn
    [figure] = drawn(path, view=View(asked=("attack-iters 50",)), steps=50)
    assert "seed 1, attack-iters 50; n = 100" in figure.title
    assert heights([figure], f"{NAME}_attack-iters50")["PGD"] == [0.25]


@pytest.mark.parametrize(
    ("flag", "told"),
    (
        ("--attack-iters 20", "measured are: PGD-50, 8/255, step 2/255 (--attack-iters 50)"),
        ("--pgd-alpha 1/255", "nothing was measured with --pgd-alpha 1/255; measured are: PGD-50"),
        ("--noise-level 3", "nothing was measured with --noise-level 3; measured are:"),
    ),
)
def test_what_was_not_measured_is_refused_with_what_was(run_script, flag, told):
    code, _, error = run_script(plot, f"{run_of(pgd(0.25, steps=50))} {flag}")
    assert code == 1 and told in error and error.count("\n") == 1
    assert not Path("figures").exists()


def test_an_attack_that_leaps_alone_were_measured_under_is_known(run_script):
    path = run_of()
    attack = {"input": "pgd", "epsilon": 8.0, "step_size": 2.0, "steps": 50, "restarts": 1}
    counted = {"epoch": 2, "split": "train", "count": 4, "images": 4, "precision": "fp32"}
    row = filled(LeapRecord, 0, **attack, **counted)
    write_table(path / "results/leaps.csv", LeapRecord, [row])
    told = run_script(plot, f"{path}")[1]
    assert f"{NAME}: drawn is not the runs' own attack or noise, but PGD-50" in told
    assert run_script(plot, f"{path} --attack-iters 50")[0] == 0
    code, _, error = run_script(plot, f"{path} --attack-iters 20")
    assert code == 1 and "measured are: PGD-50" in error


@pytest.mark.parametrize("flag", ("--pgd-alpha 0", "--attack-iters 0", "--restarts 1.5"))
def test_flags_without_a_meaning_are_refused(run_script, flag):
    code, _, error = run_script(plot, f"{run_of(pgd(0.5))} {flag}")
    assert code == 2 and flag.split()[0] in error and error.count("\n") == 1


def test_a_curve_against_the_radius_is_of_one_step_rule(run_script):
    rows = [pgd(0.5), pgd(0.75, 4.0, 1.0), pgd(0.1, 16.0, 1.0), pgd(0.6, 4.0, 1.0, 50)]
    path, name = run_of(*rows), "epsilon_cifar_vgg11bn_l_inf"
    assert heights(drawn(path), name) == {"ST": [0.9, 0.75, 0.5]}
    output = run_script(plot, str(path))[1]
    assert "PGD-10, 16/255, step 1/255 (--pgd-alpha 1)" in output
    [run] = [read_run(path)]
    assert "16/255" not in radii_in_words([run]) and "| 4/255 | 0.750 |" in radii_in_words([run])
    # One step at every radius: that of 4/255 is among both.
    run_script(plot, f"{path} --pgd-alpha 1")
    assert Path(f"figures/{name}_pgd-alpha1.png").exists()
    fixed = {"step_size": plot.radius("1")}
    assert heights(drawn(path, **fixed), name) == {"ST": [0.9, 0.75, 0.1]}


def test_only_rows_that_are_shown_set_seeds_apart():
    first = run_of(pgd(0.5), noisy(0.5, 8.0), noisy(0.4, 4.0))
    second = run_of(pgd(0.7), pgd(0.2, 16.0, 1.0, 50), noisy(0.7, 8.0), seed=2)
    for path, told in ((first, '{"noise_level": 4.0}'), (second, '{"attack_iters": 50}')):
        (path / "results/eval_args.json").write_text(told)
    assert heights(drawn(first, second), NAME)["PGD"] == [pytest.approx(0.6)]
    asked = {"noise": plot.radius("4")}
    assert len(group_runs([read_run(path, asked) for path in (first, second)])) == 1


def test_an_attack_of_one_seed_has_a_row_that_names_it(run_script):
    paths = [run_of(pgd(0.5)), run_of(pgd(0.7), pgd(0.1, steps=50), seed=2)]
    run_script(plot, f"{paths[0]} {paths[1]} --table")
    told = {r["attack"]: (r["seeds"], float(r["mean"])) for r in table() if r["input"] == "pgd"}
    assert told == {
        "PGD-10, 8/255, step 2/255": ("1 2", pytest.approx(0.6)),
        "PGD-50, 8/255, step 2/255": ("2", 0.1),
    }


def test_lines_of_another_precision_say_so(run_script):
    rows = [pgd(0.5), clean(0.8, "train", precision="bf16")]
    path = run_of(*rows)
    found = heights(drawn(path), NAME)
    assert found == {
        "clean": [0.9],
        "PGD": [0.5],
        "clean, bf16": [0.8],
    }
    run_script(plot, f"{path} --table")
    told = [(row["input"], row["precision"], row["mean"]) for row in table()]
    assert told == [("clean", "fp32", "0.9"), ("clean", "bf16", "0.8"), ("pgd", "fp32", "0.5")]
    lines = summary_in_words([read_run(path)]).splitlines()[2:]
    assert [line.split(" | ")[3] for line in lines] == ["train, clean", "train, PGD, n = 100, fp32"]


def test_one_precision_of_the_sweeps_is_drawn_and_the_table_has_all(run_script):
    tested = filled(AutoAttackRecord, 0.25, epoch=2, split="test", images=100, epsilon=8.0)
    paths = []
    for seed in (1, 2):
        rows = [pgd(0.5), pgd(0.25, precision="bf16"), clean(0.8, precision="bf16")]
        paths.append(run_of(*rows[: 3 if seed == 1 else 1], seed=seed, precision="fp32"))
    both = [replace(tested, precision=name) for name in ("fp32", "bf16")]
    write_table(paths[0] / "results/autoattack.csv", AutoAttackRecord, both)
    (paths[0] / "results/eval_args.json").write_text('{"precision": "bf16"}')
    (paths[1] / "results/eval_args.json").write_text('{"precision": "fp32"}')
    assert heights(drawn(*paths), NAME) == {"clean": [0.9], "PGD": [0.5]}
    _, output, _ = run_script(plot, f"{paths[0]} {paths[1]} --table --split both")
    assert (
        f"{NAME}: measured as well, and not drawn: rows in bf16 (--precision bf16)"
        in output.splitlines()
    )
    told = [(r["input"], r["precision"], r["seeds"]) for r in table() if r["split"] == "train"]
    precisions = (("fp32", "1 2"), ("bf16", "1"))
    assert sorted(told) == sorted((kind, *p) for kind in ("clean", "pgd") for p in precisions)
    tested = [(r["input"], r["precision"]) for r in table() if r["input"] == "autoattack"]
    assert sorted(tested) == [("autoattack", "bf16"), ("autoattack", "fp32")]


def test_another_precision_is_drawn_where_it_is_asked_for(run_script):
    path = run_of(pgd(0.5), pgd(0.25, precision="bf16"), precision="fp32")
    assert heights(drawn(path), NAME)["PGD"] == [0.5]
    own = {"precision": "bf16"}
    assert {row.accuracy for row in read_run(path, own).of_epoch(2, "pgd")} == {0.25}
    code, output, _ = run_script(plot, f"{path} --precision bf16")
    assert code == 0 and "rows in fp32 (--precision fp32)" in output
    assert Path(f"figures/{NAME}_precisionbf16.png").is_file()
    code, _, error = run_script(plot, f"{path} --precision tf32")
    assert code == 1 and "nothing was measured with --precision tf32" in error


def test_rows_of_one_table_name_their_attack_where_they_are_of_several():
    at, trades = (
        run_of(pgd(0.5, steps=steps), pgd(0.4, 4.0, 1.0, steps), mode=mode, attack_iters=steps)
        for mode, steps in (("pgd_train", 10), ("pgd_train_TRADES", 3))
    )
    for paths, names in (((at,), [""]), ((at, trades), [", PGD-10, {}", ", PGD-3, {}"])):
        runs = [read_run(path) for path in paths]
        for words, cell in ((summary_in_words(runs), 3), (radii_in_words(runs), 4)):
            cells = [line.split(" | ")[cell] for line in words.splitlines()[2:]]
            found = [c for c in cells if "8/255" in c or c == "train, PGD"]
            before = "train, PGD" if cell == 3 else "8/255"
            assert found == [before + name.format("8/255, step 2/255") for name in names]


def test_what_is_not_the_run_s_own_is_told(run_script):
    path = run_of(pgd(0.5, steps=50), noisy(0.6, 4.0))
    told = "drawn is not the runs' own attack or noise, but PGD-50, 8/255, step 2/255; noise 4/255"
    assert f"{NAME}: {told}" in run_script(plot, str(path))[1]
    assert told not in run_script(plot, f"{path} --attack-iters 50 --noise-level 4")[1]


def test_radii_of_some_seeds_alone_are_told(run_script):
    rows = [pgd(0.5), pgd(0.75, 4.0, 1.0)]
    paths = [run_of(*rows, pgd(0.1, 16.0, 4.0)), run_of(*rows, seed=2)]
    output = run_script(plot, f"{paths[0]} {paths[1]}")[1]
    assert "left out, not measured by all seeds: PGD of 16/255" in output


def test_numbers_that_not_all_seeds_have_say_of_how_many_they_are():
    paths = [run_of(pgd(0.5), seed=seed) for seed in (1, 2)]
    table = paths[1] / "results/metrics.csv"
    lines = list(csv.DictReader(table.read_text().splitlines()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows([row | {"nc1": ""} if row["input"] == "pgd" else row for row in lines])
    line = summary_in_words([read_run(path) for path in paths]).splitlines()[-1]
    assert "| 2 | train, PGD | 0.500 ± 0.000 | 0.50 (1 of 2 seeds) | 0.500 ± 0.000 |" in line


def test_attacks_are_drawn_of_pgd_on_the_checkpoint(run_script):
    rows = [replace(pgd(0.5, kind="seen"), source="train"), pgd(0.4), pgd(0.1, steps=50)]
    path = run_of(*rows, mode="pgd_train")
    name = NAME.replace("st_", "at_")
    assert "training-time adversarial" in heights(drawn(path), name)
    output = run_script(plot, f"{path} --attack-iters 50")[1]
    assert f"figures/{name}_attack-iters50.png" in output and "drawn is" not in output
    assert np.allclose(heights(drawn(path, view=View(perturbed="pgd"), steps=50), name)["PGD"], 0.1)
