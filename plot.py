"""Draw the paper's figures from run folders, as PNG and PDF, and tabulate the last values.

    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/std_train/seed1             # into figures/
    python plot.py models/cifar/vgg11bn/l_inf/eps8.0/*/seed* --out figs --table  # all at once

Runs whose args.json differ in the seed alone, or in what cannot change a number, are one group:
its figures show their mean and, shaded, their standard deviation. Other runs have figures of their
own; where the usual name would be the same, it ends with the flags that differ.
"""

import argparse
import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

from robust_nc.data.inputs import INPUTS
from robust_nc.flags import PRECISIONS
from robust_nc.parsing import Parser, positive_int, radius
from robust_nc.reports.animation import gif_of
from robust_nc.reports.attacks import (
    ATTACK_FLAGS,
    FLAGS,
    asked_in_words,
    refuse_unmeasured,
    tell_attacks,
)
from robust_nc.reports.captions import caption_of
from robust_nc.reports.comparisons import collapse_plot, tell_swept
from robust_nc.reports.drawing import draw
from robust_nc.reports.figures import all_pictures, finished, in_order, with_attack
from robust_nc.reports.groups import (
    NO_FLAGS,
    Group,
    LineName,
    View,
    by_setting,
    common,
    group_runs,
)
from robust_nc.reports.latex import latex_tables
from robust_nc.reports.output import write
from robust_nc.reports.panels import Picture, Plot
from robust_nc.reports.runs import PERTURBED, Run
from robust_nc.reports.style import RC
from robust_nc.reports.sweeps import folder_at, runs_at
from robust_nc.reports.table import tables
from robust_nc.results.records import TABLES, Record
from robust_nc.results.rows import SPLITS
from robust_nc.settings import flag_name
from utils import InputError, logger, run_script

