"""Adversarial attacks and noise on images in [0, 1].

`model` is any module from images (N, C, H, W) in [0, 1] to logits. Every function returns the
perturbation `delta`, shaped like the images, with x + delta in [0, 1]. All draws are made with the
global random generator, in the order in which they are documented. Only the gradient of the input
is computed: the weights are frozen while an attack runs.

What an image gets does not depend on how many are attacked with it (in eval mode, up to rounding):
draws are made for CHUNK images at a time, and losses averaged over CHUNK images at most.

Images outside [0, 1] are refused where they lie on the CPU. On a GPU they are not looked at: to
read a value there is to wait for the device, which a training step must not, least of all while it
is captured as a CUDA graph.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("l_inf", "l_2")
CHUNK = 128  # the published batch size


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: str = "l_inf",
    restarts: int = 1,
    targeted: bool = False,
    score: bool = True,
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> Tensor:
    """Projected gradient descent on a loss, in the mode that the model is in.

    A model in train mode has its running statistics moved by each of the (steps + 1) forward
    passes per restart: the last one scores the perturbation. In eval mode with a single restart
    that pass has no effect and is left out.

    Args:
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,) whose loss is raised, or with `targeted` the targets whose loss is lowered.
        epsilon, step_size: in the units of x, for the l_inf or l_2 norm of each image.
        restarts: each image keeps the restart with the highest loss (targeted: the lowest).
        score: False leaves out the scoring pass of a single restart in train mode too, for a
            caller that makes that same pass itself.
        loss: of logits, labels and `reduction`, as torch.nn.functional has them; `margin_loss` is
            for logits at which the cross-entropy has no gradient.

    Returns: delta (N, C, H, W) in the epsilon-ball, without gradient.

    Raises:
        ValueError: as `_check_inputs` and `_check_sizes`.

    Source: Madry et al. (ICLR 2018), section 2.1; l_2 steps follow the unit gradient.
    """
    _check_inputs(norm, x, y)
    _check_sizes(norm, x, epsilon, step_size)
    direction, x = -1 if targeted else 1, x.detach()
    needs_score = restarts > 1 or (score and model.training)
    starts = _draw(x, lambda part: _random_starts(part, epsilon, norm, restarts))
    # The l_inf ball is a box as well: what lies in both is a box, made once.
    low, high = _bounds(x, epsilon if norm == "l_inf" else math.inf)
    best: tuple[Tensor, Tensor] | None = None
    with torch.enable_grad(), _frozen(model):
        for start in starts.unbind(1):
            delta = _clip_to_box(start, x)
            for _ in range(steps):
                delta.requires_grad_()
                total = loss(model(x + delta), y, reduction="sum") / min(len(x), CHUNK)
                (gradient,) = torch.autograd.grad(total, delta)
                delta = _step(delta.detach(), gradient, direction * step_size, epsilon, norm)
                delta = delta.clamp(low, high)
            if not needs_score:
                return delta
            with torch.no_grad():
                scores = direction * loss(model(x + delta), y, reduction="none")
            best = _best_of(best, delta, scores)
    return torch.zeros_like(x) if best is None else best[0]


def trades(
    model: nn.Module,
    x: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: str = "l_inf",
    clean_logits: Tensor | None = None,
) -> Tensor:
    """The TRADES attack: raises KL(p(clean) || p(perturbed)), with the model in eval mode.

    The mode that the model was found in is restored.

    Args:
        x: images (N, C, H, W) in [0, 1].
        epsilon: radius in the units of x, l_inf or l_2.
        step_size: of the signed l_inf steps; the l_2 steps are 2 * epsilon / steps, as published.
        clean_logits: the model's eval-mode logits of x, where the caller has them already.

    Returns:
        delta (N, C, H, W) in the epsilon-ball, without gradient.

    Raises:
        ValueError: as in `pgd`.

    Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy"
    (ICML 2019), algorithm 1.
    """
    _check_inputs(norm, x)
    _check_sizes(norm, x, epsilon, step_size)
    x = x.detach()
    with torch.enable_grad(), _frozen(model), _eval_mode(model):
        if clean_logits is None:
            with torch.no_grad():
                clean_logits = model(x)
        clean_probabilities = F.softmax(clean_logits.detach(), dim=1)
        # The iterate is the perturbed image, not delta: at the start the gradient is so small that
        # the rounding of x + delta decides signs, and the published code rounds the image.
        draws = _draw(x, lambda part: _trades_draws(part, norm))
        start, noise = draws[:, 0], draws[:, -1]  # noise only under l_2
        perturbed = x + 0.001 * start
        low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)  # of the l_inf ball
        for _ in range(steps):
            perturbed.requires_grad_()
            log_probabilities = F.log_softmax(model(perturbed), dim=1)
            divergence = F.kl_div(log_probabilities, clean_probabilities, reduction="sum")
            (gradient,) = torch.autograd.grad(divergence, perturbed)
            perturbed = perturbed.detach()
            if norm == "l_inf":
                perturbed = perturbed.add(gradient.sign(), alpha=step_size).clamp(low, high)
            else:
                perturbed = (
                    perturbed + 2 * epsilon / steps * _unit_or_noise(gradient, noise)
                ).clamp(0, 1)
                perturbed = x + _renorm(perturbed - x, epsilon)
    return perturbed.clamp(0, 1) - x


def margin_loss(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """How far the largest other logit (N, C) is above that of y (N,): it never saturates.

    Args:
        reduction: "none" for a value per image (N,), "sum" or "mean" of these.

    Source: Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks" (IEEE S&P
    2017), section IV, f_6 without its bound.
    """
    y = y.unsqueeze(1)
    others = logits.scatter(1, y, -torch.inf)
    margins = others.amax(1) - logits.gather(1, y).squeeze(1)
    return margins if reduction == "none" else getattr(margins, reduction)()


def gaussian_noise(x: Tensor, level: float) -> Tensor:
    """x + delta is x plus normal noise of standard deviation `level`, clipped to [0, 1]."""
    _check_images(x)
    return _clip_to_box(level * _draw(x, torch.randn_like), x)


def sign_noise(x: Tensor, level: float) -> Tensor:
    """x + delta is x plus or minus `level` in every pixel at random, clipped to [0, 1]."""
    _check_images(x)
    return _clip_to_box(level * _draw(x, torch.randn_like).sign(), x)


def l2_noise(x: Tensor, radius: float) -> Tensor:
    """x + delta is x plus normal noise renormed to an l_2 norm of at most `radius`, clipped."""
    _check_images(x)
    return _clip_to_box(_renorm(_draw(x, torch.randn_like), radius), x)


def _draw(x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """draw(x), made for CHUNK images at a time."""
    return torch.cat([draw(part) for part in x.split(CHUNK)])


def _random_starts(x: Tensor, epsilon: float, norm: str, restarts: int) -> Tensor:
    """One start per restart, (N, restarts, C, H, W).

    l_inf: uniform in the ball. l_2: normal, scaled to a radius uniform in [0, epsilon].
    """
    starts = []
    for _ in range(restarts):
        if norm == "l_inf":
            starts.append(torch.empty_like(x).uniform_(-epsilon, epsilon))
        else:
            start = torch.randn_like(x)
            radius = torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
            starts.append(start * (radius * epsilon / _image_norms(start)))
    return torch.stack(starts, 1)


def _step(delta: Tensor, gradient: Tensor, size: float, epsilon: float, norm: str) -> Tensor:
    """One step along the gradient, or for a negative size against it; l_2: back in the ball."""
    if norm == "l_inf":
        return delta.add(gradient.sign(), alpha=size)
    unit = gradient / (_image_norms(gradient) + 1e-10)
    return _renorm(delta + size * unit, epsilon)


def _best_of(
    best: tuple[Tensor, Tensor] | None, delta: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each image the perturbation with the higher score (N,), and that score."""
    if best is None:
        return delta, scores
    better = scores >= best[1]
    return (
        torch.where(better.view(-1, 1, 1, 1), delta, best[0]),
        torch.where(better, scores, best[1]),
    )


