"""Sweep the checkpoints of a run: accuracy, loss and neural collapse on the training data.

Asked for it, also collapse layer by layer and the nearest-centre classifier, on test data too.

    python eval.py --neural-collapse                          # clean and PGD
    python eval.py --neural-collapse-gaussian                 # Gaussian and sign noise
    python eval.py --neural-collapse-targeted                 # PGD towards the next class
    python eval.py --layerwise --checkpoints 399              # collapse after every block
    python eval.py --ncc                                      # classify by nearest class mean
    python eval.py --ncc-layers conv1 conv4                   # likewise after these blocks
    python eval.py --neural-collapse --checkpoints 0,10,399   # three checkpoints alone
    python eval.py --neural-collapse --checkpoint a.pth b.pth --out results/   # any files
    torchrun --nproc-per-node=8 eval.py --neural-collapse     # shared out over 8 GPUs

The flags that name the run are those it was trained with. Each finished checkpoint is on disk at
once; the same command, started again, goes on after the last one.
"""

import argparse
import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robust_nc import build, flags
from robust_nc.data.datasets import Dataset, equal_splits
from robust_nc.measuring.autoattack import find_autoattack
from robust_nc.measuring.earlier import HASHES, agree_with_run, former_steps, other_sweep
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.measuring.subject import Subject
from robust_nc.measuring.sweep import (
    TASKS,
    Missing,
    checkpoint_files,
    epochs_of,
    inputs_of,
    missing_parts,
    names_of_tasks,
    rows_to_come,
    shared_inputs,
)
from robust_nc.networks import network
from robust_nc.networks.checkpoints import load_checkpoint
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import ARCHITECTURES, Network, Statistics, statistics_in_words
from robust_nc.results.files import read_json, sha256, write_json
from robust_nc.results.records import SPLITS, TABLES, Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.tables import describe_record, table_lines
from robust_nc.settings import Settings
from utils import (
    InputError,
    Ranks,
    describe_peak,
    join_ranks,
    log_to,
    logger,
    run_script,
    set_precision,
)


def parse_args(argv: list[str] | None = None) -> Settings:
    parser = flags.Parser(
        description="Sweep the checkpoints of a run with the neural-collapse metrics.",
        allow_abbrev=False,
    )
    flags.add_run_flags(parser)
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
        "--epsilons",
        metavar="RADII",
        help="attack at these radii, like 2,4,8,16, instead of the run's own; the step is then a "
        "quarter of each (l_2: 15/128) unless --pgd-alpha is given",
    )
    sweep.add_argument(
        "--equal-n",
        action="store_true",
        help="measure both splits on the same number of images per class, those of the smaller",
    )
    sweep.add_argument(
        "--autoattack",
        type=flags.positive_int,
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
        "images, and on the worst of several attacks against itself",
    )
    sweep.add_argument(
        "--ncc-layers",
        nargs="+",
        metavar="NAME",
        help="likewise that of the outputs of these blocks, as layers.csv names them",
    )
    sweep.add_argument(
        "--layer-batch-size",
        type=flags.positive_int,
        metavar="N",
        help="images per batch of --layerwise, whose blocks' outputs are held at once (default: "
        "as in the rest of the sweep)",
    )
    sweep.add_argument(
        "--checkpoints",
        metavar="EPOCHS",
        help="epochs like 0,10,399, a slice like ::10, or log (default: all that the run left)",
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
        "--overwrite",
        action="store_true",
        help="drop first what earlier sweeps recorded: layers, centres and AutoAttack too",
    )
    # The run may tell what it was trained with; a value given here must agree with it.
    parser.set_defaults(lr_max=None, epochs=None)
    args = parser.parse_args(argv)
    args.alpha_given, args.epsilon_given = args.pgd_alpha is not None, args.epsilon is not None
    flags.finish_run_flags(parser, args)
    if args.epsilons is None:
        args.epsilons = (args.epsilon,)
    else:
        args.epsilons = flags.parse_radii(parser, args)
    if not (inputs_of(args) or args.layerwise or args.ncc or args.ncc_layers or args.autoattack):
        parser.error(
            "nothing to measure: give --neural-collapse, --neural-collapse-gaussian, "
            "--neural-collapse-targeted, --layerwise, --ncc, --ncc-layers or --autoattack"
        )
    if args.autoattack and not find_autoattack():
        parser.error("--autoattack needs a package: pip install torchattacks, or autoattack")
    if args.layer_batch_size and not args.layerwise:
        parser.error("--layer-batch-size is for --layerwise")
    if args.layerwise and args.compile:
        parser.error("--layerwise reads what each block puts out, which --compile hides: drop one")
    if args.ncc_layers:
        check_layers(parser, args)
    if (args.checkpoint is None) != (args.out is None):
        parser.error("--checkpoint FILE and --out DIR go together: what to measure, and where to")
    out = args.out and args.out.resolve()
    if out and ((out / "args.json").exists() or is_results_of_run(out)):
        parser.error(f"argument --out: {args.out} belongs to a run: name a folder of its own")
    if args.checkpoint and args.checkpoints:
        parser.error("--checkpoints chooses among a run's epochs, --checkpoint names files")
    settings = at_other_radius(Settings(**vars(args)))
    epochs = epochs_of(settings, results_folder(settings))
    flags.parse_epochs(parser, "--checkpoints", settings.checkpoints, epochs)
    return settings


