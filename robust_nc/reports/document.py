"""Tables of a document that are those of generated files: `python -m robust_nc.reports.document`.

A line like

    <!-- from reproduction/small/verdicts.md, Claim 5, table 2 -->

names the file, the beginning of a level-two heading in it (left out: what stands before the first),
and which table there is meant; the table follows it. Each is written anew, and nothing else.
"""

import re
import sys
from pathlib import Path

from robust_nc.reports.output import write
from utils import InputError, run_script

DOCUMENT = Path(__file__).resolve().parents[2] / "REPRODUCTION.md"
MARK = re.compile(r"<!-- from (\S+?)(?:, ([^,]+))?, table (\d+) -->\n")
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def refresh(text: str, root: Path) -> str:
    """The document with its tables as the files below `root` have them.

    Raises:
        InputError: a file or a table that a line names is not there.
    """
    pieces, end = [], 0
    for mark in MARK.finditer(text):
        old = TABLE.match(text, mark.end())
        pieces += [text[end : mark.end()], table_of(mark, root)]
        end = old.end() if old else mark.end()
    return "".join((*pieces, text[end:]))


def table_of(mark: re.Match, root: Path) -> str:
    """The table that a line names."""
    name, heading, number = mark.groups()
    try:
        parts = re.split(r"^## ", (root / name).read_text(), flags=re.MULTILINE)
        part = next(p for p in parts[1:] if p.startswith(heading)) if heading else parts[0]
        return TABLE.findall(part)[int(number) - 1]
    except (OSError, StopIteration, IndexError) as error:
        raise InputError(f"{mark.group().strip()}: no such table") from error


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENT
    text = refresh(path.read_text(), path.resolve().parent)
    write(path, text)


if __name__ == "__main__":
    run_script(main)
