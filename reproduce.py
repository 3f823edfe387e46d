"""Run what a report on the paper's claims needs, through train.py, eval.py and plot.py; report it.

    python reproduce.py --scale small --data-dir cifar10-jpeg   # a folder of images, two CPU cores
    python reproduce.py --scale small                           # the built-in digits
    python reproduce.py --scale full                            # the paper's settings, on GPUs
    python reproduce.py --scale full --list > runs.txt          # the commands, one line per run
    python reproduce.py --scale full --report --runs FOLDER...  # on runs of your own

Started again, it goes on. The report is in reproduction/SCALE/: claims.md and claims.csv, tables of
last values, blocks, nearest centres and radii, figures/, runs.csv, and runs/ with the tables of
every run.
"""

import argparse
import csv
import io
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from robust_nc import build
from robust_nc.data.inputs import PUBLISHED_ATTACKS
from robust_nc.flags import PRECISIONS
from robust_nc.networks.network import Network, build_model, weight_bytes
from robust_nc.parsing import Parser, positive_int, seed_number
from robust_nc.reports.claims import AT, BATCH, CLAIMS, FROZEN, MART, ST, Run, judge, read_runs
from robust_nc.reports.report import (
    blocks_in_words,
    centres_in_words,
    finding_row,
    findings_in_words,
    radii_in_words,
    summary_in_words,
)
from robust_nc.reports.runs import FREE
from robust_nc.results.files import free_disk, read_json, read_rows
from robust_nc.results.records import EpochSummary
from robust_nc.results.tables import markdown
from robust_nc.settings import (
    Settings,
    difference,
    select_epochs,
)
from robust_nc.training.modes import MODES
from utils import InputError, Stopped, atomic_open, logger, run_script, select_device, set_precision

CODE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Experiment:
    """A network, the way it is trained, and how many seeds.

    deep: whether blocks, nearest centres and other radii are measured after the last epoch.
    dataset: another one than the scale's.
    """

    mode: str
    model: str = "vgg11bn"
    norm: str = "l_inf"
    seeds: int = 1
    deep: bool = True
    dataset: str | None = None


# The claims that a way to train is evidence for.
CLAIMS_OF = {ST: (1, 2, 3, 6, 7), AT: (4, 5, 6, 7), FROZEN: (5,), BATCH: (5,), MART: (5,)}
DEEP_CLAIMS = {6, 7}  # on blocks, nearest centres and radii alone
LAYER_CLAIMS = DEEP_CLAIMS | {3}  # for which these are measured
SMALL = (
    Experiment(ST, seeds=3),
    Experiment(AT, seeds=2),
    Experiment(FROZEN, seeds=2),
    Experiment(BATCH, seeds=2),
    Experiment(MART),
    Experiment(ST, model="PreActResNet18"),
    Experiment(AT, model="PreActResNet18"),
    Experiment(ST, norm="l_2"),
    Experiment(AT, norm="l_2"),
    Experiment(ST, deep=False, dataset="mnist"),
)
FULL = tuple(
    Experiment(mode, model=model, norm=norm, seeds=3)
    for model in ("vgg11bn", "PreActResNet18")
    for norm in PUBLISHED_ATTACKS
    for mode in CLAIMS_OF
)

