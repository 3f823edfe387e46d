"""Run what a report on the paper's claims needs, through train.py, eval.py and plot.py; report it.

    python reproduce.py --scale small --data-dir cifar10-jpeg   # a folder of images, two CPU cores
    python reproduce.py --scale small                           # the built-in digits
    python reproduce.py --scale full                            # the paper's settings, on GPUs
    python reproduce.py --scale full --list > runs.txt          # the commands, one line per run
    python reproduce.py --report --runs FOLDER...               # on runs of your own, into report/
    python reproduce.py --published st --runs FOLDER...         # and the published code's numbers

The same command again goes on where it was stopped. The report is in reproduction/SCALE/, or
report/: verdicts.md, claims.md and claims.csv, tables of last values, blocks, nearest centres and
radii, figures/, runs.csv, and runs/ with the tables of every run.
"""

import argparse
import csv
import io
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from robust_nc.flags import PRECISIONS
from robust_nc.parsing import Parser, positive_int, seed_number
from robust_nc.reports.claims import CLAIMS, judge
from robust_nc.reports.groups import agree
from robust_nc.reports.output import write
from robust_nc.reports.plan import (
    Planned,
    cost_in_words,
    cost_table,
    other_than_planned,
    plan,
    sweep_passes,
    training_passes,
)
from robust_nc.reports.published import PUBLISHED_RUNS, beside, read_published, seeds_beside
from robust_nc.reports.report import REPORT_TABLES, finding_row, findings_in_words, run_rows
from robust_nc.reports.runs import Run, choose_rows, copy_runs, read_runs, swept_with
from robust_nc.reports.sweeps import given_runs
from robust_nc.reports.verdicts import verdicts_in_words
from robust_nc.results.files import free_disk, read_json, read_rows
from robust_nc.results.history import EpochSummary
from robust_nc.results.records import TABLES
from robust_nc.results.run_folder import RunFolder
from utils import InputError, Stopped, logger, run_script

