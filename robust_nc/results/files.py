"""Files that are whole or not there: atomic writing, tables of rows, locks, free disk, the writer.

A table is a CSV file with a column per field of a dataclass, its row type.
"""

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import MISSING, fields
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils import InputError, Stopped, atomic_open, logger


def free_disk(path: Path) -> int:
    """Free bytes where a folder lies, or will."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256(path: Path) -> str:
    """The SHA-256 of a file, which tells it from every other one."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    """A JSON file; what JSON does not know, a path for example, as its text."""
    with atomic_open(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict | None:
    """The object that a JSON file holds, None if there is no such file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object: move it away")
    return content


def write_rows(path: Path, row_type: type, rows: list) -> None:
    """A column per field of the rows' type; NaN is an empty cell."""
    with atomic_open(path) as file:
        file.write(b"".join([_header(row_type), *_lines(row_type, rows)]))


class Table:
    """The rows of a CSV file in memory, by their `key`, each of which is made into a line once.

    Args:
        rows: those that the file holds already; of two with the same key the later one counts.
    """

    def __init__(self, path: Path, row_type: type, rows: Iterable = ()):
        self.path = path
        self.row_type = row_type
        self._rows = {row.key: row for row in rows}
        self._lines: dict[tuple, bytes] = {}  # as far as they are made

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list:
        """In the order of their keys."""
        return [self._rows[key] for key in sorted(self._rows)]

    def add(self, rows: list, beside: Path | None = None) -> None:
        """Put rows on disk, in place of those with the same keys: the whole table is written.

        Args:
            beside: a file that their lines are appended to instead, until the next `write`.
        """
        added = {row.key: row for row in rows}
        lines = _lines(self.row_type, added.values())
        self._rows |= added
        self._lines |= zip(added, lines, strict=True)
        if beside is None:
            self.write()
        else:
            _append(beside, _header(self.row_type), b"".join(lines))

    def drop(self, is_gone: Callable[[Any], bool]) -> int:
        """Take rows out, of the file with the next `write`; returns how many."""
        gone = [key for key, row in self._rows.items() if is_gone(row)]
        for key in gone:
            del self._rows[key]
            self._lines.pop(key, None)
        return len(gone)

    def write(self) -> None:
        """Put all rows on disk; the file is whole at any moment."""
        new = {key: row for key, row in self._rows.items() if key not in self._lines}
        self._lines |= zip(new, _lines(self.row_type, new.values()), strict=True)
        with atomic_open(self.path) as file:
            file.write(_header(self.row_type))
            file.write(b"".join([self._lines[key] for key in sorted(self._rows)]))


def _append(path: Path, header: bytes, lines: bytes) -> None:
    """Lines at the end of a file, on disk; a kill meanwhile may cut off the last of them."""
    try:
        with path.open("ab") as file:
            file.write(lines if file.tell() else header + lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _header(row_type: type) -> bytes:
    return _csv_lines([[field.name for field in fields(row_type)]])[0]


def _lines(row_type: type, rows: Iterable) -> list[bytes]:
    values_of = attrgetter(*(field.name for field in fields(row_type)))
    return _csv_lines(["" if v != v else v for v in values_of(row)] for row in rows)


def _csv_lines(rows: Iterable[Iterable]) -> list[bytes]:
    lines: list[str] = []
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\n").writerows(rows)
    return [line.encode() for line in lines]


def read_rows(path: Path, row_type: type, *, maybe_cut_off: bool = False) -> list:
    """Rows written by write_rows, the same floats to the last bit; [] if there is no file.

    A column that the file lacks has its field's default, so that tables of older versions stay
    readable: fields that are added later have one.

    Args:
        maybe_cut_off: the file was written line by line, and what follows its last whole line does
            not count.

    Raises:
        InputError: the file is damaged, or has other columns than the fields of the row's type.
    """
    try:
        content = path.read_bytes()
        if maybe_cut_off:
            content = content[: content.rfind(b"\n") + 1]
        return _parse_rows(path, content.decode(), row_type) if content or not maybe_cut_off else []
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged ({error}); move it away") from error


def _parse_rows(path: Path, text: str, row_type: type) -> list:
    types = {field.name: field.type for field in fields(row_type)}
    needed = {field.name for field in fields(row_type) if field.default is MISSING}
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="cut off")
        columns = reader.fieldnames or []
        if not needed <= set(columns) or columns != [name for name in types if name in columns]:
            raise InputError(f"{path}: its columns are not those of this version; move it away")
        rows = list(reader)
        if any(None in row for row in rows):
            raise ValueError("a line has too many cells")
        return [
            row_type(**{name: _parse(row[name], types[name]) for name in columns}) for row in rows
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}); move it away") from error


def _parse(text: str, value_type: Any) -> Any:
    if value_type is float and not text:
        return math.nan
    if value_type is bool:
        if text not in ("True", "False"):
            raise ValueError(f"{text!r} is neither True nor False")
        return text == "True"
    return value_type(text)


@contextmanager
def locked(folder: Path, script: str) -> Iterator[None]:
    """Hold a folder, which is made if need be, alone inside.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        if not lock_file(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder} is in use by {holder}: wait for it, or stop it")
        file.truncate(0)
        file.write(
            f"{script} on {socket.gethostname()}, process {os.getpid()}, since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
        file.flush()
        yield


def lock_file(file: Any) -> bool:
    """Lock an open file until it is closed; whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logger.warning(f"{file.name}: cannot be locked ({error.strerror}): let one run write here")
    return True


class Writer:
    """Writes in a thread of its own, so that training goes on; at most one epoch later.

    An error there is raised by the next `submit`, or at the end of the `with` block.
    """

    def __enter__(self) -> "Writer":
        self._thread = ThreadPoolExecutor(1)
        self._last: Future | None = None
        return self

    def submit(self, write: Callable, *arguments: Any) -> None:
        self._wait()
        self._last = self._thread.submit(write, *arguments)

    def __exit__(self, error: type | None, *_: Any) -> None:
        self._thread.shutdown(wait=True)  # what was handed over is written in any case
        if error is None or issubclass(error, Stopped):  # which says that it is
            self._wait()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