def is_results_of_run(path: Path) -> bool:
    return path.name == "results" and (path.parent / "args.json").exists()


def check_layers(parser: flags.Parser, args: argparse.Namespace) -> None:
    """End the script where --ncc-layers names no block of the network."""
    if args.compile:
        parser.error("--ncc-layers reads what blocks put out, which --compile hides: drop one")
    if args.model in ARCHITECTURES:  # the blocks of other networks are known when they are made
        model: Any = network.build_model(args.model, args.image_size, 3, 2)
        unknown = unknown_layer(args, model.blocks())
        if unknown:
            parser.error(unknown)


def unknown_layer(args: argparse.Namespace, blocks: list[tuple[str, Any]]) -> str | None:
    """One line on what --ncc-layers names and is no block, if anything."""
    names = [name for name, _ in blocks]
    unknown = [name for name in args.ncc_layers or () if name not in names]
    if not unknown:
        return None
    return (
        f"argument --ncc-layers: {args.model} has no block {unknown[0]!r}; its blocks are "
        f"{', '.join(names)}"
    )


def at_other_radius(settings: Settings) -> Settings:
    """Where the only run was trained with another epsilon than the one given, that of the run.

    The one given is then the radius to attack it at. --overwrite, which drops what a run has, is
    for the run that the flags name.
    """
    path = build.run_folder(settings).path
    if settings.out or path.exists() or settings.overwrite or not settings.epsilon_given:
        return settings
    others = [
        float(folder.name.removeprefix("eps"))
        for folder in path.parents[2].glob("eps*")
        if re.fullmatch(r"eps\d+(\.\d+)?", folder.name)
        and any((folder / Path(*path.parts[-2:])).glob("model_*.pth"))
    ]
    return settings.replace(epsilon=others[0]) if len(others) == 1 else settings


def results_folder(settings: Settings) -> RunFolder:
    """The run's folder, or with --checkpoint the one that --out names."""
    run = build.run_folder(settings)
    if not settings.out:
        return run
    return RunFolder(settings.out, standard=run.standard, results=settings.out)


def main() -> None:
    settings = parse_args()
    ranks = join_ranks()
    set_precision(settings.precision)
    run = results_folder(settings)
    settings = agree_with_run(settings, run)
    sweep = prepare(settings, run, checkpoint_files(settings, run))
    with run.lock("eval.py") if ranks.number == 0 else nullcontext():
        run.open()
        log_to(run.path / "eval.log")
        if ranks.number == 0:
            open_results(sweep)
        ranks.wait()
        missing = missing_parts(settings, sweep.data, sweep.network, sweep.files, run)
        ranks.wait()  # all have read the same rows before one adds to them
        try:
            measure(sweep, missing, ranks)
            ranks.wait()
        except BaseException:  # a signal too; what stopped the sweep is what is told
            if ranks.number == 0:
                with suppress(InputError):
                    run.settle(all_done=ranks.count == 1)
            raise
        if ranks.number == 0:
            run.settle()
            for line in summary(sweep):
                logger.info(line)
            logger.info(f"results are in {run.results}; {describe_peak(settings.device)}")
    ranks.leave()


@dataclass(frozen=True)
class Sweep:
    """What is measured, and where it is recorded."""

    settings: Settings
    run: RunFolder
    files: dict[int, Path]  # by epoch; for --checkpoint by the place in its list
    data: Dataset
    network: Network
    folded: FoldedNetwork  # of `network`, which checkpoints are loaded into
    subject: Subject
    statistics: Statistics  # what images are normalised with, where a file does not bring its own

    def load(self, epoch: int) -> None:
        """Load a checkpoint, and normalise as its wrapper does unless the flags say how."""
        file, used = self.files[epoch], self.statistics
        _, own = load_checkpoint(file, self.network)
        if own and build.statistics_given(self.settings):
            logger.info(
                f"{file}: normalised with {statistics_in_words(used)} as given, not with its own "
                f"{statistics_in_words(own)}"
            )
        elif own:
            used = own
            logger.info(f"{file}: normalised with its own {statistics_in_words(own)}")
        self.network.normalise_by(*used)
        self.folded.refold()


