"""A path -> the reader that opens it, by what the file holds, never by its name's ending."""

from pathlib import Path

from mil.errors import SlideError
from mil.slides.readers import Reader
from mil.slides.readers.dicom import check_dicom, entry_of
from mil.slides.readers.image import ImageReader
from mil.slides.readers.openslide import OpenSlideReader, vendor_of
from mil.slides.readers.tiff import PLAIN, TiffReader, check_directories, is_ome

TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"
MIRAX_INI = ".mrxs"
OLYMPUS = ".vsi"


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
    refuse_parts(path)
    if not start:
        raise SlideError("unreadable", f"{path.name}: is empty (0 bytes); copy it again")
    if start[:4] in TIFF:
        return _tiff(path)
    if start[:4] == PNG or (start[:3] == JPEG and path.suffix.lower() != MIRAX_INI):
        return ImageReader(path)
    if start[128:] == b"DICM":
        check_dicom(path)
    return OpenSlideReader(path)


def refuse_parts(path: Path) -> None:
    """`SlideError` where the file is a preview or a part of a slide whose pixels lie in other files."""
    data = path.parent / f"_{path.stem}_"
    parts = sorted(data.glob("stack*/frame*.ets")) if data.is_dir() else []
    if parts or path.suffix.lower() == OLYMPUS:
        where = parts[0].relative_to(path.parent) if parts else f"_{path.stem}_/stack*/frame_t.ets"
        raise SlideError(
            "unsupported",
            f"{path.name}: is the preview of an Olympus slide, its pixels are in {where}; convert it: "
            f"bfconvert -series N {path.name} {path.stem}.ome.tif (showinf -nopix says which N), or QuPath: File, Export "
            "images, OME TIFF",
        )
    if path.name.lower() == "slidedat.ini" or (
        path.suffix.lower() == ".dat" and (path.parent / "Slidedat.ini").is_file()
    ):
        raise SlideError(
            "not_a_slide",
            f"{path.name}: is a part of a MIRAX slide; give {path.parent.name}.mrxs, which lies beside its folder",
        )


def _tiff(path: Path) -> Reader:
    check_directories(path)
    if is_ome(path):
        return TiffReader(path)
    vendor = vendor_of(path)
    try:
        behind = OpenSlideReader(path)
    except SlideError:
        if vendor is not None and vendor not in PLAIN:  # what a plain reader would find in it is not the slide
            raise
        return TiffReader(path)
    if behind.header.format not in PLAIN:
        return behind
    return TiffReader(path, behind)
