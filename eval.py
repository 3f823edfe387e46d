"""Sweep the checkpoints of a run: accuracy, loss and neural collapse on the training data.

Asked for it, also collapse layer by layer and the nearest-centre classifier, on test data too.

    python eval.py --neural-collapse                          # clean and PGD
    python eval.py --neural-collapse-gaussian                 # Gaussian and sign noise
    python eval.py --neural-collapse-targeted                 # PGD towards the next class
    python eval.py --layerwise --checkpoints 399              # collapse after every block
    python eval.py --leaps --simplex                          # among the clean class means
    python eval.py --ncc                                      # classify by nearest class mean
    python eval.py --ncc-layers conv1 conv4                   # likewise after these blocks
    python eval.py --neural-collapse --checkpoints 0,10,399   # three checkpoints alone
    python eval.py --neural-collapse --checkpoint a.pth b.pth --out results/   # any files
    torchrun --nproc-per-node=8 eval.py --neural-collapse     # shared out over 8 GPUs

The flags that name the run are those it was trained with. Each finished checkpoint is on disk at
once; the same command, started again, goes on after the last one.
"""

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_nc import build
from robust_nc.checks import check_run, check_sweep, unknown_layer
from robust_nc.comparing import agree_with_run, other_sweep
from robust_nc.data.datasets import Dataset, equal_splits, units_of
from robust_nc.data.inputs import INPUTS
from robust_nc.flags import sweep_parser
from robust_nc.going_on import swept_by_folder
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.measuring.missing import Missing, images_of, missing_parts, shared_inputs
from robust_nc.measuring.subject import Subject
from robust_nc.measuring.sweep import (
    Checkpoint,
    asked_tasks,
    checkpoint_paths,
    epochs_of,
    names_of_tasks,
    numbered_files,
    recorded_files,
)
from robust_nc.networks.checkpoints import load_checkpoint, other_key
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network, Statistics, statistics_in_words
from robust_nc.parsing import Parser, parse_epochs
from robust_nc.results.conditions import Conditions, conditions_of
from robust_nc.results.records import TABLES, Record
from robust_nc.results.run_folder import FILES, HASHES, RunFolder
from robust_nc.results.run_search import list_runs
from robust_nc.results.tables import attack_in_words, describe_record, table_lines
from robust_nc.settings import Settings
from utils import (
    InputError,
    Progress,
    Ranks,
    describe_peak,
    join_ranks,
    log_to,
    logger,
    run_script,
    set_precision,
)


def parse_args(argv: list[str] | None = None) -> Settings:
    """The flags of eval.py, with what is not given from the run."""
    parser = sweep_parser()
    args = parser.parse_args(argv)
    if args.run:
        defaults = swept_by_folder(args.run)  # its step belongs to its own radius: see comparing.py
        parser.set_defaults(**defaults | {"pgd_alpha": None})
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
    run = results_folder(settings)
    if out and not (settings.checkpoint or run.path.exists()):
        parser.error(
            f"--checkpoint FILE or a run goes with --out DIR: there is no run in {run.path}; "
            f"{list_runs(settings.models_dir, settings.models_dir)}"
        )
    epochs = epochs_of(settings, run)
    parse_epochs(parser, "--checkpoints", settings.checkpoints, epochs)


def is_results_of_run(path: Path) -> bool:
    return path.name == "results" and (path.parent / "args.json").exists()


def results_folder(settings: Settings) -> RunFolder:
    """The run's folder; the results go to the one that --out names, if it does.

    With --checkpoint that is all there is.
    """
    run = build.run_folder(settings)
    path = settings.out if settings.checkpoint else settings.run or run.path
    return RunFolder(path, standard=run.standard, results=settings.out)


