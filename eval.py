"""Sweep the checkpoints of a run: accuracy, loss and neural collapse on the training data.

Asked for it, also collapse layer by layer and the nearest-centre classifier, on test data too.

    python eval.py --neural-collapse                          # clean and PGD
    python eval.py --neural-collapse-gaussian                 # Gaussian and sign noise
    python eval.py --neural-collapse-targeted                 # PGD towards the next class
    python eval.py --layerwise --checkpoints 399              # collapse after every block
    python eval.py --ncc                                      # classify by nearest class mean
    python eval.py --neural-collapse --checkpoints 0,10,399   # three checkpoints alone
    python eval.py --neural-collapse --checkpoint a.pth b.pth --out results/   # any files
    torchrun --nproc-per-node=8 eval.py --neural-collapse     # shared out over 8 GPUs

The flags that name the run are those it was trained with. Each finished checkpoint is on disk at
once; the same command, started again, goes on behind the last one.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import utils
from attacks import gaussian_noise, pgd, sign_noise
from nc_metrics import compute_class_means, simplex_distance
from utils import (
    CENTRE_INPUTS,
    INPUTS,
    SPLITS,
    TABLES,
    AutoAttackRecord,
    CentreRecord,
    Dataset,
    FoldedNetwork,
    InputError,
    LayerRecord,
    NearestCentre,
    Network,
    Record,
    RunFolder,
    Split,
    accuracy,
    logger,
    measure,
    measure_blocks,
    outputs,
)

# Flags that change what a sweep measures: records made with other values are never mixed in.
MEASURING_FLAGS = (
    "attack_iters",
    "pgd_alpha",
    "restarts",
    "noise_level",
    "limit_train",
    "limit_test",
    "image_size",
    "precision",
    "checkpoint",
)

LAYER_INPUTS = ("clean", "pgd", "gaussian", "targeted")
# What the class means of the nearest-centre classifier are of, in training images.
MEANS_INPUTS = ("clean", "pgd")

# From images and labels of a batch to what is added to the images.
Perturbation = Callable[[Tensor, Tensor], Tensor]


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
        "--split",
        choices=(*SPLITS, "both"),
        default="train",
        help="images of the three flags above; series of the test images are named test_* "
        "(default: %(default)s)",
    )
    sweep.add_argument(
        "--autoattack",
        type=utils.positive_int,
        metavar="N",
        help="accuracy of N test images under standard AutoAttack; needs the package autoattack "
        "or torchattacks",
    )
    sweep.add_argument(
        "--layerwise",
        action="store_true",
        help="collapse and nearest class means after every block, on training and test images, "
        "clean, PGD, Gaussian and targeted",
    )
    sweep.add_argument(
        "--ncc",
        action="store_true",
        help="the nearest-centre classifier of the training features on clean and PGD test "
        "images, and on PGD against itself",
    )
    sweep.add_argument(
        "--layer-batch-size",
        type=utils.positive_int,
        metavar="N",
        help="images per batch of --layerwise, whose blocks' outputs are held at once (default: "
        "as in the rest of the sweep)",
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
    args.splits = SPLITS if args.split == "both" else (args.split,)
    if not (args.inputs or args.layerwise or args.ncc or args.autoattack):
        parser.error(
            "nothing to measure: give --neural-collapse, --neural-collapse-gaussian, "
            "--neural-collapse-targeted, --layerwise, --ncc or --autoattack"
        )
    if args.autoattack and not find_autoattack():
        parser.error("--autoattack needs a package: pip install torchattacks, or autoattack")
    if args.layer_batch_size and not args.layerwise:
        parser.error("--layer-batch-size is for --layerwise")
    if args.layerwise and args.compile:
        parser.error("--layerwise reads what each block puts out, which --compile hides: drop one")
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
        sweep(args, run, data, network, folded, files, rank, world_size)
        utils.wait_for_ranks(world_size)
        if rank == 0:
            run.open()  # with what the other ranks recorded
            for line in summary(args, run):
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
    data: Dataset,
    network: Network,
    folded: FoldedNetwork,
    files: dict[int, Path],
    rank: int,
    world_size: int,
) -> None:
    """Measure this rank's share of the checkpoints that are not recorded yet."""
    batch_size = utils.eval_batch_size(args, folded, data.train.images)
    todo = unfinished(args, run, network)
    share = list(todo)[rank::world_size]
    of_rank = f"; rank {rank} of {world_size} takes {len(share)}" if world_size > 1 else ""
    logger.info(
        f"sweep of {run.path}: {len(todo)} checkpoints ({len(args.sweep) - len(todo)} done "
        f"before) on {', '.join(asked_for(args))}; {len(data.train)} training images in batches "
        f"of {batch_size}, on {args.device}{of_rank}"
    )
    utils.wait_for_ranks(world_size)  # all have read the same records before one adds to them
    total = sum(images_of(kind, args, data) for epoch in share for kind in todo[epoch])
    # A bar for one rank: those of others would write over it.
    with tqdm(total=total, desc="sweep", unit="img", disable=True if rank else None) as bar:
        for epoch in share:
            utils.load_checkpoint(files[epoch], network.model)
            name = files[epoch].name if args.checkpoint else f"epoch {epoch:>3}"
            folded.refold()
            for kind in todo[epoch]:
                try:
                    rows = MEASURES[kind](args, folded, data, epoch, batch_size, bar.update)
                except InputError as error:
                    raise InputError(f"{files[epoch]}: {error}") from error
                if kind is Record:
                    run.add(rows)
                    for record in rows:
                        logger.info(f"{name} {utils.format_record(record)}")
                else:
                    run.add_rows(rows)
                    logger.info(f"{name} {len(rows)} rows of {TABLES[kind]}")


