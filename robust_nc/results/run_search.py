"""The runs that lie below a folder, in words."""

import os
import time
from itertools import takewhile
from pathlib import Path

MOST_LISTED = 8
SEARCH_SECONDS = 2.0  # a search of everything might take minutes


def list_runs(path: Path, models_dir: Path = Path("models")) -> str:
    """The runs below a folder, or the nearest one above it that is there, in words.

    Of what lies in a run's folder, that run. Where there are none, or nothing of a relative path is
    there, those below `models_dir`: the current folder may hold copies of many runs.
    """
    for folder in path.parents:
        if (folder / "args.json").is_file():
            return f"it lies in the run {folder}"
    above = next((folder for folder in (path, *path.parents) if folder.is_dir()), path)
    for folder in (models_dir,) if above == Path() != path else (above, models_dir):
        if runs := _runs_below(folder):
            more = f" and {len(runs) - MOST_LISTED} more" if len(runs) > MOST_LISTED else ""
            return f"the runs below {folder}: {', '.join(runs[:MOST_LISTED])}{more}"
    return f"there are no runs below {path if path.is_dir() else models_dir}"


def _runs_below(folder: Path) -> list[str]:
    """Those that are seen within SEARCH_SECONDS."""
    end = time.monotonic() + SEARCH_SECONDS
    seen = takewhile(lambda _: time.monotonic() < end, os.walk(folder))
    return sorted(str(Path(path)) for path, _, files in seen if "args.json" in files)
