"""The networks: published keys and golden outputs of four, initial values of all."""

import copy

import cases
import numpy as np
import pytest
import torch
from conftest import GOLDEN_SEED, TinyNet
from torch import nn

from robust_nc.networks.architectures import ARCHITECTURES, build_model
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network

NAMES = ("vgg11bn", "PreActResNet18", "vgg11bn_imagenet", "PreActResNet18_imagenet")


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_published_keys_and_shapes(name, golden_model, golden_json):
    state = golden_model(name).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == golden_json("state_dicts")[
        name
    ]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_features_are_golden(name, golden_model, golden):
    expected = golden("models")
    size = 160 if name.endswith("imagenet") else 32
    count = len(expected[f"{name}.logits"])
    images = torch.from_numpy(cases.images(count, 3, size, GOLDEN_SEED + 1))
    model = golden_model(name).eval()
    with torch.no_grad():
        logits, features = model(images, return_activations=True)
        assert torch.equal(model(images), logits)
    np.testing.assert_allclose(logits, expected[f"{name}.logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features, expected[f"{name}.features"], rtol=1e-4, atol=1e-4)
    assert features.shape == (count, 512)


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, sizes in ARCHITECTURES.items() for size in sizes]
)
def test_initial_values_have_the_published_scale(name, size):
    torch.manual_seed(0)
    model = build_model(name, size, in_channels=3, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            if name == "vgg11bn" and size == 32:
                variance = 2 / (area * module.in_channels)
            elif size == 160:
                variance = 2 / (area * module.out_channels)
            else:  # PyTorch's default: uniform with variance 1 / (3 fan_in)
                variance = 1 / (3 * area * module.in_channels)
            assert module.weight.var().item() == pytest.approx(variance, rel=0.1)
            assert (module.bias is not None) == (name == "vgg11bn")
            if module.bias is not None:
                assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Linear) and name == "vgg11bn":
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert not module.bias.any()


@pytest.mark.parametrize("size", (32, 160))
def test_vgg_s_max_pools_before_the_relu_change_no_bit(size):
    """Values, running statistics and gradients are those of the order that the paper draws."""
    torch.manual_seed(0)
    model = build_model("vgg11bn", size, in_channels=3, num_classes=10)
    drawn = copy.deepcopy(model)
    layers = list(drawn.features)
    for i in [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]:
        layers[i : i + 2] = layers[i + 1], layers[i]
    drawn.features = nn.Sequential(*layers)
    assert [type(layers[i]) for i in (2, 3)] == [nn.ReLU, nn.MaxPool2d]
    found = []
    for network in (model, drawn):
        images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))
        logits = network(images.requires_grad_())
        logits.logsumexp(1).sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        found.append([logits, images.grad, *gradients, *network.buffers()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("channels", (1, 3))
def test_the_first_convolution_has_images_in_the_layout_of_its_weight(channels):
    """Otherwise its gradient is copied twice on a GPU; of one channel the strides must say it."""
    model = TinyNet(channels)
    network = Network(model, (0.5,) * channels, (0.2,) * channels).to_channels_last()
    seen = []
    for one in (network, FoldedNetwork(network)):
        one.model.convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        one(torch.rand(2, channels, 8, 8))
    expected = torch.empty(2, channels, 8, 8, memory_format=torch.channels_last).stride()
    assert [images.stride() for images in seen] == [expected] * 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_and_classes_can_be_chosen(name):
    model = build_model(name, 32, in_channels=1, num_classes=100)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("bf16", (False, True))
def test_network_normalises_and_returns_float32(bf16, tiny_net):
    network = Network(tiny_net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), bf16=bf16).eval()
    x = torch.rand(4, 3, 8, 8)
    logits, features = network(x, return_activations=True)
    assert logits.dtype == features.dtype == torch.float32
    mean, std = torch.tensor((0.5, 0.4, 0.3)), torch.tensor((0.2, 0.3, 0.4))
    by_hand = tiny_net((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    error = (logits - by_hand).abs().max().item()
    assert error < (0.05 if bf16 else 1e-6)
    assert (error > 1e-6) == bf16
    assert torch.equal(network.classifier_weight, tiny_net.linear.weight)
