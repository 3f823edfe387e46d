"""Networks of other packages: any factory of an nn.Module that ends in a linear layer.

The model stays as its factory made it, weights and their names included. Where its features and its
blocks are is found by watching which of its modules a forward pass uses.
"""

import copy
import importlib
import inspect
import io
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from utils import InputError, logger, random_state_kept

FEATURES = "features"  # as a layer's name: what enters the last linear layer
# The last part of the name under which a state_dict holds what a module's get_extra_state gives.
EXTRA_STATE = "_extra_state"


def is_factory(name: str) -> bool:
    """Whether a name of --model is PACKAGE.MODULE:FACTORY."""
    return ":" in name


def folder_name(name: str) -> str:
    """A name of --model as a folder: package.module.factory, which no other factory has."""
    return name.replace(":", ".")


def find_factory(name: str) -> Callable[..., Any]:
    """The callable that PACKAGE.MODULE:FACTORY names; modules in the current folder count too.

    Raises:
        ValueError: there is none; its text says what is missing.
    """
    module_name, _, factory_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), factory_name)):
        raise ValueError(f"expected PACKAGE.MODULE:FACTORY, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it hides no installed package
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of somebody else's can raise anything
        raise ValueError(f"{module_name} cannot be imported: {_reason(error)}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"{where} holds no function or class {factory_name!r}")
    return factory


def make_model(
    name: str, in_channels: int, num_classes: int, given: dict[str, Any] | None = None
) -> nn.Module:
    """The model that a factory makes, called with `num_classes`, and `in_channels` if it takes it.

    Args:
        given: more keywords of the call.

    Raises:
        InputError: the factory fails, or makes something else.
    """
    factory, arguments = find_factory(name), {"num_classes": num_classes}
    try:
        if "in_channels" in inspect.signature(factory).parameters:
            arguments["in_channels"] = in_channels
        arguments |= given or {}
        model = factory(**arguments)
    except (Exception, SystemExit) as error:
        call = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise InputError(f"--model {name}: called with {call}: {_reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--model {name}: makes a {type(model).__name__}, expected an nn.Module")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise InputError(f"--model {name}: has lazy layers, whose sizes must be given instead")
    return model


@dataclass(frozen=True)
class Anatomy:
    """Where in a model its features and its blocks are.

    classifier: name of the linear layer that puts out the logits; what enters it are the features.
    children: name of a block -> name of its module, in forward order; None: the model has a method
        `blocks` of its own.
    channels_last: whether the model runs in that memory format.
    takes_one_image: whether it can be trained on a batch of one image.
    image_shape: (C, H, W) of the images that it was examined with.
    """

    classifier: str
    children: dict[str, str] | None
    channels_last: bool
    takes_one_image: bool
    image_shape: tuple[int, ...]

    def outputs(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and features (N, D) of normalised images x (N, C, H, W)."""
        classifier: Any = model.get_submodule(self.classifier)
        logits = model(x)
        features, classifier.entered = classifier.entered.flatten(1), None
        return logits, features

    def blocks(self, model: Any) -> list[tuple[str, nn.Module]]:
        """Name and module of every block in forward order."""
        if self.children is None:
            return list(model.blocks())
        return [(name, model.get_submodule(path)) for name, path in self.children.items()]


def _keep_what_enters(classifier: Any, inputs: tuple[Tensor, ...]) -> None:
    """A forward pre-hook. On the module itself: so a copy of the model keeps what is its own."""
    classifier.entered = inputs[0]


def examine(name: str, model: nn.Module, image_shape: tuple[int, ...], classes: int) -> Anatomy:
    """Find features and blocks of a model of make_model by passes of two random images.

    The blocks are its top-level children that take part, in forward order (that of their last call
    where there are more): `features`, what enters the last linear layer, takes the place of the
    child that holds this layer. The model's weights, statistics and mode stay as they are, and so
    does the global random generator; from here on the last linear layer keeps what enters it.

    Args:
        image_shape: (C, H, W).

    Raises:
        InputError: the model does not take such images, does not put out logits (N, classes), or
            these do not come from a linear layer.
    """
    try:
        with random_state_kept(torch.device("cpu")), torch.no_grad():
            torch.manual_seed(0)
            return _examined(model, torch.rand(2, *image_shape), classes)
    except InputError as error:
        raise InputError(f"--model {name}: {error}") from error


def _examined(model: nn.Module, images: Tensor, classes: int) -> Anatomy:
    try:
        trial = copy.deepcopy(model).train()
    except Exception as error:
        raise InputError(f"copy.deepcopy cannot copy it: {_reason(error)}") from error
    shape = "x".join(map(str, images.shape[1:]))
    try:
        in_training = trial(images)
        trial.eval()
        logits, linear = _watch(trial, images, _linear_layers(trial))
        _, used = _watch(trial, images, dict(trial.named_children()))
    except Exception as error:  # a model of somebody else's can raise anything
        raise InputError(
            f"does not take images of {shape} (a factory with the argument in_channels is given "
            f"the number of channels): {_reason(error)}"
        ) from error
    for output in (in_training, logits):
        _check_logits(output, (len(images), classes))
    classifier = _check_classifier(trial, linear, logits)
    _check_extra_state(trial)
    model.get_submodule(classifier).register_forward_pre_hook(_keep_what_enters)
    names = [name for name, seen in used.items() if _puts_out(seen, len(images))]
    layout = torch.channels_last
    refused = _refused(trial.to(memory_format=layout), images.clone(memory_format=layout))
    if refused:
        logger.info(f"channels-last is left out, in which the model does not run: {refused}")
    return Anatomy(
        classifier,
        None if _has_blocks(trial, images, classifier) else _children(names, classifier),
        channels_last=refused is None,
        takes_one_image=_refused(trial.train(), images[:1]) is None,
        image_shape=tuple(images.shape[1:]),
    )


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def _watch(
    model: nn.Module, images: Tensor, modules: dict[str, nn.Module]
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The model's output, and input and output of each module used, in the order of last calls."""
    seen: dict[str, tuple[Any, Any]] = {}

    def keep(name: str, _: nn.Module, inputs: tuple, output: Any) -> None:
        seen.pop(name, None)
        # A copy, which operations in place that follow do not change.
        kept = output.clone() if isinstance(output, Tensor) else output
        seen[name] = (inputs[0] if inputs else None, kept)

    hooks = [m.register_forward_hook(partial(keep, name)) for name, m in modules.items()]
    try:
        return model(images), seen
    finally:
        for hook in hooks:
            hook.remove()


def _check_logits(output: Any, shape: tuple[int, int]) -> None:
    if not isinstance(output, Tensor):
        raise InputError(
            f"its output is a {type(output).__name__}, expected one tensor, the logits (N, classes)"
        )
    if output.shape != shape:
        raise InputError(
            f"its output has the shape {tuple(output.shape)}, expected logits {shape}, of "
            f"{shape[0]} images and {shape[1]} classes"
        )


def _check_classifier(model: nn.Module, linear: dict[str, tuple[Any, Any]], logits: Tensor) -> str:
    """The name of the linear layer that puts out the logits."""
    needed = "features are what enters a last nn.Linear, which puts out the logits"
    if not linear:
        kinds = dict.fromkeys(type(m).__name__ for m in model.modules() if m is not model)
        fault = f"it has none among {', '.join(kinds) or 'no modules at all'}"
        if _linear_layers(model):
            fault = f"none of its layers {', '.join(_linear_layers(model))} is called"
        raise InputError(f"{needed}; {fault}")
    name, (entered, output) = list(linear.items())[-1]
    if output.numel() != logits.numel() or not torch.equal(output.flatten(1), logits):
        raise InputError(
            f"{needed}; its last one, {name}, puts out other numbers, of the shape "
            f"{tuple(output.shape)}"
        )
    if not isinstance(entered, Tensor):
        raise InputError(
            f"{needed}; its last one, {name}, is called without a tensor in first place"
        )
    return name


def _has_blocks(model: Any, images: Tensor, classifier: str) -> bool:
    """Whether the model has a method `blocks`.

    Raises:
        InputError: what it lists is not used in a forward pass, puts out no tensor, or has a name
            that another layer has.
    """
    if not inspect.ismethod(getattr(model, "blocks", None)):
        return False
    try:
        pairs = [(name, module) for name, module in model.blocks()]
        listed = dict(pairs)
        _, used = _watch(model, images, listed)
        if not all(isinstance(name, str) for name in listed):
            raise TypeError("a name is a string")
    except Exception as error:
        raise InputError(
            f"its method blocks() must list (name, module) of each block: {_reason(error)}"
        ) from error
    wrong = [name for name in listed if not _puts_out(used.get(name), len(images))]
    if wrong or not listed:
        names = ", ".join(wrong) or "nothing"
        raise InputError(f"its method blocks() lists {names}, of which a pass has no output tensor")
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise InputError(
            f"its method blocks() lists two blocks of the name {twice[0]}: name each otherwise"
        )
    if FEATURES in listed and listed[FEATURES] is not model.get_submodule(classifier):
        _, last = _watch(model, images, {classifier: model.get_submodule(classifier)})
        entered, output = last[classifier][0], used[FEATURES][1]
        if not torch.equal(entered.flatten(1), output.flatten(1)):
            raise InputError(
                f"its method blocks() lists {FEATURES}, a name that is kept for what enters the "
                "last linear layer: name this block otherwise"
            )
    return True


def _children(names: list[str], classifier: str) -> dict[str, str]:
    """Block -> module, of these children: `features` takes the place of the classifier's.

    A child of that very name gets an underscore, or as many as no other child has.
    """
    holder = classifier.split(".")[0]
    own = FEATURES
    while own in names:
        own += "_"
    blocks = {own if n == FEATURES else n: n for n in names if n != holder}
    return blocks | {FEATURES: classifier}


def _check_extra_state(model: nn.Module) -> None:
    """Raise InputError where a checkpoint could not bring back what get_extra_state gives."""
    extra = {n: v for n, v in model.state_dict().items() if n.rpartition(".")[2] == EXTRA_STATE}
    if not extra:
        return
    file = io.BytesIO()
    try:
        torch.save(extra, file)
        file.seek(0)
        model.load_state_dict(model.state_dict() | torch.load(file, weights_only=True))
    except Exception as error:
        raise InputError(
            "the state of its get_extra_state cannot be read back from a checkpoint, which holds "
            "tensors, numbers, strings, and lists and dicts of them, and needs a set_extra_state: "
            f"{_reason(error)[:200]}"
        ) from error


def _puts_out(seen: tuple[Any, Any] | None, count: int) -> bool:
    """Whether a module was used, and its output is a tensor of so many images."""
    output = seen and seen[1]
    return isinstance(output, Tensor) and output.ndim > 0 and len(output) == count


def _refused(model: nn.Module, images: Tensor) -> str | None:
    """Why the model does not take the images, in one line; None where it does."""
    try:
        model(images)
    except (RuntimeError, ValueError) as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