# How small runs train, long enough to fit the images; digits need fewer epochs of ST.
SMALL_IMAGES = (2000, 1000)  # for training and test
SMALL_ST = {"epochs": 40}
SMALL_ADVERSARY = {"epochs": 30, "batch_size": 64, "lr_max": 0.05, "lr_schedule": "cosine"}
DIGITS_ST = {"epochs": 10, "lr_max": 0.05, "lr_schedule": "cosine"}
DIGITS_RADIUS = 2.5  # times that of photographs
SWEPT = (0, 2, 4, 9, 19)  # epochs of a small run, and its last one


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Run what a report on the paper's claims needs, and write it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--scale",
        choices=("small", "full"),
        required=True,
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
        "--runs",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="with --report: on the runs in these folders, however they were trained, instead of "
        "those of the scale",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        type=int,
        choices=CLAIMS,
        metavar="CLAIM",
        help="what these claims need alone, 1 to 7; the report is on all that has been run",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="small: a folder of images (--dataset folder) instead of the built-in digits; full: "
        "where CIFAR-10 is or is downloaded to (default: data)",
    )
    parser.add_argument(
        "--mnist-dir",
        type=Path,
        default=Path("data"),
        help="where MNIST is or is downloaded to (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=seed_number,
        default=[1, 2, 3],
        help="seeds to take from (default: 1 2 3)",
    )
    parser.add_argument(
        "--epochs", type=positive_int, help="of every run, instead of those of the scale"
    )
    parser.add_argument(
        "--limit-train",
        type=positive_int,
        metavar="N",
        help="training images of every run (default: small 2000, full all)",
    )
    parser.add_argument(
        "--limit-test",
        type=positive_int,
        metavar="N",
        help="test images of every run (default: small half as many as for training, full all)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of every run (default: that of train.py)"
    )
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=Path("models"),
        help="where run folders are made (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reproduction"),
        metavar="DIR",
        help="where the report goes, in a folder of the scale's name (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.list + args.cost + args.report > 1:
        parser.error("--list, --cost and --report each do one thing: give one of them")
    if args.report and args.only:
        parser.error("--report is on all that has been run: drop --only")
    if args.runs and not args.report:
        parser.error("--runs is for a report on what was run already: give --report as well")
    reads_images = args.scale == "small" and args.data_dir and not args.report
    if reads_images and not args.data_dir.is_dir():
        parser.error(f"argument --data-dir: {args.data_dir} is not a folder of images")
    return args


# ---------------------------------------------------------------------------------------------
# What is run
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """One run of an experiment: flags of the run, of its training, and of each of its sweeps."""

    experiment: Experiment
    seed: int
    run: dict[str, Any]
    training: dict[str, Any]
    sweeps: tuple[dict[str, Any], ...]

    @property
    def commands(self) -> list[list[str]]:
        train = ["train.py", *words(self.run | self.training), "--resume"]
        return [train, *(["eval.py", *words(self.run | sweep)] for sweep in self.sweeps)]

    @property
    def folder(self) -> Path:
        """Where train.py puts it."""
        defaults: dict[str, Any] = {"trades_bn": "frozen", "data_name": None}
        defaults["epsilon"] = PUBLISHED_ATTACKS[self.experiment.norm][0]
        given = {name: value for name, value in self.run.items() if value is not None}
        return build.run_folder(Settings(**defaults | given)).path

    @property
    def name(self) -> str:
        mode = MODES[self.experiment.mode].label
        data = self.run["dataset"]
        return f"{mode}, {self.experiment.model}, {self.experiment.norm}, {data}, seed {self.seed}"


def words(flags_by_name: dict[str, Any]) -> list[str]:
    """Flags as words of a command; True is a switch, None and False are left out."""
    found = []
    for name, value in flags_by_name.items():
        if value is None or value is False:
            continue
        found += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return found


def plan(args: argparse.Namespace, only: Collection[int] | None) -> list[Planned]:
    """The runs that the claims need, None: all; first seeds first, since they answer most."""
    experiments = SMALL if args.scale == "small" else FULL
    chosen = [e for e in experiments if not only or set(only) & claims_of(e)]
    planned = []
    for place, seed in enumerate(args.seeds):
        for experiment in chosen:
            if place < experiment.seeds:
                # On two cores what takes long is measured of one seed.
                deep = experiment.deep and (place == 0 or args.scale == "full")
                deep = deep and (not only or bool(LAYER_CLAIMS & set(only)))
                planned.append(plan_run(args, replace(experiment, deep=deep), seed))
    return planned


def claims_of(experiment: Experiment) -> set[int]:
    """The claims that an experiment is evidence for."""
    return set(CLAIMS_OF[experiment.mode]) - (set() if experiment.deep else DEEP_CLAIMS)


def plan_run(args: argparse.Namespace, experiment: Experiment, seed: int) -> Planned:
    dataset = dataset_of(args, experiment)
    train_mode = experiment.mode.removesuffix("_batch")
    train_images, test_images = SMALL_IMAGES if args.scale == "small" else (None, None)
    run = {
        "dataset": dataset,
        "data_dir": {"mnist": args.mnist_dir, "digits": None}.get(dataset, args.data_dir),
        "model": experiment.model,
        "norm": experiment.norm,
        **attack_of(dataset, experiment.norm),
        "train_mode": train_mode,
        "trades_bn": "batch" if experiment.mode != train_mode else None,
        "seed": seed,
        "limit_train": args.limit_train or train_images,
        "limit_test": args.limit_test or test_images,
        "precision": args.precision,
        "models_dir": args.models_dir,
    }
    training = training_of(args, experiment, dataset)
    last = training["epochs"] - 1
    kept = range(0, last, 10) if args.scale == "full" else SWEPT
    swept = ",".join(str(epoch) for epoch in (*(e for e in kept if e < last), last))
    if args.scale == "full":
        training["checkpoint_epochs"] = swept
    return Planned(experiment, seed, run, training, sweeps_of(experiment, swept, last, run))


