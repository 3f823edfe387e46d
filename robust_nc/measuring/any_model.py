"""Accuracy and neural collapse of any model on any loader, in one call: robust_nc.measure.

It needs `attacks`, `nc_metrics` and formulas of this folder alone, so that a project that uses it
meets no other file of ours.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import pgd
from nc_metrics import NeuralCollapse, neural_collapse
from robust_nc.measuring.vertices import find_leaps, vertices_of

# From images (N, C, H, W) in [0, 1] and labels (N,) to the perturbed images.
Attack = Callable[[Tensor, Tensor], Any]
# Of attack="pgd", in units of images in [0, 1].
PGD = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10, "norm": "l_inf", "restarts": 1}


@dataclass(frozen=True)
class ModelMeasurement:
    """What `measure` returns: mean cross-entropy, accuracy in [0, 1] and neural collapse.

    images: how many there were. collapse: its `class_means` are those of the features.
    vertex_agreement: share of images that lie nearest to the clean class mean of the class that the
        model says. vertex_distance: mean distance to that mean, over the mean distance between two
        of them: 0 at the vertex. NaN where the clean class means are not known.
    vertices: the class means (C, D) of these images, NaN for a class without one.
    """

    images: int
    loss: float
    accuracy: float
    collapse: NeuralCollapse
    vertex_agreement: float
    vertex_distance: float
    vertices: Tensor = field(repr=False)


@dataclass
class _Call:
    """The last linear layer that a forward pass has called, with what entered and what left it."""

    layer: nn.Module | None = None
    entered: Any = None
    left: Any = None


def measure(
    model: nn.Module,
    loader: Iterable,
    attack: str | Attack | None = None,
    *,
    classifier: nn.Module | str | None = None,
    clean: ModelMeasurement | None = None,
    **ball: Any,
) -> ModelMeasurement:
    """Accuracy, loss and neural collapse of a model in eval mode, on the images of one pass.

    The features are what enters the classifier, flattened; all of them are held in memory. The
    model's modes are restored and its hooks removed, also where it fails. Random starts of PGD are
    drawn from torch's generator.

    Args:
        model: from images to logits (N, classes), on the device where its weights are; also inside
            DataParallel, DistributedDataParallel or torch.compile. For attacks it takes images in
            [0, 1], so that its normalisation is inside.
        loader: batches that start with images (N, C, H, W), floats or uint8, which are divided by
            255, and labels (N,) from 0 to classes - 1; tensors or NumPy arrays.
        attack: None for the images as they are, "pgd", or a function of images in [0, 1] and labels
            that returns the perturbed images in [0, 1], as other packages do. Those of attacks.py
            return what is added: `lambda x, y: x + pgd(model, x, y, ...)`.
        classifier: the layer that puts out the logits, or its name; None: the last nn.Linear that a
            pass calls.
        clean: what `measure` returned for the clean training images, whose class means are the
            vertices; None: those of these images where there is no attack, not known under one.
        ball: of "pgd", in units of the images: epsilon (8/255), step_size (2/255), steps (10), norm
            ("l_inf" or "l_2"), restarts (1).

    Raises:
        ValueError: arguments, images, labels, features or logits that cannot be used.
    """
    model = _unwrapped(model)
    perturb = _perturbation(model, attack, ball)
    layer = model.get_submodule(classifier) if isinstance(classifier, str) else classifier
    with _eval_mode(model):
        features, labels, logits, weight = _outputs(model, loader, perturb, layer)
    if not (features.isfinite().all() and logits.isfinite().all()):
        raise ValueError("features or logits are not finite: has the training diverged?")
    collapse = neural_collapse(features, labels, logits, weight)
    _tell_missing(labels, logits.shape[1])
    own = vertices_of(collapse.class_means, labels)
    vertices = own if attack is None and clean is None else _clean_vertices(clean, own)
    leaps = find_leaps(features, labels, logits.argmax(1), vertices)
    return ModelMeasurement(
        images=len(labels),
        collapse=collapse,
        loss=F.cross_entropy(logits.double(), labels).item(),
        accuracy=(logits.argmax(1) == labels).double().mean().item(),
        vertex_agreement=leaps.agreement,
        vertex_distance=leaps.distance,
        vertices=own,
    )


def _outputs(
    model: nn.Module, loader: Iterable, perturb: Attack | None, layer: nn.Module | None
) -> tuple[Tensor, ...]:
    """Features (N, D), labels (N,) and logits (N, C) of all images, and the classifier's W (C, D).

    Raises:
        ValueError: there are no images, or their batches end in other layers.
    """
    parts, last = [], layer
    for batch in loader:
        x, y = _tensors(batch, model)
        if perturb is not None:
            x = perturb(x, y)
            model.eval()  # whatever the attack has left it in
        logits, call = _forward(model, x, layer)
        if last is not None and call.layer is not last:
            raise ValueError("batches end in other linear layers: name one as classifier")
        last = call.layer
        parts.append((call.entered.flatten(1), y, logits))
    if last is None:
        raise ValueError("the loader has no batches")
    weight: Any = last.weight
    return *(torch.cat(part) for part in zip(*parts, strict=True)), weight.detach().flatten(1)


def _clean_vertices(clean: ModelMeasurement | None, own: Tensor) -> Tensor:
    """The clean class means (C, D), NaN where they are not known; `own` are these images' own."""
    if clean is None:
        return torch.full_like(own, math.nan)
    if clean.vertices.shape != own.shape:
        raise ValueError(
            f"clean is of another model: its class means are {tuple(clean.vertices.shape)}, those "
            f"of these images {tuple(own.shape)}"
        )
    return clean.vertices.to(own.device)


