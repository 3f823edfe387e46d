"""What the rows of all tables of a run have: their table, key, and what they were measured with.

The types of row are in records.py.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

from robust_nc.data.inputs import INPUTS
from robust_nc.results.conditions import FORMER, Conditions

SPLIT_LABELS = {"train": "training", "test": "test"}  # as text calls their images
SPLITS = tuple(SPLIT_LABELS)
UNTOLD = Conditions()


class Row:
    """A row of a table of a run's results.

    file: the name of the table.
    epsilon, step_size, steps, restarts: fields of types whose rows may be of an attack; NaN and 0
        for those of all others. noise: likewise, of noise.
    """

    file: ClassVar[str]
    epoch: int
    epsilon: float = math.nan
    step_size: float = math.nan
    steps: int = 0
    restarts: int = 0
    noise: float = math.nan
    precision: str = ""
    checkpoint: str = ""

    @property
    def key(self) -> tuple:
        """What no two rows of a table share, and the order of its rows."""
        raise NotImplementedError

    @property
    def swept(self) -> bool:
        """Whether eval.py recorded it, so that eval.py --overwrite drops it."""
        return True

    @property
    def attacked(self) -> bool:
        """Whether it is of an attack, whose epsilon it then tells."""
        return False

    @property
    def by_pgd(self) -> bool:
        """Whether it is of PGD in a sweep, of which there may be several beside each other."""
        return self.swept and self.attacked

    @property
    def noisy(self) -> bool:
        """Whether it is of images with noise, whose level it then tells."""
        kind = INPUTS.get(getattr(self, "input", ""))
        return kind is not None and kind.noisy

    @property
    def perturbed_by(self) -> tuple[float, int, int, float]:
        """Step size, steps, restarts and noise, 0 where not told."""
        step_size, noise = (0.0 if math.isnan(v) else v for v in (self.step_size, self.noise))
        return float(f"{step_size:.9g}"), self.steps, self.restarts, noise

    @property
    def measured_by(self) -> tuple:
        """How it was perturbed, and the precision, that of old where not told: part of the key."""
        return *self.perturbed_by, self.precision or FORMER["precision"]

    def measured_with(self, conditions: Conditions) -> Any:
        """The row as one that was measured under these conditions."""
        return replace(self, **conditions.of_row(self))  # type: ignore[type-var]

    def of_file(self, name: str) -> Any:
        """The row with the name of its file, where the row does not tell it."""
        if self.checkpoint or not name:
            return self
        return replace(self, checkpoint=name)  # type: ignore[type-var]  # its types are dataclasses

    def as_now(self, epsilon: float, former: Conditions = UNTOLD) -> Any:
        """The row as this version writes it, of a run with that epsilon.

        Rows of versions that did not tell the epsilon are of the run's, and those that did not tell
        what else they were measured with are of the conditions of then.
        """
        row: Any = self
        if row.attacked and math.isnan(row.epsilon):
            row = replace(row, epsilon=epsilon)
        return row if row.precision or former == UNTOLD else row.measured_with(former)


def radius_of(row: Any) -> float:
    """The epsilon of a row, 0 where nothing was attacked: unlike NaN it can be compared."""
    return 0.0 if math.isnan(row.epsilon) else row.epsilon
