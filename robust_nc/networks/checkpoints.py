"""Checkpoints: files of a bare model's weights, ours, published ones or others.

They are read as data alone (`weights_only`), and nothing is loaded that does not fit the network.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.networks.network import Network, Statistics
from utils import InputError, atomic_open

# Where in a file the weights may lie.
WEIGHT_KEYS = ("state_dict", "model", "net")
# Where wrappers keep mean and std, and what the names of the weights beside them begin with.
WRAPPERS = (
    ("normalize.mean", "normalize.std", "model."),
    ("normalize.mean", "normalize.std", ""),
    ("mean", "std", "model."),
    ("0.mean", "0.std", "1."),  # nn.Sequential(Normalize, model)
)


def load_checkpoint(path: Path, network: Network) -> tuple[dict, Statistics | None]:
    """Load the weights of a checkpoint, ours, a published or another one, into a network's model.

    The weights may lie under `state_dict`, `model` or `net` or be the file's whole content, and
    their names may begin with `module.`, as nn.DataParallel saves them. They may stand in a wrapper
    that normalises (WRAPPERS), whose statistics are returned, not yet taken over.

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


def _unwrapped(path: Path, weights: dict, network: Network) -> tuple[dict, Statistics | None]:
    """The bare model's weights, and the statistics of the wrapper that they stood in, if any."""
    if weights.keys() == network.model.state_dict().keys():
        return weights, None
    for mean, std, prefix in WRAPPERS:
        inner = {name: value for name, value in weights.items() if name not in (mean, std)}
        if len(inner) == len(weights) - 2 and all(name.startswith(prefix) for name in inner):
            means = _statistic(path, mean, weights[mean], network)
            stds = _statistic(path, std, weights[std], network)
            if min(stds) <= 0:
                raise InputError(f"{path}: {std} must be above 0, it holds {list(stds)}")
            bare = {n.removeprefix(prefix).removeprefix("module."): v for n, v in inner.items()}
            return bare, (means, stds)
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
    given = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in weights.items()
    }
    differing = [name for name in expected | given if expected.get(name) != given.get(name)]
    last = [name for name in list(expected)[-2:] if name in given]
    if differing and set(differing) <= set(last):
        raise InputError(
            f"{path}: its network has {given[last[0]][0]} classes, the data has "
            f"{expected[last[0]][0]}"
        )
    if differing:
        raise InputError(
            f"{path}: weights of another network: {differing[0]} is "
            f"{given.get(differing[0], 'missing')}, this network has "
            f"{expected.get(differing[0], 'no such entry')}"
        )


def save_checkpoint(path: Path, **content: Any) -> None:
    """Write a file with these entries, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_open(path) as file:
        torch.save(content, file)
