"""What stages report, and those of `make gpu`: tests, ratios, epochs, the column, memory."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sides

from robust_nc.build import prepare, run_folder
from robust_nc.data.datasets import Dataset
from robust_nc.results.files import Writer, read_json, write_json
from robust_nc.results.run_folder import RunFolder
from robust_nc.training.cuda_graphs import ReplayedStep
from robust_nc.training.epoch import Training, run_epoch
from robust_nc.training.modes import MODES, mode_name
from robust_nc.training.resume import Saver
from utils import computes_bf16, peak_memory, set_precision

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """One number that a stage found.

    target: what it should be at most, or with `at_least` at least; None: there is none.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True)
class Bench:
    """What a stage runs on, a share of 50,000 images, and where its figures go."""

    device: torch.device
    path: Path
    stage: str
    scale: float = 1.0

    def variant(self, name: str) -> str:
        """The variant of that name; on a CPU, where stages are tried, what there is of it."""
        if self.device.type == "cuda":
            return name
        precision = name.split("+")[0]
        return precision if precision != "bf16" or computes_bf16(self.device) else "tf32"

    @property
    def images(self) -> int:
        return max(1, round(sides.IMAGES * self.scale))

    def report(self, figure: Figure) -> None:
        print(describe(figure), flush=True)
        content = read_json(self.path) or {}
        content["stages"][self.stage]["figures"].append(asdict(figure))
        write_json(self.path, content)


class StageError(Exception):
    """What went wrong in a stage, in one line."""


# ---------------------------------------------------------------------------------------------
# Stages, each in a process of its own
# ---------------------------------------------------------------------------------------------


