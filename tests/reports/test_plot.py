"""plot.py as a user runs it: which figures, what they are made of, the table, bad input."""

import csv
import json
import math
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import plot
from robust_nc.data.inputs import INPUTS
from robust_nc.reports import (
    block_figures,
    comparisons,
    drawing,
    figures,
    groups,
    runs,
    style,
    vertex_figures,
)
from robust_nc.reports.captions import caption_of
from robust_nc.reports.groups import View, average, group_runs
from robust_nc.reports.radius_figures import epsilon_plots
from robust_nc.reports.runs import read_run
from robust_nc.results.history import EpochSummary
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import (
    AutoAttackRecord,
    CentreRecord,
    LeapRecord,
    Record,
    SimplexRecord,
)
from robust_nc.results.run_folder import RunFolder
from robust_nc.training.modes import MODES
from robust_nc.training.schedules import learning_rate

NOISY = ("clean", "pgd", "gaussian", "sign")
SEEN = ("clean", "seen", "gaussian", "sign")
AS_USUAL = View()
ALL_PANELS = View(panels="all")
PGD = View(perturbed="pgd")
DISTANCE = "distance (targeted: to target's class)"
ANGLE = "angle (targeted: to target's class)"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setitem(plot.RC, "savefig.dpi", 40)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty pictures, for tests of what is said beside them."""
    monkeypatch.setattr(plot, "draw", lambda _: Figure(figsize=(1, 1)))


def record(epoch, input, value, source="eval", split="train", **known):
    """A row whose metrics are all the same value, with distances where they are measured."""
    row = {"source": source, "epoch": epoch, "split": split, "input": input}
    row["epsilon"] = 8.0 if INPUTS[input].attacked else math.nan
    if not INPUTS[input].from_clean:
        names = [field.name for field in fields(Record) if field.name.startswith("clean_")]
        row |= dict.fromkeys(names, math.nan)
    if not INPUTS[input].targeted:
        row |= dict.fromkeys(("own_distance", "own_angle"), math.nan)
    return filled(Record, value, **row | known)


def filled(row_type, value, **known):
    """A row that has the value in every field that is not known."""
    counts = {"images": 100, "centre_images": 100, "attempts": 1}
    values = {f.name: counts.get(f.name, value) for f in fields(row_type)}
    none = {"epsilon": math.nan} if "epsilon" in values else {}
    untold = ("checkpoint", "step_size", "steps", "restarts", "noise", "precision")
    none |= {f.name: f.default for f in fields(row_type) if f.name in untold}
    return row_type(**values | none | known)


def make_run(
    seed=1,
    mode="std_train",
    epochs=(0, 1, 2),
    inputs=NOISY,
    value=0.5,
    epsilon=8.0,
    records=(),
    models="models",
    flags=None,
):
    """A run folder with the value in every row, or the given records; its path.

    With `flags` it has an args.json with these and those of its path.
    """
    path = Path(models) / "cifar" / "vgg11bn" / "l_inf" / f"eps{epsilon}" / mode / f"seed{seed}"
    run = RunFolder(path, standard=mode == "std_train")
    run.open()
    run.add(list(records) or [record(e, name, value) for e in epochs for name in inputs])
    if flags is not None:
        told = {"dataset": "cifar", "model": "vgg11bn", "norm": "l_inf", "epsilon": epsilon}
        told |= {"train_mode": mode.removesuffix("_batch"), "seed": seed} | flags
        (run.path / "args.json").write_text(json.dumps(told))
    return run.path


def write_table(path, row_type, rows):
    names = [field.name for field in fields(row_type)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([names, *([getattr(row, name) for name in names] for row in rows)])


def history(schedule, epochs):
    """The rows that train.py writes: each epoch with the learning rate of its last step."""
    return [
        filled(
            EpochSummary,
            0.5,
            epoch=e,
            lr=learning_rate(schedule, e + 1, epochs=epochs, lr_max=0.1),
        )
        for e in range(epochs)
    ]


def groups_of(*paths):
    return group_runs([read_run(path) for path in paths])


def group_of(*paths):
    [group] = groups_of(*paths)
    return group


def shown(group, view=AS_USUAL):
    """The group's lines under a view, by split and kind of input."""
    return {(name.split, name.input): line for name, line in group.shown(view).items()}


def values(group, input, field="nc1", view=AS_USUAL):
    x, mean, std = average(shown(group, view)["train", input], field)
    return x.tolist(), mean.tolist(), std.tolist()


def group_plots(group, view=AS_USUAL):
    return figures.all_plots([group], view)


def labels(plot):
    """The legend of a figure: its lines' labels."""
    return list(dict.fromkeys(curve.style.label for _, curves in plot.panels for curve in curves))


