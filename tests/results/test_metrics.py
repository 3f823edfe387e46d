"""A metric is one row: what the row says is what tables, log, figures and reports show."""

import csv
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from test_plot import filled, group_of, group_plots, make_run, record

import plot
from nc_metrics import LayerCollapse, NeuralCollapse
from robust_nc.reports.groups import View
from robust_nc.results.files import read_rows, write_rows
from robust_nc.results.layer_rows import LAYER_METRICS, LayerRecord
from robust_nc.results.metrics import METRICS, Column, Metrics, metric, metrics_of
from robust_nc.results.records import LeapRecord, Record
from robust_nc.results.tables import (
    describe_record,
    input_table,
    layer_table,
    plain_table,
    table_lines,
)

LINE = (
    "train pgd 8       acc 0.2500 loss 0.2500 nc1 2.500e-01 nc2 norm 0.250 angle 0.250 nc3 0.250 "
    "nc4 0.2500"
)


def test_the_columns_of_the_tables_are_where_they_were():
    metrics = (
        "loss accuracy ncc_accuracy nc1 nc2_norm_activation nc2_norm_classifier "
        "nc2_angle_activation nc2_angle_classifier nc3 nc4 clean_distance clean_angle "
        "clean_distance_abs clean_angle_abs clean_mean_distance clean_mean_angle nc1_papyan cdnv "
        "nc2_zhu nc3_zhu own_distance own_angle vertex_agreement vertex_distance"
    )
    told = "checkpoint step_size steps restarts noise precision"
    columns = f"source epoch split input {metrics} images epsilon {told}"
    assert [field.name for field in fields(Record)] == columns.split()
    assert metrics_of(Record) == metrics_of(Metrics)
    assert metrics_of(Metrics) == METRICS and next(iter(METRICS)) == "accuracy"
    layers = (
        "epoch split input layer index features nc1 nc2_norm nc2_angle ncc_accuracy ncc_agreement "
        "images epsilon centre_accuracy target_centre_accuracy clean_distance clean_angle "
        f"own_distance own_angle {told}"
    )
    assert [field.name for field in fields(LayerRecord)] == layers.split()


def test_every_metric_has_a_formula_and_every_formula_a_row():
    formulas = {field.name for field in fields(NeuralCollapse) if field.type is float}
    others = {name for name in METRICS if name.startswith(("clean_", "own_", "vertex_"))} | {
        "loss",
        "accuracy",
    }
    assert METRICS.keys() == formulas | others
    assert {field.name for field in fields(LayerCollapse)} < LAYER_METRICS.keys()


def test_what_another_metric_is_of_the_classifier_is_a_metric_too():
    counterparts = {row.classifier for row in METRICS.values() if row.classifier}
    assert counterparts == {"nc2_norm_classifier", "nc2_angle_classifier"} < METRICS.keys()


def test_a_metric_in_a_figure_has_a_label_for_its_axis():
    for row in (*METRICS.values(), *LAYER_METRICS.values()):
        assert bool(row.label) == bool(row.figures), row.field


def test_the_line_of_the_log_tells_the_distance_to_clean_images_where_there_is_one():
    row = record(3, "pgd", 0.25)
    assert describe_record(row) == f"{LINE} | from clean: dist 0.250 angle 0.250"
    assert describe_record(replace(row, clean_distance=math.nan)) == LINE
    undefined = replace(row, clean_angle=math.nan)  # of class means that are all zero
    assert describe_record(undefined) == f"{LINE} | from clean: dist 0.250 angle nan"
    noise = describe_record(replace(row, input="gaussian", epsilon=math.nan, split="test"))
    assert noise.startswith("test  gaussian    acc 0.2500 loss")


HEADS = "epsilon  images  epoch  accuracy       NC1  NC2 norm  NC2 angle     NC3     NC4"


