"""Rows of autoattack.csv: a network on test images under standard AutoAttack."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_nc.data.datasets import as_float, balanced_subset
from robust_nc.data.inputs import Strength
from robust_nc.measuring.evaluator import accuracy
from robust_nc.measuring.subject import Subject
from robust_nc.results.records import AutoAttackRecord
from utils import InputError, memory_advice


class AutoAttackPart(NamedTuple):
    """So many test images, attacked at one radius."""

    images: int
    radius: float


def autoattack_rows(
    subject: Subject, epoch: int, parts: list[AutoAttackPart]
) -> Iterator[AutoAttackRecord]:
    """Accuracy of class-balanced test images under standard AutoAttack.

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks" (ICML 2020).
    """
    for part in parts:
        labels = subject.data.test.labels
        chosen = balanced_subset(labels.cpu(), part.images, subject.seed)
        test = subject.data.test.select(chosen.to(labels.device))
        x, y = as_float(test.images), test.labels
        subject.start_stream(epoch, "test", "pgd")
        attacked = _autoattack(subject, x, y, subject.strength(part.radius))
        clean, _ = subject.evaluator.outputs(x, y)
        robust, _ = subject.evaluator.outputs(attacked, y)
        yield AutoAttackRecord(
            epoch=epoch,
            split="test",
            images=len(y),
            clean_accuracy=accuracy(clean, y).item(),
            robust_accuracy=accuracy(robust, y).item(),
            epsilon=part.radius,
        )


def find_autoattack() -> str | None:
    """The installed package that has AutoAttack, its authors' own first."""
    return next((name for name in ("autoattack", "torchattacks") if find_spec(name)), None)


def _autoattack(subject: Subject, x: Tensor, y: Tensor, strength: Strength) -> Tensor:
    """Images (N, C, H, W) under standard AutoAttack.

    Raises:
        InputError: the package left the epsilon-ball or the image box.
    """
    epsilon = strength.attack["epsilon"]
    norm = {"l_inf": "Linf", "l_2": "L2"}[strength.attack["norm"]]
    network, advice = subject.evaluator.network, "--eval-batch-size can be lowered"
    try:
        # Its batches shrink as images fall: few are of one size.
        with memory_advice(advice), network.compiled_for(full=False):
            attacked = _standard_evaluation(subject, x, y, {"norm": norm, "eps": epsilon})
    except IndexError as error:  # of its loss, which compares the four likeliest classes
        raise InputError("standard AutoAttack needs at least four classes") from error
    delta = (attacked - x).flatten(1)
    furthest = delta.abs().amax() if norm == "Linf" else delta.norm(dim=1).amax()
    inside = attacked.amin() >= 0 and attacked.amax() <= 1
    if not (inside and furthest <= epsilon * 1.001 + 1e-6):
        raise InputError(f"AutoAttack of {find_autoattack()} left the epsilon-ball")
    return attacked


def _standard_evaluation(subject: Subject, x: Tensor, y: Tensor, ball: dict[str, Any]) -> Tensor:
    network, classes = subject.evaluator.network, subject.data.num_classes
    options = ball | {"seed": subject.seed}
    if find_autoattack() == "autoattack":
        from autoattack import AutoAttack

        whole = AutoAttack(network, verbose=False, device=x.device, **options)
        # As published they try the nine likeliest other classes, which there must be.
        for targeted in (whole.apgd_targeted, whole.fab):
            targeted.n_target_classes = min(9, classes - 1)
        return whole.run_standard_evaluation(x, y, bs=subject.evaluator.batch_size)
    from torchattacks import AutoAttack

    whole = AutoAttack(network, n_classes=classes, **options)
    return torch.cat([whole(*batch) for batch in subject.evaluator.batches(x, y)])
