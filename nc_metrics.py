"""Neural-collapse metrics NC1-NC4 of a set of features, and the distance between two simplices.

Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
training" (PNAS 2020), with the normalisations of Su et al., "On the Robustness of Neural Collapse
and the Neural Collapse of Robustness" (TMLR 2024). Pure functions of tensors; everything is
accumulated in float64, because collapsed features differ in their last float32 digits.

`neural_collapse` takes features that fit into memory, `StreamingCollapse` those that do not.
"""

import math
import warnings
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT32_EPS = torch.finfo(torch.float32).eps
ROUNDING = 1e-12  # class means closer than that, relative to their size, are the same in float64
COINCIDE = "the class means of the features coincide: NC1 and all that is made of them are NaN"
ALONE = "no class has two samples: NC1 and CDNV, the spread within classes, are 0 of any network"


@dataclass(frozen=True)
class NeuralCollapse:
    """The metrics of one set of N features of dimension D in C classes. No metric has a unit.

    `activation` is M = [mu_c - mu_G] (D x C), the class means mu_c less the mean over all samples;
    `classifier` is W^T (D x C). Printed, it is the metrics alone. Where all class means coincide,
    what is made of them is NaN, but for `ncc_accuracy`. Of single samples nc1 and cdnv are 0.

    nc1: tr(Sigma_W Sigma_B^+), within-class against between-class variability; 0 when collapsed.
        Papyan et al. divide by C; the published code does not, and neither does this.
    nc2_norm_activation, nc2_norm_classifier: unbiased standard deviation over mean of the column
        norms; 0 when they are equal.
    nc2_angle_activation, nc2_angle_classifier: mean |cos + 1/(C-1)| over ordered pairs of columns;
        0 for a simplex.
    nc3: || W^T/||W||_F - M/||M||_F ||_F^2; 0 when classifier and class means are dual.
    nc4: share of samples whose nearest class mean is not the class that the network predicts.
    ncc_accuracy: share of samples whose nearest class mean is their label's.

    As other papers report them, to compare with (K classes; 0 when collapsed):
    nc1_papyan: nc1 / K (Papyan et al. 2020).
    cdnv: class-distance normalised variance, the mean over pairs of classes of (Var_a + Var_b) /
        (2 ||mu_a - mu_b||^2) (Galanti, Gyorgy & Hutter 2022); classes without samples are left out,
        and it is infinite, or NaN, where two class means coincide.
    nc2_zhu: || W W^T/||W W^T||_F - (I - 1 1^T/K)/sqrt(K-1) ||_F (Zhu et al. 2021).
    nc3_zhu: || W M/||W M||_F - (I - 1 1^T/K)/sqrt(K-1) ||_F (Zhu et al. 2021).

    What they are made of, float64 on the device of the features:
    class_means: mu_c, (C, D), not centred; zero for a class without samples.
    activation_norms, classifier_norms: l_2 norms of the columns, (C,).
    activation_cosines, classifier_cosines: cosines of all pairs of columns, (C, C).
    """

    nc1: float
    nc2_norm_activation: float
    nc2_norm_classifier: float
    nc2_angle_activation: float
    nc2_angle_classifier: float
    nc3: float
    nc4: float
    ncc_accuracy: float
    nc1_papyan: float
    cdnv: float
    nc2_zhu: float
    nc3_zhu: float
    class_means: Tensor = field(repr=False)
    activation_norms: Tensor = field(repr=False)
    classifier_norms: Tensor = field(repr=False)
    activation_cosines: Tensor = field(repr=False)
    classifier_cosines: Tensor = field(repr=False)

    def __str__(self) -> str:
        """The metrics, a line each."""
        classes, dimension = self.class_means.shape
        head = f"neural collapse of {classes} classes in {dimension} dimensions"
        metrics = [part.name for part in fields(self) if part.type is float]
        return "\n".join([head, *(f"{name:<22}{getattr(self, name):.4g}" for name in metrics)])


@dataclass(frozen=True)
class LayerCollapse:
    """The metrics of one layer, which has no classifier of its own. No metric has a unit.

    nc1, nc2_norm, nc2_angle: those of NeuralCollapse, the latter two of the class means.
    ncc_accuracy: share of samples whose nearest class mean in this layer is their label's.
    ncc_agreement: share of samples where it is the class that the whole network predicts; 1 - NC4
        in the last layer, and NaN where class means coincide.
    """

    nc1: float
    nc2_norm: float
    nc2_angle: float
    ncc_accuracy: float
    ncc_agreement: float


