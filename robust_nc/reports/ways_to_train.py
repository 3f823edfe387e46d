"""The criteria of claim 5: one way to train beside another, in robustness and in collapse."""

from dataclasses import replace

from robust_nc.reports.bounds import (
    AS_ROBUST,
    EQUAL_LOSS,
    FELL_LITTLE,
    LESS_COLLAPSED,
    LOW_LOSS,
)
from robust_nc.reports.criterion import Criterion, Precondition
from robust_nc.reports.preconditions import (
    ADVERSARIAL,
    RADII,
    at_is_robust,
    fits,
)
from robust_nc.reports.readings import (
    AT,
    MART,
    fall,
    gap_of_losses,
    last,
    late_accuracy_or_one,
    less,
    loss_over_chance,
    nc1_at_equal_loss,
    ratio,
    robustness,
)
from robust_nc.training.modes import MODES


def name_of(mode: str) -> str:
    return MODES[mode].label + (", an addition" if mode == MART else "")


def compared(mode: str, other: str, part: str, whose: str) -> list[Criterion]:
    """Claim 5: the robustness and NC1 of one way to train beside another; `whose` the other is."""
    fit = (fits(mode), fits(other))
    low_loss = Precondition(
        "larger clean training loss of the two over that of chance",
        loss_over_chance(mode, other),
        LOW_LOSS,
    )
    inputs = {"clean": "clean training images"}
    robust = []
    if MODES[mode].adversary:
        inputs["seen"] = ADVERSARIAL
        robust = [
            Criterion(
                5,
                f"{part}: test accuracy under PGD of {radius}, less {whose}",
                less(robustness(mode, share), robustness(other, share)),
                AS_ROBUST,
                (at_is_robust(share),),
                part=part,
                later=True,
            )
            for share, radius in RADII.items()
        ]
    return [
        *robust,
        Criterion(
            5,
            f"{part}: NC1 of clean training images over {whose}, last epoch of both",
            ratio(last(mode, "clean", "nc1"), last(other, "clean", "nc1")),
            LESS_COLLAPSED,
            fit,
            part=part,
            later=True,  # with this bound
        ),
        *(
            Criterion(
                5,
                f"{part}: the same at equal loss on {images}",
                nc1_at_equal_loss(mode, other, input),
                LESS_COLLAPSED,
                (
                    low_loss,
                    Precondition(
                        f"gap of the two losses on {images}, as a share",
                        gap_of_losses(mode, other, input),
                        EQUAL_LOSS,
                    ),
                ),
                part=part,
                later=True,
            )
            for input, images in inputs.items()
        ),
    ]


def against_at(mode: str) -> list[Criterion]:
    """Claim 5 for one way to train: as robust as AT, and less collapsed."""
    part = name_of(mode)
    return [
        *compared(mode, AT, part, "AT's"),
        *(
            Criterion(
                5,
                f"{part}: NC1 of {images} over AT's, last epoch of both",
                ratio(last(mode, input, "nc1"), last(AT, input, "nc1")),
                LESS_COLLAPSED,
                (fits(mode), fits(AT)),
                part=part,
                later=True,  # with this bound
                main=input == "pgd",
            )
            for input, images in (("seen", ADVERSARIAL), ("pgd", "PGD on the checkpoint"))
        ),
        Criterion(
            5,
            f"{part}: NC1 of clean training images fell less than tenfold",
            fall(mode, "clean", "nc1"),
            FELL_LITTLE,
            (fitted_or_fallen(mode),),
            part=part,
        ),
    ]


def fitted_or_fallen(mode: str) -> Precondition:
    """The network fits its images, or NC1 has fallen further already, which decides."""
    return replace(fits(mode), value=late_accuracy_or_one(mode, FELL_LITTLE))


def control(name: str, mode: str, other: str) -> list[Criterion]:
    """Whether the frozen batch norm alone holds a collapse back: one way to train with both."""
    return compared(mode, other, f"control, {name}", "batch's")
