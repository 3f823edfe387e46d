"""Draw the paper's figures from run folders, as PNG and PDF, and tabulate the last values.

    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/std_train/seed1             # into figures/
    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/*/seed* --out figs --table  # all at once

Runs whose args.json differ in the seed alone, or in what cannot change a number, are one group:
its figures show their mean and, shaded, their standard deviation. Other runs have figures of their
own; where the usual name would be the same, it ends with the flags that differ.
"""

import argparse
import csv
import io
import math
from dataclasses import fields
from pathlib import Path

import matplotlib

from robust_nc.data.inputs import INPUTS
from robust_nc.parsing import Parser
from robust_nc.reports.drawing import RC, draw
from robust_nc.reports.figures import all_plots
from robust_nc.reports.groups import (
    NO_FLAGS,
    Group,
    Line,
    LineName,
    View,
    average,
    by_setting,
    collect,
    common,
    group_runs,
    in_words,
)
from robust_nc.reports.runs import PERTURBED, Run, radius_in_words
from robust_nc.reports.sweeps import folder_at, runs_at
from robust_nc.results.metrics import METRICS
from robust_nc.results.records import SPLITS, TABLES, AutoAttackRecord, Record, radius_of
from robust_nc.results.tables import NC1_DEFINITION, markdown, with_spread
from utils import InputError, atomic_open, logger, run_script


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Draw the paper's figures from run folders, as PNG and PDF.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="folders of runs, or of results: the --out of eval.py",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        metavar="DIR",
        help="where the figures go (default: %(default)s)",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the values of the last epoch, and write them as table.md and table.csv",
    )
    parser.add_argument(
        "--split",
        choices=(*SPLITS, "both"),
        default="train",
        help="draw training images, test images, or both, test dashed (default: %(default)s)",
    )
    parser.add_argument(
        "--perturbed",
        choices=PERTURBED,
        default="seen",
        help="which perturbed images of AT, TRADES and MART: those seen in training, as the paper "
        "draws them, or PGD on the checkpoint (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out} is not a folder")
    return args


def main() -> None:
    args = parse_args()
    view = View(args.split, args.perturbed)
    groups = group_runs([run for path in args.runs for run in read_measured(path)])
    tell_differences(groups)
    for group in groups:
        tell_gaps(group, view)
    plots = all_plots(groups, view)
    if not plots:
        images = "" if args.split == "train" else f" with --split {args.split}"
        raise InputError(f"{args.runs[0]}: holds nothing to draw{images}; run eval.py on it first")
    args.out.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        with matplotlib.rc_context(RC):
            figure = draw(plot)
            for kind in ("png", "pdf"):
                content = io.BytesIO()
                figure.savefig(content, format=kind)
                write(args.out / f"{plot.name}.{kind}", content.getvalue())
    if args.table:
        words, table = tables(groups, view)
        logger.info(words)
        write(args.out / "table.md", words.encode())
        write(args.out / "table.csv", table.encode())