def _clip_to_box(delta: Tensor, x: Tensor) -> Tensor:
    """The delta nearest to the given one with x + delta in [0, 1]."""
    return torch.clamp(delta, -x, 1 - x)


def _bounds(x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The least and the largest delta within `radius`, as near as x + delta in [0, 1] allows.

    Clamping to them once is clamping to -radius and radius, then to the box, to the last bit.
    """
    low, high = (_clip_to_box(torch.full_like(x, end), x) for end in (-radius, radius))
    return low, high


def _image_norms(delta: Tensor) -> Tensor:
    """l_2 norm of each image, (N, 1, 1, 1)."""
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _renorm(delta: Tensor, radius: float) -> Tensor:
    """Images with a larger l_2 norm than `radius` are scaled down to it."""
    return delta.renorm(p=2, dim=0, maxnorm=radius)


def _trades_draws(x: Tensor, norm: str) -> Tensor:
    """Normal draws (N, 1 or 2, C, H, W): the start, and under l_2 what replaces zero gradients."""
    return torch.stack([torch.randn_like(x) for _ in range(2 if norm == "l_2" else 1)], 1)


def _unit_or_noise(gradient: Tensor, noise: Tensor) -> Tensor:
    """Unit gradient of each image; normal noise where the gradient is zero, as published.

    The noise was drawn beside the start, needed or not and once for all steps: so nothing waits for
    the device, and an image's draws do not depend on its batch.
    """
    norms = _image_norms(gradient)
    return torch.where(norms == 0, noise, gradient / norms)


def _check_inputs(norm: str, x: Tensor, *others: Tensor) -> None:
    """Raise ValueError for what cannot be attacked.

    That is an unknown norm, images that are not floats in [0, 1] (of their values those on the CPU
    are looked at), and what was made under torch.inference_mode.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    _check_images(x)
    _check_differentiable(x, *others)


def _check_sizes(norm: str, x: Tensor, epsilon: float, step_size: float) -> None:
    """Raise ValueError for a radius or step larger than any image: 8 where 8/255 is meant.

    No two images in [0, 1] are further apart than 1 under l_inf, than sqrt(C * H * W) under l_2.
    """
    largest = 1.0 if norm == "l_inf" else math.sqrt(x[0].numel() if len(x) else math.inf)
    for name, size in (("epsilon", epsilon), ("step_size", step_size)):
        if not 0 <= size <= largest:
            meant = f": {size:g}/255 is meant?" if largest < size <= 255 * largest else ""
            raise ValueError(
                f"{name} is in the units of images in [0, 1], from 0 to {largest:g} under {norm}, "
                f"got {size:g}{meant}"
            )


def _check_images(x: Tensor) -> None:
    """Raise ValueError unless they are floats, and where they lie on the CPU in [0, 1].

    A hair outside, from resizing or arithmetic in float32, is let pass.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected images as floats in [0, 1], got {x.dtype}")
    if x.device.type == "cpu" and x.numel():
        low, high = (value.item() for value in x.detach().aminmax())
        if not -1e-3 <= low <= high <= 1 + 1e-3:  # NaN is in no order
            raise ValueError(
                f"expected images in [0, 1], got values from {low:.4g} to {high:.4g}: normalise "
                "them inside the model"
            )


def _check_differentiable(*tensors: Tensor) -> None:
    """Raise ValueError where autograd cannot work: in or after torch.inference_mode."""
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "an attack takes gradients, which torch.inference_mode rules out, for tensors made "
            "under it too: use torch.no_grad, or clone them outside"
        )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside, so no weight gradient is computed or stored."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and back in the mode it was found in afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