def run_tests(bench: Bench) -> None:
    """tests/test_gpu.py. What is skipped is not settled, and counts as a failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-rfEs",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        # Side by side: between the kernels of small batches a GPU waits for Python.
        *("-n", str(min(6, os.cpu_count() or 1)), "--dist", "worksteal"),
    ]
    lines = []
    with subprocess.Popen(
        [*command, "tests/test_gpu.py"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    try:
        report_tests(bench, "".join(lines))
    except StageError:
        if bench.device.type == "cuda":  # elsewhere they are skipped
            raise


def report_tests(bench: Bench, output: str) -> None:
    """The figures of what pytest printed."""
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", output)
    }
    if not counts:
        raise StageError("pytest ran no test")
    bench.report(Figure("tests passed", counts.get("passed", 0), ""))
    for word in ("failed", "error", "skipped"):
        if counts.get(word):
            bench.report(Figure(f"tests {word}", counts[word], "", target=0))
    bad = re.findall(r"^(?:FAILED|ERROR|SKIPPED) (.*)$", output, re.MULTILINE)
    if bad or counts.keys() & {"failed", "error", "skipped"}:
        raise StageError("; ".join(line[:200] for line in bad[:20]) or "some did not pass")


@dataclass(frozen=True)
class Comparison:
    """How many times faster than the published way of working some variants should be.

    scale: share of the images; of what attacks so many that it ends in time.
    """

    target: float
    variants: tuple[str, ...]
    scale: float


COMPARISONS = {
    "st": Comparison(10.0, ("tf32+graph", "bf16+graph"), 0.2),
    "at": Comparison(3.0, ("tf32+graph", "bf16+graph"), 0.02),
    "sweep": Comparison(15.0, ("tf32", "bf16"), 0.02),
}


def compare(bench: Bench) -> None:
    """benchmark.py against the baseline, a task after the other."""
    for task, it in COMPARISONS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "seconds.json"
            flags = f"--tasks {task} --models vgg11bn PreActResNet18 --variants"
            flags += f" {' '.join(it.variants)} --scale {it.scale * bench.scale} --repeats 2"
            command = [sys.executable, str(ROOT / "benchmarks" / "benchmark.py"), *flags.split()]
            code = subprocess.run([*command, "--out", str(out)]).returncode
            if code:
                raise StageError(f"benchmark.py --tasks {task} ended with exit code {code}")
            report_ratios(bench, read_json(out) or {})


def report_ratios(bench: Bench, measured: dict[str, Any]) -> None:
    """The figures of what benchmark.py wrote with --out."""
    medians = {tuple(row[:3]): statistics.median(row[3:]) for row in measured["seconds"]}
    for (task, model, side), seconds in medians.items():
        if side != "baseline":
            ratio = medians[task, model, "baseline"] / seconds
            what = f"{sides.TASKS[task]}, {model}, {side}: as fast as the baseline"
            target = COMPARISONS[task].target
            bench.report(Figure(what, ratio, "times", target, at_least=True))
    for precision, rate in measured["rates"].items():
        what = f"matrix product in {precision}"
        told = (read_json(bench.path) or {})["stages"][bench.stage]["figures"]
        if what not in [figure["what"] for figure in told]:
            bench.report(Figure(what, rate / 1e12, "TFLOP/s"))


@dataclass(frozen=True)
class Job:
    """A task of benchmark.py with a model, in some variants, and the seconds that it may take."""

    task: str
    model: str
    variants: tuple[str, ...]
    target: float


JOBS = (
    Job("st", "vgg11bn", ("tf32", "tf32+graph", "bf16+graph"), 0.6),
    Job("at", "vgg11bn", ("tf32+graph", "bf16+graph"), 2.5),
    Job("at", "PreActResNet18", ("bf16+graph",), 7.0),
    Job("sweep", "vgg11bn", ("tf32", "bf16"), 3.0),
    Job("sweep", "PreActResNet18", ("tf32", "bf16"), 7.5),
)


def time_jobs(bench: Bench) -> None:
    """Epochs with all that they write, and checkpoints of a sweep, against their targets."""
    for job in JOBS:
        for variant in job.variants:
            training = make_training(bench, job.task, job.model, variant)
            seconds = time_job(training, job.task)
            del training
            name = f"{sides.TASKS[job.task]}, {job.model}, {variant}"
            bench.report(Figure(name, seconds, "s", job.target))
            sides.forget()


def make_training(bench: Bench, task: str, model: str, variant: str) -> Training:
    """A run by the published command: AT and TRADES with the neural collapse of each epoch."""
    mode = sides.TRAIN_MODES.get(task, "std_train")
    settings = sides.our_settings(bench.variant(variant), mode, model, bench.device)
    adversary = MODES[mode_name(mode, settings.bn)].adversary
    settings = settings.replace(neural_collapse=adversary)
    set_precision(settings.precision)
    data = sides.make_data(bench.images).to(bench.device)
    return prepare(settings, run_folder(settings), data)


def time_job(training: Training, task: str) -> float:
    """Seconds of a task, of ST epochs the mean of three."""
    few = replace(training, data=beginning(training))
    if task == "sweep":
        return time_sweep(training, few, sides.SWEPT)
    count = 3 if task == "st" else 1
    # The short batch, which comes once an epoch, is captured after as many epochs.
    warm_up = partial(run_epochs, few, ReplayedStep.WARM_UP + 1)
    return time_once(training, partial(run_epochs, training, count), warm_up) / count


def time_sweep(training: Training, few: Training, kinds: tuple[str, ...]) -> float:
    """Seconds of a sweep's checkpoint in these kinds of input."""
    warm_up = partial(sides.sweep_checkpoint, few, kinds)
    return time_once(training, partial(sides.sweep_checkpoint, training, kinds), warm_up)


def time_once(training: Training, work: Callable, warm_up: Callable) -> float:
    device = training.settings.device
    warm_up()
    sides.wait(device)
    started = time.perf_counter()
    work()
    sides.wait(device)
    return time.perf_counter() - started


