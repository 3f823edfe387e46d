"""What lies after every block: collapse, the clean class means, and the classifier by the nearest.

`layer_rows` and `centre_rows` measure the parts of a checkpoint that are asked for, as the rows of
measure.py do; no more than a batch of a layer's outputs is ever held.
"""

from robust_nc.data.inputs import INPUTS
from robust_nc.measuring.subject import InputPart, Subject, key_of
from robust_nc.results.records import LayerRecord

# The kinds of input that --layerwise measures, and those of training images that the class means of
# the nearest-centre classifier are of.
LAYER_INPUTS = tuple(name for name, kind in INPUTS.items() if kind.layerwise)

# The training images that all others are compared with.
CLEAN_TRAINING: InputPart = ("train", "clean", 0.0)


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