def dataset_of(args: argparse.Namespace, experiment: Experiment) -> str:
    if experiment.dataset:
        return experiment.dataset
    if args.scale == "full":
        return "cifar"
    return "folder" if args.data_dir else "digits"


def attack_of(dataset: str, norm: str) -> dict[str, float]:
    """Radius, step and noise where they are not the defaults; the noise is as large as l_inf's."""
    if dataset == "mnist":
        return {"epsilon": 0.2, "pgd_alpha": 0.05, "noise_level": 0.2 * 255}
    if dataset == "digits":
        radius, step = (DIGITS_RADIUS * published for published in PUBLISHED_ATTACKS[norm])
        noise = DIGITS_RADIUS * PUBLISHED_ATTACKS["l_inf"][0]
        return {"epsilon": radius, "pgd_alpha": step, "noise_level": noise}
    return {}


def training_of(args: argparse.Namespace, experiment: Experiment, dataset: str) -> dict[str, Any]:
    adversary = MODES[experiment.mode].adversary
    if args.scale == "full":
        training: dict[str, Any] = {"epochs": 400}
    elif adversary:
        training = SMALL_ADVERSARY | {"checkpoint_epochs": "log"}
    else:
        small = DIGITS_ST if dataset == "digits" else SMALL_ST
        training = small | {"checkpoint_epochs": "log"}
    if args.epochs:
        training["epochs"] = args.epochs
    return training | {"neural_collapse": adversary}


