"""Networks: architectures by name and image size, and what stands around a bare model.

An architecture is a row of ARCHITECTURES. Its interface: `forward(x, return_activations=False)`
takes normalised images and returns logits (N, C), and with `return_activations` also the features
(N, D) that enter its only linear layer; `blocks()` lists the name and module of each block in
forward order, the last of which puts out the features. Checkpoints hold the bare model.
"""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import preactresnet
import preactresnet_imagenet
import resnet
import vgg
import vgg_imagenet
from utils import InputError

# Name -> image size -> factory (num_classes, in_channels) of a model with fresh weights.
ARCHITECTURES: dict[str, dict[int, Callable[..., nn.Module]]] = {
    "vgg11bn": {32: vgg.vgg11_bn, 160: vgg_imagenet.vgg11_bn_pool},
    "PreActResNet18": {
        32: preactresnet.PreActResNet18,
        160: preactresnet_imagenet.preact_resnet18,
    },
    "ResNet18": {32: resnet.ResNet18},
}


def build_model(name: str, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
    """The architecture of ARCHITECTURES for images of that size, with fresh weights."""
    return ARCHITECTURES[name][image_size](num_classes=num_classes, in_channels=in_channels)


class Network(nn.Module):
    """A model behind the normalisation of its data, so that attacks see images in [0, 1].

    With `bf16` the model runs under autocast; logits and features come out as float32 all the
    same. Checkpoints hold the bare `model`.
    """

    model: Any  # of ARCHITECTURES
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Iterable[float], std: Iterable[float], bf16: bool = False
    ):
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1))

    def forward(
        self, images: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), and features (N, D) if asked."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits, features = self.model((images - self.mean) / self.std, return_activations=True)
        return (logits.float(), features.float()) if return_activations else logits.float()

    @property
    def classifier_weight(self) -> Tensor:
        """Weight (classes, D) of the last linear layer, the only one that the models have."""
        return next(m for m in self.model.modules() if isinstance(m, nn.Linear)).weight.detach()


class FoldedNetwork(Network):
    """A copy of a network for eval mode: a batch norm after a convolution is folded into it.

    In eval mode a batch norm is an affine map per channel, so the folded network computes the same
    with fewer passes over the activations, forward and backward. With bf16 the convolutions'
    weights are rounded once, here, not in every forward pass. `refold` follows the network's
    weights.
    """

    def __init__(self, network: Network):
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        super().__init__(copy.deepcopy(network.model), mean, std, network.bf16)
        self._source = [network.model]  # in a list: not a part of this module
        self._pairs = conv_norm_pairs(self.model)
        for conv_name, norm_name in self._pairs:
            conv = self.model.get_submodule(conv_name)
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            parent, _, child = norm_name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, nn.Identity())
        if self.bf16:
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d):
                    module.bfloat16()
        self.to(network.mean.device).eval().requires_grad_(False)
        self.refold()

    def train(self, mode: bool = False) -> "FoldedNetwork":
        """Stays in eval mode, the only one that it has."""
        return super().train(False)

    @torch.no_grad()
    def refold(self) -> "FoldedNetwork":
        """Take over the present weights and statistics of the network; returns itself."""
        model: Any = self._source[0]
        state = model.state_dict()
        for conv_name, norm_name in self._pairs:
            conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
            state[f"{conv_name}.weight"], state[f"{conv_name}.bias"] = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
        for name, value in self.model.state_dict().items():
            value.copy_(state[name])
        return self


def conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the (convolution, batch norm) pairs in which the norm alone uses the convolution."""
    modules = dict(model.named_modules())
    graph = fx.symbolic_trace(model, concrete_args={"return_activations": False}).graph
    pairs = []
    for node in graph.nodes:
        if isinstance(modules.get(str(node.target)), nn.BatchNorm2d):
            source = node.args[0]
            if isinstance(modules.get(str(source.target)), nn.Conv2d) and len(source.users) == 1:
                pairs.append((source.target, node.target))
    return pairs


class NearestCentre(nn.Module):
    """A classifier by the nearest class mean of a network's features, to be attacked like one.

    Its logits are the negative squared distances to the class means (C, D), in units of a tenth of
    the mean squared distance between the means and their centre. The unit changes no prediction,
    but the attack: where logits lie hundreds apart, as those of large features do, the gradient of
    the cross-entropy vanishes and the attack only seems to fail; where they hardly differ, it
    flees its own class towards none. At a tenth PGD was at its strongest or near it.

    Source: Su et al. 2024, nearest-centre classifier.
    """

    class_means: Tensor
    unit: Tensor

    def __init__(self, network: Network, class_means: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("class_means", class_means.double())
        spread = (self.class_means - self.class_means.mean(0)).square().sum(1).mean()
        self.register_buffer("unit", (spread / 10).clamp(min=torch.finfo(torch.float64).tiny))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), float64."""
        _, features = self.network(images, return_activations=True)
        return self.classify(features)

    def classify(self, features: Tensor) -> Tensor:
        """Features (N, D) -> logits (N, classes), float64."""
        features = features.double()
        squared = (
            features.square().sum(1, keepdim=True)
            - 2 * features @ self.class_means.T
            + self.class_means.square().sum(1)
        )
        return -squared / self.unit


@contextmanager
def block_outputs(network: Network) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass leaves each block's flattened output (N, D) under its name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        found[name] = output.flatten(1)

    hooks = [
        module.register_forward_hook(partial(keep, name)) for name, module in network.model.blocks()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def load_checkpoint(path: Path, model: nn.Module) -> dict:
    """Load the weights of a checkpoint, ours, a published or another one, into a bare model.

    The weights may lie under `state_dict`, `model` or `net` or be the file's whole content, and
    their names may begin with `module.`, as nn.DataParallel saves them.

    Returns:
        The checkpoint's other entries: `epoch`, `seed`, perhaps `optimizer`.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, of another network, or holds
            numbers that are not finite.
    """
    return load_weights(path, read_tensors(path), model)


def load_weights(path: Path, checkpoint: Any, model: nn.Module) -> dict:
    """load_checkpoint for a file whose content has been read."""
    rest = {}
    if isinstance(checkpoint, dict):
        key = next((k for k in WEIGHT_KEYS if isinstance(checkpoint.get(k), dict)), None)
        weights = checkpoint[key] if key else checkpoint
        rest = {k: value for k, value in checkpoint.items() if key and k != key}
    if not isinstance(checkpoint, dict) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(
            f"{path}: holds no weights: expected a dict of tensors, bare or under "
            f"{', '.join(map(repr, WEIGHT_KEYS))}"
        )
    weights = {str(name).removeprefix("module."): value for name, value in weights.items()}
    _check_fit(path, weights, model)
    infinite = next(
        (n for n, v in weights.items() if v.is_floating_point() and not v.isfinite().all()), None
    )
    if infinite:
        raise InputError(f"{path}: {infinite} is not finite: the training had diverged")
    model.load_state_dict(weights)
    return rest


WEIGHT_KEYS = ("state_dict", "model", "net")


def read_tensors(path: Path) -> Any:
    """The content of a file of torch.save, as long as it is data and not code.

    Raises:
        InputError: the file is missing, damaged or code.
    """
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a checkpoint") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it is not a file of weights alone") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path}: truncated, or not a PyTorch checkpoint") from error


def _check_fit(path: Path, weights: dict, model: nn.Module) -> None:
    """Raise InputError if the weights are not those of the model, by name and shape."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in weights.items()
    }
    differing = [n for n in (expected | found) if expected.get(n) != found.get(n)]
    last = [name for name in list(expected)[-2:] if name in found]
    if differing and set(differing) <= set(last):
        raise InputError(
            f"{path}: its network has {found[last[0]][0]} classes, the data has "
            f"{expected[last[0]][0]}"
        )
    if differing:
        raise InputError(
            f"{path}: weights of another network: {differing[0]} is "
            f"{found.get(differing[0], 'missing')}, this network has "
            f"{expected.get(differing[0], 'no such entry')}"
        )