def table_rows():
    with open("figures/table.csv", newline="") as file:
        return {(row["mode"], row["input"], row["metric"]): row for row in csv.DictReader(file)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_with(seed=1, mode="std_train", value=0.5, **flags):
    """A run in a folder of models of its own, whose args.json has these flags."""
    models = "-".join(["models", *(f"{name}={value}" for name, value in flags.items())])
    return make_run(seed, mode, models=models.replace("/", ""), value=value, flags=flags)


class TestGroups:
    PLACE = "cifar_vgg11bn_l_inf_eps8.0"

    @pytest.mark.parametrize(
        ("flag", "first", "second", "names"),
        [
            ("lr_max", 0.1, 0.05, ("lr-max0.1", "lr-max0.05")),
            ("lr_max", 0.1, 0.1000000001, ("lr-max0.1", "lr-max0.1000000001")),
            ("epochs", 400, 200, ("epochs400", "epochs200")),
            ("optimizer", "sgd", "adam", ("optimizersgd", "optimizeradam")),
            ("limit_train", None, 1000, ("limit-trainnone", "limit-train1000")),
            ("precision", "tf32", "a b/c", ("precisiontf32", "precisiona-b-c")),
            ("mean", [0.25, 0.5], [0.25, 0.125], ("mean0.25-0.5", "mean0.25-0.125")),
            ("train_digest", "0a", "0b", ("train-digest0a", "train-digest0b")),
            ("data_mean", [0.25], [0.5], ("data-mean0.25", "data-mean0.5")),
            ("a_flag_to_come", False, True, ("a-flag-to-comeoff", "a-flag-to-comeon")),
        ],
    )
    def test_runs_that_differ_in_a_flag_are_not_averaged(self, here, flag, first, second, names):
        paths = [run_with(1, **{flag: first}), run_with(2, **{flag: second})]
        groups = groups_of(*paths)
        assert [[run.path for run in group.runs] for group in groups] == [paths[:1], paths[1:]]
        assert [g.file_name() for g in groups] == [f"st_{self.PLACE}_{name}" for name in names]
        assert len({group.title() for group in groups}) == 2

    @pytest.mark.parametrize(
        ("flag", "first", "second"),
        [
            ("data_dir", "data", "/elsewhere"),
            ("models_dir", "models", "/elsewhere"),
            ("device", "cpu", "cuda"),
            ("compile", False, True),
            ("checkpoint_epochs", None, "log"),
            ("eval_batch_size", None, 64),
            ("resume", None, "last"),
            ("overwrite", False, True),
            ("neural_collapse", False, True),
            ("limit_test", None, 100),
            ("git_commit", "a", "b"),
            ("git_dirty", False, True),
            ("ran_on", "CPU", "GPU"),
            ("versions", {"torch": "2"}, {"torch": "3"}),
            ("epsilon", 8, 8.0),
            ("lr_drop_epoch", 100, 50),  # of another schedule
        ],
    )
    def test_what_cannot_change_a_number_may_differ(self, here, flag, first, second):
        group = group_of(run_with(1, **{flag: first}), run_with(2, **{flag: second}))
        assert [run.seed for run in group.runs] == [1, 2]
        assert group.file_name() == f"st_{self.PLACE}"
        assert group.title() == "ST, cifar, vgg11bn, l_inf, epsilon 8/255, seeds 1, 2"

    def test_the_drop_of_onedrop_sets_its_runs_apart(self, here):
        onedrop = {"lr_schedule": "onedrop"}
        paths = [run_with(s, **onedrop, lr_drop_epoch=d) for s, d in ((1, 100), (2, 50))]
        assert [len(group.runs) for group in groups_of(*paths)] == [1, 1]

    def test_runs_that_differ_in_many_flags_have_names_that_files_can_have(self, here):
        many = [{f"flag_number_{i}": value for i in range(30)} for value in (0, 1)]
        paths = [make_run(s, models=f"m{s}", flags=flags) for s, flags in enumerate(many, 1)]
        names = [group.file_name("layers") for group in groups_of(*paths)]
        assert len(set(names)) == 2 and max(map(len, names)) < 200
        assert all("flag-number-0" in name for name in names)

    def test_a_run_joins_the_first_group_that_it_agrees_with_in_what_it_tells(self, here):
        first = run_with(1, lr_max=0.1, optimizer="sgd")
        other = run_with(1, lr_max=0.05, optimizer="sgd")
        silent, partly = make_run(2), run_with(3, lr_max=0.05)
        groups = groups_of(first, other, silent, partly)
        assert [[run.path for run in g.runs] for g in groups] == [[first, silent], [other, partly]]

    def test_a_run_must_agree_with_all_of_a_group_not_with_its_first_run_alone(self, here):
        paths = [make_run(1), run_with(2, lr_max=0.1), run_with(3, lr_max=0.05)]
        groups = groups_of(*paths)
        assert [[run.path for run in g.runs] for g in groups] == [paths[:2], paths[2:]]

    def test_images_perturbed_in_training_are_not_averaged_with_those_of_a_sweep(self, here):
        seen, pgd = record(0, "pgd", 0.25, "train"), record(0, "pgd", 0.75)
        trained, swept, both, more = (
            make_run(seed, "pgd_train", records=rows)
            for seed, rows in enumerate(([seen], [pgd], [seen, pgd], [seen]))
        )
        groups = groups_of(trained, swept, both, more)
        assert [[run.path for run in g.runs] for g in groups] == [[trained, both, more], [swept]]
        assert [group.differs for group in groups] == [{"perturbed": "seen"}, {"perturbed": "pgd"}]
        assert values(groups[0], "seen")[:2] == ([0], [0.25])
        assert values(groups[1], "pgd")[:2] == ([0], [0.75])
        assert ("train", "pgd") not in shown(groups[0], PGD)

    def test_runs_on_other_numbers_of_images_are_not_averaged(self, run_script, undrawn):
        sizes = {1: {"train": 100}, 2: {"train": 200}, 3: {"train": 100, "test": 30}}
        sizes |= {4: {"train": 100, "test": 40}, 5: {"train": 0}}
        paths = [
            make_run(seed, records=[record(0, "clean", 0.5, split=s, images=n) for s, n in of])
            for seed, of in ((seed, told.items()) for seed, told in sizes.items())
        ]
        groups = groups_of(*paths)
        assert [[run.seed for run in group.runs] for group in groups] == [[1, 3], [2], [4], [5]]
        differs = [{"images": n} for n in ("100", "200", "100", "untold")]
        differs[0]["test images"], differs[2]["test images"] = "30", "40"
        assert [group.differs for group in groups] == differs
        output = run_script(plot, " ".join(map(str, paths)))[1]
        line = "runs differ in images (100, 200, untold), test images (30, 40): drawn apart"
        assert f"st_{self.PLACE}: {line}" in output.splitlines()
        assert Path(f"figures/st_{self.PLACE}_images100_test-images30.png").exists()

    def test_runs_that_were_swept_in_another_way_are_not_averaged(self, run_script, undrawn):
        paths = [run_with(seed, epochs=3) for seed in (1, 2, 3)]
        for path, steps in zip(paths, (10, 10, 20), strict=True):
            told = {"attack_iters": steps, "limit_train": None, "seed": 9, "device": "cpu"}
            (path / "results" / "eval_args.json").write_text(json.dumps(told))
        groups = groups_of(*paths)
        assert [[run.seed for run in group.runs] for group in groups] == [[1, 2], [3]]
        output = run_script(plot, " ".join(map(str, paths)))[1]
        line = f"st_{self.PLACE}: runs differ in --attack-iters of the sweep (10, 20): drawn apart"
        assert line in output.splitlines()
        assert Path(f"figures/st_{self.PLACE}_attack-iters-of-the-sweep20.png").exists()

    def test_a_step_size_counts_at_its_own_radius(self, here):
        paths = [run_with(seed, epochs=3) for seed in (1, 2, 3, 4)]
        older = {"pgd_alpha": 2.0, "epsilon": 8.0}  # before there were several radii
        for path, told in zip(
            paths,
            (
                older,
                {"pgd_alpha": 1.0, "step_sizes": {"8": 2.0, "4": 1.0}},
                {"pgd_alpha": 2.0, "step_sizes": {"8": 2.0}},
                {"pgd_alpha": 2.0, "step_sizes": {"8": 2.0, "4": 3.0}},
            ),
            strict=True,
        ):
            (path / "results" / "eval_args.json").write_text(json.dumps(told))
        groups = groups_of(*paths)
        assert [[run.seed for run in group.runs] for group in groups] == [[1, 2, 3], [4]]

    def test_one_line_says_what_differs_and_names_and_titles_do(self, run_script, undrawn):
        paths = [run_with(seed, lr_max=lr, epochs=9) for seed in (1, 2) for lr in (0.1, 0.05)]
        paths.append(make_run(mode="pgd_train", flags={"lr_max": 0.2}))
        code, output, _ = run_script(plot, " ".join(map(str, paths)))
        told = [line for line in output.splitlines() if "differ" in line]
        assert code == 0
        assert told == [f"st_{self.PLACE}: runs differ in --lr-max (0.1, 0.05): drawn apart"]
        first, second, other = groups_of(*paths)
        assert first.title() == "ST, cifar, vgg11bn, l_inf, epsilon 8/255, lr-max 0.1, seeds 1, 2"
        assert second.title() == "ST, cifar, vgg11bn, l_inf, epsilon 8/255, lr-max 0.05, seeds 1, 2"
        assert other.title() == "AT, cifar, vgg11bn, l_inf, epsilon 8/255, seed 1"
        names = {f"st_{self.PLACE}_lr-max0.1", f"st_{self.PLACE}_lr-max0.05"}
        figures = ("at", "distance", "collapse", "collapse_loss")
        names |= {f"{figure}_{self.PLACE}" for figure in figures}
        assert {path.stem for path in Path("figures").iterdir()} == names

    def test_several_flags_and_the_statistics_of_the_images_are_told(self, run_script, undrawn):
        paths = [run_with(lr_max=0.1, mean=[0.5], epochs=9), run_with(lr_max=0.2, mean=[0.25])]
        output = run_script(plot, " ".join(map(str, paths)))[1]
        differ = "runs differ in --lr-max (0.1, 0.2), mean (0.5, 0.25): drawn apart"
        assert f"st_{self.PLACE}: {differ}" in output.splitlines()

    def test_distance_figure_has_a_line_for_each_group(self, here):
        mode = "pgd_train"
        paths = [run_with(1, mode, value=v, lr_max=lr) for v, lr in ((0.1, 0.1), (0.3, 0.05))]
        paths.append(run_with(1, "pgd_train_TRADES", value=0.7, lr_max=0.1, trades_bn="frozen"))
        [distances] = comparisons.distance_plots(groups_of(*paths), View())
        assert distances.name == f"distance_{self.PLACE}"
        figure = plot.draw(distances)
        for ax in figure.axes:
            lines = {line.get_label(): line for line in ax.lines}
            heights = {label: set(line.get_ydata()) for label, line in lines.items()}
            assert heights == {
                "AT, learning rate 0.1": {0.1},
                "AT, learning rate 0.05": {0.3},
                "TRADES (frozen BN), learning rate 0.1": {0.7},
            }
            looks = {(line.get_marker(), line.get_linestyle()) for line in ax.lines}
            assert len(looks) == 3
        [legend] = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == list(heights)

    def test_the_weight_of_a_mode_s_own_objective_tells_its_runs_apart_and_no_others(self, here):
        """A run of an older version, whose args.json does not tell beta, had 6."""
        trades = "pgd_train_TRADES"
        older = make_run(1, trades, value=0.1, flags={"lr_max": 0.1})
        three, six = (run_with(2, trades, v, lr_max=0.1, trades_beta=v) for v in (3.0, 6.0))
        robust = run_with(1, "pgd_train", 0.3, lr_max=0.1, trades_beta=6.0, restarts=1)
        groups = groups_of(older, three, six, robust)
        assert [[run.path for run in g.runs] for g in groups] == [[older, six], [three], [robust]]
        assert [group.differs for group in groups] == [
            {"trades-beta": "6"},
            {"trades-beta": "3"},
            {},
        ]
        labels = [style.label for style in comparisons.mode_styles(groups)]
        assert labels == [
            "TRADES (frozen BN), beta 6",
            "TRADES (frozen BN), beta 3",
            "AT",
        ]

    def test_the_legend_fits_the_figure_when_much_differs(self, here):
        shared = {"batch_size": 128, "lr_schedule": "superconverge", "lr_drop_epoch": 100}
        other = {"batch_size": 256, "lr_schedule": "multipledecay", "lr_drop_epoch": 150}
        paths = [
            make_run(mode="pgd_train", models=str(n), flags=f | {"lr_max": n / 10, "epochs": n})
            for n, f in enumerate((shared, other, shared, other))
        ]
        groups = groups_of(*paths)
        for one in (*group_plots(groups[0]), *comparisons.distance_plots(groups, View())):
            with plot.matplotlib.rc_context(plot.RC):
                figure = plot.draw(one)
                figure.draw_without_rendering()
                assert figure._suptitle is None
                for legend in figure.legends:
                    box = legend.get_window_extent()
                    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
                assert all(ax.get_window_extent().height > 30 for ax in figure.axes)


class TestFigures:
    @pytest.mark.slow
    def test_every_setting_has_its_figures_as_png_and_pdf(self, run_script, monkeypatch):
        drawn = plot.draw
        takes_long = ("at_", "trades_", "mart_", "collapse_")  # and other tests draw their like
        monkeypatch.setattr(
            plot,
            "draw",
            lambda p: Figure(figsize=(1, 1)) if p.name.startswith(takes_long) else drawn(p),
        )
        runs = [make_run(seed, inputs=(*NOISY, "targeted")) for seed in (1, 2)]
        modes = ("pgd_train", "pgd_train_TRADES", "pgd_train_TRADES_batch", "pgd_train_MART")
        runs += [make_run(mode=mode, inputs=SEEN) for mode in modes]
        code, output, error = run_script(plot, " ".join(map(str, runs)) + " --out drawn")
        place = "cifar_vgg11bn_l_inf_eps8.0"
        names = ("st", "st_targeted", "at", "trades", "trades_batch", "mart", "distance")
        names += ("collapse", "collapse_loss")
        expected = {f"{name}_{place}.{kind}" for name in names for kind in ("png", "pdf", "txt")}
        assert (code, error) == (0, "")
        assert {path.name for path in Path("drawn").iterdir()} == expected
        captions = [path.read_text().strip() for path in Path("drawn").glob("*.txt")]
        told = sorted([*(f"wrote drawn/{name}" for name in expected), *captions])
        assert sorted(output.splitlines()) == told
        for path in Path("drawn").iterdir():
            starts = {".pdf": b"%PDF-", ".png": b"\x89PNG\r\n\x1a\n", ".txt": b""}
            assert path.read_bytes().startswith(starts[path.suffix])

    def test_runs_of_another_epsilon_have_figures_of_their_own(self, here):
        paths = [make_run(), make_run(2), make_run(epsilon=4.0)]
        groups = groups_of(*paths)
        assert [[run.path for run in group.runs] for group in groups] == [paths[:2], paths[2:]]
        names = [group.file_name() for group in groups]
        assert names == ["st_cifar_vgg11bn_l_inf_eps8.0", "st_cifar_vgg11bn_l_inf_eps4.0"]

    def test_args_json_tells_the_setting_of_a_folder_with_any_name(self, here):
        told = {
            "dataset": "mnist",
            "model": "PreActResNet18",
            "norm": "l_2",
            "epsilon": 2,
            "train_mode": "pgd_train_TRADES",
            "trades_bn": "batch",
            "seed": 3,
        }
        path = make_run().rename("moved")
        (path / "args.json").write_text(json.dumps(told))
        group = group_of(path)
        assert group.file_name() == "trades_batch_mnist_PreActResNet18_l_2_eps2.0"
        assert group.seeds == "seed 3"

    def test_distance_figure_holds_every_mode_with_an_adversary_and_not_st(self, here):
        modes = ("std_train", "pgd_train", "pgd_train_TRADES", "pgd_train_MART")
        groups = groups_of(*(make_run(mode=mode) for mode in modes))
        [figure] = comparisons.distance_plots(groups, View())
        for _, lines in figure.panels:
            assert [curve.style.label for curve in lines] == ["AT", "TRADES (frozen BN)", "MART"]
            assert len({(curve.style.color, curve.style.marker) for curve in lines}) == 3

    def test_each_kind_of_input_keeps_its_colour_and_marker(self, here):
        path = make_run(inputs=(*NOISY, "targeted"))
        seen = {}
        for figure in group_plots(group_of(path), ALL_PANELS):
            for ax in plot.draw(figure).axes[: len(figure.panels)]:
                lines = [line for line in ax.lines if not line.get_label().startswith("_")]
                for line in lines:
                    look = line.get_color(), line.get_marker()
                    assert seen.setdefault(line.get_label(), look) == look
        looks = {label: look for label, look in seen.items() if "classifier" not in label}
        assert len(looks) == 5
        assert all(len(set(column)) == 5 for column in zip(*looks.values(), strict=True))

    def test_what_spans_orders_of_magnitude_alone_is_logarithmic(self, here):
        [figure] = group_plots(group_of(make_run()), ALL_PANELS)
        axes = plot.draw(figure).axes
        logarithmic = [ax.get_ylabel() for ax in axes if ax.get_yscale() == "log"]
        assert logarithmic == ["Loss", "NC1", "CDNV"]

    def test_long_runs_have_few_markers_and_short_ones_all(self, here):
        for epochs, fewest, most in ((range(400), 4, 6), ((0, 4, 9), 3, 3), ((0,), 1, 1)):
            path = make_run(seed=len(epochs), epochs=epochs)
            ax = plot.draw(group_plots(group_of(path))[0]).axes[0]
            for line in ax.lines:
                start, step = line.get_markevery()
                assert fewest <= len(range(start, len(epochs), step)) <= most

    def test_run_of_a_single_epoch_is_drawn(self, run_script):
        path = make_run(epochs=[0], value=0.25)
        assert run_script(plot, str(path))[0] == 0
        assert Path("figures/st_cifar_vgg11bn_l_inf_eps8.0.pdf").exists()
        [figure] = group_plots(group_of(path))
        for ax in plot.draw(figure).axes[: len(figure.panels)]:
            for line in ax.lines:
                assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0], [0.25])

    def test_a_metric_that_is_zero_everywhere_is_drawn_on_a_linear_axis(self, here):
        [figure] = group_plots(group_of(make_run(value=0.0)))
        axes = plot.draw(figure).axes[: len(figure.panels)]
        assert {ax.get_yscale() for ax in axes} == {"linear"}
        assert all(set(line.get_ydata()) == {0} for ax in axes for line in ax.lines)

    @pytest.mark.parametrize(
        ("low", "high"),
        [
            *((0.9, 1.1), (1, 9), (3.2, 3.4), (1e-3, 5e4), (7, 70), (1e-9, 1), (2.1, 8.3)),
            *((19.9, 20.1), (0.5, 100), (1.9e-6, 2.3e-6), (99, 1001), (1e-12, 1e12)),
        ],
    )
    def test_a_logarithmic_axis_has_three_to_seven_ticks(self, low, high):
        ticks = drawing.log_ticks(low, high)
        assert 3 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
        assert all(low <= tick <= high for tick in ticks)
        if high >= 1000 * low:
            assert np.allclose(np.log10(ticks), np.round(np.log10(ticks)))

    @pytest.mark.parametrize("high", (2.2, 8.0, 60.0, 5e4))
    def test_drawn_logarithmic_axes_have_three_labels_and_say_so_by_their_ticks(self, here, high):
        rows = [record(e, "clean", v) for e, v in enumerate((2.0, high))]
        [figure] = group_plots(group_of(make_run(records=rows)), ALL_PANELS)
        drawn = plot.draw(figure)
        drawn.draw_without_rendering()
        axes = [ax for ax in drawn.axes if ax.get_yscale() == "log"]
        assert len(axes) == 3
        for ax in axes:
            low, top = ax.get_ylim()
            labels = {
                label.get_text()
                for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
                if low <= tick <= top and label.get_text()
            }
            assert len(labels) >= 3, labels
            # Small ticks, closer together upwards, tell that it is logarithmic.
            ticks = sorted({*ax.get_yticks(), *ax.get_yticks(minor=True)})
            steps = np.diff(np.log(ticks))
            powers = any("10^" in label for label in labels)
            assert high < 4 or powers or steps.max() > 1.2 * steps.min()

    def test_a_named_folder_is_shown_by_its_name(self, here):
        told = {"dataset": "folder", "data_name": "cats"}
        group = group_of(make_run(flags=told), make_run(2, flags=told))
        assert group.file_name() == "st_cats_vgg11bn_l_inf_eps8.0"
        assert group.title() == "ST, cats, vgg11bn, l_inf, epsilon 8/255, seeds 1, 2"
        unnamed = group_of(make_run(3, flags=told | {"data_name": None}))
        assert unnamed.file_name() == "st_folder_vgg11bn_l_inf_eps8.0"


