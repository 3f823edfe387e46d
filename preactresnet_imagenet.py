"""PreActResNet18 for 160x160 images (ImageNette).

He et al. (ECCV 2016) after an ImageNet stem: a 7x7 convolution of stride 2 and a max-pool. The
stem's batch norm and ReLU already activate the input of the first block, which therefore has no
pre-activation of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, pre-activated unless it is the first of stage one."""

    def __init__(self, in_channels: int, channels: int, stride: int, preactivate: bool = True):
        super().__init__()
        # Attributes that a block does not need are absent: the published state dicts have no key.
        if preactivate:
            self.pre_bn = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1_2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        activated = F.relu(self.pre_bn(x)) if hasattr(self, "pre_bn") else x
        shortcut = self.downsample(activated) if hasattr(self, "downsample") else x
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.bn1_2(out)))
        return out + shortcut


class PreActResNet(nn.Module):
    """ImageNet stem, four stages of two blocks, final batch norm; `fc` is its only linear layer."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.stem_pool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(
            PreActBlock(64, 64, 1, preactivate=False), PreActBlock(64, 64, 1)
        )
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.final_bn = nn.BatchNorm2d(512)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(5, 1)
        self.fc = nn.Linear(512, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, x: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised images (N, in_channels, 160, 160) -> logits (N, num_classes).

        With `return_activations` also the features (N, 512) that enter `fc`.
        """
        x = self.stem_pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = torch.flatten(self.pool(self.relu(self.final_bn(x))), 1)
        logits = self.fc(features)
        return (logits, features) if return_activations else logits

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Name and module, in forward order, of every block's output.

        `norm` is the final batch norm with its ReLU; the flattened output of `features` enters
        `fc`.
        """
        stages = [(f"layer{i}", getattr(self, f"layer{i}")) for i in (1, 2, 3, 4)]
        return [("stem", self.stem_pool), *stages, ("norm", self.relu), ("features", self.pool)]


def preact_resnet18(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """PreActResNet18 for 160x160 images; convolutions start at N(0, 2 / fan_out)."""
    return PreActResNet(num_classes, in_channels)
