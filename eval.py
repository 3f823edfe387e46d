"""Sweep the checkpoints of a run: accuracy, loss and neural collapse on the training data.

    python eval.py --neural-collapse                          # clean and PGD
    python eval.py --neural-collapse-gaussian                 # Gaussian and sign noise
    python eval.py --neural-collapse-targeted                 # PGD towards the next class
    python eval.py --neural-collapse --checkpoints 0,10,399   # three checkpoints alone
    python eval.py --neural-collapse --checkpoint a.pth b.pth --out results/   # any files
    torchrun --nproc-per-node=8 eval.py --neural-collapse     # shared out over 8 GPUs

The flags that name the run are those it was trained with. Each finished checkpoint is on disk at
once; the same command, started again, goes on behind the last one.
"""

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import utils
from attacks import gaussian_noise, pgd, sign_noise
from nc_metrics import simplex_distance
from utils import (
    INPUTS,
    Dataset,
    FoldedNetwork,
    InputError,
    Network,
    Record,
    RunFolder,
    Split,
    logger,
    measure,
)

# Flags that change what a sweep measures: records made with other values are never mixed in.
MEASURING_FLAGS = (
    "attack_iters",
    "pgd_alpha",
    "restarts",
    "noise_level",
    "limit_train",
    "image_size",
    "precision",
    "checkpoint",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.Parser(
        description="Sweep the checkpoints of a run with the neural-collapse metrics.",
        allow_abbrev=False,
    )
    utils.add_run_flags(parser)
    sweep = parser.add_argument_group("the sweep")
    sweep.add_argument("--neural-collapse", action="store_true", help="clean and PGD inputs")
    sweep.add_argument(
        "--neural-collapse-gaussian", action="store_true", help="Gaussian and sign noise"
    )
    sweep.add_argument(
        "--neural-collapse-targeted",
        action="store_true",
        help="PGD towards the next class, measured with the target labels",
    )
    sweep.add_argument(
        "--checkpoints",
        metavar="EPOCHS",
        help="epochs like 0,10,399, a slice like ::10, or log (default: those that the run keeps)",
    )
    sweep.add_argument(
        "--checkpoint",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure these files instead of a run's checkpoints; needs --out",
    )
    sweep.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results of --checkpoint"
    )
    sweep.add_argument(
        "--overwrite", action="store_true", help="drop what an earlier sweep recorded first"
    )
    # The run may tell what it was trained with; a value given here must agree with it.
    parser.set_defaults(lr_max=None)
    args = parser.parse_args(argv)
    utils.complete_run_flags(parser, args)
    args.inputs = wanted_inputs(args)
    if not args.inputs:
        parser.error(
            "nothing to measure: give --neural-collapse, --neural-collapse-gaussian or "
            "--neural-collapse-targeted"
        )
    args.sweep = utils.parse_epochs(parser, "--checkpoints", args.checkpoints, args.epochs)
    if (args.checkpoint is None) != (args.out is None):
        parser.error("--checkpoint FILE and --out DIR go together: what to measure, and where to")
    if args.checkpoint:
        if args.checkpoints:
            parser.error("--checkpoints chooses among a run's epochs, --checkpoint names files")
        args.sweep = list(range(len(args.checkpoint)))
    return args


def wanted_inputs(args: argparse.Namespace) -> list[str]:
    wanted = set()
    if args.neural_collapse:
        wanted |= {"clean", "pgd"}
    if args.neural_collapse_gaussian:
        wanted |= {"gaussian", "sign"}
    if args.neural_collapse_targeted:
        wanted |= {"clean", "targeted"}  # compared with the clean class means
    return [name for name in INPUTS if name in wanted]


def main() -> None:
    args = parse_args()
    rank, world_size = utils.join_ranks(args)
    utils.set_precision(args.precision)
    run = utils.run_folder(args)
    if args.checkpoint:
        run.move_to(args.out)
    else:
        check_training(args, run)
    files = checkpoint_files(args, run)
    data, network, folded = utils.load_run(args)
    if not args.checkpoint:
        utils.refuse_other_data(run, data)
    with run.lock("eval.py") if rank == 0 else nullcontext():
        if rank == 0:
            prepare(args, run, data)
        utils.wait_for_ranks(world_size)
        run.open()
        utils.log_to(run.path / "eval.log")
        sweep(args, run, data.train, network, folded, files, rank, world_size)
        utils.wait_for_ranks(world_size)
        if rank == 0:
            run.open()  # with what the other ranks recorded
            for line in summary_table(run.records, args.sweep, args.inputs):
                logger.info(line)
            logger.info(f"results are in {run.results}; {utils.peak_memory(args.device)}")
    if world_size > 1:
        torch.distributed.destroy_process_group()


def prepare(args: argparse.Namespace, run: RunFolder, data: Dataset) -> None:
    """Open the folder for this sweep: nothing of one with other flags stays or is mixed in."""
    run.open()
    if args.overwrite:
        run.drop(0, "eval")
    else:
        check_earlier_sweep(args, run)
    utils.write_json(run.results / "eval_args.json", utils.describe_run(args, data))


