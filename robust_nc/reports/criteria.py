"""The paper's claims as criteria: a number of the runs of one setting and seed, and its bound.

Source: Su et al. 2024. The bounds are ours. Those that several criteria share, and those of the
preconditions, are in bounds.py; the others stand here, and those of claim 5 in ways_to_train.py.
docs/criteria.md tells when each was set, what has changed since and why, and what the criteria that
were dropped had said. A criterion that fails is reported as such, and one whose precondition fails
as not testable.
"""

from robust_nc.reports.bounds import (
    ALIGNED,
    AS_NEAR,
    DESTROYED,
    EARLY_KEPT,
    FELL,
    KEPT,
    MEANS_AGREE,
    TERMINAL,
)
from robust_nc.reports.criterion import Criterion
from robust_nc.reports.preconditions import (
    ADVERSARIAL,
    NAMES,
    RADII,
    TARGETED_SUCCEEDS,
    at_is_robust,
    fit_is_known,
    fits,
    pgd_succeeds,
)
from robust_nc.reports.random_means import of_random_means
from robust_nc.reports.readings import (
    AT,
    AT_FROZEN,
    BATCH,
    FROZEN,
    MART,
    ST,
    ST_FROZEN,
    Value,
    centre_robustness,
    early_advantage,
    early_blocks,
    early_centres,
    fall,
    last,
    last_block,
    leapt_to_target,
    less,
    ratio,
    terminal_phase,
)
from robust_nc.reports.ways_to_train import against_at, control
from robust_nc.training.modes import MODES


def collapse_of_standard_training() -> list[Criterion]:
    """Claim 1: ST collapses on its training images."""
    falls = [
        Criterion(
            1,
            f"ST: {NAMES[metric]}, first epoch over last",
            fall(ST, "clean", metric),
            bound,
            (fits(ST),),
            main=metric != "nc3",
        )
        for metric, bound in FELL.items()
    ]
    return [*falls, *terminal(1, ST), means_agree(1, ST)]


def terminal(claim: int, mode: str) -> list[Criterion]:
    """What falls on after the training images are fitted; of AT the table has NC1 alone."""
    return [
        Criterion(
            claim,
            f"{MODES[mode].label}: {NAMES[metric]}, last epoch over the first that fits",
            terminal_phase(mode, metric),
            TERMINAL,
            (fits(mode), fit_is_known(mode)),
            end=last(mode, "clean", metric),
            random=of_random_means(mode, metric),
            later=True,
            main=mode == ST or metric == "nc1",
        )
        for metric in ("nc1", "nc2_norm_activation", "nc2_angle_activation", "nc3")
    ]


def means_agree(claim: int, mode: str) -> Criterion:
    """Class means and network put the same images into the same classes."""
    return Criterion(
        claim,
        f"{MODES[mode].label}: NC4",
        last(mode, "clean", "nc4"),
        MEANS_AGREE,
        (fits(mode),),
        later=True,
    )


def perturbed_over_clean(input: str, metric: str) -> Value:
    """A metric of ST on perturbed training images over that of clean ones."""
    return ratio(last(ST, input, metric), last(ST, "clean", metric))


def pgd_destroys() -> list[Criterion]:
    """Claim 2: PGD destroys the simplex of ST."""
    needs = (fits(ST), pgd_succeeds("train"))
    return [
        Criterion(2, "ST: accuracy under PGD", last(ST, "pgd", "accuracy"), "<= 0.1", needs),
        *(
            Criterion(
                2,
                f"ST: {NAMES[metric]} under PGD over clean {NAMES[metric]}",
                perturbed_over_clean("pgd", metric),
                bound,
                needs,
                later=metric != "nc1",
                main=metric == "nc1",
            )
            for metric, bound in DESTROYED.items()
        ),
        Criterion(
            2,
            "ST: angle between clean class means and those under PGD",
            last(ST, "pgd", "clean_angle"),
            ">= 1",
            needs,
        ),
        Criterion(
            2,
            "ST: NC4 under PGD",
            last(ST, "pgd", "nc4"),
            ">= 0.5",
            needs,
            later=True,
            main=False,
        ),
    ]


def pgd_leaps() -> list[Criterion]:
    """Claim 2: images under PGD lie at the vertices of other classes."""
    needs = (fits(ST), pgd_succeeds("train"))
    return [
        Criterion(
            2,
            "ST: PGD images nearest to the clean class mean of the class that the network says",
            last(ST, "pgd", "vertex_agreement"),
            ">= 0.9",
            needs,
            later=True,
        ),
        Criterion(
            2,
            "ST: distance of PGD images to that mean over the mean distance of class means",
            last(ST, "pgd", "vertex_distance"),
            "<= 0.5",
            needs,
            later=True,
        ),
        Criterion(
            2,
            "ST: the same distance over that of clean images",
            perturbed_over_clean("pgd", "vertex_distance"),
            AS_NEAR,
            needs,
            later=True,
        ),
    ]


def noise_changes_little() -> Criterion:
    """Claim 2: noise leaves the simplex as it is."""
    return Criterion(
        2,
        "ST: NC1 under Gaussian noise over clean NC1",
        perturbed_over_clean("gaussian", "nc1"),
        "<= 1.5",
        (fits(ST), pgd_succeeds("train")),
    )


