"""Networks for eval mode, with each batch norm folded into the convolution before it."""

import copy
import inspect
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robust_nc.networks.network import Network
from utils import logger


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