CODE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of reproduce.py; the script ends where they make no sense."""
    parser = Parser(
        description="Run what a report on the paper's claims needs, and write it.",
    )
    add_task_flags(parser)
    add_recipe_flags(parser.add_argument_group("the runs"))
    args = parser.parse_args(argv)
    check_flags(parser, args)
    return args


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """What is to be done, on which runs, and where the report goes."""
    parser.add_argument(
        "--scale",
        choices=("small", "full"),
        help="small: 2,000 images for two CPU cores; full: the paper's settings, for GPUs",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the commands, a line per run, and run nothing"
    )
    parser.add_argument(
        "--cost", action="store_true", help="print what the runs cost, and run nothing"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the report on what there is, and run nothing"
    )
    parser.add_argument(
        "--published",
        choices=(*PUBLISHED_RUNS, "seeds"),
        help="print the published code's own numbers of that run beside those of --runs, which "
        "differ in the seed (seeds: those of three seeds of each), and run nothing",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="with --report: on the runs in these folders and below them, however they were "
        "trained, instead of those of the scale; with --published: the runs to compare",
    )
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="DIR",
        help="with --published: copy the tables of the runs into this folder",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the report goes; with --scale in a folder of the scale's name (default: "
        "reproduction, of --runs: report)",
    )


def add_recipe_flags(runs: argparse._ArgumentGroup) -> None:
    """Which runs there are, and what they are trained with."""
    runs.add_argument(
        "--only",
        nargs="+",
        type=int,
        choices=CLAIMS,
        metavar="CLAIM",
        help="what these claims need alone, 1 to 7; the report is on all that has been run",
    )
    runs.add_argument(
        "--data-dir",
        type=Path,
        help="small: a folder of images (--dataset folder) instead of the built-in digits; full: "
        "where CIFAR-10 is or is downloaded to (default: data)",
    )
    runs.add_argument(
        "--mnist-dir",
        type=Path,
        default=Path("data"),
        help="where MNIST is or is downloaded to (default: %(default)s)",
    )
    runs.add_argument(
        "--seeds",
        nargs="+",
        type=seed_number,
        default=[1, 2, 3],
        help="seeds to take from (default: 1 2 3)",
    )
    runs.add_argument(
        "--epochs", type=positive_int, help="of every run, instead of those of the scale"
    )
    runs.add_argument(
        "--limit-train",
        type=positive_int,
        metavar="N",
        help="training images of every run (default: small 2000, full all)",
    )
    runs.add_argument(
        "--limit-test",
        type=positive_int,
        metavar="N",
        help="test images of every run (default: small half as many as for training, full all)",
    )
    runs.add_argument(
        "--precision", choices=PRECISIONS, help="of every run (default: that of train.py)"
    )
    runs.add_argument(
        "--models-dir",
        type=Path,
        default=Path("models"),
        help="where run folders are made (default: %(default)s)",
    )


def check_flags(parser: Parser, args: argparse.Namespace) -> None:
    """End the script where flags do not go together."""
    if args.list + args.cost + args.report + bool(args.published) > 1:
        parser.error("--list, --cost, --report and --published each do one thing: give one of them")
    if not args.scale and not args.published and not (args.report and args.runs):
        parser.error("--scale small or --scale full is required, or --report --runs FOLDER...")
    if args.report and args.only:
        parser.error("--report is on all that has been run: drop --only")
    if args.runs and not args.report and not args.published:
        parser.error("--runs is for a report on what was run already: give --report as well")
    if args.published in PUBLISHED_RUNS and not args.runs:
        parser.error("--published compares with runs: give --runs as well")
    if args.published == "seeds" and (args.runs or args.tables):
        parser.error("--published seeds has runs of its own: drop --runs and --tables")
    if args.published and args.scale:
        parser.error("--published is of no scale: drop --scale")
    if args.tables and not args.published:
        parser.error("--tables is for --published: give that as well")
    if args.scale == "small" and args.data_dir and not args.report and not args.data_dir.is_dir():
        parser.error(f"argument --data-dir: {args.data_dir} is not a folder of images")
    if args.out and args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out} is not a folder")


# ---------------------------------------------------------------------------------------------
# Running it
# ---------------------------------------------------------------------------------------------


def tell_cost(planned: list[Planned]) -> None:
    """One line on passes and disk."""
    passes, disk = cost_in_words(planned)
    free = free_disk(planned[0].run["models_dir"]) / 2**30
    logger.info(
        f"{len(planned)} runs: {passes} million passes of an image, forward and backward, if none "
        f"is done yet, and {disk} GiB of disk, of which {free:.0f} are free"
    )


def progress(planned: Planned) -> float:
    """Share of a run's epochs that are trained."""
    history = read_rows(planned.folder / "history.csv", EpochSummary)
    return min(1.0, len(history) / planned.training["epochs"])


def passes_left(planned: Planned) -> float:
    """Of a run's training what is not done yet, and of its sweeps all."""
    return training_passes(planned) * (1 - progress(planned)) + sweep_passes(planned)


