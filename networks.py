"""Networks: architectures by name and image size, and what stands around a bare model.

An architecture is a row of ARCHITECTURES. Its interface: `forward(x, return_activations=False)`
takes normalised images and returns logits (N, C), and with `return_activations` also the features
(N, D) that enter its only linear layer; `blocks()` lists the name and module of each block in
forward order, the last of which puts out the features. A network of another package has an Anatomy
instead. Checkpoints hold the bare model.
"""

import copy
import inspect
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import any_network
import preactresnet
import preactresnet_imagenet
import resnet
import vgg
import vgg_imagenet
from any_network import Anatomy
from utils import InputError, logger

# Mean and standard deviation per channel, in [0, 1] units, that normalise images.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

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
    """The architecture of ARCHITECTURES, or of a factory, for images of that size, freshly made.

    Raises:
        InputError: the factory fails.
    """
    if any_network.is_factory(name):
        return any_network.make_model(name, in_channels, num_classes)
    return ARCHITECTURES[name][image_size](num_classes=num_classes, in_channels=in_channels)


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 arithmetic; where it has not, PyTorch emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def weight_bytes(model: nn.Module) -> int:
    """What a model's weights and statistics take in a checkpoint."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


class Network(nn.Module):
    """A model after the normalisation of its data, so that attacks see images in [0, 1].

    With `bf16` the model runs under autocast; logits and features come out as float32 all the
    same. Checkpoints hold the bare `model`. Without an `anatomy` it has the interface of
    ARCHITECTURES.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Iterable[float],
        std: Iterable[float],
        bf16: bool = False,
        anatomy: Anatomy | None = None,
    ):
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.anatomy = anatomy
        self.channels_last = False
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1))

    def forward(
        self, images: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), and features (N, D) if asked."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            x = (images - self.mean) / self.std
            if self.channels_last:
                x = x.clone(memory_format=torch.channels_last)  # of one channel too
            if self.anatomy is None:
                logits, features = self.model(x, return_activations=True)
            else:
                logits, features = self.anatomy.outputs(self.model, x)
        return (logits.float(), features.float()) if return_activations else logits.float()

    def to_channels_last(self) -> "Network":
        """Lay out weights, activations and images so; returns itself.

        Images too: given others, the first convolution has its gradient copied twice on a GPU.
        """
        self.channels_last = True
        return self.to(memory_format=torch.channels_last)

    def normalise_by(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Take other statistics per channel; a folded network follows when it is refolded."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.tensor(tuple(values)).view(1, -1, 1, 1))

    def normalises_by(self, statistics: Statistics) -> bool:
        """Whether its statistics are these, in float32."""
        mean, std = map(torch.tensor, statistics)
        return torch.equal(mean, self.mean.cpu().flatten()) and torch.equal(
            std, self.std.cpu().flatten()
        )

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer, the only one that the models of ARCHITECTURES have."""
        if self.anatomy is not None:
            return self.model.get_submodule(self.anatomy.classifier)
        return next(m for m in self.model.modules() if isinstance(m, nn.Linear))

    @property
    def classifier_weight(self) -> Tensor:
        """Weight (classes, D) of the last linear layer."""
        return self.classifier.weight.detach()

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Name and module of every block in forward order.

        Where the module is the classifier, the block is what enters it.
        """
        return self.model.blocks() if self.anatomy is None else self.anatomy.blocks(self.model)


class FoldedNetwork(Network):
    """A copy of a network for eval mode: a batch norm after a convolution is folded into it.

    In eval mode a batch norm is an affine map per channel, so the folded network computes the same
    with fewer passes over the activations, forward and backward. With bf16 the convolutions'
    weights are rounded once, here, not in every forward pass. `refold` follows the network's
    weights.
    """

    def __init__(self, network: Network):
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        super().__init__(
            copy.deepcopy(network.model).eval(), mean, std, network.bf16, network.anatomy
        )
        self.channels_last = network.channels_last
        self._source = [network]  # in a list: not a part of this module
        self._pairs = self._foldable()
        for conv_name, norm_name in self._pairs:
            conv = self.model.get_submodule(conv_name)
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            parent, _, child = norm_name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, nn.Identity())
        if self.bf16:
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d) and is_plain(module):
                    module.bfloat16()
        self.to(network.mean.device).eval().requires_grad_(False)
        self.refold()

    def _foldable(self) -> list[tuple[str, str]]:
        """The pairs of conv_norm_pairs, but for those that a block's output lies between."""
        blocks = [set(module.modules()) for _, module in self.blocks()]
        module = self.model.get_submodule
        try:
            pairs = conv_norm_pairs(self.model)
        except Exception as error:  # its forward pass can be anything
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.info(f"batch norms are not folded, the model cannot be traced: {reason}")
            return []
        return [
            (conv, norm)
            for conv, norm in pairs
            if not any(module(conv) in block and module(norm) not in block for block in blocks)
        ]

    def train(self, mode: bool = False) -> "FoldedNetwork":
        """Stays in eval mode, the only one that it has."""
        return super().train(False)

    @torch.no_grad()
    def refold(self) -> "FoldedNetwork":
        """Take over the present weights and statistics of the network; returns itself."""
        network = self._source[0]
        self.mean.copy_(network.mean)
        self.std.copy_(network.std)
        model = network.model
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
    """Names of the (convolution, batch norm) pairs in which the norm alone uses the convolution.

    Both are called once, and the weights of the convolution are its own and used nowhere else.
    """
    modules = dict(model.named_modules())
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    graph = fx.symbolic_trace(model, concrete_args=defaults).graph
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        names = str(source.target), str(node.target)
        conv, norm = (modules[name] for name in names)
        if (
            isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and [calls[name] for name in names] == [1, 1]
            and len(source.users) == 1
            and is_plain(conv)
            and names[0] not in read
            and all(owners[id(p)] == 1 for p in conv.parameters())
            and norm.running_mean is not None
        ):
            pairs.append(names)
    return pairs


