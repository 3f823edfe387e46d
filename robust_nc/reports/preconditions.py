"""Bounds that several criteria share, and what must be so before a criterion can be tested."""

from robust_nc.reports.criterion import Precondition
from robust_nc.reports.readings import AT, FITTED, ST, epochs_after_fit, last, margin, ratio
from robust_nc.training.modes import MODES

# A quantity has the same bound wherever it is asked for.
FELL = {"nc1": ">= 10", "nc2_angle_activation": ">= 2", "nc3": ">= 2"}  # first epoch over last
DESTROYED = {"nc1": ">= 10", "nc2_angle_activation": ">= 2", "nc3": ">= 2"}  # perturbed over clean
KEPT = {"nc1": "<= 10", "nc2_norm_activation": "<= 2", "nc3": "<= 2"}
MEANS_AGREE = "<= 0.001"  # NC4, the share of images where class means and network do not
ALIGNED = "<= 0.2"  # angle of AT's class means under PGD to the clean ones
LESS_COLLAPSED = ">= 2"  # NC1 over that of another way to train
AS_ROBUST = ">= -0.05"  # test accuracy under PGD, less that of another way to train
TERMINAL = "<= 0.5"  # last epoch over the first that fits the training images
NAMES = {
    "nc1": "NC1",
    "nc2_norm_activation": "NC2 norm",
    "nc2_angle_activation": "NC2 angle",
    "nc3": "NC3",
    "nc4": "NC4",
}
# Shares of a run's own radius: of 8/255 these are 2/255 and 4/255.
RADII = {0.25: "a quarter of epsilon", 0.5: "half of epsilon"}
IMAGES = {"train": "training", "test": "test"}
ADVERSARIAL = "training-time adversarial images"


def fits(mode: str) -> Precondition:
    """The network fits its clean training images."""
    return Precondition(
        f"{MODES[mode].label}: training accuracy",
        last(mode, "clean", "accuracy"),
        f">= {FITTED}",
    )


def goes_on_after_fit(mode: str) -> Precondition:
    """A later epoch was measured than the first one at which the training images are fitted."""
    return Precondition(
        f"{MODES[mode].label}: epochs measured after the first fit", epochs_after_fit(mode), ">= 1"
    )


def pgd_succeeds(split: str) -> Precondition:
    """PGD succeeds on at least half of the images that ST classifies."""
    return Precondition(
        f"ST: accuracy under PGD over the clean one, {IMAGES[split]} images",
        ratio(last(ST, "pgd", "accuracy", split), last(ST, "clean", "accuracy", split)),
        "<= 0.5",
    )


def at_is_robust(share: float = 1.0) -> Precondition:
    """AT is more robust than ST and than chance, so that it can be compared with."""
    where = f" of {RADII[share]}" if share < 1 else ""
    return Precondition(
        f"AT: test accuracy under PGD{where}, less the larger of ST's and of chance",
        margin(AT, share),
        ">= 0.05",
    )


TARGETED_SUCCEEDS = Precondition(
    "ST: success of the targeted attack", last(ST, "targeted", "accuracy"), ">= 0.5"
)
