"""All that a GPU has to settle, in ten minutes at most; the figures go to benchmarks/gpu/.

    make gpu                                                  # the stages of MAKE_GPU
    python benchmarks/gpu.py --stages tests end-to-end        # some; the figures of others stay
    python benchmarks/gpu.py --stages steps profile           # ms per step, and where they go
    python benchmarks/gpu.py --try --stages steps --out DIR   # on a CPU, with a few images

Each stage is a process of its own with a limit of time. One that fails is noted and the others
run; the exit code is then 1. benchmarks/gpu/NAME_OF_GPU.json holds every figure, the .md file
beside it a table of them. The images are random and of CIFAR-10's shape.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import benchmark
import sides
from gpu_stages import (
    ROOT,
    Bench,
    Figure,
    StageError,
    compare,
    limit_memory,
    note,
    project_column,
    row_of,
    run_tests,
    time_jobs,
)
from gpu_steps import profile, time_attacks, time_pairs, time_steps, time_switches

from robust_nc.parsing import Parser
from robust_nc.results.files import read_json, write_json
from utils import atomic_open

# Name -> what it does, and the seconds that it may take.
STAGES: dict[str, tuple[Callable[[Bench], None], int]] = {
    "tests": (run_tests, 150),
    "kernels": (compare, 160),
    "end-to-end": (time_jobs, 150),
    "column": (project_column, 95),
    "memory": (limit_memory, 45),
    "steps": (time_steps, 160),
    "attack": (time_attacks, 60),
    "profile": (profile, 45),
    "pairs": (time_pairs, 85),
    "switches": (time_switches, 60),
}
MAKE_GPU = ("tests", "kernels", "end-to-end", "column", "memory")  # 600 s
HALF_HOUR = (
    "tests",
    "steps",
    "attack",
    "profile",
    "pairs",
    "switches",
)  # 560 s
TRIED = 4 / sides.IMAGES  # share of the images that --try takes


# ---------------------------------------------------------------------------------------------
# One after another, and what is left on disk
# ---------------------------------------------------------------------------------------------


UNENDED = "did not end"


def main() -> None:
    args = parse_args()
    if args.worker:
        if not args.trial:
            torch.cuda.set_device(args.device)
        run_worker(Bench(args.device, args.path, args.worker, TRIED if args.trial else 1.0))
        return
    name = benchmark.cpu_name() if args.trial else torch.cuda.get_device_name(args.device)
    path = args.out / f"{slug(name)}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for stage in args.stages:
        command = [sys.executable, __file__, "--worker", stage, "--path", str(path)]
        command += ["--try"] if args.trial else []
        if not run_stage(path, stage, command, 600 if args.trial else STAGES[stage][1]):
            failed.append(stage)
        write_table(path)
    print(f"\nfigures: {path.with_suffix('.md')}, {path}")
    if failed:
        sys.exit(f"gpu.py: error: failed: {', '.join(failed)}")


def parse_args() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=MAKE_GPU)
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="on the CPU, with a few images"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu")
    parser.add_argument("--worker", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (torch.cuda.is_available() or args.trial):
        parser.error("there is no GPU here that PyTorch can use")
    args.device = torch.device("cpu") if args.trial else torch.device("cuda", 0)
    return args


def slug(name: str) -> str:
    """The name of a GPU as a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def run_stage(path: Path, stage: str, command: list[str], limit: float) -> bool:
    """Run a stage as a process, for so many seconds at most; whether all of it went well."""
    print(f"\n== {stage}, at most {limit:g} s", flush=True)
    note(path, stage, figures=[], error=UNENDED, when=time.strftime("%Y-%m-%d %H:%M"))
    started = time.perf_counter()
    # With all that it starts in a group of its own, so that nothing is left of one that takes too
    # long.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=limit)
        said = (read_json(path) or {})["stages"][stage]["error"]
        error = None if code == 0 else f"exit code {code}" if said == UNENDED else said
    except subprocess.TimeoutExpired:
        error = f"took more than {limit:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    note(path, stage, error=error, seconds=round(time.perf_counter() - started, 1))
    print(f"== {stage}: {error or 'done'}", flush=True)
    return error is None


def run_worker(bench: Bench) -> None:
    """A stage, in its own process; the file says what it found and where it failed."""
    content = read_json(bench.path) or {}
    write_json(bench.path, content | {"machine": benchmark.describe_machine(bench.device)})
    try:
        STAGES[bench.stage][0](bench)
    except StageError as error:
        note(bench.path, bench.stage, error=str(error))
        sys.exit(1)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        note(bench.path, bench.stage, error=f"{type(error).__name__}: {line}"[:500])
        raise


def write_table(path: Path) -> None:
    """The Markdown file beside the JSON file, made from it alone."""
    with atomic_open(path.with_suffix(".md")) as file:
        file.write(to_markdown(read_json(path) or {}, path.stem).encode())


def to_markdown(content: dict[str, Any], title: str) -> str:
    """A table per stage."""
    lines = [f"# {title}", "", content.get("machine", ""), ""]
    lines += [f"Made from {title}.json by `make gpu` and `make gpu-run`."]
    for stage, told in content.get("stages", {}).items():
        lines += ["", f"## {stage}", "", f"{told.get('when')}, {told.get('seconds', '?')} s."]
        if told.get("error"):
            lines += ["", f"**Not finished:** {told['error']}"]
        figures = [Figure(**figure) for figure in told.get("figures", [])]
        if figures:
            lines += ["", "| | measured | target | met |", "| --- | --- | --- | --- |"]
            lines += [row_of(figure) for figure in figures]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
