"""The type of row of layers.csv, whose metrics are those of blocks."""

import math
from dataclasses import dataclass

from robust_nc.data.inputs import INPUTS, place_of
from robust_nc.results.metrics import (
    NC1_MEANING,
    NC2_ANGLE_MEANING,
    NC2_NORM_MEANING,
    Column,
    metric,
    metrics_of,
)
from robust_nc.results.rows import SPLITS, Row, radius_of


@dataclass(frozen=True)
class LayerRecord(Row):
    """A row of layers.csv: one block of one epoch's network on one split and input.

    `index` counts the blocks from 0 in forward order, `features` is the width of the block's
    output; the metrics are those of LayerCollapse, with the split's own class means.

    The last six metrics tell how it lies to the *clean training* class means of the block:
    `centre_accuracy` is the share of samples whose nearest one is their true label's,
    `target_centre_accuracy` of targeted inputs the share where it is the target's; `clean_distance`
    and `clean_angle` compare the class means with them, as those of Record do: of targeted inputs
    with those of the target's class, and `own_distance` and `own_angle` with their own class's.
    """

    file = "layers.csv"

    epoch: int
    split: str
    input: str
    layer: str
    index: int
    features: int
    nc1: float = metric(
        "NC1",
        required=True,
        label="NC1",
        meaning=NC1_MEANING,
        scale="log",
        table=Column("NC1", ".2e"),
        report=Column("NC1", ".3g"),
        figures=("layers",),
        more=("layers",),
        blocks=("clean", "pgd"),
    )
    nc2_norm: float = metric(
        "NC2 norm",
        required=True,
        label="NC2 norm",
        meaning=NC2_NORM_MEANING,
        figures=("layers",),
        more=("layers",),
    )
    nc2_angle: float = metric(
        "NC2 angle",
        required=True,
        label="NC2 angle",
        meaning=NC2_ANGLE_MEANING,
        report=Column("NC2 angle", ".2f"),
        figures=("layers",),
        more=("layers",),
        blocks=("clean", "pgd"),
    )
    ncc_accuracy: float = metric(
        "",
        required=True,
        label="NCC accuracy",
        meaning="share nearest to their class's mean among the images' own class means",
        scale="share",
        figures=("layers",),
        more=("layers",),
    )
    ncc_agreement: float = metric(
        "",
        required=True,
        label="NCC agreement",
        meaning="share that the nearest class mean puts into the network's class",
        scale="share",
        figures=("layers",),
        more=("layers",),
    )
    images: int = 0
    epsilon: float = math.nan
    centre_accuracy: float = metric(
        "",
        label="Nearest to own",
        meaning="share nearest to the clean training class mean of their label",
        scale="share",
        table=Column("centre", ".3f"),
        report=Column("share nearest to their own clean training class mean", ".3f"),
        figures=("layers",),
        from_clean=True,
        blocks=("clean", "pgd", "targeted"),
    )
    target_centre_accuracy: float = metric(
        "",
        label="Nearest to target's",
        meaning="share nearest to the clean training class mean of their target",
        scale="share",
        table=Column("target", ".3f"),
        report=Column("share nearest to their target's clean training class mean", ".3f"),
        figures=("layers",),
        from_clean=True,
        only_targeted=True,
        blocks=("targeted",),
    )
    clean_distance: float = metric(
        "",
        label="Distance to clean",
        meaning="of class means to the clean training ones, targeted: of the target's class",
        scale="log",
        figures=("layers",),
        more=("layers",),
        from_clean=True,
    )
    clean_angle: float = metric(
        "",
        label="Angle to clean [rad]",
        meaning="of class means to the clean training ones, targeted: of the target's class",
        table=Column("angle", ".2f"),
        report=Column("angle to the clean training class means", ".2f"),
        figures=("layers",),
        from_clean=True,
        blocks=("clean", "pgd", "targeted"),
    )
    own_distance: float = metric(
        "",
        label="Distance to own",
        meaning="of targeted class means to the clean training ones of the images' own class",
        scale="log",
        figures=("layers",),
        more=("layers",),
        from_clean=True,
        only_targeted=True,
    )
    own_angle: float = metric(
        "",
        label="Angle to own [rad]",
        meaning="of targeted class means to the clean training ones of the images' own class",
        table=Column("own angle", ".2f"),
        report=Column("angle to the clean training means of their own class", ".2f"),
        figures=("layers",),
        more=("layers",),
        from_clean=True,
        only_targeted=True,
        blocks=("targeted",),
    )
    checkpoint: str = ""
    step_size: float = math.nan
    steps: int = 0
    restarts: int = 0
    noise: float = math.nan
    precision: str = ""

    @property
    def key(self) -> tuple:
        split, input = SPLITS.index(self.split), place_of(self.input)
        return self.epoch, split, input, radius_of(self), *self.measured_by, self.index

    @property
    def attacked(self) -> bool:
        return INPUTS[self.input].attacked


# As they are shown: first how the images lie to the clean training class means, then to their own.
LAYER_METRICS = dict(sorted(metrics_of(LayerRecord).items(), key=lambda row: not row[1].from_clean))
