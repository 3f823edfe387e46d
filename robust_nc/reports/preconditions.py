"""What must be so before a criterion can be tested, and words that several criteria share."""

from robust_nc.reports import bounds
from robust_nc.reports.criterion import Precondition
from robust_nc.reports.readings import AT, ST, gap_before_fit, last, late_accuracy, margin, ratio
from robust_nc.results.rows import SPLIT_LABELS
from robust_nc.training.modes import MODES

NAMES = {
    "nc1": "NC1",
    "nc2_norm_activation": "NC2 norm",
    "nc2_angle_activation": "NC2 angle",
    "nc3": "NC3",
    "nc4": "NC4",
}
# Shares of a run's own radius: of 8/255 these are 2/255 and 4/255.
RADII = {0.25: "a quarter of epsilon", 0.5: "half of epsilon"}
ADVERSARIAL = "training-time adversarial images"


def fits(mode: str) -> Precondition:
    """The network fits its clean training images."""
    return Precondition(
        f"{MODES[mode].label}: training accuracy, best of the last {bounds.LAST_EPOCHS} epochs",
        late_accuracy(mode),
        f">= {bounds.FITTED}",
    )


def fit_is_known(mode: str) -> Precondition:
    """It was measured when the training images are fitted, and the run goes on after it."""
    return Precondition(
        f"{MODES[mode].label}: epochs among which the first fit lies, over those after it",
        gap_before_fit(mode),
        bounds.FIT_IS_KNOWN,
    )


def pgd_succeeds(split: str) -> Precondition:
    """PGD succeeds on at least half of the images that ST classifies."""
    return Precondition(
        f"ST: accuracy under PGD over the clean one, {SPLIT_LABELS[split]} images",
        ratio(last(ST, "pgd", "accuracy", split), last(ST, "clean", "accuracy", split)),
        bounds.PGD_SUCCEEDS,
    )


def at_is_robust(share: float = 1.0) -> Precondition:
    """AT is more robust than ST and than chance, so that it can be compared with."""
    where = f" of {RADII[share]}" if share < 1 else ""
    return Precondition(
        f"AT: test accuracy under PGD{where}, less the larger of ST's and of chance",
        margin(AT, share),
        bounds.AT_IS_ROBUST,
    )


TARGETED_SUCCEEDS = Precondition(
    "ST: success of the targeted attack",
    last(ST, "targeted", "accuracy"),
    bounds.TARGETED_SUCCEEDS,
)
