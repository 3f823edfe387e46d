"""The type of row of history.csv: what an epoch of training saw."""

import math
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class EpochSummary:
    """A row of history.csv. NaN where a training mode has no such quantity.

    A field that names what it is `over` is the mean of what the epoch's steps saw, over its images
    or its steps. `train_robust_loss` is the objective that was stepped on, of modes with an
    adversary; test_* are those of the epoch's network in eval mode; `lr` is the rate of the last
    step; `grad_norm` is the l_2 norm of the gradient that was stepped on; `peak_memory` is in GiB,
    so far.
    """

    epoch: int
    lr: float
    train_loss: float = field(metadata={"over": "images"})
    train_acc: float = field(metadata={"over": "images"})
    train_robust_loss: float = field(metadata={"over": "images"})
    train_robust_acc: float = field(metadata={"over": "images"})
    test_loss: float
    test_acc: float
    seconds: float
    grad_norm: float = field(default=math.nan, metadata={"over": "steps"})
    peak_memory: float = math.nan

    @property
    def key(self) -> tuple:
        """What no two rows share, and the order of the rows."""
        return (self.epoch,)


STEP_MEANS = {f.name: f.metadata["over"] for f in fields(EpochSummary) if "over" in f.metadata}
