"""nc_metrics.neural_collapse held to a second implementation, over many random inputs.

The peer below works with the full D x D matrices and loops, as the formulas are printed in Papyan,
Han & Donoho (PNAS 2020), and shares no line with ours.
"""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from conftest import NC_METRICS
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from nc_metrics import neural_collapse

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
DIMENSION = 120
PER_CLASS = 3
METRICS = (*NC_METRICS, "ncc_accuracy")

seeds = st.integers(0, 2**32 - 1)
class_counts = st.sampled_from((10, 100))
# From random features down to nearly collapsed ones.
spreads = st.sampled_from((1.0, 0.1, 1e-2, 1e-4))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small take longest where threads of PyTorch and NumPy wait for each other."""
    with threadpool_limits(1):
        yield


def peer(h, y, logits, w):
    """The metrics by name, from numpy's and scipy's general tools."""
    classes, dimension = w.shape
    means = np.array([h[y == c].mean(axis=0) for c in range(classes)])
    m = (means - h.mean(axis=0)).T
    deviations = h - means[y]
    sigma_w = deviations.T @ deviations / len(h)
    sigma_b = m @ m.T / classes
    nearest = np.array([np.argmin([np.linalg.norm(x - mean) for mean in means]) for x in h])
    found = {
        # The cutoff of the rank is that of float32, as in the published code.
        "nc1": np.trace(
            sigma_w @ scipy.linalg.pinv(sigma_b, atol=0, rtol=dimension * np.finfo("f4").eps)
        ),
        "nc3": np.linalg.norm(w.T / np.linalg.norm(w) - m / np.linalg.norm(m)) ** 2,
        "nc4": np.mean(nearest != logits.argmax(axis=1)),
        "ncc_accuracy": np.mean(nearest == y),
    }
    for name, columns in (("activation", m.T), ("classifier", w)):
        norms = [np.linalg.norm(column) for column in columns]
        deviations = [
            abs(a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1 / (classes - 1))
            for i, a in enumerate(columns)
            for j, b in enumerate(columns)
            if i != j
        ]
        found[f"nc2_norm_{name}"] = np.std(norms, ddof=1) / np.mean(norms)
        found[f"nc2_angle_{name}"] = np.mean(deviations)
    return found


def ours(h, y, logits, w):
    collapse = neural_collapse(*map(torch.from_numpy, (h, y, logits, w)))
    return {name: getattr(collapse, name) for name in METRICS}


def draw_case(seed, classes, spread):
    """Features around random class means, every class with samples, and a random classifier."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(classes * PER_CLASS) % classes)
    means = rng.normal(size=(classes, DIMENSION))
    h = means[y] + spread * rng.normal(size=(len(y), DIMENSION))
    return h, y, rng.normal(size=(len(y), classes)), rng.normal(size=(classes, DIMENSION))


def simplex(seed, classes):
    """Vertices (classes, DIMENSION) of a simplex around the origin, turned at random."""
    vertices = np.eye(classes, DIMENSION)
    vertices[:, :classes] -= 1 / classes
    return vertices @ turn(seed)


def turn(seed):
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(DIMENSION, DIMENSION)))[0]


def assert_close(found, expected, rel=1e-6, floor=1e-9):
    for name in METRICS:
        np.testing.assert_allclose(found[name], expected[name], rtol=rel, atol=floor, err_msg=name)


@pytest.mark.slow
@SETTINGS
@given(seed=seeds, classes=class_counts, spread=spreads)
def test_metrics_equal_those_of_the_full_matrices(seed, classes, spread):
    case = draw_case(seed, classes, spread)
    assert_close(ours(*case), peer(*case))


@SETTINGS
@given(seed=seeds, classes=class_counts, spread=spreads)
def test_metrics_do_not_change_when_features_are_turned(seed, classes, spread):
    h, y, logits, w = draw_case(seed, classes, spread)
    rotation = turn(seed)
    assert_close(ours(h @ rotation, y, logits, w @ rotation), ours(h, y, logits, w))


@SETTINGS
@given(seed=seeds, classes=class_counts, spread=spreads, scale=st.floats(1e-3, 1e3))
def test_metrics_do_not_change_when_features_are_scaled(seed, classes, spread, scale):
    h, y, logits, w = draw_case(seed, classes, spread)
    assert_close(ours(scale * h, y, logits, w), ours(h, y, logits, w))


@SETTINGS
@given(seed=seeds, classes=class_counts)
def test_nc1_of_collapsed_features_is_zero(seed, classes):
    h, y, logits, w = draw_case(seed, classes, spread=0)
    found = ours(h, y, logits, w)
    assert abs(found["nc1"]) < 1e-20
    assert found["ncc_accuracy"] == 1


@SETTINGS
@given(seed=seeds, classes=class_counts, radius=st.floats(0.1, 100), shift=st.floats(-5, 5))
def test_an_exact_simplex_has_equal_norms_and_angles(seed, classes, radius, shift):
    _, y, logits, w = draw_case(seed, classes, spread=0)
    found = ours(radius * simplex(seed, classes)[y] + shift, y, logits, w)
    assert found["nc2_angle_activation"] < 1e-9
    assert found["nc2_norm_activation"] < 1e-9


@SETTINGS
@given(seed=seeds, classes=class_counts, spread=spreads, scale=st.floats(0.01, 100))
def test_a_classifier_that_is_the_centred_class_means_is_dual(seed, classes, spread, scale):
    h, y, logits, _ = draw_case(seed, classes, spread)
    means = np.array([h[y == c].mean(axis=0) for c in range(classes)])
    found = ours(h, y, logits, scale * (means - h.mean(axis=0)))
    assert found["nc3"] < 1e-12


@SETTINGS
@given(seed=seeds, classes=class_counts, spread=spreads)
def test_nc4_is_zero_where_the_network_predicts_the_nearest_mean(seed, classes, spread):
    h, y, _, w = draw_case(seed, classes, spread)
    means = np.array([h[y == c].mean(axis=0) for c in range(classes)])
    logits = -scipy.spatial.distance.cdist(h, means)
    found = ours(h, y, logits, w)
    assert found["nc4"] == 0
    assert found["ncc_accuracy"] == np.mean(logits.argmax(axis=1) == y)
    # Where every prediction is the next class instead, none agrees.
    assert ours(h, y, np.roll(logits, 1, axis=1), w)["nc4"] == 1
