"""What must be so before a criterion can be tested, and words that several criteria share."""

from robust_nc.reports import bounds
from robust_nc.reports.criterion import Precondition
from robust_nc.reports.readings import AT, ST, epochs_after_fit, last, margin, ratio
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
        f"{MODES[mode].label}: training accuracy",
        last(mode, "clean", "accuracy"),
        f">= {bounds.FITTED}",
    )


def goes_on_after_fit(mode: str) -> Precondition:
    """A later epoch was measured than the first one at which the training images are fitted."""
    return Precondition(
        f"{MODES[mode].label}: epochs measured after the first fit",
        epochs_after_fit(mode),
        bounds.GOES_ON,
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
