"""Steps replayed as CUDA graphs, with a stand-in for torch.cuda that can fail where it can."""

import gc
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import CIFAR_STATISTICS
from test_fast_paths import make_learner

from robust_nc.networks.network import Network
from robust_nc.training.cuda_graphs import ReplayedStep
from robust_nc.training.modes import standard_step

X, Y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
SYNC = "called a synchronizing CUDA operation (Triggered internally at somewhere.cpp:1)"


class Generator:
    """A generator whose state is shared with the graphs that are registered with it."""

    def __init__(self, offset=0):
        self.state = SimpleNamespace(offset=offset, capturing=False)

    def clone_state(self):
        assert not self.state.capturing
        return Generator(self.state.offset)

    def graphsafe_set_state(self, other):
        self.state = other.state


class FakeCuda:
    """Streams, generator, memory pools and graphs; a replay does nothing.

    Args:
        ends_pool: whether the end of a failed capture closes its pool, as of PyTorch 2.14.
        end: what the error at the end of a capture says.
    """

    def __init__(self, monkeypatch, ends_pool=True, end=None):
        self.ends_pool, self.end = ends_pool, end
        self.replays = self.captures = self.released = 0
        self.current, self.mode = "current", 0
        self.streams, self.open, self.graphs = [], [], []
        self.generator = Generator(offset=40)
        fake = self

        class Stream:
            def __init__(self):
                fake.streams.append(self)

            def wait_stream(self, other):
                assert other == "current"

        class Current(str):
            def wait_stream(self, other):
                assert other in fake.streams

        class Graph:
            def __init__(self):
                fake.graphs.append(weakref.ref(self))

            def replay(self):
                assert fake.generator.state is self.registered and fake.current == "current"
                fake.replays += 1

            def reset(self):
                if fake.ends_pool:
                    fake.released += 1

        class on_stream:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                self.former, fake.current = fake.current, self.stream

            def __exit__(self, *_):
                fake.current = self.former

        class capture(on_stream):
            def __init__(self, graph, pool, stream):
                super().__init__(stream)
                self.graph, self.pool = graph, pool

            def __enter__(self):
                super().__enter__()
                fake.captures += 1
                fake.open.append(self.pool)
                fake.generator.state.capturing = True
                self.graph.registered = fake.generator.state

            def __exit__(self, error, *_):
                if fake.ends_pool:
                    fake.open.remove(self.pool)
                if error or fake.end:  # as CUDA does, which leaves the stream and the generator
                    raise RuntimeError(fake.end or "failed due to a previous error\nin capture")
                if not fake.ends_pool:
                    fake.open.remove(self.pool)
                fake.generator.state.capturing = False
                super().__exit__()

        def end_pool(device, pool):
            assert device == 0
            if pool not in fake.open:
                raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
            fake.open.remove(pool)

        def release(device, pool):
            fake.released += 1

        def empty_cache():
            assert not fake.open  # the allocator refuses while a capture is under way

        def set_mode(mode):
            fake.mode = {"warn": 1}.get(mode, mode)

        self.current = Current("current")
        for name, value in {
            "Stream": Stream,
            "current_stream": lambda: fake.current,
            "set_stream": lambda stream: setattr(fake, "current", stream),
            "stream": on_stream,
            "CUDAGraph": Graph,
            "graph": capture,
            "graph_pool_handle": lambda: (0, 1),
            "default_generators": (self.generator,),
            "current_device": lambda: 0,
            "empty_cache": empty_cache,
            "get_sync_debug_mode": lambda: fake.mode,
            "set_sync_debug_mode": set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        end = "_cuda_endAllocateToPool" if ends_pool else "_cuda_endAllocateCurrentStreamToPool"
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
            monkeypatch.delattr(torch._C, name, raising=False)
        monkeypatch.setattr(torch._C, end, end_pool, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)


@pytest.fixture
def learner(tiny_net):
    return make_learner(Network(tiny_net, *CIFAR_STATISTICS).train(), lr=0.1)


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def said(reason):
    return [f"--cuda-graph: no CUDA graph of the training step: {reason}"]


def run(replayed, learner, rounds=6):
    """So many steps of eight images, each with one of four after it."""
    for i in range(rounds):
        replayed(learner, X + i, Y)
        replayed(learner, X[:4], Y[:4])


def test_a_step_is_captured_once_per_batch_size_after_its_warm_up(learner, monkeypatch, caplog):
    cuda, calls = FakeCuda(monkeypatch), []

    def step(learner, x, y):
        calls.append((x, y))
        assert cuda.current is cuda.streams[0]
        return standard_step(learner, x, y)

    replayed = ReplayedStep(step)
    run(replayed, learner)
    assert cuda.captures == 2 and cuda.replays == 2 * 3 and len(cuda.streams) == 1
    assert len(calls) == 2 * (ReplayedStep.WARM_UP + 1)
    captured = next(x for x, _ in calls[2 * ReplayedStep.WARM_UP :] if len(x) == 8)
    assert torch.equal(captured, X + 5)  # what is replayed reads the present batch
    assert cuda.current == "current" and not messages(caplog)


@pytest.mark.parametrize("ends_pool", (True, False))
@pytest.mark.parametrize("where", ("in the step", "at its end"))
def test_a_failed_capture_leaves_nothing_behind(where, ends_pool, learner, monkeypatch, caplog):
    """The graph of eight images is there already when that of four fails."""
    cuda, streams = FakeCuda(monkeypatch, ends_pool), []

    def step(learner, x, y):
        streams.append(cuda.current)
        result = standard_step(learner, x, y)
        if cuda.captures == 2 and cuda.open:
            if where == "in the step":
                raise torch.OutOfMemoryError("not permitted\nwhile capturing")
            cuda.end = "graph too large"
        return result

    replayed = ReplayedStep(step)
    run(replayed, learner, ReplayedStep.WARM_UP)
    replayed(learner, X, Y)
    assert cuda.replays == 1 and set(replayed.captured) == {8}
    before = cuda.generator.state
    streams.clear()
    run(replayed, learner)
    reason = {"in the step": "not permitted", "at its end": "graph too large"}[where]
    assert messages(caplog) == said(reason)
    assert cuda.captures == 2 and cuda.replays == 2  # the first replay of this round is the last
    assert streams == [cuda.streams[0]] + ["current"] * 11 and len(cuda.streams) == 1
    assert cuda.current == "current"
    assert cuda.generator.state is not before
    assert vars(cuda.generator.state) == {"offset": 40, "capturing": False}
    gc.collect()
    assert not replayed.captured and not any(graph() for graph in cuda.graphs)
    assert not cuda.open and cuda.released == 1


def test_a_step_that_waits_for_the_device_is_never_captured(learner, monkeypatch, caplog):
    cuda, streams = FakeCuda(monkeypatch), []

    def step(learner, x, y):
        streams.append(cuda.current)
        if cuda.mode:
            warnings.warn(SYNC, stacklevel=1)
        return standard_step(learner, x, y)

    run(ReplayedStep(step), learner)
    assert messages(caplog) == said("it waits for the device")
    assert cuda.captures == 0 and cuda.mode == 0 and len(cuda.streams) == 1
    assert streams == [cuda.streams[0]] * 5 + ["current"] * 7


def test_warnings_of_the_first_steps_are_shown_but_for_adam_s(learner, monkeypatch):
    """Which warns of steps that are not captured; they will be."""
    FakeCuda(monkeypatch)

    def step(learner, x, y):
        warnings.warn("This instance was constructed with capturable=True, but", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return standard_step(learner, x, y)

    with pytest.warns(UserWarning) as shown:
        ReplayedStep(step)(learner, X, Y)
    assert [str(warning.message) for warning in shown] == ["something else"]
