"""robust_nc.measure: accuracy and neural collapse of any model on any loader."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust_nc
from attacks import pgd
from nc_metrics import neural_collapse
from robust_nc import measure


def make_model():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(*body, nn.Linear(4 * 6 * 6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def images():
    return torch.rand(20, 3, 8, 8), torch.arange(20) % 3


@pytest.fixture
def loader(images):
    return list(zip(images[0].split(8), images[1].split(8), strict=True))


def by_hand(model, x, y):
    """Features and logits of the layers themselves."""
    model.eval()
    with torch.no_grad():
        features = model[:-1](x)
        return features, model[-1](features)


def test_it_equals_the_metrics_of_features_by_hand(model, images, loader):
    found = measure(model, loader)
    features, logits = by_hand(model, *images)
    expected = neural_collapse(features, images[1], logits, model[-1].weight.detach())
    assert found.collapse.nc1 == pytest.approx(expected.nc1, rel=1e-6)
    assert found.collapse.nc3 == pytest.approx(expected.nc3, rel=1e-6)
    torch.testing.assert_close(found.collapse.class_means, expected.class_means)
    assert found.images == 20
    assert found.accuracy == pytest.approx((logits.argmax(1) == images[1]).float().mean().item())
    loss = F.cross_entropy(logits.double(), images[1]).item()
    assert found.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("ball", ({}, {"epsilon": 0.5, "norm": "l_2", "steps": 3}))
def test_pgd_is_that_of_attacks(model, images, loader, ball):
    torch.manual_seed(7)
    found = measure(model, loader, "pgd", **ball)
    torch.manual_seed(7)
    model.eval()
    settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10} | ball
    x = torch.cat([x + pgd(model, x, y, **settings) for x, y in loader])
    features, logits = by_hand(model, x, images[1])
    assert found.loss == pytest.approx(F.cross_entropy(logits.double(), images[1]).item())
    assert found.loss > measure(model, loader).loss
    expected = neural_collapse(features, images[1], logits, model[-1].weight.detach())
    assert found.collapse.nc1 == pytest.approx(expected.nc1, rel=1e-5)


def test_nc1_of_single_images_of_each_class_is_0_and_a_warning_says_why(model, images):
    with pytest.warns(RuntimeWarning, match=r"^no class has two samples: NC1 and CDNV"):
        found = measure(model, [(images[0][:3], images[1][:3])])
    assert found.collapse.nc1 == 0
    assert measure(model, [(images[0], images[1])]).collapse.nc1 > 0


def test_a_function_returns_perturbed_images(model, images, loader):
    found = measure(model, loader, lambda x, y: (x + 0.2).clamp(0, 1))
    brighter = measure(model, [((images[0] + 0.2).clamp(0, 1), images[1])])
    assert found.loss == pytest.approx(brighter.loss, rel=1e-5)
    as_numpy = measure(model, loader, lambda x, y: (x + 0.2).clamp(0, 1).double().numpy())
    assert as_numpy.loss == found.loss


def test_an_attack_may_change_its_copy_and_the_model_s_mode(model, images, loader):
    def in_place(x, y):
        model.train()
        return x.mul_(0.5)

    before = images[0].clone()
    found = measure(model, [(images[0].numpy(), images[1])], in_place)
    assert torch.equal(images[0], before)
    assert found.loss == measure(model, [(images[0] / 2, images[1])]).loss


def test_what_is_added_to_dark_images_does_not_pass_unnoticed(model, images):
    dark = [(images[0] * 0.01, images[1])]

    def added(x, y):  # by an attack that stays in the box: hardly below 0, where images are dark
        return (8 / 255) * torch.rand_like(x)

    with pytest.warns(RuntimeWarning, match=r"from black; .* lambda x, y: x \+ attack"):
        measure(model, dark, added)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, [(images[0] * 0.2, images[1])], lambda x, y: x + added(x, y))
        measure(model, dark, lambda x, y: (x + 0.002).clamp(0, 1))
        measure(model, dark, "pgd")


def test_numpy_uint8_and_other_integers_are_taken(model, images):
    x = (images[0] * 255).to(torch.uint8)
    expected = measure(model, [(x.float() / 255, images[1])])
    for labels in (
        images[1].numpy(),
        images[1].numpy().astype(np.int32),
        images[1].to(torch.uint8),
        images[1].unsqueeze(1),
        images[1].tolist(),
    ):
        assert measure(model, [(x.numpy(), labels)]).loss == expected.loss
        assert measure(model, iter([[x.double() / 255, labels, "more"]])).loss == pytest.approx(
            expected.loss
        )


@pytest.mark.parametrize(
    "wrap",
    (
        nn.DataParallel,
        torch.compile,
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: nn.Sequential(nn.Identity(), model),
        torch.optim.swa_utils.AveragedModel,
    ),
)
def test_wrapped_models_are_measured_like_themselves(model, loader, wrap):
    expected = measure(model, loader)
    assert measure(wrap(model), loader).collapse.nc1 == pytest.approx(expected.collapse.nc1)
    assert measure(wrap(model), loader, "pgd").loss > expected.loss


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no memory")


@pytest.mark.parametrize("fails", (False, True))
def test_modes_gradients_and_hooks_are_as_they_were(model, loader, fails):
    model.train()
    model[1].eval()  # frozen, as in fine-tuning
    model[0].weight.requires_grad_(False)
    if fails:
        model[-2] = Failing()
    modes = [module.training for module in model.modules()]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="no memory"):
            measure(model, loader, "pgd")
    else:
        measure(model, loader, "pgd")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks_of(model) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class Scaled(nn.Module):
    """Logits that are not those of the last layer, and a linear layer that is not used."""

    def __init__(self):
        super().__init__()
        self.head, self.unused = nn.Linear(192, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x.flatten(1)) / 2


def test_the_classifier_can_be_named(images):
    model = Scaled()
    with pytest.raises(ValueError, match="give the layer as classifier"):
        measure(model, [images])
    named = measure(model, [images], classifier="head")
    assert named.collapse.nc1 == measure(model, [images], classifier=model.head).collapse.nc1
    assert not math.isnan(named.collapse.nc1)
    with pytest.raises(ValueError, match="does not call the classifier"):
        measure(model, [images], classifier=model.unused)


def test_a_convolution_may_be_the_classifier(images):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"does not call an nn\.Linear"):
        measure(model, [images])
    found = measure(model, [images], classifier=model[1])
    assert found.collapse.class_means.shape == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        ({"attack": "fgsm"}, "'fgsm'"),
        ({"attack": "pgd", "eps": 0.1}, "unknown eps"),
        ({"epsilon": 0.1}, 'attack="pgd"'),
        ({"attack": lambda x, y: x[:1]}, "must return perturbed images (8, 3, 8, 8), got (1, 3"),
        (
            {"attack": lambda x, y: (x, x, y)},
            "must return perturbed images (8, 3, 8, 8), got tuple",
        ),
        ({"attack": lambda x, y: None}, "got NoneType"),
        ({"attack": lambda x, y: x + 0.5}, "must return images in [0, 1], it returns values from"),
        (
            {"attack": lambda x, y: 0.1 - x.round() / 5},
            "-0.1 to 0.1; where it returns what is added",
        ),
        ({"attack": lambda x, y: (x * 255).byte()}, "must return images in [0, 1]"),
        (
            {"attack": lambda x, y: x, "loader": [(torch.full((2, 3, 8, 8), 2.0), [0, 1])]},
            "for an attack the loader's images must be in [0, 1]",
        ),
        ({"loader": []}, "no batches"),
        ({"loader": [torch.rand(4, 3, 8, 8)]}, "(images, labels)"),
        ({"loader": [{"image": 1, "label": 2}]}, "(images, labels)"),
        ({"loader": [(torch.rand(2, 3, 8, 8), torch.rand(2))]}, "integers"),
        ({"loader": [(torch.rand(2, 3, 8, 8), torch.eye(3).long()[:2])]}, "labels (N,)"),
        ({"loader": [(torch.rand(2, 3, 8, 8), torch.tensor([-1, 3]))]}, "from 0 to 2"),
        ({"loader": [(torch.full((2, 3, 8, 8), math.nan), torch.tensor([0, 1]))]}, "not finite"),
    ),
)
def test_what_cannot_be_measured_is_told(model, loader, arguments, said):
    with pytest.raises(ValueError) as raised:
        measure(model, **{"loader": loader} | arguments)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert model.training and hooks_of(model) == 0


def test_the_package_has_no_other_names():
    assert set(robust_nc.__all__) == {"measure", "load_runs"}
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        robust_nc.mesure  # noqa: B018


def test_a_class_without_images_is_told():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    loader = [(torch.rand(6, 3, 2, 2), torch.arange(6) % 3)]
    with pytest.warns(RuntimeWarning, match="no image of class 3: its class mean counts as zero"):
        measure(model, loader)
