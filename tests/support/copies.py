"""Copies of folders that another process may be writing to."""

import shutil
from pathlib import Path


def copied(folder: Path, target: Path) -> Path:
    """A copy of a folder of the shared results, without the pictures that another process is writing at this moment."""
    return Path(shutil.copytree(folder, target, symlinks=True, ignore=shutil.ignore_patterns(".*.partial")))