def main() -> None:
    """Measure what is asked for on every checkpoint, and go on after what is finished."""
    given = parse_args()
    ranks = join_ranks()
    set_precision(given.precision)
    run = results_folder(given)
    settings = agree_with_run(given, run)
    sweep = prepare(settings, run, checkpoint_paths(settings, run))
    with run.lock("eval.py") if ranks.number == 0 else nullcontext():
        run.open()  # each table is read once from here on
        log_to(run.written / "eval.log")
        if ranks.number == 0:
            open_results(sweep)
        ranks.wait()
        missing = missing_parts(settings, sweep.data, sweep.network, sweep.files, run)
        if ranks.number == 0:
            for line in plan_in_words(sweep, len(missing), given.pgd_alpha):
                logger.info(line)
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
    files: dict[int, Checkpoint]  # by epoch; for --checkpoint by the number of the file
    data: Dataset
    network: Network
    folded: FoldedNetwork  # of `network`, which checkpoints are loaded into
    subject: Subject
    statistics: Statistics  # what images are normalised with, where a file does not bring its own

    @property
    def conditions(self) -> Conditions:
        """What its rows are measured with."""
        return conditions_of(vars(self.settings))

    def read(self, epoch: int, quietly: bool = False) -> Statistics | None:
        """Load the weights of a checkpoint; returns the statistics that its file brings along."""
        path, key = self.files[epoch].path, self.settings.weights_key
        return load_checkpoint(path, self.network, key, quietly)[1]

    def try_all(self) -> None:
        """Raise InputError for the first checkpoint that cannot be read, or measured.

        For what is deleted before a sweep begins: the sweep is then able to replace it.
        """
        train, evaluator = self.data.train, self.subject.evaluator
        logger.info(f"--overwrite: {len(self.files)} checkpoints are tried before rows are dropped")
        for epoch, file in self.files.items():
            self.read(epoch, quietly=True)
            self.folded.refold()
            try:
                evaluator.outputs(train.images[:8], train.labels[:8])
            except InputError as error:
                raise InputError(f"{file.path}: {error}") from error

    def load(self, epoch: int, quietly: bool = False) -> Statistics:
        """Load a checkpoint, and normalise as its wrapper does unless the flags say how.

        Returns:
            What its images are normalised with, which a log line tells unless `quietly`.
        """
        file, used, own = self.files[epoch].path, self.statistics, self.read(epoch, quietly)
        given = build.statistics_given(self.settings)
        words = f"{statistics_in_words(used)}{' as given' if given else ', it brings none along'}"
        if own and given:
            words += f", not with its own {statistics_in_words(own)}"
        elif own:
            used, words = own, f"its own {statistics_in_words(own)}"
        if not quietly and (own or self.settings.checkpoint):
            logger.info(f"{file}: normalised with {words}")
        self.network.normalise_by(*used)
        self.folded.refold()
        return used


def prepare(settings: Settings, run: RunFolder, paths: dict[int, Path]) -> Sweep:
    """Load the data and make the network that the checkpoints are loaded into."""
    data = build.load_data(settings)
    trained = None if settings.checkpoint else run.trained_with()
    statistics = build.normalisation(settings, data, trained)
    if not settings.checkpoint:
        build.refuse_other_data(run, data, statistics)
    if settings.equal_n:
        data = equal_splits(data, settings.seed)
    if not settings.checkpoint:  # of which each is told
        logger.info(f"images are normalised with {statistics_in_words(statistics)}")
    network, folded = build.build_networks(settings, data, statistics)
    unknown = unknown_layer(settings, network.blocks())
    if unknown:
        raise InputError(unknown)
    if settings.simplex and max(settings.simplex) >= data.num_classes:
        raise InputError(
            f"argument --simplex: there is no class {max(settings.simplex)}: the images have "
            f"{data.num_classes} classes, the last is {data.num_classes - 1}"
        )
    evaluator = Evaluator(folded, build.eval_batch_size(settings))
    layers = Evaluator(folded, settings.layer_batch_size or evaluator.batch_size)
    files = {epoch: Checkpoint(path) for epoch, path in paths.items()}
    of_files = settings.checkpoint is not None
    if of_files:
        keys = {p: other_key(p, network, settings.weights_key) for p in paths.values()}
        files = numbered_files(keys, {} if settings.overwrite else recorded_files(run), run)
    strengths, corners = build.strengths(settings), settings.simplex
    subject = Subject(evaluator, layers, data, strengths, settings.seed, of_files, corners)
    return Sweep(settings, run, files, data, network, folded, subject, statistics)


def open_results(sweep: Sweep) -> None:
    """Nothing of a sweep with other flags stays in the folder, or is mixed in."""
    run, now = sweep.run, describe_sweep(sweep)
    if any(run.swept_rows(row_type) for row_type in TABLES):
        replace_earlier(sweep, now)
    run.merge()  # what a sweep that was killed has left
    run.tell_conditions()
    run.write_arguments(run.sweep_file, now)


def describe_sweep(sweep: Sweep) -> dict[str, Any]:
    """What eval_args.json records: the flags, the images, and the files of --checkpoint."""
    settings, run = sweep.settings, sweep.run
    now = build.describe_run(settings, sweep.data, sweep.statistics)
    if settings.out and not settings.checkpoint:
        now["run"] = str(run.path.resolve())
    if settings.checkpoint:
        now["own_normalisation"] = not build.statistics_given(settings)
        if not any(file.key for file in sweep.files.values()):
            now["weights_key"] = None  # the one given is used without it too
        now[HASHES] = [file.digest for file in sweep.files.values()]
        now["statistics"] = [sweep.load(number) for number in sweep.files]  # of each file
        present = {file.name: (number, file.digest) for number, file in sweep.files.items()}
        now[FILES] = ({} if settings.overwrite else recorded_files(run)) | present
    return now


