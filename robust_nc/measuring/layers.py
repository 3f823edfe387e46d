"""Rows of layers.csv: what lies after every block of a network on one kind of input."""

from collections.abc import Iterator

from robust_nc.data.inputs import INPUTS
from robust_nc.measuring.subject import CLEAN_TRAINING, InputPart, Subject, key_of
from robust_nc.results.layer_rows import LayerRecord

# The kinds of input that --layerwise measures.
LAYER_INPUTS = [name for name, kind in INPUTS.items() if kind.layerwise]


def layer_rows(subject: Subject, epoch: int, parts: list[InputPart]) -> Iterator[LayerRecord]:
    """Of each part the collapse after every block, and how it lies to the clean training images.

    NC1, NC2 and nearest class means are those of the images themselves: it is their own collapse.
    The clean training class means are what a user's classifier would have; they are found once for
    all parts, asked for or not. Targeted inputs are measured with the target labels. The perturbed
    images of one kind are held in memory, since two passes must see the same; of a layer's outputs
    no more than a batch is.

    Source: Su et al. 2024, layer-wise collapse.
    """
    clean = None
    if CLEAN_TRAINING in parts:
        parts = [CLEAN_TRAINING, *(part for part in parts if part != CLEAN_TRAINING)]
    else:
        train = subject.data.train
        clean = subject.layers.block_means(train.images, train.labels)
    for part in parts:
        labels = subject.labels(part.split, part.input)
        images, perturb = subject.images(epoch, part)
        images = subject.evaluator.perturbed(images, labels, perturb)
        targets = subject.targets(part.input)
        blocks, means = subject.layers.blocks(images, labels, clean, targets)
        clean = clean or means
        for index, (layer, values) in enumerate(blocks.items()):
            values |= {"layer": layer, "index": index, "images": len(labels)}
            yield LayerRecord(**key_of(epoch, part), **values)
