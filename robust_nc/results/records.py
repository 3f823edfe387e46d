"""The row types of every table that a run leaves.

Each is a dataclass with a column per field. Those of results/ know their table: a Row; that of
history.csv, EpochSummary, is of the run's folder. Accuracies and shares are
in [0, 1], angles in radians, losses in nats. A new field goes to the end and has a default, so that
tables of older versions stay readable.

`checkpoint` is the file that --checkpoint named, "" in rows of a run's own; `epoch` is its number
then. `images` is how many images a row is of, 0 in rows of versions that did not tell. `epsilon`
and `step_size` are of their attack, in the units of --epsilon, `noise` is in those of
--noise-level; NaN where there was none. What a row was measured with is part of its key.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from robust_nc.data.inputs import INPUTS, place_of
from robust_nc.results.conditions import Conditions
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.metrics import Metrics
from robust_nc.results.rows import SPLITS, UNTOLD, Row, radius_of


@dataclass(frozen=True)
class RecordKey(Row):
    """What a row of metrics.csv is of; `source` is the script that measured, "train" or "eval"."""

    file = "metrics.csv"

    source: str
    epoch: int
    split: str
    input: str


@dataclass(frozen=True)
class Record(Metrics, RecordKey):
    """A row of metrics.csv: one epoch's network on one input. NaN where not measured.

    Its columns are those of RecordKey, of Metrics, and its own. The metrics are NeuralCollapse's;
    the `clean_*` ones compare the class means with those of the clean images (means over classes of
    SimplexDistance). Class means of targeted images are those of their targets: `clean_*` is from
    the clean images of the target's class, `own_*` from those of the images' own class.
    """

    images: int = 0
    epsilon: float = math.nan
    checkpoint: str = ""
    step_size: float = math.nan
    steps: int = 0
    restarts: int = 0
    noise: float = math.nan
    precision: str = ""

    @property
    def key(self) -> tuple:
        place = self.split, place_of(self.input), radius_of(self)
        return self.epoch, self.source, *place, *self.measured_by

    @property
    def swept(self) -> bool:
        return self.source == "eval"

    @property
    def attacked(self) -> bool:
        return INPUTS[self.input].attacked

    def as_now(self, epsilon: float, former: Conditions = UNTOLD) -> Any:
        """Earlier versions called "pgd" what train.py had seen in training."""
        if (self.source, self.input) == ("train", "pgd"):
            return replace(self, input="seen").as_now(epsilon, former)
        return super().as_now(epsilon, former)


ADAPTIVE = "adaptive"  # the worst of many attacks on the nearest-centre classifier itself
CENTRE_LABELS = {  # what it is tested on
    "clean": "clean",
    "pgd": "PGD on the network",
    ADAPTIVE: "attack on this classifier",
}
CENTRE_INPUTS = tuple(CENTRE_LABELS)


@dataclass(frozen=True)
class CentreRecord(Row):
    """A row of ncc.csv: one epoch's nearest-centre classifier, and the network, on one input.

    `means` names the training images that the class means are of: clean, or perturbed by PGD;
    `centre_images` is how many these are. `images` counts the test images, and `epsilon` holds for
    both, also where the test images are clean. `layer` is the block whose outputs are classified,
    "features" for the network's own. `attempts` is how many attacks on this classifier the images
    of "adaptive" are the worst of, 0 in rows of versions that made a single weak one.
    """

    file = "ncc.csv"

    epoch: int
    split: str
    means: str
    input: str
    ncc_accuracy: float
    network_accuracy: float
    images: int = 0
    centre_images: int = 0
    epsilon: float = math.nan
    layer: str = "features"
    attempts: int = 0
    checkpoint: str = ""
    step_size: float = math.nan
    steps: int = 0
    restarts: int = 0
    precision: str = ""

    @property
    def outdated(self) -> bool:
        """Whether it is of an earlier version's attack, which was too weak."""
        return self.input == ADAPTIVE and not self.attempts

    @property
    def key(self) -> tuple:
        means, input = place_of(self.means), CENTRE_INPUTS.index(self.input)
        place = SPLITS.index(self.split), self.layer, means, radius_of(self)
        return self.epoch, *place, *self.measured_by, input

    @property
    def attacked(self) -> bool:
        return True


