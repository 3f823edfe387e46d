"""The paper's seven claims, and what runs say of each.

Source: Su et al. 2024. What a claim is judged by stands in criteria.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from robust_nc.reports.criteria import CRITERIA, Criterion, Study
from robust_nc.reports.runs import Run, Setting
from robust_nc.results.tables import mean_and_std

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


def judge(runs: list[Run], claims: Iterable[int] = CLAIMS) -> list[Finding]:
    """Every criterion of the claims, on every setting of the runs."""
    studies: dict[Setting, dict[int, Study]] = {run.setting: {} for run in runs}
    for run in sorted(runs, key=lambda run: run.seed):
        studies[run.setting].setdefault(run.seed, Study())[run.mode] = run
    findings = []
    for criterion in [c for c in CRITERIA if c.claim in claims]:
        for setting, by_seed in studies.items():
            values = {seed: criterion.measure(study) for seed, study in by_seed.items()}
            measured = {seed: value for seed, value in values.items() if not math.isnan(value)}
            findings.append(Finding(criterion, setting, measured))
    return findings
