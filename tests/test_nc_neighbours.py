"""The metrics as other papers define them, against their formulas written out in plain NumPy."""

from itertools import combinations

import numpy as np
import pytest
import torch

from nc_metrics import neural_collapse


def make_case(classes, dimension=24, spread=1.0, per_class=9):
    """Features around class means, their labels and a classifier, as tensors."""
    torch.manual_seed(classes)
    labels = torch.arange(classes * per_class) % classes
    means = 3 * torch.randn(classes, dimension) + 5
    features = means[labels] + spread * torch.randn(len(labels), dimension)
    return features, labels, torch.randn(classes, dimension)


def measure(features, labels, weight):
    logits = torch.zeros(len(labels), len(weight))
    return neural_collapse(features, labels, logits, weight)


def to_simplex(matrix):
    """|| A/||A||_F - (I - 1 1^T/K)/sqrt(K-1) ||_F."""
    k = len(matrix)
    simplex = (np.eye(k) - np.ones((k, k)) / k) / np.sqrt(k - 1)
    return np.sqrt(((matrix / np.sqrt((matrix**2).sum()) - simplex) ** 2).sum())


@pytest.mark.parametrize("classes", (3, 10, 30))
@pytest.mark.parametrize("spread", (1.0, 1e-3, 2e-6))
def test_they_equal_their_formulas(classes, spread):
    features, labels, weight = make_case(classes, spread=spread)
    found = measure(features, labels, weight)
    h, y, w = features.double().numpy(), labels.numpy(), weight.double().numpy()
    means = np.stack([h[y == c].mean(0) for c in range(classes)])
    variances = [((h[y == c] - means[c]) ** 2).sum(1).mean() for c in range(classes)]
    pairs = [
        (variances[a] + variances[b]) / (2 * ((means[a] - means[b]) ** 2).sum())
        for a, b in combinations(range(classes), 2)
    ]
    assert found.cdnv == pytest.approx(np.mean(pairs), rel=1e-6)
    assert found.nc1_papyan == pytest.approx(found.nc1 / classes, rel=1e-12)
    assert found.nc2_zhu == pytest.approx(to_simplex(w @ w.T), rel=1e-9)
    centred = (means - h.mean(0)).T
    assert found.nc3_zhu == pytest.approx(to_simplex(w @ centred), rel=1e-9)


def test_collapsed_features_have_zeros():
    classes = 5
    simplex = torch.eye(classes) - 1 / classes
    labels = torch.arange(20) % classes
    found = measure(simplex[labels] + 2, labels, simplex)
    zeros = [found.nc1_papyan, found.cdnv, found.nc2_zhu, found.nc3_zhu]
    assert zeros == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_a_class_without_samples_is_left_out_of_the_pairs():
    features, labels, weight = make_case(4)
    kept = labels != 3
    with_empty = measure(features[kept], labels[kept], weight)
    without = measure(features[kept], labels[kept], weight[:3])
    assert with_empty.cdnv == pytest.approx(without.cdnv, rel=1e-12)
