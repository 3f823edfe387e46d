"""VGG11 with batch normalisation for 32x32 images.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(ICLR 2015), configuration A, with one linear layer instead of three. `vgg_imagenet.py` builds the
160x160 variant from the same class.
"""

from typing import Literal

import torch
from torch import Tensor, nn

# Output channels of each 3x3 convolution; "M" is a 2x2 max-pool.
LAYERS_32 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512)


class VGG(nn.Module):
    """Convolutions with batch normalisation and ReLU, average pooling, one linear layer.

    Args:
        layers: output channels per convolution, "M" for a max-pool.
        pool: the average pooling that leaves one value per channel.
        fan: "fan_in" or "fan_out": the fan whose inverse scales the initial convolution weights,
            N(0, 2 / fan) (He et al. 2015, eq. 10 and 14).
    """

    def __init__(
        self,
        layers: tuple,
        pool: nn.Module,
        fan: Literal["fan_in", "fan_out"],
        in_channels: int,
        num_classes: int,
    ):
        super().__init__()
        modules: list[nn.Module] = []
        channels = in_channels
        for layer in layers:
            if layer == "M":
                # Before the ReLU: they commute to the last bit, and it has a quarter to rectify.
                modules.insert(-1, nn.MaxPool2d(2))
                continue
            modules += [
                nn.Conv2d(channels, layer, 3, padding=1),
                nn.BatchNorm2d(layer),
                nn.ReLU(inplace=True),
            ]
            channels = layer
        self.features = nn.Sequential(*modules)
        self.pool = pool
        self.classifier = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised images (N, in_channels, H, W) -> logits (N, num_classes).

        With `return_activations` also the features (N, 512) that enter `classifier`.
        """
        features = torch.flatten(self.pool(self.features(x)), 1)
        logits = self.classifier(features)
        return (logits, features) if return_activations else logits

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Name and module, in forward order, of every block's output.

        That is each convolution's activation, after its max-pool where it has one, and `features`,
        whose flattened output enters `classifier`.
        """
        ends = [layer for layer in self.features if isinstance(layer, nn.ReLU)]
        named = [(f"conv{number}", end) for number, end in enumerate(ends, 1)]
        return [*named, ("features", self.pool)]


def vgg11_bn(in_channels: int = 3, num_classes: int = 10) -> VGG:
    """VGG11 with batch normalisation for 32x32 images."""
    return VGG(LAYERS_32, nn.AvgPool2d(2), "fan_in", in_channels, num_classes)