def sweep(
    args: argparse.Namespace,
    run: RunFolder,
    data: Split,
    network: Network,
    folded: FoldedNetwork,
    files: dict[int, Path],
    rank: int,
    world_size: int,
) -> None:
    """Measure this rank's share of the checkpoints that are not recorded yet."""
    batch_size = utils.eval_batch_size(args, folded, data.images)
    done = {(r.epoch, r.input) for r in run.records if r.source == "eval"}
    todo = [e for e in args.sweep if any((e, name) not in done for name in args.inputs)]
    share = todo[rank::world_size]
    of_rank = f"; rank {rank} of {world_size} takes {len(share)}" if world_size > 1 else ""
    logger.info(
        f"sweep of {run.path}: {len(todo)} checkpoints ({len(args.sweep) - len(todo)} done "
        f"before) on {', '.join(args.inputs)}; {len(data)} training images in batches of "
        f"{batch_size}, on {args.device}{of_rank}"
    )
    utils.wait_for_ranks(world_size)  # all have read the same records before one adds to them
    total = len(share) * len(args.inputs) * len(data)
    # A bar for one rank: those of others would write over it.
    with tqdm(total=total, desc="sweep", unit="img", disable=True if rank else None) as bar:
        for epoch in share:
            utils.load_checkpoint(files[epoch], network.model)
            try:
                records = measure_checkpoint(args, folded.refold(), data, epoch, batch_size, bar)
            except InputError as error:
                raise InputError(f"{files[epoch]}: {error}") from error
            run.add(records)
            name = files[epoch].name if args.checkpoint else f"epoch {epoch:>3}"
            for record in records:
                logger.info(f"{name} {utils.format_record(record)}")


def checkpoint_files(args: argparse.Namespace, run: RunFolder) -> dict[int, Path]:
    """Epoch -> file of every checkpoint to measure; for --checkpoint the place in its list."""
    if args.checkpoint:
        files = dict(enumerate(args.checkpoint))
        advice = "--checkpoint names files of weights"
    else:
        files = {epoch: run.checkpoint(epoch) for epoch in args.sweep}
        advice = "check the flags that name the run, or choose with --checkpoints"
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such checkpoint ({len(missing)} of {len(files)} are missing); "
            f"{advice}"
        )
    return files


def check_training(args: argparse.Namespace, run: RunFolder) -> None:
    """Take images and checkpoints from the run, and refuse flags that it was not trained with."""
    trained = utils.read_json(run.path / "args.json") or {}
    if args.limit_train is None:
        args.limit_train = trained.get("limit_train")
    if args.checkpoints is None and trained.get("epochs") == args.epochs:
        args.sweep = utils.select_epochs(trained.get("checkpoint_epochs"), args.epochs)
    fixed = {"image_size"} if args.lr_max is None else {"image_size", "lr_max"}
    difference = utils.differing_flag(args, trained, fixed)
    if difference:
        raise InputError(f"{run.path} was trained with other flags: {difference}")


def check_earlier_sweep(args: argparse.Namespace, run: RunFolder) -> None:
    """Refuse to mix records that were made with other flags."""
    earlier = utils.read_json(run.results / "eval_args.json") or {}
    difference = utils.differing_flag(args, earlier, MEASURING_FLAGS)
    if difference and any(record.source == "eval" for record in run.records):
        raise InputError(
            f"{run.results} holds a sweep with other flags: {difference}; --overwrite drops it"
        )


def measure_checkpoint(
    args: argparse.Namespace,
    network: Network,
    data: Split,
    epoch: int,
    batch_size: int,
    bar: tqdm,
) -> list[Record]:
    """One record per input kind for the network of one epoch."""
    attack = utils.attack_settings(args)
    level = args.noise_level / 255
    perturbations = {
        "clean": None,
        "pgd": partial(pgd, network, restarts=args.restarts, **attack),
        "gaussian": lambda x, y: gaussian_noise(x, level),
        "sign": lambda x, y: sign_noise(x, level),
        "targeted": partial(pgd, network, restarts=args.restarts, targeted=True, **attack),
    }
    next_class = (data.labels + 1) % len(network.classifier_weight)
    records, clean_means = [], None
    for name in args.inputs:
        utils.seed_everything(args.seed, epoch, INPUTS.index(name))
        labels = next_class if name == "targeted" else data.labels
        measured = measure(
            network, data.images, labels, batch_size, perturbations[name], bar.update
        )
        means = measured.collapse.class_means
        if name == "clean":
            clean_means = means
        distance = simplex_distance(clean_means, means) if name in ("pgd", "targeted") else None
        records.append(
            Record.of(
                measured,
                source="eval",
                epoch=epoch,
                split="train",
                input=name,
                from_clean=distance,
            )
        )
    return records


def summary_table(records: list[Record], sweep: list[int], inputs: list[str]) -> list[str]:
    """The first and the last checkpoint of the sweep, a line per input kind and checkpoint."""
    lines = ["input      epoch  accuracy       NC1  NC2 norm  NC2 angle     NC3     NC4"]
    found = {(r.input, r.epoch): r for r in records if r.source == "eval"}
    for name in inputs:
        for epoch in sorted({sweep[0], sweep[-1]}):
            r = found[name, epoch]
            lines.append(
                f"{name:<10} {epoch:>5}  {r.accuracy:>8.4f}  {r.nc1:>8.2e}  "
                f"{r.nc2_norm_activation:>8.4f}  {r.nc2_angle_activation:>9.4f}  {r.nc3:>6.3f}  "
                f"{r.nc4:>6.4f}"
            )
    return [*lines, utils.NC1_SCALE]


if __name__ == "__main__":
    utils.run_script(main)
