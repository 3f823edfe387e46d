"""The paper's seven claims, and what runs say of each.

Source: Su et al. 2024. What a claim is judged by stands in criteria.py, of claim 5 in
ways_to_train.py.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from robust_nc.build import DIGESTS
from robust_nc.reports.bounds import keeps
from robust_nc.reports.criteria import CRITERIA
from robust_nc.reports.criterion import Criterion, Outcome, Precondition
from robust_nc.reports.groups import Group, group_runs, in_words
from robust_nc.reports.readings import Study
from robust_nc.reports.runs import OF_SWEEP, Run, step_name
from robust_nc.reports.setting import Setting, seeds_in_words
from robust_nc.results.records import measured_alike
from robust_nc.results.tables import mean_and_std
from robust_nc.training.modes import MODES
from utils import logger

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


HOLDS, FAILS, NOT_MEASURED, NOT_TESTABLE = (
    "holds",
    "does not hold",
    "not measured",
    "not testable",
)


@dataclass(frozen=True)
class Finding:
    """What the runs of one setting say of one criterion: seed -> outcome, of seeds that say any.

    differs: the flags that set them apart from other runs of the setting, in words.
    """

    criterion: Criterion
    setting: Setting
    outcomes: dict[int, Outcome]
    differs: str = ""

    @property
    def testable(self) -> dict[int, Outcome]:
        """The seeds whose preconditions hold."""
        return {seed: o for seed, o in self.outcomes.items() if not o.failed}

    @property
    def values(self) -> dict[int, float]:
        """Seed -> value: of those that are testable; of all, where none is."""
        return {seed: o.value for seed, o in (self.testable or self.outcomes).items()}

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values.values() if math.isfinite(value)]

    @property
    def mean(self) -> float:
        return mean_and_std(self.finite)[0]

    @property
    def std(self) -> float:
        """Unbiased, over the seeds; NaN of one seed."""
        return mean_and_std(self.finite)[1]

    @property
    def end(self) -> float:
        """What the metric ends at; NaN where the criterion is on no end."""
        return mean_and_std([o.end for o in (self.testable or self.outcomes).values()])[0]

    @property
    def random(self) -> float:
        """The same of random class means, NaN where that is not known."""
        return mean_and_std([o.random for o in self.outcomes.values()])[0]

    @property
    def kind(self) -> str:
        """One of the four verdicts. A criterion holds if it does for every testable seed."""
        if not self.outcomes:
            return NOT_MEASURED
        if not self.testable:
            return NOT_TESTABLE
        return HOLDS if self.met == len(self.testable) else FAILS

    @property
    def met(self) -> int:
        """For how many testable seeds the criterion holds."""
        return sum(keeps(self.criterion.bound, o.value) for o in self.testable.values())

    @property
    def verdict(self) -> str:
        """The kind, with the number of seeds where they differ."""
        some = self.kind == FAILS and self.met
        return self.kind + (f" ({self.met} of {len(self.testable)} seeds)" if some else "")

    @property
    def reasons(self) -> list[str]:
        """The preconditions that do not hold, with the mean of their values over the seeds for
        which they do not; and where these are not all, which they are.
        """
        values: dict[Precondition, dict[int, float]] = {}
        for seed, outcome in self.outcomes.items():
            for precondition, value in outcome.failed:
                values.setdefault(precondition, {})[seed] = value
        return [
            (f"{seeds_in_words(of_need)}: " if len(of_need) < len(self.outcomes) else "")
            + f"{need.text} {mean_and_std(list(of_need.values()))[0]:.4g}, needs {need.bound}"
            for need, of_need in values.items()
        ]

    @property
    def failed(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)


def judge(runs: list[Run], claims: Iterable[int] = CLAIMS) -> list[Finding]:
    """Every criterion of the claims, on every setting of the runs.

    Runs of one mode are seeds of one another as in figures (`group_runs`); where a mode has several
    groups in a setting, each has findings of its own.

    Raises:
        InputError: two runs differ in nothing that is compared, not even in the seed.
    """
    by_setting: dict[Setting, list[Group]] = {run.setting: [] for run in runs}
    for group in group_runs(runs):
        by_setting[group.runs[0].setting].append(group)
    for setting, groups in by_setting.items():
        tell_not_compared(setting, groups)
    return [
        finding
        for criterion in CRITERIA
        if criterion.claim in claims
        for setting, groups in by_setting.items()
        for finding in findings_of(criterion, setting, groups)
    ]


def findings_of(criterion: Criterion, setting: Setting, groups: list[Group]) -> list[Finding]:
    """One for each choice of a group per mode of the criterion; an empty one where there is none.

    Groups whose numbers cannot be compared are not chosen together.
    """
    by_mode = [[g for g in groups if g.mode == mode] for mode in MODES if mode in criterion.modes]
    findings = []
    for chosen in product(*by_mode):
        if not all(go_together(*pair, groups) for pair in combinations(chosen, 2)):
            continue
        outcomes = {seed: criterion.outcome(study) for seed, study in studies(chosen)}
        known = {seed: outcome for seed, outcome in outcomes.items() if outcome.known}
        findings.append(Finding(criterion, setting, known, differences_in_words(chosen)))
    return findings or [Finding(criterion, setting, {})]


def studies(groups: Iterable[Group]) -> list[tuple[int, Study]]:
    """Seeds, ascending, each with the runs of the groups that have it."""
    by_seed: dict[int, dict[str, Run]] = {}
    for group in groups:
        for run in group.runs:
            by_seed.setdefault(run.seed, {})[group.mode] = run
    return [(seed, Study(by_seed[seed])) for seed in sorted(by_seed)]


def differences_in_words(groups: Sequence[Group]) -> str:
    """What sets the groups apart from others of their mode and setting."""
    if len(groups) == 1:
        return in_words(groups[0].differs)
    return "; ".join(f"{MODES[g.mode].label}: {in_words(g.differs)}" for g in groups if g.differs)


def tell_not_compared(setting: Setting, groups: list[Group]) -> None:
    """A line for each two modes that were measured in other ways, or one that was in several."""
    for group in groups:
        rows = [row for run in group.runs for row in run.own_records if row.split == "train"]
        if not measured_alike(rows):
            ways = sorted({f"n = {row.images}, {row.precision or 'untold'}" for row in rows})
            logger.info(
                f"{setting}: {MODES[group.mode].label}: training images were measured in several "
                f"ways, which are not compared: {'; '.join(ways)}"
            )
    for group, other in combinations(groups, 2):
        names = measured_otherwise(group, other) if group.mode != other.mode else []
        if names:
            modes = f"{MODES[group.mode].label} and {MODES[other.mode].label}"
            logger.info(f"{setting}: {modes} are not compared, they differ in {', '.join(names)}")


def measured_otherwise(group: Group, other: Group) -> list[str]:
    """What was measured, and how, in other ways: images, and the sweep's attack and noise.

    Runs of two modes may have been trained in different ways, but not measured.
    """
    own_step = step_name(group.setting.epsilon)
    return [
        name
        for name in sorted(group.flags.keys() & other.flags.keys())
        if name.endswith(OF_SWEEP) or name in (own_step, *DIGESTS)
        if group.flags[name] != other.flags[name]
    ]


def go_together(group: Group, other: Group, groups: list[Group]) -> bool:
    """Whether groups of two modes are compared: measured alike, and trained alike where they can.

    A flag that sets a group apart from others of its mode has to be that of the other mode's
    group, where this one, or one of the others, has the same value there.
    """
    if measured_otherwise(group, other):
        return False
    rivals = [[g for g in groups if g.mode == one.mode] for one in (group, other)]
    for name in group.flags.keys() & other.flags.keys():
        values = [{g.flags[name] for g in alike if name in g.flags} for alike in rivals]
        varies = max(map(len, values)) > 1
        if varies and values[0] & values[1] and group.flags[name] != other.flags[name]:
            return False
    return True
