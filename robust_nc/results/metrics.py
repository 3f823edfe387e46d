"""The table of metrics: a metric is one row, a field of `Metrics` (of whole networks) or of
`LayerRecord` (of blocks).

The row says what the metric is called, how its axis is labelled, how its numbers are written, and
where it is shown. The columns of the tables, the published series, the log, the figures and the
reports are read from it, so that a new metric is its formula in nc_metrics.py and a row here: a
field of the same name at the end of `Metrics`.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

# epochs: against epochs, and in the table of plot.py; targeted: the same of targeted images; radii:
# against the radius of PGD; modes: of several training modes beside each other; distance: of clean
# and perturbed class means; layers: against the blocks.
Figure = Literal["epochs", "targeted", "radii", "modes", "distance", "layers"]


class Column(NamedTuple):
    """What a metric is called in one table or line, and the format of its number there."""

    name: str
    form: str


@dataclass(frozen=True)
class Metric:
    """One metric.

    name: in figures and their table, "" where its label does; `form` is the format of its number.
    label, scale: of its axis; scale "share" is of values in [0, 1]. target_label: of the axis of
        targeted images, where it is measured with the target's class. `meaning` says in captions
        what it is.
    log: in the line of the log for each measurement. table: in the table at the end of a sweep.
    report: in the report of reproduce.py.
    figures: those with a panel of it. more: those of them that have it with --panels all alone.
    series: what its published .npy series are called, after the prefix of the kind of input.
    classifier: the field that has the same of the classifier W.
    from_clean: whether it compares with the class means of clean images, and is not known of all
        kinds of input. Then figures against epochs have it of the targeted attack, and a figure of
        its own has it of all modes with an adversary.
    only_targeted: whether it is known of targeted images alone.
    blocks: the kinds of input whose blocks the report shows it of.
    """

    name: str
    label: str = ""
    target_label: str = ""
    meaning: str = ""
    scale: Literal["linear", "log", "share"] = "linear"
    form: str = ".4f"
    log: Column | None = None
    table: Column | None = None
    report: Column | None = None
    figures: tuple[Figure, ...] = ()
    more: tuple[Figure, ...] = ()
    series: str | None = None
    classifier: str | None = None
    from_clean: bool = False
    only_targeted: bool = False
    blocks: tuple[str, ...] = ()
    field: str = ""  # of the record, which metrics_of fills in

    def shown_in(self, figure: Figure, panels: str = "all") -> bool:
        """Whether such figures have a panel of it; `panels` is that flag of plot.py."""
        drawn = figure in self.figures or (figure == "targeted" and "epochs" in self.figures)
        return drawn and (panels == "all" or figure not in self.more)


def metric(name: str, *, required: bool = False, **row: Any) -> Any:
    """A field of a record that is a metric; the keywords are those of Metric.

    required: whether every table has it. Others, all that are new, are NaN where a table of an
        older version lacks them.
    """
    metadata = {"metric": Metric(name, **row)}
    return field(metadata=metadata) if required else field(default=math.nan, metadata=metadata)


def metrics_of(row_type: type) -> dict[str, Metric]:
    """Field -> metric, of a type of row, in the order of its columns."""
    rows = {f.name: f.metadata["metric"] for f in fields(row_type) if "metric" in f.metadata}
    return {name: replace(row, field=name) for name, row in rows.items()}


NC1_MEANING = r"tr$(\Sigma_W \Sigma_B^+)$"
NC2_NORM_MEANING = r"deviation over mean of $\|\mu_c - \mu_G\|$"
NC2_ANGLE_MEANING = r"mean of $|\cos(\mu_c - \mu_G, \mu_{c'} - \mu_G) + 1/(C-1)|$"


@dataclass(frozen=True)
class Metrics:
    """The metrics of a network on one input, which are columns of metrics.csv in this order."""

    loss: float = metric(
        "loss",
        required=True,
        label="Loss",
        meaning="cross-entropy",
        scale="log",
        log=Column("loss", ".4f"),
        figures=("epochs",),
        more=("epochs", "targeted"),
    )
    accuracy: float = metric(
        "accuracy",
        required=True,
        label="Accuracy",
        scale="share",
        log=Column("acc", ".4f"),
        table=Column("accuracy", ".4f"),
        report=Column("accuracy", ".3f"),
        figures=("epochs", "radii", "modes"),
        more=("targeted", "modes"),
    )
    ncc_accuracy: float = metric("accuracy by class mean", required=True)
    nc1: float = metric(
        "NC1",
        required=True,
        label="NC1",
        meaning=NC1_MEANING,
        scale="log",
        form=".2e",
        log=Column("nc1", ".3e"),
        table=Column("NC1", ".2e"),
        report=Column("NC1", ".2f"),
        figures=("epochs", "radii", "modes"),
        series="nc1",
    )
    nc2_norm_activation: float = metric(
        "NC2 norm",
        required=True,
        label="NC2 norm",
        meaning=NC2_NORM_MEANING,
        log=Column("nc2 norm", ".3f"),
        table=Column("NC2 norm", ".4f"),
        report=Column("NC2 norm", ".3f"),
        figures=("epochs", "radii"),
        more=("epochs", "targeted", "radii"),
        series="nc2_activation_norm",
        classifier="nc2_norm_classifier",
    )
    nc2_norm_classifier: float = metric(
        "NC2 norm of W", required=True, series="nc2_classifier_norm"
    )
    nc2_angle_activation: float = metric(
        "NC2 angle",
        required=True,
        label="NC2 angle",
        meaning=NC2_ANGLE_MEANING,
        log=Column("angle", ".3f"),
        table=Column("NC2 angle", ".4f"),
        report=Column("NC2 angle", ".3f"),
        figures=("epochs", "radii", "modes"),
        series="nc2_activation_angle",
        classifier="nc2_angle_classifier",
    )
    nc2_angle_classifier: float = metric(
        "NC2 angle of W", required=True, series="nc2_classifier_angle"
    )
    nc3: float = metric(
        "NC3",
        required=True,
        label="NC3",
        meaning=r"$\|W^\top/\|W\|_F - M/\|M\|_F\|_F^2$",
        log=Column("nc3", ".3f"),
        table=Column("NC3", "6.3f"),
        report=Column("NC3", ".3f"),
        figures=("epochs", "radii", "modes"),
        more=("radii",),
        series="nc3",
    )
    nc4: float = metric(
        "NC4",
        required=True,
        label="NC4",
        meaning="share of images whose nearest class mean is not of the class of the network",
        scale="share",
        log=Column("nc4", ".4f"),
        table=Column("NC4", ".4f"),
        report=Column("NC4", ".3f"),
        figures=("epochs", "radii", "modes"),
        more=("radii",),
        series="nc4",
    )
    clean_distance: float = metric(
        "distance (targeted: to target's class)",
        label="Distance to clean",
        target_label="Distance to target",
        meaning=r"$\|\tilde\mu_c - \mu_c\|$ of normalised class means, perturbed and clean",
        log=Column("dist", ".3f"),
        figures=("epochs", "distance"),
        more=("epochs", "targeted"),
        from_clean=True,
    )
    clean_angle: float = metric(
        "angle (targeted: to target's class)",
        label="Angle to clean [rad]",
        meaning=r"$\angle(\tilde\mu_c, \mu_c)$ of centred class means, perturbed and clean",
        log=Column("angle", ".3f"),
        target_label="Angle to target [rad]",
        report=Column("angle to clean means (targeted: of the target's class)", ".3f"),
        figures=("epochs", "radii", "distance"),
        from_clean=True,
    )
    clean_distance_abs: float = metric("distance, not centred", from_clean=True)
    clean_angle_abs: float = metric("angle, not centred", from_clean=True)
    clean_mean_distance: float = metric("distance of the global means", from_clean=True)
    clean_mean_angle: float = metric("angle of the global means", from_clean=True)
    nc1_papyan: float = metric("NC1 (Papyan)")
    cdnv: float = metric(
        "CDNV",
        label="CDNV",
        meaning=r"mean of $(V_a + V_b) / 2\|\mu_a - \mu_b\|^2$ over pairs of classes",
        scale="log",
        figures=("epochs",),
        more=("epochs", "targeted"),
    )
    nc2_zhu: float = metric(
        "NC2 (Zhu)",
        label="NC2 (Zhu)",
        meaning=r"distance of $WW^\top$ to the simplex (Zhu et al.)",
        figures=("epochs",),
        more=("epochs", "targeted"),
    )
    nc3_zhu: float = metric(
        "NC3 (Zhu)",
        label="NC3 (Zhu)",
        meaning="distance of $WM$ to the simplex (Zhu et al.)",
        figures=("epochs",),
        more=("epochs", "targeted"),
    )
    own_distance: float = metric(
        "distance (targeted: to own class)",
        label="Distance to own",
        meaning="of targeted class means to the clean ones of the images' own class",
        log=Column("dist", ".3f"),
        figures=("epochs",),
        more=("epochs", "targeted"),
        from_clean=True,
        only_targeted=True,
    )
    own_angle: float = metric(
        "angle (targeted: to own class)",
        label="Angle to own [rad]",
        meaning="of targeted class means to the clean ones of the images' own class",
        log=Column("angle", ".3f"),
        report=Column("angle to clean means (targeted: of their own class)", ".3f"),
        figures=("epochs",),
        more=("epochs", "targeted"),
        from_clean=True,
        only_targeted=True,
    )
    vertex_agreement: float = metric(
        "nearest to the vertex of the network's class",
        label="Vertex agreement",
        meaning="share nearest to the clean training class mean of the class of the network",
        scale="share",
        figures=("epochs", "distance"),
        more=("epochs", "targeted"),
    )
    vertex_distance: float = metric(
        "distance to the vertex of the network's class",
        label="Vertex distance",
        meaning="mean distance to that class mean over the mean distance of clean class means",
        figures=("epochs", "distance"),
        more=("epochs", "targeted"),
    )


# As they are shown: the accuracy first, though its column comes after that of the loss.
METRICS = {name: metrics_of(Metrics)[name] for name in ("accuracy", *metrics_of(Metrics))}
