"""The plain way to run the same experiments: what the published code spends its time on.

Written for the comparison alone, from a description of the published code: one DataLoader worker
that turns PIL images into tensors, attacks that fill the weights' gradients too, `.item()` after
every step, the TRADES attack's clean logits computed anew at each of its steps, and neural collapse
from two passes over the data with a Python loop over samples. The networks are ours, so that the
arithmetic of a pass is the same.
"""

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

BATCH_SIZE = 128


class PlainNetwork(nn.Module):
    """A model after its normalisation."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor, return_activations: bool = False) -> Tensor:
        return self.model((x - self.mean) / self.std, return_activations=return_activations)


class PilImages(torch.utils.data.Dataset):
    """Images (N, C, H, W) uint8 handed out as torchvision.datasets.CIFAR10 does."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.arrays = images.permute(0, 2, 3, 1).numpy().astype(np.uint8)
        self.labels = labels.tolist()
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def make_loader(images: Tensor, labels: Tensor, shuffle: bool) -> DataLoader:
    """One worker, kept between epochs: its start is not counted against the baseline."""
    return DataLoader(
        PilImages(images, labels), BATCH_SIZE, shuffle, num_workers=1, persistent_workers=True
    )


def attack_pgd(
    network: nn.Module, x: Tensor, y: Tensor, epsilon: float, step_size: float, steps: int
) -> Tensor:
    delta = torch.zeros_like(x).uniform_(-epsilon, epsilon)
    delta = torch.clamp(delta, -x, 1 - x).requires_grad_()
    for _ in range(steps):
        loss = F.cross_entropy(network(x + delta), y)
        loss.backward()
        stepped = (delta + step_size * delta.grad.sign()).clamp(-epsilon, epsilon)
        delta.data = torch.clamp(stepped, -x, 1 - x).detach()
        delta.grad.zero_()
    F.cross_entropy(network(x + delta), y, reduction="none").detach()
    return delta.detach()


def attack_trades(
    network: nn.Module, x: Tensor, epsilon: float, step_size: float, steps: int
) -> Tensor:
    network.eval()
    perturbed = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        perturbed.requires_grad_()
        loss = F.kl_div(
            F.log_softmax(network(perturbed), 1), F.softmax(network(x), 1), reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = perturbed.detach() + step_size * gradient.sign()
        perturbed = perturbed.clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return perturbed - x


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    mode: str,
    attack: dict[str, float],
    device: torch.device,
) -> None:
    """One epoch of std_train, pgd_train or pgd_train_TRADES (batch norm frozen, as published)."""
    network.train()
    total = correct = 0.0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        if mode == "std_train":
            logits = network(x)
            loss = F.cross_entropy(logits, y)
        elif mode == "pgd_train":
            delta = attack_pgd(network, x, y, **attack)
            logits = network(x + delta)
            loss = F.cross_entropy(logits, y)
        else:
            delta = attack_trades(network, x, **attack)
            logits = network(x)
            robust = F.log_softmax(network(x + delta), 1)
            divergence = F.kl_div(robust, F.softmax(logits, 1), reduction="batchmean")
            loss = F.cross_entropy(logits, y) + 6 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if mode != "std_train":
            logits = network(x)  # the clean loss and accuracy that are logged
        if mode == "pgd_train_TRADES":
            network(x + delta)  # and the robust ones
        total += F.cross_entropy(logits, y).item() * len(y)
        correct += (logits.argmax(1) == y).sum().item()


@torch.no_grad()
def test_epoch(network: nn.Module, loader: DataLoader, device: torch.device) -> None:
    network.eval()
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        logits = network(x)
        F.cross_entropy(logits, y).item()
        (logits.argmax(1) == y).sum().item()


def perturb_all(
    network: nn.Module, loader: DataLoader, kind: str, attack: dict, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Batches of one kind of input, with the loss and accuracy on them."""
    network.eval()
    batches = []
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        if kind == "targeted":
            y = (y + 1) % 10
            attack = attack | {"step_size": -abs(attack["step_size"])}  # descend
        if kind in ("pgd", "targeted"):
            x = x + attack_pgd(network, x, y, **attack)
        elif kind == "gaussian":
            x = (x + 8 / 255 * torch.randn_like(x)).clamp(0, 1)
        elif kind == "sign":
            x = (x + 8 / 255 * torch.randn_like(x).sign()).clamp(0, 1)
        logits = network(x)
        F.cross_entropy(logits, y).item()
        (logits.argmax(1) == y).sum().item()
        batches.append((x, y))
    return batches


@torch.no_grad()
def collapse_in_two_passes(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], weight: Tensor
) -> dict[str, float]:
    """The metrics of one kind of input: a pass for the class means, a pass for the rest."""
    features = [network(x, return_activations=True) for x, _ in batches]
    means = class_means([f for _, f in features], [y for _, y in batches], len(weight))
    features = [network(x, return_activations=True) for x, _ in batches]
    return collapse_by_sample(
        torch.cat([f for _, f in features]),
        torch.cat([y for _, y in batches]),
        torch.cat([logits for logits, _ in features]),
        weight,
        means,
    )


def class_means(features: list[Tensor], labels: list[Tensor], num_classes: int) -> Tensor:
    sums = torch.zeros(num_classes, features[0].shape[1], device=features[0].device)
    counts = torch.zeros(num_classes, device=sums.device)
    for batch, y in zip(features, labels, strict=True):
        for c in range(num_classes):
            chosen = (y == c).nonzero(as_tuple=True)[0]
            sums[c] += batch[chosen].sum(0)
            counts[c] += len(chosen)
    return sums / counts.clamp(min=1).unsqueeze(1)


@torch.no_grad()
def collapse_by_sample(
    features: Tensor, labels: Tensor, logits: Tensor, weight: Tensor, means: Tensor
) -> dict[str, float]:
    """NC1-NC4 with outer products and the nearest class mean sample by sample, in batches."""
    num_classes, dimension = means.shape
    within = torch.zeros(dimension, dimension, device=features.device)
    disagree = 0
    for start in range(0, len(features), BATCH_SIZE):
        batch = features[start : start + BATCH_SIZE]
        y = labels[start : start + BATCH_SIZE]
        predicted = logits[start : start + BATCH_SIZE].argmax(1)
        for c in range(num_classes):
            chosen = (y == c).nonzero(as_tuple=True)[0]
            if len(chosen) == 0:
                continue
            centred = batch[chosen] - means[c]
            within += torch.matmul(centred.unsqueeze(2), centred.unsqueeze(1)).sum(0)
            nearest = torch.stack([(row - means).norm(dim=1).argmin() for row in batch[chosen]])
            disagree += (nearest != predicted[chosen]).sum().item()
    within /= len(features)
    centred_means = (means - features.mean(0)).T
    between = (centred_means @ centred_means.T / num_classes).cpu().numpy()
    metrics = {
        "nc1": float(np.trace(within.cpu().numpy() @ scipy.linalg.pinv(between))),
        "nc4": disagree / len(features),
    }
    for name, columns in (("activation", centred_means), ("classifier", weight.T)):
        norms = columns.norm(dim=0)
        cosines = (columns / norms).T @ (columns / norms) + 1 / (num_classes - 1)
        pairs = num_classes * (num_classes - 1)
        metrics[f"nc2_norm_{name}"] = (norms.std() / norms.mean()).item()
        metrics[f"nc2_angle_{name}"] = cosines.fill_diagonal_(0).abs().sum().item() / pairs
    duality = weight.T / weight.norm() - centred_means / centred_means.norm()
    return metrics | {"nc3": duality.square().sum().item()}