def replace_earlier(sweep: Sweep, now: dict[str, Any]) -> None:
    """Drop what earlier sweeps recorded, with --overwrite; without, it must go with this one.

    Raises:
        InputError: it was made with other flags; or a checkpoint cannot be measured.
    """
    run = sweep.run
    if sweep.settings.overwrite:
        sweep.try_all()
        dropped = [f"{count} rows of {name}" for name, count in run.forget_sweep().items()]
        logger.info(f"--overwrite drops what earlier sweeps recorded: {', '.join(dropped)}")
        return
    earlier = run.arguments(run.sweep_file)
    differing = other_sweep(now, earlier, build.other_images(sweep.data, earlier))
    if differing:
        raise InputError(
            f"{run.results} holds a sweep with other flags: {differing}; --overwrite drops it"
        )


def measure(sweep: Sweep, missing: dict[int, list[Missing]], ranks: Ranks) -> None:
    """Measure and record this rank's share of what is missing."""
    share = list(missing)[ranks.number :: ranks.count]
    if ranks.count > 1:
        logger.info(f"rank {ranks.number} of {ranks.count} takes {len(share)} of the checkpoints")
    total = sum(images_of(missing[epoch], sweep.data) for epoch in share)
    # A bar for one rank: those of others would write over it.
    with Progress(total, "sweep", "images", shown=ranks.number == 0) as bar:
        for epoch in share:
            measure_checkpoint(sweep, epoch, missing[epoch], bar, ranks.number)


def measure_checkpoint(
    sweep: Sweep, epoch: int, missing: list[Missing], bar: Progress, rank: int
) -> None:
    """Measure and record what is missing of a checkpoint; the bar moves with each batch."""
    subject, end = sweep.subject, bar.done + images_of(missing, sweep.data)

    def move(count: int) -> None:
        bar.update(min(count, end - bar.done))

    subject.evaluator.passed = subject.layers.passed = move
    file = sweep.files[epoch]
    sweep.load(epoch, quietly=bool(sweep.settings.checkpoint))  # open_results told of these
    with subject.keeping(shared_inputs(missing)):
        for task, parts in missing:
            try:
                rows = list(task.measure(subject, epoch, parts))
            except InputError as error:
                raise InputError(f"{file.path}: {error}") from error
            if rows:
                rows = [row.measured_with(sweep.conditions).of_file(file.name) for row in rows]
                sweep.run.append(rows, rank)
                log_rows(sweep, epoch, rows)
    move(end - bar.done)  # fewer may have passed


def plan_in_words(sweep: Sweep, count: int, alpha: float | None) -> list[str]:
    """A line on what is to be measured, and one on the attacks, if any, with the step of each.

    Args:
        count: the checkpoints that lack something.
        alpha: --pgd-alpha, if it was given.
    """
    settings, data = sweep.settings, sweep.data
    plan = (
        f"sweep of {sweep.run.path}: {count} checkpoints ({len(sweep.files) - count} done before) "
        f"on {', '.join(names_of_tasks(settings))}; {len(data.train)} training images in batches "
        f"of {sweep.subject.evaluator.batch_size}, on {settings.device}"
    )
    tasks, budget = asked_tasks(settings), (settings.attack_iters, settings.restarts)
    asked = (part for task in tasks for part in task.inputs(task.parts(settings, data)))
    if not any(INPUTS[part.input].attacked for part in asked):
        return [plan]
    steps = [(radius, settings.step_sizes[f"{radius:g}"]) for radius in settings.epsilons]
    attacks = [attack_in_words(*budget, *step, unit_of(sweep)) for step in steps]
    why = "steps of the run's own, in proportion to the radius"
    if alpha is not None:
        why = "steps of --pgd-alpha"
    elif settings.checkpoint:
        why = (
            f"no --pgd-alpha is given: {settings.pgd_alpha:g} at --epsilon {settings.epsilon:g}, "
            "elsewhere in proportion to the radius"
        )
    return [plan, f"attacks: {'; '.join(attacks)} ({why})"]


def log_rows(sweep: Sweep, epoch: int, rows: list) -> None:
    """A line of the log for each row of metrics.csv, one for all rows of another table."""
    name = sweep.files[epoch].name or f"epoch {epoch:>3}"
    row_type = type(rows[0])
    if row_type is Record:
        for record in rows:
            logger.info(f"{name} {describe_record(record, unit_of(sweep))}")
    else:
        logger.info(f"{name} {len(rows)} rows of {row_type.file}")


def summary(sweep: Sweep) -> list[str]:
    """The first and the last checkpoint, or every file, in tables like those that were asked for.

    With all that earlier sweeps measured of them, and under whichever attacks.
    """
    ends, lines = {min(sweep.files), max(sweep.files)}, []
    if sweep.settings.checkpoint:
        ends |= sweep.files.keys()
    for task in asked_tasks(sweep.settings):
        recorded = sweep.run.swept_rows(task.row_type)
        rows = [row for row in recorded if row.epoch in ends and task.is_whole(row)]
        lines += table_lines(rows, task.table, unit_of(sweep)) if rows else []
    return lines


def unit_of(sweep: Sweep) -> float:
    """What a radius of 1 is one part of: 255, or 1 where images are attacked in [0, 1]."""
    return units_of(sweep.settings.dataset)


if __name__ == "__main__":
    run_script(main)
