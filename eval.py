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

import re
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robust_nc import build
from robust_nc.checks import check_run, check_sweep, unknown_layer
from robust_nc.data.datasets import Dataset, equal_splits
from robust_nc.data.inputs import INPUTS, asked_inputs
from robust_nc.flags import SWEEP_FLAGS, sweep_parser
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.measuring.subject import InputPart, Subject
from robust_nc.measuring.sweep import PARTS, Part, size_of
from robust_nc.networks.checkpoints import load_checkpoint
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network, Statistics, statistics_in_words
from robust_nc.parsing import Parser, parse_epochs
from robust_nc.results.files import read_json, read_rows, sha256, write_json
from robust_nc.results.records import TABLES, EpochSummary, Record, swept_by_eval
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.tables import describe_record, table_lines
from robust_nc.settings import (
    STATISTICS,
    Means,
    Settings,
    difference,
    keys_that,
    select_epochs,
    with_former_values,
)
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

HASHES = "checkpoint_sha256"  # in eval_args.json, of the files of --checkpoint
PUBLISHED_EPOCHS = 400  # where neither the flags nor the folder tell


def parse_args(argv: list[str] | None = None) -> Settings:
    parser = sweep_parser()
    args = parser.parse_args(argv)
    check_run(parser, args)
    check_sweep(parser, args)
    settings = Settings(**vars(args))
    check_folders(parser, settings)
    return settings


def check_folders(parser: Parser, settings: Settings) -> None:
    """What depends on what lies on the disk."""
    out = settings.out and settings.out.resolve()
    if out and ((out / "args.json").exists() or is_results_of_run(out)):
        parser.error(f"argument --out: {settings.out} belongs to a run: name a folder of its own")
    epochs = epochs_of(settings, results_folder(settings))
    parse_epochs(parser, "--checkpoints", settings.checkpoints, epochs)


def is_results_of_run(path: Path) -> bool:
    return path.name == "results" and (path.parent / "args.json").exists()


def with_step_of_run(settings: Settings, run: RunFolder) -> Settings:
    """Among several radii, the run's own is attacked as before: as swept, or else as trained."""
    own = f"{settings.epsilon:g}"
    if settings.alpha_given or settings.epsilons == (settings.epsilon,):
        return settings
    trained = run.trained_with().get("pgd_alpha", settings.pgd_alpha)
    return settings.replace(pgd_alpha=former_steps(run).get(own, trained))


def results_folder(settings: Settings) -> RunFolder:
    """The run's folder, or with --checkpoint the one that --out names."""
    run = build.run_folder(settings)
    if not settings.out:
        return run
    return RunFolder(settings.out, standard=run.standard, results=settings.out)


def epochs_of(settings: Settings, run: RunFolder) -> int:
    """How many epochs the run was trained for, or will be."""
    told = settings.epochs or run.trained_with().get("epochs")
    return told or max(run.epochs(), default=PUBLISHED_EPOCHS - 1) + 1


@dataclass(frozen=True)
class Sweep:
    """What is measured, by which of the ranks, and where it is recorded."""

    settings: Settings
    run: RunFolder
    files: dict[int, Path]  # by epoch; for --checkpoint by the place in its list
    data: Dataset
    network: Network
    folded: FoldedNetwork  # of `network`, which checkpoints are loaded into
    subject: Subject
    ranks: Ranks
    statistics: Statistics  # what images are normalised with, where a file does not bring its own

    def load(self, epoch: int) -> None:
        """Load a checkpoint, and normalise as its wrapper does unless the flags say how."""
        file, used = self.files[epoch], self.statistics
        _, found = load_checkpoint(file, self.network)
        if found and build.statistics_given(self.settings):
            logger.info(
                f"{file}: normalised with {statistics_in_words(used)} as given, not with its own "
                f"{statistics_in_words(found)}"
            )
        elif found:
            used = found
            logger.info(f"{file}: normalised with its own {statistics_in_words(found)}")
        self.network.normalise_by(*used)
        self.folded.refold()

    @property
    def ends(self) -> list[int]:
        """The first and the last epoch."""
        return sorted({min(self.files), max(self.files)})


def main() -> None:
    settings = parse_args()
    ranks = join_ranks()
    set_precision(settings.precision)
    run = results_folder(settings)
    if settings.epsilon not in settings.epsilons and not settings.checkpoint:
        radii = ", ".join(f"{radius:g}" for radius in settings.epsilons)
        logger.info(
            f"{run.path}, trained with epsilon {settings.epsilon:g}, is attacked at {radii}"
        )
    if not settings.checkpoint:
        settings = as_trained(settings, run)
    files = checkpoint_files(settings, run)
    settings = with_step_of_run(settings, run)
    sweep = prepare(settings, run, files, ranks)
    with run.lock("eval.py") if ranks.number == 0 else nullcontext():
        run.open()
        log_to(run.path / "eval.log")
        if ranks.number == 0:
            open_results(sweep)
        ranks.wait()
        try:
            measure_share(sweep)
        except BaseException:  # a signal too; what stopped the sweep is what is told
            with suppress(InputError):
                run.settle()
            raise
        run.settle()
        ranks.wait()
        if ranks.number == 0:
            for line in summary(sweep):
                logger.info(line)
            logger.info(f"results are in {run.results}; {describe_peak(settings.device)}")
    ranks.leave()


