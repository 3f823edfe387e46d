"""Random streams, memory that runs out, and how a script ends."""

import io
import random
import sys
import time
from itertools import combinations

import numpy as np
import pytest
import torch

import utils
from robust_nc.training.modes import mode_name
from robust_nc.training.schedules import learning_rate
from utils import (
    InputError,
    Progress,
    memory_advice,
    random_state,
    seed_everything,
    select_device,
    set_random_state,
)


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


def draws_of_all():
    """A draw of each generator that a network of another package may use."""
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1)


def test_python_and_numpy_are_seeded_as_well_and_torch_as_before():
    seed_everything(5, 1)
    first = draws_of_all()
    assert torch.initial_seed() == 6924645418555453511
    draws_of_all()
    seed_everything(5, 1)
    assert draws_of_all() == first
    seed_everything(5, 2)
    assert not {*first} & {*draws_of_all()}


def test_a_random_state_is_data_and_brings_every_generator_back():
    cpu = torch.device("cpu")
    seed_everything(5)
    draws_of_all()  # half a pair of normal draws is part of a state
    file = io.BytesIO()
    torch.save(random_state(cpu), file)
    first = draws_of_all()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    set_random_state(state, cpu)
    assert draws_of_all() == first
    set_random_state({"cpu": state["cpu"]}, cpu)  # as earlier versions saved it
    assert draws_of_all()[4] == first[4]


def test_without_a_terminal_lines_tell_the_progress(monkeypatch, caplog):
    """At least every half minute, also while nothing is finished."""
    assert utils.PROGRESS_SECONDS < 30
    monkeypatch.setattr(utils, "PROGRESS_SECONDS", 0.02)
    caplog.set_level("INFO")
    with Progress(40, "sweep", "rows", initial=10) as progress:
        time.sleep(0.1)
        idle = [record.message for record in caplog.records]
        progress.update(15)
        time.sleep(0.1)
    told = [record.message for record in caplog.records]
    assert len(idle) > 1 and len(told) > len(idle)
    assert idle[0] == "sweep: 25% (10 of 40 rows), 0 rows/s, unknown time left"
    assert told[-1].startswith("sweep: 62% (25 of 40 rows), ")
    assert told[-1].endswith(" rows/s, 0:00:00 left")
    assert progress.line(30.0) == "sweep: 62% (25 of 40 rows), 0.5 rows/s, 0:00:30 left"
    caplog.clear()
    with Progress(40, "sweep", "rows", shown=False):
        time.sleep(0.05)
    assert not caplog.records


def test_on_a_terminal_there_is_a_bar_and_no_line(monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(utils, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr("sys.stderr", Terminal())
    caplog.set_level("INFO")
    with Progress(4, "epoch 3", "images") as progress:
        progress.update(4)
        time.sleep(0.05)
    assert not caplog.records and "epoch 3" in sys.stderr.getvalue()


def test_memory_that_runs_out_ends_with_the_advice():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate\nx"),
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
        mode_name("pgd_trian")
    with pytest.raises(ValueError, match="std_train_batch"):
        mode_name("std_train_batch", "batch")
    with pytest.raises(ValueError, match="with batch or frozen batch norm"):
        mode_name("std_train", "cold")
    with pytest.raises(ValueError, match="pgd_train_frozen"):
        mode_name("pgd_train_frozen")  # --train-mode pgd_train --bn frozen
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        learning_rate("step", 1, epochs=10, lr_max=0.1)


class FakeGpus:
    """Stands in for the calls that choose a GPU, and notes them."""

    def __init__(self, monkeypatch, count):
        self.current, self.touched, zeros = None, [], torch.zeros

        def set_device(device):
            if device.index >= count:
                raise RuntimeError("CUDA error: invalid device ordinal\nand more")
            self.current = device

        def touch(size, device):
            self.touched.append(device)
            return zeros(size)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_device", set_device)
        monkeypatch.setattr(torch, "zeros", touch)


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    (
        ("auto", None, 0),
        ("cuda", None, 0),
        ("cuda:1", None, 1),
        ("auto", "2", 2),
        ("cuda", "2", 2),  # no rank opens a context on the first GPU
        ("cuda:1", "2", 1),
    ),
)
def test_a_gpu_has_a_number_and_becomes_the_current_one(name, local_rank, expected, monkeypatch):
    gpus = FakeGpus(monkeypatch, count=4)
    if local_rank:
        monkeypatch.setenv("RANK", local_rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    device = select_device(name)
    assert device == torch.device("cuda", expected) == gpus.current
    assert gpus.touched == [device]


def test_a_gpu_that_is_not_there_is_told_in_one_line(monkeypatch):
    FakeGpus(monkeypatch, count=1)
    with pytest.raises(ValueError, match=r"^CUDA error: invalid device ordinal$"):
        select_device("cuda:3")
