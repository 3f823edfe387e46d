"""The paper's first run on this GPU: VGG11, trained the standard way on CIFAR-10, and its sweep.

    make gpu-run                                             # until it is finished
    SECONDS_LEFT=540 make gpu-run                            # a piece of it; the same goes on
    DATA="--dataset folder --data-dir DIR" make gpu-run      # on other images

Flags beyond --seconds go to train.py and eval.py. Wall times of all pieces are added up beside
what `make gpu` finds, in benchmarks/gpu/NAME_OF_GPU.json and the table of it.
"""

import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import benchmark
import gpu
import gpu_stages

from robust_nc.parsing import Parser, positive_int
from robust_nc.results.files import read_json

RUN = "--dataset=cifar --model=vgg11bn --seed 1 --norm l_inf --train-mode std_train --lr-max=0.1 "
RUN += "--epsilon=8 --pgd-alpha=2 --attack-iters=10 --epochs 400"
KINDS = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"
SCRIPTS = {"train.py": f"{RUN} --resume", "eval.py": f"{RUN} {KINDS}"}
# Seconds that each may take: 400 epochs in 4 minutes, 400 checkpoints of 3 s.
TARGETS = {"train.py": 240.0, "eval.py": 1200.0}
STAGE = "run"
TIME_IS_UP = 75  # EX_TEMPFAIL of sysexits.h: try again


class TimeUpError(Exception):
    """The seconds are over, or a signal came."""


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=positive_int, help="stop after so many, to go on later")
    parser.add_argument("--out", type=Path, default=gpu.ROOT / "benchmarks" / "gpu")
    args, more = parser.parse_known_args()
    on_cpu = any(word in ("--device=cpu", "cpu") for word in more)
    if not (torch.cuda.is_available() or on_cpu):
        parser.error("there is no GPU here that PyTorch can use")
    name = benchmark.cpu_name() if on_cpu else torch.cuda.get_device_name(0)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        sys.exit(run(args.out / f"{gpu.slug(name)}.json", more, args.seconds))
    except TimeUpError:  # between two scripts
        sys.exit(TIME_IS_UP)


def run(path: Path, more: list[str], limit: float | None) -> int:
    """Both scripts, each from where it stopped; the exit code."""
    signal.signal(signal.SIGTERM, time_is_up)
    end = time.monotonic() + (limit or float("inf"))
    seconds = earlier_seconds(path, more)
    for script, flags in SCRIPTS.items():
        command = [sys.executable, str(gpu.ROOT / script), *flags.split(), *more]
        started = time.monotonic()
        code = run_script(command, end - started)
        seconds[script] = seconds.get(script, 0.0) + time.monotonic() - started
        left = "under way" if code == TIME_IS_UP else f"{script} ended with exit code {code}"
        record(path, more, seconds, left if code else None if script == "eval.py" else "under way")
        print(f"gpu-run: {script} {seconds[script]:.1f} s of wall time in all", flush=True)
        if code == TIME_IS_UP:
            print("gpu-run: time is up; the same command goes on", file=sys.stderr)
        if code:
            return code
    return 0


def time_is_up(*_: Any) -> None:
    raise TimeUpError


def run_script(command: list[str], seconds: float) -> int:
    """Run a command, stopped by SIGTERM after so many seconds: its exit code, or TIME_IS_UP."""
    if seconds <= 0:
        return TIME_IS_UP
    process = subprocess.Popen(command)
    try:
        return process.wait(timeout=None if seconds == float("inf") else seconds)
    except (subprocess.TimeoutExpired, TimeUpError):
        process.terminate()
    except KeyboardInterrupt:  # which the script gets as well
        pass
    return TIME_IS_UP if process.wait() else 0


def earlier_seconds(path: Path, more: list[str]) -> dict[str, float]:
    """What earlier pieces of the same run took; nothing once it is finished."""
    told = (read_json(path) or {}).get("stages", {}).get(STAGE, {})
    unfinished = told.get("flags") == more and told.get("error")
    return dict(told["wall"]) if unfinished else {}


def record(path: Path, more: list[str], seconds: dict[str, float], left: str | None) -> None:
    """Put the wall times beside the figures of `make gpu`."""
    figures = [
        asdict(gpu_stages.Figure(f"{script}, {' '.join([RUN, *more])}", wall, "s", TARGETS[script]))
        for script, wall in seconds.items()
    ]
    gpu_stages.note(
        path,
        STAGE,
        flags=more,
        wall=seconds,
        figures=figures,
        error=left,
        when=time.strftime("%Y-%m-%d %H:%M"),
        seconds=round(sum(seconds.values()), 1),
    )
    gpu.write_table(path)


if __name__ == "__main__":
    main()
