"""A run under way: what it is made of, and one epoch of it."""

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim

from robust_nc.data.datasets import Dataset, as_float
from robust_nc.data.inputs import INPUTS
from robust_nc.measuring.collapse import leaps_of, make_record, training_vertices
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.results.history import STEP_MEANS, EpochSummary
from robust_nc.results.records import Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import Settings
from robust_nc.training.modes import Learner, Step, TrainingMode
from robust_nc.training.schedules import learning_rate
from utils import (
    InputError,
    Progress,
    StopSignals,
    memory_advice,
    peak_memory,
    random_state,
    seed_everything,
    set_random_state,
)


@dataclass(frozen=True)
class Training:
    """One run: its settings and folder, the data, and what learns and is measured on it."""

    settings: Settings
    mode: TrainingMode
    run: RunFolder
    data: Dataset
    learner: Learner
    step: Callable[[Learner, Tensor, Tensor], Step]
    evaluator: Evaluator


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the learning rate; where it is a tensor, of a captured step, in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def run_epoch(
    training: Training,
    epoch: int,
    unfinished: dict[str, Any] | None = None,
    signals: StopSignals | None = None,
) -> tuple[EpochSummary, list[Record]]:
    """Train for one epoch, then measure the test data and what the flags ask for.

    Args:
        unfinished: what an Interrupted epoch had seen, to go on after it.
        signals: asked after every step whether to stop.
    """
    started, batch_size = time.perf_counter(), training.settings.batch_size
    means, perturbed = train_epoch(training, epoch, unfinished, signals)
    training.learner.folded.refold()
    test, steps = training.data.test, math.ceil(len(training.data.train) / batch_size)
    kinds = training.settings.neural_collapse * (1 + (perturbed is not None))
    kinds += training.settings.neural_collapse_gaussian
    images = len(test) + kinds * len(training.data.train)
    with Progress(images, f"epoch {epoch}, measured", "images") as bar:
        training.evaluator.passed = bar.update
        tested = training.evaluator.measure(test.images, test.labels)
        collapse, vertices = measure_collapse(training, epoch, perturbed)
    leaps = None if vertices is None else leaps_of(tested, test.labels, vertices)
    key: dict[str, Any] = {"source": "train", "epoch": epoch, "split": "test", "input": "clean"}
    records = [make_record(tested, leaps=leaps, **key), *collapse]
    summary = EpochSummary(
        epoch=epoch,
        lr=rate_of_step(training.settings, epoch, steps - 1, steps),
        **dict.fromkeys(STEP_MEANS, math.nan) | means,
        test_loss=tested.loss,
        test_acc=tested.accuracy,
        seconds=round(time.perf_counter() - started, 3),
        peak_memory=round(peak_memory(training.settings.device), 3),
    )
    return summary, records


class Interrupted(Exception):
    """A signal came in the middle of an epoch; `seen` is what the epoch has seen so far."""

    def __init__(self, seen: dict[str, Any]):
        self.seen = seen


def train_epoch(
    training: Training, epoch: int, unfinished: dict[str, Any] | None, signals: StopSignals | None
) -> tuple[dict[str, float], Tensor | None]:
    """Visit all images once in random order.

    Returns:
        Column of history.csv -> its mean over the epoch, and where an adversary's neural collapse
        is asked for the perturbed images (N, C, H, W) in the order of the data.

    Raises:
        InputError: a loss that is not finite, not enough memory, or a step that reports other means
            than history.csv has columns for.
        Interrupted: a signal asked to stop.
    """
    settings, learner, data = training.settings, training.learner, training.data.train
    seed_everything(settings.seed, epoch)
    learner.network.train(training.mode.bn == "batch")
    device = data.labels.device
    order = torch.randperm(len(data)).to(device)
    parts = order.split(settings.batch_size)
    keep = settings.neural_collapse and training.mode.adversary
    # `means` holds column -> its mean in each step. They stay on the device: nothing waits for it
    # until the epoch ends.
    seen: dict[str, Any] = {"steps": 0, "means": {}}
    seen["perturbed"] = torch.empty(data.images.shape, device=device) if keep else None
    if unfinished:
        seen = resume_epoch(unfinished, device)
    first = seen["steps"]
    advice = "--batch-size can be lowered, and --precision bf16 takes half"
    name = f"epoch {epoch} ({epoch + 1} of {settings.epochs})"
    before = min(first * settings.batch_size, len(data))
    with Progress(len(data), name, "images", initial=before) as bar, memory_advice(advice):
        for i in range(first, len(parts)):
            set_rate(learner.optimizer, rate_of_step(settings, epoch, i, len(parts)))
            x, y = as_float(data.images[parts[i]]), data.labels[parts[i]]
            with learner.network.compiled_for(full=len(y) == settings.batch_size):
                result = training.step(learner, x, y)
            if i == first:
                check_columns(settings, result.means.keys())
            for name, value in result.means.items():
                if name not in seen["means"]:
                    zeros = torch.zeros(len(parts), dtype=torch.float64, device=device)
                    seen["means"][name] = zeros
                seen["means"][name][i] = value
            if keep:
                seen["perturbed"][parts[i]] = result.perturbed
            seen["steps"] = i + 1
            bar.update(len(y))
            if signals is not None and signals.received and i + 1 < len(parts):
                raise Interrupted(seen | {"random": random_state(device)})
    means = {name: values.cpu() for name, values in seen["means"].items()}
    check_losses(settings, epoch, means)
    return average(means, [len(part) for part in parts]), seen["perturbed"]


