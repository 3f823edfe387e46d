"""Sweep the checkpoints of a run: accuracy, loss and neural collapse on the training data.

    python eval.py --neural-collapse                          # clean and PGD
    python eval.py --neural-collapse-gaussian                 # Gaussian and sign noise
    python eval.py --neural-collapse-targeted                 # PGD towards the next class
    python eval.py --neural-collapse --checkpoints 0,10,399   # three checkpoints alone

The flags that name the run are those it was trained with. Each finished checkpoint is on disk at
once; the same command, started again, goes on behind the last one.
"""

import argparse
from functools import partial

from tqdm import tqdm

import utils
from attacks import gaussian_noise, pgd, sign_noise
from nc_metrics import simplex_distance
from utils import INPUTS, InputError, Network, Record, RunFolder, Split, logger, measure

# Flags that change what a sweep measures: records made with other values are never mixed in.
MEASURING_FLAGS = (
    "attack_iters",
    "pgd_alpha",
    "restarts",
    "noise_level",
    "limit_train",
    "image_size",
    "precision",
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
        help="epochs like 0,10,399 or a slice like ::10 (default: all of --epochs)",
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
    try:
        args.sweep = select_epochs(args.checkpoints, args.epochs)
    except ValueError:
        parser.error(
            f"argument --checkpoints: expected epochs below {args.epochs} like 0,10,399 or a "
            f"slice like ::10, got {args.checkpoints!r}"
        )
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


def select_epochs(text: str | None, epochs: int) -> list[int]:
    """Epochs that "0,10,399" or a slice like "::10" selects out of range(epochs).

    Raises:
        ValueError: neither of these, an epoch out of range, or no epoch at all.
    """
    if text is None:
        return list(range(epochs))
    if ":" in text:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        selected = list(range(epochs))[slice(*parts)] if len(parts) <= 3 else []
    else:
        selected = sorted({int(part) for part in text.split(",")})
    if not selected or not set(selected) <= set(range(epochs)):
        raise ValueError
    return sorted(selected)


def main() -> None:
    args = parse_args()
    utils.set_precision(args.precision)
    run = utils.run_folder(args)
    check_checkpoints(args, run)
    check_training(args, run)
    run.open()
    utils.log_to(run.path / "eval.log")
    if not args.overwrite:
        check_earlier_sweep(args, run)

    data, network, folded = utils.load_run(args)
    utils.refuse_other_data(run, data)
    if args.overwrite:
        run.drop(0, "eval")
    batch_size = utils.eval_batch_size(args, folded, data.train.images)

    done = {(r.epoch, r.input) for r in run.records if r.source == "eval"}
    todo = [e for e in args.sweep if any((e, name) not in done for name in args.inputs)]
    settings = utils.describe_run(args, data)
    del settings["sweep"], settings["inputs"]  # they follow from the flags
    utils.write_json(run.results / "eval_args.json", settings)
    logger.info(
        f"sweep of {run.path}: {len(todo)} checkpoints ({len(args.sweep) - len(todo)} done "
        f"before) on {', '.join(args.inputs)}; {len(data.train)} training images in batches of "
        f"{batch_size}, on {args.device}"
    )
    total = len(todo) * len(args.inputs) * len(data.train)
    with tqdm(total=total, desc="sweep", unit="img", disable=None) as bar:
        for epoch in todo:
            utils.load_checkpoint(run.checkpoint(epoch), network.model)
            try:
                records = measure_checkpoint(
                    args, folded.refold(), data.train, epoch, batch_size, bar
                )
            except InputError as error:
                raise InputError(f"{run.checkpoint(epoch)}: {error}") from error
            run.add(records)
            for record in records:
                logger.info(f"epoch {epoch:>3} {utils.format_record(record)}")
    for line in summary_table(run.records, args.sweep, args.inputs):
        logger.info(line)
    logger.info(f"results are in {run.results}; {utils.peak_memory(args.device)}")


def check_checkpoints(args: argparse.Namespace, run: RunFolder) -> None:
    missing = [epoch for epoch in args.sweep if not run.checkpoint(epoch).is_file()]
    if missing:
        raise InputError(
            f"{run.checkpoint(missing[0])}: no such checkpoint ({len(missing)} of "
            f"{len(args.sweep)} are missing); check the flags that name the run, or choose with "
            "--checkpoints"
        )


def check_training(args: argparse.Namespace, run: RunFolder) -> None:
    """Take the training images from the run, and refuse flags that it was not trained with."""
    trained = utils.read_json(run.path / "args.json") or {}
    if args.limit_train is None:
        args.limit_train = trained.get("limit_train")
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