def images_of(kind: type, args: argparse.Namespace, data: Dataset) -> int:
    """How many images a checkpoint's rows of one type take, for the progress bar."""
    train, test = len(data.train), len(data.test)
    return {
        Record: len(args.inputs) * sum(len(getattr(data, split)) for split in args.splits),
        LayerRecord: len(LAYER_INPUTS) * (train + test),
        CentreRecord: len(MEANS_INPUTS) * (train + test) + 2 * test,
        AutoAttackRecord: args.autoattack,
    }[kind]


def asked_for(args: argparse.Namespace) -> list[str]:
    """What is measured of each checkpoint, in words."""
    extra = {
        "layers": args.layerwise,
        "nearest centres": args.ncc,
        "AutoAttack": args.autoattack,
    }
    return [*args.inputs, *(name for name, wanted in extra.items() if wanted)]


def unfinished(args: argparse.Namespace, run: RunFolder, network: Network) -> dict[int, list[type]]:
    """Epoch -> the types of row that were asked for and are not all recorded, of the sweep."""
    wanted: dict[type, set[tuple]] = {Record: set(product(args.splits, args.inputs))}
    done: dict[type, set[tuple]] = {
        Record: {(r.epoch, r.split, r.input) for r in run.records if r.source == "eval"}
    }
    if args.layerwise:
        layers = [name for name, _ in network.model.blocks()]
        wanted[LayerRecord] = set(product(SPLITS, LAYER_INPUTS, layers))
        done[LayerRecord] = {(r.epoch, r.split, r.input, r.layer) for r in run.rows(LayerRecord)}
    if args.ncc:
        wanted[CentreRecord] = set(product(MEANS_INPUTS, CENTRE_INPUTS))
        done[CentreRecord] = {(r.epoch, r.means, r.input) for r in run.rows(CentreRecord)}
    if args.autoattack:
        wanted[AutoAttackRecord] = {(args.autoattack,)}
        done[AutoAttackRecord] = {(r.epoch, r.images) for r in run.rows(AutoAttackRecord)}
    todo = {
        epoch: [
            kind for kind in wanted if any((epoch, *key) not in done[kind] for key in wanted[kind])
        ]
        for epoch in args.sweep
    }
    return {epoch: kinds for epoch, kinds in todo.items() if kinds}


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
    if args.limit_test is None:
        args.limit_test = trained.get("limit_test")
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
    recorded = any(record.source == "eval" for record in run.records)
    if difference and (recorded or any(run.rows(kind) for kind in TABLES)):
        raise InputError(
            f"{run.results} holds a sweep with other flags: {difference}; --overwrite drops it"
        )


def perturbation(args: argparse.Namespace, model: nn.Module, name: str) -> Perturbation | None:
    """From images and labels to the perturbation of one kind of input; None for clean ones."""
    attack = partial(pgd, model, restarts=args.restarts, **utils.attack_settings(args))
    level = args.noise_level / 255
    return {
        "clean": None,
        "pgd": attack,
        "gaussian": lambda x, y: gaussian_noise(x, level),
        "sign": lambda x, y: sign_noise(x, level),
        "targeted": partial(attack, targeted=True),
    }[name]


def input_labels(data: Split, name: str, num_classes: int) -> Tensor:
    """What one kind of input is measured with: the labels, the next class if it is targeted."""
    return (data.labels + 1) % num_classes if name == "targeted" else data.labels


def seed_input(args: argparse.Namespace, epoch: int, split: str, name: str) -> None:
    """Start the random stream of one epoch, split and kind of input."""
    of_test = () if split == "train" else (SPLITS.index(split),)
    utils.seed_everything(args.seed, epoch, INPUTS.index(name), *of_test)


