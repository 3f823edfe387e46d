"""Time this implementation against a plain baseline, on the same machine in the same run.

    python benchmarks/benchmark.py                    # a GPU: all 50,000 images; a CPU: 128 of them
    python benchmarks/benchmark.py --scale 0.1        # a tenth of the images
    python benchmarks/benchmark.py --models vgg11bn --tasks st at --repeats 5

Both sides run alternately, each in a process of its own, after a warm-up by the same task. A
variant is a precision, with +compile for --compile; those without +graph have --no-cuda-graph.
Medians are printed as ratios to the baseline, with the achieved share of the machine's
matrix-product rate and the time that a run of 400 epochs with its sweep would take. `baseline.py`
says what the baseline does.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from sides import (
    EPOCHS,
    IMAGE_SIZE,
    IMAGES,
    PASSES,
    TASKS,
    TRAIN_MODES,
    forget,
    is_timed,
    matrix_rate,
    set_up,
    time_task,
)

from robust_nc.networks.architectures import ARCHITECTURES, build_model
from robust_nc.parsing import Parser, positive_int


def main() -> None:
    args = parse_args()
    images = max(1, round(IMAGES * args.scale))
    sides = ["baseline", *args.variants]
    times: dict[tuple, list[float]] = {}
    # A process for each side: what one does to memory or threads does not touch the other.
    context = multiprocessing.get_context("spawn")
    workers = {
        side: ProcessPoolExecutor(1, context, initializer=set_up, initargs=(side, args.device))
        for side in ("baseline", "ours")
    }
    jobs = [
        (task, model) for task in args.tasks for model in (args.models if task in PASSES else ["-"])
    ]
    total = len(jobs) * len(sides) * (args.repeats + 1)
    print(f"{describe_machine(args.device)}; {images} images", flush=True)
    with tqdm(total=total, desc="benchmark", unit="run", disable=None) as bar:
        for task, model in jobs:
            workers["ours"].submit(forget).result()
            for repeat in range(-1, args.repeats):  # -1 is the warm-up
                for side in sides:
                    if not is_timed(task, side):
                        bar.update()
                        continue
                    worker = workers["baseline" if side == "baseline" else "ours"]
                    seconds = worker.submit(
                        time_task, side, task, model, images, args.device, repeat < 0
                    ).result()
                    if repeat >= 0:
                        times.setdefault((task, model, side), []).append(seconds)
                    bar.update()
    rates = {
        precision: workers["ours"].submit(matrix_rate, precision, args.device).result()
        for precision in sorted({variant.split("+")[0] for variant in args.variants})
    }
    for worker in workers.values():
        worker.shutdown()
    medians = {key: statistics.median(values) for key, values in times.items()}
    print_ratios(args, medians, sides, images)
    print_rates(args, medians, rates, images)
    print_projection(args, medians, sides, images)
    if args.out:
        rows = [[*key, *values] for key, values in times.items()]
        args.out.write_text(json.dumps({"images": images, "rates": rates, "seconds": rows}))


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    precisions = ("fp32", "tf32", "bf16") if cuda else ("fp32", "bf16")
    switches = ("", "+compile", "+graph", "+compile+graph") if cuda else ("", "+compile")
    variants = [precision + switch for precision in precisions for switch in switches]
    parser.add_argument("--scale", type=float, help="share of 50,000 images (CPU: 128 images)")
    models = [name for name, sizes in ARCHITECTURES.items() if IMAGE_SIZE in sizes]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_argument("--out", type=Path, help="write every measured second to this JSON file")
    args = parser.parse_args()
    if args.scale is None:
        args.scale = 1.0 if cuda else 128 / IMAGES
    if not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale}: expected a share of the images, above 0, at most 1")
    args.device = torch.device("cuda" if cuda else "cpu")
    return args


# ---------------------------------------------------------------------------------------------
# What is printed
# ---------------------------------------------------------------------------------------------


def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name}, {torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}"


def cpu_name() -> str:
    """The processor's name and the widest of its instruction sets that matter here."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    sets = fields.get("flags", "").split()
    widest = next((s for s in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if s in sets), "")
    return f"{fields.get('model name', 'CPU')} {widest}".strip()


@cache
def forward_flops(model: str) -> int:
    """Floating-point operations of one forward pass of one image, a multiply-add being two."""
    network = build_model(model, IMAGE_SIZE, in_channels=3, num_classes=10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    return counter.get_total_flops()


def print_ratios(args, medians: dict, sides: list[str], images: int) -> None:
    print(f"\nSeconds of the baseline, and how many times faster ours is ({args.repeats} runs)\n")
    print("| task | model | " + " | ".join(sides) + " |")
    print("| --- " * (len(sides) + 2) + "|")
    for task in args.tasks:
        for model in args.models if task in PASSES else ["-"]:
            plain = medians[task, model, "baseline"]
            cells = [
                f"{plain / medians[task, model, side]:.2f}x"
                if (task, model, side) in medians
                else ""
                for side in sides[1:]
            ]
            size = f"{images} images" if task in PASSES else "50,000 x 512"
            print(f"| {TASKS[task]} ({size}) | {model} | {plain:.2f} s | {' | '.join(cells)} |")


def print_rates(args, medians: dict, rates: dict[str, float], images: int) -> None:
    print(
        "\nRate reached: the least arithmetic of the task over its time, against a matrix product"
    )
    print("of this machine (" + ", ".join(f"{p} {r / 1e9:,.0f} GFLOP/s" for p, r in rates.items()))
    print(")\n\n| task | model | " + " | ".join(args.variants) + " |")
    print("| --- " * (len(args.variants) + 2) + "|")
    for task in args.tasks:
        for model in args.models if task in PASSES else []:
            work = PASSES[task][0] * forward_flops(model) * images
            cells = []
            for variant in args.variants:
                if (task, model, variant) not in medians:
                    cells.append("")
                    continue
                rate = work / medians[task, model, variant]
                share = rate / rates[variant.split("+")[0]]
                cells.append(f"{rate / 1e9:,.0f} GFLOP/s, {share:.0%}")
            print(f"| {TASKS[task]} | {model} | {' | '.join(cells)} |")


def print_projection(args, medians: dict, sides: list[str], images: int) -> None:
    if not {"st", "sweep"} <= set(args.tasks):
        return
    print(f"\nProjected hours of {EPOCHS} epochs of 50,000 images (and of the ST sweep)\n")
    print("| run | model | " + " | ".join(sides) + " |")
    print("| --- " * (len(sides) + 2) + "|")
    for task in (*(task for task in TRAIN_MODES if task in args.tasks), "sweep"):
        for model in args.models:
            hours = (
                f"{medians[task, model, side] * EPOCHS * IMAGES / images / 3600:,.2f}"
                if (task, model, side) in medians
                else ""
                for side in sides
            )
            name = "the ST sweep" if task == "sweep" else f"{task.upper()}, {EPOCHS} epochs"
            print(f"| {name} | {model} | {' | '.join(hours)} |")


if __name__ == "__main__":
    main()
