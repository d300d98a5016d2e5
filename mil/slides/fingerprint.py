"""A slide's files -> one SHA-256, so that results say which bytes they come from.

A file of more than `WHOLE` bytes is hashed by a sample unless all of it is asked for: its size, its first and last `END` bytes, every
TIFF directory with the offsets and lengths of all tiles, and `BLOCKS` blocks of `BLOCK` bytes spread evenly. Any change of size, of a
header or of the layout of the tiles changes it, and so does another scan; a few altered bytes inside a tile may not.
"""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from mil.errors import SlideError
from mil.files import sha256_of, why_no_file
from mil.slides.readers.choose import named_in
from mil.slides.readers.dicom import entry_of, is_dicom, siblings
from mil.slides.readers.directories import MOST, directories

MAX_FILES = 100_000
WHOLE = 64 << 20
END = 1 << 20
BLOCKS, BLOCK = 64, 64 << 10
DIRECTORIES = 1000  # more no scanner writes


def fingerprint(path: str | Path, full: bool = False) -> str:
    """SHA-256 of a slide in hex; of a slide that is several files, over their names and hashes. `full`: of every byte."""
    path = Path(path)
    files = files_of(path)
    if len(files) == 1:
        return _of_file(files[0], full)
    digest = hashlib.sha256()
    top = files[0].parent if path.is_dir() else path.parent
    for file in files:
        digest.update(f"{file.relative_to(top).as_posix()}\0{_of_file(file, full)}\n".encode())
    return digest.hexdigest()


def require_same(path: Path, known: str) -> None:
    """`SlideError('changed')` where the slide's bytes are no longer those of the fingerprint `known`, of a sample or of all of them."""
    if known not in {fingerprint(path), ""} and (size_of(path) <= WHOLE or known != fingerprint(path, full=True)):
        raise SlideError(
            "changed", f"{path.name}: is not the file that was checked (its bytes changed); run `mil check` again"
        )


def _of_file(path: Path, full: bool) -> str:
    size = path.stat().st_size
    if full or size <= WHOLE:
        return sha256_of(path)
    digest = hashlib.sha256(f"sample of {size} bytes\n".encode())
    with open(path, "rb") as file:
        for start, length in [(0, END), (size - END, END), *((size * k // BLOCKS, BLOCK) for k in range(BLOCKS))]:
            digest.update(os.pread(file.fileno(), length, start))
        for part in _directories(file, size):
            digest.update(part)
    return digest.hexdigest()


def _directories(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The bytes of every directory of a TIFF file and of the values it points to; nothing for other files."""
    seen: set[int] = set()
    for at, table, values in islice(directories(file), DIRECTORIES):
        if at in seen:
            return
        seen.add(at)
        yield table
        for start, length in values:
            if length <= MOST and 0 < start <= size - length:
                yield os.pread(file.fileno(), length, start)


def state_on_disk(path: Path) -> str:
    """Bytes and latest time of a slide's files, `bytes:ns`: changes when the slide is replaced; no file is opened."""
    data = path.with_suffix("")
    if path.is_dir() or (path.suffix.lower() == ".mrxs" and data.is_dir()):
        files = _inside(path) if path.is_dir() else [path, *_inside(data)]
        status = [file.stat() for file in files]
        return f"{sum(stat.st_size for stat in status)}:{max(stat.st_mtime_ns for stat in status)}"
    stat = path.stat()
    has_parts = path.suffix.lower() in {".dcm", ".dicom", "", ".vms", ".vmu"}  # beside it, perhaps
    return f"{stat.st_size}:{max(stat.st_mtime_ns, path.parent.stat().st_mtime_ns if has_parts else 0)}"


def files_of(path: Path) -> list[Path]:
    """All files that belong to the slide at `path`, sorted: a DICOM series, a MIRAX slide's data folder, a VMS slide's parts."""
    if path.is_dir():
        files = _inside(path)
        return siblings(entry_of(path)) if any(is_dicom(file) for file in files) else files
    if why := why_no_file(path):
        raise SlideError("unreadable", f"{path}: {why}; check the sheet's path column")
    data = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and data.is_dir():
        return [path, *_inside(data)]
    if path.suffix.lower() in {".vms", ".vmu"}:
        return sorted({path, *(part for part in named_in(path) if part.is_file())})
    if is_dicom(path):
        return siblings(path)
    return [path]


def size_of(path: Path) -> int:
    """Bytes of all files that belong to the slide."""
    return sum(file.stat().st_size for file in files_of(path))


def _inside(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise SlideError("unreadable", f"{folder}: is an empty folder")
    if len(files) > MAX_FILES:
        raise SlideError("unreadable", f"{folder}: holds {len(files)} files; a slide has fewer than {MAX_FILES}")
    return files
