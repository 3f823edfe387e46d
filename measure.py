"""A network on images: perturbations, outputs, and one function per type of row.

Every function `*_rows(subject, epoch, parts)` measures the parts of a checkpoint that are asked
for, and their numbers do not depend on which others are: each has a random stream of its own.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from itertools import product
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks import CHUNK
from data import Dataset, Split, as_float, balanced_subset, batches
from inputs import INPUTS, Strength, place_of
from nc_metrics import (
    LayerCollapse,
    NeuralCollapse,
    StreamingCollapse,
    neural_collapse,
    simplex_distance,
)
from networks import Network, block_outputs
from records import SPLITS, AutoAttackRecord, Record
from utils import (
    InputError,
    logger,
    memory_advice,
    out_of_memory,
    random_state,
    seed_everything,
    set_random_state,
)

Result = TypeVar("Result")
# From images and labels of a batch to what is added to the images; None adds nothing.
Perturb = Callable[[Tensor, Tensor], Tensor] | None


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy, accuracy in [0, 1] and neural collapse of one network on one input."""

    images: int
    loss: float
    accuracy: float
    collapse: NeuralCollapse


@dataclass(frozen=True)
class BlockMeasurement:
    """The outputs of one block on one input: the fields of LayerRecord, and the class means."""

    features: int
    collapse: LayerCollapse
    centre_accuracy: float
    target_centre_accuracy: float
    clean_distance: float
    clean_angle: float
    means: StreamingCollapse = field(compare=False, repr=False)


