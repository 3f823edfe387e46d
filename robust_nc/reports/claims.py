"""The paper's seven claims as criteria, and what run folders say of each.

Source: Su et al. 2024. The bounds are ours: they were set before the runs of REPRODUCTION.md were
looked at, but for those marked as added later. A criterion that fails is reported as such.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robust_nc.results.files import read_json
from robust_nc.results.records import (
    ADAPTIVE,
    CentreRecord,
    LayerRecord,
    Record,
    at_epsilon,
    radius_of,
)
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.tables import mean_and_std
from robust_nc.training.modes import mode_name

ST, AT = "std_train", "pgd_train"
FROZEN, BATCH = "pgd_train_TRADES", "pgd_train_TRADES_batch"
MART = "pgd_train_MART"

CLAIMS = {
    1: "Standard training (ST) collapses on its training data.",
    2: "A small PGD perturbation destroys the simplex; noise of the same size does not.",
    3: "A targeted perturbation leaps to the vertex of its target.",
    4: "Adversarial training (AT) collapses on clean and on perturbed training data, and the two "
    "simplices are aligned.",
    5: "TRADES reaches similar robustness without that collapse.",
    6: "Early layers keep reliable simplices on perturbed data, late ones do not.",
    7: "The nearest-centre classifier of an AT network is robust; that of an ST network is not.",
}


@dataclass(frozen=True)
class Setting:
    """What runs that are compared have in common, but for the seed.

    limit_train: --limit-train; a network of fewer images is not compared with one of more.
    """

    dataset: str
    model: str
    norm: str
    epsilon: float
    limit_train: int | None = None

    def __str__(self) -> str:
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {self.epsilon:g}"


class Run:
    """The results of one run folder."""

    def __init__(self, path: Path):
        self.folder = RunFolder(path, standard=False)
        self.told = self.folder.trained_with()
        self.setting = Setting(
            dataset=self.told.get("data_name") or self.told["dataset"],
            model=self.told["model"],
            norm=self.told["norm"],
            epsilon=self.told["epsilon"],
            limit_train=self.told.get("limit_train"),
        )
        self.seed = self.told["seed"]
        self.mode = mode_name(self.told["train_mode"], self.told.get("trades_bn", "frozen"))

    @cached_property
    def all_records(self) -> list[Record]:
        """At every epsilon; the others are at the run's own."""
        return self.folder.rows(Record)

    @cached_property
    def records(self) -> list[Record]:
        return at_epsilon(self.all_records, self.setting.epsilon)

    @cached_property
    def layers(self) -> list[LayerRecord]:
        return at_epsilon(self.folder.rows(LayerRecord), self.setting.epsilon)

    @cached_property
    def centres(self) -> list[CentreRecord]:
        return at_epsilon(self.folder.rows(CentreRecord), self.setting.epsilon)

    def series(self, input: str, metric: str, split: str = "train") -> dict[int, float]:
        """Epoch -> a metric of one kind of input; of two sources train.py's, as figures have it."""
        rows = [r for r in self.records if (r.input, r.split) == (input, split)]
        rows.sort(key=lambda row: (row.epoch, row.source == "train"))
        return {row.epoch: getattr(row, metric) for row in rows}

    def last(self, input: str, metric: str, split: str = "train") -> float:
        """The metric after the last epoch of the run; NaN where it was not measured."""
        return self.series(input, metric, split).get(self.told["epochs"] - 1, math.nan)

    def blocks(self, input: str, split: str = "train") -> list[LayerRecord]:
        """The rows of every block, in forward order, after the last epoch."""
        of = (self.told["epochs"] - 1, input, split)
        rows = [row for row in self.layers if (row.epoch, row.input, row.split) == of]
        return sorted(rows, key=lambda row: row.index)

    def by_layer(self, input: str, metric: str, split: str = "train") -> list[float]:
        """The metric of every block, in forward order, after the last epoch."""
        return [getattr(row, metric) for row in self.blocks(input, split)]

    def by_radius(self, split: str) -> dict[float, Record]:
        """Radius of PGD -> its row after the last epoch; 0.0 is that of clean images."""
        of = (self.told["epochs"] - 1, split)
        rows = [row for row in self.all_records if (row.epoch, row.split) == of]
        rows.sort(key=lambda row: row.source == "train")
        return {radius_of(row): row for row in rows if row.input in ("clean", "pgd")}

    def centre_row(self, input: str) -> CentreRecord | None:
        """The nearest clean class mean of the features on test images, after the last epoch."""
        of = (self.told["epochs"] - 1, "clean", input, "features")
        rows = [row for row in self.centres if (row.epoch, row.means, row.input, row.layer) == of]
        return rows[0] if rows else None

    def centre_accuracy(self, input: str) -> float:
        row = self.centre_row(input)
        return row.ncc_accuracy if row else math.nan