class TestSeries:
    def test_mean_and_unbiased_deviation_over_seeds(self, here):
        group = group_of(*(make_run(seed, value=value) for seed, value in ((1, 1.0), (2, 3.0))))
        assert values(group, "pgd") == ([0, 1, 2], [2.0] * 3, pytest.approx([math.sqrt(2)] * 3))

    def test_a_single_seed_has_no_deviation(self, here):
        assert np.isnan(values(group_of(make_run()), "clean")[2]).all()

    def test_rows_of_train_come_before_those_of_eval(self, here):
        rows = [record(0, "clean", 1.0, "train"), record(0, "clean", 2.0), record(1, "clean", 3.0)]
        rows.append(record(2, "clean", 9.0, "train", split="test"))
        assert values(group_of(make_run(records=rows)), "clean")[:2] == ([0, 1], [1.0, 3.0])

    def test_noise_of_train_is_shown_where_that_of_eval_is_missing(self, here):
        alone = group_of(make_run(inputs=("clean", "gaussian_l2")))
        both = group_of(make_run(2, inputs=("clean", "gaussian", "gaussian_l2")))
        assert list(shown(alone)) == [("train", "clean"), ("train", "gaussian_l2")]
        assert list(shown(both)) == [("train", "clean"), ("train", "gaussian")]

    def test_seeds_with_other_epochs_share_the_common_ones_and_a_line_says_so(
        self, run_script, undrawn
    ):
        paths = make_run(1, epochs=[0, 1, 2, 4]), make_run(2, epochs=[0, 2, 4, 5])
        _, output, _ = run_script(plot, " ".join(map(str, paths)))
        [line] = [line for line in output.splitlines() if "epochs" in line]
        assert line == (
            "st_cifar_vgg11bn_l_inf_eps8.0: seeds differ in epochs; drawn are those common to all: "
            "clean 3, pgd 3, gaussian 3, sign 3"
        )
        assert values(group_of(*paths), "sign")[0] == [0, 2, 4]

    def test_missing_series_are_told_in_one_line(self, run_script, undrawn):
        _, output, _ = run_script(plot, str(make_run(inputs=("clean", "gaussian"))))
        name = "st_cifar_vgg11bn_l_inf_eps8.0"
        told = [line for line in output.splitlines() if line.startswith(name)]
        assert told == [f"{name}: left out, not measured: pgd, sign, targeted"]

    def test_a_folder_given_twice_counts_once(self, here):
        path = make_run()
        assert len(group_of(path, path / ".." / path.name).runs) == 1

    @pytest.mark.parametrize(
        ("schedule", "drops"),
        [
            ("piecewise", [99, 149]),
            ("onedrop", [99]),
            ("cosine", []),
            ("linear", []),
            ("superconverge", []),
            ("multipledecay", []),
        ],
    )
    def test_drops_of_the_learning_rate_but_no_smooth_decay(self, schedule, drops):
        assert drawing.lr_drops(history(schedule, 400)) == drops

    def test_drops_are_marked_in_every_panel(self, here):
        path = make_run()
        write_table(path / "history.csv", EpochSummary, history("piecewise", 8))
        [figure] = group_plots(group_of(path))
        for ax in plot.draw(figure).axes[: len(figure.panels)]:
            marked = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
            assert sorted(marked) == [1, 2]


class TestPerturbed:
    """Images perturbed in training are not PGD on the checkpoint: figures and tables tell them."""

    MODES = ("pgd_train", "pgd_train_TRADES", "pgd_train_TRADES_batch")

    def run(self, mode="pgd_train", kinds=("seen", "pgd")):
        rows = [record(e, "clean", 0.9, "train") for e in range(3)]
        rows += [record(e, "seen", 0.3, "train") for e in range(3) if "seen" in kinds]
        rows += [record(e, "pgd", 0.1) for e in (0, 2) if "pgd" in kinds]
        return make_run(mode=mode, records=rows)

    @pytest.mark.parametrize("mode", MODES)
    def test_figures_show_the_one_that_is_asked_for_under_its_name(self, here, mode):
        group = group_of(self.run(mode))
        for view, name, value in (
            (AS_USUAL, "training-time adversarial", 0.3),
            (PGD, "PGD", 0.1),
        ):
            [epochs, *_] = group_plots(group, view)
            assert labels(epochs) == ["clean", name, "classifier $W$"]
            [distance] = comparisons.distance_plots([group], view)
            assert distance.title.startswith(f"Class means, clean to {name}; cifar, vgg11bn, l_inf")
            for panel, curves in [epochs.panels[0], *distance.panels]:
                heights = curves[-1].points()[1] if panel.name else None
                assert set(heights) == {value}

    @pytest.mark.parametrize(
        ("asked", "there", "told"),
        [
            ("seen", "pgd", "not measured: training-time adversarial; drawn is PGD"),
            ("pgd", "seen", "not measured: PGD; drawn is training-time adversarial"),
        ],
    )
    def test_the_other_is_drawn_under_its_own_name_and_one_line_says_so(
        self, run_script, undrawn, asked, there, told
    ):
        at, st = self.run(kinds=[there]), make_run()
        output = run_script(plot, f"{at} {st} --perturbed {asked}")[1]
        at_lines = [line for line in output.splitlines() if line.startswith("at_")]
        name = "at_cifar_vgg11bn_l_inf_eps8.0"
        assert at_lines == [f"{name}: left out, not measured: gaussian, sign", f"{name}: {told}"]
        assert "drawn is" not in output.replace(told, "")  # ST has seen no perturbed images
        [epochs, *_] = group_plots(group_of(at), View(perturbed=asked))
        assert INPUTS[there].label in labels(epochs)

    def test_ways_to_train_are_compared_at_equal_epochs_and_at_equal_loss(self, here):
        def graded(seed, mode, share):
            rows = [record(e, name, 0.5 + e) for e in range(3) for name in ("clean", "seen")]
            return make_run(
                seed, mode, records=[replace(r, loss=share * 2**-r.epoch) for r in rows]
            )

        paths = [graded(1, "pgd_train_TRADES", 0.2), graded(1, "pgd_train", 0.5)]
        paths += [graded(2, "pgd_train", 0.4), make_run()]
        plots = figures.all_plots(figures.in_order(groups_of(*paths)), View())
        by_epoch, by_loss = [p for p in plots if p.name.startswith("collapse")]
        place = "cifar_vgg11bn_l_inf_eps8.0"
        assert (by_epoch.name, by_loss.name) == (f"collapse_{place}", f"collapse_loss_{place}")
        measured = [panel.field for panel, _ in by_epoch.panels]
        assert measured == ["nc1", "nc2_angle_activation", "nc3", "nc4"] * 2
        assert [panel.head for panel, _ in by_epoch.panels] == ["clean"] * 4 + ["perturbed"] * 4
        assert by_epoch.title.startswith("Neural collapse of ST, AT and TRADES (frozen BN); cifar")
        assert "seed 1 (ST, TRADES (frozen BN)), seeds 1, 2 (AT)" in by_epoch.title
        words = "Perturbed images: PGD (ST); training-time adversarial (AT, TRADES"
        assert words in by_epoch.notes[0]
        for _, curves in by_epoch.panels:
            assert [c.style.line for c in curves] == ["-", "-", "--"]  # frozen
            assert [c.style.label for c in curves] == ["ST", "AT", "TRADES (frozen BN)"]
            assert len({curve.style.color for curve in curves}) == 3
        assert {c.line[0][0].input for _, curves in by_epoch.panels[:4] for c in curves} == {
            "clean"
        }
        names = ["ST", "AT", "TRADES (frozen BN)"]
        [legend] = plot.draw(by_epoch).legends
        told = [text.get_text() for text in legend.get_texts()]
        assert told == [*names, drawing.BAND]
        # At the loss of the same images, a line per run in the order of its epochs.
        assert [panel.head for panel, _ in by_loss.panels] == ["clean", "perturbed"]
        lines = [[curve.style.line for curve in curves] for _, curves in by_loss.panels]
        assert lines == [["-", "-", "-", "--"]] * 2  # as the legend shows frozen batch norm
        for curve, share in zip(by_loss.panels[1][1][1:], (0.5, 0.4, 0.2), strict=True):
            x, mean, _ = curve.points()
            np.testing.assert_allclose(x, [share, share / 2, share / 4])
            assert mean.tolist() == [0.5, 1.5, 2.5]
        ax = plot.draw(by_loss).axes[0]
        assert (ax.get_xscale(), ax.xaxis_inverted()) == ("log", True)

    def test_one_group_alone_is_not_compared(self, here):
        paths = [make_run(1, mode="pgd_train", inputs=SEEN), make_run(2, "pgd_train", inputs=SEEN)]
        assert comparisons.mode_plots(groups_of(*paths), View()) == []

    def test_nc1_has_one_range_in_all_figures_of_a_setting(self, here):
        paths = [make_run(value=0.01), make_run(mode="pgd_train", value=50.0)]
        plots = [p for p in figures.all_plots(groups_of(*paths), View()) if p.over_epochs]
        shown = [panel for p in plots for panel, _ in p.panels if panel.field == "nc1"]
        assert len(shown) == 4 and len({panel.limits for panel in shown}) == 1
        low, high = shown[0].limits
        assert low < 0.01 and high > 50

    def test_distance_figure_of_both_kinds_says_which_line_is_which(self, here):
        groups = groups_of(self.run(), self.run("pgd_train_TRADES", kinds=["pgd"]))
        [distance] = comparisons.distance_plots(groups, AS_USUAL)
        assert distance.title.startswith("Class means, clean to perturbed; cifar")
        assert labels(distance) == ["AT: training-time adversarial", "TRADES (frozen BN): PGD"]

    def test_the_table_has_both(self, run_script, undrawn):
        run_script(plot, f"{self.run()} --table")
        lines = Path("figures/table.md").read_text().splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")][:6] for line in lines]
        assert ["seen", "train", "100", "8/255", "2", "0.3000"] in cells
        assert ["pgd", "train", "100", "8/255", "2", "0.1000"] in cells
        accuracies = {kind: table_rows()["pgd_train", kind, "accuracy"] for kind in ("seen", "pgd")}
        assert {kind: row["mean"] for kind, row in accuracies.items()} == {
            "seen": "0.3",
            "pgd": "0.1",
        }


