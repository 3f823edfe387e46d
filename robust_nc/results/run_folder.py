"""Every file that a run leaves, and the lock on its folder.

model_{epoch}.pth   weights alone, by epoch from 0
resume.pth          an epoch's weights and optimiser, and what is done of the next: to go on with
history.csv         a row per epoch (EpochSummary)
args.json           the flags of the run and what it was made with
results/            metrics.csv (Record), the published .npy series made from it, the other TABLES
                    of a sweep and its eval_args.json; while processes share a sweep, what all but
                    the first of them record lies in .TABLE.RANK.added
output.log, eval.log
"""

import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robust_nc.results.conditions import Conditions, conditions_of, shown_rows
from robust_nc.results.files import (
    Table,
    lock_file,
    read_json,
    read_rows,
    write_json,
    write_rows,
)
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


CHECKPOINT_NAME = "model_{}.pth"  # of the weights after an epoch, counted from 0


def checkpoint_epochs(folder: Path) -> list[int]:
    """Epochs of the checkpoints in a folder, ascending."""
    before, after = CHECKPOINT_NAME.split("{}")
    names = [path.name for path in folder.glob(CHECKPOINT_NAME.format("*"))]
    numbers = [name.removeprefix(before).removesuffix(after) for name in names]
    return sorted(int(number) for number in numbers if number.isdigit())


