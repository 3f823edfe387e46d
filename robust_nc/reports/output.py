"""Files that plot.py and reproduce.py leave: each is whole or not there, and a line tells it."""

from pathlib import Path

from utils import atomic_open, logger


def write(path: Path, content: str | bytes) -> None:
    """A file, and one line of the log."""
    with atomic_open(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    logger.info(f"wrote {path}")
