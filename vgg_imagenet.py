"""VGG11 with batch normalisation for 160x160 images (ImageNette).

The network of `vgg.py` with a fifth max-pool and a 5x5 average pool; the initial convolution
weights are scaled by their fan-out.
"""

from torch import nn

from vgg import LAYERS_32, VGG

LAYERS_160 = (*LAYERS_32, "M")


def vgg11_bn_pool(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG11 with batch normalisation for 160x160 images."""
    return VGG(LAYERS_160, nn.AvgPool2d(5, 1), "fan_out", in_channels, num_classes)
