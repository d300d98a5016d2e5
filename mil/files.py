"""Files that are complete or absent: written under a temporary name, flushed, renamed."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mil.errors import MilError

# Names that become file names: no separators, no leading dash or dot, no surprises on any file system.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def check_name(kind: str, name: str, where: str) -> str:
    """`name` if it can be part of a path on every system; a `MilError` naming the row otherwise."""
    if not SAFE_NAME.match(name):
        raise MilError(
            f"{where}: {kind} {name!r} cannot be a file name; use letters, digits, '.', '_' and '-' "
            "(first a letter or digit, at most 128)"
        )
    return name


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; on a clean exit it is flushed and takes `path`'s place, else it is removed."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MilError(f"{path}: cannot be written ({error.strerror or error}); nothing was left there") from error
    finally:
        with suppress(OSError):  # nothing to remove, or no folder to remove it from
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically (UTF-8, newlines as they are)."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", newline="") as handle:
        handle.write(text)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