@dataclass
class Evaluator:
    """A network in eval mode, in which it is left, on images in batches.

    The batch size is for speed alone: it is halved, and stays so, when memory runs out. No result
    depends on it as long as it is a multiple of CHUNK; smaller batches have draws of their own.

    Args:
        on_batch: told the size of each finished batch, for a progress bar.
    """

    network: Network
    batch_size: int
    on_batch: Callable[[int], Any] = lambda size: None

    @torch.no_grad()
    def outputs(
        self, images: Tensor, labels: Tensor, perturb: Perturb = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and features (N, D), with one forward pass per perturbed image.

        Args:
            images: (N, C, H, W), uint8 or float in [0, 1].
            labels: (N,); the targets where the input is a targeted attack.

        Raises:
            InputError: features or logits that are not finite.
        """

        def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.network(_perturbed(x, y, perturb), return_activations=True)

        logits, features = map(torch.cat, zip(*self._map(forward, images, labels), strict=True))
        check_finite(features, logits)
        return logits, features

    def measure(self, images: Tensor, labels: Tensor, perturb: Perturb = None) -> Measurement:
        """Loss, accuracy and neural collapse; arguments and errors as in `outputs`."""
        logits, features = self.outputs(images, labels, perturb)
        return Measurement(
            images=len(labels),
            loss=F.cross_entropy(logits.double(), labels).item(),
            accuracy=accuracy(logits, labels),
            collapse=neural_collapse(features, labels, logits, self.network.classifier_weight),
        )

    def perturbed(self, images: Tensor, labels: Tensor, perturb: Perturb) -> Tensor:
        """All images (N, C, H, W) with their perturbation, as float; clean ones as they are."""
        if perturb is None:
            return images
        return torch.cat(self._map(lambda x, y: _perturbed(x, y, perturb), images, labels))

    def blocks(
        self,
        images: Tensor,
        labels: Tensor,
        clean: dict[str, StreamingCollapse] | None = None,
        truth: Tensor | None = None,
    ) -> dict[str, BlockMeasurement]:
        """Collapse and nearest clean class means of every block's output, by its name.

        Two forward passes per image, of which no more than a batch's outputs are kept. The network
        must not be compiled: compiled code does not tell what its blocks put out.

        Args:
            images, labels: as in `outputs`.
            clean: `block_means` of the clean training images; None where these are the images.
            truth: (N,), the true labels where `labels` are the targets of an attack.

        Raises:
            InputError: outputs that are not finite.
        """
        found = self._retried(lambda: self._blocks(images, labels, clean, truth), len(labels))
        self.on_batch(len(labels))
        return found

    def block_means(self, images: Tensor, labels: Tensor) -> dict[str, StreamingCollapse]:
        """The class means after every block, by its name, in one forward pass per image.

        Raises:
            InputError: outputs that are not finite.
        """
        found = self._retried(lambda: self._block_means(images, labels), len(labels))
        self.on_batch(len(labels))
        return found

    @torch.no_grad()
    def _block_means(self, images: Tensor, labels: Tensor) -> dict[str, StreamingCollapse]:
        network = self.network.eval()
        classes = len(network.classifier_weight)
        means = {name: StreamingCollapse(classes) for name, _ in network.blocks()}
        with block_outputs(network) as found:
            for x, y in batches(images, labels, self.batch_size):
                network(x)
                for name, collapse in means.items():
                    collapse.add_to_means(found[name], y)
        check_finite(*(collapse.class_means for collapse in means.values()))
        return means

    @torch.no_grad()
    def _blocks(
        self,
        images: Tensor,
        labels: Tensor,
        clean: dict[str, StreamingCollapse] | None,
        truth: Tensor | None,
    ) -> dict[str, BlockMeasurement]:
        collapses = self._block_means(images, labels)
        clean = clean or collapses
        true = labels if truth is None else truth
        near_true: dict[str, Any] = dict.fromkeys(collapses, 0)
        near_label: dict[str, Any] = dict.fromkeys(collapses, 0)
        with block_outputs(self.network) as found:
            parts = batches(images, labels, self.batch_size)
            for (x, y), true_y in zip(parts, true.split(self.batch_size), strict=True):
                predictions = self.network(x).argmax(1)
                for name, collapse in collapses.items():
                    collapse.add_to_spread(found[name], y, predictions)
                    nearest = clean[name].nearest(found[name])
                    near_true[name] += (nearest == true_y).sum()
                    near_label[name] += (nearest == y).sum()
        measured = {}
        for name, collapse in collapses.items():
            apart = simplex_distance(clean[name].class_means, collapse.class_means)
            aimed = math.nan if truth is None else near_label[name].item() / len(labels)
            measured[name] = BlockMeasurement(
                features=collapse.class_means.shape[1],
                collapse=collapse.result(),
                centre_accuracy=near_true[name].item() / len(labels),
                target_centre_accuracy=aimed,
                clean_distance=apart.distance.mean().item(),
                clean_angle=apart.angle.mean().item(),
                means=collapse,
            )
        return measured

    @torch.no_grad()
    def over_batches(
        self,
        work: Callable[[Tensor, Tensor], Result],
        images: Tensor,
        labels: Tensor,
        perturb: Perturb = None,
    ) -> list[Result]:
        """work(perturbed images as float, labels) of every batch, in order.

        A batch for which memory runs out is tried again: until it returns, `work` changes nothing.
        """
        return self._map(lambda x, y: work(_perturbed(x, y, perturb), y), images, labels)

    def _map(
        self, work: Callable[[Tensor, Tensor], Result], images: Tensor, labels: Tensor
    ) -> list[Result]:
        """work(images as float, labels) of every batch, in order."""
        self.network.eval()
        results, start = [], 0

        def next_batch() -> tuple[Result, int]:
            end = start + self.batch_size
            y = labels[start:end]
            return work(as_float(images[start:end]), y), len(y)

        while start < len(labels):
            result, size = self._retried(next_batch, len(labels))
            results.append(result)
            self.on_batch(size)
            start += size
        return results

    def _retried(self, work: Callable[[], Result], count: int) -> Result:
        """work() on so many images, again with half the batch whenever memory runs out.

        Each time with the same random state, and in whole chunks of draws where it holds one.
        """
        device = self.network.mean.device
        while True:
            state = random_state(device)
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if min(self.batch_size, count) == 1:
                    raise InputError("out of memory with a batch of one image") from error
            half = min(self.batch_size, count) // 2
            self.batch_size = half // CHUNK * CHUNK or half
            set_random_state(state, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(f"out of memory: from here on batches of {self.batch_size} images")


def _perturbed(x: Tensor, y: Tensor, perturb: Perturb) -> Tensor:
    return x if perturb is None else x + perturb(x, y)


def check_finite(*tensors: Tensor) -> None:
    """Raise InputError where an output of a network is not finite."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise InputError("the network's outputs are not finite: its training has diverged")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share in [0, 1] of labels (N,) that have the largest of the logits (N, C)."""
    return (logits.argmax(1) == labels).double().mean().item()


def make_record(measured: Measurement, clean_means: Tensor | None = None, **key: Any) -> Record:
    """A row of metrics.csv.

    Args:
        clean_means: class means (C, D) of the clean images, to compare those measured with.
        key: its `source`, `epoch`, `split` and `input`, and `epsilon` where it was attacked.
    """
    collapse = measured.collapse
    names = {field.name for field in fields(Record)} & {field.name for field in fields(collapse)}
    metrics: dict[str, Any] = {name: getattr(collapse, name) for name in names}
    if clean_means is not None:
        apart = simplex_distance(clean_means, collapse.class_means)
        metrics |= {
            "clean_distance": apart.distance.mean().item(),
            "clean_angle": apart.angle.mean().item(),
            "clean_distance_abs": apart.distance_abs.mean().item(),
            "clean_angle_abs": apart.angle_abs.mean().item(),
            "clean_mean_distance": apart.mean_distance,
            "clean_mean_angle": apart.mean_angle,
        }
    told = {name: getattr(measured, name) for name in ("images", "loss", "accuracy")}
    return Record(**key, **told, **metrics)


# ---------------------------------------------------------------------------------------------
# One checkpoint of a sweep
# ---------------------------------------------------------------------------------------------


# A split, a kind of input, and the radius of its attack: 0 where it has none.
InputPart = tuple[str, str, float]


@dataclass(frozen=True)
class Subject:
    """A network with the data that it is measured on, and how its inputs are perturbed.

    `layers` is the evaluator for block outputs, whose batches may have to be smaller. `strengths`
    differ in the radius and step size of their attacks alone. `uses` tells how many types of row
    of a checkpoint need one kind of input, which is then perturbed once and kept for all of them:
    such a subject is for that checkpoint alone.
    """

    evaluator: Evaluator
    layers: Evaluator
    data: Dataset
    strengths: tuple[Strength, ...]
    seed: int
    uses: Counter[InputPart] = field(default_factory=Counter)
    _kept: dict[InputPart, Tensor] = field(default_factory=dict, init=False, repr=False)

    def split(self, name: str) -> Split:
        return getattr(self.data, name)

    def strength(self, radius: float) -> Strength:
        """That of an attack's radius; for inputs that are not attacked any will do."""
        return next((s for s in self.strengths if s.radius == radius), self.strengths[0])

    def perturbation(self, name: str, radius: float) -> Perturb:
        """What one kind of input adds to images."""
        return INPUTS[name].bound(self.evaluator.network, self.strength(radius))

    def labels(self, split: str, name: str) -> Tensor:
        """What one kind of input is measured with."""
        return INPUTS[name].labels(self.split(split).labels, self.data.num_classes)

    def start_stream(self, epoch: int, split: str, name: str) -> None:
        """Start the random stream of one epoch, split and kind of input."""
        of_test = () if split == "train" else (SPLITS.index(split),)
        seed_everything(self.seed, epoch, place_of(name), *of_test)

    def images(self, epoch: int, part: InputPart) -> tuple[Tensor, Perturb]:
        """The images (N, C, H, W) of one kind of input, and what is still to be added to them.

        That is nothing where they are kept. Kept images lie in main memory, and are dropped with
        their last use.
        """
        split, name, radius = part
        images, perturb = self.split(split).images, self.perturbation(name, radius)
        self.start_stream(epoch, split, name)
        if part not in self._kept:
            if self.uses[part] < 2:
                return images, perturb
            labels = self.labels(split, name)
            self._kept[part] = self.evaluator.perturbed(images, labels, perturb).cpu()
        self.uses[part] -= 1
        kept = self._kept[part] if self.uses[part] else self._kept.pop(part)
        return kept.to(images.device), None


def input_parts(
    splits: Iterable[str], names: Iterable[str], radii: Iterable[float]
) -> list[InputPart]:
    """A part for each split and kind of input, at every radius where it is attacked."""
    return [
        (split, name, radius)
        for split, name in product(splits, names)
        for radius in (radii if INPUTS[name].attacked else (0.0,))
    ]


def input_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> list[Record]:
    """Of each part the accuracy, loss and neural collapse of the network.

    The clean images of a split are measured too where others are compared with their class means.
    """
    records = []
    for split in SPLITS:
        clean_means = None
        for part in passes([part for part in parts if part[0] == split]):
            name = part[1]
            images, perturb = subject.images(epoch, part)
            measured = subject.evaluator.measure(images, subject.labels(split, name), perturb)
            if name == "clean":
                clean_means = measured.collapse.class_means
            if part in parts:
                key = key_of(epoch, part) | {"source": "eval"}
                compared = clean_means if INPUTS[name].from_clean else None
                records.append(make_record(measured, compared, **key))
    return records


def passes(wanted: list[InputPart]) -> list[InputPart]:
    """The parts of one split to pass through the network for the wanted ones, clean first."""
    needed = {(split, "clean", 0.0) for split, name, _ in wanted if INPUTS[name].from_clean}
    return sorted({*wanted, *needed}, key=lambda part: (place_of(part[1]), part[2]))


def key_of(epoch: int, part: InputPart) -> dict[str, Any]:
    """The fields of Record and LayerRecord that name one part of an epoch."""
    split, name, radius = part
    epsilon = radius if INPUTS[name].attacked else math.nan
    return {"epoch": epoch, "split": split, "input": name, "epsilon": epsilon}


def autoattack_rows(
    subject: Subject, epoch: int, parts: list[tuple[int, float]]
) -> list[AutoAttackRecord]:
    """Accuracy of so many class-balanced test images under standard AutoAttack.

    How many, and the radius of the attack, are a part.

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks" (ICML 2020).
    """
    records = []
    for count, radius in parts:
        labels = subject.data.test.labels
        chosen = balanced_subset(labels.cpu(), count, subject.seed)
        part = subject.data.test.select(chosen.to(labels.device))
        x, y = as_float(part.images), part.labels
        subject.start_stream(epoch, "test", "pgd")
        attacked = _autoattack(subject, x, y, subject.strength(radius))
        clean, _ = subject.evaluator.outputs(x, y)
        robust, _ = subject.evaluator.outputs(attacked, y)
        records.append(
            AutoAttackRecord(epoch, "test", len(y), accuracy(clean, y), accuracy(robust, y), radius)
        )
    return records


def find_autoattack() -> str | None:
    """The installed package that has AutoAttack, its authors' own first."""
    return next((name for name in ("autoattack", "torchattacks") if find_spec(name)), None)


def _autoattack(subject: Subject, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    """Images (N, C, H, W) under standard AutoAttack.

    Raises:
        InputError: the package left the epsilon-ball or the image box.
    """
    epsilon = strength.attack["epsilon"]
    norm = {"l_inf": "Linf", "l_2": "L2"}[strength.attack["norm"]]
    try:
        with memory_advice("--eval-batch-size can be lowered"):
            attacked = _standard_evaluation(subject, x, y, {"norm": norm, "eps": epsilon})
    except IndexError as error:  # of its loss, which compares the four likeliest classes
        raise InputError("standard AutoAttack needs at least four classes") from error
    delta = (attacked - x).flatten(1)
    furthest = delta.abs().amax() if norm == "Linf" else delta.norm(dim=1).amax()
    inside = attacked.amin() >= 0 and attacked.amax() <= 1
    if not (inside and furthest <= epsilon * 1.001 + 1e-6):
        raise InputError(f"AutoAttack of {find_autoattack()} left the epsilon-ball")
    return attacked


def _standard_evaluation(subject: Subject, x: Tensor, y: Tensor, ball: dict[str, Any]) -> Tensor:
    network, classes = subject.evaluator.network, subject.data.num_classes
    options = ball | {"seed": subject.seed}
    if find_autoattack() == "autoattack":
        from autoattack import AutoAttack

        whole = AutoAttack(network, verbose=False, device=x.device, **options)
        # As published they try the nine likeliest other classes, which there must be.
        for targeted in (whole.apgd_targeted, whole.fab):
            targeted.n_target_classes = min(9, classes - 1)
        return whole.run_standard_evaluation(x, y, bs=subject.evaluator.batch_size)
    from torchattacks import AutoAttack

    whole = AutoAttack(network, n_classes=classes, **options)
    parts = batches(x, y, subject.evaluator.batch_size)
    return torch.cat([whole(*part) for part in parts])