class RunFolder:
    """The folder of one run. The tables are the truth, from which the .npy series are written.

    Args:
        standard: whether the run was trained the standard way, for the published series.
        results: where the results go, if not into `path`/results.
    """

    def __init__(self, path: Path, *, standard: bool, results: Path | None = None):
        self.path = path
        self.results = results or path / "results"
        self.written = results or path  # where the lock and the logs of a sweep lie
        self.standard = standard
        # As they were read, with what this process has added since: one process writes a run's
        # tables at a time.
        self._tables: dict[type[Row], Table] = {}
        # What this process has added beside them, as a further rank.
        self._added: dict[type[Row], Table] = {}

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

    def trained_with(self) -> dict[str, Any]:
        """What args.json tells; {} where there is none."""
        return read_json(self.args_file) or {}

    def files(self) -> dict[str, tuple[int, str]]:
        """Name -> number and SHA-256 of the files of --checkpoint that sweeps have recorded.

        Earlier versions told the list of one sweep, the first of them without SHA-256: "" then.
        """
        swept = read_json(self.sweep_file) or {}
        if FILES in swept:
            return {name: (number, digest) for name, (number, digest) in swept[FILES].items()}
        names = swept.get("checkpoint") or []
        digests = swept.get(HASHES) or [""] * len(names)
        pairs = zip(names, digests, strict=False)
        return {name: (number, digest) for number, (name, digest) in enumerate(pairs)}

    def trained_under(self) -> Conditions:
        """The run's own attack and noise; of results that belong to no run, those of the sweep."""
        return conditions_of(self.trained_with() or read_json(self.sweep_file) or {})

    def swept_under(self) -> Conditions:
        """The attack and noise of the last sweep."""
        return conditions_of(read_json(self.sweep_file) or self.trained_with())

    def epsilon(self) -> float:
        """What the run was trained with, in the units of --epsilon; NaN where nothing tells it."""
        arguments = read_json(self.args_file) or read_json(self.sweep_file) or {}
        if "epsilon" in arguments:
            return float(arguments["epsilon"])
        in_path = re.search(r"/eps([\d.]+)/[^/]+/[^/]+$", str(self.path.absolute()))
        return float(in_path[1]) if in_path else math.nan

    def open(self) -> None:
        """Make the folder; what it holds is read anew."""
        self.results.mkdir(parents=True, exist_ok=True)
        self._tables.clear()

    @contextmanager
    def lock(self, script: str) -> Iterator[None]:
        """Hold the folder alone inside; it is made if need be.

        Raises:
            InputError: another process holds it.
        """
        self.written.mkdir(parents=True, exist_ok=True)
        with (self.written / ".lock").open("a+") as file:
            if not lock_file(file):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(f"{self.written} is in use by {holder}: wait for it, or stop it")
            file.truncate(0)
            file.write(
                f"{script} on {socket.gethostname()}, process {os.getpid()}, since "
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            file.flush()
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
        return read_rows(self.history_file, EpochSummary)

    def rows(self, row_type: type[Row]) -> list:
        """What one of TABLES holds, in the order of the keys."""
        return self._table(row_type).rows

    def swept_rows(self, row_type: type[Row]) -> list:
        """What eval.py recorded of it."""
        return [row for row in self.rows(row_type) if row.swept]

    def table(self, row_type: type[Row]) -> Path:
        return self.results / row_type.file

    def _table(self, row_type: type[Row]) -> Table:
        if row_type not in self._tables:
            # First what lies beside: a sweep may put it into the table in between.
            beside = [
                row
                for path in self._beside(row_type)
                for row in read_rows(path, row_type, maybe_cut_off=True)
            ]
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
        """Put records into metrics.csv, and an epoch into history.csv, in place of equal keys."""
        if summary is not None:
            Table(self.history_file, EpochSummary, self.history).add([summary])
        self._tables.pop(Record, None)
        own = self.trained_under()
        self._table(Record).add([record.as_now(self.epsilon(), own) for record in records])
        self._write_series()

    def append(self, rows: list, rank: int = 0) -> None:
        """Put rows of one type, of a sweep, on disk; the series follow in `settle`.

        The first rank of a shared sweep adds them to their table, any other to a file of its own
        beside it: no rank waits for another, or loses what another has written.
        """
        row_type = type(rows[0])
        if rank == 0:
            self._table(row_type).add(rows)
            return
        if row_type not in self._added:
            path = self.results / f".{row_type.file}.{rank}.added"
            self._added[row_type] = Table(path, row_type)
        self._added[row_type].add(rows)

    def settle(self, *, all_done: bool = True) -> None:
        """Put what lies beside the tables into them, and what they hold into the series.

        Args:
            all_done: no other rank is still adding rows. Otherwise what lies beside the tables
                stays there as well, until the next sweep settles it.
        """
        self.merge(remove=all_done)
        self._write_series()

    def tell_conditions(self) -> None:
        """Write into tables of older versions what their rows were measured with.

        Their eval_args.json told it, and is about to be replaced.
        """
        for row_type in TABLES:
            rows = self._table(row_type).rows
            if rows and b"precision" not in self.table(row_type).read_bytes().split(b"\n")[0]:
                self._table(row_type).write()

    def merge(self, remove: bool = True) -> None:
        """Put what lies beside the tables into them, and off the disk if it is to be removed."""
        for row_type in TABLES:
            beside = self._beside(row_type)
            if not beside:
                continue
            self._tables.pop(row_type, None)
            self._table(row_type).write()
            for path in beside if remove else ():
                path.unlink()

    def _write_series(self) -> None:
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
        copy = RunFolder(folder, standard=self.standard)
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
            arguments = read_json(source) or {}
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
        self._tables.clear()
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
        if history := self.history:
            kept = [row for row in history if row.epoch < epoch]
            write_rows(self.history_file, EpochSummary, kept)

    def forget_sweep(self) -> dict[str, int]:
        """Take what eval.py recorded out of all tables; table -> how many rows that were."""
        return self._forget(lambda row: row.swept)

    def _forget(self, is_gone: Callable[[Row], bool]) -> dict[str, int]:
        """Take rows out of all tables, and the series that are gone with them off the disk."""
        self.merge()
        series, counts = self._series().keys(), {}
        for row_type in TABLES:
            rows = self.rows(row_type)
            kept = [row for row in rows if not is_gone(row)]
            if len(kept) == len(rows):
                continue
            counts[row_type.file] = len(rows) - len(kept)
            self._tables[row_type] = Table(self.table(row_type), row_type, kept)
            if kept or row_type is Record:  # metrics.csv tells that this is a run's folder
                self._tables[row_type].write()
            else:
                self.table(row_type).unlink()
        self._write_series()
        for name in series - self._series().keys():
            (self.results / f"{name}.npy").unlink(missing_ok=True)
        return counts


MOST_LISTED = 8


def list_runs(path: Path, models_dir: Path = Path("models")) -> str:
    """The runs below a folder in words, each by its own.

    Of what lies in a run's folder, that run. Of a folder that is missing those as deep as it would
    be, below the nearest one above it that is there: a search of everything might take minutes.
    Where there are none, those of `models_dir`.
    """
    holder = next((folder for folder in path.parents if (folder / "args.json").is_file()), None)
    if holder:
        return f"it lies in the run {holder}"
    above = next((folder for folder in (path, *path.parents) if folder.is_dir()), path)
    missing = len(path.parts) - len(above.parts)
    for folder, pattern in ((above, "*/" * missing or "**/"), (models_dir, "**/")):
        runs = sorted(file.parent for file in folder.glob(f"{pattern}args.json"))
        if runs:
            path = folder
            break
    else:
        return f"there are no runs below {path if path.is_dir() else models_dir}"
    more = f" and {len(runs) - MOST_LISTED} more" if len(runs) > MOST_LISTED else ""
    return f"the runs below {path}: {', '.join(map(str, runs[:MOST_LISTED]))}{more}"