# The runs of one setting and seed, by mode.
Study = dict[str, Run]


@dataclass(frozen=True)
class Criterion:
    """One measurable statement.

    value: from a study to a number, NaN where it was not measured; KeyError where a run is missing.
    bound: "<= 0.1" or ">= 10", what the number must satisfy.
    later: whether it was added when runs of the small scale had been looked at, which verdicts say.
    """

    claim: int
    text: str
    value: Callable[[Study], float]
    bound: str
    later: bool = False

    def holds(self, value: float) -> bool:
        sign, bound = self.bound.split()
        return value <= float(bound) if sign == "<=" else value >= float(bound)


def ratio(one: float, other: float) -> float:
    return one / other if other > 0 else math.nan


def metric_ratio(
    metric: str, one: tuple[str, str], other: tuple[str, str]
) -> Callable[[Study], float]:
    """A metric after the last epoch of one (mode, kind of input) over that of another."""

    def value(study: Study) -> float:
        (mode, input), (other_mode, other_input) = one, other
        return ratio(study[mode].last(input, metric), study[other_mode].last(other_input, metric))

    return value


def fall(mode: str, input: str, metric: str) -> Callable[[Study], float]:
    """How many times lower a metric is after the last epoch than after the first."""

    def value(study: Study) -> float:
        run = study[mode]
        first = run.series(input, metric).get(0, math.nan)
        return ratio(first, run.last(input, metric))

    return value


