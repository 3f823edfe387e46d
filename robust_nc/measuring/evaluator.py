"""A network on images in batches: its outputs, what they measure, and memory that runs out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks import CHUNK
from nc_metrics import NeuralCollapse, StreamingCollapse, neural_collapse, simplex_distance
from robust_nc.data.datasets import as_float, batches
from robust_nc.networks.blocks import block_outputs
from robust_nc.networks.network import Network
from robust_nc.results.layer_rows import LAYER_METRICS
from utils import (
    InputError,
    logger,
    out_of_memory,
    random_state,
    set_random_state,
)

Result = TypeVar("Result")
# From images and labels of a batch to what is added to the images; None adds nothing.
Perturb = Callable[[Tensor, Tensor], Tensor] | None


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy, accuracy in [0, 1] and neural collapse of one network on one input.

    features: (N, D), what these are of. predictions: (N,), the classes that the network says.
    """

    images: int
    loss: float
    accuracy: float
    collapse: NeuralCollapse
    features: Tensor = field(compare=False, repr=False)
    predictions: Tensor = field(compare=False, repr=False)


@dataclass
class Evaluator:
    """A network in eval mode, in which it is left, on images in batches.

    The batch size is for speed alone: it is halved, and stays so, when memory runs out. No result
    depends on it as long as it is a multiple of CHUNK; smaller batches have draws of their own.

    passed: is told after each batch of how many images it was.
    """

    network: Network
    batch_size: int
    passed: Callable[[int], None] = lambda _: None

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
            return self.network(x, return_activations=True)

        by_batch = self.over_batches(forward, images, labels, perturb)
        logits, features = map(torch.cat, zip(*by_batch, strict=True))
        check_finite(features, logits)
        return logits, features

    def measure(self, images: Tensor, labels: Tensor, perturb: Perturb = None) -> Measurement:
        """Loss, accuracy and neural collapse; arguments and errors as in `outputs`."""
        logits, features = self.outputs(images, labels, perturb)
        return Measurement(
            images=len(labels),
            loss=F.cross_entropy(logits.double(), labels).item(),
            accuracy=accuracy(logits, labels).item(),
            collapse=neural_collapse(features, labels, logits, self.network.classifier_weight),
            features=features,
            predictions=logits.argmax(1),
        )

    def perturbed(self, images: Tensor, labels: Tensor, perturb: Perturb) -> Tensor:
        """All images (N, C, H, W) with their perturbation, as float; clean ones as they are."""
        if perturb is None:
            return images
        return torch.cat(self.over_batches(lambda x, y: x, images, labels, perturb))

    def blocks(
        self,
        images: Tensor,
        labels: Tensor,
        clean: dict[str, StreamingCollapse] | None = None,
        targets: Tensor | None = None,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, StreamingCollapse]]:
        """Collapse and nearest clean class means of every block's output, by its name.

        Two forward passes per image, of which no more than a batch's outputs are kept. The network
        must not be compiled: compiled code does not tell what its blocks put out.

        Args:
            images, labels: as in `outputs`.
            clean: `block_means` of the clean training images; None where these are the images.
            targets: (C,), a permutation: where the images were perturbed towards another class, the
                one of each class; `labels` are targets then.

        Returns:
            Of each block the fields of LayerRecord that are measured, and its class means.

        Raises:
            InputError: outputs that are not finite.
        """
        return self._retried(lambda: self._blocks(images, labels, clean, targets), len(labels))

    def block_means(self, images: Tensor, labels: Tensor) -> dict[str, StreamingCollapse]:
        """The class means after every block, by its name, in one forward pass per image.

        Raises:
            InputError: outputs that are not finite.
        """
        return self._retried(lambda: self._block_means(images, labels), len(labels))

    @torch.no_grad()
    def _block_means(self, images: Tensor, labels: Tensor) -> dict[str, StreamingCollapse]:
        network = self.network.eval()
        classes = len(network.classifier_weight)
        means = {name: StreamingCollapse(classes) for name, _ in network.blocks()}
        with block_outputs(network) as outputs:
            for x, y in self.batches(images, labels):
                network(x)
                for name, collapse in means.items():
                    collapse.add_to_means(outputs[name], y)
        check_finite(*(collapse.class_means for collapse in means.values()))
        return means

    @torch.no_grad()
    def _blocks(
        self,
        images: Tensor,
        labels: Tensor,
        clean: dict[str, StreamingCollapse] | None,
        targets: Tensor | None,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, StreamingCollapse]]:
        collapses = self._block_means(images, labels)
        clean = clean or collapses
        true = labels if targets is None else targets.argsort()[labels]
        near_true: dict[str, Any] = dict.fromkeys(collapses, 0)
        near_label: dict[str, Any] = dict.fromkeys(collapses, 0)
        with block_outputs(self.network) as outputs:
            pairs = self.batches(images, labels)
            for (x, y), true_y in zip(pairs, true.split(self.batch_size), strict=True):
                predictions = self.network(x).argmax(1)
                for name, collapse in collapses.items():
                    collapse.add_to_spread(outputs[name], y, predictions)
                    nearest = clean[name].nearest(outputs[name])
                    near_true[name] += (nearest == true_y).sum()
                    near_label[name] += (nearest == y).sum()
        measured = {}
        for name, collapse in collapses.items():
            values = vars(collapse.result()) | {
                **compare_means(clean[name].class_means, collapse.class_means, targets),
                "centre_accuracy": near_true[name].item() / len(labels),
            }
            if targets is not None:
                values["target_centre_accuracy"] = near_label[name].item() / len(labels)
            measured[name] = {key: values[key] for key in LAYER_METRICS if key in values}
            measured[name]["features"] = collapse.class_means.shape[1]
        return measured, collapses

    def batches(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as float, and labels, in batches; `passed` is told after each."""
        for x, y in batches(images, labels, self.batch_size):
            yield x, y
            self.passed(len(y))

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
        self.network.eval()
        results, start = [], 0

        def next_batch() -> tuple[Result, int]:
            end = start + self.batch_size
            x, y = as_float(images[start:end]), labels[start:end]
            with self.network.compiled_for(full=len(y) == self.batch_size):
                if perturb is not None:
                    x = x + perturb(x, y)
                return work(x, y), len(y)

        while start < len(labels):
            result, size = self._retried(next_batch, len(labels))
            results.append(result)
            start += size
            self.passed(size)
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


def compare_means(clean_means: Tensor, means: Tensor, targets: Tensor | None) -> dict[str, float]:
    """How class means (C, D) lie to those of clean images: the metrics of that kind, by name.

    Args:
        targets: (C,), the target of each class, where `means` are by the target.
    """
    apart = simplex_distance(clean_means, means)
    values = {
        "clean_distance": apart.distance.mean().item(),
        "clean_angle": apart.angle.mean().item(),
        "clean_distance_abs": apart.distance_abs.mean().item(),
        "clean_angle_abs": apart.angle_abs.mean().item(),
        "clean_mean_distance": apart.mean_distance,
        "clean_mean_angle": apart.mean_angle,
    }
    if targets is not None:  # of each class the images that are labelled with its target
        own = simplex_distance(clean_means, means[targets])
        values["own_distance"] = own.distance.mean().item()
        values["own_angle"] = own.angle.mean().item()
    return values


def check_finite(*tensors: Tensor) -> None:
    """Raise InputError where an output of a network is not finite."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise InputError("the network's outputs are not finite: its training has diverged")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share in [0, 1] of labels (N,) that have the largest of the logits (N, C): a float64."""
    return (logits.argmax(1) == labels).double().mean()