class TestImages:
    """How many images a number is of stands beside it."""

    NAME = "st_cifar_vgg11bn_l_inf_eps8.0"

    def run(self, trained=200, swept=100):
        rows = [record(e, "clean", 3.0, "train", images=trained) for e in range(3)]
        rows += [record(e, kind, 2.0, images=swept) for e in (0, 2) for kind in ("clean", "sign")]
        return make_run(records=rows)

    def test_a_line_tells_that_numbers_differ(self, run_script, undrawn):
        output = run_script(plot, str(self.run()))[1]
        told = "of n = 200 training images, but not all lines: clean, n = 100; sign noise, n = 100"
        assert f"{self.NAME}: {told}" in output.splitlines()

    def test_lines_of_other_numbers_are_apart_and_say_so(self, here):
        [drawing] = group_plots(group_of(self.run()), ALL_PANELS)
        assert drawing.title.endswith("epsilon 8/255, seed 1; n = 200 training images")
        heights = {
            curve.style.label: average(curve.line, curve.field)[1].tolist()
            for curve in drawing.panels[2][1]
        }
        assert heights == {
            "clean": [3.0] * 3,
            "clean, n = 100": [2.0] * 2,
            "sign noise, n = 100": [2.0] * 2,
        }
        looks = {
            (c.style.line, c.style.fill) for c in drawing.panels[2][1] if "clean" in c.style.label
        }
        assert len(looks) == 2
        [legend] = plot.draw(drawing).legends
        assert {text.get_text() for text in legend.get_texts()} >= heights.keys()

    def test_no_word_where_all_are_of_as_many(self, run_script, undrawn):
        output = run_script(plot, str(self.run(100, 100)))[1]
        assert "not all lines" not in output

    def test_rows_of_older_versions_do_not_pass_for_any_number(self, here):
        [untold] = group_plots(group_of(self.run(0, 0)))
        assert untold.title.endswith("seed 1; training images")
        [mixed] = group_plots(group_of(self.run(200, 0)))
        assert "sign noise, n not told" in labels(mixed)

    def test_the_table_has_a_column(self, run_script, undrawn):
        run_script(plot, f"{self.run()} --table")
        lines = Path("figures/table.md").read_text().splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        places = [row[:3] for row in cells if row[0] in ("input", "clean", "sign")]
        assert places == [
            ["input", "split", "images"],
            ["clean", "train", "200"],
            ["clean", "train", "100"],
            ["sign", "train", "100"],
        ]
        with open("figures/table.csv", newline="") as file:
            assert {row["images"] for row in csv.DictReader(file)} == {"100", "200"}


class TestSplits:
    NAME = "st_cifar_vgg11bn_l_inf_eps8.0"

    def run(self, mode="std_train", **told):
        rows = [
            record(e, kind, value, split=split, images=n)
            for e in range(3)
            for kind in ("clean", "pgd", "targeted")
            for split, value, n in (("train", 0.75, 100), ("test", 0.25, 40))
        ]
        path = make_run(mode=mode, records=rows)
        if told:
            rows = [AutoAttackRecord(2, "test", 40, 0.5, 0.125, 8.0)]
            rows.append(AutoAttackRecord(2, "test", 40, 0.5, 0.0, 16.0))
            write_table(path / "results" / "autoattack.csv", AutoAttackRecord, rows)
        return path

    @pytest.mark.parametrize(
        ("split", "names", "values", "end"),
        [
            ("train", ("clean", "PGD"), {0.75}, "; n = 100 training images"),
            ("test", ("clean, test", "PGD, test"), {0.25}, "; n = 40 test images"),
            (
                "both",
                ("clean", "PGD", "clean, test", "PGD, test"),
                {0.75, 0.25},
                "; n = 100 training and 40 test images",
            ),
        ],
    )
    def test_figures_show_the_split_and_are_named_after_it(self, here, split, names, values, end):
        group = group_of(self.run())
        [epochs, targeted] = group_plots(group, View(split))
        suffix = "" if split == "train" else f"_{split}"
        assert epochs.name == self.NAME + suffix and targeted.name.endswith(suffix)
        assert labels(epochs) == [*names, "classifier $W$"]
        assert epochs.title.endswith(end) and targeted.title.endswith(end)
        drawn = {v for c in epochs.panels[0][1] for v in average(c.line, c.field)[1]}
        assert drawn == values

    def test_train_and_test_are_told_apart_where_they_coincide(self, here):
        rows = [
            record(e, "clean", 0.5, split=split) for e in range(3) for split in ("train", "test")
        ]
        [figure] = group_plots(group_of(make_run(records=rows)), View("both"))
        train, test = plot.draw(figure).axes[0].lines
        styles = [curve.style for curve in figure.panels[0][1]]
        assert [style.line for style in styles] == ["-", "--"]
        assert test.get_markerfacecolor() == "none" and train.get_markerfacecolor() != "none"
        assert test.get_markersize() >= train.get_markersize() + 2
        assert test.get_zorder() >= train.get_zorder()

    def test_distance_figure_follows(self, here):
        [distance] = comparisons.distance_plots([group_of(self.run("pgd_train"))], View("both"))
        assert labels(distance) == ["AT", "AT, test"]
        assert distance.name == "distance_cifar_vgg11bn_l_inf_eps8.0_both"

    def test_lines_on_what_is_missing_tell_train_from_test(self, run_script, undrawn):
        rows = [record(0, kind, 0.5) for kind in (*NOISY, "targeted")]
        rows.append(record(0, "clean", 0.5, split="test"))
        output = run_script(plot, f"{make_run(records=rows)} --split both")[1]
        told = [line for line in output.splitlines() if "left out" in line]
        missing = "pgd, gaussian, sign, targeted"
        assert told == [f"{self.NAME}: left out, not measured on test images: {missing}"]

    def test_nothing_of_a_split_is_one_line(self, run_script):
        code, _, error = run_script(plot, f"{make_run()} --split test")
        assert code == 1 and error.count("\n") == 1
        assert error.endswith("holds nothing to draw with --split test; run eval.py on it first\n")

    @pytest.mark.parametrize("split", ("train", "test", "both"))
    def test_autoattack_is_a_mark_in_the_accuracy_of_test_images(self, here, split):
        [epochs, _] = group_plots(group_of(self.run(autoattack=True)), View(split))
        marks = [
            (panel.name, *average(c.line, c.field)[:2])
            for panel, curves in epochs.panels
            for c in curves
            if c.style.label == "AutoAttack, test"
        ]
        assert marks == ([] if split == "train" else [("accuracy", [2], [0.125])])

    def test_a_line_says_where_autoattack_is_drawn(self, run_script, undrawn):
        told = "AutoAttack is of test images: drawn over epochs with --split test or both"
        path = self.run(autoattack=True)
        assert f"{self.NAME}: {told}" in run_script(plot, str(path))[1].splitlines()
        assert "AutoAttack is" not in run_script(plot, f"{path} --split both")[1]

    def test_autoattack_is_in_the_table_with_the_clean_accuracy_of_its_images(
        self, run_script, undrawn
    ):
        run_script(plot, f"{self.run(autoattack=True)} --table")
        lines = Path("figures/table.md").read_text().splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")][:7] for line in lines]
        assert [row for row in cells if row[1:2] == ["test"]] == [
            ["clean", "test", "40", "-", "2", "0.5000", "-"],
            ["autoattack", "test", "40", "8/255", "2", "0.1250", "-"],
            ["autoattack", "test", "40", "16/255", "2", "0.0000", "-"],
        ]


def layer_row(split, kind, index, value, **known):
    place = {"epoch": 2, "split": split, "input": kind, "index": index, "features": 64}
    aimed = ("target_centre_accuracy", "own_distance", "own_angle")
    nan = {} if kind == "targeted" else dict.fromkeys(aimed, math.nan)
    if INPUTS[kind].attacked:
        nan["epsilon"] = 8.0
    return filled(LayerRecord, value, **place | {"layer": f"conv{index + 1}"} | nan | known)


