"""PreActResNet18 for 32x32 images.

He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016): batch normalisation and ReLU
come before each convolution, and once more before the average pool.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Two pre-activated 3x3 convolutions around a shortcut (He et al. 2016, figure 1b)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # No attribute where the shortcut is the identity: the published state dicts have no key.
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = self.shortcut(activated) if hasattr(self, "shortcut") else x
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class PreActResNet(nn.Module):
    """3x3 stem, four stages of two blocks, final batch norm; `linear` is its only linear layer."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.bn = nn.BatchNorm2d(512)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(4)
        self.linear = nn.Linear(512, num_classes)

    def forward(
        self, x: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised images (N, in_channels, 32, 32) -> logits (N, num_classes).

        With `return_activations` also the features (N, 512) that enter `linear`.
        """
        x = self.conv1(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = torch.flatten(self.pool(self.relu(self.bn(x))), 1)
        logits = self.linear(features)
        return (logits, features) if return_activations else logits

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Name and module, in forward order, of every block's output.

        `norm` is the final batch norm with its ReLU; the flattened output of `features` enters
        `linear`.
        """
        stages = [(f"layer{i}", getattr(self, f"layer{i}")) for i in (1, 2, 3, 4)]
        return [("stem", self.conv1), *stages, ("norm", self.relu), ("features", self.pool)]


def PreActResNet18(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """PreActResNet18 for 32x32 images, with PyTorch's default initial values."""
    return PreActResNet(num_classes, in_channels)
