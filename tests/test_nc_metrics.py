"""Neural-collapse metrics: golden values, the plain formulas, and exact simplices."""

import math
import re
from dataclasses import fields

import cases
import numpy as np
import pytest
import scipy.linalg
import torch

from nc_metrics import (
    LayerCollapse,
    NeuralCollapse,
    SimplexDistance,
    StreamingCollapse,
    neural_collapse,
    simplex_distance,
)

GOLDEN_CASES = ("random", "collapsed", "unbalanced", "hundred_classes", "few_dimensions")


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_metrics_are_golden(name, golden_json, golden):
    means = golden("class_means")[name]
    check_golden_metrics(golden_json("nc_metrics")[name], means, torch.device("cpu"))


def check_golden_metrics(case, class_means, device):
    features = cases.features(**case["case"])
    h, y, w, logits = (torch.from_numpy(a).to(device) for a in features)
    collapse = neural_collapse(h, y, logits, w)
    for metric, expected in case["expected"].items():
        assert getattr(collapse, metric) == pytest.approx(expected, rel=1e-3, abs=1e-9), metric
    np.testing.assert_allclose(collapse.class_means.cpu(), class_means, rtol=1e-4, atol=1e-6)


def plain_nc1(h, y, classes):
    """tr(Sigma_W pinv(Sigma_B)) with both D x D matrices, in float64."""
    means = np.stack([h[y == c].mean(0) for c in range(classes)])
    within = np.mean([np.outer(a - means[c], a - means[c]) for a, c in zip(h, y, strict=True)], 0)
    centred = (means - h.mean(0)).T
    between = centred @ centred.T / classes
    return np.trace(within @ scipy.linalg.pinv(between, rtol=1e-5))


@pytest.mark.parametrize(("classes", "spread"), ((3, 1.0), (10, 0.1), (10, 1e-4)))
def test_nc1_equals_the_formula_with_full_matrices(classes, spread):
    h, y, w, logits = cases.features(300, 40, classes, spread, seed=3)
    h = h.astype(np.float64)
    collapse = neural_collapse(*map(torch.from_numpy, (h, y, logits, w)))
    assert collapse.nc1 == pytest.approx(plain_nc1(h, y, classes), rel=1e-6)


def simplex(classes, dimension=12):
    """Vertices (classes, dimension) of a simplex: unit vectors with cosines -1/(classes-1)."""
    centred = torch.eye(classes, dimension, dtype=torch.float64)
    centred[:, :classes] -= 1 / classes
    return centred / centred.norm(dim=1, keepdim=True)


def test_a_collapsed_simplex_has_no_nc_left():
    vertices = simplex(5)
    y = torch.arange(50) % 5
    collapse = neural_collapse(3 * vertices[y] + 1, y, vertices[y] @ vertices.T, vertices)
    for name in ("nc1", "nc2_norm_activation", "nc2_angle_activation", "nc3", "nc4"):
        assert getattr(collapse, name) == pytest.approx(0, abs=1e-9), name
    assert collapse.ncc_accuracy == 1
    np.testing.assert_allclose(collapse.activation_norms, 3, rtol=1e-6)
    np.testing.assert_allclose(collapse.activation_cosines, vertices @ vertices.T, atol=1e-9)


def test_nc4_compares_with_the_prediction_and_ncc_accuracy_with_the_label():
    vertices = simplex(4)
    y = torch.arange(40) % 4
    wrong = torch.nn.functional.one_hot((y + (torch.arange(40) < 10)) % 4, 4).float()
    collapse = neural_collapse(vertices[y], y, wrong, vertices)
    assert collapse.nc4 == 0.25
    assert collapse.ncc_accuracy == 1


def test_a_class_without_samples_has_mean_zero():
    h, y, w, logits = map(torch.from_numpy, cases.features(100, 16, 5, 0.5, seed=0))
    some = y != 3
    collapse = neural_collapse(h[some], y[some], logits[some], w)
    assert not collapse.class_means[3].any()
    assert np.isfinite(collapse.nc1)


# Of one value, or of one row of values that float32 rounds.
EQUAL_FEATURES = {
    "zero": torch.zeros(30, 16),
    "one_value": torch.full((30, 16), 0.1),
    "one_row": torch.linspace(-3, 7, 16).expand(30, 16),
    "one_large_row": 1e6 * torch.linspace(-3, 7, 16).expand(30, 16),
}


OF_CLASS_MEANS = {
    *("nc1", "nc1_papyan", "cdnv", "nc2_norm_activation", "nc2_angle_activation"),
    *("nc3", "nc3_zhu", "nc4", "activation_cosines"),
}


def is_nan(value):
    return torch.as_tensor(value).isnan().all().item()


@pytest.mark.parametrize("name", EQUAL_FEATURES)
@pytest.mark.parametrize("unbalanced", (False, True))
def test_features_that_are_all_equal_have_no_collapse_and_one_warning_says_so(name, unbalanced):
    h, y = EQUAL_FEATURES[name], torch.arange(30) % 3
    if unbalanced:
        y = (y - torch.arange(30) // 20).clamp(min=0)  # of other counts, which round otherwise
    logits, w = torch.eye(3)[y], torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="NC1") as caught:
        whole = neural_collapse(h, y, logits, w)
    assert len(caught) == 1
    undefined = {field.name for field in fields(whole) if is_nan(getattr(whole, field.name))}
    assert undefined == OF_CLASS_MEANS

    streamed = StreamingCollapse(3)
    for part in (slice(0, 20), slice(20, 30)):
        streamed.add_to_means(h[part], y[part])
    for part in (slice(0, 20), slice(20, 30)):
        streamed.add_to_spread(h[part], y[part], y[part])
    with pytest.warns(RuntimeWarning, match="NC1") as caught:
        layer = streamed.result()
    assert len(caught) == 1
    undefined = {field.name for field in fields(layer) if is_nan(getattr(layer, field.name))}
    assert undefined == {"nc1", "nc2_norm", "nc2_angle", "ncc_agreement"}
    assert layer.ncc_accuracy == whole.ncc_accuracy


