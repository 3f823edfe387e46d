"""Attacks and noise: golden perturbations, bounds, and what they leave untouched."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN_SEED, Operations, images_and_labels

from attacks import gaussian_noise, l2_noise, pgd, sign_noise, trades

L_INF = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10, "norm": "l_inf"}
L_2 = {"epsilon": 128 / 255, "step_size": 15 / 255, "steps": 10, "norm": "l_2"}
GOLDEN_PGD = {
    "pgd_linf": L_INF,
    "pgd_l2": L_2,
    "pgd_linf_targeted": L_INF | {"targeted": True},
    "pgd_linf_restarts3": L_INF | {"restarts": 3},
}

# Where float32 leaves most signs to the rounding of the machine: TRADES starts where the divergence
# is rounding, and the deeper network fools itself on the targets down to losses of 0.001.
LEFT_TO_ROUNDING = {
    ("vgg11bn", "trades_linf"),
    ("PreActResNet18", "trades_linf"),
    ("PreActResNet18", "pgd_linf_targeted"),
}


@pytest.mark.parametrize(
    "name", ("vgg11bn", pytest.param("PreActResNet18", marks=pytest.mark.slow))
)
def test_attacks_are_golden(name, golden_network, golden):
    check_golden_attacks(name, golden_network(name), golden("attacks"), torch.device("cpu"))


class InFloat64(torch.nn.Module):
    """A network that computes in float64, of float32 images."""

    def __init__(self, network):
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(self, x):
        return self.network(x.double())


def check_golden_attacks(name, network, expected, device):
    network.eval().to(device)
    exact = InFloat64(network)
    x, y = (tensor.to(device) for tensor in images_and_labels())
    for attack, settings in GOLDEN_PGD.items():
        if name == "PreActResNet18" and settings.get("restarts"):
            continue  # slow, and nothing in it depends on the architecture
        attacked = exact if (name, attack) in LEFT_TO_ROUNDING else network
        torch.manual_seed(GOLDEN_SEED)
        delta = pgd(attacked, x, y, **settings)
        losses = F.cross_entropy(attacked(x + delta), y, reduction="none").detach()
        # Signs of tiny gradients flip with rounding, which differs between machines.
        assert share_equal(delta, expected[f"{name}.{attack}"]) > 0.85, attack
        golden_losses = expected[f"{name}.{attack}.loss"]
        np.testing.assert_allclose(losses.cpu(), golden_losses, rtol=0.02, atol=1e-6)

    for attack, settings in (("trades_linf", L_INF), ("trades_l2", L_2)):
        attacked = exact if (name, attack) in LEFT_TO_ROUNDING else network
        torch.manual_seed(GOLDEN_SEED)
        if attack == "trades_l2":
            torch.randn(x.shape)  # the golden values were made after one more draw
        delta = trades(attacked, x, **settings)
        with torch.no_grad():
            logs, clean = F.log_softmax(attacked(x + delta), 1), F.softmax(attacked(x), 1)
        divergence = F.kl_div(logs, clean, reduction="none").sum(1)
        assert share_equal(delta, expected[f"{name}.{attack}"], 1e-3) > 0.85, attack
        np.testing.assert_allclose(divergence.cpu(), expected[f"{name}.{attack}.kl"], rtol=0.05)
        assert divergence.mean().item() == pytest.approx(
            expected[f"{name}.{attack}.kl"].mean(), rel=0.02
        )


def share_equal(delta, expected, tolerance=1e-4):
    return ((delta.cpu() - torch.from_numpy(expected)).abs() < tolerance).float().mean().item()


@pytest.mark.parametrize("settings", (L_INF, L_2), ids=("l_inf", "l_2"))
@pytest.mark.parametrize("attack", ("pgd", "trades"))
def test_perturbations_stay_in_the_ball_and_the_image_box(attack, settings, tiny_net):
    torch.manual_seed(1)
    x = torch.rand(8, 3, 16, 16).round(decimals=1)  # many pixels at 0 and 1
    y = torch.arange(8) % 4
    if attack == "pgd":
        delta = pgd(tiny_net, x, y, restarts=2, **settings)
    else:
        delta = trades(tiny_net, x, **settings)
    perturbed = x + delta
    assert perturbed.min() >= 0 and perturbed.max() <= 1
    order = float("inf") if settings["norm"] == "l_inf" else 2
    norms = delta.flatten(1).norm(p=order, dim=1)
    assert norms.max() <= settings["epsilon"] * (1 + 1e-5)
    assert norms.max() > 0.5 * settings["epsilon"]
    assert not delta.requires_grad


@pytest.mark.parametrize("attack", ("pgd", "trades"))
def test_attacks_leave_the_model_as_they_found_it(attack, tiny_net):
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    F.cross_entropy(tiny_net(x), y).backward()
    tiny_net.train()
    tiny_net.linear.eval()  # a mixture of modes
    tiny_net.linear.bias.requires_grad_(False)
    before = [(p.requires_grad, p.grad.clone()) for p in tiny_net.parameters()]
    statistics = tiny_net.norm.running_mean.clone()
    if attack == "pgd":
        pgd(tiny_net, x, y, **L_INF)
    else:
        trades(tiny_net, x, **L_INF)
        assert torch.equal(statistics, tiny_net.norm.running_mean)  # it ran in eval mode
    assert tiny_net.training and tiny_net.norm.training and not tiny_net.linear.training
    for parameter, (trainable, gradient) in zip(tiny_net.parameters(), before, strict=True):
        assert parameter.requires_grad == trainable
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("restarts", (1, 3))
def test_pgd_in_train_mode_makes_steps_plus_one_passes_per_restart(restarts, tiny_net):
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    tiny_net.train()
    pgd(tiny_net, x, y, restarts=restarts, **L_INF)
    assert tiny_net.norm.num_batches_tracked == restarts * 11


def test_pgd_in_eval_mode_leaves_out_the_pass_without_effect(tiny_net):
    passes = []
    tiny_net.register_forward_hook(lambda *_: passes.append(1))
    pgd(tiny_net.eval(), torch.rand(4, 3, 16, 16), torch.arange(4), **L_INF)
    assert len(passes) == 10


@pytest.mark.parametrize("targeted", (False, True))
def test_restarts_keep_the_best_perturbation_of_each_image(targeted, tiny_net):
    x, y = torch.rand(32, 3, 16, 16), torch.arange(32) % 4
    tiny_net.eval()
    settings = L_INF | {"steps": 0}  # random starts differ; PGD would converge

    def losses(restarts):
        torch.manual_seed(5)
        delta = pgd(tiny_net, x, y, restarts=restarts, targeted=targeted, **settings)
        with torch.no_grad():
            return F.cross_entropy(tiny_net(x + delta), y, reduction="none")

    gain = losses(4) - losses(1)
    if targeted:
        gain = -gain
    assert gain.min() >= -1e-6 and gain.max() > 0


def test_targeted_pgd_lowers_the_loss_of_the_target(tiny_net):
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    tiny_net.eval()
    before = F.cross_entropy(tiny_net(x), y)
    down = F.cross_entropy(tiny_net(x + pgd(tiny_net, x, y, targeted=True, **L_INF)), y)
    up = F.cross_entropy(tiny_net(x + pgd(tiny_net, x, y, **L_INF)), y)
    assert down < before < up


def test_trades_takes_clean_logits_instead_of_a_pass(tiny_net):
    x = torch.rand(4, 3, 16, 16)
    tiny_net.eval()
    clean = tiny_net(x)
    passes = []
    tiny_net.register_forward_hook(lambda *_: passes.append(1))
    torch.manual_seed(0)
    given = trades(tiny_net, x, clean_logits=clean, **L_INF)
    assert len(passes) == 10
    torch.manual_seed(0)
    assert torch.equal(trades(tiny_net, x, **L_INF), given)
    assert len(passes) == 21


def test_trades_l_2_survives_a_zero_gradient():
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4))
    torch.nn.init.zeros_(flat[1].weight)
    delta = trades(flat, torch.full((2, 3, 4, 4), 0.5), **L_2)
    assert delta.isfinite().all()
    assert delta.flatten(1).norm(dim=1).min() > 0.1  # the noise moved it


def test_noise_has_its_size_and_stays_in_the_box():
    torch.manual_seed(0)
    grey = torch.full((4, 3, 32, 32), 0.5)
    assert gaussian_noise(grey, 8 / 255).std().item() == pytest.approx(8 / 255, rel=0.05)
    sign = sign_noise(grey, 8 / 255)
    np.testing.assert_allclose(sign.abs(), 8 / 255, rtol=1e-5)
    assert abs(sign.mean().item()) < 0.1 * 8 / 255
    norms = l2_noise(grey, 128 / 255).flatten(1).norm(dim=1)
    np.testing.assert_allclose(norms, 128 / 255, rtol=1e-4)
    black = torch.zeros(2, 3, 8, 8)
    for noise in (gaussian_noise, sign_noise, l2_noise):
        noisy = black + noise(black, 0.5)
        assert noisy.min() >= 0 and noisy.max() > 0


def test_an_unknown_norm_is_named(tiny_net):
    with pytest.raises(ValueError, match="l_3"):
        pgd(tiny_net, torch.rand(2, 3, 8, 8), torch.arange(2), **L_INF | {"norm": "l_3"})


ATTACKS = {
    "pgd": lambda model, x, y: pgd(model, x, y, **L_INF),
    "trades": lambda model, x, y: trades(model, x, **L_INF),
}
NOISES = {
    "gaussian": lambda model, x, y: gaussian_noise(x, 0.1),
    "sign": lambda model, x, y: sign_noise(x, 0.1),
    "l2": lambda model, x, y: l2_noise(x, 0.5),
}


@pytest.mark.parametrize("name", (*ATTACKS, *NOISES))
def test_images_outside_the_box_are_refused(name, tiny_net):
    perturb = (ATTACKS | NOISES)[name]
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    for bad, told in (
        (2 * x, r"in \[0, 1\], got values from"),
        (x - 0.5, r"in \[0, 1\], got values from"),
        (x / 0, "got values from"),
        ((255 * x).to(torch.uint8), r"floats in \[0, 1\], got torch.uint8"),
    ):
        with pytest.raises(ValueError, match=told):
            perturb(tiny_net, bad, y)
    perturb(tiny_net, x + 1e-6, y)  # a hair outside, from rounding


def test_values_are_not_looked_at_where_that_waits_for_a_device():
    """On the device `meta`, which has none to look at."""
    x = torch.empty(4, 3, 8, 8, device="meta")
    for noise in NOISES.values():
        assert noise(None, x, None).shape == x.shape


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_made_under_inference_mode_is_refused(name, tiny_net):
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    with torch.inference_mode():
        made, labels, logits = x + 0, y + 0, tiny_net(x)
        with pytest.raises(ValueError, match="inference_mode"):
            ATTACKS[name](tiny_net, x, y)
    with pytest.raises(ValueError, match="inference_mode"):
        ATTACKS[name](tiny_net, made, y)
    if name == "pgd":
        with pytest.raises(ValueError, match="inference_mode"):
            pgd(tiny_net, x, labels, **L_INF)
    else:  # these it only reads
        trades(tiny_net, x, clean_logits=logits, **L_INF)
    ATTACKS[name](tiny_net, made.clone(), labels.clone())


EDGES = (
    0.0,
    1.0,
    0.5,
    8 / 255,
    1 - 8 / 255,
    1 / 255,
    -1e-4,
    1 + 1e-4,
)  # a hair outside is let pass


def images_at_the_edges(dtype):
    """Random pixels, each of EDGES among them."""
    x = torch.rand(16, 3, 16, 16, dtype=dtype)
    edges = torch.tensor(EDGES, dtype=dtype)[torch.randint(len(EDGES), x.shape)]
    return torch.where(torch.rand_like(x) < 0.5, edges, x)


class WithZeroGradients(torch.nn.Module):
    """Logits whose gradient by the pixels is zero here and there."""

    def forward(self, x):
        pixels = x * torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view(x[0].shape).round()
        return pixels.sin().flatten(1).unflatten(1, (4, -1)).sum(2)


def pgd_in_two_clamps(model, x, y, delta, *, epsilon, step_size, steps):
    """Published: to the ball first, then to the box."""
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        delta = (delta.detach() + step_size * gradient.sign()).clamp(-epsilon, epsilon)
        delta = delta.clamp(-x, 1 - x)
    return delta


def trades_in_two_clamps(model, x, perturbed, *, epsilon, step_size, steps):
    clean = F.softmax(model(x), 1)
    for _ in range(steps):
        perturbed.requires_grad_()
        loss = F.kl_div(F.log_softmax(model(perturbed), 1), clean, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = perturbed.detach() + step_size * gradient.sign()
        perturbed = perturbed.clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return perturbed.clamp(0, 1) - x


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("epsilon", (0.0, 1e-5, 8 / 255, 0.7, 1.0))
def test_one_clamp_is_that_to_the_ball_and_that_to_the_box_to_the_last_bit(epsilon, dtype):
    torch.manual_seed(0)
    x, y, model = images_at_the_edges(dtype), torch.arange(16) % 4, WithZeroGradients().eval()
    settings = {"epsilon": epsilon, "step_size": 2 / 255, "steps": 6}
    torch.manual_seed(1)
    found = pgd(model, x, y, **settings)
    torch.manual_seed(1)
    start = torch.empty_like(x).uniform_(-epsilon, epsilon).clamp(-x, 1 - x)
    assert torch.equal(found, pgd_in_two_clamps(model, x, y, start, **settings))
    torch.manual_seed(1)
    found = trades(model, x, **settings)
    torch.manual_seed(1)
    start = x + 0.001 * torch.randn_like(x)
    assert torch.equal(found, trades_in_two_clamps(model, x, start, **settings))


@pytest.mark.parametrize(("attack", "added"), (("pgd", 2), ("trades", 1)))
def test_a_step_of_l_inf_is_three_operations_on_the_images(attack, added, tiny_net):
    """Beside x + delta of pgd, which the model is given."""
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    tiny_net.eval()
    counts = []
    for steps in (3, 4):
        settings = L_INF | {"steps": steps}
        with Operations(x.shape) as operations:
            pgd(tiny_net, x, y, **settings) if attack == "pgd" else trades(tiny_net, x, **settings)
        counts.append(operations.counts)
    more = {name: count for (name, _), count in (counts[1] - counts[0]).items()}
    assert more.pop("convolution_backward") == 1 and more.pop("detach", 1)
    assert more == {"sign": 1, "add": added, "clamp": 1}