@dataclass(frozen=True)
class SimplexDistance:
    """How far two sets of C class means are apart: l_2 distances, and angles in radians.

    distance, angle: per class (C,), each set centred by its own unweighted mean of means.
    distance_abs, angle_abs: per class (C,), not centred.
    mean_distance, mean_angle: between the two means of means.
    """

    distance: Tensor
    angle: Tensor
    distance_abs: Tensor
    angle_abs: Tensor
    mean_distance: float
    mean_angle: float


@torch.no_grad()
def neural_collapse(
    features: Tensor, labels: Tensor, logits: Tensor, classifier_weight: Tensor
) -> NeuralCollapse:
    """NC1-NC4 of the features that enter a network's last linear layer.

    Args:
        features: (N, D), any float type, finite.
        labels: (N,) int64 in [0, C). A class without samples has mean zero, as published.
        logits: (N, C); only their argmax is used.
        classifier_weight: W, (C, D).

    Raises:
        ValueError: the shapes do not fit together, there are fewer than two classes, features are
            not finite, or labels are not int64 in [0, C).

    Source: Papyan et al. 2020, section "Neural Collapse", and Su et al. 2024, section 3.
    """
    _check_shapes(features, labels, logits, classifier_weight)
    _check_labels(labels, len(classifier_weight))
    infinite = int((~features.isfinite()).any(1).sum())
    if infinite:
        raise ValueError(f"features of {infinite} of {len(features)} samples are not finite")
    features = features.double()
    classifier = classifier_weight.double().T  # (D, C)
    class_means = compute_class_means(features, labels, classifier.shape[1])  # (C, D)
    activation = (class_means - features.mean(0)).T  # M, (D, C); the mean over samples is mu_G
    # Class means differ within the column space of M alone. There, in at most C dimensions instead
    # of D, are the nearest class mean and all of Sigma_W that Sigma_B^+ sees.
    directions, singular_values = _left_singular(activation)
    projected = features @ directions  # (N, min(C, D))
    projected_means = class_means @ directions
    nearest = torch.cdist(projected, projected_means).argmin(1)
    within = projected - projected_means[labels]

    defined = _one_or_nan(singular_values, class_means, labels.bincount().max())
    activation_norms, activation_cosines = _norms_and_cosines(activation)
    classifier_norms, classifier_cosines = _norms_and_cosines(classifier)
    duality = classifier / classifier.norm() - activation / activation.norm()
    nc1 = defined * _nc1(within.square().mean(0), singular_values, class_means)
    return NeuralCollapse(
        nc1=nc1,
        nc2_norm_activation=defined * (activation_norms.std() / activation_norms.mean()).item(),
        nc2_norm_classifier=(classifier_norms.std() / classifier_norms.mean()).item(),
        nc2_angle_activation=defined * _simplex_deviation(activation_cosines),
        nc2_angle_classifier=_simplex_deviation(classifier_cosines),
        nc3=defined * duality.square().sum().item(),
        nc4=defined * (nearest != logits.argmax(1)).double().mean().item(),
        ncc_accuracy=(nearest == labels).double().mean().item(),
        nc1_papyan=nc1 / len(class_means),
        cdnv=defined * _cdnv(features, labels, class_means),
        nc2_zhu=_distance_to_simplex(classifier.T @ classifier),
        nc3_zhu=defined * _distance_to_simplex(classifier.T @ activation),
        class_means=class_means,
        activation_norms=activation_norms,
        classifier_norms=classifier_norms,
        activation_cosines=defined * activation_cosines,
        classifier_cosines=classifier_cosines,
    )


