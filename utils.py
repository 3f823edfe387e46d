"""What knows nothing of neural collapse, and every other file may use.

Errors, seeds, signals, ranks, device and memory, logs and how a script ends.
"""

import ctypes
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from tqdm import tqdm

logger = logging.getLogger("robust_nc")


class InputError(Exception):
    """Data, a file or a setting that the run cannot use; its text is one line for the user."""


class Stopped(BaseException):
    """A signal stopped the run; what it was asked to keep is on disk."""

    def __init__(self, number: int, where: str):
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.code = 128 + number


# ---------------------------------------------------------------------------------------------
# Seeds, signals, ranks
# ---------------------------------------------------------------------------------------------


def seed_everything(seed: int, *stream: int) -> None:
    """Seed PyTorch's generators (all devices) from the run's seed and, say, an epoch.

    Draws depend on these numbers alone, so that an epoch repeats whatever ran before it. Streams of
    different numbers, or of more of them, are different: () and (0,) too. The global generators of
    Python and NumPy, from which networks of other packages may draw, are seeded as well.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=stream)
    for_torch, for_python, *for_numpy = sequence.generate_state(4, np.uint64).tolist()
    torch.manual_seed(for_torch)
    random.seed(for_python)
    np.random.seed([part % 2**32 for part in for_numpy])


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the generators that a run on the device draws from, as data of a checkpoint."""
    of_numpy: Any = np.random.get_state(legacy=False)
    state = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(of_numpy["state"]["key"].astype(np.int64)),
            "pos": int(of_numpy["state"]["pos"]),
            "has_gauss": int(of_numpy["has_gauss"]),
            "gauss": float(of_numpy["gauss"]),
        },
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Take over a state of random_state; older ones lack those of Python and NumPy."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "python" in state:
        random.setstate(state["python"])
        own = state["numpy"]
        key = own["key"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, own["pos"], own["has_gauss"], own["gauss"]))


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Inside, draws leave no trace: afterwards the generators are as they were."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


class StopSignals:
    """SIGTERM, which SLURM sends before it kills, and Ctrl-C ask to stop; a second one insists.

    `received` is the signal's number, 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        self._former = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.received:
            raise Stopped(number, ", the second signal: at once")
        self.received = number
        logger.info(f"{signal.Signals(number).name}: stopping after the present step")


@dataclass(frozen=True)
class Ranks:
    """The processes that torchrun started, and which of them this one is; alone without it."""

    number: int = 0
    count: int = 1

    def wait(self) -> None:
        """Until all of them are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        if self.count > 1:
            torch.distributed.destroy_process_group()


def join_ranks() -> Ranks:
    """Join the ranks that torchrun started; they exchange barriers alone, for which gloo serves."""
    if "RANK" not in os.environ:
        return Ranks()
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


# ---------------------------------------------------------------------------------------------
# Device and memory
# ---------------------------------------------------------------------------------------------


def select_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    A GPU without a number is that of torchrun's local rank, or the first; it becomes the current
    one, which streams and graphs are made for.

    Raises:
        ValueError: not a device of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device(
                "cuda", int(os.environ["LOCAL_RANK"]) if "RANK" in os.environ else 0
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).double().item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return device


def set_precision(precision: str) -> None:
    """fp32 turns TF32 off; tf32 and bf16 leave it on for what runs in float32 on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 arithmetic; where it has not, PyTorch emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here; one warning line if it does not."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: (x.sin() * x).sum())(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler, an unsupported Python: many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning(f"--compile cannot work here and is left out: {reason}")
        return False
    # Modes, gradients, batch sizes and the folded network: each combination is compiled once.
    torch._dynamo.config.cache_size_limit = 64
    return True


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, where it is glibc.

    Otherwise a CPU tensor above 32 MiB (64 channels of 128 images) is mapped, cleared page by page
    and unmapped again each time, which takes as long as the arithmetic on it.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def peak_memory(device: torch.device) -> float:
    """The most memory in GiB that this process has held so far: of the GPU where it runs on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def describe_peak(device: torch.device) -> str:
    """The peak memory in words, for the end of a log."""
    where = " of the GPU" if device.type == "cuda" else ""
    return f"peak memory {peak_memory(device):.2f} GiB{where}"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, of a GPU or for a CPU tensor, which has no error of its own."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Inside, running out of memory becomes one line that ends with the advice.

    Raises:
        InputError: there was not enough memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"out of memory: {str(error).splitlines()[0]}; {advice}") from error


# How often a line tells the progress where there is no terminal: at least every half minute.
PROGRESS_SECONDS = 20.0


class Progress:
    """How far work has come: a bar on a terminal, elsewhere a line of the log now and then.

    A line tells the share that is done, the rate and the time left, also while nothing is finished.

    Args:
        total, unit: how many of what there are to do.
        initial: how many were done before.
        shown: whether anything is told at all.
    """

    def __init__(self, total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True):
        self.total, self.what, self.unit, self.initial = total, what, unit, initial
        self.done = initial
        options = {"disable": None if shown else True, "initial": initial, "leave": False}
        self._bar = tqdm(total=total, desc=what, unit=unit, **options)
        self._lines = shown and self._bar.disable
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> "Progress":
        self._begun = time.perf_counter()
        if self._lines:
            self._teller.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._lines:
            self._teller.join()
        self._bar.close()

    def update(self, count: int = 1) -> None:
        self.done += count
        self._bar.update(count)

    def line(self, seconds: float) -> str:
        """The line after so many seconds."""
        rate = (self.done - self.initial) / seconds
        left = "unknown time"
        if rate > 0:
            left = str(timedelta(seconds=round((self.total - self.done) / rate)))
        share = self.done / self.total if self.total else 1.0
        return (
            f"{self.what}: {share:.0%} ({self.done} of {self.total} {self.unit}), "
            f"{rate:.3g} {self.unit}/s, {left} left"
        )

    def _tell(self) -> None:
        while not self._over.wait(PROGRESS_SECONDS):
            logger.info(self.line(time.perf_counter() - self._begun))


class _TqdmHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def log_to(path: Path) -> None:
    """From here on, log lines also go to a file, with the time in front."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; what a user can mend ends as one line on stderr and exit code 1."""
    logger.setLevel(logging.INFO)
    logger.handlers = [_TqdmHandler()]
    former = signal.signal(signal.SIGTERM, _stop)
    code = 1
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _once_to_log()
            main()
        return
    except InputError as error:
        message = str(error)
    except Stopped as error:
        message, code = str(error), error.code
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        message = f"out of memory: {str(error).splitlines()[0]}"
    except OSError as error:
        # A folder without permission, for example: the system's message names the file.
        message = str(error)
    finally:
        signal.signal(signal.SIGTERM, former)
    if len(logger.handlers) > 1:
        logger.handlers[1].emit(logging.makeLogRecord({"msg": f"error: {message}"}))
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


def _once_to_log() -> Callable[..., None]:
    """What shows each warning of Python's as one line of the log, the first time."""
    seen = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            logger.warning(text)

    return show


def _stop(number: int, _: Any) -> None:
    raise Stopped(number, "; the same command goes on after what is finished")


@contextmanager
def atomic_open(path: Path) -> Iterator[Any]:
    """A binary file that appears under its name only once it is complete and on disk.

    Raises:
        InputError: it cannot be written, a full disk for example; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())[:200]
        raise InputError(f"{path}: cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