def prepare(settings: Settings, run: RunFolder, files: dict[int, Path]) -> Sweep:
    """Load the data and make the network that the checkpoints are loaded into."""
    data = build.load_data(settings)
    trained = None if settings.checkpoint else run.trained_with()
    statistics = build.normalisation(settings, data, trained)
    if not settings.checkpoint:
        build.refuse_other_data(run, data, statistics)
    if settings.equal_n:
        data = equal_splits(data, settings.seed)
    if statistics != (data.mean, data.std):
        logger.info(f"images are normalised with {statistics_in_words(statistics)}")
    network, folded = build.build_networks(settings, data, statistics)
    unknown = unknown_layer(settings, network.blocks())
    if unknown:
        raise InputError(unknown)
    evaluator = Evaluator(folded, build.eval_batch_size(settings))
    layers = Evaluator(folded, settings.layer_batch_size or evaluator.batch_size)
    subject = Subject(evaluator, layers, data, build.strengths(settings), settings.seed)
    return Sweep(settings, run, files, data, network, folded, subject, statistics)


def open_results(sweep: Sweep) -> None:
    """Nothing of a sweep with other flags stays in the folder, or is mixed in."""
    settings, run = sweep.settings, sweep.run
    now = build.describe_run(settings, sweep.data, sweep.statistics)
    now["step_sizes"] = {f"{r:g}": build.step_size(settings, r) for r in settings.epsilons}
    if settings.checkpoint:
        now["own_normalisation"] = not build.statistics_given(settings)
        now[HASHES] = [sha256(file) for file in settings.checkpoint]
    if settings.overwrite:
        dropped = [f"{count} rows of {name}" for name, count in run.forget_sweep().items()]
        if dropped:
            logger.info(f"--overwrite drops what earlier sweeps recorded: {', '.join(dropped)}")
    elif any(run.swept_rows(row_type) for row_type in TABLES):
        earlier, steps = read_json(run.sweep_file) or {}, former_steps(run)
        differing = other_sweep(now, earlier, steps, build.other_images(sweep.data, earlier))
        if differing:
            raise InputError(
                f"{run.results} holds a sweep with other flags: {differing}; --overwrite drops it"
            )
        now["step_sizes"] = steps | now["step_sizes"]
    run.merge()  # what a sweep that was killed has left
    write_json(run.sweep_file, now)


def measure(sweep: Sweep, missing: dict[int, list[Missing]], ranks: Ranks) -> None:
    """Measure and record this rank's share of what is missing."""
    settings, run, data, subject = sweep.settings, sweep.run, sweep.data, sweep.subject
    share = list(missing)[ranks.number :: ranks.count]
    of_rank = f"; rank {ranks.number} of {ranks.count} takes {len(share)}"
    logger.info(
        f"sweep of {run.path}: {len(missing)} checkpoints ({len(sweep.files) - len(missing)} done "
        f"before) on {', '.join(names_of_tasks(settings, data))}; {len(data.train)} training "
        f"images in batches of {subject.evaluator.batch_size}, on {settings.device}"
        f"{of_rank if ranks.count > 1 else ''}"
    )
    total = rows_to_come((task for epoch in share for task in missing[epoch]), sweep.network)
    # A bar for one rank: those of others would write over it.
    with tqdm(total=total, desc="sweep", unit="row", disable=ranks.number or None) as bar:
        for epoch in share:
            sweep.load(epoch)
            with subject.keeping(shared_inputs(missing[epoch])):
                for task, parts in missing[epoch]:
                    rows = []
                    try:
                        for row in task.measure(subject, epoch, parts):
                            rows.append(row)
                            bar.update()
                    except InputError as error:
                        raise InputError(f"{sweep.files[epoch]}: {error}") from error
                    run.append(rows, ranks.number)
                    log_rows(sweep, epoch, rows)


def log_rows(sweep: Sweep, epoch: int, rows: list) -> None:
    """A line of the log for each row of metrics.csv, one for all rows of another table."""
    name = sweep.files[epoch].name if sweep.settings.checkpoint else f"epoch {epoch:>3}"
    row_type = type(rows[0])
    if row_type is Record:
        for record in rows:
            logger.info(f"{name} {describe_record(record)}")
    else:
        logger.info(f"{name} {len(rows)} rows of {row_type.file}")


def summary(sweep: Sweep) -> list[str]:
    """The first and the last checkpoint of the sweep, in tables of what was asked for."""
    ends, lines = (min(sweep.files), max(sweep.files)), []
    for task in TASKS:
        asked = task.parts(sweep.settings, sweep.data)
        recorded = sweep.run.swept_rows(task.row_type) if asked else []
        rows = [row for row in recorded if row.epoch in ends and task.part_of(row) in asked]
        lines += table_lines(rows) if rows else []
    return lines


if __name__ == "__main__":
    run_script(main)
