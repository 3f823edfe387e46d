"""Stages of gpu.py in milliseconds per step: variants, PGD, processes at once, switches, profile.

A step is one of 128 images with all that it does on the GPU, timed after it was compiled and
captured; nothing is written. Random images, of which there is one batch.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sides
from gpu_stages import Bench, Figure, make_training
from switches import SWITCHES

from attacks import pgd
from robust_nc.data.datasets import as_float
from robust_nc.training.cuda_graphs import ReplayedStep
from robust_nc.training.epoch import Training

# What is timed: tasks of benchmark.py with a network.
STEPS = (("st", "vgg11bn"), ("at", "vgg11bn"), ("trades", "vgg11bn"), ("at", "PreActResNet18"))
VARIANTS = ("tf32", "tf32+graph", "tf32+compile+graph", "bf16+compile+graph")
ATTACK_MODELS = ("vgg11bn", "PreActResNet18")
ATTACK_VARIANTS = ("tf32", "tf32+compile", "bf16", "bf16+compile")
ATTACKED_IMAGES = 1024  # a batch in eval mode
PROFILES = (
    ("at", "vgg11bn", "tf32+graph"),
    ("at", "vgg11bn", "bf16+compile+graph"),
    ("at", "PreActResNet18", "bf16+compile+graph"),
)
PAIRS = (("tf32+graph", 2), ("tf32+graph", 3), ("bf16+compile+graph", 2))  # processes at once
PAIRED_SECONDS = 2.0
ROUNDS = 3


def time_steps(bench: Bench) -> None:
    """Every task in every variant."""
    for task, model in STEPS:
        for variant in dict.fromkeys(map(bench.variant, VARIANTS)):
            milliseconds = time_step(bench, task, model, variant)
            bench.report(Figure(step_name(task, model, variant), milliseconds, "ms"))


def step_name(task: str, model: str, variant: str) -> str:
    return f"{task.upper()} step, {model}, {variant}"


def time_step(bench: Bench, task: str, model: str, variant: str) -> float:
    """Milliseconds of a step, the median of some rounds."""
    training = make_few(bench, task, model, variant)
    milliseconds = time_rounds(bench, stepping(bench, training))
    del training
    sides.forget()
    return milliseconds


def make_few(bench: Bench, task: str, model: str, variant: str) -> Training:
    """A run on no more images than a batch in eval mode."""
    scale = min(bench.scale, ATTACKED_IMAGES / sides.IMAGES)
    return make_training(replace(bench, scale=scale), task, model, variant)


def stepping(bench: Bench, training: Training) -> Callable[[], Any]:
    """A step of a full batch, which is compiled and captured by now."""
    size, split = training.settings.batch_size, training.data.train
    x, y = as_float(split.images[:size]), split.labels[:size]
    training.learner.network.train(training.mode.bn == "batch")
    step = partial(training.step, training.learner, x, y)
    for _ in range(ReplayedStep.WARM_UP + 2 if bench.device.type == "cuda" else 1):
        step()
    return step


def time_rounds(bench: Bench, work: Callable[[], Any], count: int = 20) -> float:
    """Milliseconds of work, the median of rounds of so many."""
    rounds, count = (ROUNDS, count) if bench.device.type == "cuda" else (1, 1)
    seconds = []
    for _ in range(rounds):
        sides.wait(bench.device)
        started = time.perf_counter()
        for _ in range(count):
            work()
        sides.wait(bench.device)
        seconds.append((time.perf_counter() - started) / count)
    return 1000 * statistics.median(seconds)


def time_attacks(bench: Bench) -> None:
    """PGD-10 of a batch in eval mode, as a sweep makes it."""
    for model in ATTACK_MODELS:
        for variant in dict.fromkeys(map(bench.variant, ATTACK_VARIANTS)):
            attack = attacking(make_few(bench, "st", model, variant))
            count = min(ATTACKED_IMAGES, bench.images)
            name = f"PGD-10 of {count} images, {model}, {variant}"
            bench.report(Figure(name, time_rounds(bench, attack, count=3), "ms"))
            del attack
            sides.forget()


def attacking(training: Training) -> Callable[[], Any]:
    """PGD of a batch in eval mode, which is compiled by now."""
    learner, split = training.learner, training.data.train
    x, y = as_float(split.images[:ATTACKED_IMAGES]), split.labels[:ATTACKED_IMAGES]
    attack = partial(pgd, learner.folded.refold(), x, y, **learner.strength.attack)
    attack()
    return attack


def time_pairs(bench: Bench) -> None:
    """AT steps of several processes at once: what one takes, and how many more all of them make."""
    for variant, count in PAIRS:
        times = side_by_side(bench, variant, count)
        alone, together = (statistics.mean(column) for column in zip(*times, strict=True))
        name = f"{step_name('at', 'vgg11bn', variant)}, {count} processes"
        bench.report(Figure(f"{name}: one after the other", alone, "ms"))
        bench.report(Figure(f"{name}: at once", together, "ms"))
        bench.report(Figure(f"{name}: steps in all, at once", count * alone / together, "times"))


def side_by_side(bench: Bench, variant: str, count: int) -> list[tuple[float, float]]:
    """Milliseconds of a step in each of so many processes: while others wait, and beside them."""
    context = multiprocessing.get_context("spawn")
    shared = context.Barrier(count), context.Lock()
    with ProcessPoolExecutor(count, context, initializer=_share, initargs=shared) as pool:
        jobs = [pool.submit(_step_beside_others, bench, variant) for _ in range(count)]
        return [job.result() for job in jobs]


def _share(barrier: Any, lock: Any) -> None:
    """In each process: what all of them meet at, and what one holds while it is alone."""
    global _barrier, _lock
    _barrier, _lock = barrier, lock


def _step_beside_others(bench: Bench, variant: str) -> tuple[float, float]:
    step = stepping(bench, make_few(bench, "at", "vgg11bn", variant))
    _barrier.wait(timeout=80)
    with _lock:
        alone = _time_for_a_while(bench, step)
    _barrier.wait(timeout=80)
    return alone, _time_for_a_while(bench, step)


def _time_for_a_while(bench: Bench, step: Callable[[], Any]) -> float:
    """Milliseconds of a step, in some seconds of them."""
    seconds = PAIRED_SECONDS if bench.device.type == "cuda" else 0.0
    started, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - started < seconds:
        step()
        sides.wait(bench.device)  # not to run ahead
        steps += 1
    return 1000 * (time.perf_counter() - started) / steps


def time_switches(bench: Bench) -> None:
    """An AT step of each variant as it is, and with each switch turned."""
    for variant in dict.fromkeys(switch.variant for switch in SWITCHES.values()):
        turned = [(name, s.turned()) for name, s in SWITCHES.items() if s.variant == variant]
        for name, switch in [("as it is", nullcontext()), *turned]:
            with switch:
                milliseconds = time_step(bench, "at", "vgg11bn", bench.variant(variant))
            place = step_name("at", "vgg11bn", variant)
            bench.report(Figure(f"{place}, {name}", milliseconds, "ms"))


def profile(bench: Bench) -> None:
    """Share of a step's time in which the GPU computes, and its largest kernels."""
    for task, model, variant in PROFILES:
        training = make_few(bench, task, model, variant)
        count = 10 if bench.device.type == "cuda" else 1
        profile_steps(bench, training, f"{task}, {model}, {variant}", count)
        del training
        sides.forget()


def profile_steps(bench: Bench, training: Training, name: str, count: int) -> None:
    step, cuda = stepping(bench, training), bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities = [torch.profiler.ProfilerActivity.CUDA]
    sides.wait(bench.device)
    started = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(count):
            step()
        sides.wait(bench.device)
    wall = time.perf_counter() - started
    kernels = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        for event in profiler.key_averages()
    }
    bench.report(Figure(f"{name}: a step, profiled", 1000 * wall / count, "ms"))
    bench.report(Figure(f"{name}: share computing", sum(kernels.values()) / wall, ""))
    for kernel in sorted(kernels, key=lambda key: -kernels[key])[:6]:
        what = f"{name}: {kernel[:80]}"
        bench.report(Figure(what, 1000 * kernels[kernel] / count, "ms a step"))
