"""One training step of each mode, and the table of modes.

A step is `step(learner, x, y) -> Step`: images (N, C, H, W) in [0, 1] and labels (N,) of a batch.
It waits for nothing on the device, so that it can be captured as a CUDA graph.

Each way to train comes with two kinds of batch norm: of the batch's own statistics, or frozen at
its initial running statistics, for which the network stays in eval mode all along.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from attacks import pgd, trades
from robust_nc.data.inputs import Strength
from robust_nc.measuring.evaluator import accuracy
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network
from robust_nc.settings import Settings
from robust_nc.training.norms import biases_left_out, counted_once, statistics_moved

TRADES_BETA = 6.0  # weight of the KL term: Zhang et al. 2019, section 5, and the paper
MART_LAMBDA = 5.0  # weight of the KL term: Wang et al. 2020


@dataclass
class Learner:
    """What training changes, a network and its optimiser, and what its attacks need.

    folded: the network for eval mode, which takes its weights over when it is refolded.
    settings: the flags, for what a step reads of them.
    """

    network: Network
    folded: FoldedNetwork
    optimizer: optim.Optimizer
    strength: Strength
    settings: Settings


@dataclass
class Step:
    """What a step saw of its batch.

    means: column of history.csv -> its mean over the batch, a scalar on the device.
    perturbed: the images that were stepped on, (N, C, H, W), where there is an adversary.
    """

    means: dict[str, Tensor]
    perturbed: Tensor | None = None


def standard_step(learner: Learner, x: Tensor, y: Tensor) -> Step:
    """ST: one step on the cross-entropy of the clean images."""
    network, pairs = learner.network, learner.folded.pairs
    with counted_once(network, passes=1), biases_left_out(network, pairs) as zero:
        logits = network(x)
    loss = F.cross_entropy(logits, y) + zero
    return Step(clean_means(loss, logits, y) | update(learner.optimizer, loss))


def adversarial_step(learner: Learner, x: Tensor, y: Tensor) -> Step:
    """AT: one step on the cross-entropy of images perturbed by PGD (Madry et al. 2018, eq. 2.1).

    The attack runs in the network's mode, train mode unless it is frozen. The clean pass only
    tracks loss and accuracy, but it moves the running statistics too, as in the published code.
    There the pass that scores a single restart and the one that is stepped on are the same; here it
    is made once and moves the statistics twice.
    """
    network, restarts, attack = learner.network, learner.strength.restarts, learner.strength.attack
    attacked = network if network.training else learner.folded.refold()
    passes = restarts * (attack["steps"] + 1) + 2
    with counted_once(network, passes), biases_left_out(network, learner.folded.pairs) as zero:
        with attacked.weights_cast():
            delta = pgd(attacked, x, y, restarts=restarts, score=False, **attack)
        perturbed = x + delta
        with statistics_moved(network, times=2 if restarts == 1 else 1):
            logits = network(perturbed)
        with torch.no_grad():
            clean_logits = network(x)
    loss = F.cross_entropy(logits, y) + zero
    clean_loss = F.cross_entropy(clean_logits, y)
    means = clean_means(clean_loss, clean_logits, y) | robust_means(loss, logits, y)
    return Step(means | update(learner.optimizer, loss), perturbed)


def trades_step(learner: Learner, x: Tensor, y: Tensor, *, frozen: bool) -> Step:
    """TRADES: one step on CE(clean) + beta KL(p(clean) || p(perturbed)) (Zhang et al. 2019, eq. 5).

    The attack runs in eval mode. With `frozen` batch norm the whole step does, as the published
    code does by accident, so the clean pass serves the attack as well; without, both passes of the
    step use batch statistics.
    """
    network, attack = learner.network, learner.strength.attack
    clean_logits = network.eval()(x) if frozen else None
    perturbed = x + trades(learner.folded.refold(), x, clean_logits=clean_logits, **attack)
    with counted_once(network, passes=2), biases_left_out(network, learner.folded.pairs) as zero:
        if clean_logits is None:
            clean_logits = network(x)
        logits = network(perturbed)
    clean_loss = F.cross_entropy(clean_logits, y)
    loss = clean_loss + learner.settings.trades_beta * divergence(clean_logits, logits) + zero
    means = clean_means(clean_loss, clean_logits, y) | robust_means(loss, logits, y)
    return Step(means | update(learner.optimizer, loss), perturbed)


def divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p(clean) || p(perturbed)), mean over the batch.

    Of logarithms: where a clean probability underflows to zero, the gradient through F.softmax
    would be NaN.
    """
    return F.kl_div(
        F.log_softmax(logits, 1),
        F.log_softmax(clean_logits, 1),
        reduction="batchmean",
        log_target=True,
    )


def mart_step(learner: Learner, x: Tensor, y: Tensor) -> Step:
    """MART: one step on `mart_objective` (Wang et al. 2020).

    The attack is PGD on the cross-entropy in eval mode; then a clean and a perturbed pass in train
    mode, through both of which the gradient flows.
    """
    network, strength = learner.network, learner.strength
    folded = learner.folded.refold()
    perturbed = x + pgd(folded, x, y, restarts=strength.restarts, **strength.attack)
    with counted_once(network, passes=2), biases_left_out(network, folded.pairs) as zero:
        clean_logits = network(x)
        logits = network(perturbed)
    loss = mart_objective(clean_logits, logits, y, learner.settings.mart_lambda) + zero
    clean_loss = F.cross_entropy(clean_logits.detach(), y)
    means = clean_means(clean_loss, clean_logits, y) | robust_means(loss, logits, y)
    return Step(means | update(learner.optimizer, loss), perturbed)


