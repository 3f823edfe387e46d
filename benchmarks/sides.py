"""What is timed: the tasks of the plain baseline and of ours, each in a process of its own."""

import gc
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import baseline
from switches import set_switches

from attacks import pgd
from nc_metrics import neural_collapse
from robust_nc.build import prepare, run_folder
from robust_nc.checks import check_run, check_training
from robust_nc.data.datasets import DATASETS, Dataset, batches
from robust_nc.data.readers import Split
from robust_nc.flags import train_parser
from robust_nc.measuring.collapse import input_rows
from robust_nc.measuring.subject import Subject, input_parts
from robust_nc.networks.architectures import build_model
from robust_nc.settings import Settings
from robust_nc.training.cuda_graphs import ReplayedStep
from robust_nc.training.epoch import Training, run_epoch
from utils import keep_freed_memory, set_precision

IMAGES, TEST_IMAGES, EPOCHS = 50_000, 10_000, 400
IMAGE_SIZE = 32
TRAIN_MODES = {"st": "std_train", "at": "pgd_train", "trades": "pgd_train_TRADES"}
SWEPT = ("clean", "pgd", "gaussian", "sign", "targeted")
TASKS = {
    "st": "ST epoch",
    "at": "AT epoch",
    "trades": "TRADES epoch",
    "pgd": "PGD-10, eval mode",
    "nc10": "NC metrics, 10 classes",
    "nc100": "NC metrics, 100 classes",
    "sweep": "checkpoint of the ST sweep",
}
# Passes per image in units of a forward pass; all gradients are two more, the input's alone is one
# more. An epoch includes testing a fifth as many images. First ours, then the baseline's: README.md
# beside this file counts them.
PASSES = {
    "st": (3.2, 3.2),
    "at": (24.2, 35.2),
    "trades": (26.2, 38.2),
    "pgd": (20, 31),
    "sweep": (45, 77),
}
ATTACK = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10}  # the flags' defaults


def is_timed(task: str, side: str) -> bool:
    """Whether a side differs in a task from others that are timed."""
    if side == "baseline":
        return True
    if task not in PASSES:
        return side == "fp32"  # the metrics are in float64 in every precision
    return task in TRAIN_MODES or "+graph" not in side  # the training step alone is replayed


# ---------------------------------------------------------------------------------------------
# In the workers
# ---------------------------------------------------------------------------------------------


def set_up(side: str, device: torch.device) -> None:
    if side == "ours":
        keep_freed_memory()
    torch.zeros(1, device=device)


def forget() -> None:
    """Free what earlier tasks have compiled and captured: graphs hold memory of their own."""
    our_state.cache_clear()
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def time_task(
    side: str, task: str, model: str, images: int, device: torch.device, warm_up: bool
) -> float:
    """Seconds of one task. A warm-up is the same task, until all of it is captured."""
    if side == "baseline":
        run = prepare_baseline(task, model, images, device)
    else:
        set_precision(side.split("+")[0])
        run = prepare_ours(side, task, model, images, device)
    torch.manual_seed(0)
    # The last batch of an epoch, a short one, comes once an epoch.
    epochs = ReplayedStep.WARM_UP + 1 if "+graph" in side else 1
    for _ in range(epochs if warm_up else 1):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def make_data(images: int) -> Dataset:
    """Random images in CIFAR-10's format, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (images, max(1, images * TEST_IMAGES // IMAGES)):
        pixels = torch.randint(
            0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator, dtype=torch.uint8
        )
        splits.append(Split(pixels, torch.randint(0, 10, (count,), generator=generator)))
    return Dataset(*splits, 10, *DATASETS["cifar"].statistics)


@cache
def make_features(classes: int, device: torch.device) -> tuple[Tensor, ...]:
    """50,000 x 512 features around their class means, labels, logits and a classifier."""
    torch.manual_seed(0)
    labels = torch.randint(0, classes, (IMAGES,))
    features = torch.randn(IMAGES, 512) + 2 * torch.randn(classes, 512)[labels]
    logits = F.one_hot(labels, classes).float()
    weight = torch.randn(classes, 512)
    return tuple(tensor.to(device) for tensor in (features, labels, logits, weight))


@cache
def baseline_state(model: str, images: int, device: torch.device) -> tuple:
    data = make_data(images)
    torch.manual_seed(0)
    network = baseline.PlainNetwork(
        build_model(model, IMAGE_SIZE, in_channels=3, num_classes=10), data.mean, data.std
    )
    network.to(device)
    return (
        network,
        baseline.make_loader(data.train.images, data.train.labels, shuffle=True),
        baseline.make_loader(data.test.images, data.test.labels, shuffle=False),
        torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4),
    )


def prepare_baseline(task: str, model: str, images: int, device: torch.device) -> Callable:
    if task not in PASSES:
        return lambda: baseline_collapse(int(task.removeprefix("nc")), device)
    network, loader, test_loader, optimizer = baseline_state(model, images, device)
    weight = next(m for m in network.modules() if isinstance(m, torch.nn.Linear)).weight

    def epoch() -> None:
        baseline.train_epoch(network, optimizer, loader, TRAIN_MODES[task], ATTACK, device)
        baseline.test_epoch(network, test_loader, device)

    def attack_all() -> None:
        network.eval()
        for x, y in loader:
            baseline.attack_pgd(network, x.to(device), y.to(device), **ATTACK)

    def checkpoint() -> None:
        for kind in SWEPT:
            perturbed = baseline.perturb_all(network, loader, kind, ATTACK, device)
            baseline.collapse_in_two_passes(network, perturbed, weight)

    return {"pgd": attack_all, "sweep": checkpoint}.get(task, epoch)


def baseline_collapse(classes: int, device: torch.device) -> None:
    features, labels, logits, weight = make_features(classes, device)
    size = baseline.BATCH_SIZE
    means = baseline.class_means(features.split(size), labels.split(size), classes)
    baseline.collapse_by_sample(features, labels, logits, weight, means)


def our_settings(variant: str, mode: str, model: str, device: torch.device) -> Settings:
    """The flags of a run on the random images: train.py's defaults but for these."""
    set_switches()
    precision, *switches = variant.split("+")
    words = ["--model", model, "--train-mode", mode, "--precision", precision]
    words += ["--device", device.type, "--lr-max", "0.001"]
    words += ["--compile"] if "compile" in switches else []
    words += [] if "graph" in switches else ["--no-cuda-graph"]
    parser = train_parser()
    args = parser.parse_args(words)
    check_run(parser, args)
    check_training(parser, args)
    return Settings(**vars(args))


