"""A network on images: perturbations, outputs, and one function per type of row.

Every function `*_rows(subject, epoch, parts)` measures the parts of a checkpoint that are asked
for, and their numbers do not depend on which others are: each has a random stream of its own.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import product
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import CHUNK
from data import Dataset, Split, as_float, balanced_subset, batches
from inputs import INPUTS, Strength, place_of
from nc_metrics import (
    LayerCollapse,
    NeuralCollapse,
    StreamingCollapse,
    compute_class_means,
    neural_collapse,
    simplex_distance,
)
from networks import NearestCentre, Network, block_outputs
from records import (
    ADAPTIVE,
    CENTRE_INPUTS,
    SPLITS,
    AutoAttackRecord,
    CentreRecord,
    LayerRecord,
    Record,
)
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

# The kinds of input that --layerwise measures, and those of training images that the class means of
# the nearest-centre classifier are of.
LAYER_INPUTS = tuple(name for name, kind in INPUTS.items() if kind.layerwise)
MEANS_INPUTS = ("clean", "pgd")


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy, accuracy in [0, 1] and neural collapse of one network on one input."""

    images: int
    loss: float
    accuracy: float
    collapse: NeuralCollapse


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
        _check_finite(features, logits)
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

    def blocks(self, images: Tensor, labels: Tensor) -> dict[str, tuple[int, LayerCollapse]]:
        """Width and collapse of every block's output, by name; arguments as in `outputs`.

        Two forward passes per image, of which no more than a batch's outputs are kept. The network
        must not be compiled: compiled code does not tell what its blocks put out.

        Raises:
            InputError: outputs that are not finite.
        """
        found = self._retried(lambda: self._blocks(images, labels), len(labels))
        self.on_batch(len(labels))
        return found

    @torch.no_grad()
    def _blocks(self, images: Tensor, labels: Tensor) -> dict[str, tuple[int, LayerCollapse]]:
        network = self.network.eval()
        classes = len(network.classifier_weight)
        collapses = {name: StreamingCollapse(classes) for name, _ in network.model.blocks()}
        with block_outputs(network) as found:
            for x, y in batches(images, labels, self.batch_size):
                network(x)
                for name, collapse in collapses.items():
                    collapse.add_to_means(found[name], y)
            _check_finite(*(collapse.class_means for collapse in collapses.values()))
            for x, y in batches(images, labels, self.batch_size):
                predictions = network(x).argmax(1)
                for name, collapse in collapses.items():
                    collapse.add_to_spread(found[name], y, predictions)
        return {
            name: (collapse.class_means.shape[1], collapse.result())
            for name, collapse in collapses.items()
        }

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


def _check_finite(*tensors: Tensor) -> None:
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


@dataclass(frozen=True)
class Subject:
    """A network with the data that it is measured on, and how its inputs are perturbed.

    `layers` is the evaluator for block outputs, whose batches may have to be smaller. `strengths`
    differ in the radius and step size of their attacks alone.
    """

    evaluator: Evaluator
    layers: Evaluator
    data: Dataset
    strengths: tuple[Strength, ...]
    seed: int

    def split(self, name: str) -> Split:
        return getattr(self.data, name)

    def strength(self, radius: float) -> Strength:
        """That of an attack's radius; for inputs that are not attacked any will do."""
        return next((s for s in self.strengths if s.radius == radius), self.strengths[0])

    def perturbation(self, name: str, radius: float, model: nn.Module | None = None) -> Perturb:
        """What one kind of input adds to images, against a model or the network itself."""
        return INPUTS[name].bound(model or self.evaluator.network, self.strength(radius))

    def labels(self, split: str, name: str) -> Tensor:
        """What one kind of input is measured with."""
        return INPUTS[name].labels(self.split(split).labels, self.data.num_classes)

    def start_stream(self, epoch: int, split: str, name: str) -> None:
        """Start the random stream of one epoch, split and kind of input."""
        of_test = () if split == "train" else (SPLITS.index(split),)
        seed_everything(self.seed, epoch, place_of(name), *of_test)


# A split, a kind of input, and the radius of its attack: 0 where it has none.
InputPart = tuple[str, str, float]


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
            _, name, radius = part
            subject.start_stream(epoch, split, name)
            measured = subject.evaluator.measure(
                subject.split(split).images,
                subject.labels(split, name),
                subject.perturbation(name, radius),
            )
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


def layer_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> list[LayerRecord]:
    """Of each part the collapse after every block, a row per block.

    Test images are measured against the class means of the test images themselves: it is their
    own collapse. Targeted inputs are measured with the target labels. The perturbed images of one
    kind are held in memory, since two passes must see the same.

    Source: Su et al. 2024, layer-wise collapse.
    """
    records = []
    for part in parts:
        split, name, radius = part
        labels = subject.labels(split, name)
        subject.start_stream(epoch, split, name)
        images = subject.evaluator.perturbed(
            subject.split(split).images, labels, subject.perturbation(name, radius)
        )
        found = subject.layers.blocks(images, labels)
        key = key_of(epoch, part) | {"images": len(labels)}
        records += [
            LayerRecord(layer=layer, index=index, features=width, **key, **vars(collapse))
            for index, (layer, (width, collapse)) in enumerate(found.items())
        ]
    return records


def centre_rows(subject: Subject, epoch: int, parts: list[tuple[str, float]]) -> list[CentreRecord]:
    """Test images by the nearest class mean of the training features, beside the network itself.

    The class means are of clean or of PGD-perturbed training images, and all attacks have one
    radius: these two are a part. The test images are clean, perturbed by PGD against the network,
    and by PGD against the classifier by nearest means ("adaptive"). Both attacks start from the
    same draws.

    Source: Su et al. 2024, the robustness of the nearest-centre classifier.
    """

    def outputs(split: str, stream: str, perturb: Perturb) -> tuple[Tensor, Tensor]:
        part = subject.split(split)
        subject.start_stream(epoch, split, stream)
        return subject.evaluator.outputs(part.images, part.labels, perturb)

    records, data = [], subject.data
    seen: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}
    for means, radius in parts:
        for name in ("clean", "pgd"):
            if (name, radius) not in seen:
                perturb = subject.perturbation(name, radius)
                seen[name, radius] = outputs("test", name, perturb)
        _, features = outputs("train", means, subject.perturbation(means, radius))
        class_means = compute_class_means(features.double(), data.train.labels, data.num_classes)
        centres = NearestCentre(subject.evaluator.network, class_means).eval()
        seen[ADAPTIVE, radius] = outputs(
            "test", "pgd", subject.perturbation("pgd", radius, centres)
        )
        for name in CENTRE_INPUTS:
            logits, features = seen[name, radius]
            records.append(
                CentreRecord(
                    epoch,
                    split="test",
                    means=means,
                    input=name,
                    ncc_accuracy=accuracy(centres.classify(features), data.test.labels),
                    network_accuracy=accuracy(logits, data.test.labels),
                    images=len(data.test),
                    centre_images=len(data.train),
                    epsilon=radius,
                )
            )
    return records


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
