"""What may make a step faster or slower, measured on and off: SWITCHES=NAME,NAME COMMAND.

Those that begin with "no-" turn off what a run does; the others are tried here alone.
"""

import os
from contextlib import nullcontext
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


# Name -> the attribute that is set, and to what.
SWITCHES: dict[str, tuple[Any, str, Any]] = {
    "no-biases-left-out": (modes, "biases_left_out", lambda *_: nullcontext(0.0)),
    "no-counted-once": (modes, "counted_once", lambda *_, **__: nullcontext()),
    "no-weights-cast": (Network, "weights_cast", lambda network: nullcontext()),
    "benchmark-limit-0": (torch.backends.cudnn, "benchmark_limit", 0),
    "combo-kernels": (torch._inductor.config, "combo_kernels", True),
    "padded-channels": (nn.Conv2d, "_conv_forward", padded_convolution),
}


def set_switches(names: str = os.environ.get("SWITCHES", "")) -> None:
    """Set those that are named, with commas between; for the rest of the process.

    Raises:
        SystemExit: there is no such switch.
    """
    for name in filter(None, names.split(",")):
        if name not in SWITCHES:
            raise SystemExit(f"SWITCHES: no {name!r}; there are {', '.join(SWITCHES)}")
        setattr(*SWITCHES[name])
