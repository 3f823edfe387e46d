"""Rows of ncc.csv: the nearest-centre classifier of a layer, and attacks on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks import margin_loss, pgd
from robust_nc.data.inputs import INPUTS, Strength
from robust_nc.data.readers import Split
from robust_nc.measuring.evaluator import Perturb, accuracy, check_finite
from robust_nc.measuring.subject import InputPart, Subject
from robust_nc.networks.blocks import NearestCentre, layer_outputs
from robust_nc.results.records import ADAPTIVE, CENTRE_INPUTS, CentreRecord

MEANS_INPUTS = ("clean", "pgd")

# The attacks on a nearest-centre classifier, after PGD as on the network: so many on the margin,
# then one towards each of so many nearest other class means, all of so many steps, each a quarter
# of epsilon. docs/results.md tells what else was tried.
MARGIN_ATTACKS = 2
RIVALS = 9
MARGIN_STEPS = 40
MARGIN_STEP = 1 / 4


class CentrePart(NamedTuple):
    """A classifier by the outputs of a layer, and the radius of all attacks.

    means: the kind of training images that its class means are of.
    """

    layer: str
    means: str
    radius: float


@dataclass(frozen=True)
class Prediction:
    """What is said of N images: by a nearest-centre classifier, and by the network."""

    classes: Tensor  # (N, C), float64
    logits: Tensor  # (N, C)


def centre_rows(subject: Subject, epoch: int, parts: list[CentrePart]) -> Iterator[CentreRecord]:
    """Test images by the nearest training class mean of a layer, beside the network itself.

    The class means are of clean or of PGD-perturbed training images. The test images are clean,
    perturbed by PGD against the network, and the worst that `hardest` makes of them ("adaptive").

    Source: Su et al. 2024, the robustness of the nearest-centre classifier.
    """
    network, test = subject.evaluator.network, subject.data.test
    means = class_means(subject, epoch, parts)
    for radius in dict.fromkeys(part.radius for part in parts):
        at_radius = [part for part in parts if part.radius == radius]
        centres = [NearestCentre(network, means[part], part.layer).eval() for part in at_radius]
        outcomes = {}  # what all of the classifiers say, by the kind of input
        for name in ("clean", "pgd"):
            images, perturb = subject.images(epoch, input_part("test", name, radius))
            outcomes[name] = classified(subject, centres, Split(images, test.labels), perturb)
        for place, (part, centre) in enumerate(zip(at_radius, centres, strict=True)):
            by_input = {name: outcomes[name][place] for name in outcomes}
            by_input[ADAPTIVE] = hardest(subject, epoch, centre, radius, by_input)
            for name in CENTRE_INPUTS:
                yield centre_record(subject, epoch, part, name, by_input[name])


def centre_record(
    subject: Subject, epoch: int, part: CentrePart, name: str, outcome: Prediction
) -> CentreRecord:
    """The row of one kind of test images."""
    data = subject.data
    return CentreRecord(
        epoch=epoch,
        split="test",
        means=part.means,
        input=name,
        ncc_accuracy=accuracy(outcome.classes, data.test.labels).item(),
        network_accuracy=accuracy(outcome.logits, data.test.labels).item(),
        images=len(data.test),
        centre_images=len(data.train),
        epsilon=part.radius,
        layer=part.layer,
        attempts=attempts(data.num_classes) if name == ADAPTIVE else 0,
    )


def input_part(split: str, name: str, radius: float) -> InputPart:
    """The part of one kind of input, whose radius counts where it is attacked."""
    return InputPart(split, name, radius if INPUTS[name].attacked else 0.0)


def training_input(part: CentrePart) -> InputPart:
    """The images that a classifier's class means are of."""
    return input_part("train", part.means, part.radius)


def centre_inputs(parts: list[CentrePart]) -> set[InputPart]:
    """The kinds of input that `centre_rows` asks for."""
    tested = {input_part("test", name, part.radius) for part in parts for name in ("clean", "pgd")}
    return {training_input(part) for part in parts} | tested


def class_means(subject: Subject, epoch: int, parts: list[CentrePart]) -> dict[CentrePart, Tensor]:
    """The class means (C, D), float64, that each part's classifier goes by."""
    means: dict[CentrePart, Tensor] = {}
    for source in dict.fromkeys(map(training_input, parts)):
        of_source = [part for part in parts if training_input(part) == source]
        images, perturb = subject.images(epoch, source)
        train = Split(images, subject.data.train.labels)
        by_layer = means_after(subject, {part.layer for part in of_source}, train, perturb)
        means |= {part: by_layer[part.layer] for part in of_source}
    return means