def measure_checkpoint(
    args: argparse.Namespace,
    network: Network,
    data: Dataset,
    epoch: int,
    batch_size: int,
    on_batch: Callable[[int], Any],
) -> list[Record]:
    """One record per split and input kind for the network of one epoch."""
    records = []
    for split in args.splits:
        part: Split = getattr(data, split)
        clean_means = None
        for name in args.inputs:
            seed_input(args, epoch, split, name)
            labels = input_labels(part, name, data.num_classes)
            perturb = perturbation(args, network, name)
            measured = measure(network, part.images, labels, batch_size, perturb, on_batch)
            means = measured.collapse.class_means
            if name == "clean":
                clean_means = means
            apart = simplex_distance(clean_means, means) if name in ("pgd", "targeted") else None
            records.append(
                Record.of(
                    measured,
                    source="eval",
                    epoch=epoch,
                    split=split,
                    input=name,
                    from_clean=apart,
                )
            )
    return records


def measure_layers(
    args: argparse.Namespace,
    network: Network,
    data: Dataset,
    epoch: int,
    batch_size: int,
    on_batch: Callable[[int], Any],
) -> list[LayerRecord]:
    """Collapse after every block: a record per split, input kind and block.

    Test images are measured against the class means of the test images themselves: it is their
    own collapse. Targeted inputs are measured with the target labels. The perturbed images of one
    kind are held in memory, since two passes must see the same.

    Source: Su et al. 2024, layer-wise collapse.
    """
    records = []
    for split, name in product(SPLITS, LAYER_INPUTS):
        part: Split = getattr(data, split)
        labels = input_labels(part, name, data.num_classes)
        seed_input(args, epoch, split, name)
        images = perturbed(part.images, labels, batch_size, perturbation(args, network, name))
        found = measure_blocks(network, images, labels, args.layer_batch_size or batch_size)
        records += [
            LayerRecord(epoch, split, name, layer, index, width, **vars(collapse))
            for index, (layer, (width, collapse)) in enumerate(found.items())
        ]
        on_batch(len(part))
    return records


def perturbed(
    images: Tensor, labels: Tensor, batch_size: int, perturb: Perturbation | None
) -> Tensor:
    """All images (N, C, H, W) with their perturbation, as float; clean ones as they are."""
    if perturb is None:
        return images
    return torch.cat([x + perturb(x, y) for x, y in utils.batches(images, labels, batch_size)])


def measure_centres(
    args: argparse.Namespace,
    network: Network,
    data: Dataset,
    epoch: int,
    batch_size: int,
    on_batch: Callable[[int], Any],
) -> list[CentreRecord]:
    """Test images by the nearest class mean of the training features, beside the network itself.

    The class means are of clean and of PGD-perturbed training images; the test images are clean,
    perturbed by PGD against the network, and, for each of the two, by PGD against the classifier
    by nearest means ("adaptive"). Both attacks start from the same draws.

    Source: Su et al. 2024, the robustness of the nearest-centre classifier.
    """

    def run(split: str, seeded_as: str, perturb: Perturbation | None) -> tuple[Tensor, Tensor]:
        part: Split = getattr(data, split)
        seed_input(args, epoch, split, seeded_as)
        return outputs(network, part.images, part.labels, batch_size, perturb, on_batch)

    records = []
    seen = {name: run("test", name, perturbation(args, network, name)) for name in ("clean", "pgd")}
    for means in MEANS_INPUTS:
        _, features = run("train", means, perturbation(args, network, means))
        class_means = compute_class_means(features.double(), data.train.labels, data.num_classes)
        centres = NearestCentre(network, class_means).eval()
        seen["adaptive"] = run("test", "pgd", perturbation(args, centres, "pgd"))
        for name in CENTRE_INPUTS:
            logits, features = seen[name]
            records.append(
                CentreRecord(
                    epoch,
                    split="test",
                    means=means,
                    input=name,
                    ncc_accuracy=accuracy(centres.classify(features), data.test.labels),
                    network_accuracy=accuracy(logits, data.test.labels),
                )
            )
    return records


def find_autoattack() -> str | None:
    """The installed package that has AutoAttack, its authors' own first."""
    return next((name for name in ("autoattack", "torchattacks") if find_spec(name)), None)


