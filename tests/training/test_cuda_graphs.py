"""Steps replayed as CUDA graphs, with a stand-in for torch.cuda that can fail where it can."""

import gc
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import CIFAR_STATISTICS
from test_fast_paths import make_learner
from torch.overrides import TorchFunctionMode

import train
from robust_nc import build
from robust_nc.data.datasets import Dataset
from robust_nc.data.readers import Split
from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.networks.network import Network
from robust_nc.training.cuda_graphs import ReplayedStep, reason_for_plain_steps
from robust_nc.training.epoch import train_epoch
from robust_nc.training.modes import MODES, TrainingMode, standard_step

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
            def __init__(self, graph, pool, stream, capture_error_mode):
                assert capture_error_mode == "thread_local"  # the writer's thread goes on
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
    return [f"no CUDA graph of the training step, every step runs as it is: {reason}"]


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


# ---------------------------------------------------------------------------------------------
# Which runs are replayed
# ---------------------------------------------------------------------------------------------

GPU = torch.device("cuda", 0)


class OnCpu(TorchFunctionMode):
    """What is asked of a GPU is done on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {name: self.here(value) for name, value in (kwargs or {}).items()}
        return function(*map(self.here, args), **kwargs)

    def here(self, value):
        on_gpu = isinstance(value, torch.device) and value.type == "cuda"
        return torch.device("cpu") if on_gpu else value


@pytest.fixture
def on_gpu(monkeypatch, tiny_models):
    """A run of these flags on a GPU, which a stand-in counts the captures of."""
    cuda = FakeCuda(monkeypatch)

    def prepared(flags, device=GPU):
        settings = train.parse_args(f"--device cpu --batch-size 8 {flags}".split())
        images = Split(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), Y.repeat(3)[:20])
        data = Dataset(images, images, 4, *CIFAR_STATISTICS)
        settings = settings.replace(device=device)
        return build.prepare(settings, build.run_folder(settings), data)

    with OnCpu():
        yield cuda, prepared


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("switch", ("", "--no-cuda-graph"))
def test_every_mode_of_ours_is_replayed_unless_told_otherwise(mode, switch, on_gpu, caplog):
    """Two epochs of 8, 8 and 4 images: the full batch is captured after three of them."""
    caplog.set_level("INFO", logger="robust_nc")
    cuda, prepared = on_gpu
    flags = f"--train-mode {mode.train_mode} --bn {mode.bn} --attack-iters 1 --optimizer adam"
    training = prepared(f"{flags} {switch}")
    for epoch in (0, 1):
        train_epoch(training, epoch, None, None)
    captured = 0 if switch else 1
    assert (cuda.captures, cuda.replays) == (captured, captured)
    assert training.learner.optimizer.param_groups[0]["capturable"] is not bool(switch)
    told = [line for line in messages(caplog) if "CUDA graph" in line]
    assert len(told) == 1 and ("is not replayed" in told[0]) is bool(switch)


@pytest.mark.parametrize("optimizer", ("adam", "adamw"))
def test_no_step_is_replayed_without_a_gpu(optimizer, on_gpu, caplog):
    caplog.set_level("INFO", logger="robust_nc")
    training = on_gpu[1](f"--optimizer {optimizer}", torch.device("cpu"))
    assert training.step is standard_step and not messages(caplog)
    assert not training.learner.optimizer.param_groups[0]["capturable"]


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_every_network_of_ours_is_replayed(model, on_gpu):
    assert isinstance(on_gpu[1](f"--model {model}").step, ReplayedStep)


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        ({}, None),
        ({"no_cuda_graph": True}, "--no-cuda-graph"),
        ({"model": "theirs:make"}, "--model theirs:make is of another package; --cuda-graph asks"),
        ({"model": "theirs:make", "cuda_graph": True}, None),
    ),
)
def test_networks_of_other_packages_are_replayed_on_request(change, reason, learner):
    settings = train.parse_args(["--device", "cpu"]).replace(device=GPU, **change)
    given = reason_for_plain_steps(settings, MODES["std_train"], learner.network)
    assert (given is None) is (reason is None) and (given or "").startswith(reason or "")


def test_a_mode_of_one_s_own_is_replayed_on_request(learner):
    settings = train.parse_args(["--device", "cpu"])
    own = TrainingMode(step=standard_step, short="own", label="own", train_mode="own_train")
    for asked in (False, True):
        settings = settings.replace(cuda_graph=asked)
        assert (reason_for_plain_steps(settings, own, learner.network) is None) is asked


@pytest.mark.parametrize("asked", (False, True))
@pytest.mark.parametrize("bn", ("batch", "frozen"))
def test_a_batch_norm_without_momentum_is_not_captured_in_training(bn, asked, learner):
    """It divides by how many batches there were, which Python asks the device for."""
    learner.network.model.norm = torch.nn.BatchNorm2d(8, momentum=None)
    settings = train.parse_args(["--device", "cpu"]).replace(cuda_graph=asked)
    mode = MODES["pgd_train" if bn == "batch" else "pgd_train_frozen"]
    reason = reason_for_plain_steps(settings, mode, learner.network)
    assert (reason is None) is (bn == "frozen")
    assert reason is None or reason.startswith("batch norm norm has no momentum")
