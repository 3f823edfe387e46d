"""Every file that a run leaves, and the lock on its folder.

model_{epoch}.pth   weights alone, by epoch from 0
resume.pth          an epoch's weights and optimiser, and what is done of the next: to go on with
history.csv         a row per epoch (EpochSummary)
args.json           the flags of the run and what it was made with
results/            metrics.csv (Record), the published .npy series made from it, the other TABLES
                    of a sweep and its eval_args.json; during a sweep, in .TABLE.RANK.added what is
                    still to be put into a table that is long, or that another process writes
output.log, eval.log
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robust_nc.results.conditions import Conditions, conditions_of, shown_rows
from robust_nc.results.files import Table, locked, read_json, read_rows, write_json, write_rows
from robust_nc.results.history import EpochSummary
from robust_nc.results.records import TABLES, Record, at_epsilon
from robust_nc.results.rows import Row
from robust_nc.results.series import published_series, series_names
from utils import InputError, atomic_open

# In eval_args.json, of --checkpoint: the SHA-256 of each file of the list; and by its name the
# number (`epoch` in the tables) and the SHA-256 of every file that the tables have rows of.
HASHES, FILES = "checkpoint_sha256", "files"
# What of args.json tells where things lay, which is no part of a result.
PLACES = {"data_dir", "models_dir", "data_url", "out", "run"}
# A table of a sweep with more rows is not written anew for every checkpoint: 5,000 rows take 8 ms.
MOST_AT_ONCE = 5_000

CHECKPOINT_NAME = "model_{}.pth"  # of the weights after an epoch, counted from 0


def checkpoint_epochs(folder: Path) -> list[int]:
    """Epochs of the checkpoints in a folder, ascending."""
    before, after = CHECKPOINT_NAME.split("{}")
    names = [path.name for path in folder.glob(CHECKPOINT_NAME.format("*"))]
    numbers = [name.removeprefix(before).removesuffix(after) for name in names]
    return sorted(int(number) for number in numbers if number.isdigit())


class RunFolder:
    """The folder of one run. The tables are the truth, from which the .npy series are written.

    What args.json, eval_args.json and the tables hold is read once: from when the folder is locked
    one process writes here, which keeps in memory what it writes.

    Args:
        standard: whether the run was trained the standard way, for the series that are written.
        results: where the results go, if not into `path`/results.
    """

    def __init__(self, path: Path, *, standard: bool = True, results: Path | None = None):
        self.path = path
        self.results = results or path / "results"
        self.written = results or path  # where the lock and the logs of a sweep lie
        self.standard = standard
        self._arguments: dict[Path, dict[str, Any]] = {}
        self._tables: dict[type, Table] = {}

    @property
    def resume_file(self) -> Path:
        return self.path / "resume.pth"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    @property
    def args_file(self) -> Path:
        return self.path / "args.json"

    @property
    def sweep_file(self) -> Path:
        return self.results / "eval_args.json"

    def checkpoint(self, epoch: int) -> Path:
        return self.path / CHECKPOINT_NAME.format(epoch)

    def epochs(self) -> list[int]:
        """Epochs of the checkpoints in the folder, ascending."""
        return checkpoint_epochs(self.path)

    def holds_run(self) -> bool:
        """Whether a former run left checkpoints or records here."""
        files = (self.resume_file, self.history_file, self.table(Record))
        recorded = any(file.exists() for file in files) or self._beside(Record)
        return bool(self.epochs() or recorded)

    def cut_off_in_first_epoch(self) -> bool:
        """Whether all there is is of a first epoch that was killed before resume.pth was there."""
        recorded = {row.epoch for row in self.records} | {row.epoch for row in self.history}
        epochs = recorded.union(self.epochs())
        return not self.resume_file.exists() and epochs <= {0}

    def arguments(self, file: Path) -> dict[str, Any]:
        """What `args_file` or `sweep_file` holds; {} where there is none."""
        if file not in self._arguments:
            self._arguments[file] = read_json(file) or {}
        return self._arguments[file]

    def write_arguments(self, file: Path, arguments: dict[str, Any]) -> None:
        """Write `args_file` or `sweep_file`."""
        write_json(file, arguments)
        self._arguments.pop(file, None)  # read again: JSON makes lists of tuples

    def trained_with(self) -> dict[str, Any]:
        """What args.json tells; {} where there is none."""
        return self.arguments(self.args_file)

    def files(self) -> dict[str, tuple[int, str]]:
        """Name -> number and SHA-256 of the files of --checkpoint that sweeps have recorded.

        Earlier versions told the list of one sweep, the first of them without SHA-256: "" then.
        """
        swept = self.arguments(self.sweep_file)
        try:
            if FILES in swept:
                return {name: (number, digest) for name, (number, digest) in swept[FILES].items()}
            names = swept.get("checkpoint") or []
            pairs = zip(names, swept.get(HASHES) or [""] * len(names), strict=False)
            return {name: (number, digest) for number, (name, digest) in enumerate(pairs)}
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.sweep_file}: its files cannot be read ({error})") from error

    def trained_under(self) -> Conditions:
        """The run's own attack and noise; of results that belong to no run, those of the sweep."""
        return self._conditions(self.args_file, self.sweep_file)

    def swept_under(self) -> Conditions:
        """The attack and noise of the last sweep."""
        return self._conditions(self.sweep_file, self.args_file)

    def _conditions(self, *files: Path) -> Conditions:
        """Those of the first of the files that is there.

        Raises:
            InputError: what should be a number there is none.
        """
        file = next((file for file in files if self.arguments(file)), files[0])
        try:
            return conditions_of(self.arguments(file))
        except (TypeError, ValueError) as error:
            raise InputError(f"{file}: its attack and noise cannot be read ({error})") from error

    def epsilon(self) -> float:
        """What the run was trained with, in the units of --epsilon; NaN where nothing tells it."""
        arguments = self.trained_with() or self.arguments(self.sweep_file)
        if "epsilon" in arguments:
            return float(arguments["epsilon"])
        in_path = re.search(r"/eps([\d.]+)/[^/]+/[^/]+$", str(self.path.absolute()))
        return float(in_path[1]) if in_path else math.nan

    def open(self) -> None:
        """Make the folder; what it holds is read anew."""
        self.results.mkdir(parents=True, exist_ok=True)
        self._read_anew()

    def _read_anew(self) -> None:
        self._arguments.clear()
        self._tables.clear()

    @contextmanager
    def lock(self, script: str) -> Iterator[None]:
        """Hold the folder alone inside; it is made if need be.

        Raises:
            InputError: another process holds it.
        """
        with locked(self.written, script):
            self._read_anew()  # another process may have written until now
            for folder in (self.written, self.results):
                for left_by_a_killed_run in folder.glob(".*.tmp"):
                    left_by_a_killed_run.unlink(missing_ok=True)
            yield

    # What is recorded

    @property
    def records(self) -> list[Record]:
        return self.rows(Record)

    @property
    def history(self) -> list[EpochSummary]:
        return self._history().rows

    def rows(self, row_type: type[Row]) -> list:
        """What one of TABLES holds, in the order of the keys."""
        return self._table(row_type).rows

    def swept_rows(self, row_type: type[Row]) -> list:
        """What eval.py recorded of it."""
        return [row for row in self.rows(row_type) if row.swept]

    def table(self, row_type: type[Row]) -> Path:
        return self.results / row_type.file

    def _history(self) -> Table:
        if EpochSummary not in self._tables:
            rows = read_rows(self.history_file, EpochSummary)
            self._tables[EpochSummary] = Table(self.history_file, EpochSummary, rows)
        return self._tables[EpochSummary]

    def _table(self, row_type: type[Row]) -> Table:
        if row_type not in self._tables:
            # First what lies beside: a sweep may put it into the table in between.
            files = self._beside(row_type)
            beside = [row for f in files for row in read_rows(f, row_type, maybe_cut_off=True)]
            rows, epsilon = read_rows(self.table(row_type), row_type) + beside, self.epsilon()
            names = {number: name for name, (number, _) in self.files().items()}
            own, last = self.trained_under(), self.swept_under()
            as_now = (
                row.as_now(epsilon, last if row.swept else own).of_file(names.get(row.epoch, ""))
                for row in rows
            )
            self._tables[row_type] = Table(self.table(row_type), row_type, as_now)
        return self._tables[row_type]

    def _beside(self, row_type: type[Row]) -> list[Path]:
        """The files of rows that are still to be put into a table.

        Earlier versions have left .TABLE.added, with rows that were appended line by line.
        """
        return sorted(self.results.glob(f".{row_type.file}.*added"))

    # Recording

    def add(self, records: list[Record], summary: EpochSummary | None = None) -> None:
        """Put records into metrics.csv, and an epoch into history.csv, in place of equal keys.

        The series follow in `write_series`.
        """
        if summary is not None:
            self._history().add([summary])
        own, epsilon = self.trained_under(), self.epsilon()
        self._table(Record).add([record.as_now(epsilon, own) for record in records])

    def append(self, rows: list, rank: int = 0) -> None:
        """Put rows of one type, of a sweep, on disk; the series follow in `settle`.

        The first rank of a shared sweep writes the table with them, as long as it is short. All
        other rows are appended to a file of the rank's own beside it: a checkpoint takes no longer
        the more there are, and no rank waits for another, or loses what another has written.

        On a busy machine each of 400 checkpoints takes 8 ms of metrics.csv (6 rows a checkpoint), 5
        ms of layers.csv (72) and 45 ms of simplex.csv (2,814; 15 of them the processor's), the last
        no more than the first. `settle` takes 0.2, 0.1 and 5 s.
        """
        row_type = type(rows[0])
        table = self._table(row_type)
        in_table = rank == 0 and len(table) + len(rows) <= MOST_AT_ONCE
        table.add(rows, beside=None if in_table else self._added(row_type, rank))

    def _added(self, row_type: type[Row], rank: int) -> Path:
        return self.results / f".{row_type.file}.{rank}.added"

    def settle(self, *, all_done: bool = True) -> None:
        """Put what lies beside the tables into them, and what they hold into the series.

        Args:
            all_done: no other rank is still adding rows. Otherwise what lies beside the tables
                stays there as well, until the next sweep settles it.
        """
        self.merge(remove=all_done)
        self.write_series()

    def tell_conditions(self) -> None:
        """Write into tables of older versions what their rows were measured with.

        Their eval_args.json told it, and is about to be replaced.
        """
        for row_type in TABLES:
            table = self._table(row_type)
            if table and b"precision" not in table.path.read_bytes().split(b"\n")[0]:
                table.write()

    def merge(self, remove: bool = True) -> None:
        """Put what lies beside the tables into them, and off the disk if it is to be removed."""
        for row_type in TABLES:
            beside = self._beside(row_type)
            if not beside:
                continue
            if beside != [self._added(row_type, 0)]:  # which is in memory, unlike what others add
                self._tables.pop(row_type, None)
            self._table(row_type).write()
            for path in beside if remove else ():
                path.unlink()

    def write_series(self) -> None:
        """Make the published series anew from the tables."""
        for name, values in self._series().items():
            with atomic_open(self.results / f"{name}.npy") as file:
                np.save(file, values)

    def _series(self) -> dict[str, np.ndarray]:
        """Of the run's own epsilon alone, and each of one attack, or noise."""
        own, last = self.trained_under(), self.swept_under()
        by_kind: dict[str, list] = {}
        for row in at_epsilon(self.records, self.epsilon()):
            by_kind.setdefault(row.input, []).append(row)
        records = [row for rows in by_kind.values() for row in shown_rows(rows, own, last)]
        return published_series(records, self.history, self.standard)

    def copy_tables(self, folder: Path) -> None:
        """The tables, into a folder that is read like the run's own; no checkpoints.

        Tables that a former run has left there, and this one does not have, are deleted.
        """
        copy = RunFolder(folder)
        copy.open()
        for row_type in TABLES:
            if rows := self.rows(row_type):
                write_rows(copy.table(row_type), row_type, rows)
            else:
                copy.table(row_type).unlink(missing_ok=True)
        if history := self.history:
            write_rows(copy.history_file, EpochSummary, history)
        for source, target in (
            (self.args_file, copy.args_file),
            (self.sweep_file, copy.sweep_file),
        ):
            arguments = self.arguments(source)
            kept = {name: value for name, value in arguments.items() if name not in PLACES}
            if kept:
                write_json(target, kept)

    # Deleting

    def to_delete(self, from_epoch: int = 0) -> list[Path]:
        """The checkpoints and resume.pth that a run which begins at that epoch has no use for."""
        files = [self.checkpoint(epoch) for epoch in self.epochs() if epoch >= from_epoch]
        return [self.resume_file, *files] if self.resume_file.exists() else files

    def delete(self, from_epoch: int = 0) -> None:
        """Delete a former run from an epoch on: what it left, and nothing else."""
        for path in self.to_delete(from_epoch):
            path.unlink()
        if from_epoch > 0:
            return
        self._read_anew()
        for path in (
            *(self.table(row_type) for row_type in TABLES),
            *(path for row_type in TABLES for path in self._beside(row_type)),
            *(self.results / f"{name}.npy" for name in series_names()),
            self.history_file,
            self.sweep_file,
            self.args_file,
            self.path / "output.log",
            self.path / "eval.log",
        ):
            path.unlink(missing_ok=True)

    def forget_from(self, epoch: int) -> None:
        """Take the rows of that epoch and later ones out of all tables, whoever recorded them."""
        self._forget(lambda row: row.epoch >= epoch)
        if self._history().drop(lambda row: row.epoch >= epoch):
            self._history().write()

    def forget_sweep(self) -> dict[str, int]:
        """Take what eval.py recorded out of all tables; table -> how many rows that were."""
        return self._forget(lambda row: row.swept)

    def _forget(self, is_gone: Callable[[Row], bool]) -> dict[str, int]:
        """Take rows out of all tables, and the series that are gone with them off the disk."""
        self.merge()
        series, counts = self._series().keys(), {}
        for row_type in TABLES:
            table = self._table(row_type)
            count = table.drop(is_gone)
            if not count:
                continue
            counts[row_type.file] = count
            if len(table) or row_type is Record:  # metrics.csv tells that this is a run's folder
                table.write()
            else:
                table.path.unlink()
        self.write_series()
        for name in series - self._series().keys():
            (self.results / f"{name}.npy").unlink(missing_ok=True)
        return counts
