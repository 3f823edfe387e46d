"""The scale of the metrics: what they are of random class means, in as many dimensions.

Directions drawn at random are nearly orthogonal in many dimensions, so that NC2 of class means that
have collapsed nowhere is small there already.
"""

import math

from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.reports.readings import Formula, number_of_classes
from robust_nc.reports.runs import Run
from robust_nc.results.tables import markdown

# The dimension of the features of all of ARCHITECTURES.
DIMENSION = 512
# Classes -> metric, of independent standard normal class means and classifiers in DIMENSION
# dimensions. NC2 is the mean of 100,000 draws (4,000 of 100 classes) with a standard error of less
# than 0.00004; NC3 is 2 since the mean inner product of the two is 0; the
# nearest of random class means is not the predicted class with probability 1 - 1/C.
RANDOM_MEANS = {
    10: {"nc2_norm_activation": 0.0302, "nc2_angle_activation": 0.0348, "nc3": 2.0, "nc4": 0.9},
    100: {"nc2_norm_activation": 0.0312, "nc2_angle_activation": 0.0353, "nc3": 2.0, "nc4": 0.99},
}


def random_nc1(images: int, classes: int, dimension: int = DIMENSION) -> float:
    """NC1 of features that have nothing to do with the labels: N (C - 1) / (D - C).

    Of N independent standard normal features Sigma_W is the identity, and N Sigma_B is a Wishart
    matrix of C - 1 dimensions and D degrees of freedom; the mean trace of the inverse of that is
    (C - 1) / (D - C). Real features spread over fewer dimensions, where it is larger.
    """
    return images * (classes - 1) / (dimension - classes)


def of_random_means(mode: str, metric: str) -> Formula:
    """What a metric of clean training images would be of random class means.

    NaN of networks and numbers of classes that are not known here.
    """

    def compute(run: Run) -> float:
        classes = number_of_classes(run)
        if run.setting.model not in ARCHITECTURES or classes not in RANDOM_MEANS:
            return math.nan
        if metric != "nc1":
            return RANDOM_MEANS[int(classes)][metric]
        images = [row.images for row in run.of_epoch(run.last_epoch, "clean") if row.images]
        return random_nc1(images[0], int(classes)) if images else math.nan

    return Formula((mode,), compute)


def scale_in_words(runs: list[Run]) -> str:
    """scale.md: what the metrics are when all has collapsed, and of random class means."""
    images = {row.images for run in runs for row in run.records if row.split == "train"} - {0}
    of_nc1 = [f"{random_nc1(number, 10):.3g} ({number:,} images)" for number in sorted(images)]
    random = RANDOM_MEANS[10]
    rows = [
        ("NC1 = tr(Σ_W Σ_B⁺)", "scatter of the features within classes over between", "0"),
        ("NC2 norm", "deviation over mean of the norms of the class means", "0"),
        ("NC2 angle", "mean distance of their cosines to those of a simplex", "0"),
        ("NC3", "squared distance of normalised classifier and class means", "0"),
        ("NC4", "share of images where nearest class mean and network differ", "0"),
        ("angle to the clean class means", "radians; of perturbed class means", "0"),
    ]
    values = (
        ", ".join(of_nc1),
        *(f"{random[f]:.3g}" for f in ("nc2_norm_activation", "nc2_angle_activation", "nc3")),
        f"{random['nc4']:.1f}",
        "1.57",
    )
    lines = [(*row, value) for row, value in zip(rows, values, strict=True)]
    heads = ("metric", "what it is", "collapsed", f"random class means, {DIMENSION} dimensions")
    return markdown(heads, lines, heads)
