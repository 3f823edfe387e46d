"""Every file that a run leaves, and the lock on its folder.

model_{epoch}.pth   weights alone, by epoch from 0
resume.pth          an epoch's weights and optimiser, and what is done of the next: to go on with
history.csv         a row per epoch (EpochSummary)
args.json           the flags of the run and what it was made with
results/            metrics.csv (Record), the published .npy series made from it, the TABLES of a
                    sweep and its eval_args.json; what a sweep under way found is in .TABLE.added
output.log, eval.log
"""

import math
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robust_nc.results.files import (
    append_rows,
    appended_file,
    lock_file,
    merge_rows,
    read_appended,
    read_json,
    read_rows,
    write_json,
    write_rows,
)
from robust_nc.results.records import (
    TABLES,
    EpochSummary,
    Record,
    as_now,
    at_epsilon,
    swept_by_eval,
)
from robust_nc.results.series import published_series, series_names
from utils import InputError, atomic_open

# What of args.json tells where things lay, which is no part of a result.
PLACES = {"data_dir", "models_dir", "data_url", "out"}


class RunFolder:
    """The folder of one run. The tables are the truth, from which the .npy series are written.

    Args:
        standard: whether the run was trained the standard way, for the published series.
        results: where the results go, if not into `path`/results.
    """

    def __init__(self, path: Path, *, standard: bool, results: Path | None = None):
        self.path = path
        self.results = results or path / "results"
        self.standard = standard
        self.records: list[Record] = []
        self.history: list[EpochSummary] = []

    @property
    def resume_file(self) -> Path:
        return self.path / "resume.pth"

    @property
    def args_file(self) -> Path:
        return self.path / "args.json"

    @property
    def sweep_file(self) -> Path:
        return self.results / "eval_args.json"

    def checkpoint(self, epoch: int) -> Path:
        return self.path / f"model_{epoch}.pth"

    def epochs(self) -> list[int]:
        """Epochs of the checkpoints in the folder, ascending."""
        names = [path.stem.removeprefix("model_") for path in self.path.glob("model_*.pth")]
        return sorted(int(name) for name in names if name.isdigit())

    def holds_run(self) -> bool:
        """Whether a former run left checkpoints or records here."""
        table = self.table(Record)
        files = (self.resume_file, self.path / "history.csv", table, appended_file(table))
        return bool(self.epochs()) or any(file.exists() for file in files)

    def cut_off_in_first_epoch(self) -> bool:
        """Whether all there is is of a first epoch that was killed before resume.pth was there."""
        rows = [*self.rows(Record), *read_rows(self.path / "history.csv", EpochSummary)]
        epochs = {*self.epochs(), *(row.epoch for row in rows)}
        return not self.resume_file.exists() and epochs <= {0}

    def trained_with(self) -> dict[str, Any]:
        """What args.json tells; {} where there is none."""
        return read_json(self.args_file) or {}

    def epsilon(self) -> float:
        """What the run was trained with, in the units of --epsilon; NaN where nothing tells it."""
        told = read_json(self.args_file) or read_json(self.sweep_file) or {}
        of_path = re.search(r"/eps([\d.]+)/[^/]+/[^/]+$", str(self.path.absolute()))
        return float(told["epsilon"] if "epsilon" in told else of_path[1] if of_path else math.nan)

    def open(self) -> None:
        """Make the folder and read the records that are in it already."""
        self.results.mkdir(parents=True, exist_ok=True)
        self._read()

    @contextmanager
    def lock(self, script: str) -> Iterator[None]:
        """Hold the folder alone inside; it is made if need be.

        Raises:
            InputError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            if not lock_file(file, wait=False):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(f"{self.path} is in use by {holder}: wait for it, or stop it")
            file.truncate(0)
            file.write(
                f"{script} on {socket.gethostname()}, process {os.getpid()}, since "
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            file.flush()
            for folder in (self.path, self.results):
                for left_by_a_killed_run in folder.glob(".*.tmp"):
                    left_by_a_killed_run.unlink(missing_ok=True)
            yield

    # Recording

    def add(self, records: list[Record], summary: EpochSummary | None = None) -> None:
        """Put records into metrics.csv, and an epoch into history.csv, in place of equal keys."""
        with self._turn():
            self._read()
            self.records = merge_rows(self.records, records)
            if summary is not None:
                self.history = merge_rows(self.history, [summary])
                write_rows(self.path / "history.csv", EpochSummary, self.history)
            self._write_records()

    def append(self, rows: list) -> None:
        """Put rows of one type on disk, which `settle` puts into their table; in milliseconds."""
        row_type = type(rows[0])
        with self._turn():
            append_rows(self.table(row_type), row_type, rows)

    def settle(self) -> None:
        """Put what was appended into the tables, in place of equal keys, and into the series."""
        with self._turn():
            for row_type in TABLES:
                beside = appended_file(self.table(row_type))
                if not beside.exists():
                    continue
                if row_type is Record:
                    self._read()
                    self._write_records()
                else:
                    write_rows(self.table(row_type), row_type, self.rows(row_type))
                beside.unlink()

    def rows(self, row_type: type) -> list:
        """What is recorded in one of TABLES, settled or appended."""
        path, epsilon = self.table(row_type), self.epsilon()
        appended = read_appended(path, row_type)  # first: a sweep may settle it in between
        settled = read_rows(path, row_type)
        now = [[as_now(row, epsilon) for row in rows] for rows in (settled, appended)]
        return merge_rows(*now)

    def copy_tables(self, out: Path) -> None:
        """The tables, below `out` in a folder that is read like the run's own; no checkpoints."""
        place = out / Path(*self.path.resolve().parts[-6:])
        (place / "results").mkdir(parents=True, exist_ok=True)
        tables = {self.table(row_type): (row_type, self.rows(row_type)) for row_type in TABLES}
        history = self.path / "history.csv"
        tables[history] = (EpochSummary, read_rows(history, EpochSummary))
        for source, (row_type, rows) in tables.items():
            if rows:
                write_rows(place / source.relative_to(self.path), row_type, rows)
        for source in (self.args_file, self.sweep_file):
            told = read_json(source)
            if told:
                told = {name: value for name, value in told.items() if name not in PLACES}
                write_json(place / source.relative_to(self.path), told)

    def table(self, row_type: type) -> Path:
        return self.results / TABLES[row_type]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The ranks of a shared sweep take turns in adding to the results."""
        with (self.results / ".records.lock").open("a") as file:
            lock_file(file, wait=True)
            yield

    def _read(self) -> None:
        self.records = self.rows(Record)
        self.history = read_rows(self.path / "history.csv", EpochSummary)

    def _write_records(self) -> None:
        write_rows(self.table(Record), Record, self.records)
        for name, values in self._series().items():
            with atomic_open(self.results / f"{name}.npy") as file:
                np.save(file, values)

    def _series(self) -> dict[str, np.ndarray]:
        """Of the run's own epsilon alone."""
        records = at_epsilon(self.records, self.epsilon())
        return published_series(records, self.history, self.standard)

    # Deleting

    def to_delete(self, from_epoch: int = 0) -> list[Path]:
        """The checkpoints and resume.pth that a run which begins at that epoch has no use for."""
        files = [self.checkpoint(epoch) for epoch in self.epochs() if epoch >= from_epoch]
        return [self.resume_file] * self.resume_file.exists() + files

    def delete(self, from_epoch: int = 0) -> None:
        """Delete a former run from an epoch on: what it left, and nothing else."""
        for path in self.to_delete(from_epoch):
            path.unlink()
        if from_epoch > 0:
            return
        tables = [self.table(row_type) for row_type in TABLES]
        for path in (
            *tables,
            *map(appended_file, tables),
            self.path / "history.csv",
            *(self.results / f"{name}.npy" for name in series_names()),
            self.sweep_file,
            self.args_file,
            self.path / "output.log",
            self.path / "eval.log",
        ):
            path.unlink(missing_ok=True)

    def forget_from(self, epoch: int) -> None:
        """Take the rows of that epoch and later ones out of all tables, whoever recorded them."""
        self.settle()
        self._read()
        self._keep([record for record in self.records if record.epoch < epoch])
        if self.history:
            self.history = [row for row in self.history if row.epoch < epoch]
            write_rows(self.path / "history.csv", EpochSummary, self.history)
        for row_type in TABLES.keys() - {Record}:
            rows = self.rows(row_type)
            if rows:
                kept = [row for row in rows if row.epoch < epoch]
                write_rows(self.table(row_type), row_type, kept)

    def forget_sweep(self) -> dict[str, int]:
        """Take what eval.py recorded out of all tables; table -> how many rows that were."""
        self.settle()
        found = {}
        for row_type, name in TABLES.items():
            swept = [row for row in self.rows(row_type) if swept_by_eval(row)]
            found[name] = len(swept)
            if swept and row_type is not Record:
                self.table(row_type).unlink()
        if found[TABLES[Record]]:
            self._read()
            self._keep([record for record in self.records if not swept_by_eval(record)])
        return {name: count for name, count in found.items() if count}

    def _keep(self, records: list[Record]) -> None:
        """Go on with these records alone, and without the series that are gone with others."""
        before = self._series().keys()
        self.records = records
        self._write_records()
        for name in before - self._series().keys():
            (self.results / f"{name}.npy").unlink(missing_ok=True)
