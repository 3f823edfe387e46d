"""A folded network computes what the plain one does, whatever a model does with its norms."""

import copy
import random

import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS
from test_fast_paths import relative, warnings_of, with_statistics
from torch import nn

from robust_nc.networks import any_network
from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.networks.blocks import block_outputs
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network

CLASSES = 4


class Plain(nn.Module):
    """A convolution and its batch norm: what is special is said in subclasses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def normed(self, x):
        return self.bn(self.conv(x))

    def forward(self, x):
        return self.pool(torch.relu(self.normed(x)))


class Model(nn.Module):
    """One of them before a classifier, and so one block."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.fc = nn.Linear(32, CLASSES)
        if hasattr(body, "blocks"):
            self.blocks = body.blocks

    def forward(self, x):
        return self.fc(self.body(x))


class TwoNames(Plain):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), self.bn, nn.ReLU())

    def normed(self, x):
        return self.body(x)


class Gated(TwoNames):
    """Nothing comes through the branch until the gate, 0 to begin with, has been trained."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def normed(self, x):
        return self.conv(x) + self.gate * self.body(x)[:, :, ::2, ::2]


class BothWays(TwoNames):
    """The norm under both its names in one pass."""

    def normed(self, x):
        return self.bn(self.conv(x)) + self.body(x).mean()


class NormTrains(Plain):
    def train(self, mode=True):
        super().train(mode)
        self.bn.train()
        return self


class ReadsWeight(Plain):
    def normed(self, x):
        return self.bn(self.conv(x)) * self.bn.weight.abs().mean()


class ReadsSize(Plain):
    def normed(self, x):
        return self.bn(self.conv(x)) / self.bn.num_features


class ReadsIfThere(Plain):
    """Falls back, without an error, where the norm is another module."""

    def normed(self, x):
        return self.bn(self.conv(x)) * getattr(self.bn, "eps", 2.0)


class DataDependent(Plain):
    def normed(self, x):
        x = self.conv(x)
        return self.bn(x) if x.mean() > 1e9 else x


class StoresBlocks(Plain):
    """Its list of blocks holds the norm itself, not its name."""

    def __init__(self):
        super().__init__()
        self.listed = [("norm", self.bn), ("pool", self.pool)]

    def blocks(self):
        return self.listed


class Draws(Plain):
    """Noise in eval mode too, from three generators."""

    def normed(self, x):
        x = self.bn(self.conv(x)) * (1 + random.random() + np.random.rand())
        return x + torch.rand(1)


def hooked(name, register, hook):
    model = Plain()
    getattr(getattr(model, name), register)(hook)
    return model


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def parametrised(name, parameter):
    model = Plain()
    nn.utils.parametrize.register_parametrization(getattr(model, name), parameter, Doubled())
    return model


ODD = {
    "two_names": TwoNames,
    "norm_trains": NormTrains,
    "reads_weight": ReadsWeight,
    "reads_size": ReadsSize,
    "reads_if_there": ReadsIfThere,
    "stores_blocks": StoresBlocks,
    "forward_hook_on_conv": lambda: hooked("conv", "register_forward_hook", lambda m, x, y: 2 * y),
    "forward_hook_on_norm": lambda: hooked("bn", "register_forward_hook", lambda m, x, y: y + 1),
    "pre_hook_on_norm": lambda: hooked("bn", "register_forward_pre_hook", lambda m, x: (3 * x[0],)),
    "bias_of_conv": lambda: parametrised("conv", "bias"),
}
# Left as they are, with or without a line, or folded all the same.
FINE = {
    "plain": Plain,
    "both_ways": BothWays,
    "draws": Draws,
    "data_dependent": DataDependent,
    "pre_hook_on_conv": lambda: hooked("conv", "register_forward_pre_hook", lambda m, x: 3 * x[0]),
    "weight_of_norm": lambda: parametrised("bn", "weight"),
    "weight_of_conv": lambda: parametrised("conv", "weight"),
}


def make(factory, bf16=False):
    torch.manual_seed(0)
    model = with_statistics(Model(factory()))
    anatomy = any_network.examine("m:make", model, (3, 20, 20), CLASSES)
    return Network(model, *CIFAR_STATISTICS, bf16, anatomy).eval()


def check_same(folded, network, tolerance=1e-5):
    x = torch.rand(6, 3, 20, 20)
    plain = copy.deepcopy(network).eval()
    plain.bf16 = False
    outputs = []
    for module in (folded, plain):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        with torch.no_grad(), block_outputs(module) as blocks:
            logits, features = module(x, return_activations=True)
        outputs.append({"logits": logits, "features": features} | blocks)
    assert outputs[0].keys() == outputs[1].keys()
    for name, expected in outputs[1].items():
        assert relative(outputs[0][name].float(), expected) < tolerance, name


@pytest.mark.parametrize("bf16", (False, True), ids=("fp32", "bf16"))
@pytest.mark.parametrize("name", ODD | FINE)
def test_what_a_model_does_with_its_norms_is_never_changed(name, bf16, caplog):
    caplog.set_level("INFO", logger="robust_nc")
    network = make((ODD | FINE)[name], bf16)
    caplog.clear()
    folded = FoldedNetwork(network)
    lines = warnings_of(caplog)
    if name in ODD:
        [line] = lines
        assert line.startswith("batch norms are not folded into convolutions, the model is used")
    tolerance = 3e-2 if bf16 else 1e-5
    check_same(folded, network, tolerance)
    with torch.no_grad():
        for value in network.model.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.1).add_(0.01)
    check_same(folded.refold(), network, tolerance)


def test_gradients_that_a_hook_changes_are_not_folded_away():
    network = make(
        lambda: hooked("bn", "register_full_backward_hook", lambda m, given, _: (5 * given[0],))
    )
    x = torch.rand(2, 3, 20, 20, requires_grad=True)
    gradients = [
        torch.autograd.grad(module(x).sum(), x)[0] for module in (FoldedNetwork(network), network)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ("plain", "two_names", "norm_trains", "draws"))
def test_what_is_tried_leaves_network_and_generators_as_they_were(name):
    network = make((ODD | FINE)[name]).train()
    modes = [module.training for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    FoldedNetwork(network)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.random.get_state()[1].tolist() == states[2]
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ("vgg11bn", "ResNet18"))
def test_the_networks_of_this_project_are_folded_without_a_word(name, caplog):
    caplog.set_level("INFO", logger="robust_nc")
    network = Network(ARCHITECTURES[name][32](num_classes=3, in_channels=1), (0.5,), (0.2,))
    folded = FoldedNetwork(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not caplog.records


def test_a_network_that_is_not_examined_is_tried_as_well():
    class Interface(TwoNames):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, CLASSES)

        def forward(self, x, return_activations=False):
            features = self.pool(torch.relu(self.normed(x)))
            logits = self.fc(features)
            return (logits, features) if return_activations else logits

        def blocks(self):
            return [("features", self.pool)]

    network = Network(with_statistics(Interface()), *CIFAR_STATISTICS).eval()
    check_same(FoldedNetwork(network), network)


def test_a_gate_that_is_closed_to_begin_with_hides_no_difference():
    network = make(Gated)
    network.model.body.gate.data.zero_()
    folded = FoldedNetwork(network)
    network.model.body.gate.data.fill_(1.0)
    check_same(folded.refold(), network)