def is_plain(module: nn.Module) -> bool:
    """Whether its weight is a parameter of its own, not one that is computed from others."""
    return "weight" in module._parameters


FEATURES = "features"  # what enters the last linear layer, as a layer's name


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
    with block_outputs(network, blocks) as found:
        logits, features = network(images, return_activations=True)
    return logits, found | {FEATURES: features}


@contextmanager
def block_outputs(
    network: Network, names: Iterable[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass leaves each block's flattened output (N, D) under its name.

    Args:
        names: of these blocks alone.
    """
    wanted = None if names is None else set(names)
    found: dict[str, Tensor] = {}
    classifier = network.classifier

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept = inputs[0] if module is classifier else output
        # A copy, which operations in place that follow do not change.
        found[name] = kept.clone(memory_format=torch.contiguous_format).flatten(1)

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in network.blocks()
        if wanted is None or name in wanted
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def load_checkpoint(path: Path, network: Network) -> tuple[dict, Statistics | None]:
    """Load the weights of a checkpoint, ours, a published or another one, into a network's model.

    The weights may lie under `state_dict`, `model` or `net` or be the file's whole content, and
    their names may begin with `module.`, as nn.DataParallel saves them. They may stand in a wrapper
    that normalises (WRAPPERS), whose statistics are told, not yet taken over.

    Returns:
        The checkpoint's other entries (`epoch`, `seed`, perhaps `optimizer`), and the statistics of
        its wrapper, None where it has none.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, of another network, or holds
            numbers that are not finite.
    """
    return load_weights(path, read_tensors(path), network)


def load_weights(path: Path, checkpoint: Any, network: Network) -> tuple[dict, Statistics | None]:
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
    weights, statistics = _unwrapped(path, weights, network)
    _check_fit(path, weights, network.model)
    infinite = next(
        (n for n, v in weights.items() if v.is_floating_point() and not v.isfinite().all()), None
    )
    if infinite:
        raise InputError(f"{path}: {infinite} is not finite: the training had diverged")
    network.model.load_state_dict(weights)
    return rest, statistics


WEIGHT_KEYS = ("state_dict", "model", "net")
# Where wrappers keep mean and std, and what the names of the weights beside them begin with.
WRAPPERS = (
    ("normalize.mean", "normalize.std", "model."),
    ("normalize.mean", "normalize.std", ""),
    ("mean", "std", "model."),
    ("0.mean", "0.std", "1."),  # nn.Sequential(Normalize, model)
)


def _unwrapped(path: Path, weights: dict, network: Network) -> tuple[dict, Statistics | None]:
    """The bare model's weights, and the statistics of the wrapper that they stood in, if any."""
    if weights.keys() == network.model.state_dict().keys():
        return weights, None
    for mean, std, prefix in WRAPPERS:
        inner = {name: value for name, value in weights.items() if name not in (mean, std)}
        if len(inner) == len(weights) - 2 and all(name.startswith(prefix) for name in inner):
            found = tuple(_statistic(path, name, weights[name], network) for name in (mean, std))
            if min(found[1]) <= 0:
                raise InputError(f"{path}: {std} must be above 0, it holds {list(found[1])}")
            bare = {n.removeprefix(prefix).removeprefix("module."): v for n, v in inner.items()}
            return bare, (found[0], found[1])
    return weights, None


def _statistic(path: Path, name: str, value: Any, network: Network) -> tuple[float, ...]:
    """A wrapper's mean or std, a number per channel."""
    channels = network.mean.numel()
    if not isinstance(value, Tensor) or value.numel() != channels or not value.isfinite().all():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{path}: {name} must hold a finite number for each of {channels} channels; it is "
            f"{shape}"
        )
    return tuple(value.flatten().tolist())


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
