"""Networks for eval mode, with each batch norm folded into the convolution before it.

Which pairs of them look foldable is read off a trace of the model; whether the folded network
computes the same is then tried, since a hook, a norm held under two names or a `train` of the
model's own does not show there.
"""

import copy
import inspect
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robust_nc.networks.any_network import EXTRA_STATE, FEATURES
from robust_nc.networks.blocks import layer_outputs
from robust_nc.networks.network import Network
from utils import logger, random_state_kept, seed_everything

Pairs = list[tuple[str, str]]  # names of a convolution and of the batch norm after it

# Of float32; a difference in what is computed is far larger, and rounding far smaller.
TOLERANCE = 1e-3
# What the weights' rounding to bf16 may change at most, after norms of any statistics.
BF16_TOLERANCE = 0.3
# Images to try a network on whose Anatomy does not tell their size: those of ARCHITECTURES first.
SIZES = (32, 160, 28, 64, 16, 224)


class FoldedNetwork(Network):
    """A copy of a network for eval mode: a batch norm after a convolution is folded into it.

    In eval mode a batch norm is an affine map per channel, so the folded network computes the same
    with fewer passes over the activations, forward and backward. With bf16 the convolutions'
    weights are rounded once, here, not in every forward pass. `refold` follows the network's
    weights. Where that would not compute the same (`exact_pairs`), it is a plain copy.

    Args:
        pairs: what is folded; None: a plain copy. Left out, it is what exact_pairs finds.
    """

    def __init__(self, network: Network, pairs: Pairs | str | None = "exact"):
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        super().__init__(
            copy.deepcopy(network.model).eval(), mean, std, network.bf16, network.anatomy
        )
        self.channels_last = network.channels_last
        self._source = [network]  # in a list: not a part of this module
        if isinstance(pairs, str):
            pairs = exact_pairs(network)
        self.pairs = pairs or []
        for conv_name, norm_name in self.pairs:
            conv = self.model.get_submodule(conv_name)
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            parent, _, child = norm_name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, nn.Identity())
        if self.bf16 and pairs is not None:
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d) and is_plain(module):
                    module.bfloat16()
        self.to(network.mean.device).eval().requires_grad_(False)
        self.refold()

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
        for conv_name, norm_name in self.pairs:
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
        # A list for each pair of types, which is copied by one kernel on a GPU.
        copies: dict[tuple[torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
        for name, value in self.model.state_dict().items():
            owner, _, last = name.rpartition(".")
            if last == EXTRA_STATE:
                self.model.get_submodule(owner).set_extra_state(copy.deepcopy(state[name]))
            else:
                kinds = value.dtype, state[name].dtype
                copies.setdefault(kinds, []).append((value, state[name]))
        for pairs in copies.values():
            targets, sources = zip(*pairs, strict=True)
            torch._foreach_copy_(targets, sources)
        return self


def exact_pairs(network: Network) -> Pairs | None:
    """The pairs whose folding leaves what the network computes as it is; tried on random images.

    None, with one log line, where logits, features or a block's output would be others, or where
    the folded network does not run. The network, the random generators and modes stay as they are.
    """
    pairs = _foldable(network)
    if not pairs and not network.bf16:
        return pairs
    try:
        with random_state_kept(network.mean.device), torch.no_grad():
            fault = _difference(network, pairs)
    except Exception as error:  # a model of somebody else's can raise anything
        fault = f"it does not run: {_reason(error)}"
    if fault is None:
        return pairs
    logger.info(
        f"batch norms are not folded into convolutions, the model is used as it is: {fault}"
    )
    return None


def _foldable(network: Network) -> Pairs:
    """The pairs of conv_norm_pairs, but for those that a block's output lies between."""
    try:
        with random_state_kept(network.mean.device):
            model = copy.deepcopy(network.model).eval()  # a traced pass may leave something in it
            pairs = conv_norm_pairs(model)
    except Exception as error:  # its forward pass can be anything
        logger.info(f"batch norms are not folded, the model cannot be traced: {_reason(error)}")
        return []
    module = network.model.get_submodule
    blocks = [set(block.modules()) for _, block in network.blocks()]
    return [
        (conv, norm)
        for conv, norm in pairs
        if not any(module(conv) in block and module(norm) not in block for block in blocks)
    ]


def _difference(network: Network, pairs: Pairs) -> str | None:
    """What a network with these pairs folded computes otherwise, in words; None: nothing.

    Tried on copies in main memory, in float32, with batch norms of random weights and statistics:
    those of a fresh one, 1 and 0, would hide that they are applied twice, or not at all. So would
    a gate of a branch that is 0, or nearly, to begin with: all weights of one value are random too.
    """
    trial = copy.deepcopy(network).cpu().eval()
    trial.bf16 = False
    seed_everything(0)
    norms = [module for module in trial.modules() if isinstance(module, _BatchNorm)]
    tensors = [tensor for norm in norms for tensor in (*norm.parameters(), *norm.buffers())]
    tensors += [tensor for tensor in trial.model.parameters() if is_constant(tensor)]
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    expected, images = _run(copy.deepcopy(trial), _trial_images(trial))
    trials = [(FoldedNetwork(trial, pairs), TOLERANCE)]
    if network.bf16:
        trial.bf16 = True
        trials.append((FoldedNetwork(trial, pairs), BF16_TOLERANCE))
    for folded, tolerance in trials:
        outputs, _ = _run(folded, [images])
        for name, values in expected.items():
            gap = (outputs[name].float() - values).norm() if name in outputs else torch.nan
            if not gap <= tolerance * values.norm():  # NaN is no agreement either
                return f"{name} would be others"
    return None


def is_constant(tensor: Tensor) -> bool:
    """Whether all values of a tensor are one."""
    return bool((tensor == tensor.flatten()[:1]).all())


def _trial_images(network: Network) -> list[Tensor]:
    """Two random images, in every size that the network may take, the likeliest first."""
    channels = network.mean.numel()
    shapes: list[tuple[int, ...]] = [(channels, size, size) for size in SIZES]
    if network.anatomy is not None:
        shapes = [network.anatomy.image_shape]
    return [torch.rand(2, *shape) for shape in shapes]


def _run(network: Network, batches: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Logits, features and outputs of blocks of the first batch that the network takes; the batch.

    Raises:
        Exception: it takes none; whatever the network raised for the first one.
    """
    errors = []
    for images in batches:
        seed_everything(1)
        try:
            names = [name for name, _ in network.blocks() if name != FEATURES]
            logits, outputs = layer_outputs(network, images, names)
            return {"logits": logits} | outputs, images
        except Exception as error:
            errors.append(error)
    raise errors[0]


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
            and not any(has_backward_hooks(modules[name]) for name in names)
            and names[0] not in read
            and all(owners[id(p)] == 1 for p in conv.parameters())
            and norm.running_mean is not None
        ):
            pairs.append(names)
    return pairs


def is_plain(module: nn.Module) -> bool:
    """Whether its weight is a parameter of its own, not one that is computed from others."""
    return "weight" in module._parameters


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether it changes, or watches, gradients, which no forward pass shows."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