def read_measured(path: Path) -> list[Run]:
    """The run of a folder that holds something to draw; of eval.py --checkpoint one per file.

    Raises:
        InputError: no such folder, no metrics.csv, a damaged file, or an unknown setting.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    folder = folder_at(path)
    measured = any(folder.table(row_type).is_file() for row_type in TABLES)
    if not measured and not folder.rows(Record):
        raise InputError(f"{path}: no results/metrics.csv: not a run folder, or not measured yet")
    return runs_at(path)


def write(path: Path, content: bytes) -> None:
    with atomic_open(path) as file:
        file.write(content)
    logger.info(f"wrote {path}")


def tell_differences(groups: list[Group]) -> None:
    """One line for each setting whose runs are in more groups than one."""
    for alike in by_setting(groups):
        differing = []
        for name in dict.fromkeys(name for group in alike for name in group.differs):
            values = dict.fromkeys(g.differs[name] for g in alike if name in g.differs)
            dashes = "" if name in NO_FLAGS else "--"
            differing.append(f"{dashes}{name} ({', '.join(values)})")
        if differing:
            name = alike[0].usual_name()
            logger.info(f"{name}: runs differ in {', '.join(differing)}: drawn apart")


def tell_gaps(group: Group, view: View) -> None:
    """A line on what is missing, on what stands in, and on epochs that not all seeds have."""
    name, shown = group.file_name(), group.shown(view)
    by_all = " by all seeds" if len(group.runs) > 1 else ""
    for split in view.splits:
        kinds = {line.input for line in shown if line.split == split}
        missing = missing_kinds(kinds, group)
        images = "" if split == "train" else " on test images"
        if missing:
            logger.info(f"{name}: left out, not measured{images}{by_all}: {', '.join(missing)}")
        # Test images are seen in no training.
        drawn = kinds.intersection(PERTURBED) if split == "train" else set()
        if group.adversary and drawn and view.perturbed not in drawn:
            asked, other = INPUTS[view.perturbed].label, INPUTS[drawn.pop()].label
            logger.info(f"{name}: not measured{by_all}: {asked}; drawn is {other}")
    if view.split == "train" and any(run.autoattack for run in group.runs):
        logger.info(
            f"{name}: AutoAttack is of test images: drawn over epochs with --split test or both"
        )
    if any(len({frozenset(rows) for rows in line}) > 1 for line in shown.values()):
        counts = ", ".join(f"{kind_of(n)} {len(common(line))}" for n, line in shown.items())
        logger.info(f"{name}: seeds differ in epochs; drawn are those common to all: {counts}")


def kind_of(name: LineName) -> str:
    return name.input if name.split == "train" else f"{name.input} ({name.split})"


def missing_kinds(measured: set[str], group: Group) -> list[str]:
    """The kinds of input that eval.py measures where asked, unless another stands in."""
    kinds = [INPUTS[kind] for kind in measured]
    stood_in = {name for kind in kinds for name in (kind.stands_in_for, kind.published_as)}
    return [
        kind
        for kind, row in INPUTS.items()
        if row.asked_by and not (row.targeted and group.adversary)
        if kind not in measured | stood_in
    ]


def tables(groups: list[Group], view: View) -> tuple[str, str]:
    """Every metric at the last common epoch: Markdown, and CSV with all digits, a row per value."""
    metrics = [metric for metric in METRICS.values() if "epochs" in metric.figures]
    metrics.sort(key=lambda metric: metric.from_clean)
    metrics += [METRICS[metric.classifier] for metric in metrics if metric.classifier]
    setting_columns = ("dataset", "model", "norm", "epsilon")
    line_columns = ("input", "split", "images", "attack_epsilon", "epoch")
    parts, content = [], io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(
        ["mode", *setting_columns, "seeds", *line_columns, "metric", "mean", "std", "differs"]
    )
    for group in groups:
        heads = ("input", "split", "images", "epsilon", "epoch", *(m.name for m in metrics))
        rows = []
        seeds = " ".join(str(run.seed) for run in group.runs)
        names = [
            group.file or group.mode,
            *(getattr(group.setting, name) for name in setting_columns),
        ]
        for (split, kind, images, radius), line in table_lines(group, view).items():
            epoch, attack = common(line)[-1], radius_in_words(radius, group.setting.dataset)
            cells = [kind, split, str(images or "-"), attack if radius else "-", str(epoch)]
            for metric in metrics:
                mean, std = last_values(line, metric.field)
                cells.append(with_spread(mean, std, metric.form))
                numbers = ["" if math.isnan(value) else value for value in (mean, std)]
                row = [kind, split, images or "", radius or "", epoch, metric.name, *numbers]
                writer.writerow([*names, seeds, *row, in_words(group.differs)])
            rows.append(cells)
        parts.append(f"**{group.title()}**\n\n{markdown(heads, rows)}")
    return "\n".join([*parts, f"{NC1_DEFINITION}\n"]), content.getvalue()


def table_lines(group: Group, view: View) -> dict[tuple[str, str, int, float], Line]:
    """(split, input, images, epsilon) -> rows by epoch, of all that was measured by all seeds.

    AutoAttack is there whatever the split, with the clean accuracy of its images.
    """
    tables = [[row for row in run.records if row.split in view.splits] for run in group.runs]
    lines = collect(tables, lambda row: (row.split, row.input, row.images, radius_of(row)))
    for kind, field in (("clean", "clean_accuracy"), ("autoattack", "robust_accuracy")):
        tables = [[accuracy_record(row, field) for row in run.autoattack] for run in group.runs]
        tested = collect(tables, lambda row: (row.split, row.images, radius_of(row)))
        for (split, images, radius), line in tested.items():
            key = (split, kind, images, 0.0 if kind == "clean" else radius)
            lines.setdefault(key, line)
    return {name: line for name, line in lines.items() if common(line)}


def accuracy_record(row: AutoAttackRecord, field: str) -> Record:
    """A row of AutoAttack as one of all metrics, of which it knows the accuracy alone."""
    unknown = {f.name: math.nan for f in fields(Record)}
    known = {f.name: getattr(row, f.name) for f in fields(row) if f.name in unknown}
    key = {"source": "eval", "input": "clean", "accuracy": getattr(row, field)}
    return Record(**unknown | known | key)


def last_values(line: Line, field: str) -> tuple[float, float]:
    """Mean and deviation of a field at the last common epoch."""
    _, mean, std = average(line, field)
    return float(mean[-1]), float(std[-1])


if __name__ == "__main__":
    run_script(main)