def targeted_leap() -> list[Criterion]:
    """Claim 3: targeted images leap to the vertex of their target."""
    needs = (fits(ST), TARGETED_SUCCEEDS)
    return [
        Criterion(
            3,
            "ST: NC1 under PGD over that of the targeted attack (target labels)",
            ratio(last(ST, "pgd", "nc1"), last(ST, "targeted", "nc1")),
            ">= 5",
            needs,
        ),
        *(
            Criterion(
                3,
                f"ST: {NAMES[metric]} of targeted images over clean {NAMES[metric]}",
                perturbed_over_clean("targeted", metric),
                bound,
                needs,
                later=True,
            )
            for metric, bound in KEPT.items()
        ),
        Criterion(
            3,
            "ST: NC4 of targeted images",
            last(ST, "targeted", "nc4"),
            "<= 0.5",
            needs,
            later=True,
        ),
        Criterion(
            3,
            "ST: angle between targeted class means and the clean ones of their targets",
            last(ST, "targeted", "clean_angle"),
            "<= 0.8",
            needs,
        ),
        Criterion(
            3,
            "ST, targeted training images: share nearest to the target's clean class mean, less "
            "the share nearest to their own",
            leapt_to_target(ST),
            ">= 0.25",
            needs,
            later=True,
        ),
    ]


def collapse_of_adversarial_training() -> list[Criterion]:
    """Claim 4: AT collapses on clean and perturbed images, in aligned simplices."""
    needs = (fits(AT),)
    images_of = {"clean": "clean images", "seen": ADVERSARIAL, "pgd": "PGD on the checkpoint"}
    angle = last(AT, "pgd", "clean_angle")
    return [
        Criterion(
            4, f"AT: accuracy on {ADVERSARIAL}", last(AT, "seen", "accuracy"), ">= 0.9", needs
        ),
        *terminal(4, AT),
        *(
            Criterion(
                4,
                f"AT: {NAMES[metric]} of {images}, first epoch over last",
                fall(AT, input, metric),
                FELL[metric],
                needs,
                later=metric != "nc1",
                main=metric == "nc1" and input != "pgd",
            )
            for metric in FELL
            for input, images in images_of.items()
            if metric == "nc1" or input != "pgd"
        ),
        means_agree(4, AT),
        Criterion(
            4,
            "AT: angle between clean class means and those under PGD on the checkpoint",
            angle,
            ALIGNED,
            needs,
        ),
        Criterion(
            4,
            "AT: the same angle over ST's",
            ratio(angle, last(ST, "pgd", "clean_angle")),
            "<= 0.5",
            (*needs, fits(ST), pgd_succeeds("train")),
            later=True,
        ),
    ]


def early_layers() -> list[Criterion]:
    """Claim 6: early layers keep reliable simplices on perturbed images."""
    on_train, on_test = (fits(ST), pgd_succeeds("train")), (fits(ST), pgd_succeeds("test"))
    early = early_blocks(ST, "pgd", "centre_accuracy")
    return [
        Criterion(
            6,
            "ST, PGD, training images: centre accuracy of the first half of the blocks, less the "
            "last one's",
            early_advantage(ST, "train"),
            ">= 0.1",
            on_train,
        ),
        Criterion(
            6, "ST, PGD, test images: the same", early_advantage(ST, "test"), ">= 0.05", on_test
        ),
        Criterion(
            6,
            "ST, PGD: angle to the clean class means in the last block, less that of the first "
            "half",
            less(last_block(ST, "pgd", "clean_angle"), early_blocks(ST, "pgd", "clean_angle")),
            ">= 0.3",
            on_train,
        ),
        Criterion(
            6,
            "AT, PGD: the same angle in the last block",
            last_block(AT, "pgd", "clean_angle"),
            ALIGNED,
            (fits(AT),),
            later=True,  # with this bound
        ),
        Criterion(
            6,
            "ST, PGD, training images: centre accuracy of the first half of the blocks over the "
            "clean one",
            ratio(early, early_blocks(ST, "clean", "centre_accuracy")),
            EARLY_KEPT,
            on_train,
            later=True,
        ),
        Criterion(
            6,
            "ST, test images: the same of early blocks that are attacked themselves",
            ratio(early_centres(ST, "adaptive"), early_centres(ST, "clean")),
            EARLY_KEPT,
            on_test,
            later=True,
        ),
    ]


def nearest_centres() -> list[Criterion]:
    """Claim 7: nearest centres are robust with AT, and are not with ST."""
    return [
        criterion
        for share, where in ((1.0, ""), (0.5, f" of {RADII[0.5]}"))
        for criterion in (
            Criterion(
                7,
                f"ST: nearest-centre test accuracy under the attack{where} on it",
                centre_robustness(ST, share),
                "<= 0.1",
                (fits(ST),),
                later=share < 1,
            ),
            Criterion(
                7,
                f"AT: the same{where}, less ST's",
                less(centre_robustness(AT, share), centre_robustness(ST, share)),
                ">= 0.1",
                (fits(ST), at_is_robust(share)),
                later=share < 1,
            ),
        )
    ]


CRITERIA = [
    *collapse_of_standard_training(),
    *pgd_destroys(),
    *pgd_leaps(),
    noise_changes_little(),
    *targeted_leap(),
    *collapse_of_adversarial_training(),
    *against_at(FROZEN),
    *against_at(BATCH),
    *against_at(MART),
    *control("TRADES", FROZEN, BATCH),
    *control("AT", AT_FROZEN, AT),
    *control("ST", ST_FROZEN, ST),
    *early_layers(),
    *nearest_centres(),
]
