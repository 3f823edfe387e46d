"""plot.py as a user runs it: which figures, what they are made of, the table, bad input."""

import csv
import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import plot
from groups import average, group_runs, read_run
from inputs import INPUTS
from records import CentreRecord, EpochSummary, LayerRecord, Record
from run_folder import RunFolder
from utils import learning_rate

NOISY = ("clean", "pgd", "gaussian", "sign")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setitem(plot.RC, "savefig.dpi", 40)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty pictures, for tests of what is said beside them."""
    monkeypatch.setattr(plot, "draw", lambda _: Figure(figsize=(1, 1)))


def record(epoch, input, value, source="eval", split="train"):
    """A row whose metrics are all the same value, with distances where eval.py has them."""
    row = {"source": source, "epoch": epoch, "split": split, "input": input}
    row["epsilon"] = 8.0 if INPUTS[input].attacked else math.nan
    if input not in ("pgd", "targeted"):
        names = [field.name for field in fields(Record) if field.name.startswith("clean_")]
        row |= dict.fromkeys(names, math.nan)
    return filled(Record, value, **row)


def filled(row_type, value, **known):
    """A row that has the value in every field that is not known."""
    values = {f.name: 100 if "images" in f.name else value for f in fields(row_type)}
    none = {"epsilon": math.nan} if "epsilon" in values else {}
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


def values(group, input, field="nc1"):
    x, mean, std = average(group.inputs[input], field)
    return x.tolist(), mean.tolist(), std.tolist()


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
        ],
    )
    def test_what_cannot_change_a_number_may_differ(self, here, flag, first, second):
        group = group_of(run_with(1, **{flag: first}), run_with(2, **{flag: second}))
        assert [run.seed for run in group.runs] == [1, 2]
        assert group.file_name() == f"st_{self.PLACE}"
        assert group.title() == "ST, cifar, vgg11bn, l_inf, epsilon 8, seeds 1, 2"

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
        trained, swept = (
            make_run(seed, "pgd_train", records=[record(0, "pgd", 0.5, source)])
            for seed, source in ((1, "train"), (2, "eval"))
        )
        groups = groups_of(trained, swept)
        assert [len(group.runs) for group in groups] == [1, 1]
        assert groups[0].differs == {"source of pgd": "train"}

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

    def test_one_line_says_what_differs_and_names_and_titles_do(self, run_script, undrawn):
        paths = [run_with(seed, lr_max=lr, epochs=9) for seed in (1, 2) for lr in (0.1, 0.05)]
        paths.append(make_run(mode="pgd_train", flags={"lr_max": 0.2}))
        code, output, _ = run_script(plot, " ".join(map(str, paths)))
        told = [line for line in output.splitlines() if "differ" in line]
        assert code == 0
        assert told == [f"st_{self.PLACE}: runs differ in --lr-max (0.1, 0.05): drawn apart"]
        first, second, other = groups_of(*paths)
        assert first.title() == "ST, cifar, vgg11bn, l_inf, epsilon 8, lr-max 0.1, seeds 1, 2"
        assert second.title() == "ST, cifar, vgg11bn, l_inf, epsilon 8, lr-max 0.05, seeds 1, 2"
        assert other.title() == "AT, cifar, vgg11bn, l_inf, epsilon 8, seed 1"
        names = {f"st_{self.PLACE}_lr-max0.1", f"st_{self.PLACE}_lr-max0.05"}
        names |= {f"{mode}_{self.PLACE}" for mode in ("at", "distance")}
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
        [distances] = plot.distance_plots(groups_of(*paths))
        assert distances.name == f"distance_{self.PLACE}"
        figure = plot.draw(distances)
        for ax in figure.axes:
            lines = {line.get_label(): line for line in ax.lines}
            heights = {label: set(line.get_ydata()) for label, line in lines.items()}
            assert heights == {
                "AT, lr-max 0.1": {0.1},
                "AT, lr-max 0.05": {0.3},
                "TRADES (frozen), lr-max 0.1": {0.7},
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
        labels = [style.label for style in plot.mode_styles(groups)]
        assert labels == [
            "TRADES (frozen), trades-beta 6",
            "TRADES (frozen), trades-beta 3",
            "AT",
        ]

    def test_title_and_legend_fit_the_figure_when_much_differs(self, here):
        shared = {"batch_size": 128, "lr_schedule": "superconverge", "lr_drop_epoch": 100}
        other = {"batch_size": 256, "lr_schedule": "multipledecay", "lr_drop_epoch": 150}
        paths = [
            make_run(mode="pgd_train", models=str(n), flags=f | {"lr_max": n / 10, "epochs": n})
            for n, f in enumerate((shared, other, shared, other))
        ]
        groups = groups_of(*paths)
        for drawing in (*plot.group_plots(groups[0]), *plot.distance_plots(groups)):
            with plot.matplotlib.rc_context(plot.RC):
                figure = plot.draw(drawing)
                figure.draw_without_rendering()
                for part in (figure._suptitle, *figure.legends):
                    box = part.get_window_extent()
                    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
                assert all(ax.get_window_extent().height > 30 for ax in figure.axes)


class TestFigures:
    def test_every_setting_has_its_figures_as_png_and_pdf(self, run_script):
        runs = [make_run(seed, inputs=(*NOISY, "targeted")) for seed in (1, 2)]
        modes = ("pgd_train", "pgd_train_TRADES", "pgd_train_TRADES_batch", "pgd_train_MART")
        runs += [make_run(mode=mode) for mode in modes]
        code, output, error = run_script(plot, " ".join(map(str, runs)) + " --out drawn")
        place = "cifar_vgg11bn_l_inf_eps8.0"
        names = ("st", "st_targeted", "at", "trades", "trades_batch", "mart", "distance")
        expected = {f"{name}_{place}.{kind}" for name in names for kind in ("png", "pdf")}
        assert (code, error) == (0, "")
        assert {path.name for path in Path("drawn").iterdir()} == expected
        assert sorted(output.splitlines()) == sorted(f"wrote drawn/{name}" for name in expected)
        for path in Path("drawn").iterdir():
            magic = b"%PDF-" if path.suffix == ".pdf" else b"\x89PNG\r\n\x1a\n"
            assert path.read_bytes().startswith(magic)

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
        run = read_run(path)
        assert run.setting.file_name() == "trades_batch_mnist_PreActResNet18_l_2_eps2.0"
        assert run.seed == 3

    def test_distance_figure_holds_every_mode_with_an_adversary_and_not_st(self, here):
        modes = ("std_train", "pgd_train", "pgd_train_TRADES", "pgd_train_MART")
        groups = groups_of(*(make_run(mode=mode) for mode in modes))
        [figure] = plot.distance_plots(groups)
        for _, lines in figure.panels:
            assert [style.label for style, _, _ in lines] == ["AT", "TRADES (frozen)", "MART"]
            assert len({(style.color, style.marker) for style, _, _ in lines}) == 3

    def test_each_kind_of_input_keeps_its_colour_and_marker(self, here):
        path = make_run(inputs=(*NOISY, "targeted"))
        seen = {}
        for figure in plot.group_plots(group_of(path)):
            for ax in plot.draw(figure).axes[: len(figure.panels)]:
                lines = [line for line in ax.lines if not line.get_label().startswith("_")]
                for line in lines:
                    look = line.get_color(), line.get_marker()
                    assert seen.setdefault(line.get_label(), look) == look
        looks = {label: look for label, look in seen.items() if "classifier" not in label}
        assert len(looks) == 5
        assert all(len(set(column)) == 5 for column in zip(*looks.values(), strict=True))

    def test_what_spans_orders_of_magnitude_alone_is_logarithmic(self, here):
        [figure] = plot.group_plots(group_of(make_run()))
        axes = plot.draw(figure).axes
        logarithmic = [ax.get_ylabel().split()[0] for ax in axes if ax.get_yscale() == "log"]
        assert logarithmic == ["Loss", "NC1", "CDNV"]

    def test_long_runs_have_few_markers_and_short_ones_all(self, here):
        for epochs, fewest, most in ((range(400), 10, 13), ((0, 4, 9), 3, 3), ((0,), 1, 1)):
            path = make_run(seed=len(epochs), epochs=epochs)
            ax = plot.draw(plot.group_plots(group_of(path))[0]).axes[0]
            for line in ax.lines:
                start, step = line.get_markevery()
                assert fewest <= len(range(start, len(epochs), step)) <= most

    def test_layers_and_ncc_are_drawn_where_they_were_measured(self, run_script):
        path = make_run()
        layers = [
            filled(
                LayerRecord,
                0.1 * (epoch + i + 1),
                **{"epoch": epoch, "split": "train", "input": kind},
                **{"layer": f"conv{i}", "index": i, "features": 64},
            )
            for epoch in (0, 2)
            for kind in ("clean", "pgd")
            for i in range(3)
        ]
        write_table(path / "results" / "layers.csv", LayerRecord, layers)
        key = {"split": "test", "means": "clean", "input": "pgd"}
        ncc = [
            CentreRecord(epoch=e, **key, ncc_accuracy=0.3 * e, network_accuracy=0.1 * e)
            for e in (0, 2)
        ]
        write_table(path / "results" / "ncc.csv", CentreRecord, ncc)
        assert run_script(plot, str(path))[0] == 0
        for name in ("st_layers", "st_ncc"):
            assert Path(f"figures/{name}_cifar_vgg11bn_l_inf_eps8.0.png").exists()
        [layer_figure], [ncc_figure] = (
            f(group_of(path)) for f in (plot.layer_plots, plot.ncc_plots)
        )
        _, [clean, pgd] = layer_figure.panels[0]
        assert (clean[0].label, pgd[0].label) == ("clean", "PGD")
        x, mean, _ = average(*clean[1:])  # of epoch 2, the last
        np.testing.assert_allclose((x, mean), ([0, 1, 2], [0.3, 0.4, 0.5]))
        [(_, [ncc_line, network_line])] = ncc_figure.panels
        np.testing.assert_allclose(average(*ncc_line[1:])[1], [0, 0.6])
        np.testing.assert_allclose(average(*network_line[1:])[1], [0, 0.2])

    def test_run_of_a_single_epoch_is_drawn(self, run_script):
        path = make_run(epochs=[0], value=0.25)
        assert run_script(plot, str(path))[0] == 0
        assert Path("figures/st_cifar_vgg11bn_l_inf_eps8.0.pdf").exists()
        [figure] = plot.group_plots(group_of(path))
        for ax in plot.draw(figure).axes[: len(figure.panels)]:
            for line in ax.lines:
                assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0], [0.25])

    def test_a_metric_that_is_zero_everywhere_is_drawn_on_a_linear_axis(self, here):
        [figure] = plot.group_plots(group_of(make_run(value=0.0)))
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
        ticks = plot.log_ticks(low, high)
        assert 3 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
        assert all(low <= tick <= high for tick in ticks)
        if high >= 1000 * low:
            assert np.allclose(np.log10(ticks), np.round(np.log10(ticks)))

    @pytest.mark.parametrize("high", (2.2, 8.0, 60.0, 5e4))
    def test_drawn_logarithmic_axes_have_three_labels_and_say_so(self, here, high):
        rows = [record(e, "clean", v) for e, v in enumerate((2.0, high))]
        [figure] = plot.group_plots(group_of(make_run(records=rows)))
        drawn = plot.draw(figure)
        drawn.draw_without_rendering()
        axes = [ax for ax in drawn.axes if ax.get_yscale() == "log"]
        assert [ax.get_ylabel().endswith("(log)") for ax in axes] == [True, True, True]
        for ax in axes:
            low, top = ax.get_ylim()
            labels = {
                label.get_text()
                for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
                if low <= tick <= top and label.get_text()
            }
            assert len(labels) >= 3, labels

    def test_a_named_folder_is_shown_by_its_name(self, here):
        told = {"dataset": "folder", "data_name": "cats"}
        group = group_of(make_run(flags=told), make_run(2, flags=told))
        assert group.file_name() == "st_cats_vgg11bn_l_inf_eps8.0"
        assert group.title() == "ST, cats, vgg11bn, l_inf, epsilon 8, seeds 1, 2"
        unnamed = group_of(make_run(3, flags=told | {"data_name": None}))
        assert unnamed.file_name() == "st_folder_vgg11bn_l_inf_eps8.0"


class TestSeries:
    def test_mean_and_unbiased_deviation_over_seeds(self, here):
        group = group_of(*(make_run(seed, value=value) for seed, value in ((1, 1.0), (2, 3.0))))
        assert values(group, "pgd") == ([0, 1, 2], [2.0] * 3, pytest.approx([math.sqrt(2)] * 3))

    def test_a_single_seed_has_no_deviation(self, here):
        assert np.isnan(values(group_of(make_run()), "clean")[2]).all()

    def test_rows_of_train_come_before_those_of_eval(self, here):
        rows = [record(0, "pgd", 1.0, "train"), record(0, "pgd", 2.0), record(1, "pgd", 3.0)]
        rows.append(record(2, "pgd", 9.0, "train", split="test"))
        assert values(group_of(make_run(records=rows)), "pgd")[:2] == ([0, 1], [1.0, 3.0])

    def test_noise_of_train_is_shown_where_that_of_eval_is_missing(self, here):
        alone = group_of(make_run(inputs=("clean", "gaussian_l2")))
        both = group_of(make_run(2, inputs=("clean", "gaussian", "gaussian_l2")))
        assert list(alone.inputs) == ["clean", "gaussian_l2"]
        assert list(both.inputs) == ["clean", "gaussian"]

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
        told = [line for line in output.splitlines() if not line.startswith("wrote")]
        name = "st_cifar_vgg11bn_l_inf_eps8.0"
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
        assert plot.lr_drops(history(schedule, 400)) == drops

    def test_drops_are_marked_in_every_panel(self, here):
        path = make_run()
        write_table(path / "history.csv", EpochSummary, history("piecewise", 8))
        [figure] = plot.group_plots(group_of(path))
        for ax in plot.draw(figure).axes[: len(figure.panels)]:
            marked = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
            assert sorted(marked) == [1, 2]


class TestTable:
    def test_last_common_epoch_with_mean_and_deviation(self, run_script, undrawn):
        for seed, last in ((1, 0.25), (2, 0.75)):
            rows = [record(e, "clean", v) for e, v in ((0, 9.0), (3, last))]
            make_run(seed, records=[*rows, record(4 + seed, "clean", 9.0)])
        place = "models/cifar/vgg11bn/l_inf/eps8.0/std_train"
        code, output, _ = run_script(plot, f"{place}/seed1 {place}/seed2 --table")
        markdown = Path("figures/table.md").read_text()
        assert code == 0 and markdown.strip() in output
        assert "**ST, cifar, vgg11bn, l_inf, epsilon 8, seeds 1, 2**" in markdown
        [line] = [line for line in markdown.splitlines() if line.startswith("| clean")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == ["clean", "3"]
        assert cells[2] == "0.5000 ± 0.3536" and cells[4] == "5.00e-01 ± 3.54e-01"
        row = table_rows()["std_train", "clean", "NC1"]
        assert (row["seeds"], row["epoch"], float(row["mean"])) == ("1 2", "3", 0.5)
        assert float(row["std"]) == pytest.approx(np.std([0.25, 0.75], ddof=1))

    def test_one_seed_has_a_dash_for_the_deviation(self, run_script, undrawn):
        run_script(plot, f"{make_run(inputs=('clean', 'pgd'))} --table")
        lines = Path("figures/table.md").read_text().splitlines()
        [clean] = [line for line in lines if line.startswith("| clean")]
        assert "| 0.5000 ± - |" in clean
        assert "| - | - |" in clean  # distance and angle to itself
        assert table_rows()["std_train", "pgd", "distance"]["std"] == ""

    def test_groups_of_one_setting_are_kept_apart_by_what_differs(self, run_script, undrawn):
        paths = [run_with(value=value, lr_max=lr) for value, lr in ((0.25, 0.1), (0.75, 0.05))]
        paths.append(make_run(mode="pgd_train", flags={"lr_max": 0.2}))
        run_script(plot, " ".join(map(str, paths)) + " --table")
        titles = [t for t in Path("figures/table.md").read_text().splitlines() if "**" in t]
        place = "cifar, vgg11bn, l_inf, epsilon 8"
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
        (path / "args.json").write_text("[1]")
        return path, f"{path / 'args.json'} does not tell"

    def spoil_name(self):
        return make_run().rename("moved"), "moved: its path does not tell"

    def spoil_rows(self):
        path = make_run(records=[record(0, "clean", 0.5, "train", split="test")])
        return path, f"{path}: holds nothing to draw"

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
