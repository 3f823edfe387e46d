"""Checkpoints: files of a bare model's weights, ours, published ones or others.

They are read as data alone (`weights_only`), and nothing is loaded that does not fit the network.
"""

import argparse
import collections
import pathlib
import pickle
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_nc.networks.network import Network, Statistics
from robust_nc.networks.weights import (
    OPTIONAL,
    WEIGHT_KEYS,
    WeightSet,
    closest,
    find_sets,
    places,
    shape_of,
)
from utils import InputError, atomic_open, logger

# What files of weights hold besides tensors, and is data all the same: flags, scores, arrays.
_scalar: Any = np.float64(0).__reduce__()[0]
_array: Any = np.zeros(1).__reduce__()[0]
DATA: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?", "U1")},
    *[(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    np.ndarray,
    *[(_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")],
]


def load_checkpoint(
    path: Path, network: Network, key: str | None = None, quietly: bool = False
) -> tuple[dict, Statistics | None]:
    """Load the weights of a checkpoint, ours, a published or another one, into a network's model.

    The weights may be the file's whole content or lie under a key, and their names may begin with
    what wrappers put there (weights.py). Where a wrapper that normalises is among these, its
    statistics are returned, not yet taken over. Of several sets of weights the first is used, as a
    log line tells.

    Args:
        key: which of several sets, as the log line calls them.
        quietly: without the log lines.

    Returns:
        The checkpoint's other entries (`epoch`, `seed`, perhaps `optimizer`), and the statistics of
        its wrapper, None where it has none.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, of another network, or holds
            numbers that are not finite.
    """
    return load_weights(path, read_tensors(path), network, key, quietly)


def load_weights(
    path: Path,
    content: Any,
    network: Network,
    key: str | None = None,
    quietly: bool = False,
) -> tuple[dict, Statistics | None]:
    """load_checkpoint for a file whose content has been read."""
    weights, lines = _chosen_set(path, content, network, key)
    for line in () if quietly else lines:
        logger.info(f"{path}: {line}")
    values = weights.values
    infinite = next((n for n, v in values.items() if _is_float(v) and not v.isfinite().all()), None)
    if infinite:
        raise InputError(f"{path}: {infinite} is not finite: the training had diverged")
    statistics = _read_statistics(path, weights, network)
    for name, value in network.model.state_dict().items():
        if name.endswith(OPTIONAL):
            values.setdefault(name, value)
    try:
        network.model.load_state_dict(values)
    except Exception as error:  # what a model of somebody else's does with its own state
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be loaded: {reason}") from error
    beside = content if weights.place else {str(k): v for k, v in content.items()}
    used = {*weights.place[:1]} if weights.place else {n for n in beside if _is_tensor(beside[n])}
    return {name: value for name, value in beside.items() if name not in used}, statistics


def other_key(path: Path, network: Network, key: str | None) -> str:
    """The name of the set of weights that a key chooses; "" where it is used without a key too.

    Raises:
        InputError: as load_checkpoint, where there is a key.
    """
    if key is None:
        return ""
    fitting, chosen, _ = _fitting_sets(path, read_tensors(path), network, key)
    return "" if chosen[0] is fitting[0] else chosen[0].name


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _chosen_set(
    path: Path, content: Any, network: Network, key: str | None
) -> tuple[WeightSet, list[str]]:
    """The set of weights to load, which fits the network, and what is worth knowing of it.

    Raises:
        InputError: there is none, not the one asked for, or there is something beside it that
            would be left out without a word.
    """
    fitting, chosen, shapes = _fitting_sets(path, content, network, key)
    names = _names_of(fitting)
    weights, lines = chosen[0], []
    if len(fitting) > 1:
        which = f"those of {weights.name or 'the whole content'} are used"
        other = "" if key else ", --weights-key chooses others"
        lines.append(f"several sets of weights, {names}: {which}{other}")
    _check_unused(path, weights, shapes, key)
    if weights.unused:
        lines.append(f"left out, beside {weights.name}: {_first([*weights.unused])}")
    return weights, lines


def _fitting_sets(
    path: Path, content: Any, network: Network, key: str | None
) -> tuple[list[WeightSet], list[WeightSet], dict[str, Any]]:
    """The sets of weights that fit the network, those that a key chooses, and its shapes by name.

    Raises:
        InputError: there is none, or not the one asked for.
    """
    if not any(True for _ in places(content)):
        keys = ", ".join(map(repr, WEIGHT_KEYS))
        raise InputError(
            f"{path}: holds no weights: expected a dict of tensors, bare or under a key such as "
            f"{keys}"
        )
    shapes = {name: shape_of(name, v) for name, v in network.model.state_dict().items()}
    sets = find_sets(content, shapes)
    fitting = [one for one in sets if one.has_shapes(shapes)]
    if not fitting:
        _refuse(path, sets[0].values if sets else closest(content, shapes), shapes)
    chosen = [one for one in fitting if key is None or one.chosen_by(key)]
    if not chosen:
        raise InputError(
            f"{path}: --weights-key {key}: no weights of this network, they are: "
            f"{_names_of(fitting)}"
        )
    return fitting, chosen, shapes


def _names_of(sets: list[WeightSet]) -> str:
    return ", ".join(one.name or "the file's whole content" for one in sets)


def _check_unused(path: Path, weights: WeightSet, shapes: dict[str, Any], key: str | None) -> None:
    """Raise InputError on what might be a part of the network, but for that beside a named set."""
    prefix = weights.prefix
    within = {n.removeprefix(prefix): v for n, v in weights.unused.items() if n.startswith(prefix)}
    if within:
        _refuse(path, weights.values | within, shapes)
    if weights.unused and not weights.named_by(key):
        raise InputError(
            f"{path}: beside the weights in {weights.name} it holds {_first([*weights.unused])}, "
            f"which is not of this network; --weights-key {weights.name} leaves it out"
        )


def _read_statistics(path: Path, weights: WeightSet, network: Network) -> Statistics | None:
    """Those of the wrapper that the weights stood in, of images in [0, 1]."""
    if weights.statistics is None:
        return None
    (mean_name, mean_value), (std_name, std_value) = weights.statistics
    means = _statistic(path, mean_name, mean_value, network)
    stds = _statistic(path, std_name, std_value, network)
    if min(stds) <= 0:
        raise InputError(f"{path}: {std_name} must be above 0, it holds {list(stds)}")
    if max(means) > 2 and max(stds) > 2:  # they are of images from 0 to 255
        means, stds = (tuple(v / 255 for v in values) for values in (means, stds))
    return means, stds


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
        with warnings.catch_warnings(), torch.serialization.safe_globals(DATA):
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            return _as_tensors(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a checkpoint") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        line = _line_to_weights(path, refused=isinstance(error, pickle.UnpicklingError))
        if line:
            raise InputError(
                f"{path}: refused, it is not a file of weights alone; if you trust who made it, "
                f"this line of Python turns it into one: {line}"
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise InputError(f"{path}: refused, it is not a file of weights alone") from error
        raise InputError(f"{path}: truncated, or not a PyTorch checkpoint") from error


def _as_tensors(content: Any) -> Any:
    """Nested dicts with a tensor in place of every array of numbers."""
    if isinstance(content, dict):
        return {key: _as_tensors(value) for key, value in content.items()}
    is_array = isinstance(content, np.ndarray) and content.dtype.kind in "fiu"
    return torch.from_numpy(content.copy()) if is_array else content


def _line_to_weights(path: Path, refused: bool) -> str | None:
    """One line of Python that saves the weights of a file of another kind as a file of their own.

    A whole pickled model, a dict that holds one, a model of torch.jit or a file of safetensors.
    """
    source, target = repr(str(path)), repr(str(path.with_suffix(".weights.pth")))
    if path.suffix == ".safetensors":
        load = f"from safetensors.torch import load_file as load; weights = load({source})"
        return f"import torch; {load}; torch.save(weights, {target})"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = archive.read(next(name for name in names if name.endswith("/data.pkl")))
    except (zipfile.BadZipFile, StopIteration, OSError):
        return None
    if any("/code/" in name for name in names):
        return f"import torch; torch.save(torch.jit.load({source}).state_dict(), {target})"
    if not refused:
        return None
    load = f"import torch; content = torch.load({source}, weights_only=False, map_location='cpu')"
    if pickled[2:3] != pickle.EMPTY_DICT:
        return f"{load}; torch.save(content.state_dict(), {target})"
    keys = ", ".join(map(repr, (*WEIGHT_KEYS, "ema")))
    bare = "{k: getattr(v, 'state_dict', lambda: v)() for k, v in content.items() if k in (%s)}"
    return f"{load}; torch.save({bare % keys}, {target})"


def _refuse(path: Path, values: dict[str, Any], shapes: dict[str, Any]) -> None:
    """Raise InputError: weights with these names and values are not those of the network."""
    given = {name: shape_of(name, value) for name, value in values.items()}
    differing = [
        name
        for name in shapes | given
        if shapes.get(name) != given.get(name) and (name in given or not name.endswith(OPTIONAL))
    ]
    last = [name for name in list(shapes)[-2:] if name in given]
    if differing and set(differing) <= set(last):
        raise InputError(
            f"{path}: its network has {given[last[0]][0]} classes, the data has "
            f"{shapes[last[0]][0]}"
        )
    name = differing[0]
    faults = [
        f"{name} is {given.get(name, 'missing')}, this network has "
        f"{shapes.get(name, 'no such entry')}"
    ]
    for names, what in (
        ([name for name in differing if name not in shapes], "in the file alone"),
        ([name for name in differing if name not in given], "in this network alone"),
        ([name for name in differing if name in shapes and name in given], "of another shape"),
    ):
        if names:
            faults.append(f"{what} {_first(names)}")
    raise InputError(f"{path}: weights of another network: {'; '.join(faults)}")


def _first(names: list[str]) -> str:
    """The first three of some names, and how many there are."""
    return f"{', '.join(names[:3])}{', ...' if names[3:] else ''} ({len(names)})"


def save_checkpoint(path: Path, **content: Any) -> None:
    """Write a file with these entries, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_open(path) as file:
        torch.save(content, file)
