"""What is done once in a step instead of in each of its passes: the same numbers, fewer kernels."""

from contextlib import nullcontext

import pytest
import torch
from conftest import CIFAR_STATISTICS, Operations, TinyNet
from test_fast_paths import make_learner, with_statistics
from torch import nn

from robust_nc.networks.any_network import examine
from robust_nc.networks.architectures import ARCHITECTURES, build_model
from robust_nc.networks.network import Network
from robust_nc.training import modes
from robust_nc.training.modes import MODES, standard_step

X, Y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
DECAY = 0.5
BATCH = [name for name, mode in MODES.items() if mode.bn == "batch"]
FROZEN = [name for name, mode in MODES.items() if mode.bn == "frozen"]


def make_network(bf16=False, of_another_package=False):
    """A small network whose biases and statistics are not zero."""
    torch.manual_seed(2)
    model = with_statistics(TinyNet())
    nn.init.normal_(model.convolution.bias)
    anatomy = examine("theirs:net", model, (3, 16, 16), 4) if of_another_package else None
    return Network(model, *CIFAR_STATISTICS, bf16, anatomy).train()


def take_step(network, mode, restarts=1):
    """The operations of one step with momentum and weight decay."""
    learner = make_learner(network, lr=0.1, restarts=restarts)
    learner.optimizer = torch.optim.SGD(
        network.model.parameters(), lr=0.1, momentum=0.9, weight_decay=DECAY
    )
    torch.manual_seed(3)
    with Operations() as operations:
        MODES[mode].step(learner, X, Y)
    return operations.counts


def leave_out_nothing(monkeypatch, *names):
    """Every pass does all of it itself."""
    for name in names:
        monkeypatch.setattr(modes, name, lambda *_, **__: nullcontext(0.0))


@pytest.mark.parametrize("restarts", (1, 2))
@pytest.mark.parametrize("mode", BATCH)
def test_a_step_counts_its_passes_with_one_kernel(mode, restarts, monkeypatch):
    found, plain = make_network(), make_network()
    counts = take_step(found, mode, restarts)
    assert counts["_foreach_add_", torch.int64] == 1 and not counts["add_", torch.int64]
    leave_out_nothing(monkeypatch, "counted_once")
    counts = take_step(plain, mode, restarts)
    assert counts["add_", torch.int64] > 0
    for name, value in found.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, sizes in ARCHITECTURES.items() for size in sizes]
)
def test_a_pass_of_every_network_uses_each_of_its_norms_once(name, size):
    network = Network(build_model(name, size, 3, 10), *CIFAR_STATISTICS).train()
    network(torch.rand(2, 3, size, size))
    counted = [m.num_batches_tracked for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counted and all(count == 1 for count in counted)


def test_weights_are_cast_once_per_attack_to_the_same_bits(monkeypatch):
    found, plain = make_network(bf16=True), make_network(bf16=True)
    steps = take_step(found, "pgd_train")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in found.parameters())
    monkeypatch.setattr(Network, "weights_cast", lambda self: nullcontext())
    each_pass = take_step(plain, "pgd_train")
    for name, value in found.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    saved = each_pass["_to_copy", torch.bfloat16] - steps["_to_copy", torch.bfloat16]
    assert saved == 9 * 3  # the convolution's weight, and the classifier's weight and bias


@pytest.mark.parametrize("mode", BATCH)
def test_a_bias_that_a_norm_takes_away_again_changes_nothing_but_rounding(mode, monkeypatch):
    found, plain = make_network(), make_network()
    bias, before = found.model.convolution.bias, found.model.convolution.bias.detach().clone()
    names = list(found.state_dict())
    take_step(found, mode)
    assert list(found.state_dict()) == names and found.model.convolution.bias is bias
    # Zero, not None: weight decay acts.
    assert bias.grad.count_nonzero() == 0
    torch.testing.assert_close(bias.detach(), (1 - 0.1 * DECAY) * before, rtol=1e-6, atol=0)
    leave_out_nothing(monkeypatch, "biases_left_out")
    take_step(plain, mode)
    assert 0 < plain.model.convolution.bias.grad.abs().max() < 1e-6  # rounding
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_no_pass_in_train_mode_adds_it_and_every_pass_in_eval_mode_does():
    network, seen = make_network(), []
    learner = make_learner(network, lr=0.1)
    network.model.convolution.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, module.bias is None))
    )
    MODES["pgd_train"].step(learner, X, Y)
    assert seen == [(True, True)] * 12
    seen.clear()
    MODES["pgd_train_TRADES"].step(learner, X, Y)
    assert seen == [(False, False)] * 2  # the attack has the folded network


def test_it_is_put_back_where_a_pass_fails():
    network = make_network()
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    learner = make_learner(network, lr=0.1)

    def fail(*_):
        raise MemoryError

    network.model.linear.register_forward_pre_hook(fail)
    network.model.norm.momentum = 0.0  # nothing else moves the statistics
    with pytest.raises(MemoryError):
        standard_step(learner, X, Y)
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("mode", FROZEN)
def test_frozen_batch_norm_keeps_biases_and_counts(mode, monkeypatch):
    found, plain = make_network(), make_network()
    take_step(found, mode)
    leave_out_nothing(monkeypatch, "counted_once", "biases_left_out")
    take_step(plain, mode)
    assert found.model.convolution.bias.grad.count_nonzero() > 0
    for name, value in found.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_networks_of_other_packages_are_left_alone(monkeypatch):
    found, plain = (make_network(bf16=True, of_another_package=True) for _ in range(2))
    types = set()  # in train mode or not, as in the folded network, which casts for itself
    found.model.convolution.register_forward_pre_hook(
        lambda module, _: types.add((module.training, module.weight.dtype))
    )
    take_step(found, "pgd_train")
    assert {dtype for training, dtype in types if training} == {torch.float32}
    leave_out_nothing(monkeypatch, "counted_once", "biases_left_out")
    monkeypatch.setattr(Network, "weights_cast", lambda self: nullcontext())
    take_step(plain, "pgd_train")
    assert found.model.convolution.bias.grad.count_nonzero() > 0
    for name, value in found.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_a_refolded_network_is_copied_by_one_kernel_for_each_pair_of_types():
    network = make_network(bf16=True)
    folded = make_learner(network, lr=0.1).folded
    with Operations() as operations:
        folded.refold()
    assert not operations.counts["copy_", torch.bfloat16]
    copies = {key: count for key, count in operations.counts.items() if key[0] == "_foreach_copy_"}
    assert copies == {
        ("_foreach_copy_", torch.bfloat16): 1,
        ("_foreach_copy_", torch.float32): 1,
    }
