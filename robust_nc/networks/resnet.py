"""ResNet18 for 32x32 images, the field's usual baseline.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with the 3x3 stem without
pooling that images of 32 pixels call for (section 4.2). Batch normalisation comes after each
convolution and ReLU after each sum; `preactresnet.py` has them in front.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, 1x1 where the shape changes (figure 2, option B)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """3x3 stem, four stages of two blocks; `linear` is its only linear layer."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.pool = nn.AvgPool2d(4)
        self.linear = nn.Linear(512, num_classes)

    def forward(
        self, x: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised images (N, in_channels, 32, 32) -> logits (N, num_classes).

        With `return_activations` also the features (N, 512) that enter `linear`.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = torch.flatten(self.pool(x), 1)
        logits = self.linear(features)
        return (logits, features) if return_activations else logits

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Name and module, in forward order, of every block's output."""
        stages = [(f"layer{i}", getattr(self, f"layer{i}")) for i in (1, 2, 3, 4)]
        return [("stem", self.relu), *stages, ("features", self.pool)]


def ResNet18(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet18 for 32x32 images, with PyTorch's default initial values."""
    return ResNet(num_classes, in_channels)