@cache
def our_state(variant: str, mode: str, model: str, images: int, device: torch.device) -> Training:
    """A run on the random images; kept between repeats."""
    settings = our_settings(variant, mode, model, device)
    return prepare(settings, run_folder(settings), make_data(images).to(device))


def prepare_ours(
    variant: str, task: str, model: str, images: int, device: torch.device
) -> Callable:
    if task not in PASSES:
        features = make_features(int(task.removeprefix("nc")), device)
        return lambda: neural_collapse(*features)
    mode = TRAIN_MODES.get(task, "std_train")
    training = our_state(variant, mode, model, images, device)
    learner, data, evaluator = training.learner, training.data, training.evaluator

    def epoch() -> None:
        run_epoch(training, epoch=0)

    def attack_all() -> None:
        learner.folded.refold()
        for x, y in batches(data.train.images, data.train.labels, evaluator.batch_size):
            pgd(learner.folded, x, y, **learner.strength.attack)

    def checkpoint() -> None:
        sweep_checkpoint(training, SWEPT)

    return {"pgd": attack_all, "sweep": checkpoint}.get(task, epoch)


def sweep_checkpoint(training: Training, kinds: tuple[str, ...]) -> None:
    """What a sweep measures of one checkpoint: the training images in these kinds of input."""
    learner, evaluator = training.learner, training.evaluator
    learner.folded.refold()
    subject = Subject(
        evaluator=evaluator,
        layers=evaluator,
        data=training.data,
        strengths=(learner.strength,),
        seed=training.settings.seed,
    )
    parts = input_parts(["train"], kinds, [learner.strength.radius])
    list(input_rows(subject, epoch=0, parts=parts))


def matrix_rate(precision: str, device: torch.device) -> float:
    """The best rate in FLOP/s of a matrix product, as torch.mm or as a 1x1 convolution.

    Which of the two is faster depends on its library; the networks are convolutions.
    """
    set_precision(precision)
    size, batch = (8192, 4096) if device.type == "cuda" else (2048, 128)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    image, weight = (
        torch.randn(shape, device=device).to(kind, memory_format=torch.channels_last)
        for shape in ((batch, 512, 8, 8), (512, 512, 1, 1))
    )
    best = 0.0
    with torch.no_grad():
        for product, operations in (
            (lambda: a @ b, 2 * size**3),
            (lambda: F.conv2d(image, weight), 2 * batch * 8 * 8 * 512**2),
        ):
            for _ in range(6):
                wait(device)
                started = time.perf_counter()
                product()
                wait(device)
                best = max(best, operations / (time.perf_counter() - started))
    return best
