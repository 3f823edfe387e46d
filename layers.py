"""What lies after every block: collapse, the clean class means, and the classifier by the nearest.

`layer_rows` and `centre_rows` measure the parts of a checkpoint that are asked for, as the rows of
measure.py do; no more than a batch of a layer's outputs is ever held.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks import margin_loss, pgd
from data import Split
from inputs import INPUTS
from measure import InputPart, Perturb, Subject, accuracy, check_finite, key_of
from networks import NearestCentre, layer_outputs
from records import ADAPTIVE, CENTRE_INPUTS, CentreRecord, LayerRecord

# The kinds of input that --layerwise measures, and those of training images that the class means of
# the nearest-centre classifier are of.
LAYER_INPUTS = tuple(name for name, kind in INPUTS.items() if kind.layerwise)
MEANS_INPUTS = ("clean", "pgd")

# The training images that all others are compared with.
CLEAN_TRAINING: InputPart = ("train", "clean", 0.0)

# The attack on a nearest-centre classifier: after one with the network's own PGD, so many more on
# the margin, of so many steps, each an eighth of epsilon. See docs/results.md for what was tried.
MARGIN_ATTACKS = 5
MARGIN_STEPS = 40
MARGIN_STEP = 1 / 8
ATTEMPTS = 1 + MARGIN_ATTACKS

# The layer, the images that the class means are of, and the radius of all attacks.
CentrePart = tuple[str, str, float]


def layer_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> list[LayerRecord]:
    """Of each part the collapse after every block, and how it lies to the clean training images.

    NC1, NC2 and nearest class means are those of the images themselves: it is their own collapse.
    The clean training class means are what a user's classifier would have; they are found once for
    all parts, asked for or not. Targeted inputs are measured with the target labels. The perturbed
    images of one kind are held in memory, since two passes must see the same.

    Source: Su et al. 2024, layer-wise collapse.
    """
    records, clean = [], None
    if CLEAN_TRAINING in parts:
        parts = [CLEAN_TRAINING, *(part for part in parts if part != CLEAN_TRAINING)]
    else:
        train = subject.data.train
        clean = subject.layers.block_means(train.images, train.labels)
    for part in parts:
        split, name, _ = part
        labels = subject.labels(split, name)
        truth = subject.split(split).labels if INPUTS[name].targeted else None
        images, perturb = subject.images(epoch, part)
        images = subject.evaluator.perturbed(images, labels, perturb)
        found = subject.layers.blocks(images, labels, clean, truth)
        clean = clean or {layer: block.means for layer, block in found.items()}
        key = key_of(epoch, part) | {"images": len(labels)}
        for index, (layer, block) in enumerate(found.items()):
            told = vars(block) | vars(block.collapse)
            del told["collapse"], told["means"]
            records.append(LayerRecord(layer=layer, index=index, **key, **told))
    return records


@dataclass(frozen=True)
class Outcome:
    """What is said of N images: by a nearest-centre classifier, and by the network."""

    classes: Tensor  # (N, C), float64
    logits: Tensor  # (N, C)


def centre_rows(subject: Subject, epoch: int, parts: list[CentrePart]) -> list[CentreRecord]:
    """Test images by the nearest training class mean of a layer, beside the network itself.

    The class means are of clean or of PGD-perturbed training images. The test images are clean,
    perturbed by PGD against the network, and the worst that `hardest` makes of them ("adaptive").

    Source: Su et al. 2024, the robustness of the nearest-centre classifier.
    """
    records, test = [], subject.data.test
    means = class_means(subject, epoch, parts)
    for radius in dict.fromkeys(radius for _, _, radius in parts):
        wanted = [part for part in parts if part[2] == radius]
        network = subject.evaluator.network
        centres = [NearestCentre(network, means[part], part[0]).eval() for part in wanted]
        seen = {}
        for name in ("clean", "pgd"):
            images, perturb = subject.images(epoch, input_part("test", name, radius))
            batch = Split(images, test.labels)
            seen[name] = classified(subject, centres, batch, perturb)
        for place, part in enumerate(wanted):
            outcomes = {name: found[place] for name, found in seen.items()}
            outcomes[ADAPTIVE] = hardest(subject, epoch, centres[place], radius, outcomes)
            records += [
                centre_record(subject, epoch, part, name, outcomes[name]) for name in CENTRE_INPUTS
            ]
    return records


def centre_record(
    subject: Subject, epoch: int, part: CentrePart, name: str, outcome: Outcome
) -> CentreRecord:
    layer, means, radius = part
    data = subject.data
    return CentreRecord(
        epoch,
        split="test",
        means=means,
        input=name,
        ncc_accuracy=accuracy(outcome.classes, data.test.labels),
        network_accuracy=accuracy(outcome.logits, data.test.labels),
        images=len(data.test),
        centre_images=len(data.train),
        epsilon=radius,
        layer=layer,
        attempts=ATTEMPTS if name == ADAPTIVE else 0,
    )


def input_part(split: str, name: str, radius: float) -> InputPart:
    """The part of one kind of input, whose radius counts where it is attacked."""
    return split, name, radius if INPUTS[name].attacked else 0.0


def centre_inputs(parts: list[CentrePart]) -> list[InputPart]:
    """The kinds of input that `centre_rows` asks for, each once."""
    return list(
        dict.fromkeys(
            found
            for _, means, radius in parts
            for found in (
                input_part("train", means, radius),
                *(input_part("test", name, radius) for name in ("clean", "pgd")),
            )
        )
    )


def class_means(subject: Subject, epoch: int, parts: list[CentrePart]) -> dict[CentrePart, Tensor]:
    """The class means (C, D), float64, that each part's classifier goes by."""
    found: dict[tuple[str, InputPart], Tensor] = {}
    for of in dict.fromkeys(input_part("train", means, radius) for _, means, radius in parts):
        layers = {part[0] for part in parts if input_part("train", *part[1:]) == of}
        images, perturb = subject.images(epoch, of)
        train = Split(images, subject.data.train.labels)
        for layer, means in means_after(subject, layers, train, perturb).items():
            found[layer, of] = means
    return {part: found[part[0], input_part("train", *part[1:])] for part in parts}