def mart_objective(clean_logits: Tensor, logits: Tensor, y: Tensor, weight: float) -> Tensor:
    """What MART minimises: boosted cross-entropy, and KL weighted by how wrong the clean image is.

    With p = softmax of the clean logits (N, C), p' of the perturbed ones, labels y (N,), and
    lambda the `weight`, the mean over the batch of

        -log p'_y - log(1 - max_{k != y} p'_k) + lambda (1 - p_y) KL(p || p')

    1 - p'_k is the sum of all other probabilities, and its logarithm one of a sum of exponentials:
    nothing is lost where a probability rounds to 0 or 1, so nothing is clamped.

    Source: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples" (ICLR 2020), the objective of MART.
    """
    clean_logs, logs = F.log_softmax(clean_logits, 1), F.log_softmax(logits, 1)
    label = y.unsqueeze(1)
    rival = logs.scatter(1, label, -math.inf).argmax(1, keepdim=True)
    not_rival = logs.scatter(1, rival, -math.inf).logsumexp(1)  # log(1 - p'_rival)
    boosted = -logs.gather(1, label).squeeze(1) - not_rival
    wrong = -torch.expm1(clean_logs.gather(1, label).squeeze(1))  # 1 - p_y
    divergences = F.kl_div(logs, clean_logs, reduction="none", log_target=True).sum(1)
    return (boosted + weight * wrong * divergences).mean()


def update(optimizer: optim.Optimizer, loss: Tensor) -> dict[str, Tensor]:
    """One step of the optimiser on a loss; what history.csv tells of it."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    optimizer.step()
    return {"grad_norm": norm}


def clean_means(loss: Tensor, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy and accuracy of the clean images."""
    return {"train_loss": loss.detach(), "train_acc": accuracy(logits, y)}


def robust_means(objective: Tensor, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The objective that was stepped on, and accuracy on the perturbed images."""
    return {
        "train_robust_loss": objective.detach(),
        "train_robust_acc": accuracy(logits, y),
    }


BN = ("batch", "frozen")  # --bn


@dataclass(frozen=True)
class TrainingMode:
    """One way to train.

    step: (learner, images, labels) -> Step.
    short, label: in the names of figures and in their legends.
    adversary: whether it steps on perturbed images; then these are measured and logged as well.
    train_mode, bn: which --train-mode and --bn choose it.
    restarts: whether its attack makes as many as --restarts says.
    replayed: whether a GPU replays its steps unasked; one that decides something in Python, anew at
        every step, must not be.
    """

    step: Callable[[Learner, Tensor, Tensor], Step]
    short: str
    label: str
    train_mode: str
    bn: str = "batch"
    adversary: bool = True
    restarts: bool = False
    replayed: bool = False


def frozen(mode: TrainingMode) -> TrainingMode:
    """The mode with the network in eval mode: no running statistic is moved."""

    def step(learner: Learner, x: Tensor, y: Tensor) -> Step:
        learner.network.eval()
        return mode.step(learner, x, y)

    return replace(
        mode, step=step, short=f"{mode.short}_frozen", label=f"{mode.label} (frozen)", bn="frozen"
    )


# Under its name as a folder: that of --train-mode, with --bn after it where it is not the default.
MODES: dict[str, TrainingMode] = {
    "std_train": TrainingMode(
        step=standard_step,
        short="st",
        label="ST",
        train_mode="std_train",
        adversary=False,
        replayed=True,
    ),
    "pgd_train": TrainingMode(
        step=adversarial_step,
        short="at",
        label="AT",
        train_mode="pgd_train",
        restarts=True,
        replayed=True,
    ),
    "pgd_train_TRADES": TrainingMode(
        step=partial(trades_step, frozen=True),
        short="trades",
        label="TRADES (frozen)",
        train_mode="pgd_train_TRADES",
        bn="frozen",
        replayed=True,
    ),
    "pgd_train_TRADES_batch": TrainingMode(
        step=partial(trades_step, frozen=False),
        short="trades_batch",
        label="TRADES (batch)",
        train_mode="pgd_train_TRADES",
        replayed=True,
    ),
    "pgd_train_MART": TrainingMode(
        step=mart_step,
        short="mart",
        label="MART",
        train_mode="pgd_train_MART",
        restarts=True,
        replayed=True,
    ),
}
# Every mode whose default is batch can be frozen.
MODES |= {
    f"{name}_frozen": frozen(mode)
    for name, mode in MODES.items()
    if name == mode.train_mode and mode.bn == "batch"
}
# --train-mode -> its default of --bn.
DEFAULT_BN = {mode.train_mode: mode.bn for name, mode in MODES.items() if name == mode.train_mode}
TRAIN_MODES = tuple(DEFAULT_BN)


def mode_name(train_mode: str, bn: str | None = None) -> str:
    """The name in MODES, and of the folder, that --train-mode and --bn choose.

    Args:
        bn: None is the default of the mode.

    Raises:
        ValueError: there is no such mode.
    """
    if train_mode not in TRAIN_MODES or bn not in (None, *BN):
        raise ValueError(
            f"no training mode {train_mode!r}: expected one of {', '.join(TRAIN_MODES)}, with "
            f"{' or '.join(BN)} batch norm"
        )
    return train_mode if bn in (None, DEFAULT_BN[train_mode]) else f"{train_mode}_{bn}"


def bn_of(arguments: dict[str, Any]) -> str | None:
    """--bn of a run, of its args.json, where older ones tell --trades-bn, which TRADES alone read.

    None where nothing tells it.
    """
    train_mode = arguments.get("train_mode", "")
    older = arguments.get("trades_bn") if train_mode == "pgd_train_TRADES" else None
    return arguments.get("bn") or older or DEFAULT_BN.get(train_mode)