def test_nearly_equal_features_have_an_nc1_without_a_warning(recwarn):
    """The class means differ by 1e-6 of their size, and the features of a class by nothing."""
    y = torch.arange(30) % 3
    h = torch.ones(30, 16, dtype=torch.float64) + 1e-6 * torch.eye(3, 16, dtype=torch.float64)[y]
    collapse = neural_collapse(h, y, torch.eye(3)[y], torch.eye(3, 16))
    assert collapse.nc1 == pytest.approx(0, abs=1e-12) and not recwarn.list


@pytest.mark.parametrize("counts", ((1, 1, 1), (1, 0, 1), (2, 1, 1)))
def test_single_samples_have_no_spread_within_classes_and_a_warning_says_so(counts, recwarn):
    y = torch.arange(3).repeat_interleave(torch.tensor(counts))
    h = torch.randn(len(y), 16, generator=torch.Generator().manual_seed(1))
    streamed = StreamingCollapse(3)
    streamed.add_to_means(h, y)
    streamed.add_to_spread(h, y, y)
    for found in (neural_collapse(h, y, torch.eye(3)[y], torch.eye(3, 16)), streamed.result()):
        assert not any(is_nan(getattr(found, field.name)) for field in fields(found))
        assert (found.nc1 == pytest.approx(0, abs=1e-12)) == (max(counts) == 1)
    told = [str(warning.message) for warning in recwarn.list]
    assert len(told) == (2 if max(counts) == 1 else 0)
    assert all(line.startswith("no class has two samples: NC1 and CDNV") for line in told)


def test_shapes_that_do_not_fit_are_refused():
    h, y, w, logits = map(torch.from_numpy, cases.features(20, 16, 5, 0.5, seed=0))
    for bad in ((h[:-1], y, logits, w), (h, y, logits[:, :-1], w), (h, y, logits, w[:, :-1])):
        with pytest.raises(ValueError, match="expected features"):
            neural_collapse(*bad)
    with pytest.raises(ValueError, match="two classes"):
        neural_collapse(h, y * 0, logits[:, :1], w[:1])


def test_a_shifted_simplex_is_distant_only_where_it_is_not_centred():
    means = simplex(5)
    shift = torch.full((12,), 2.0, dtype=torch.float64)
    apart = simplex_distance(means, means + shift)
    np.testing.assert_allclose(apart.distance, 0, atol=1e-9)
    np.testing.assert_allclose(apart.angle, 0, atol=1e-6)
    np.testing.assert_allclose(apart.distance_abs, shift.norm(), rtol=1e-9)
    assert apart.mean_distance == pytest.approx(shift.norm().item())
    assert apart.angle_abs.min() > 0.1


def test_angles_between_simplices_are_in_radians():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    turn = torch.tensor(0.3)
    rotation = torch.tensor([[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]])
    apart = simplex_distance(means, 2 * means @ rotation)
    np.testing.assert_allclose(apart.angle, 0.3, rtol=1e-5)
    with pytest.raises(ValueError, match="both be"):
        simplex_distance(means, means[:1])


def test_class_means_that_coincide_have_a_distance_and_no_angle():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    apart = simplex_distance(torch.ones(2, 2), means)
    assert apart.angle.isnan().all() and apart.angle_abs.isfinite().all()
    np.testing.assert_allclose(apart.distance, 1.0)


def test_features_and_labels_that_cannot_be_measured_are_refused():
    h, y, w, logits = map(torch.from_numpy, cases.features(20, 16, 5, 0.5, seed=0))
    broken = h.clone()
    broken[3, 0], broken[7] = math.inf, math.nan
    streamed = StreamingCollapse(5)
    with pytest.raises(ValueError, match="of 2 of 20 samples are not finite"):
        neural_collapse(broken, y, logits, w)
    for bad, told in (
        (y.int(), "int64, got torch.int32"),
        (y.double(), "int64, got torch.float64"),
        (y + 1, "from 0 to 4, got some from 1 to 5"),
        (y - 1, "from 0 to 4, got some from -1 to 3"),
    ):
        with pytest.raises(ValueError, match=told):
            neural_collapse(h, bad, logits, w)
        with pytest.raises(ValueError, match=told):
            streamed.add_to_means(h, bad)


def test_printed_it_is_its_metrics_a_line_each():
    h, y, w, logits = map(torch.from_numpy, cases.features(100, 300, 5, 0.5, seed=0))
    collapse = neural_collapse(h, y, logits, w)
    head, *lines = str(collapse).splitlines()
    assert head == "neural collapse of 5 classes in 300 dimensions"
    values = {f.name: getattr(collapse, f.name) for f in fields(collapse)}
    metrics = {name: value for name, value in values.items() if isinstance(value, float)}
    assert [line.split() for line in lines] == [[n, f"{v:.4g}"] for n, v in metrics.items()]
    assert all(name in repr(collapse) for name in metrics) and "tensor" not in repr(collapse)


@pytest.mark.parametrize("kind", (NeuralCollapse, LayerCollapse, SimplexDistance))
def test_every_field_is_documented(kind):
    for field in fields(kind):
        assert re.search(rf"\b{field.name}\b", kind.__doc__), field.name