class Child:
    """The script that is running, to which signals are handed on."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.received = 0

    def hand_on(self, number: int, _: Any) -> None:
        self.received = number
        if self.process is not None:
            self.process.send_signal(number)

    def run(self, command: list[str]) -> int:
        """Exit code of one of our scripts."""
        self.process = subprocess.Popen([sys.executable, str(CODE / command[0]), *command[1:]])
        if self.received:  # in between
            self.process.send_signal(self.received)
        while True:
            try:
                return self.process.wait()
            except KeyboardInterrupt:  # the terminal has sent it to the script as well
                self.received = signal.SIGINT


def run_all(planned: list[Planned]) -> list[Planned]:
    """Train and sweep one after the other; those that failed."""
    child, failed = Child(), []
    former = signal.signal(signal.SIGTERM, child.hand_on)
    passes = seconds = 0.0  # of the runs so far
    try:
        for number, run in enumerate(planned, 1):
            left = ""
            if passes:
                hours = sum(map(passes_left, planned[number - 1 :])) * seconds / passes / 3600
                left = f"; about {hours:.1f} hours left at the pace so far"
            logger.info(f"run {number} of {len(planned)}: {run.name}{left}")
            trained, needed, started = progress(run), passes_left(run), time.perf_counter()
            for command in run.commands:
                code = child.run(command)
                if child.received:
                    raise Stopped(child.received, "; the same command goes on from there")
                if code:
                    failed.append(run)
                    logger.warning(f"{command[0]} ended with {code}: the run is left out")
                    break
            if trained < 1:  # else its sweeps may have been done as well
                passes, seconds = passes + needed, seconds + time.perf_counter() - started
    finally:
        signal.signal(signal.SIGTERM, former)
    return failed


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------


def is_as_planned(planned: Planned) -> bool:
    """Whether a run is there, trained to the end and as the flags say; one line if it is not so."""
    arguments = read_json(planned.folder / "args.json")
    if not arguments:
        return False
    folder = RunFolder(planned.folder)
    rows = [row for row_type in TABLES for row in folder.rows(row_type)]
    swept = swept_with(folder, choose_rows(folder, rows).rows)
    differing = other_than_planned(planned, arguments, swept)
    if differing:
        logger.info(f"left out: {planned.folder}: {differing}")
    elif progress(planned) < 1:
        logger.info(f"left out: {planned.folder}: not trained to the end yet")
    return not differing and progress(planned) == 1


def write_report(args: argparse.Namespace, runs: list[Run]) -> None:
    """claims, tables, figures and settings of the runs, into the folder of the report."""
    out = report_folder(args)
    if not runs:
        raise InputError(f"{args.models_dir}: holds none of the runs; run without --report first")
    findings = judge(runs)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    copy_runs(runs, out / "runs")
    write(out / "claims.csv", to_csv([finding_row(finding) for finding in findings]))
    write(out / "runs.csv", to_csv(run_rows(runs)))
    claims = findings_in_words(findings)
    where = "in the runs that were named" if args.runs else f"at the {args.scale} scale"
    write(out / "claims.md", f"# The claims, {where}\n\n{claims}")
    write(out / "verdicts.md", f"# The verdicts, {where}\n\n{verdicts_in_words(findings, runs)}")
    for name, (heading, in_words) in REPORT_TABLES.items():
        write(out / name, f"# {heading}\n\n{in_words(runs)}")
    logger.info(claims)
    drawn = [str(run.place) for run in runs if run.own_records]
    code = Child().run(["plot.py", *drawn, "--out", str(out / "figures"), "--table"])
    if code:
        raise InputError("plot.py failed: the figures are missing")


def report_folder(args: argparse.Namespace) -> Path:
    """Where the report goes: one on runs of one's own never takes the place of reproduction/."""
    out = args.out or Path("report" if args.runs else "reproduction")
    return out / args.scale if args.scale else out


def to_csv(rows: list[dict[str, Any]]) -> str:
    """A column for each name that any of the rows has."""
    lines = io.StringIO(newline="")
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def print_published(args: argparse.Namespace) -> None:
    """The published code's numbers beside those of --runs, which are averaged."""
    if args.published not in PUBLISHED_RUNS:
        print(seeds_beside(), end="")
        return
    runs = given_runs(args.runs)
    other = next((run for run in runs if not agree(run, runs[0])), None)
    if other:
        raise InputError(
            f"--runs {other.path}: differs from {runs[0].path} in more than the seed: give runs "
            "that differ in the seed alone"
        )
    print(beside(read_published(args.published), runs), end="")
    if args.tables:
        copy_runs(runs, args.tables)


def main() -> None:
    """Run what the claims need, or list it, and write the report."""
    args = parse_args()
    if args.published:
        print_published(args)
        return
    if args.runs:
        write_report(args, given_runs(args.runs))
        return
    planned = plan(args, args.only)
    if args.list:
        for run in planned:
            print(" && ".join(shlex.join(["python", *command]) for command in run.commands))
        return
    if args.cost:
        print(cost_table(planned), end="")
        return
    failed: list[Planned] = []
    if not args.report:
        tell_cost(planned)
        failed = run_all(planned)
    # On all claims, whichever were asked for: what other calls have run stays in the report.
    left_out = {run.folder for run in failed}
    there = [run for run in plan(args, None) if run.folder not in left_out and is_as_planned(run)]
    write_report(args, read_runs([run.folder for run in there]))
    if failed:
        names = "; ".join(run.name for run in failed)
        raise InputError(f"{len(failed)} of {len(planned)} runs failed: {names}")


if __name__ == "__main__":
    run_script(main)