def means_after(
    subject: Subject, layers: set[str], images: Split, perturb: Perturb
) -> dict[str, Tensor]:
    """Of each layer the class means (C, D), float64; zero for a class without images."""
    sums: dict[str, Any] = dict.fromkeys(layers, 0.0)

    def add(x: Tensor, y: Tensor) -> None:
        _, outputs = layer_outputs(subject.evaluator.network, x, layers)
        members = F.one_hot(y, subject.data.num_classes).double().T
        sums.update({name: sums[name] + members @ outputs[name].double() for name in layers})

    subject.evaluator.over_batches(add, images.images, images.labels, perturb)
    check_finite(*sums.values())
    counts = images.labels.bincount(minlength=subject.data.num_classes).clamp(min=1).unsqueeze(1)
    return {name: total / counts for name, total in sums.items()}


def classified(
    subject: Subject, centres: list[NearestCentre], images: Split, perturb: Perturb
) -> list[Prediction]:
    """What every one of the classifiers, and the network, say of images with their labels."""
    network = subject.evaluator.network

    def classify(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        logits, outputs = layer_outputs(network, x, {centre.layer for centre in centres})
        return logits, *(centre.classify(outputs[centre.layer]) for centre in centres)

    by_batch = subject.evaluator.over_batches(classify, images.images, images.labels, perturb)
    logits, *by_centre = map(torch.cat, zip(*by_batch, strict=True))
    check_finite(logits, *by_centre)
    return [Prediction(classes, logits) for classes in by_centre]


def hardest(
    subject: Subject,
    epoch: int,
    centre: NearestCentre,
    radius: float,
    outcomes: dict[str, Prediction],
) -> Prediction:
    """Of each test image the worst for a classifier of these outcomes and of attacks on itself.

    An image that it took for another class once is not attacked again. Otherwise the worst is the
    one with the highest margin loss. So none of these is worse, and a classifier that only
    hides its gradients is not taken for a robust one.
    """
    test = subject.data.test
    classes, logits = outcomes["pgd"].classes.clone(), outcomes["pgd"].logits.clone()
    all_images = torch.arange(len(test), device=test.labels.device)

    def take_worse(outcome: Prediction, images: Tensor) -> None:
        y = test.labels[images]
        worse = badness(outcome.classes, y) > badness(classes[images], y)
        classes[images[worse]] = outcome.classes[worse]
        logits[images[worse]] = outcome.logits[worse]

    take_worse(outcomes["clean"], all_images)
    subject.start_stream(epoch, "test", "pgd")
    for perturb in attacks_on(centre, subject.strength(radius)):
        left = all_images[classes.argmax(1) == test.labels]
        if len(left):
            [outcome] = classified(subject, [centre], test.select(left), perturb)
            take_worse(outcome, left)
    return Prediction(classes, logits)


def attempts(num_classes: int) -> int:
    """How many attacks `attacks_on` gives."""
    return 1 + MARGIN_ATTACKS + min(RIVALS, num_classes - 1)


def attacks_on(centre: NearestCentre, strength: Strength) -> list[Perturb]:
    """The attacks on a nearest-centre classifier, in the order in which they are tried.

    PGD as on the network; then in more steps on the margin, which has a gradient where the
    cross-entropy has saturated; then likewise towards each of the nearest other class means.

    Source: Carlini et al., "On Evaluating Adversarial Robustness" (2019), on adaptive attacks;
    Gowal et al., "An Alternative Surrogate Loss for PGD-based Adversarial Testing" (2019), on
    trying every target.
    """
    steps = max(MARGIN_STEPS, strength.attack["steps"])
    step = {"steps": steps, "step_size": MARGIN_STEP * strength.attack["epsilon"]}
    how = strength.attack | step | {"loss": margin_loss}
    means = centre.class_means
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    nearest_first = apart.fill_diagonal_(-1).argsort(1)  # (C, C), each class itself first

    def on_margin(x: Tensor, y: Tensor) -> Tensor:
        return pgd(centre, x, y, **how)

    def towards(place: int) -> Perturb:
        def on_margin_to_rival(x: Tensor, y: Tensor) -> Tensor:
            return pgd(centre, x, nearest_first[y, place], targeted=True, **how)

        return on_margin_to_rival

    rivals = range(1, min(RIVALS, len(means) - 1) + 1)
    return [
        INPUTS["pgd"].bound(centre, strength),
        *(on_margin for _ in range(MARGIN_ATTACKS)),
        *(towards(place) for place in rivals),
    ]


def badness(classes: Tensor, labels: Tensor) -> Tensor:
    """The margin loss (N,) of logits (N, C), infinite where another class is said."""
    margins = margin_loss(classes, labels, reduction="none")
    return margins.masked_fill(classes.argmax(1) != labels, torch.inf)
