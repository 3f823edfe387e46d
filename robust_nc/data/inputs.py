"""The kinds of input that a network is measured on: one row of INPUTS for each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attacks import gaussian_noise, l2_noise, pgd, sign_noise

# Norm -> epsilon and step size, in 1/255 units.
PUBLISHED_ATTACKS = {"l_inf": (8.0, 2.0), "l_2": (128.0, 15.0)}


@dataclass(frozen=True)
class Strength:
    """How far inputs are perturbed, in units of images in [0, 1].

    attack: the keywords `epsilon`, `step_size`, `steps` and `norm` of `pgd` and `trades`.
    noise: standard deviation of the noise, per pixel.
    radius: the attack's epsilon in the units of --epsilon, as tables tell it.
    """

    attack: dict[str, Any]
    restarts: int
    noise: float
    radius: float = math.nan


@dataclass(frozen=True)
class InputKind:
    """One kind of input.

    perturb: from a model, images, labels and the strength to what is added; None for clean images.
    stream: the number of its random stream, of no other kind; another one changes its draws, and so
        every number that is measured on it.
    attacked: whether it is perturbed by an attack, whose epsilon tables tell.
    noisy: whether it is perturbed by noise of --noise-level, which tables tell.
    targeted: measured with the next class, (y + 1) mod C, towards which it is perturbed.
    asked_by: the flags of eval.py that ask for it.
    from_clean: whether its class means are compared with those of the clean images.
    layerwise: whether --layerwise measures it.
    prefix: of its .npy series; `published` holds the names that do not follow it.
    outcome: series of accuracy and loss are SPLIT_{outcome}acc and ..._loss; None: there are none.
    published_as: the kind whose .npy series hold it too, before those of a sweep.
    stands_in_for: the kind that figures show in its place where both were measured.
    label: in figures and reports.
    """

    perturb: Callable[[nn.Module, Tensor, Tensor, Strength], Tensor] | None
    stream: int
    label: str
    prefix: str
    asked_by: tuple[str, ...] = ()
    attacked: bool = False
    noisy: bool = False
    targeted: bool = False
    from_clean: bool = False
    layerwise: bool = False
    outcome: str | None = None
    published: dict[str, str] = field(default_factory=dict)
    published_as: str | None = None
    stands_in_for: str | None = None

    def bound(
        self, model: nn.Module, strength: Strength
    ) -> Callable[[Tensor, Tensor], Tensor] | None:
        """From images and labels to what is added to the images; None adds nothing."""
        perturb = self.perturb
        return perturb and (lambda x, y: perturb(model, x, y, strength))

    def labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """What the images are measured with, (N,), from their labels (N,)."""
        return (labels + 1) % num_classes if self.targeted else labels

    def targets(self, classes: Tensor) -> Tensor | None:
        """The class that each of all classes (C,) is perturbed towards; None where none is."""
        return self.labels(classes, len(classes)) if self.targeted else None


def _attacked(model: nn.Module, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    return pgd(model, x, y, restarts=strength.restarts, **strength.attack)


def _towards(model: nn.Module, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    return pgd(model, x, y, restarts=strength.restarts, targeted=True, **strength.attack)


def _gaussian(model: nn.Module, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    return gaussian_noise(x, strength.noise)


def _sign(model: nn.Module, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    return sign_noise(x, strength.noise)


def _gaussian_l2(model: nn.Module, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    # 16 times the level: 128/255 at the default, as published, the l_2 radius of the paper.
    return l2_noise(x, 16 * strength.noise)


# In the order of tables and figures.
INPUTS: dict[str, InputKind] = {
    "clean": InputKind(
        perturb=None,
        stream=0,
        label="clean",
        prefix="",
        asked_by=("neural_collapse", "neural_collapse_targeted"),
        layerwise=True,
        outcome="",
    ),
    "pgd": InputKind(
        perturb=_attacked,
        stream=1,
        label="PGD",
        asked_by=("neural_collapse",),
        attacked=True,
        from_clean=True,
        layerwise=True,
        prefix="robust_",
        outcome="robust_",
        published={
            "nc2_norm_activation": "robust_activation_nc2_norm",
            "nc2_norm_classifier": "robust_classifier_nc2_norm",
            "nc2_angle_activation": "robust_activation_nc2_angle",
            "nc2_angle_classifier": "robust_classifier_nc2_angle",
            "clean_distance": "clean_robust_dist",
            "clean_angle": "clean_robust_angle",
            "clean_distance_abs": "clean_robust_dist_abs",
            "clean_angle_abs": "clean_robust_angle_abs",
            "clean_mean_distance": "muG_dist",
            "clean_mean_angle": "muG_angle",
        },
    ),
    "gaussian": InputKind(
        perturb=_gaussian,
        stream=2,
        label="Gaussian noise",
        asked_by=("neural_collapse_gaussian",),
        noisy=True,
        layerwise=True,
        prefix="new_gaussian_label_",
    ),
    "sign": InputKind(
        perturb=_sign,
        stream=3,
        label="sign noise",
        asked_by=("neural_collapse_gaussian",),
        noisy=True,
        prefix="linf_label_",
    ),
    "targeted": InputKind(
        perturb=_towards,
        stream=4,
        label="targeted",
        asked_by=("neural_collapse_targeted",),
        attacked=True,
        targeted=True,
        from_clean=True,
        layerwise=True,
        prefix="targeted_",
        published={
            "nc2_norm_activation": "targeted_nc2_norm_M",
            "nc2_norm_classifier": "targeted_nc2_norm_W",
            "nc2_angle_activation": "targeted_nc2_angle_M",
            "nc2_angle_classifier": "targeted_nc2_angle_W",
            "clean_distance": "clean_target_dist",
            "clean_angle": "clean_target_angle",
            "clean_distance_abs": "clean_target_dist_abs",
            "clean_angle_abs": "clean_target_angle_abs",
            "clean_mean_distance": "target_muG_dist",
            "clean_mean_angle": "target_muG_angle",
        },
    ),
    # What train.py measures; eval.py's "gaussian" has taken its place in the paper.
    "gaussian_l2": InputKind(
        perturb=_gaussian_l2,
        stream=5,
        label="Gaussian noise (train.py's)",
        noisy=True,
        prefix="gaussian_label_",
        stands_in_for="gaussian",
    ),
    # What train.py measures under AT, TRADES and MART: the images that the epoch stepped on, which
    # were perturbed against earlier weights (under TRADES by its own attack).
    "seen": InputKind(
        perturb=None,
        stream=6,
        label="training-time adversarial",
        attacked=True,
        from_clean=True,
        prefix="robust_",
        published_as="pgd",
    ),
}


def place_of(name: str) -> int:
    """The place of a kind of input in INPUTS: its order in tables."""
    return list(INPUTS).index(name)


def asked_inputs(settings: Any) -> list[str]:
    """The kinds of input that the flags of a sweep ask for."""
    return [
        name
        for name, kind in INPUTS.items()
        if any(getattr(settings, flag) for flag in kind.asked_by)
    ]
