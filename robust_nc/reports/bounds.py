"""Bounds that several criteria share, and those of preconditions: which claims each judges.

A quantity has the same bound wherever it is asked for. A bound that one criterion alone has stands
with it, in criteria.py or ways_to_train.py. All are ours: docs/criteria.md.
"""

# Claims 1 and 4: a metric at the first epoch over the last.
FELL = {"nc1": ">= 10", "nc2_angle_activation": ">= 2", "nc3": ">= 2"}
# Claim 5: the same, of a network that is not to collapse as one of ST or AT does.
FELL_LITTLE = "<= 10"
# Claims 1 and 4: a metric at the last epoch over the first that fits the training images.
TERMINAL = "<= 0.5"
# Claims 1 and 4: NC4, the share of images where class means and network do not agree.
MEANS_AGREE = "<= 0.001"
# Claim 2: a metric under PGD over the clean one.
DESTROYED = {"nc1": ">= 10", "nc2_angle_activation": ">= 2", "nc3": ">= 2"}
# Claim 3: a metric of targeted images over the clean one.
KEPT = {"nc1": "<= 10", "nc2_norm_activation": "<= 2", "nc3": "<= 2"}
# Claim 2: how far perturbed images are from the vertex that they leap to, over clean ones.
AS_NEAR = "<= 2"
# Claims 4 and 6: the angle of AT's class means under PGD to the clean ones, in radians.
ALIGNED = "<= 0.2"
# Claim 5: NC1 over that of another way to train.
LESS_COLLAPSED = ">= 2"
# Claim 5: test accuracy under PGD, less that of another way to train.
AS_ROBUST = ">= -0.05"
# Claim 6: centre accuracy of early blocks under attack over the clean one.
EARLY_KEPT = ">= 0.5"

# Preconditions. All claims: the training accuracy from which on a network fits its images, and of
# how many of its last epochs one has to reach it.
FITTED = 0.999
LAST_EPOCHS = 5
# Claims 1 and 4: epochs between the measurement before the first fit and it, over those after it.
FIT_IS_KNOWN = "<= 0.2"
# Claims 2, 4 and 6: ST's accuracy under PGD over the clean one.
PGD_SUCCEEDS = "<= 0.5"
# Claim 3: the success of the targeted attack on ST.
TARGETED_SUCCEEDS = ">= 0.5"
# Claims 5 and 7: AT's test accuracy under PGD, less the larger of ST's and of chance.
AT_IS_ROBUST = ">= 0.05"
# Claim 5: the larger clean training loss of two networks over that of chance.
LOW_LOSS = "<= 0.1"
# Claim 5: how far two losses that are to be equal are apart, as a share of the larger one.
EQUAL_LOSS = "<= 0.1"


def keeps(bound: str, value: float) -> bool:
    """Whether a number satisfies a bound like "<= 0.1"."""
    sign, number = bound.split()
    return value <= float(number) if sign == "<=" else value >= float(number)
