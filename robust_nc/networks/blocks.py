"""What a network's blocks put out, and the classifier by the nearest class mean of such outputs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from robust_nc.networks.any_network import FEATURES
from robust_nc.networks.network import Network


class NearestCentre(nn.Module):
    """A classifier by the nearest class mean of a network's features, to be attacked like one.

    `layer` names the block whose output takes the place of the features.

    Its logits are the negative squared distances to the class means (C, D), in units of a tenth of
    the mean squared distance between the means and their centre. The unit changes no prediction,
    but the attack: where logits lie hundreds apart, as those of large features do, the gradient of
    the cross-entropy vanishes and the attack only seems to fail; where they hardly differ, it
    flees its own class towards none. At a tenth PGD was at its strongest or near it.

    Source: Su et al. 2024, nearest-centre classifier.
    """

    class_means: Tensor
    unit: Tensor

    def __init__(self, network: Network, class_means: Tensor, layer: str = FEATURES):
        super().__init__()
        self.network = network
        self.layer = layer
        self.register_buffer("class_means", class_means.double())
        spread = (self.class_means - self.class_means.mean(0)).square().sum(1).mean()
        self.register_buffer("unit", (spread / 10).clamp(min=torch.finfo(torch.float64).tiny))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), float64."""
        _, outputs = layer_outputs(self.network, images, [self.layer])
        return self.classify(outputs[self.layer])

    def classify(self, features: Tensor) -> Tensor:
        """Outputs (N, D) of the layer -> logits (N, classes), float64."""
        features = features.double()
        squared = (
            features.square().sum(1, keepdim=True)
            - 2 * features @ self.class_means.T
            + self.class_means.square().sum(1)
        )
        return -squared / self.unit


def layer_outputs(
    network: Network, images: Tensor, layers: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (N, classes) and the flattened outputs (N, D) of layers, by name.

    Args:
        layers: names of blocks, and FEATURES for the network's own features.
    """
    blocks = [name for name in layers if name != FEATURES]
    with block_outputs(network, blocks) as outputs:
        logits, features = network(images, return_activations=True)
    return logits, outputs | {FEATURES: features}


@contextmanager
def block_outputs(
    network: Network, names: Iterable[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass leaves each block's flattened output (N, D) under its name.

    Args:
        names: of these blocks alone.
    """
    wanted = None if names is None else set(names)
    outputs: dict[str, Tensor] = {}
    classifier = network.classifier

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept = inputs[0] if module is classifier else output
        # A copy, which operations in place that follow do not change.
        outputs[name] = kept.clone(memory_format=torch.contiguous_format).flatten(1)

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in network.blocks()
        if wanted is None or name in wanted
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