def beginning(training: Training) -> Dataset:
    """The first images of both splits: enough for every size of batch that there is."""
    data, size = training.data, training.evaluator.batch_size
    splits = {}
    for name, split in (("train", data.train), ("test", data.test)):
        count = min(len(split), size + len(split) % size)
        splits[name] = split.select(torch.arange(count, device=split.labels.device))
    return replace(data, **splits)


def run_epochs(training: Training, count: int) -> None:
    """Epochs as train.py has them: what they leave is written while the next one runs."""
    with tempfile.TemporaryDirectory() as name, Writer() as writer:
        saver = Saver(replace(training, run=RunFolder(Path(name))), writer)
        saver.training.run.open()
        for epoch in range(count):
            saver.save_epoch(*run_epoch(training, epoch))


EPOCHS, SEEDS = 400, 3
COLUMN_VARIANTS = ("bf16+graph",)
COLUMN_HOURS = 24.0


def project_column(bench: Bench) -> None:
    """Hours of the l_inf column of CIFAR-10: two models, three modes, three seeds, their sweeps.

    From a fifth of the images. The sweep of an ST run has all kinds of input, those of the others
    the noises alone: clean and PGD were measured in training.
    """
    share = replace(bench, scale=bench.scale / 5)
    for variant in COLUMN_VARIANTS:
        seconds = 0.0
        for model in ("vgg11bn", "PreActResNet18"):
            for task in sides.TRAIN_MODES:
                training = make_training(share, task, model, variant)
                few = replace(training, data=beginning(training))
                kinds = sides.SWEPT if task == "st" else ("gaussian", "sign")
                seconds += time_job(training, task) + time_sweep(training, few, kinds)
                del training, few
                sides.forget()
        hours = seconds * bench.images / share.images * EPOCHS * SEEDS / 3600
        what = f"l_inf column of CIFAR-10, projected, {variant}"
        bench.report(Figure(what, hours, "h", COLUMN_HOURS))


def limit_memory(bench: Bench) -> None:
    """Peaks where the card has 8 GiB: an epoch and a checkpoint of the larger network.

    What this process asks for beyond them is refused, as on a small card. cuDNN's trials take
    workspaces of up to all free memory; there they have to do with less.
    """
    if bench.device.type == "cuda":
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 8 * GIB / total), bench.device)
    share = replace(bench, scale=bench.scale / 10)
    for variant in ("tf32", "tf32+graph"):
        training = make_training(share, "at", "PreActResNet18", variant)
        epochs = partial(run_epochs, training, count=ReplayedStep.WARM_UP + 2)
        checkpoint = partial(sides.sweep_checkpoint, training, sides.SWEPT)
        for name, work in (("AT epochs", epochs), ("checkpoint", checkpoint)):
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(bench.device)
            work()
            what = f"peak memory within 8 GiB, {name}, PreActResNet18, {variant}"
            bench.report(Figure(what, peak_memory(bench.device), "GiB", 8.0))
        del training, epochs, checkpoint
        sides.forget()


def note(path: Path, stage: str, **entries: Any) -> None:
    """Put entries into a stage's part of the file; all others stay as they are."""
    content = read_json(path) or {}
    content.setdefault("stages", {}).setdefault(stage, {}).update(entries)
    write_json(path, content)


def row_of(figure: Figure) -> str:
    target, met = "", ""
    if figure.target is not None:
        bound = "at least" if figure.at_least else "at most"
        target, met = f"{bound} {figure.target:g} {figure.unit}", "yes" if figure.met else "**no**"
    cells = (figure.what.replace("|", "\\|"), number(figure), target.strip(), met)
    return "| " + " | ".join(cells) + " |"


def number(figure: Figure) -> str:
    digits = f"{figure.value:.0f}" if figure.value == int(figure.value) else f"{figure.value:.3g}"
    return f"{digits} {figure.unit}".strip()


def describe(figure: Figure) -> str:
    """A figure as a line."""
    target = "" if figure.target is None else f" (target {figure.target:g})"
    return f"{figure.what}: {number(figure)}{target}"