class StreamingCollapse:
    """Neural collapse of features that come in batches, as those of wide early layers must.

    Every batch is given twice: all of them to `add_to_means`, then all of them again to
    `add_to_spread`. Kept are the class means and their directions, (C, D) each in float64, and
    never a D x D matrix. `result` equals `neural_collapse` of all features at once.

    Source: Su et al. 2024, the layer-wise experiments; formulas as in `neural_collapse`.
    """

    def __init__(self, num_classes: int):
        if num_classes < 2:
            raise ValueError("neural collapse needs at least two classes")
        self.num_classes = num_classes
        # Numbers until there is a batch, which tells the device.
        self._counts: Any = 0.0  # (C,)
        self._sums: Any = 0.0  # (C, D)
        self._directions: Any = None  # (D, K), known with the last of the means
        self._energy: Any = 0.0  # (K,), within classes along the directions
        self._correct: Any = 0.0
        self._agreeing: Any = 0.0

    @property
    def class_means(self) -> Tensor:
        """(C, D), float64; zero for a class without samples."""
        return self._sums / self._counts.clamp(min=1).unsqueeze(1)

    @torch.no_grad()
    def add_to_means(self, features: Tensor, labels: Tensor) -> None:
        """First pass: features (N, D) of any float type, labels (N,) int64 in [0, C).

        Raises:
            ValueError: other labels.
        """
        _check_labels(labels, self.num_classes)
        membership = F.one_hot(labels, self.num_classes).double()  # (N, C)
        self._counts = self._counts + membership.sum(0)
        self._sums = self._sums + membership.T @ features.double()

    @torch.no_grad()
    def add_to_spread(self, features: Tensor, labels: Tensor, predictions: Tensor) -> None:
        """Second pass: the same features and labels, and the network's predicted classes (N,)."""
        projected = self._project(features)
        nearest = torch.cdist(projected, self._projected_means).argmin(1)
        within = projected - self._projected_means[labels]
        self._energy = self._energy + within.square().sum(0)
        self._correct = self._correct + (nearest == labels).sum()
        self._agreeing = self._agreeing + (nearest == predictions).sum()

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """Class (N,) of the nearest of these class means, of any features (N, D).

        After the first pass, which alone is needed; of its own features it is what the second one
        counts for `ncc_accuracy`.
        """
        return torch.cdist(self._project(features), self._projected_means).argmin(1)

    def result(self) -> LayerCollapse:
        """The metrics of all features of the two passes."""
        samples = self._counts.sum()
        norms, cosines = _norms_and_cosines(self._activation())
        means = self.class_means
        defined = _one_or_nan(self._singular_values, means, self._counts.max())
        return LayerCollapse(
            nc1=defined * _nc1(self._energy / samples, self._singular_values, means),
            nc2_norm=defined * (norms.std() / norms.mean()).item(),
            nc2_angle=defined * _simplex_deviation(cosines),
            ncc_accuracy=(self._correct / samples).item(),
            ncc_agreement=defined * (self._agreeing / samples).item(),
        )

    def _activation(self) -> Tensor:
        """M = [mu_c - mu_G], (D, C)."""
        return (self.class_means - self._sums.sum(0) / self._counts.sum()).T

    def _project(self, features: Tensor) -> Tensor:
        """Features (N, D) along the directions, (N, K), in which alone the class means differ."""
        if self._directions is None:
            self._directions, self._singular_values = _left_singular(self._activation())
            self._projected_means = self.class_means @ self._directions  # (C, K)
        return features.double() @ self._directions


def compute_class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class means (C, D) of features (N, D); zero for a class without samples."""
    membership = F.one_hot(labels, num_classes).to(features.dtype)  # (N, C)
    return (membership.T @ features) / membership.sum(0).clamp(min=1).unsqueeze(1)


@torch.no_grad()
def simplex_distance(means_a: Tensor, means_b: Tensor) -> SimplexDistance:
    """Distance and angle between two sets of class means (C, D) of the same classes.

    Raises:
        ValueError: the two sets differ in shape.

    Source: Su et al. 2024, section 4 (clean against perturbed simplices).
    """
    if means_a.shape != means_b.shape or means_a.ndim != 2:
        shapes = f"{tuple(means_a.shape)}, {tuple(means_b.shape)}"
        raise ValueError(f"class means must both be (C, D), got {shapes}")
    means_a, means_b = means_a.double(), means_b.double()
    global_a, global_b = means_a.mean(0), means_b.mean(0)
    centred_a, centred_b = means_a - global_a, means_b - global_b
    return SimplexDistance(
        distance=(centred_a - centred_b).norm(dim=1),
        angle=_angle(centred_a, centred_b),
        distance_abs=(means_a - means_b).norm(dim=1),
        angle_abs=_angle(means_a, means_b),
        mean_distance=(global_a - global_b).norm().item(),
        mean_angle=_angle(global_a, global_b).item(),
    )


def _check_shapes(
    features: Tensor, labels: Tensor, logits: Tensor, classifier_weight: Tensor
) -> None:
    samples, dimension = features.shape if features.ndim == 2 else (-1, -1)
    classes = classifier_weight.shape[0]
    shapes = [tuple(t.shape) for t in (features, labels, logits, classifier_weight)]
    expected = [(samples, dimension), (samples,), (samples, classes), (classes, dimension)]
    if samples < 1 or shapes != expected:
        raise ValueError(
            "expected features (N, D), labels (N,), logits (N, C) and classifier_weight (C, D), "
            f"got {shapes[0]}, {shapes[1]}, {shapes[2]} and {shapes[3]}"
        )
    if classes < 2:
        raise ValueError("neural collapse needs at least two classes")


def _check_labels(labels: Tensor, classes: int) -> None:
    """Their values in main memory alone: a check of each batch would wait for a GPU."""
    if labels.dtype != torch.int64:
        raise ValueError(f"expected labels of type torch.int64, got {labels.dtype}")
    low, high = (labels.min(), labels.max()) if labels.is_cpu and len(labels) else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got some from {low} to {high}")


def _left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (D, K) and singular values (K,) of a (D, C) matrix, K = min(C, D).

    On the CPU: for so narrow a matrix a GPU's solver takes longer than both copies and LAPACK's.
    """
    vectors, values, _ = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    return vectors.to(matrix.device), values.to(matrix.device)