def measure_autoattack(
    args: argparse.Namespace,
    network: Network,
    data: Dataset,
    epoch: int,
    batch_size: int,
    on_batch: Callable[[int], Any],
) -> list[AutoAttackRecord]:
    """Accuracy of class-balanced test images under standard AutoAttack.

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks" (ICML 2020).
    """
    chosen = utils.balanced_subset(data.test.labels.cpu(), args.autoattack, args.seed)
    part = data.test.select(chosen.to(data.test.labels.device))
    x, y = utils.as_float(part.images), part.labels
    norm = {"l_inf": "Linf", "l_2": "L2"}[args.norm]
    epsilon = utils.attack_settings(args)["epsilon"]
    seed_input(args, epoch, "test", "pgd")
    if find_autoattack() == "autoattack":
        from autoattack import AutoAttack

        attack = AutoAttack(
            network, norm=norm, eps=epsilon, seed=args.seed, verbose=False, device=args.device
        )
        attacked = attack.run_standard_evaluation(x, y, bs=batch_size)
    else:
        from torchattacks import AutoAttack

        attack = AutoAttack(
            network, norm=norm, eps=epsilon, n_classes=data.num_classes, seed=args.seed
        )
        attacked = torch.cat([attack(*batch) for batch in utils.batches(x, y, batch_size)])
    clean, _ = outputs(network, x, y, batch_size)
    robust, _ = outputs(network, attacked, y, batch_size, on_batch=on_batch)
    # Worst case: an image that is wrong already counts as wrong.
    right = (clean.argmax(1) == y) & (robust.argmax(1) == y)
    return [
        AutoAttackRecord(epoch, "test", len(y), accuracy(clean, y), right.double().mean().item())
    ]


def summary(args: argparse.Namespace, run: RunFolder) -> list[str]:
    """The first and the last checkpoint of the sweep, in tables of what was asked for."""
    lines = []
    for split in args.splits if args.inputs else ():
        lines += summary_table(run.records, args.sweep, split, args.inputs)
    if args.layerwise:
        lines += layer_table(run.rows(LayerRecord), args.sweep)
    if args.ncc:
        lines += centre_table(run.rows(CentreRecord), args.sweep)
    if args.autoattack:
        lines.append("AutoAttack epoch  images  clean accuracy  robust accuracy")
        for row in run.rows(AutoAttackRecord):
            if row.epoch in (args.sweep[0], args.sweep[-1]):
                lines.append(
                    f"{row.split:<10} {row.epoch:>5}  {row.images:>6}  "
                    f"{row.clean_accuracy:>14.4f}  {row.robust_accuracy:>15.4f}"
                )
    return lines


def summary_table(
    records: list[Record], sweep: list[int], split: str, inputs: list[str]
) -> list[str]:
    """The first and the last checkpoint of the sweep, a line per input kind and checkpoint."""
    head = "input" if split == "train" else "test input"
    lines = [f"{head:<10} epoch  accuracy       NC1  NC2 norm  NC2 angle     NC3     NC4"]
    found = {(r.input, r.epoch): r for r in records if (r.source, r.split) == ("eval", split)}
    for name in inputs:
        for epoch in sorted({sweep[0], sweep[-1]}):
            r = found[name, epoch]
            lines.append(
                f"{name:<10} {epoch:>5}  {r.accuracy:>8.4f}  {r.nc1:>8.2e}  "
                f"{r.nc2_norm_activation:>8.4f}  {r.nc2_angle_activation:>9.4f}  {r.nc3:>6.3f}  "
                f"{r.nc4:>6.4f}"
            )
    return [*lines, utils.NC1_SCALE]


def layer_table(rows: list[LayerRecord], sweep: list[int]) -> list[str]:
    """A line per block of the last checkpoint of the sweep: NC1 and NCC accuracy per input."""
    lines = []
    for split in SPLITS:
        found = [row for row in rows if (row.epoch, row.split) == (sweep[-1], split)]
        head = "".join(f"{name:>10}: NC1   NCC" for name in LAYER_INPUTS)
        lines.append(f"{split:<5} {sweep[-1]:>3} layer   {head}")
        by_layer = {(row.layer, row.input): row for row in found}
        for layer in dict.fromkeys(row.layer for row in found):
            line = f"          {layer:<8}"
            for name in LAYER_INPUTS:
                row = by_layer[layer, name]
                line += f"{row.nc1:>15.2e} {row.ncc_accuracy:>5.3f}"
            lines.append(line)
    return lines


def centre_table(rows: list[CentreRecord], sweep: list[int]) -> list[str]:
    """Accuracy by nearest class mean beside the network's, at both ends of the sweep."""
    lines = ["means      epoch  test images   by class mean  by network"]
    for row in rows:
        if row.epoch in (sweep[0], sweep[-1]):
            lines.append(
                f"{row.means:<10} {row.epoch:>5}  {row.input:<11}  {row.ncc_accuracy:>14.4f}  "
                f"{row.network_accuracy:>10.4f}"
            )
    return lines


# Type of row -> the function that measures a checkpoint.
MEASURES = {
    Record: measure_checkpoint,
    LayerRecord: measure_layers,
    CentreRecord: measure_centres,
    AutoAttackRecord: measure_autoattack,
}


if __name__ == "__main__":
    utils.run_script(main)