def sweeps_of(
    experiment: Experiment, swept: str, last: int, run: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    """All kinds of input over the epochs; then test images and more after the last one."""
    standard = not MODES[experiment.mode].adversary
    epochs = {
        "neural_collapse": True,
        "neural_collapse_gaussian": True,
        "neural_collapse_targeted": standard,
        "checkpoints": swept,
    }
    end: dict[str, Any] = {"neural_collapse": True, "split": "both", "checkpoints": last}
    if not experiment.deep:
        return epochs, end
    radius = run.get("epsilon", PUBLISHED_ATTACKS[experiment.norm][0])
    radii = ",".join(f"{radius * factor:g}" for factor in (0.25, 0.5, 2))
    return (
        epochs,
        end | {"layerwise": True, "ncc": True},
        # Without --pgd-alpha, so that the step follows the radius.
        end | {"epsilons": radii, "pgd_alpha": None},
    )


# ---------------------------------------------------------------------------------------------
# How long it takes, and running it
# ---------------------------------------------------------------------------------------------

# Forward and backward of one image in training are 1; a backward pass to the image alone costs as
# much as a forward pass.
FORWARD = 1 / 3
ATTACKED = 10 * 2 * FORWARD + FORWARD


def work_of(planned: Planned, train_images: int, test_images: int) -> float:
    """Passes of one image, forward and backward, that training and the sweeps of a run make."""
    adversary = MODES[planned.experiment.mode].adversary
    epoch = train_images * (1 + adversary * (ATTACKED + 3 * FORWARD)) + test_images * FORWARD
    checkpoints = len(planned.sweeps[0]["checkpoints"].split(","))
    attacks = 1 if adversary else 2
    swept = train_images * (attacks * ATTACKED + 3 * FORWARD)
    work = planned.training["epochs"] * epoch + checkpoints * swept + test_images * ATTACKED
    if planned.experiment.deep:
        both = train_images + test_images
        work += both * (2 * ATTACKED + 12 * FORWARD) + 3 * both * ATTACKED
        work += 2 * test_images * CENTRE_ATTACKS * ATTACKED
    return work


# Of --ncc against its classifier, in attacks of ten steps: 1 where all images fall, 21 where none.
CENTRE_ATTACKS = 11


def seconds_of_a_pass(planned: Planned) -> float:
    """Measured on this machine: forward and backward of one image of the run's network."""
    device, precision = select_device("auto"), planned.run["precision"] or "tf32"
    set_precision(precision)
    model = build_model(planned.experiment.model, 32, 3, 10)
    statistics = ((0.5,) * 3, (0.25,) * 3)
    network = Network(model, *statistics, bf16=precision == "bf16").to_channels_last()
    network.to(device).train()
    size = 1024 if device.type == "cuda" else 64
    x, y = torch.rand(size, 3, 32, 32, device=device), torch.arange(size, device=device) % 10
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        F.cross_entropy(network(x), y).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / size


def images_of(planned: Planned) -> tuple[int, int]:
    """Training and test images of a run, as far as the flags and the data set tell."""
    whole = {"digits": (1437, 360)}
    known = whole.get(planned.run["dataset"], (50_000, 10_000))
    limits = (planned.run["limit_train"], planned.run["limit_test"])
    return (min(known[0], limits[0] or known[0]), min(known[1], limits[1] or known[1]))


def disk_of(planned: Planned) -> int:
    """Bytes of a run's checkpoints."""
    kept = select_epochs(planned.training["checkpoint_epochs"], planned.training["epochs"])
    return (len(kept) + 2) * model_bytes(planned.experiment.model)


@cache
def model_bytes(name: str) -> int:
    return weight_bytes(build_model(name, 32, 3, 10))


def cost_table(planned: list[Planned]) -> str:
    """Markdown: passes of an image forward and backward, and disk, of each experiment's runs."""
    alike: dict[tuple, list[Planned]] = {}
    for one in planned:
        it = one.experiment
        place = (MODES[it.mode].label, it.model, it.norm, one.run["dataset"])
        alike.setdefault(place, []).append(one)
    rows = []
    for place, runs in [*alike.items(), (("all", "", "", ""), planned)]:
        passes = sum(work_of(one, *images_of(one)) for one in runs) / 1e6
        disk = sum(map(disk_of, runs)) / 2**30
        rows.append((*place, str(len(runs)), f"{passes:.1f}", f"{disk:.1f}"))
    heads = ("mode", "model", "norm", "data", "runs", "passes (million)", "disk (GiB)")
    return markdown(heads, rows, ("model", "norm", "data"))


def tell_cost(planned: list[Planned]) -> list[float]:
    """One line on hours and disk; the expected seconds of each run."""
    of_model = {p.experiment.model: p for p in planned}
    rates = {model: seconds_of_a_pass(p) for model, p in of_model.items()}
    expected = [work_of(p, *images_of(p)) * rates[p.experiment.model] for p in planned]
    logger.info(
        f"{len(planned)} runs: about {sum(expected) / 3600:.1f} hours on this machine if none is "
        f"done yet, and {sum(map(disk_of, planned)) / 2**30:.1f} GiB of disk, of which "
        f"{free_disk(planned[0].run['models_dir']) / 2**30:.0f} are free"
    )
    return expected


TRAINING_SHARE = 0.8  # of the time of a run, about


def progress(planned: Planned) -> float:
    """Share of a run's epochs that are trained."""
    history = read_rows(planned.folder / "history.csv", EpochSummary)
    return min(1.0, len(history) / planned.training["epochs"])


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


def run_all(planned: list[Planned], expected: list[float]) -> list[Planned]:
    """Train and sweep one after the other; those that failed."""
    child, failed = Child(), []
    former = signal.signal(signal.SIGTERM, child.hand_on)
    # What is trained already is not trained again; of the sweeps the rest is measured.
    expected = [
        t * (1 - TRAINING_SHARE * progress(p)) for p, t in zip(planned, expected, strict=True)
    ]
    done = spent = 0.0
    try:
        for number, one in enumerate(planned, 1):
            # What was done so far tells how far the expectation is from the truth.
            left = sum(expected[number - 1 :]) * (spent / done if done else 1.0) / 3600
            logger.info(f"run {number} of {len(planned)}: {one.name}; about {left:.1f} hours left")
            begun, started = progress(one), time.perf_counter()
            for command in one.commands:
                code = child.run(command)
                if child.received:
                    raise Stopped(child.received, "; the same command goes on from there")
                if code:
                    failed.append(one)
                    logger.warning(f"{command[0]} ended with {code}: the run is left out")
                    break
            if begun < 1:
                done, spent = done + expected[number - 1], spent + time.perf_counter() - started
    finally:
        signal.signal(signal.SIGTERM, former)
    return failed


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------


COMPARED = {"limit_train", "limit_test"}  # also where all images were asked for


def is_as_planned(planned: Planned) -> bool:
    """Whether a run is there, trained to the end and as the flags say; one line if it is not so."""
    told = read_json(planned.folder / "args.json")
    if not told:
        return False
    asked = planned.run | planned.training
    given = {name for name, value in asked.items() if value is not None}
    differing = difference(asked, told, (given - FREE) | COMPARED)
    if differing:
        logger.info(f"left out: {planned.folder}: {differing}")
    elif progress(planned) < 1:
        logger.info(f"left out: {planned.folder}: not trained to the end yet")
    return not differing and progress(planned) == 1


# Files of the report beside claims.md, with their headings.
REPORT_TABLES = {
    "summary.md": ("After the last epoch", summary_in_words),
    "blocks.md": ("Blocks, after the last epoch", blocks_in_words),
    "centres.md": ("Nearest-centre classifiers, after the last epoch", centres_in_words),
    "radii.md": ("PGD of several radii, after the last epoch", radii_in_words),
}


def write_report(args: argparse.Namespace, runs: list[Run]) -> None:
    """claims, tables, figures and settings of the runs, into reproduction/SCALE/."""
    out = args.out / args.scale
    if not runs:
        raise InputError(f"{args.models_dir}: holds none of the runs; run without --report first")
    findings = judge(runs)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for run in runs:
        run.folder.copy_tables(out / "runs")
    write(out / "claims.csv", to_csv([finding_row(finding) for finding in findings]))
    write(out / "runs.csv", to_csv([run_row(run) for run in runs]))
    claims = findings_in_words(findings)
    where = "in the runs that were named" if args.runs else f"at the {args.scale} scale"
    write(out / "claims.md", f"# The claims, {where}\n\n{claims}")
    for name, (heading, in_words) in REPORT_TABLES.items():
        write(out / name, f"# {heading}\n\n{in_words(runs)}")
    logger.info(claims)
    drawn = [str(run.folder.path) for run in runs if run.records]
    code = Child().run(["plot.py", *drawn, "--out", str(out / "figures"), "--table"])
    if code:
        raise InputError("plot.py failed: the figures are missing")


def write(path: Path, text: str) -> None:
    with atomic_open(path) as file:
        file.write(text.encode())
    logger.info(f"wrote {path}")


def to_csv(rows: list[dict[str, Any]]) -> str:
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def run_row(run: Run) -> dict[str, Any]:
    """A line of runs.csv."""
    history = read_rows(run.folder.path / "history.csv", EpochSummary)
    # Rows of older versions do not tell it.
    images = {row.split: row.images for row in run.all_records if row.images}
    return {
        **asdict(run.setting),
        "mode": run.mode,
        "seed": run.seed,
        "epochs": f"{len(history)} of {run.told['epochs']}",
        "train_images": images.get("train", ""),
        "test_images": images.get("test", ""),
        "training_seconds": round(sum(row.seconds for row in history), 1),
        "precision": run.told["precision"],
        "commit": run.told.get("git_commit"),
        "changed": run.told.get("git_dirty"),
        "torch": run.told.get("torch"),
        "ran_on": run.told.get("ran_on"),
        "machine": platform.machine(),
    }


def named_runs(folders: list[Path]) -> list[Run]:
    """The runs of --runs: each folder must hold one, and no two the same."""
    seen: dict[tuple, Run] = {}
    for folder in folders:
        found = read_runs([folder])
        if not found:
            raise InputError(f"--runs {folder}: holds no run, which has an args.json")
        [run] = found
        twin = seen.setdefault((run.setting, run.mode, run.seed), run).folder.path
        if twin != folder:
            raise InputError(f"--runs {folder}: of the same setting and seed as {twin}: give one")
    return list(seen.values())


def main() -> None:
    args = parse_args()
    if args.runs:
        write_report(args, named_runs(args.runs))
        return
    planned = plan(args, args.only)
    if args.list:
        for one in planned:
            python = ["python"]
            print(" && ".join(shlex.join(python + command) for command in one.commands))
        return
    if args.cost:
        print(cost_table(planned), end="")
        return
    failed: list[Planned] = []
    if not args.report:
        expected = tell_cost(planned)
        failed = run_all(planned, expected)
    # On all claims, whichever were asked for: what other calls have run stays in the report.
    left_out = {one.folder for one in failed}
    there = [one for one in plan(args, None) if one.folder not in left_out and is_as_planned(one)]
    write_report(args, read_runs([one.folder for one in there]))
    if failed:
        names = "; ".join(one.name for one in failed)
        raise InputError(f"{len(failed)} of {len(planned)} runs failed: {names}")


if __name__ == "__main__":
    run_script(main)
