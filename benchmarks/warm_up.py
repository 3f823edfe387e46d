"""Compile what the stages of gpu_steps.py run, several at a time, so that they find it on the disk.

python benchmarks/warm_up.py          # beside the GPU tests, which leave cores idle
python benchmarks/warm_up.py --try    # on the CPU, with a few images, where nothing is compiled
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu
import sides
from gpu_stages import Bench
from gpu_steps import ATTACK_MODELS, STEPS, attacking, make_few, stepping

from robust_nc.parsing import Parser

AT_ONCE = 3


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--try", dest="trial", action="store_true", help="on the CPU")
    trial = parser.parse_args().trial
    if not (torch.cuda.is_available() or trial):
        parser.error("there is no GPU here that PyTorch can use")
    device = torch.device("cpu") if trial else torch.device("cuda", 0)
    bench = Bench(device, Path(), "", gpu.TRIED if trial else 1.0)
    jobs = [*STEPS[:1], *(("attack", model) for model in ATTACK_MODELS)] if trial else all_jobs()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, context) as pool:
        pending = {pool.submit(compile_job, bench, *job): job for job in jobs}
        for future in as_completed(pending):
            future.result()
            print(f"compiled: {' '.join(pending[future])}", flush=True)


def all_jobs() -> list[tuple[str, str]]:
    return [*STEPS, *(("attack", model) for model in ATTACK_MODELS)]


def compile_job(bench: Bench, task: str, model: str) -> None:
    """A step of the task, or PGD in eval mode, in both precisions."""
    for precision in ("tf32", "bf16"):
        variant = f"{precision}+compile"
        if task == "attack":
            attacking(make_few(bench, "st", model, variant))
        else:
            stepping(bench, make_few(bench, task, model, variant))
        sides.forget()


if __name__ == "__main__":
    main()