TABLE_FORMS = ("markdown", "latex")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of plot.py; the script ends where they make no sense."""
    parser = Parser(
        description="Draw the paper's figures from run folders, as PNG and PDF.",
    )
    runs = "folders of runs, or of results: the --out of eval.py"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help=runs)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        metavar="DIR",
        help="where the figures go (default: %(default)s)",
    )
    parser.add_argument(
        "--table",
        nargs="?",
        choices=TABLE_FORMS,
        const="markdown",
        help="print the values of the last epoch, and write them as table.md and table.csv; latex: "
        "print them for a paper, and write table.tex as well",
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
        help="which perturbed images of AT, TRADES and MART: those of training time, as the paper "
        "draws them, or PGD on the checkpoint (default: seen; where an attack is asked for pgd)",
    )
    parser.add_argument(
        "--panels",
        choices=("main", "all"),
        default="main",
        help="draw the main panels, or all metrics: loss, CDNV, Zhu's NC2 and NC3, ... "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="draw the collapse of all runs in one figure, a line for each setting",
    )
    parser.add_argument(
        "--animate",
        action="store_true",
        help="write the simplex over the checkpoints as a GIF as well",
    )
    add_attack_flags(parser)
    args = parser.parse_args(with_table_form(sys.argv[1:] if argv is None else argv))
    check_flags(parser, args)
    return args


def check_flags(parser: Parser, args: argparse.Namespace) -> None:
    """End the script where a value makes no sense, or flags do not go together."""
    for name in ("pgd_alpha", "noise_level"):
        if getattr(args, name) is not None and getattr(args, name).value == 0:
            parser.error(f"argument {flag_name(name)}: expected a number above 0")
    if args.animate and args.compare:
        parser.error("--compare draws one figure, without the simplex: drop it or --animate")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out} is not a folder")


def add_attack_flags(parser: argparse.ArgumentParser) -> None:
    """Which attack, noise and precision is drawn."""
    attack = parser.add_argument_group(
        "the attack", "of which rows are drawn, where a run was measured with several"
    )
    for flag, kind, meaning in (
        ("--attack-iters", positive_int, "steps of PGD (default: the run's own)"),
        ("--restarts", positive_int, "of PGD (default: the run's own)"),
        ("--pgd-alpha", radius, "step size, at every radius (default: the run's, in proportion)"),
        ("--noise-level", radius, "of noisy images, in 1/255 units (default: the run's own)"),
    ):
        attack.add_argument(flag, type=kind, metavar="N", help=meaning)
    attack.add_argument(
        "--precision", choices=PRECISIONS, help="of the sweep (default: the training's own)"
    )


def with_table_form(argv: list[str]) -> list[str]:
    """The arguments, in which --table has its value: none is a folder of runs that follows it."""
    words = list(argv)
    for place, (flag, value) in enumerate(pairwise([*argv, ""])):
        if flag == "--table" and value not in TABLE_FORMS:
            words[place] = "--table=markdown"
    return words


def main() -> None:
    """Draw the figures of the runs, and tabulate them."""
    args = parse_args()
    given = {name: getattr(args, flag.replace("-", "_")) for name, flag in FLAGS.items()}
    asked = {name: value for name, value in given.items() if value is not None}
    perturbed = args.perturbed or ("pgd" if asked.keys() & ATTACK_FLAGS.keys() else "seen")
    view = View(args.split, perturbed, asked_in_words(asked), args.panels)
    runs = [run for path in args.runs for run in read_measured(path, asked)]
    refuse_unmeasured(runs, asked)
    groups = group_runs(runs)
    tell_attacks(groups, view)
    tell_swept(groups, view)
    if args.compare:
        refuse_files(groups)
        compared = collapse_plot("compare", in_order(groups), view)
        compared = finished(with_attack(compared, view))
        plots: list[Plot | Picture] = [compared] if compared.panels else []
    else:
        tell_differences(groups)
        for group in groups:
            tell_gaps(group, view)
        plots = all_pictures(groups, view)
    if not plots:
        images = "" if args.split == "train" else f" with --split {args.split}"
        raise InputError(f"{args.runs[0]}: holds nothing to draw{images}; run eval.py on it first")
    args.out.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        draw_plot(plot, args.out)
    if args.animate:
        animate(plots, args)
    if args.table:
        words, table = tables(groups, view)
        latex = latex_tables(table) if args.table == "latex" else ""
        logger.info(latex or words)
        if latex:
            write(args.out / "table.tex", latex)
        write(args.out / "table.md", words)
        write(args.out / "table.csv", table)


def draw_plot(plot: Plot | Picture, out: Path) -> None:
    """A figure as PNG and PDF, with its caption beside it."""
    with matplotlib.rc_context(RC):
        figure = draw(plot)
        for kind in ("png", "pdf"):
            content = io.BytesIO()
            figure.savefig(content, format=kind)
            write(out / f"{plot.name}.{kind}", content.getvalue())
    caption = caption_of(plot)
    logger.info(caption)
    write(out / f"{plot.name}.txt", f"{caption}\n")


def animate(plots: list[Plot | Picture], args: argparse.Namespace) -> None:
    """The simplex over its checkpoints, as GIFs.

    Raises:
        InputError: none was measured.
    """
    simplices = [p for p in plots if isinstance(p, Picture) and p.name.startswith("simplex_")]
    if not simplices:
        raise InputError(f"{args.runs[0]}: nothing to animate; run eval.py --simplex on it first")
    for picture in simplices:
        if len(picture.epochs) < 2:
            logger.info(f"{picture.name}: not animated, measured at one epoch alone")
            continue
        with matplotlib.rc_context(RC):
            write(args.out / f"{picture.name}.gif", gif_of(picture))


def refuse_files(groups: list[Group]) -> None:
    """Raise InputError where --compare is given files of weights, which have no epochs."""
    files = [group.file for group in groups if group.file]
    if files:
        raise InputError(
            f"--compare draws runs against epochs, of which {', '.join(files)} have none: without "
            "--compare files of weights are drawn beside each other"
        )


def read_measured(path: Path, asked: dict[str, Any]) -> list[Run]:
    """The run of a folder that holds something to draw; of eval.py --checkpoint one per file.

    Of the attack and noise asked for.

    Raises:
        InputError: no such folder, no metrics.csv, a damaged file, or an unknown setting.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    folder = folder_at(path)
    measured = any(folder.table(row_type).is_file() for row_type in TABLES)
    if not measured and not folder.rows(Record):
        raise InputError(f"{path}: no results/metrics.csv: not a run folder, or not measured yet")
    return runs_at(path, asked)


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


if __name__ == "__main__":
    run_script(main)