def early_half(
    run: Run, input: str, split: str = "train", metric: str = "centre_accuracy"
) -> float:
    """Mean of a metric over the first half of the blocks."""
    values = run.by_layer(input, metric, split)
    return float(np.mean(values[: len(values) // 2])) if values else math.nan


def last_block(run: Run, split: str = "train", metric: str = "centre_accuracy") -> float:
    """A metric under PGD of the last block."""
    values = run.by_layer("pgd", metric, split)
    return values[-1] if values else math.nan


def early_advantage(run: Run, split: str) -> float:
    return early_half(run, "pgd", split) - last_block(run, split)


def leap(run: Run) -> float:
    """Share of targeted images nearest to their target's clean class mean, less to their own."""
    own, target = (
        run.by_layer("targeted", metric) for metric in ("centre_accuracy", "target_centre_accuracy")
    )
    return target[-1] - own[-1] if own and target else math.nan


def late_angle(run: Run) -> float:
    return last_block(run, metric="clean_angle") - early_half(run, "pgd", metric="clean_angle")


def at_equal(metric: str, within: float, run: Run, other: Run) -> float:
    """NC1 of a run over that of another at the epoch where a metric of clean images is nearest.

    Of epochs that are equally near the first; NaN where none comes within `within`.
    """
    reached = run.last("clean", metric)
    values, nc1 = other.series("clean", metric), other.series("clean", "nc1")
    near = min(values, key=lambda epoch: abs(values[epoch] - reached), default=None)
    if near is None or not abs(values[near] - reached) <= within:
        return math.nan
    return ratio(run.last("clean", "nc1"), nc1[near])


def robustness(run: Run) -> float:
    return run.last("pgd", "accuracy", "test")


def against_at(mode: str, name: str) -> list[Criterion]:
    """Claim 5 for one way to train: as robust as AT, and whether it collapses."""
    return [
        Criterion(
            5,
            f"{name}: PGD accuracy on test images, less AT's",
            lambda study: robustness(study[mode]) - robustness(study[AT]),
            ">= -0.1",
        ),
        Criterion(
            5,
            f"{name}: NC1 of clean training images, last epoch, over AT's",
            metric_ratio("nc1", (mode, "clean"), (AT, "clean")),
            ">= 5",
        ),
        Criterion(
            5,
            f"{name}: the same against AT's epoch of equal training accuracy",
            lambda study: at_equal("accuracy", 0.02, study[mode], study[AT]),
            ">= 2",
        ),
        Criterion(
            5,
            f"{name}: the same against AT's epoch of equal clean training loss",
            lambda study: at_equal("loss", 0.01, study[mode], study[AT]),
            ">= 2",
            later=True,
        ),
        Criterion(
            5,
            f"{name}: NC1 of the images seen in training, last epoch, over AT's",
            metric_ratio("nc1", (mode, "seen"), (AT, "seen")),
            ">= 5",
        ),
        Criterion(
            5,
            f"{name}: NC1 under PGD on the checkpoint, last epoch, over AT's",
            metric_ratio("nc1", (mode, "pgd"), (AT, "pgd")),
            ">= 5",
        ),
        Criterion(
            5,
            f"{name}: NC1 of clean training images fell less than tenfold",
            fall(mode, "clean", "nc1"),
            "<= 10",
        ),
    ]


CRITERIA = [
    Criterion(1, "ST: training accuracy", lambda s: s[ST].last("clean", "accuracy"), ">= 0.999"),
    Criterion(1, "ST: NC1, first epoch over last", fall(ST, "clean", "nc1"), ">= 10"),
    Criterion(
        1,
        "ST: NC2 angle, first epoch over last",
        fall(ST, "clean", "nc2_angle_activation"),
        ">= 2",
    ),
    Criterion(1, "ST: NC3, first epoch over last", fall(ST, "clean", "nc3"), ">= 2"),
    Criterion(1, "ST: NC4", lambda s: s[ST].last("clean", "nc4"), "<= 0"),
    Criterion(2, "ST: accuracy under PGD", lambda s: s[ST].last("pgd", "accuracy"), "<= 0.1"),
    Criterion(
        2,
        "ST: NC1 under PGD over clean NC1",
        metric_ratio("nc1", (ST, "pgd"), (ST, "clean")),
        ">= 10",
    ),
    Criterion(
        2,
        "ST: angle between clean class means and those under PGD",
        lambda s: s[ST].last("pgd", "clean_angle"),
        ">= 1",
    ),
    Criterion(
        2,
        "ST: NC1 under Gaussian noise over clean NC1",
        metric_ratio("nc1", (ST, "gaussian"), (ST, "clean")),
        "<= 1.5",
    ),
    Criterion(
        2,
        "ST: NC1 under sign noise over clean NC1",
        metric_ratio("nc1", (ST, "sign"), (ST, "clean")),
        "<= 1.5",
    ),
    Criterion(
        2,
        "ST: NC2 angle under PGD over the clean one",
        metric_ratio("nc2_angle_activation", (ST, "pgd"), (ST, "clean")),
        ">= 2",
        later=True,
    ),
    Criterion(
        2,
        "ST: NC3 under PGD over clean NC3",
        metric_ratio("nc3", (ST, "pgd"), (ST, "clean")),
        ">= 2",
        later=True,
    ),
    Criterion(2, "ST: NC4 under PGD", lambda s: s[ST].last("pgd", "nc4"), ">= 0.5", later=True),
    Criterion(
        3,
        "ST: success of the targeted attack",
        lambda s: s[ST].last("targeted", "accuracy"),
        ">= 0.5",
    ),
    Criterion(
        3,
        "ST: NC1 under PGD over that of the targeted attack (target labels)",
        metric_ratio("nc1", (ST, "pgd"), (ST, "targeted")),
        ">= 5",
    ),
    Criterion(
        3,
        "ST: NC2 angle of the targeted attack, less the clean one",
        lambda s: (
            s[ST].last("targeted", "nc2_angle_activation")
            - s[ST].last("clean", "nc2_angle_activation")
        ),
        "<= 0.1",
    ),
    Criterion(
        3,
        "ST: angle between targeted class means and the clean ones of their targets",
        lambda s: s[ST].last("targeted", "clean_angle"),
        "<= 0.8",
    ),
    Criterion(
        3,
        "ST, targeted training images: share nearest to the target's clean class mean, less the "
        "share nearest to their own",
        lambda s: leap(s[ST]),
        ">= 0.25",
        later=True,
    ),
    Criterion(
        4, "AT: accuracy on the images seen", lambda s: s[AT].last("seen", "accuracy"), ">= 0.9"
    ),
    Criterion(4, "AT: clean NC1, first epoch over last", fall(AT, "clean", "nc1"), ">= 10"),
    Criterion(
        4,
        "AT: NC1 of the images seen, first epoch over last",
        fall(AT, "seen", "nc1"),
        ">= 10",
    ),
    Criterion(
        4,
        "AT: NC1 under PGD on the checkpoint, first epoch over last",
        fall(AT, "pgd", "nc1"),
        ">= 10",
    ),
    Criterion(
        4,
        "AT: angle between clean class means and those of the images seen",
        lambda s: s[AT].last("seen", "clean_angle"),
        "<= 0.2",
    ),
    Criterion(
        4,
        "AT: angle between clean class means and those under PGD on the checkpoint",
        lambda s: s[AT].last("pgd", "clean_angle"),
        "<= 0.2",
    ),
    *(
        Criterion(
            4,
            f"AT: {name} of {images}, first epoch over last",
            fall(AT, input, metric),
            ">= 2",
            later=True,
        )
        for input, images in (("clean", "clean images"), ("seen", "the images seen"))
        for name, metric in (("NC2 angle", "nc2_angle_activation"), ("NC3", "nc3"))
    ),
    *against_at(FROZEN, "TRADES (frozen)"),
    *against_at(BATCH, "TRADES (batch)"),
    *against_at(MART, "MART, an addition"),
    Criterion(
        6,
        "ST, PGD, training images: centre accuracy of the first half of the blocks, less the "
        "last one's",
        lambda s: early_advantage(s[ST], "train"),
        ">= 0.1",
    ),
    Criterion(
        6,
        "ST, PGD, test images: the same",
        lambda s: early_advantage(s[ST], "test"),
        ">= 0.05",
    ),
    Criterion(
        6,
        "ST, PGD: angle to the clean class means in the last block, less that of the first half",
        lambda s: late_angle(s[ST]),
        ">= 0.3",
    ),
    Criterion(
        6,
        "AT, PGD: the same angle in the last block",
        lambda s: last_block(s[AT], metric="clean_angle"),
        "<= 0.3",
    ),
    Criterion(
        6,
        "ST, PGD, training images: centre accuracy of the first half of the blocks over the clean "
        "one",
        lambda s: ratio(early_half(s[ST], "pgd"), early_half(s[ST], "clean")),
        ">= 0.5",
        later=True,
    ),
    Criterion(
        7,
        "ST: nearest-centre test accuracy under the attack on it",
        lambda s: s[ST].centre_accuracy(ADAPTIVE),
        "<= 0.1",
    ),
    Criterion(
        7,
        "AT: the same, less ST's",
        lambda s: s[AT].centre_accuracy(ADAPTIVE) - s[ST].centre_accuracy(ADAPTIVE),
        ">= 0.1",
    ),
    Criterion(
        7,
        "AT: the same, less the network's test accuracy under PGD",
        lambda s: s[AT].centre_accuracy(ADAPTIVE) - robustness(s[AT]),
        ">= -0.05",
    ),
]


@dataclass(frozen=True)
class Finding:
    """What the runs of one setting say of one criterion: seed -> value."""

    criterion: Criterion
    setting: Setting
    values: dict[int, float]

    @property
    def mean(self) -> float:
        return mean_and_std(list(self.values.values()))[0]

    @property
    def std(self) -> float:
        """Unbiased, over the seeds; NaN of one seed."""
        return mean_and_std(list(self.values.values()))[1]

    @property
    def verdict(self) -> str:
        """A criterion holds if it does for every seed."""
        met = sum(map(self.criterion.holds, self.values.values()))
        if not self.values:
            return "not measured"
        if met == len(self.values):
            return "holds"
        return "does not hold" + (f" ({met} of {len(self.values)} seeds)" if met else "")


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs of the folders that hold one."""
    return [Run(path) for path in folders if read_json(path / "args.json")]


def judge(runs: list[Run], claims: Iterable[int] = CLAIMS) -> list[Finding]:
    """Every criterion of the claims, on every setting of the runs."""
    findings = []
    for criterion in [c for c in CRITERIA if c.claim in claims]:
        for setting in dict.fromkeys(run.setting for run in runs):
            values = {}
            for seed in sorted({run.seed for run in runs if run.setting == setting}):
                alike = [run for run in runs if (run.setting, run.seed) == (setting, seed)]
                value = value_of(criterion, {run.mode: run for run in alike})
                if not math.isnan(value):
                    values[seed] = value
            findings.append(Finding(criterion, setting, values))
    return findings


def value_of(criterion: Criterion, study: Study) -> float:
    try:
        return criterion.value(study)
    except KeyError:  # a mode that was not run
        return math.nan
