"""What reads the --out folders of eval.py: results of files, and of runs, that lie alone."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_plot import filled, make_run, record

import plot
from robust_nc import load_runs
from robust_nc.reports import figures
from robust_nc.reports.captions import caption_of
from robust_nc.reports.groups import View, group_runs
from robust_nc.reports.latex import latex_tables
from robust_nc.reports.runs import read_run
from robust_nc.reports.sweeps import given_runs, runs_at
from robust_nc.reports.table import tables
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import CENTRE_INPUTS, CentreRecord, LeapRecord, Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.tables import NC1_DEFINITION
from utils import InputError

NAMES = {"dataset": "cifar", "model": "vgg11bn", "norm": "l_inf", "epsilon": 8.0, "seed": 1}
NAMES |= {"train_mode": "std_train", "bn": "batch", "limit_train": None, "pgd_alpha": 2.0}
BLOCKS = ("conv1", "features")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(plot.RC, "savefig.dpi", 40)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))


def rows_of(number, name):
    """What a sweep of two radii, layers and nearest centres records of one file."""
    inputs = [record(number, "clean", 0.5), record(number, "pgd", 0.3)]
    inputs.append(replace(record(number, "pgd", 0.2), epsilon=16.0))
    where = {"epoch": number, "split": "train", "input": "clean"}
    layers = [
        filled(LayerRecord, 0.5, **where, layer=layer, index=index, features=8)
        for index, layer in enumerate(BLOCKS)
    ]
    where = {"epoch": number, "split": "test", "means": "clean", "layer": "features"}
    centres = [
        filled(CentreRecord, 0.5, **where, input=kind, epsilon=8.0) for kind in CENTRE_INPUTS
    ]
    return [[row.of_file(name) for row in rows] for rows in (inputs, layers, centres)]


def make_results(out="res", files=("A.pth", "B.pth")):
    """The folder of `eval.py --checkpoint A.pth B.pth --out res`."""
    folder = RunFolder(Path(out), results=Path(out))
    folder.open()
    told = NAMES | {"checkpoint": list(files), "out": out}
    told["files"] = {name: [number, f"{number}"] for number, name in enumerate(files)}
    folder.sweep_file.write_text(json.dumps(told))
    for number, name in enumerate(files):
        for rows in rows_of(number, name):
            folder.append(rows)
    return folder.results


def labels(figure):
    return [curve.style.label for _, curves in figure.panels for curve in curves]


def test_radii_layers_and_nearest_centres_are_drawn_of_every_file():
    drawn = figures.all_pictures(group_runs(runs_at(make_results())), View())
    plots = {picture.name: picture for picture in drawn}
    place = "cifar_vgg11bn_l_inf_eps8.0"
    radii = "epsilon_cifar_vgg11bn_l_inf"
    assert {*plots} == {radii, *(f"{kind}_{place}" for kind in ("file", "layers", "ncc"))}
    assert {*labels(plots[radii])} == {"A.pth", "B.pth"}
    for kind in ("layers", "ncc"):
        heads = [panel.head for panel, _ in plots[f"{kind}_{place}"].panels]
        assert [*dict.fromkeys(heads)] == ["A.pth", "B.pth"]
    for picture in drawn:  # nothing tells how they were trained
        assert "A.pth and B.pth; cifar, vgg11bn, l_inf" in picture.title
        assert not any(word in caption_of(picture) for word in ("ST", "epoch", "seed"))
    beside = plots[f"file_{place}"]
    assert beside.x_names == {0: "clean", 1: "PGD"}
    assert labels(beside)[:2] == ["A.pth", "B.pth"]
    assert [list(curve.points()[1]) for curve in beside.panels[0][1]] == [[0.5, 0.3]] * 2


def test_leaps_and_the_simplex_are_drawn_of_every_file():
    folder = RunFolder(make_results(), results=Path("res"))
    for number, name in enumerate(("A.pth", "B.pth")):
        leap = {"true_class": 0, "nearest_class": 1, "count": 4, "images": 4}
        where = {"epoch": number, "split": "train", "input": "pgd", "epsilon": 8.0}
        folder.append([LeapRecord(**where, **leap).of_file(name)])
    drawn = figures.all_pictures(group_runs(runs_at(Path("res"))), View())
    [leaps] = [picture for picture in drawn if picture.name.startswith("leaps_")]
    assert leaps.title.startswith("Leaps: A.pth and B.pth; ")
    titles = [ax.get_title() for ax in leaps.paint(0).axes]
    assert {title.split(",")[0] for title in titles if title} == {"A.pth", "B.pth"}


def test_leaps_alone_make_no_table():
    run = RunFolder(make_run(epochs=(0,)))
    run.table(Record).unlink()
    leap = {"true_class": 0, "nearest_class": 1, "count": 4, "images": 4}
    run.append([LeapRecord(epoch=0, split="train", input="pgd", epsilon=8.0, **leap)])
    words, table = tables(group_runs([read_run(run.path)]), View())
    assert (words, len(table.splitlines())) == (f"{NC1_DEFINITION}\n", 1)


def test_files_and_runs_stand_side_by_side_in_tables_for_papers():
    groups = group_runs([*runs_at(make_results()), read_run(make_run(epochs=(0, 1)))])
    _, table = tables(groups, View())
    lines = latex_tables(table)
    assert lines.index("ST") < lines.index("A.pth") < lines.index("B.pth")


def test_plot_draws_the_folder_and_what_lies_beside_runs(monkeypatch):
    run = make_run(epochs=(0, 1), flags={"epochs": 2})
    words = [str(make_results()), str(run), "--out", "figures", "--table"]
    monkeypatch.setattr(sys, "argv", ["plot.py", *words])
    plot.main()
    assert Path("figures/epsilon_cifar_vgg11bn_l_inf.png").is_file()
    table = Path("figures/table.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in table[1:]} == {"A.pth", "B.pth", "std_train"}


def test_files_are_not_compared_against_epochs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plot.py", str(make_results()), "--compare"])
    with pytest.raises(InputError, match=r"--compare draws runs .* A.pth, B.pth have none"):
        plot.main()


def test_files_are_named_by_their_last_part_where_that_tells_them_apart():
    apart = runs_at(make_results("one", ("x/A.pth", "y/B.pth")))
    alike = runs_at(make_results("two", ("x/A.pth", "y/A.pth")))
    assert [run.file for run in apart + alike] == ["A.pth", "B.pth", "x/A.pth", "y/A.pth"]
    # Of one name in two folders: the folder tells them apart.
    runs = runs_at(make_results("one", ("A.pth",))) + runs_at(make_results("two", ("A.pth",)))
    assert [group.differs for group in group_runs(runs)] == [{"results": "one"}, {"results": "two"}]


def test_what_was_measured_of_one_file_is_not_missing_of_another():
    folder = RunFolder(make_results(), results=Path("res"))
    stronger = replace(record(0, "pgd", 0.1), steps=50, step_size=2.0).of_file("A.pth")
    folder.append([stronger])
    first, second = runs_at(Path("res"))
    assert [row.epsilon for row in second.records if row.input == "pgd"] == [8.0, 16.0]
    assert {row.input for row in first.records} == {"clean", "pgd"}


def test_a_run_that_was_swept_into_a_folder_of_its_own_keeps_what_it_was_trained_with():
    run = make_run(3, "pgd_train", epochs=(0,), inputs=("clean",), flags={"epochs": 1, "lr_max": 1})
    out = RunFolder(run, results=Path("swept"))
    out.open()
    told = NAMES | {"train_mode": "pgd_train", "seed": 3, "out": "swept", "run": str(run.resolve())}
    out.sweep_file.write_text(json.dumps(told))
    out.append([record(0, "pgd", 0.4)])
    [swept] = runs_at(Path("swept"))
    assert (swept.mode, swept.seed, swept.flags["lr_max"]) == ("pgd_train", 3, 1)
    assert [row.input for row in swept.records] == ["pgd"]
    assert given_runs([Path("swept")])[0].place == Path("swept")
    run.rename("gone")
    [swept] = runs_at(Path("swept"))
    assert (swept.mode, swept.seed, swept.last_epoch) == ("pgd_train", 3, 0)
    # The results/ of a run's folder are that run.
    [own] = runs_at(Path("gone/results"))
    assert own.path == Path("gone") and own.flags["lr_max"] == 1


def test_load_runs_reads_files_with_their_names_wherever_they_lie():
    make_results("here/results")  # as the README calls it
    make_run(epochs=(0,), inputs=("clean",), flags={"epochs": 1}, models="here/models")
    rows = load_runs("here")
    assert [row["checkpoint"] for row in rows] == [""] + ["A.pth"] * 3 + ["B.pth"] * 3
    assert [row["train_mode"] for row in rows] == ["std_train"] + [""] * 6
    assert load_runs(["here/results"]) == [
        row | {"differs": ""} for row in rows if row["checkpoint"]
    ]
    assert [row["layer"] for row in load_runs("here/results", "layers")] == [*BLOCKS, *BLOCKS]


def test_a_report_says_what_reads_them():
    with pytest.raises(InputError, match=r"--runs res: holds no run.*plot\.py .*load_runs"):
        given_runs([make_results()])
