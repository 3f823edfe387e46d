"""The architectures by name: a row of ARCHITECTURES each, and what else --model can name.

A model is of an architecture or of a factory of another package (any_network.py). An architecture
has this interface: `forward(x, return_activations=False)` takes normalised images and returns
logits (N, C), and with `return_activations` also the features (N, D) that enter its only linear
layer; `blocks()` lists the name and module of each block in forward order, the last of which puts
out the features. A factory's model has an Anatomy instead.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

import preactresnet
import preactresnet_imagenet
import vgg
import vgg_imagenet
from robust_nc.networks import any_network, resnet

# Name -> image size -> factory (num_classes, in_channels) of a model with fresh weights.
ARCHITECTURES: dict[str, dict[int, Callable[..., nn.Module]]] = {
    "vgg11bn": {32: vgg.vgg11_bn, 160: vgg_imagenet.vgg11_bn_pool},
    "PreActResNet18": {
        32: preactresnet.PreActResNet18,
        160: preactresnet_imagenet.preact_resnet18,
    },
    "ResNet18": {32: resnet.ResNet18},
}


def build_model(
    name: str,
    image_size: int,
    in_channels: int,
    num_classes: int,
    arguments: dict[str, Any] | None = None,
) -> nn.Module:
    """The architecture of ARCHITECTURES, or of a factory, for images of that size, freshly made.

    Args:
        arguments: more keywords for a factory.

    Raises:
        InputError: the factory fails.
    """
    if any_network.is_factory(name):
        return any_network.make_model(name, in_channels, num_classes, arguments)
    return ARCHITECTURES[name][image_size](num_classes=num_classes, in_channels=in_channels)
