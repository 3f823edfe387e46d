"""Random streams, memory that runs out, and how a script ends."""

from itertools import combinations

import pytest
import torch

from steps import mode_name
from utils import InputError, learning_rate, memory_advice, seed_everything


def first_draws(*numbers):
    seed_everything(*numbers)
    return torch.rand(8).tolist()


def test_every_random_stream_is_one_of_its_own():
    """Initial weights (seed), epochs (seed, e), inputs (seed, e, i) and those of test images."""
    streams = [(1,), (1, 0), (1, 0, 0), (1, 0, 0, 1), (1, 1), (1, 0, 1), (1, 1, 0), (2,), (2, 0)]
    draws = {numbers: first_draws(*numbers) for numbers in streams}
    for one, other in combinations(streams, 2):
        assert draws[one] != draws[other], (one, other)
    assert first_draws(1, 0) == draws[1, 0]


def test_initial_weights_and_epoch_0_share_no_draws():
    seed_everything(3)
    weights = torch.randn(1000)
    seed_everything(3, 0)
    assert torch.corrcoef(torch.stack([weights, torch.randn(1000)]))[0, 1].abs() < 0.15


def test_memory_that_runs_out_ends_with_the_advice():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nx"),
    ):
        expected = r"out of memory: .*; lower --batch-size$"
        with (
            pytest.raises(InputError, match=expected) as caught,
            memory_advice("lower --batch-size"),
        ):
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("lower --batch-size"):
        raise RuntimeError("shapes do not fit")


def test_unknown_names_are_refused_and_not_taken_for_another():
    with pytest.raises(ValueError, match="no training mode 'pgd_trian'"):
        mode_name("pgd_trian", "frozen")
    with pytest.raises(ValueError, match="std_train_batch"):
        mode_name("std_train", "batch")
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        learning_rate("step", 1, epochs=10, lr_max=0.1)
