"""What a criterion is: a number of one setting and seed, its bound, its preconditions."""

import math
from dataclasses import dataclass

from robust_nc.reports.bounds import keeps
from robust_nc.reports.readings import NotRun, Study, Value


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
    end, random: what the metric ends at, and its value of random class means; NaN where the
        criterion is on no end.
    failed: the preconditions that do not hold, each with its value.
    """

    value: float = math.nan
    end: float = math.nan
    random: float = math.nan
    failed: tuple[tuple[Precondition, float], ...] = ()

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Criterion:
    """One measurable statement.

    value: from a study to a number, NaN where it was not measured.
    bound: "<= 0.1" or ">= 10", what the number must satisfy.
    needs: its preconditions.
    end, random: what the metric ends at and what it is of random class means, which is told beside
        the number and is not judged.
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
    end: Value | None = None
    random: Value | None = None
    part: str = ""
    later: bool = False
    main: bool = True

    @property
    def name(self) -> str:
        """The text without the part."""
        return self.text.removeprefix(f"{self.part}: ")

    @property
    def modes(self) -> set[str]:
        """The modes whose runs it is a number of."""
        values = (self.value, self.end, self.random, *(need.value for need in self.needs))
        return {mode for value in values if value for mode in value.modes}

    @property
    def control(self) -> bool:
        """Whether it is on what the claim may be due to, and not on the claim itself."""
        return self.part.startswith("control")

    def outcome(self, study: Study) -> Outcome:
        """What the study says; nothing where a run or a measurement is missing."""
        try:
            needed = [(need, need.value(study)) for need in self.needs]
            value, end, random = (
                read(study) if read else math.nan for read in (self.value, self.end, self.random)
            )
        except NotRun:
            return Outcome()
        failed = tuple(
            (need, of_need)
            for need, of_need in needed
            if not math.isnan(of_need) and not keeps(need.bound, of_need)
        )
        if not failed and any(math.isnan(of_need) for _, of_need in needed):
            return Outcome()
        return Outcome(value, end, random, failed)
