"""The paper's seven claims as criteria, and what run folders say of each.

Source: Su et al. 2024. The bounds are ours: they were set before the runs of REPRODUCTION.md were
looked at, but for those marked as added later. A criterion that fails is reported as such.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from files import read_json
from records import ADAPTIVE, CentreRecord, LayerRecord, Record, at_epsilon, radius_of
from run_folder import RunFolder
from steps import mode_name
from tables import mean_and_std

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
    """What runs that are compared have in common, but for the seed."""

    dataset: str
    model: str
    norm: str
    epsilon: float

    def __str__(self) -> str:
        return f"{self.dataset}, {self.model}, {self.norm}, epsilon {self.epsilon:g}"


class Run:
    """The results of one run folder."""

    def __init__(self, path: Path):
        self.folder = RunFolder(path, standard=False)
        self.told = self.folder.trained_with()
        names = ("model", "norm", "epsilon")
        self.setting = Setting(
            self.told.get("data_name") or self.told["dataset"],
            *(self.told[name] for name in names),
        )
        self.seed = self.told["seed"]
        self.mode = mode_name(self.told["train_mode"], self.told.get("trades_bn", "frozen"))

    @cached_property
    def records(self) -> list[Record]:
        return at_epsilon(self.folder.rows(Record), self.setting.epsilon)

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

    def fall(self, input: str, metric: str) -> float:
        """How many times lower the metric is after the last epoch than after the first."""
        first = self.series(input, metric).get(0, math.nan)
        return ratio(first, self.last(input, metric))

    def by_layer(self, input: str, metric: str, split: str = "train") -> list[Any]:
        """The metric of every block, in forward order, after the last epoch."""
        rows = [r for r in self.layers if (r.input, r.split) == (input, split)]
        rows = [row for row in rows if row.epoch == self.told["epochs"] - 1]
        return [getattr(row, metric) for row in sorted(rows, key=lambda row: row.index)]

    def by_radius(self, split: str) -> dict[float, Record]:
        """Radius of PGD -> its row after the last epoch; 0.0 is that of clean images."""
        of = (self.told["epochs"] - 1, split)
        rows = [row for row in self.folder.rows(Record) if (row.epoch, row.split) == of]
        rows.sort(key=lambda row: row.source == "train")
        return {radius_of(row): row for row in rows if row.input in ("clean", "pgd")}

    def centre_accuracy(self, input: str, of: str = "ncc_accuracy") -> float:
        """Test accuracy of the nearest clean class mean of the features after the last epoch.

        Or, `of` the "network_accuracy", of the network on the same images.
        """
        last = self.told["epochs"] - 1
        found = [r for r in self.centres if (r.epoch, r.means, r.input) == (last, "clean", input)]
        found = [row for row in found if row.layer == "features"]
        return getattr(found[0], of) if found else math.nan


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


def nc1_ratio(one: tuple[str, str], other: tuple[str, str]) -> Callable[[Study], float]:
    """NC1 after the last epoch of one (mode, kind of input) over that of another."""

    def value(study: Study) -> float:
        (mode, input), (other_mode, other_input) = one, other
        return ratio(study[mode].last(input, "nc1"), study[other_mode].last(other_input, "nc1"))

    return value


def over_clean(metric: str, input: str) -> Callable[[Study], float]:
    """A metric of ST after the last epoch on one kind of input, over that on clean images."""
    return lambda study: ratio(study[ST].last(input, metric), study[ST].last("clean", metric))


def fall_of_at(input: str, metric: str) -> Callable[[Study], float]:
    return lambda study: study[AT].fall(input, metric)


def early_to_late(run: Run, metric: str, split: str = "train") -> tuple[float, float]:
    """Mean of a metric under PGD over the first half of the blocks, and the last block's."""
    values = run.by_layer("pgd", metric, split)
    if not values:
        return math.nan, math.nan
    return float(np.mean(values[: len(values) // 2])), values[-1]


def early_advantage(run: Run, split: str) -> float:
    early, late = early_to_late(run, "centre_accuracy", split)
    return early - late


def early_share(run: Run) -> float:
    """What PGD leaves of the clean centre accuracy of the first half of the blocks."""
    clean = run.by_layer("clean", "centre_accuracy")
    early = float(np.mean(clean[: len(clean) // 2])) if clean else math.nan
    return ratio(early_to_late(run, "centre_accuracy")[0], early)


def leap(run: Run) -> float:
    """Share of targeted images nearest to their target's clean class mean, less to their own."""
    own, target = (
        run.by_layer("targeted", metric) for metric in ("centre_accuracy", "target_centre_accuracy")
    )
    return target[-1] - own[-1] if own and target else math.nan


def late_angle(run: Run) -> float:
    early, late = early_to_late(run, "clean_angle")
    return late - early


def at_equal_accuracy(run: Run, other: Run) -> float:
    """NC1 of a run over that of another at the epoch of the nearest training accuracy.

    Of epochs that are equally near their mean; NaN where none comes within 0.02.
    """
    reached = run.last("clean", "accuracy")
    accuracy, nc1 = other.series("clean", "accuracy"), other.series("clean", "nc1")
    distance = {epoch: abs(value - reached) for epoch, value in accuracy.items()}
    nearest = min(distance.values(), default=math.nan)
    if not nearest <= 0.02:
        return math.nan
    near = [nc1[epoch] for epoch, value in distance.items() if math.isclose(value, nearest)]
    return ratio(run.last("clean", "nc1"), mean_and_std(near)[0])


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
            nc1_ratio((mode, "clean"), (AT, "clean")),
            ">= 5",
        ),
        Criterion(
            5,
            f"{name}: the same against AT's epoch of equal training accuracy",
            lambda study: at_equal_accuracy(study[mode], study[AT]),
            ">= 2",
        ),
        Criterion(
            5,
            f"{name}: NC1 of the images seen in training, last epoch, over AT's",
            nc1_ratio((mode, "seen"), (AT, "seen")),
            ">= 5",
        ),
        Criterion(
            5,
            f"{name}: NC1 under PGD on the checkpoint, last epoch, over AT's",
            nc1_ratio((mode, "pgd"), (AT, "pgd")),
            ">= 5",
        ),
        Criterion(
            5,
            f"{name}: NC1 of clean training images fell less than tenfold",
            lambda study: study[mode].fall("clean", "nc1"),
            "<= 10",
        ),
    ]


CRITERIA = [
    Criterion(1, "ST: training accuracy", lambda s: s[ST].last("clean", "accuracy"), ">= 0.999"),
    Criterion(1, "ST: NC1, first epoch over last", lambda s: s[ST].fall("clean", "nc1"), ">= 10"),
    Criterion(
        1,
        "ST: NC2 angle, first epoch over last",
        lambda s: s[ST].fall("clean", "nc2_angle_activation"),
        ">= 2",
    ),
    Criterion(1, "ST: NC3, first epoch over last", lambda s: s[ST].fall("clean", "nc3"), ">= 2"),
    Criterion(1, "ST: NC4", lambda s: s[ST].last("clean", "nc4"), "<= 0"),
    Criterion(2, "ST: accuracy under PGD", lambda s: s[ST].last("pgd", "accuracy"), "<= 0.1"),
    Criterion(
        2,
        "ST: NC1 under PGD over clean NC1",
        nc1_ratio((ST, "pgd"), (ST, "clean")),
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
        nc1_ratio((ST, "gaussian"), (ST, "clean")),
        "<= 1.5",
    ),
    Criterion(
        2,
        "ST: NC1 under sign noise over clean NC1",
        nc1_ratio((ST, "sign"), (ST, "clean")),
        "<= 1.5",
    ),
    Criterion(
        2,
        "ST: NC2 angle under PGD over the clean one",
        over_clean("nc2_angle_activation", "pgd"),
        ">= 2",
        later=True,
    ),
    Criterion(2, "ST: NC3 under PGD over clean NC3", over_clean("nc3", "pgd"), ">= 2", later=True),
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
        nc1_ratio((ST, "pgd"), (ST, "targeted")),
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
    Criterion(
        4, "AT: clean NC1, first epoch over last", lambda s: s[AT].fall("clean", "nc1"), ">= 10"
    ),
    Criterion(
        4,
        "AT: NC1 of the images seen, first epoch over last",
        lambda s: s[AT].fall("seen", "nc1"),
        ">= 10",
    ),
    Criterion(
        4,
        "AT: NC1 under PGD on the checkpoint, first epoch over last",
        lambda s: s[AT].fall("pgd", "nc1"),
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
            fall_of_at(input, metric),
            ">= 2",
            later=True,
        )
        for input, images in (("clean", "clean images"), ("seen", "the images seen"))
        for name, metric in (("NC2 angle", "nc2_angle_activation"), ("NC3", "nc3"))
    ),
    Criterion(
        4,
        "Angle between clean class means and those under PGD, ST's over AT's",
        lambda s: ratio(s[ST].last("pgd", "clean_angle"), s[AT].last("pgd", "clean_angle")),
        ">= 3",
        later=True,
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
        lambda s: early_to_late(s[AT], "clean_angle")[1],
        "<= 0.3",
    ),
    Criterion(
        6,
        "ST, PGD, training images: centre accuracy of the first half of the blocks over the clean "
        "one",
        lambda s: early_share(s[ST]),
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