def as_trained(settings: Settings, run: RunFolder) -> Settings:
    """The settings with the images that the run was trained on; refuse what it was not."""
    trained = run.trained_with()
    compared = ("lr_max", "epochs", "model_args")
    given = {name for name in compared if getattr(settings, name) is not None}
    differing = difference(vars(settings), trained, {"image_size"} | given)
    if differing:
        raise InputError(f"{run.path} was trained with other flags: {differing}")
    limits = {
        name: trained.get(name) if getattr(settings, name) is None else getattr(settings, name)
        for name in ("limit_train", "limit_test")
    }
    model_args = settings.model_args or trained.get("model_args")
    return settings.replace(model_args=model_args, **limits)


def checkpoint_files(settings: Settings, run: RunFolder) -> dict[int, Path]:
    """Epoch -> file of every checkpoint to measure; for --checkpoint the place in its list."""
    if settings.checkpoint:
        files = dict(enumerate(settings.checkpoint))
        advice = "--checkpoint names files of weights"
    else:
        files = {epoch: run.checkpoint(epoch) for epoch in swept_epochs(settings, run)}
        advice = other_radii(settings, run) or (
            "check the flags that name the run, or choose with --checkpoints"
        )
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such checkpoint ({len(missing)} of {len(files)} are missing); "
            f"{advice}"
        )
    return files


def other_radii(settings: Settings, run: RunFolder) -> str | None:
    """One line on what to give where runs were trained with another epsilon than the one given."""
    trained = sorted(
        float(folder.name.removeprefix("eps"))
        for folder in run.path.parents[2].glob("eps*")
        if re.fullmatch(r"eps\d+(\.\d+)?", folder.name)
        and any((folder / Path(*run.path.parts[-2:])).glob("model_*.pth"))
    )
    if run.path.exists() or not trained:
        return None
    radii = " or ".join(f"{radius:g}" for radius in trained)
    return (
        f"there is one trained with --epsilon {radii}: --epsilon {trained[0]:g} --epsilons "
        f"{settings.epsilon:g} attacks it at {settings.epsilon:g}"
    )


def swept_epochs(settings: Settings, run: RunFolder) -> list[int]:
    """Those that --checkpoints chooses, or all that the run left."""
    epochs = epochs_of(settings, run)
    left = [epoch for epoch in run.epochs() if epoch < epochs]
    if settings.checkpoints or not left:
        return select_epochs(settings.checkpoints, epochs)
    kept = select_epochs(run.trained_with().get("checkpoint_epochs"), epochs)
    history = read_rows(run.path / "history.csv", EpochSummary)
    last = max((row.epoch for row in history), default=left[-1])
    gone = [epoch for epoch in kept if epoch <= last and epoch not in left]
    if gone:
        names = run.checkpoint(gone[0]).name + (f" and {len(gone) - 1} more" if gone[1:] else "")
        logger.warning(f"{run.path}: not there, and left out: {names}")
    if last + 1 < epochs:
        logger.info(f"{run.path} has come to epoch {last} of {epochs - 1}")
    return left


def prepare(settings: Settings, run: RunFolder, files: dict[int, Path], ranks: Ranks) -> Sweep:
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
    return Sweep(settings, run, files, data, network, folded, subject, ranks, statistics)


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
    elif any(rows_of(run, row_type) for row_type in TABLES):
        refuse_other_sweep(sweep, now)
        now["step_sizes"] = former_steps(run) | now["step_sizes"]
    run.settle()  # what a killed sweep had found
    write_json(run.sweep_file, now)


def former_steps(run: RunFolder) -> dict[str, float]:
    """Radius -> step size of the attacks that sweeps have recorded."""
    rows = [row for row_type in TABLES for row in rows_of(run, row_type)]
    measured = {f"{row.epsilon:g}" for row in rows}
    told = build.step_sizes(read_json(run.sweep_file) or {})
    return {radius: size for radius, size in told.items() if radius in measured}


def refuse_other_sweep(sweep: Sweep, now: dict[str, Any]) -> None:
    """Stop where the records were made with other flags, images or files."""
    settings, run = sweep.settings, sweep.run
    earlier = with_former_values(read_json(run.sweep_file) or {}, SWEEP_FLAGS)
    # With --out the folder's name does not tell which run it is.
    naming = Means.NAME | Means.SEED if settings.checkpoint else Means.FREE
    # The step size is one of each radius: those of other radii stay beside it.
    compared = keys_that(SWEEP_FLAGS, Means.MEASURE | naming) - {"pgd_alpha"}
    if settings.checkpoint and len(settings.checkpoint) == len(earlier.get(HASHES, ())):
        compared -= {"checkpoint"}  # whatever its name, a file is known by its content
    differing = difference(now, earlier, compared)
    former = former_steps(run)
    for radius, size in now["step_sizes"].items():
        if not differing and former.get(radius, size) != size:
            differing = f"--pgd-alpha was {former[radius]} at epsilon {radius}, is {size} now"
    other = build.other_images(sweep.data, earlier)
    if not differing and other:
        differing = f"its images were others: {other}"
    differing = differing or difference(now, earlier, STATISTICS)
    own = now.get("own_normalisation")
    if not differing and earlier.get("own_normalisation", own) != own:
        differing = f"--mean and --std were {'' if own else 'not '}given then"
    if not differing and settings.checkpoint:
        hashes = zip(
            settings.checkpoint,
            now[HASHES],
            earlier.get(HASHES, now[HASHES]),
            strict=True,
        )
        changed = [file for file, present, former in hashes if present != former]
        differing = f"{changed[0]} was another file then" if changed else None
    if differing:
        raise InputError(
            f"{run.results} holds a sweep with other flags: {differing}; --overwrite drops it"
        )


