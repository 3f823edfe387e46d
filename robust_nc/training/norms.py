"""What batch norms in train mode do once in a step, instead of in each of its passes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_nc.networks.folding import Pairs
from robust_nc.networks.network import Network

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def moving_norms(network: nn.Module) -> list[Norm]:
    """The batch norms that a pass moves by a momentum; one without averages over all batches."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        and module.training
        and module.momentum is not None
    ]


@contextmanager
def statistics_moved(network: nn.Module, times: int) -> Iterator[None]:
    """A pass in train mode moves the running statistics as far as `times` equal passes would.

    Norms in eval mode have nothing moved. One without a momentum counts the pass once.
    """
    norms = moving_norms(network)
    momenta = [norm.momentum or 0.0 for norm in norms]
    counts = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
    if counts:
        torch._foreach_add_(counts, times - 1)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = 1 - (1 - momentum) ** times
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def counted_once(network: Network, passes: int) -> Iterator[None]:
    """The batch norms count so many passes in one kernel, here, and none inside.

    Of the networks of ARCHITECTURES alone, whose pass uses each of its norms once.
    """
    norms = moving_norms(network) if network.anatomy is None else []
    counts = {n: n.num_batches_tracked for n in norms if n.num_batches_tracked is not None}
    if counts:
        torch._foreach_add_([*counts.values()], passes)
    for norm in counts:
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, count in counts.items():
            norm.num_batches_tracked = count


@contextmanager
def biases_left_out(network: Network, pairs: Pairs) -> Iterator[Tensor | float]:
    """Inside, a convolution before a batch norm in train mode adds no bias to its output.

    The norm takes the bias away again with the mean of the batch: only its running mean has it,
    and gets it here, once. By the mathematics the gradient of such a bias is zero. What is yielded
    is a zero to be added to the loss, through which it is, so that weight decay acts on the bias.

    Args:
        pairs: names of the convolutions and of the norms after them, as a FoldedNetwork has them.
            Networks of other packages, whose norms may do otherwise, are left alone.
    """
    module = network.model.get_submodule
    layers = [(module(conv), module(norm)) for conv, norm in pairs if network.anatomy is None]
    layers = [(conv, norm) for conv, norm in layers if norm.training and conv.bias is not None]
    if not layers:
        yield 0.0
        return
    convolutions = [conv for conv, _ in layers]
    biases = [conv.bias for conv in convolutions]
    shifts = [bias.detach() for bias in biases]
    # Autograd keeps running means for a backward pass that does not read them in train mode. By
    # .data, as the norms themselves, they are moved without its taking offence.
    means = [norm.running_mean.data for _, norm in layers]
    torch._foreach_sub_(means, shifts)
    for conv in convolutions:
        conv.bias = None
    try:
        yield (0 * torch.cat(biases)).sum()
    finally:
        for conv, bias in zip(convolutions, biases, strict=True):
            conv.bias = bias
        torch._foreach_add_(means, shifts)