class TestLayers:
    def run(self, blocks=3, mode="std_train", **known):
        path = make_run(mode=mode)
        rows = [
            layer_row(split, kind, i, 0.1 * (i + 1), images=n, **known)
            for split, n in (("train", 100), ("test", 40))
            for kind in ("clean", "pgd", "targeted")
            for i in range(blocks)
        ]
        rows.append(layer_row("train", "pgd", 0, 0.9, epoch=0))
        rows += [layer_row("train", "pgd", i, 0.9, epsilon=16.0) for i in range(blocks)]
        write_table(path / "results" / "layers.csv", LayerRecord, rows)
        return path

    def figure(self, *paths, view=AS_USUAL):
        [figure] = block_figures.layer_plots(groups_of(*paths), view)
        return figures.finished(figure)

    def test_it_shows_how_the_blocks_lie_to_the_clean_training_simplices(self, here):
        figure = self.figure(self.run())
        assert [panel.label for panel, _ in figure.panels] == ["Share nearest", "Angle [rad]"]
        for _, curves in figure.panels:
            names = ["clean", "PGD", "targeted", "targeted: to the target"]
            assert [curve.style.label for curve in curves] == names
        shares, angles = ([curve.field for curve in curves] for _, curves in figure.panels)
        assert shares == ["centre_accuracy"] * 3 + ["target_centre_accuracy"]
        assert angles == ["clean_angle"] * 2 + ["own_angle", "clean_angle"]
        more = [panel.field for panel, _ in self.figure(self.run(), view=ALL_PANELS).panels]
        assert more == [
            *("centre_accuracy", "clean_distance", "clean_angle", "nc1"),
            *("nc2_norm", "nc2_angle", "ncc_accuracy", "ncc_agreement"),
        ]

    def test_one_of_zeros_beside_another_has_its_logarithmic_scale(self, here):
        paths = self.run(), self.run(mode="pgd_train")
        rows = [layer_row("train", "pgd", i, 0.5, clean_distance=0.0) for i in range(3)]
        write_table(paths[1] / "results" / "layers.csv", LayerRecord, rows)
        figure = self.figure(*paths, view=ALL_PANELS)
        drawn = plot.draw(figure)
        of_distance = [
            ax
            for ax, (panel, _) in zip(drawn.axes, figure.panels, strict=True)
            if panel.field == "clean_distance"
        ]
        assert [ax.get_yscale() for ax in of_distance] == ["log", "log"]
        assert of_distance[0].get_ylim() == of_distance[1].get_ylim()

    def test_ways_to_train_stand_side_by_side_on_one_scale(self, here):
        figure = self.figure(self.run(), self.run(mode="pgd_train"))
        heads = [(panel.head, panel.label) for panel, _ in figure.panels]
        labels = ("Share nearest", "Angle [rad]")
        assert heads == [(head, label) for label in labels for head in ("ST", "AT")]
        axes = plot.draw(figure).axes
        assert len({ax.get_position().y0.round(3) for ax in axes}) == 1  # one row
        assert axes[0].get_ylim() == axes[1].get_ylim() and axes[2].get_ylim() == axes[3].get_ylim()
        assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, True, False]

    @pytest.mark.parametrize(("split", "count"), [("train", 4), ("test", 4), ("both", 8)])
    def test_last_epoch_own_epsilon_and_the_split_that_is_asked_for(self, here, split, count):
        figure = self.figure(self.run(), view=View(split))
        assert figure.title.startswith("Blocks after epoch 2: ST; cifar")
        sizes = {"train": "100 training", "test": "40 test", "both": "100 training and 40 test"}
        assert figure.title.endswith(f"; n = {sizes[split]} images")
        for _, curves in figure.panels:
            assert len(curves) == count
            for curve in curves:
                x, mean, _ = average(curve.line, curve.field)
                np.testing.assert_allclose((x, mean), ([0, 1, 2], [0.1, 0.2, 0.3]))

    def test_seeds_whose_blocks_were_not_measured_are_left_out_of_them(self, here):
        figure = self.figure(self.run(), make_run(2))
        assert ", seed 1;" in f"{figure.title};"
        [centres] = block_figures.centre_plots(groups_of(TestCentres().run(), make_run(2)))
        assert centres.title.endswith(", seed 1")
        both = group_of(make_run(models="other"), make_run(2))
        assert [f.name.split("_cifar")[0] for f in group_plots(both)] == ["st"]

    def test_blocks_have_numbers_which_the_caption_explains(self, run_script, undrawn):
        path = self.run(12)
        assert run_script(plot, str(path))[0] == 0
        caption = Path("figures/layers_cifar_vgg11bn_l_inf_eps8.0.txt").read_text()
        assert "Blocks: 1 conv1, 2 conv2, " in caption and "12 conv12." in caption
        names = self.figure(path).x_names
        assert list(names.items())[:2] == [(0, "1"), (2, "3")] and len(names) == 6

    def test_tables_of_older_versions_lack_the_clean_simplices_and_a_line_says_so(
        self, run_script, undrawn
    ):
        fields = ["centre_accuracy", "target_centre_accuracy", "clean_distance", "clean_angle"]
        fields += ["own_distance", "own_angle"]
        path = self.run(**dict.fromkeys(fields, math.nan))
        output = run_script(plot, f"{path} --panels all")[1]
        [told] = [line for line in output.splitlines() if line.startswith("layers")]
        assert "left out, not measured: Share nearest, Distance, Angle [rad]" in told
        figure = self.figure(path, view=ALL_PANELS)
        assert figure.panels[0][0].field == "nc1"


@pytest.mark.parametrize(("epochs", "joined"), [((0, 9, 19), False), (range(30), True)])
def test_few_measured_epochs_are_points_that_no_line_joins(here, epochs, joined):
    [figure] = group_plots(group_of(make_run(epochs=epochs)))
    lines = plot.draw(figure).axes[1].lines
    assert {line.get_linestyle() for line in lines} == ({"-"} if joined else {"None"})
    assert all(line.get_marker() for line in lines)


def test_no_colour_has_two_meanings():
    styles = [style.mode_style(name) for name in MODES]
    styles += [style.input_style(name) for name in (*INPUTS, "adaptive") if name != "seen"]
    styles += [style.AUTOATTACK, style.CLASSIFIER]
    styles += style.SPARE_LOOKS
    colours = [*(one.color for one in styles), *style.MORE_COLORS]
    assert len(set(colours)) == len(colours)
    # The perturbed images, in training or by PGD on the checkpoint, are drawn alike.
    assert style.input_style("seen").color == style.input_style("pgd").color
    assert not {style.mode_style(name).marker for name in MODES} & set(style.MORE_MARKERS)


def test_every_style_is_of_a_kind_of_input_or_a_mode_that_there_is():
    assert style.INPUT_LOOKS.keys() == {*INPUTS, "adaptive"}
    assert style.MODE_LOOKS.keys() == MODES.keys()


def test_kinds_of_input_and_modes_without_a_style_are_drawn_in_spare_ones(here, monkeypatch):
    monkeypatch.setitem(INPUTS, "blurred", replace(INPUTS["sign"], label="blurred"))
    monkeypatch.setitem(MODES, "std_train_new", replace(MODES["pgd_train"], label="new"))
    [epochs] = group_plots(group_of(make_run(inputs=("clean", "sign", "blurred"))))
    curves = {curve.style.label: curve.style for curve in epochs.panels[0][1]}
    own, other = curves["blurred"], style.mode_style("std_train_new")
    assert other.label == "new"
    known = [*style.INPUT_LOOKS.values(), *style.MODE_LOOKS.values()]
    assert len({own.color, other.color, *(look.color for look in known)}) == len(known) + 1
    assert own.marker != other.marker
    plot.draw(epochs)
    # There are more of them than spare styles: they take turns.
    for number in range(9):
        monkeypatch.setitem(INPUTS, f"new{number}", INPUTS["sign"])
        assert style.input_style(f"new{number}").color


@pytest.mark.parametrize("mode", ("pgd_train", "std_train"))
def test_no_two_lines_of_one_figure_look_alike(here, mode):
    """Lines of other numbers of images too, of modes and of kinds of images."""
    sizes = (200, 100, 40)
    rows = [
        record(9, kind, 0.5, epsilon=radius, images=size)
        for place, size in enumerate(sizes)
        for kind, radius in (("clean", math.nan), ("pgd", 2.0 + place), ("pgd", 8.0 + place))
    ]
    rows += [record(e, "clean", 0.5, images=size) for e, size in enumerate(sizes)]
    runs = [make_run(mode=mode, records=rows), make_run(mode="pgd_train_TRADES", records=rows)]
    drawn = figures.all_plots(group_runs([read_run(path) for path in runs]), View())
    assert drawn
    for figure in drawn:
        for _, curves in figure.panels:
            styles = {curve.style for curve in curves}
            looks = {style._replace(label="") for style in styles}
            assert len(looks) == len({style.label for style in styles}) == len(styles)


def test_a_mode_on_fewer_images_has_a_colour_and_a_marker_of_its_own(here):
    rows = [
        record(9, kind, 0.5, epsilon=radius, images=size)
        for kind, radius, size in (
            ("pgd", 2.0, 200),
            ("pgd", 8.0, 200),
            ("pgd", 4.0, 100),
            ("pgd", 16.0, 100),
        )
    ]
    group = groups.Group([read_run(make_run(mode="pgd_train", records=rows))])
    [figure] = [
        plot for plot in figures.all_plots([group], View()) if plot.name.startswith("epsilon")
    ]
    styles = {curve.style.label: curve.style for _, curves in figure.panels for curve in curves}
    own, other = styles["AT"], styles["AT, n = 100"]
    assert own[1:3] == style.mode_style("pgd_train")[1:3]
    assert own.color != other.color and own.marker != other.marker


class TestCentres:
    def run(self, layers=("features",), epochs=(0, 2), autoattack=False):
        path = make_run()
        rows = [
            filled(
                CentreRecord,
                0.1,
                **{"epoch": e, "split": "test", "means": means, "input": kind, "layer": layer},
                **{"epsilon": epsilon, "images": 40, "ncc_accuracy": 0.2 * e + 0.01 * number},
            )
            for e in epochs
            for means in ("clean", "pgd")
            for kind in ("clean", "pgd", "adaptive")
            for number, layer in enumerate(layers)
            for epsilon in (8.0, 16.0)
        ]
        rows = [row for row in rows if row.epsilon == 8 or row.epoch == 0]
        write_table(path / "results" / "ncc.csv", CentreRecord, rows)
        if len(layers) > 1:
            blocks = [layer_row("train", "clean", i, 0.5, layer=n) for i, n in enumerate(layers)]
            write_table(path / "results" / "layers.csv", LayerRecord, blocks)
        if autoattack:
            rows = [AutoAttackRecord(2, "test", 40, 0.5, 0.125, 8.0)]
            write_table(path / "results" / "autoattack.csv", AutoAttackRecord, rows)
        return path

    def figures(self, *paths):
        plots = block_figures.centre_plots(groups_of(*paths))
        return {figure.name.split("_cifar")[0]: figure for figure in plots}

    def test_bars_of_the_last_epoch_by_class_means_and_by_the_network(self, run_script, undrawn):
        path = self.run()
        assert run_script(plot, str(path))[0] == 0
        caption = Path("figures/ncc_cifar_vgg11bn_l_inf_eps8.0.txt").read_text()
        assert caption.startswith("Nearest-centre classifiers after epoch 2: ST; cifar, vgg11bn")
        assert "; n = 40 test images. " in caption
        assert "nearest class mean of 100 clean, or PGD, training images" in caption
        [figure] = self.figures(path).values()
        [(panel, curves)] = figure.panels
        assert panel.label == "Test accuracy"
        assert list(figure.x_names.values()) == ["clean means", "PGD means", "network"]
        assert labels(figure) == ["clean", "PGD", "attack on this classifier"]
        for curve in curves:
            places = slice(2 if "attack" in curve.style.label else 3)  # is PGD of the network
            expected = ([0, 1, 2][places], [0.4, 0.4, 0.1][places])
            np.testing.assert_allclose(curve.points()[:2], expected)
        bars = drawing.draw(figure).axes[0].patches
        assert len(bars) == 8 and len({bar.get_facecolor() for bar in bars}) == 3

    def test_each_way_to_train_has_a_panel(self, here):
        paths = [self.run(), make_run(mode="pgd_train")]
        table = (paths[0] / "results" / "ncc.csv").read_text()
        (paths[1] / "results" / "ncc.csv").write_text(table)
        [figure] = self.figures(*paths).values()
        assert [panel.head for panel, _ in figure.panels] == ["ST", "AT"]
        assert len(plot.draw(figure).axes) == 2
        paths.append(make_run(mode="pgd_train_TRADES"))
        (paths[2] / "results" / "ncc.csv").write_text(table)
        [figure] = self.figures(*paths).values()
        assert figure.panels[2][0].head == "TRADES (frozen BN)" and "\n" not in caption_of(figure)

    def test_autoattack_is_a_bar_beside_those_of_the_network(self, here):
        [figure] = self.figures(self.run(autoattack=True)).values()
        [(_, curves)] = figure.panels
        assert curves[-1].style.label == "AutoAttack, test"
        assert [v.tolist() for v in curves[-1].points()[:2]] == [[2], [0.125]]

    def test_a_figure_against_the_layers_where_several_were_measured(self, here):
        layers = ("stem", "conv10", "conv9", "features")
        plots = self.figures(self.run(layers))
        bars = plots["ncc"].panels[0][1][0].points()[1]  # of the last of them
        np.testing.assert_allclose(bars, [0.43, 0.43, 0.1])
        by_layer = plots["st_ncc_layers"]
        assert list(by_layer.x_names.values()) == ["1", "2", "3", "4"]
        assert by_layer.notes == ("Blocks: 1 stem, 2 conv10, 3 conv9, 4 features",)
        assert [panel.head for panel, _ in by_layer.panels] == [
            f"{means} class means" for means in ("clean", "PGD")
        ]
        for _, curves in by_layer.panels:
            assert [curve.style.line for curve in curves] == ["-", "--"] * 3
            x, mean, _ = curves[0].points()
            np.testing.assert_allclose((x, mean), ([0, 1, 2, 3], [0.4, 0.41, 0.42, 0.43]))
        assert "by layer after epoch 2" in by_layer.title


