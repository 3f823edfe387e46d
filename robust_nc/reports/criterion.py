"""What a criterion is: a number of one setting and seed, its bound, its preconditions."""

import math
from dataclasses import dataclass

from robust_nc.reports.readings import NotRun, Study, Value


def keeps(bound: str, value: float, unit: float = 1.0) -> bool:
    """Whether a number satisfies a bound like "<= 0.1", which is in multiples of the unit."""
    sign, number = bound.split()
    limit = float(number) * unit
    return value <= limit if sign == "<=" else value >= limit


@dataclass(frozen=True)
class Precondition:
    """What must be so before a criterion can be tested, as that the network fits its images."""

    text: str
    value: Value
    bound: str


@dataclass(frozen=True)
class Outcome:
    """What one seed says of a criterion.

    value: NaN where it was not measured, infinite where there is none because a precondition fails.
    scale: the value of random class means, NaN where the criterion has no such scale.
    failed: the preconditions that do not hold, each with its value.
    """

    value: float = math.nan
    scale: float = math.nan
    failed: tuple[tuple[Precondition, float], ...] = ()

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Criterion:
    """One measurable statement.

    value: from a study to a number, NaN where it was not measured.
    bound: "<= 0.1" or ">= 10", what the number must satisfy; with `scale` in multiples of that.
    needs: its preconditions.
    scale: the value of random class means, which the number stands beside.
    part: what of a claim it is on, where that has several parts ("TRADES (batch)"); `text` begins
        with it.
    later: whether it was added when runs of the small scale had been looked at, which verdicts say.
    main: whether it is in the claim's table of a few lines.
    """

    claim: int
    text: str
    value: Value
    bound: str
    needs: tuple[Precondition, ...] = ()
    scale: Value | None = None
    part: str = ""
    later: bool = False
    main: bool = True

    @property
    def name(self) -> str:
        """The text without the part."""
        return self.text.removeprefix(f"{self.part}: ")

    @property
    def control(self) -> bool:
        """Whether it is on what the claim may be due to, and not on the claim itself."""
        return self.part.startswith("control")

    @property
    def bound_in_words(self) -> str:
        return self.bound + (" of random" if self.scale else "")

    def holds(self, value: float, scale: float = math.nan) -> bool:
        return keeps(self.bound, value, scale if self.scale else 1.0)

    def outcome(self, study: Study) -> Outcome:
        """What the study says; nothing where a run or a measurement is missing."""
        try:
            needed = [(need, need.value(study)) for need in self.needs]
            value = self.value(study)
            scale = self.scale(study) if self.scale else math.nan
        except NotRun:
            return Outcome()
        failed = tuple(
            (need, of_need)
            for need, of_need in needed
            if not math.isnan(of_need) and not keeps(need.bound, of_need)
        )
        if failed:
            return Outcome(value, scale, failed)
        known = [of_need for _, of_need in needed] + ([scale] if self.scale else [])
        return Outcome() if any(map(math.isnan, known)) else Outcome(value, scale)
