"""A path -> the reader that opens it, by what the file holds, never by its name's ending."""

from pathlib import Path

from mil.errors import SlideError
from mil.slides.readers import Reader
from mil.slides.readers.dicom import check_dicom, entry_of
from mil.slides.readers.image import ImageReader
from mil.slides.readers.openslide import OpenSlideReader
from mil.slides.readers.tiff import PLAIN, TiffReader, is_ome

TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"
MIRAX_INI = ".mrxs"


def reader_of(path: Path) -> Reader:
    """An open reader; `SlideError` with the state and the reason where there is none for this path."""
    if path.is_dir():
        return OpenSlideReader(entry_of(path))
    if not path.is_file():
        kind = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise SlideError("unreadable", f"{path}: {kind}; check the sheet's path column")
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError as error:
        raise SlideError("unreadable", f"{path.name}: {error.strerror or error}") from error
    if not start:
        raise SlideError("unreadable", f"{path.name}: is empty (0 bytes); copy it again")
    if start[:4] in TIFF:
        return _tiff(path)
    if start[:4] == PNG or (start[:3] == JPEG and path.suffix.lower() != MIRAX_INI):
        return ImageReader(path)
    if start[128:] == b"DICM":
        check_dicom(path)
    return OpenSlideReader(path)


def _tiff(path: Path) -> Reader:
    if is_ome(path):
        return TiffReader(path)
    try:
        behind = OpenSlideReader(path)
    except SlideError:
        return TiffReader(path)
    if behind.header.format not in PLAIN:
        return behind
    return TiffReader(path, behind)