def measure_share(sweep: Sweep) -> None:
    """Measure this rank's share of the checkpoints that are not all recorded yet."""
    settings, run, ranks, data = sweep.settings, sweep.run, sweep.ranks, sweep.data
    missing = missing_parts(sweep)
    share = list(missing)[ranks.number :: ranks.count]
    of_rank = f"; rank {ranks.number} of {ranks.count} takes {len(share)}" * (ranks.count > 1)
    asked = [*asked_inputs(settings), *(p.name for p in PARTS[1:] if p.asked_for(settings, data))]
    logger.info(
        f"sweep of {run.path}: {len(missing)} checkpoints ({len(sweep.files) - len(missing)} done "
        f"before) on {', '.join(asked)}; {len(data.train)} training images in batches of "
        f"{sweep.subject.evaluator.batch_size}, on {settings.device}{of_rank}"
    )
    ranks.wait()  # all have read the same records before one adds to them
    total = sum(images_of(missing[epoch], data) for epoch in share)
    # A bar for one rank: those of others would write over it.
    with tqdm(total=total, desc="sweep", unit="img", disable=ranks.number or None) as bar:
        for evaluator in (sweep.subject.evaluator, sweep.subject.layers):
            evaluator.on_batch = bar.update
        for epoch in share:
            sweep.load(epoch)
            of_checkpoint = replace(sweep.subject, uses=Counter(attacked(missing[epoch])))
            for part, parts in missing[epoch]:
                measure_part(replace(sweep, subject=of_checkpoint), epoch, part, parts)


def attacked(missing: list[tuple[Part, list[tuple]]]) -> list[InputPart]:
    """The attacked inputs of one checkpoint, as often as there are types of row that need them."""
    found = [of for part, parts in missing for of in part.inputs(parts)]
    return [of for of in found if INPUTS[of[1]].attacked]


def images_of(missing: list[tuple[Part, list[tuple]]], data: Dataset) -> int:
    """How many images pass through the network for one checkpoint."""
    kept = {of for of, uses in Counter(attacked(missing)).items() if uses > 1}
    made = sum(size_of(data, split) for split, _, _ in kept)
    return made + sum(part.images(parts, data, kept) for part, parts in missing)


def measure_part(sweep: Sweep, epoch: int, part: Part, parts: list[tuple]) -> None:
    """Measure and record what is missing of one kind of row of a checkpoint."""
    file, run = sweep.files[epoch], sweep.run
    try:
        rows = part.measure(sweep.subject, epoch, parts)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    run.append(rows)
    name = file.name if sweep.settings.checkpoint else f"epoch {epoch:>3}"
    if part.row_type is Record:
        for record in rows:
            logger.info(f"{name} {describe_record(record)}")
    else:
        logger.info(f"{name} {len(rows)} rows of {TABLES[part.row_type]}")


def missing_parts(sweep: Sweep) -> dict[int, list[tuple[Part, list[tuple]]]]:
    """Epoch -> the parts that were asked for and are not recorded."""
    missing: dict[int, list[tuple[Part, list[tuple]]]] = {}
    for part in PARTS:
        wanted = part.asked_for(sweep.settings, sweep.data)
        recorded = rows_of(sweep.run, part.row_type) if wanted else []
        # A part of which rows were lost, or lack what is measured now, is measured again.
        done = Counter((row.epoch, part.part_of(row)) for row in recorded if part.whole(row))
        whole = part.rows(sweep.network)
        for epoch in sweep.files:
            parts = [key for key in wanted if done[epoch, key] < whole]
            if parts:
                missing.setdefault(epoch, []).append((part, parts))
    return dict(sorted(missing.items()))


def rows_of(run: RunFolder, row_type: type) -> list:
    """What sweeps have recorded in rows of one type."""
    return [row for row in run.rows(row_type) if swept_by_eval(row)]


def summary(sweep: Sweep) -> list[str]:
    """The first and the last checkpoint of the sweep, in tables of what was asked for."""
    settings, run, lines = sweep.settings, sweep.run, []
    for part in PARTS:
        asked = part.asked_for(settings, sweep.data)
        rows = [row for row in rows_of(run, part.row_type) if part.part_of(row) in asked]
        lines += table_lines([row for row in rows if row.epoch in sweep.ends]) if rows else []
    return lines


if __name__ == "__main__":
    run_script(main)
