"""A network on images: perturbations, outputs, and one function per type of row.

Every function `*_rows(subject, epoch, parts)` measures the parts of a checkpoint that are asked
for, and their numbers do not depend on which others are: each has a random stream of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
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
        collapses = {name: StreamingCollapse(classes) for name, _ in network.blocks()}
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
        key: its `source`, `epoch`, `split` and `input`.
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
    return Record(**key, loss=measured.loss, accuracy=measured.accuracy, **metrics)


# ---------------------------------------------------------------------------------------------
# One checkpoint of a sweep
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A network with the data that it is measured on, and how its inputs are perturbed.

    `layers` is the evaluator for block outputs, whose batches may have to be smaller.
    """

    evaluator: Evaluator
    layers: Evaluator
    data: Dataset
    strength: Strength
    seed: int

    def split(self, name: str) -> Split:
        return getattr(self.data, name)

    def perturbation(self, name: str, model: nn.Module | None = None) -> Perturb:
        """What one kind of input adds to images, against a model or the network itself."""
        return INPUTS[name].bound(model or self.evaluator.network, self.strength)

    def labels(self, split: str, name: str) -> Tensor:
        """What one kind of input is measured with."""
        return INPUTS[name].labels(self.split(split).labels, self.data.num_classes)

    def start_stream(self, epoch: int, split: str, name: str) -> None:
        """Start the random stream of one epoch, split and kind of input."""
        of_test = () if split == "train" else (SPLITS.index(split),)
        seed_everything(self.seed, epoch, place_of(name), *of_test)


def input_rows(subject: Subject, epoch: int, parts: list[tuple[str, str]]) -> list[Record]:
    """Of each (split, kind of input) the accuracy, loss and neural collapse of the network.

    The clean images of a split are measured too where others are compared with their class means.
    """
    records = []
    for split in SPLITS:
        wanted = [name for part, name in parts if part == split]
        clean_means = None
        for name in passes(wanted):
            subject.start_stream(epoch, split, name)
            measured = subject.evaluator.measure(
                subject.split(split).images,
                subject.labels(split, name),
                subject.perturbation(name),
            )
            if name == "clean":
                clean_means = measured.collapse.class_means
            if name in wanted:
                key = {"source": "eval", "epoch": epoch, "split": split, "input": name}
                compared = clean_means if INPUTS[name].from_clean else None
                records.append(make_record(measured, compared, **key))
    return records


def passes(wanted: list[str]) -> list[str]:
    """The kinds of input to pass through the network for the wanted ones, clean first."""
    needed = {"clean"} if any(INPUTS[name].from_clean for name in wanted) else set()
    return [name for name in INPUTS if name in {*wanted, *needed}]


def layer_rows(subject: Subject, epoch: int, parts: list[tuple[str, str]]) -> list[LayerRecord]:
    """Of each (split, kind of input) the collapse after every block, a row per block.

    Test images are measured against the class means of the test images themselves: it is their
    own collapse. Targeted inputs are measured with the target labels. The perturbed images of one
    kind are held in memory, since two passes must see the same.

    Source: Su et al. 2024, layer-wise collapse.
    """
    records = []
    for split, name in parts:
        labels = subject.labels(split, name)
        subject.start_stream(epoch, split, name)
        images = subject.evaluator.perturbed(
            subject.split(split).images, labels, subject.perturbation(name)
        )
        found = subject.layers.blocks(images, labels)
        records += [
            LayerRecord(epoch, split, name, layer, index, width, **vars(collapse))
            for index, (layer, (width, collapse)) in enumerate(found.items())
        ]
    return records


def centre_rows(subject: Subject, epoch: int, parts: list[tuple[str]]) -> list[CentreRecord]:
    """Test images by the nearest class mean of the training features, beside the network itself.

    The class means are of clean and of PGD-perturbed training images (the parts); the test images
    are clean, perturbed by PGD against the network, and, for each of the two, by PGD against the
    classifier by nearest means ("adaptive"). Both attacks start from the same draws.

    Source: Su et al. 2024, the robustness of the nearest-centre classifier.
    """

    def outputs(split: str, stream: str, perturb: Perturb) -> tuple[Tensor, Tensor]:
        part = subject.split(split)
        subject.start_stream(epoch, split, stream)
        return subject.evaluator.outputs(part.images, part.labels, perturb)

    records, data = [], subject.data
    seen = {name: outputs("test", name, subject.perturbation(name)) for name in ("clean", "pgd")}
    for (means,) in parts:
        _, features = outputs("train", means, subject.perturbation(means))
        class_means = compute_class_means(features.double(), data.train.labels, data.num_classes)
        centres = NearestCentre(subject.evaluator.network, class_means).eval()
        seen[ADAPTIVE] = outputs("test", "pgd", subject.perturbation("pgd", centres))
        for name in CENTRE_INPUTS:
            logits, features = seen[name]
            records.append(
                CentreRecord(
                    epoch,
                    split="test",
                    means=means,
                    input=name,
                    ncc_accuracy=accuracy(centres.classify(features), data.test.labels),
                    network_accuracy=accuracy(logits, data.test.labels),
                )
            )
    return records


def autoattack_rows(
    subject: Subject, epoch: int, parts: list[tuple[int]]
) -> list[AutoAttackRecord]:
    """Accuracy of so many class-balanced test images (a part) under standard AutoAttack.

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks" (ICML 2020).
    """
    records = []
    for (count,) in parts:
        labels = subject.data.test.labels
        chosen = balanced_subset(labels.cpu(), count, subject.seed)
        part = subject.data.test.select(chosen.to(labels.device))
        x, y = as_float(part.images), part.labels
        subject.start_stream(epoch, "test", "pgd")
        attacked = _autoattack(subject, x, y)
        clean, _ = subject.evaluator.outputs(x, y)
        robust, _ = subject.evaluator.outputs(attacked, y)
        records.append(
            AutoAttackRecord(epoch, "test", len(y), accuracy(clean, y), accuracy(robust, y))
        )
    return records


def find_autoattack() -> str | None:
    """The installed package that has AutoAttack, its authors' own first."""
    return next((name for name in ("autoattack", "torchattacks") if find_spec(name)), None)


def _autoattack(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """Images (N, C, H, W) under standard AutoAttack.

    Raises:
        InputError: the package left the epsilon-ball or the image box.
    """
    epsilon = subject.strength.attack["epsilon"]
    norm = {"l_inf": "Linf", "l_2": "L2"}[subject.strength.attack["norm"]]
    try:
        with memory_advice("--eval-batch-size can be lowered"):
            attacked = _standard_evaluation(subject, x, y, norm)
    except IndexError as error:  # of its loss, which compares the four likeliest classes
        raise InputError("standard AutoAttack needs at least four classes") from error
    delta = (attacked - x).flatten(1)
    furthest = delta.abs().amax() if norm == "Linf" else delta.norm(dim=1).amax()
    inside = attacked.amin() >= 0 and attacked.amax() <= 1
    if not (inside and furthest <= epsilon * 1.001 + 1e-6):
        raise InputError(f"AutoAttack of {find_autoattack()} left the epsilon-ball")
    return attacked


def _standard_evaluation(subject: Subject, x: Tensor, y: Tensor, norm: str) -> Tensor:
    network, classes = subject.evaluator.network, subject.data.num_classes
    options = {"norm": norm, "eps": subject.strength.attack["epsilon"], "seed": subject.seed}
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