def means_after(
    subject: Subject, layers: set[str], images: Split, perturb: Perturb
) -> dict[str, Tensor]:
    """Of each layer the class means (C, D), float64; zero for a class without images."""
    sums: dict[str, Any] = dict.fromkeys(layers, 0.0)

    def add(x: Tensor, y: Tensor) -> None:
        _, outputs = layer_outputs(subject.evaluator.network, x, layers)
        of_batch = F.one_hot(y, subject.data.num_classes).double().T
        sums.update({name: sums[name] + of_batch @ outputs[name].double() for name in layers})

    subject.evaluator.over_batches(add, images.images, images.labels, perturb)
    check_finite(*sums.values())
    counts = images.labels.bincount(minlength=subject.data.num_classes).clamp(min=1).unsqueeze(1)
    return {name: total / counts for name, total in sums.items()}


def classified(
    subject: Subject, centres: list[NearestCentre], images: Split, perturb: Perturb
) -> list[Outcome]:
    """What every one of the classifiers, and the network, say of images with their labels."""
    network = subject.evaluator.network

    def classify(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        logits, outputs = layer_outputs(network, x, {centre.layer for centre in centres})
        return logits, *(centre.classify(outputs[centre.layer]) for centre in centres)

    found = subject.evaluator.over_batches(classify, images.images, images.labels, perturb)
    logits, *classes = map(torch.cat, zip(*found, strict=True))
    check_finite(logits, *classes)
    return [Outcome(of_centre, logits) for of_centre in classes]


def hardest(
    subject: Subject, epoch: int, centre: NearestCentre, radius: float, seen: dict[str, Outcome]
) -> Outcome:
    """Of each test image the worst for a classifier of what was seen and of ATTEMPTS on itself.

    An image that it took for another class once is not attacked again. Otherwise the worst is the
    one with the highest margin loss. So nothing that was seen is worse, and a classifier that only
    hides its gradients is not taken for a robust one: the first attack is PGD as on the network,
    the others raise the margin, which has a gradient where the cross-entropy has saturated, from
    other starts, in more and smaller steps.

    Source: Carlini et al., "On Evaluating Adversarial Robustness" (2019), on adaptive attacks.
    """
    test, evaluator = subject.data.test, subject.evaluator
    attack = subject.strength(radius).attack
    step = {
        "step_size": MARGIN_STEP * attack["epsilon"],
        "steps": max(MARGIN_STEPS, attack["steps"]),
    }

    def on_margin(x: Tensor, y: Tensor) -> Tensor:
        return pgd(centre, x, y, loss=margin_loss, **attack | step)

    classes, logits = seen["pgd"].classes.clone(), seen["pgd"].logits.clone()
    everything = torch.arange(len(test), device=test.labels.device)

    def take(found: Outcome, of: Tensor) -> None:
        y = test.labels[of]
        better = badness(found.classes, y) > badness(classes[of], y)
        classes[of[better]], logits[of[better]] = found.classes[better], found.logits[better]

    take(seen["clean"], everything)
    subject.start_stream(epoch, "test", "pgd")
    for perturb in (subject.perturbation("pgd", radius, centre), *[on_margin] * MARGIN_ATTACKS):
        left = everything[classes.argmax(1) == test.labels]
        evaluator.on_batch(len(test) - len(left))
        if len(left):
            take(classified(subject, [centre], test.select(left), perturb)[0], left)
    return Outcome(classes, logits)


def badness(classes: Tensor, labels: Tensor) -> Tensor:
    """The margin loss (N,) of logits (N, C), infinite where another class is said."""
    margins = margin_loss(classes, labels, reduction="none")
    return margins.masked_fill(classes.argmax(1) != labels, torch.inf)