def _one_or_nan(singular_values: Tensor, class_means: Tensor, most: Tensor) -> float:
    """1.0; NaN where class means coincide. Warns of it, and where no class has two samples."""
    coincide = not singular_values[0] > ROUNDING * class_means.norm()
    for undefined, message in ((coincide, COINCIDE), (bool(most < 2), ALONE)):
        if undefined:
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    return math.nan if coincide else 1.0


def _nc1(variances: Tensor, singular_values: Tensor, class_means: Tensor) -> float:
    """tr(Sigma_W Sigma_B^+) without a D x D matrix.

    Sigma_B = M M^T / C = U diag(S^2 / C) U^T has at most C - 1 directions U, so the trace is the
    within-class variance along each of them, `variances` (K,), over S^2 / C. Directions with less
    than D * eps(float32) of the largest eigenvalue are dropped, as scipy.linalg.pinv does in
    float32.
    """
    classes, dimension = class_means.shape
    between = singular_values.square() / classes
    kept = between > dimension * FLOAT32_EPS * between[0]
    return (variances[kept] / between[kept]).sum().item()


def _cdnv(features: Tensor, labels: Tensor, class_means: Tensor) -> float:
    """Class-distance normalised variance (Galanti et al. 2022, definition 1)."""
    membership = F.one_hot(labels, len(class_means)).double()  # (N, C)
    counts = membership.sum(0)
    squares = torch.linalg.vector_norm(features - class_means[labels], dim=1).square()
    variances = (membership.T @ squares / counts)[counts > 0]
    means = class_means[counts > 0]
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    ratios = (variances.unsqueeze(0) + variances.unsqueeze(1)) / (2 * distances)
    a, b = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    return ratios[a, b].mean().item()


def _distance_to_simplex(gram: Tensor) -> float:
    """Frobenius distance of a (K, K) matrix, normalised, to the normalised simplex."""
    classes = len(gram)
    simplex = torch.eye(classes, dtype=gram.dtype, device=gram.device) - 1 / classes
    return (gram / gram.norm() - simplex / math.sqrt(classes - 1)).norm().item()


def _norms_and_cosines(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (C,) and pairwise cosines (C, C) of the columns of a (D, C) matrix."""
    norms = columns.norm(dim=0)
    unit = columns / norms
    return norms, unit.T @ unit


def _simplex_deviation(cosines: Tensor) -> float:
    """Mean over ordered pairs of |cos + 1/(C-1)|: zero when the columns form a simplex."""
    classes = len(cosines)
    deviation = (cosines + 1 / (classes - 1)).abs()
    off_diagonal = deviation.sum() - deviation.diagonal().sum()
    return (off_diagonal / (classes * (classes - 1))).item()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians between vectors along the last dimension; NaN where all of a set are zero.

    A zero vector among others, a class without samples, is at a right angle, as published.
    """
    angle = F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos()
    return angle.masked_fill(~(a.any() & b.any()), math.nan)