class TestEpsilons:
    RADII = (4.0, 8.0, 16.0)

    def run(self, mode="std_train", seed=1, value=0.1, radii=RADII, epochs=(0, 2), **place):
        """Values fall with the radius; of test images by half."""
        rows = [
            record(e, kind, value * size / (1 + radius), split=split, epsilon=radius or math.nan)
            for e in epochs
            for split, size in (("train", 1), ("test", 0.5))
            for kind, radius in (("clean", 0.0), *(("pgd", r) for r in radii))
        ]
        return make_run(seed, mode, records=rows, **place)

    def one(self, *paths, view=AS_USUAL):
        [figure] = epsilon_plots(groups_of(*paths), view)
        return figures.with_sizes(figures.with_values(figure))

    def test_it_is_a_file_of_its_own(self, run_script, undrawn):
        assert run_script(plot, str(self.run()))[0] == 0
        assert Path("figures/epsilon_cifar_vgg11bn_l_inf.pdf").exists()

    def test_metrics_against_epsilon_from_the_clean_images_on(self, here):
        figure = self.one(self.run())
        names = [panel.name for panel, _ in figure.panels]
        assert names == ["accuracy", "NC1", "NC2 angle", ANGLE]
        more = [panel.name for panel, _ in self.one(self.run(), view=ALL_PANELS).panels]
        assert more == ["accuracy", "NC1", "NC2 norm", "NC2 angle", "NC3", "NC4", ANGLE]
        for panel, [curve] in figure.panels:
            x, mean, _ = average(curve.line, curve.field)
            first = 0 if panel.name == ANGLE else 0.1
            assert x.tolist() == [0, 4, 8, 16]
            np.testing.assert_allclose(mean, [first, 0.1 / 5, 0.1 / 9, 0.1 / 17])
        title = "PGD of several radii after epoch 2: ST; cifar, vgg11bn, l_inf, seed 1; n = 100"
        assert figure.title == f"{title} training images"
        axes = plot.draw(figure).axes
        assert {ax.get_xlabel() for ax in axes} == {"$\\epsilon$ (1/255)"}
        assert [ax.get_yscale() for ax in axes[:3]] == ["linear", "log", "linear"]
        for ax in axes:  # where they were measured
            assert ax.get_xticks().tolist() == [0, 4, 8, 16]
            assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "4", "8", "16"]

    def test_modes_are_together_with_a_band_over_seeds(self, here):
        paths = [self.run(seed=s, value=v) for s, v in ((1, 0.1), (2, 0.3))]
        paths += [self.run("pgd_train", seed=s, epsilon=4.0) for s in (1, 2)]
        paths += [self.run("pgd_train_TRADES", seed=s) for s in (1, 2)]
        figure = self.one(*paths)
        assert labels(figure) == ["ST, epsilon 8", "AT, epsilon 4", "TRADES (frozen BN), epsilon 8"]
        _, mean, std = figure.panels[0][1][0].points()
        assert (mean[0], std[0]) == pytest.approx((0.2, math.sqrt(0.02)))
        assert "seeds 1, 2; " in figure.title
        looks = {(curve.style.marker, curve.style.line) for curve in figure.panels[0][1]}
        assert len(looks) == 3 and all(marker for marker, _ in looks)

    def test_of_the_last_checkpoint_that_all_have(self, here):
        st, at = self.run(epochs=(0, 2, 4)), self.run("pgd_train", epochs=(0, 2, 3))
        together = self.one(st, at)
        assert "after epoch 2: " in together.title
        rows = [row for c in together.panels[0][1] for row in c.line[0].values()]
        assert {row.epoch for row in rows} == {2}
        apart = self.one(st, self.run("pgd_train_TRADES", epochs=(7,)))
        assert "after epoch 4 (ST), 7 (TRADES (frozen BN)): " in apart.title
        assert labels(apart) == ["ST", "TRADES (frozen BN)"]

    def test_nothing_of_fewer_than_two_radii(self, here):
        assert epsilon_plots(groups_of(make_run(), self.run(seed=2, radii=(8.0,))), AS_USUAL) == []

    def test_seeds_that_differ_are_told_in_the_caption(self, here):
        paths = [self.run(), self.run("pgd_train"), self.run("pgd_train", seed=2)]
        figure = self.one(*paths)
        assert ", seed 1 (ST), seeds 1, 2 (AT); " in figure.title
        assert labels(figure) == ["ST", "AT"]

    @pytest.mark.parametrize(
        ("split", "names"), [("test", ["ST, test"]), ("both", ["ST", "ST, test"])]
    )
    def test_it_follows_the_split(self, here, split, names):
        figure = self.one(self.run(), view=View(split))
        assert labels(figure) == names and figure.name.endswith(f"_{split}")
        assert figure.panels[0][1][-1].points()[1][0] == 0.05

    def test_clean_images_of_another_number_are_no_point_of_the_line(self, here):
        rows = [record(0, "pgd", 0.5, epsilon=r, images=50) for r in self.RADII]
        figure = self.one(make_run(records=[record(0, "clean", 0.9), *rows]))
        assert figure.panels[0][1][0].points()[0].tolist() == [4, 8, 16]

    def test_autoattack_is_in_the_panel_of_the_accuracy(self, here):
        path = self.run()
        rows = [AutoAttackRecord(2, "test", 40, 0.5, r / 100, r) for r in (4.0, 8.0)]
        rows += [AutoAttackRecord(e, "test", 40, 0.5, 0.9, 8.0) for e in (0, 5)]
        write_table(path / "results" / "autoattack.csv", AutoAttackRecord, rows)
        figure = self.one(path)
        assert labels(figure) == ["ST", "ST: AutoAttack, test"]
        x, mean, _ = figure.panels[0][1][-1].points()
        assert (x.tolist(), mean.tolist()) == ([4, 8], [0.04, 0.08])
        assert figure.title.endswith("; n = 100 training and 40 test images")

    def test_all_other_figures_and_series_are_of_the_run_s_own_epsilon(self, here):
        [epochs] = group_plots(group_of(self.run()))[:1]
        [pgd] = [c for c in epochs.panels[0][1] if c.style.label == "PGD"]
        np.testing.assert_allclose(average(pgd.line, pgd.field)[1], [0.1 / 9] * 2)

    def test_the_table_has_every_radius(self, run_script, undrawn):
        run_script(plot, f"{self.run()} --table")
        with open("figures/table.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]
        accuracies = {row["attack_epsilon"]: float(row["mean"]) for row in rows}
        assert accuracies == pytest.approx({"": 0.1} | {f"{r}": 0.1 / (1 + r) for r in self.RADII})
        assert "| pgd | train | 100 | 16/255 | 2 |" in Path("figures/table.md").read_text()

    def test_mnist_is_attacked_in_its_own_unit(self, here):
        flags = {"dataset": "mnist", "epsilon": 0.2}
        path = self.run(radii=(0.1, 0.2), flags=flags)
        [epochs, figure] = figures.all_plots([group_of(path)], AS_USUAL)
        assert figure.x_label == "$\\epsilon$ (in [0, 1])"
        assert ", epsilon 0.2, seed 1" in epochs.title and "PGD" in labels(epochs)


class TestTable:
    def test_last_common_epoch_with_mean_and_deviation(self, run_script, undrawn):
        for seed, last in ((1, 0.25), (2, 0.75)):
            rows = [record(e, "clean", v) for e, v in ((0, 9.0), (3, last))]
            make_run(seed, records=[*rows, record(4 + seed, "clean", 9.0)])
        place = "models/cifar/vgg11bn/l_inf/eps8.0/std_train"
        code, output, _ = run_script(plot, f"{place}/seed1 {place}/seed2 --table")
        markdown = Path("figures/table.md").read_text()
        assert code == 0 and markdown.strip() in output
        assert "**ST, cifar, vgg11bn, l_inf, epsilon 8/255, seeds 1, 2**" in markdown
        [line] = [line for line in markdown.splitlines() if line.startswith("| clean")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:5] == ["clean", "train", "100", "-", "3"]
        assert cells[5] == "0.5000 ± 0.3536" and cells[7] == "5.00e-01 ± 3.54e-01"
        row = table_rows()["std_train", "clean", "NC1"]
        assert (row["seeds"], row["epoch"], float(row["mean"])) == ("1 2", "3", 0.5)
        assert float(row["std"]) == pytest.approx(np.std([0.25, 0.75], ddof=1))

    def test_one_seed_has_no_deviation(self, run_script, undrawn):
        run_script(plot, f"{make_run(inputs=('clean', 'pgd'))} --table")
        lines = Path("figures/table.md").read_text().splitlines()
        [clean] = [line for line in lines if line.startswith("| clean")]
        assert "| 0.5000 | 0.5000 | 5.00e-01 |" in clean and "±" not in clean
        assert "| - | - |" in clean  # distance and angle to itself
        assert table_rows()["std_train", "pgd", DISTANCE]["std"] == ""

    def test_groups_of_one_setting_are_kept_apart_by_what_differs(self, run_script, undrawn):
        paths = [run_with(value=value, lr_max=lr) for value, lr in ((0.25, 0.1), (0.75, 0.05))]
        paths.append(make_run(mode="pgd_train", flags={"lr_max": 0.2}))
        run_script(plot, " ".join(map(str, paths)) + " --table")
        titles = [t for t in Path("figures/table.md").read_text().splitlines() if "**" in t]
        place = "cifar, vgg11bn, l_inf, epsilon 8/255"
        assert titles == [
            f"**ST, {place}, lr-max 0.1, seed 1**",
            f"**ST, {place}, lr-max 0.05, seed 1**",
            f"**AT, {place}, seed 1**",
        ]
        with open("figures/table.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[-1] == "differs"
        assert {(row["mode"], row["differs"], row["mean"]) for row in rows if row["mean"]} == {
            ("std_train", "lr-max 0.1", "0.25"),
            ("std_train", "lr-max 0.05", "0.75"),
            ("pgd_train", "", "0.5"),
        }

    def test_nothing_is_written_without_the_flag(self, run_script, undrawn):
        run_script(plot, str(make_run()))
        assert not list(Path("figures").glob("table*"))


class TestBadInput:
    def spoil_nothing_there(self):
        return Path("nowhere"), "nowhere: no such folder"

    def spoil_no_metrics(self):
        path = make_run()
        (path / "results" / "metrics.csv").unlink()
        return path, f"{path}: no results/metrics.csv"

    def spoil_cut_off(self):
        file = make_run() / "results" / "metrics.csv"
        file.write_text(file.read_text()[:-30])
        return file.parent.parent, f"{file}: damaged"

    def spoil_binary(self):
        file = make_run() / "results" / "metrics.csv"
        file.write_bytes(b"\xff\x00" * 100)
        return file.parent.parent, f"{file}: damaged"

    def spoil_history(self):
        file = make_run() / "history.csv"
        file.write_text("epoch,lr\n0,0.1\n")
        return file.parent, f"{file}: its columns are not those"

    def spoil_layers(self):
        file = make_run() / "results" / "layers.csv"
        file.write_text("")
        return file.parent.parent, f"{file}: its columns are not those"

    def spoil_args(self):
        path = make_run()
        (path / "args.json").write_text('{"dataset": "cifar", "epsilon": null}')
        return path, f"{path / 'args.json'} does not tell"

    def spoil_type_of_args(self):
        path = make_run()
        (path / "args.json").write_text("[1]")
        return path, f"{path / 'args.json'}: not a JSON object"

    def spoil_type_of_eval_args(self):
        file = make_run(flags={}) / "results" / "eval_args.json"
        file.write_text("[1]")
        return file.parent.parent, f"{file}: not a JSON object"

    def spoil_attack_of_eval_args(self):
        file = make_run(flags={}) / "results" / "eval_args.json"
        file.write_text('{"step_sizes": 3}')
        return file.parent.parent, f"{file}: its attack and noise cannot be read"

    def spoil_files_of_eval_args(self):
        file = make_run(flags={}) / "results" / "eval_args.json"
        file.write_text('{"files": {"a": 3}}')
        return file.parent.parent, f"{file}: its files cannot be read"

    def spoil_type_of_a_name(self):
        path = make_run(flags={"dataset": ["digits"]})
        return path, f"{path / 'args.json'} does not tell"

    def spoil_name(self):
        return make_run().rename("moved"), "moved: its path does not tell"

    def spoil_rows(self):
        path = make_run(records=[record(0, "clean", 0.5, "train", split="test")])
        return path, f"{path}: holds nothing to draw"

    def test_a_fault_of_ours_is_no_fault_of_the_file(self, run_script, monkeypatch):
        def faulty(*_):
            raise KeyError("fault")

        monkeypatch.setattr(runs, "read_flags", faulty)
        with pytest.raises(KeyError, match="fault"):
            run_script(plot, str(make_run(flags={})))

    @pytest.mark.parametrize("what", [name for name in vars() if name.startswith("spoil_")])
    def test_ends_with_one_line_that_names_it(self, run_script, what):
        path, expected = getattr(self, what)()
        code, _, error = run_script(plot, str(path))
        assert code == 1
        assert error.startswith(f"plot.py: error: {expected}") and error.count("\n") == 1
        assert not Path("figures").exists()

    def test_two_runs_of_one_setting_and_seed(self, run_script):
        path = make_run()
        other = Path("other").resolve() / path.relative_to("models")
        other.parent.mkdir(parents=True)
        path.rename(other)
        code, _, error = run_script(plot, f"{make_run()} {other}")
        assert code == 1
        assert (
            error == f"plot.py: error: {other}: of the same setting and seed as {path}: give one\n"
        )

    def test_two_runs_of_equal_flags_and_seed(self, run_script):
        one, other = (run_with(lr_max=0.1, data_dir=name) for name in ("here", "there"))
        code, _, error = run_script(plot, f"{one} {other}")
        assert code == 1
        assert (
            error == f"plot.py: error: {other}: of the same setting and seed as {one}: give one\n"
        )

    @pytest.mark.parametrize("flags", ["", "run --out file", "run --sideways", "run --out"])
    def test_bad_flags_end_with_code_2(self, run_script, flags):
        Path("file").write_text("")
        code, _, error = run_script(plot, flags)
        assert code == 2 and error.count("\n") == 1


@pytest.mark.parametrize("epochs", ((2,), (0, 2)))
def test_seeds_with_other_layers_of_nearest_centres_are_drawn_with_those_of_all(
    run_script, undrawn, epochs
):
    paths = []
    for seed, layers in ((1, ("features", "block1")), (2, ("features", "block2", "block1"))):
        paths.append(make_run(seed))
        key = {"split": "test", "means": "clean", "epsilon": 8.0}
        rows = [
            filled(CentreRecord, 0.5, epoch=epoch, layer=layer, input=kind, **key)
            for epoch in epochs
            for layer in layers
            for kind in ("clean", "pgd", "adaptive")
        ]
        RunFolder(paths[-1]).append(rows)
    code, output, error = run_script(plot, " ".join(map(str, paths)))
    assert (code, error) == (0, "")
    assert "ncc: left out, not measured by all seeds: block2" in output.replace(
        "st_ncc_cifar_vgg11bn_l_inf_eps8.0", "ncc"
    )
    assert list(Path("figures").glob("st_ncc_layers_*.png"))


def simplex_run(seed=1, mode="std_train", epochs=(0, 2), classes="0 1 2"):
    """A run whose images lie at the corners, clean, or half way to the next one, perturbed."""
    path = make_run(seed, mode)
    corners = np.array([[0, 3**-0.5], [-0.5, -(12**-0.5)], [0.5, -(12**-0.5)]])
    rows = []
    for epoch, kind, label in product(epochs, ("clean", "pgd", "targeted"), range(3)):
        place = corners[label]
        place = place if kind == "clean" else (place + corners[(label + 1) % 3]) / 2
        known = {"epoch": epoch, "split": "train", "input": kind, "classes": classes}
        known |= {"label": label, "x": place[0], "y": place[1], "outside": 0.25}
        known["epsilon"] = math.nan if kind == "clean" else 8.0
        rows.append(filled(SimplexRecord, -1, **known, image=-1, images=4))
        rows += [filled(SimplexRecord, 1, **known, image=i, images=1) for i in range(4)]
    write_table(path / "results" / "simplex.csv", SimplexRecord, rows)
    return path


class TestSimplex:
    NAME = "simplex_cifar_vgg11bn_l_inf_eps8.0"

    def test_a_row_for_each_way_to_train_and_a_column_for_each_kind(self, here):
        groups = groups_of(simplex_run(mode="pgd_train"), simplex_run())
        [picture] = vertex_figures.simplex_pictures(figures.in_order(groups), View())
        axes = plot.draw(picture).axes
        assert [ax.get_title() for ax in axes] == ["clean", "PGD", "targeted", "", "", ""]
        assert [ax.get_ylabel() for ax in axes] == ["ST", "", "", "AT", "", ""]
        assert {ax.get_aspect() for ax in axes} == {1.0}
        for place, ax in enumerate(axes):
            assert sorted(len(dots.get_offsets()) for dots in ax.collections) == [4, 4, 4]
            colours = {tuple(dots.get_facecolor()[0][:3]) for dots in ax.collections}
            assert len(colours) == 3
            arrows = [text for text in ax.texts if text.arrow_patch is not None]
            assert len(arrows) == (3 if place % 3 else 0)
            [triangle] = ax.patches
            np.testing.assert_allclose(triangle.get_xy()[:3, 0], [0, -0.5, 0.5])
        assert picture.title.startswith("The simplex of classes 0, 1, 2 after epoch 2: ST and AT")
        assert picture.title.endswith("n = 12 training images")
        assert "ST: clean 25%, PGD 25%, targeted 25%; AT: " in picture.notes[-1]
        assert picture.notes[1].startswith("Targeted images: those whose target")

    def test_arrows_lead_from_clean_to_perturbed_class_means(self, here):
        [picture] = vertex_figures.simplex_pictures(groups_of(simplex_run()), View())
        ends = [(text.xyann, text.xy) for text in plot.draw(picture).axes[1].texts]
        top, left = (0, 3**-0.5), (-0.5, -(12**-0.5))
        np.testing.assert_allclose(ends[0], [top, np.add(top, left) / 2])

    def test_animated_over_the_checkpoints(self, run_script, undrawn):
        assert run_script(plot, f"{simplex_run()} --animate")[0] == 0
        with Image.open(f"figures/{self.NAME}.gif") as gif:
            assert gif.n_frames == 2 and gif.info["loop"] == 0

    def test_a_frame_names_the_epoch_of_each_row(self, here):
        groups = groups_of(simplex_run(epochs=(0, 4)), simplex_run(mode="pgd_train", epochs=(0, 2)))
        [picture] = vertex_figures.simplex_pictures(figures.in_order(groups), View())
        heads = [picture.paint(epoch, animated=True).get_suptitle() for epoch in picture.epochs]
        assert heads == ["Epoch 0", "Epoch 2 (ST: 0)", "Epoch 4 (AT: 2)"]

    def test_one_checkpoint_is_not_animated_and_none_ends_with_one_line(self, run_script, undrawn):
        _, output, _ = run_script(plot, f"{simplex_run(epochs=(2,))} --animate")
        told = f"{self.NAME}: not animated, measured at one epoch alone"
        assert told in output.splitlines() and not list(Path("figures").glob("*.gif"))
        code, _, error = run_script(plot, f"{make_run(2)} --animate")
        assert code == 1 and error.count("\n") == 1
        assert error.endswith("nothing to animate; run eval.py --simplex on it first\n")
        code, _, error = run_script(plot, f"{simplex_run()} --animate --compare")
        assert code == 2 and "--animate" in error and "--compare" in error

    def test_the_title_names_the_seed_whose_images_are_drawn(self, here):
        group = group_of(make_run(1), simplex_run(2), simplex_run(3))
        [picture] = vertex_figures.simplex_pictures([group], View())
        assert "seed 2;" in picture.title and "seeds" not in picture.title

    def test_epochs_without_images_of_the_shown_split_are_not_drawn(self, here):
        group = group_of(simplex_run())
        [run] = group.runs
        assert vertex_figures.simplex_pictures([group], View("test")) == []
        run.simplex.extend([replace(row, split="test") for row in run.simplex if row.epoch == 2])
        [picture] = vertex_figures.simplex_pictures([group], View("test"))
        assert picture.epochs == [2] and plot.draw(picture)

    def test_class_means_that_span_no_plane_are_left_out_with_a_line(self, here, caplog):
        group = group_of(simplex_run())
        [run] = group.runs
        run.simplex[:] = [replace(r, x=math.nan) if r.epoch else r for r in run.simplex]
        [picture] = vertex_figures.simplex_pictures([group], View())
        assert picture.epochs == [0] and plot.draw(picture)
        run.simplex[:] = [replace(row, x=math.nan) for row in run.simplex]
        with caplog.at_level("INFO"):
            assert vertex_figures.simplex_pictures([group], View()) == []
        assert f"st_{self.NAME}: left out, its class means span no plane" in caplog.text

    def test_other_classes_have_a_picture_of_their_own(self, here):
        groups = groups_of(simplex_run(), simplex_run(mode="pgd_train", classes="3 4 5"))
        names = [p.name for p in vertex_figures.simplex_pictures(groups, View())]
        assert names == [f"{self.NAME}_classes0-1-2", f"{self.NAME}_classes3-4-5"]


class TestLeaps:
    def run(self, seed=1, mode="std_train", classes=3):
        path = make_run(seed, mode)
        rows = []
        for epoch, kind, label in product((0, 2), ("clean", "pgd", "targeted"), range(classes)):
            known = {"epoch": epoch, "split": "train", "input": kind, "true_class": label}
            known["epsilon"] = math.nan if kind == "clean" else 8.0
            for nearest, count in ((label, 3), ((label + 1) % classes, seed)):
                rows.append(
                    filled(LeapRecord, 0, **known, nearest_class=nearest, count=count, images=12)
                )
        write_table(path / "results" / "leaps.csv", LeapRecord, rows)
        return path

    def test_a_matrix_with_numbers_of_pgd_beside_targeted_and_st_above_at(self, here):
        groups = figures.in_order(groups_of(self.run(mode="pgd_train"), self.run()))
        [picture] = vertex_figures.leap_pictures(groups, View())
        assert picture.name == "leaps_cifar_vgg11bn_l_inf_eps8.0"
        axes = plot.draw(picture).axes
        heads = [ax.get_title() for ax in axes]
        assert heads == ["ST, PGD", "ST, targeted", "AT, PGD", "AT, targeted"]
        numbers = [text.get_text() for text in axes[0].texts]
        assert numbers == ["75", "25", "75", "25", "25", "75"]  # nothing where there is none
        assert [bool(ax.get_xlabel()) for ax in axes] == [False, False, True, True]

    def test_percentages_are_of_the_images_of_all_seeds(self, here):
        group = group_of(self.run(), self.run(3))
        rows = [row for run in group.runs for row in vertex_figures.shown_leaps(run, View())]
        matrix = vertex_figures.matrix_of([r for r in rows if r.epoch == 2], "pgd", 3)
        np.testing.assert_allclose(matrix[0], [60, 40, 0, 0])

    def test_seeds_are_of_one_epoch_and_the_title_names_those_that_were_measured(self, here):
        group = group_of(self.run(), self.run(3), make_run(2))
        for run, epochs in zip(group.runs, ({0, 2}, set(), {0}), strict=True):
            run.leaps[:] = [row for row in run.leaps if row.epoch in epochs]
        [picture] = vertex_figures.leap_pictures([group], View())
        assert "after epoch 0" in picture.title and "seeds 1, 3;" in picture.title
        assert plot.draw(picture).axes[0].texts[0].get_text() == "60"

    def test_seeds_without_an_epoch_in_common_are_left_out_with_a_line(self, here, caplog):
        group = group_of(self.run(), self.run(3))
        for run, epoch in zip(group.runs, (0, 2), strict=True):
            run.leaps[:] = [row for row in run.leaps if row.epoch == epoch]
        with caplog.at_level("INFO"):
            assert vertex_figures.leap_pictures([group], View()) == []
        assert (
            "st_leaps_cifar_vgg11bn_l_inf_eps8.0: left out, not measured by all seeds"
            in caplog.text
        )

    def test_images_without_any_nearest_mean_have_a_column(self, here):
        rows = [filled(LeapRecord, 0, input="pgd", true_class=c, nearest_class=-1) for c in (0, 1)]
        matrix = vertex_figures.matrix_of([replace(row, count=2) for row in rows], "pgd", 2)
        assert matrix.tolist() == [[0, 0, 100], [0, 0, 100]]

    def test_many_classes_have_shades_and_a_scale_in_place_of_numbers(self, here):
        [picture] = vertex_figures.leap_pictures(groups_of(self.run(classes=20)), View())
        *matrices, scale = plot.draw(picture).axes
        assert not any(ax.texts for ax in matrices) and "Percentage" in scale.get_ylabel()


class TestCompare:
    def test_any_runs_in_one_figure_named_by_what_differs(self, run_script, undrawn):
        paths = [run_with(s, weight_decay=d, lr_max=0.1) for s in (1, 2) for d in (5e-4, 1e-3)]
        paths.append(run_with(1, "pgd_train", weight_decay=5e-4, lr_max=0.05))
        code, output, _ = run_script(plot, "--compare " + " ".join(map(str, paths)))
        assert code == 0
        assert {path.name for path in Path("figures").iterdir()} == {
            f"compare.{kind}" for kind in ("png", "pdf", "txt")
        }
        assert "drawn apart" not in output
        figure = comparisons.collapse_plot("compare", figures.in_order(groups_of(*paths)), View())
        assert [style.label for style in figure.legend] == [
            "ST, weight decay 0.0005",
            "ST, weight decay 0.001",
            "AT, weight decay 0.0005",
        ]
        assert len(figure.panels[0][1][0].line) == 2  # seeds are averaged
        assert len({style.color for style in figure.legend}) == 3

    def test_settings_are_told_apart_by_what_they_are(self, here):
        groups = groups_of(make_run(), make_run(epsilon=4.0))
        plot = comparisons.collapse_plot("compare", groups, View())
        labels = [style.label for style in plot.legend]
        assert labels == ["ST, epsilon 8", "ST, epsilon 4"]
        told = [{"dataset": "cifar", "model": "vgg11bn", "norm": "l_inf"}, {"norm": "l_2"}]
        groups = groups_of(*(make_run(models=f["norm"], flags=f) for f in told))
        plot = comparisons.collapse_plot("compare", groups, View())
        labels = [style.label for style in plot.legend]
        assert labels == ["ST, l_inf", "ST, l_2"]
        # What follows from the data set is not told beside it.
        images = {"A": [0.1], "B": [0.2]}
        told = [{"dataset": "folder", "data_name": n, "mean": m} for n, m in images.items()]
        groups = groups_of(*(make_run(models=f["data_name"], flags=f) for f in told))
        plot = comparisons.collapse_plot("compare", groups, View())
        assert [style.label for style in plot.legend] == ["ST, A", "ST, B"]

    def test_a_legend_is_no_wider_than_the_figure(self, here):
        runs = [make_run(models=name, flags={"data_name": name * 75}) for name in ("an", "on")]
        groups = groups_of(*runs)
        with plot.matplotlib.rc_context(plot.RC):
            figure = plot.draw(comparisons.collapse_plot("compare", groups, View()))
            figure.canvas.draw()
            box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width

    @pytest.mark.parametrize("flag", ("", "--perturbed pgd", "--compare"))
    def test_one_line_says_that_pgd_was_swept_beside_the_images_seen(
        self, run_script, undrawn, flag
    ):
        path = make_run(mode="pgd_train", inputs=("clean", "seen", "pgd"))
        output = run_script(plot, f"{path} {flag}")[1]
        told = (
            "AT: drawn are the training-time adversarial images; PGD on the checkpoints was "
            "measured too: --perturbed pgd draws it"
        )
        assert output.splitlines().count(told) == (0 if "pgd" in flag else 1)


class TestLatex:
    def table(self, run_script, paths, flags="--table latex"):
        run_script(plot, f"{paths} {flags}")
        return Path("figures/table.tex").read_text()

    def test_a_table_with_rules_and_deviations_that_can_be_pasted(self, run_script, undrawn):
        kinds = ("clean", "pgd")
        paths = [make_run(1, inputs=kinds, value=0.25), make_run(2, inputs=kinds, value=0.75)]
        paths.append(make_run(mode="pgd_train", inputs=("clean", "seen"), value=0.5))
        tex = self.table(run_script, " ".join(map(str, paths)))
        lines = tex.splitlines()
        assert lines[0] == r"% needs \usepackage{booktabs}"
        assert [line for line in lines if "rule" in line] == [
            *(r"\toprule", r"\midrule", r"\midrule", r"\bottomrule")
        ]
        assert r"cifar, vgg11bn, l\_inf, epsilon 8/255; split training; $n$ 100; epoch 2." in tex
        head = next(line for line in lines if line.startswith("Training"))
        cells = [line.split(" & ") for line in lines if line.endswith(r"\\")]
        assert head.startswith(
            "Training & Images & $\\epsilon$ & Seeds & Accuracy & NC1 & NC2 angle"
        )
        assert len({len(row) for row in cells}) == 1
        columns = next(line for line in lines if "{tabular}{" in line)
        assert columns.endswith("{" + "l" * 4 + "r" * (len(cells[0]) - 4) + "}")
        assert cells[1][:5] == ["ST", "clean", "", "1 2", r"$0.500 \pm 0.354$"]
        assert cells[2][:4] == ["", "PGD", "8/255", "1 2"]
        assert cells[4][:5] == ["", "training-time adversarial", "8/255", "1", "$0.500$"]

    @pytest.mark.parametrize("value", ("", "markdown", "latex"))
    def test_beside_markdown_and_csv_and_never_a_folder(self, run_script, undrawn, value):
        path = make_run()
        assert run_script(plot, f"--table {value} {path}")[0] == 0
        tables = {file.name for file in Path("figures").glob("table.*")}
        assert tables == {"table.md", "table.csv"} | ({"table.tex"} if value == "latex" else set())


def test_a_caption_says_whose_what_and_what_is_not_drawn(here):
    [figure] = group_plots(group_of(make_run(1), make_run(2)))
    caption = caption_of(figure)
    assert caption.startswith("ST, cifar, vgg11bn, l_inf, epsilon 8/255, seeds 1, 2; n = 100")
    assert "Not drawn: sign noise (plot.py --panels all draws it)." in caption
    assert "NC2 angle: mean of $" in caption
    assert caption.endswith("Shaded: one standard deviation over the seeds.")
    assert "sign noise" in labels(group_plots(group_of(make_run(1)), ALL_PANELS)[0])


def test_figures_have_the_width_and_type_of_a_text_column_and_no_title(here):
    runs = [simplex_run(), TestLeaps().run(2, "pgd_train"), TestLayers().run(mode="pgd_train_MART")]
    drawn_here = ("st_", "collapse_cifar", "layers", "simplex", "leaps")
    pictures = figures.all_pictures(groups_of(*runs), View())
    for figure in [one for one in pictures if one.name.startswith(drawn_here)]:
        with plot.matplotlib.rc_context(plot.RC):
            drawn = plot.draw(figure)
            drawn.draw_without_rendering()
        assert drawn.get_size_inches()[0] == 5.5 and drawn._suptitle is None
        assert len(drawn.legends) == (0 if figure.name.startswith("leaps") else 1)
        texts = [text for text in drawn.findobj(Text) if text.get_text()]
        assert {text.get_fontsize() for text in texts} <= {8.0, 5.6}  # powers of ten are smaller


def test_frozen_and_batch_share_a_hue_dashed_and_solid():
    for name in ("std_train", "pgd_train", "pgd_train_MART", "pgd_train_TRADES"):
        batch = "pgd_train_TRADES_batch" if "TRADES" in name else name
        frozen = name if "TRADES" in name else f"{name}_frozen"
        styles = style.mode_style(frozen), style.mode_style(batch)
        hues = [rgb_to_hsv(to_rgb(one.color))[0] for one in styles]
        assert abs(hues[0] - hues[1]) < 0.03
        assert [one.line for one in styles] == ["--", "-"]
        assert [one.label.endswith("(frozen BN)") for one in styles] == [True, False]
