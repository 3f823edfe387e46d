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
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, fields
from pathlib import Path
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
    """The content of a JSON file, None if there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error


def write_rows(path: Path, row_type: type, rows: list) -> None:
    """A column per field of the rows' type; NaN is an empty cell."""
    with atomic_open(path) as file:
        file.write(_to_csv(row_type, rows, header=True))


LONGEST_LINE = 1 << 16  # bytes, of any table


def append_rows(path: Path, row_type: type, rows: list) -> None:
    """Put rows on disk beside their table, in a time that does not grow with it.

    They lie in a file of their own, which `read_appended` reads, until `write_rows` has made them a
    part of the table.

    Raises:
        InputError: they cannot be written.
    """
    beside = appended_file(path)
    try:
        with beside.open("a+b") as file:
            end = file.seek(max(0, file.tell() - LONGEST_LINE))
            end += file.read().rfind(b"\n") + 1
            file.truncate(end)  # without a line that a kill or a full disk cut off
            file.write(_to_csv(row_type, rows, header=end == 0))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{beside}: cannot be written: {error.strerror}") from error


def _to_csv(row_type: type, rows: list, header: bool) -> bytes:
    names = [field.name for field in fields(row_type)]
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    if header:
        writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow("" if value != value else value for value in values)
    return lines.getvalue().encode()


def appended_file(path: Path) -> Path:
    """Where `append_rows` puts the rows of a table."""
    return path.with_name(f".{path.name}.added")


def read_appended(path: Path, row_type: type) -> list:
    """What `append_rows` left beside a table; a last line that a kill cut off is not counted."""
    beside = appended_file(path)
    try:
        whole = beside.read_bytes().rpartition(b"\n")[0].decode()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise InputError(f"{beside}: damaged ({error}); move it away") from error
    return _parse_rows(beside, io.StringIO(whole, newline=""), row_type) if whole else []


def read_rows(path: Path, row_type: type) -> list:
    """Rows written by write_rows, the same floats to the last bit; [] if there is no file.

    A column that the file lacks has its field's default, so that tables of older versions stay
    readable: fields that are added later have one.

    Raises:
        InputError: the file is damaged, or has other columns than the fields of the row's type.
    """
    try:
        with path.open(newline="") as file:
            return _parse_rows(path, file, row_type)
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged ({error}); move it away") from error


def _parse_rows(path: Path, lines: Iterable[str], row_type: type) -> list:
    kinds = {field.name: field.type for field in fields(row_type)}
    needed = {field.name for field in fields(row_type) if field.default is MISSING}
    try:
        reader = csv.DictReader(lines, restval="cut off")
        found = reader.fieldnames or []
        if not needed <= set(found) or list(found) != [name for name in kinds if name in found]:
            raise InputError(f"{path}: its columns are not those of this version; move it away")
        rows = list(reader)
        if any(None in row for row in rows):
            raise ValueError("a line has too many cells")
        return [
            row_type(**{name: _parse(row[name], kinds[name]) for name in found}) for row in rows
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}); move it away") from error


def _parse(text: str, kind: Any) -> Any:
    return math.nan if not text and kind is float else kind(text)


def merge_rows(rows: list, added: list) -> list:
    """Rows with others added in place of equal keys, in the order of their keys."""
    replaced = {row.key for row in added}
    kept = [row for row in rows if row.key not in replaced]
    return sorted(kept + added, key=lambda row: row.key)


def lock_file(file: Any, wait: bool) -> bool:
    """Lock an open file until it is closed; whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