@dataclass(frozen=True)
class AutoAttackRecord(Row):
    """A row of autoattack.csv: accuracy of so many test images, clean and under AutoAttack."""

    file = "autoattack.csv"

    epoch: int
    split: str
    images: int
    clean_accuracy: float
    robust_accuracy: float
    epsilon: float = math.nan
    checkpoint: str = ""
    precision: str = ""

    @property
    def key(self) -> tuple:
        return self.epoch, self.images, radius_of(self), *self.measured_by

    @property
    def attacked(self) -> bool:
        return True

    @property
    def by_pgd(self) -> bool:
        return False


@dataclass(frozen=True)
class LeapRecord(Row):
    """A row of leaps.csv: how many images of a true class lie nearest to one clean class mean.

    The class means are those of the clean *training* images, in the network's features, whatever
    the split and input of the row. `images` is how many images the split and input have: its counts
    add up to them, since there are no rows with the count 0. `nearest_class` is -1 where there are
    no such class means: they coincide, or a class has no training images.
    """

    file = "leaps.csv"

    epoch: int
    split: str
    input: str
    true_class: int
    nearest_class: int
    count: int
    images: int = 0
    epsilon: float = math.nan
    checkpoint: str = ""
    step_size: float = math.nan
    steps: int = 0
    restarts: int = 0
    noise: float = math.nan
    precision: str = ""

    @property
    def key(self) -> tuple:
        place = SPLITS.index(self.split), place_of(self.input), radius_of(self)
        return self.epoch, *place, *self.measured_by, self.true_class, self.nearest_class

    @property
    def attacked(self) -> bool:
        return INPUTS[self.input].attacked


@dataclass(frozen=True)
class SimplexRecord(Row):
    """A row of simplex.csv: where an image, or the mean of a class, lies in a triangle's plane.

    `classes` are the triangle's corners A, B and C, like "0 1 2": the class means of the clean
    training images, which are the rows of class means of the split "train" and the input "clean".
    `image` is the place of an image in its split, the same in every kind of input, and -1 in the
    row of a class mean, whose `predicted` is -1 too; `images` is how many that is the mean of, 1
    for an image. `label` is the true class, `predicted` the network's.

    `x` and `y` are in units of the triangle's mean side, from its centroid, with A on top and B and
    C at the same height, B to the left. `outside` in [0, 1] is the share of the distance from the
    centroid that lies at a right angle to the plane.
    """

    file = "simplex.csv"

    epoch: int
    split: str
    input: str
    classes: str
    image: int
    label: int
    predicted: int
    x: float
    y: float
    outside: float
    images: int = 0
    epsilon: float = math.nan
    checkpoint: str = ""
    step_size: float = math.nan
    steps: int = 0
    restarts: int = 0
    noise: float = math.nan
    precision: str = ""

    @property
    def key(self) -> tuple:
        place = SPLITS.index(self.split), place_of(self.input), radius_of(self)
        return self.epoch, *place, *self.measured_by, self.classes, self.label, self.image

    @property
    def attacked(self) -> bool:
        return INPUTS[self.input].attacked


def measured_alike(rows: Iterable[Any]) -> bool:
    """Whether rows are of as many images each, and of one precision, as far as they tell.

    NC1 and its kind depend on both.
    """
    rows = list(rows)
    images, precisions = ({getattr(row, n) for row in rows} for n in ("images", "precision"))
    return len(images - {0}) < 2 and len(precisions - {""}) < 2


# Those whose tables lie in results/.
TABLES: tuple[type[Row], ...] = (
    Record,
    LayerRecord,
    CentreRecord,
    AutoAttackRecord,
    LeapRecord,
    SimplexRecord,
)


def at_epsilon(rows: list, epsilon: float) -> list:
    """The rows that no attack at another radius has made."""
    return [row for row in rows if math.isnan(row.epsilon) or row.epsilon == epsilon]
