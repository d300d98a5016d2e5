"""A slide's files -> one SHA-256, so that results say which bytes they come from."""

import hashlib
from pathlib import Path

from mil.errors import SlideError
from mil.files import sha256_of
from mil.slides.readers.dicom import entry_of, is_dicom, siblings

MAX_FILES = 100_000


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a slide's bytes in hex; of a slide that is several files, over their names and hashes."""
    path = Path(path)
    files = files_of(path)
    if len(files) == 1:
        return sha256_of(files[0])
    digest = hashlib.sha256()
    top = files[0].parent if path.is_dir() else path.parent
    for file in files:
        digest.update(f"{file.relative_to(top).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """All files that belong to the slide at `path`, sorted: a DICOM series, a MIRAX slide's data folder, a VMS slide's parts."""
    if path.is_dir():
        files = _inside(path)
        return siblings(entry_of(path)) if any(is_dicom(file) for file in files) else files
    if not path.is_file():
        raise SlideError("unreadable", f"{path}: is not a file or folder that exists; check the sheet's path column")
    data = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and data.is_dir():
        return [path, *_inside(data)]
    if path.suffix.lower() in {".vms", ".vmu"}:
        return sorted(file for file in path.parent.iterdir() if file.is_file() and file.name.startswith(path.stem))
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