def test_the_tables_at_the_end_of_a_sweep():
    rows = [record(3, "clean", 0.25), record(3, "pgd", 12.5), record(3, "pgd", 0.5, split="test")]
    number = "     100      3"
    assert table_lines(rows, input_table)[:-1] == [
        f"input      {HEADS}",
        f"clean            -{number}    0.2500  2.50e-01    0.2500     0.2500   0.250  0.2500",
        f"pgd              8{number}   12.5000  1.25e+01   12.5000    12.5000  12.500  12.5000",
        f"test input {HEADS}",
        f"pgd              8{number}    0.5000  5.00e-01    0.5000     0.5000   0.500  0.5000",
    ]
    place = {"epoch": 3, "split": "train", "layer": "conv1", "index": 0, "features": 8}
    rows = [
        filled(LayerRecord, 0.25, **place, input="clean"),
        filled(LayerRecord, 0.5, **place, input="targeted", epsilon=8.0),
    ]
    assert table_lines(rows, layer_table)[1:4] == [
        "train   3 layer    | clean                 | targeted 8",
        "(100 images)       | centre angle      NC1 | centre target angle own angle      NC1",
        "          conv1    |  0.250  0.25 2.50e-01 |  0.500  0.500  0.50      0.50 5.00e-01",
    ]


def test_rows_without_a_table_of_their_own_have_a_column_per_field():
    attack = {"epsilon": 8.0, "step_size": 2.0, "steps": 10, "restarts": 1}
    rows = [
        LeapRecord(3, "train", "clean", true_class=0, nearest_class=12, count=5, images=5),
        LeapRecord(3, "train", "pgd", 0, 1, 2, 5, **attack, checkpoint="a.pth"),
        LeapRecord(3, "train", "pgd", 0, 1, 3, 5, **(attack | {"steps": 50}), checkpoint="a.pth"),
    ]
    assert table_lines(rows, plain_table) == [
        "epoch  split  input  true_class  nearest_class  count  images  epsilon",
        "    3  train  clean           0             12      5       5        -",
        "    3  train    pgd           0              1      2       5        8"
        "  PGD-10, 8/255, step 2/255  a.pth",
        "    3  train    pgd           0              1      3       5        8"
        "  PGD-50, 8/255, step 2/255  a.pth",
        "attacks: PGD-10, 8/255, step 2/255; PGD-50, 8/255, step 2/255",
    ]


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """NC1 by Papyan's definition, which is a column alone, as if its row asked for more."""
    monkeypatch.chdir(tmp_path)
    row = replace(
        METRICS["nc1_papyan"],
        label="NC1 / C",
        scale="log",
        form=".3e",
        log=Column("nc1/C", ".2f"),
        table=Column("NC1 divided by C", ".3f"),
        figures=("epochs", "radii"),
    )
    monkeypatch.setitem(METRICS, "nc1_papyan", row)


def test_a_row_is_all_that_a_metric_needs_to_be_shown(shown):
    row = record(3, "pgd", 0.25)
    line = f"{LINE} nc1/C 0.25 | from clean: dist 0.250 angle 0.250"
    assert describe_record(row) == line
    head, values, *_ = table_lines([row], input_table)
    assert head.endswith("     NC4  NC1 divided by C") and len(head) == len(values)
    assert values.endswith("  0.2500             0.250")
    group = group_of(make_run())
    [figure] = group_plots(group)
    [panel] = [panel for panel, _ in figure.panels if panel.field == "nc1_papyan"]
    assert (panel.name, panel.label, panel.scale) == ("NC1 (Papyan)", "NC1 / C", "log")
    words, table = plot.tables([group], View())
    assert " NC1 (Papyan) |" in words and " 5.000e-01 |" in words
    [value] = [
        row["mean"]
        for row in csv.DictReader(table.splitlines())
        if (row["input"], row["metric"]) == ("sign", "NC1 (Papyan)")
    ]
    assert value == "0.5"


def test_a_new_column_is_nan_in_tables_of_older_versions(tmp_path):
    @dataclass(frozen=True)
    class Row(Metrics):
        entropy: float = metric("entropy", series="entropy")

    assert metrics_of(Row)["entropy"].field == "entropy"
    path = Path(tmp_path / "metrics.csv")
    write_rows(path, Metrics, [filled(Metrics, 0.5)])
    [row] = read_rows(path, Row)
    assert row.nc1 == 0.5 and math.isnan(row.entropy)