def _tell_missing(labels: Tensor, classes: int) -> None:
    """Warn of classes without images, whose mean counts as zero, as published."""
    missing = (labels.bincount(minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        warnings.warn(
            f"no image of class {', '.join(map(str, missing))}: its class mean counts as zero, "
            "which changes NC1 to NC3, and it is no vertex",
            RuntimeWarning,
            stacklevel=3,
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that split batches, or that run compiled code without hooks."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _perturbation(model: nn.Module, attack: Any, ball: dict[str, Any]) -> Attack | None:
    if unknown := ball.keys() - PGD.keys():
        raise ValueError(f"unknown {', '.join(sorted(unknown))}; PGD takes {', '.join(PGD)}")
    if ball and attack != "pgd":
        raise ValueError(f'{", ".join(sorted(ball))} of PGD: give attack="pgd" as well')
    if attack == "pgd":
        return lambda x, y: x + pgd(model, x, y, **PGD | ball)  # type: ignore[arg-type]
    if attack is None:
        return None
    if callable(attack):
        return lambda x, y: _perturbed(x, y, attack)
    raise ValueError(f'attack must be None, "pgd" or a function of images and labels: {attack!r}')


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and every module in the mode it was found in afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _tensors(batch: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, on the device and in the float type of the model's weights."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise ValueError(f"batches must be (images, labels), got {type(batch).__name__}")
    x, y = (torch.as_tensor(part) for part in batch[:2])
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1:  # as some data sets have them
        y = y.squeeze(1)
    if y.ndim != 1 or len(y) != len(x):
        raise ValueError(
            f"expected images (N, C, H, W) and labels (N,), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if x.dtype == torch.uint8:
        x = x.float() / 255
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return x.to(weight.device, weight.dtype), y.to(weight.device, torch.int64)


def _perturbed(x: Tensor, y: Tensor, perturb: Attack) -> Tensor:
    """The images that an attack makes of these; a copy is given to it, which it may change.

    Raises:
        ValueError: images outside [0, 1], or what it returns is no images of their shape in [0, 1]:
            as where it returns what is to be added to them.
    """
    where = "; normalise them inside the model"
    _check_range("for an attack the loader's images must be in [0, 1], they are", x, where)
    perturbed = perturb(x.clone(), y)
    if isinstance(perturbed, tuple | list) or getattr(perturbed, "shape", None) != x.shape:
        got = tuple(getattr(perturbed, "shape", ())) or type(perturbed).__name__
        raise ValueError(f"the attack must return perturbed images {tuple(x.shape)}, got {got}")
    perturbed = torch.as_tensor(perturbed, device=x.device).detach().to(x.dtype)
    advice = "; where it returns what is added to the images: lambda x, y: x + attack(x, y)"
    _check_range("the attack must return images in [0, 1], it returns values", perturbed, advice)
    # Of dark images the two can hardly be told apart.
    if (perturbed - x).norm() > min(perturbed.norm(), x.norm()):
        warnings.warn(
            "the attack must return the perturbed images, and these are further from the images "
            f"than one of the two is from black{advice}",
            RuntimeWarning,
            stacklevel=5,
        )
    return perturbed


def _check_range(rule: str, images: Tensor, advice: str) -> None:
    low, high = images.amin().item(), images.amax().item()
    if not -1e-3 <= low <= high <= 1 + 1e-3 and not math.isnan(low + high):
        raise ValueError(f"{rule} from {low:.4g} to {high:.4g}{advice}")


def _forward(model: nn.Module, x: Tensor, classifier: nn.Module | None) -> tuple[Tensor, _Call]:
    """Logits, and the call of the classifier: the last linear layer where none is named.

    Raises:
        ValueError: the classifier is not called, or the logits are not those of the last layer.
    """
    call = _Call()

    def keep(layer: nn.Module, inputs: tuple, output: Any) -> None:
        call.layer, call.entered, call.left = layer, inputs[0].detach(), output

    layers = [classifier] if classifier is not None else _linear_layers(model)
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must put out logits ({len(x)}, classes), got {got}")
    if call.layer is None:
        which = "the classifier" if classifier is not None else "an nn.Linear"
        raise ValueError(f"the model does not call {which}: give the layer of the logits as such")
    if classifier is None and not _same(call.left, logits):
        raise ValueError(
            "the last nn.Linear does not put out the logits: give the layer as classifier"
        )
    return logits, call


def _same(output: Any, logits: Tensor) -> bool:
    """Whether the numbers are the logits, NaN among them too."""
    same_shape = isinstance(output, Tensor) and output.shape == logits.shape
    return same_shape and bool(((output == logits) | (output.isnan() & logits.isnan())).all())


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