def average(means: dict[str, Tensor], sizes: list[int]) -> dict[str, float]:
    """Means over an epoch of what each step reported, (steps,) each, of batches of these sizes."""
    images = torch.tensor(sizes, dtype=torch.float64)
    weights = {"images": images, "steps": torch.ones_like(images)}
    averages = {}
    for name, values in means.items():
        weight = weights[STEP_MEANS[name]]
        averages[name] = (values @ weight / weight.sum()).item()
    return averages


def check_columns(settings: Settings, reported: Set[str]) -> None:
    """Raise InputError for a mean of a step that history.csv has no column for.

    A column that a mode does not report is NaN.
    """
    unknown = sorted(reported - STEP_MEANS.keys())
    if unknown:
        raise InputError(
            f"the step of --train-mode {settings.train_mode} (robust_nc/training/modes.py) reports "
            f"{unknown[0]!r}, for which history.csv has no column: add a field of that name to "
            'EpochSummary (robust_nc/results/history.py), with metadata={"over": "images"} or '
            '"steps"'
        )


def resume_epoch(unfinished: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What an interrupted epoch had seen, on the device; its random state becomes the present one.

    Of its `seen`: steps, means and perturbed images.
    """
    set_random_state(unfinished["random"], device)
    means = {name: values.to(device) for name, values in unfinished["means"].items()}
    perturbed = unfinished["perturbed"]
    if perturbed is not None:
        perturbed = perturbed.to(device)
    return {"steps": unfinished["steps"], "means": means, "perturbed": perturbed}


def rate_of_step(settings: Settings, epoch: int, i: int, steps: int) -> float:
    """The learning rate of step i of an epoch of so many steps."""
    return rate_at(settings, epoch + (i + 1) / steps)


def rate_at(settings: Settings, t: float) -> float:
    """The learning rate at the fractional epoch t."""
    return learning_rate(
        settings.lr_schedule,
        t,
        epochs=settings.epochs,
        lr_max=settings.lr_max,
        drop_epoch=settings.lr_drop_epoch,
        drop_lr=settings.lr_one_drop,
        milestones=settings.lr_milestones,
        gamma=settings.lr_gamma,
    )


def check_losses(settings: Settings, epoch: int, means: dict[str, Tensor]) -> None:
    """Raise InputError naming the first step whose losses, (steps,) each, are not finite."""
    losses = torch.stack([values for name, values in means.items() if name.endswith("loss")])
    finite = losses.isfinite().all(0)
    if not finite.all():
        i, steps = int((~finite).nonzero()[0]), len(finite)
        rate = rate_of_step(settings, epoch, i, steps)
        raise InputError(
            f"step {i} of {steps}, learning rate {rate:g}: the training loss is no longer finite"
        )


def measure_collapse(
    training: Training, epoch: int, perturbed: Tensor | None
) -> tuple[list[Record], Tensor | None]:
    """The records that the --neural-collapse flags ask for, in eval mode after the epoch.

    Returns:
        Also the clean training class means (C, D), where the flags have them measured.
    """
    settings, evaluator, data = training.settings, training.evaluator, training.data.train
    key: dict[str, Any] = {"source": "train", "epoch": epoch, "split": "train"}
    records, vertices = [], None
    if settings.neural_collapse:
        clean = evaluator.measure(data.images, data.labels)
        vertices = training_vertices(clean, data.labels)
        leaps = leaps_of(clean, data.labels, vertices)
        records.append(make_record(clean, leaps=leaps, **key, input="clean"))
        means = clean.collapse.class_means
        del clean  # and its features
        if perturbed is not None:
            robust = evaluator.measure(perturbed, data.labels)
            leaps = leaps_of(robust, data.labels, vertices)
            key_of_seen = key | {"input": "seen", "epsilon": training.learner.strength.radius}
            records.append(make_record(robust, means, leaps, **key_of_seen))
    if settings.neural_collapse_gaussian:
        perturb = INPUTS["gaussian_l2"].bound(evaluator.network, training.learner.strength)
        noisy = evaluator.measure(data.images, data.labels, perturb)
        known = None if vertices is None else leaps_of(noisy, data.labels, vertices)
        records.append(make_record(noisy, leaps=known, **key, input="gaussian_l2"))
    return records, vertices
