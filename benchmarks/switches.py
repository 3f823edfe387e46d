"""What may make a step faster or slower: a stage of gpu.py times each; SWITCHES=NAME,NAME COMMAND.

Those that begin with "no-" turn off what a run does; the others are tried here alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn

from robust_nc.networks.network import Network
from robust_nc.training import modes

conv_forward = nn.Conv2d._conv_forward


def padded_convolution(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution whose input channels are filled up with zeros to a multiple of four."""
    if missing := -weight.shape[1] % 4:
        padding = (0, 0, 0, 0, 0, missing)
        x, weight = F.pad(x, padding), F.pad(weight, padding)
    return conv_forward(conv, x, weight, bias)


@dataclass(frozen=True)
class Switch:
    """An attribute of a module or class, its other value, and the variant that is timed with it."""

    owner: Any
    attribute: str
    value: Any
    variant: str = "tf32+graph"

    def turn(self) -> None:
        setattr(self.owner, self.attribute, self.value)

    @contextmanager
    def turned(self) -> Iterator[None]:
        former = getattr(self.owner, self.attribute)
        self.turn()
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, former)


SWITCHES = {
    "no-biases-left-out": Switch(modes, "biases_left_out", lambda *_: nullcontext(0.0)),
    "no-counted-once": Switch(modes, "counted_once", lambda *_, **__: nullcontext()),
    "padded-channels": Switch(nn.Conv2d, "_conv_forward", padded_convolution),
    "benchmark-limit-0": Switch(torch.backends.cudnn, "benchmark_limit", 0),
    "no-weights-cast": Switch(Network, "weights_cast", lambda network: nullcontext(), "bf16+graph"),
    "combo-kernels": Switch(torch._inductor.config, "combo_kernels", True, "bf16+compile+graph"),
}


def set_switches(names: str = os.environ.get("SWITCHES", "")) -> None:
    """Turn those that are named, with commas between; for the rest of the process.

    Raises:
        SystemExit: there is no such switch.
    """
    for name in filter(None, names.split(",")):
        if name not in SWITCHES:
            raise SystemExit(f"SWITCHES: no {name!r}; there are {', '.join(SWITCHES)}")
        SWITCHES[name].turn()
