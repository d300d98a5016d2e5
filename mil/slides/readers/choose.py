"""A path -> the reader that opens it, by what the file holds, never by its name's ending."""

import re
from pathlib import Path

from mil.errors import SlideError
from mil.files import why_no_file
from mil.slides.readers import Reader
from mil.slides.readers.dicom import check_dicom, entry_of
from mil.slides.readers.dicom_levels import DicomReader
from mil.slides.readers.image import ImageReader
from mil.slides.readers.openslide import OpenSlideReader, vendor_of
from mil.slides.readers.tiff import PLAIN, TiffReader, check_directories, is_ome

TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"
MIRAX, MIRAX_INI = ".mrxs", "Slidedat.ini"
VMS = b"Virtual Microscope Specimen]"  # the index of a Hamamatsu slide of several files, uncompressed (VMU) or not
NAMED = re.compile(r"^\s*(?:ImageFile|MapFile|OptimisationFile|MacroImage)[^=\n]*=\s*([^\0\n]*[^\0\s])", re.MULTILINE)
LONGEST_INDEX = 1 << 20
OLYMPUS = ".vsi"
VIPS = "convert it: vips copy IN OUT.tif[tile,pyramid]"
NO_SLIDES = {  # (where in the file, bytes) -> what that is and what to do
    (0, b"PK\3\4"): "is a ZIP archive; unpack it",
    (0, b"\x1f\x8b"): "is a gzip archive; unpack it",
    (0, b"BZh"): "is a bzip2 archive; unpack it",
    (0, b"7z\xbc\xaf"): "is a 7-Zip archive; unpack it",
    (0, b"Rar!"): "is a RAR archive; unpack it",
    (257, b"ustar"): "is a tar archive; unpack it",
    (0, b"version https://git-lfs"): "is a pointer of Git LFS, not the slide; fetch it: git lfs pull",
    (0, b"%PDF"): "is a PDF; export the slide's pixels from the scanner's software",
    (0, b"<!DOCTYPE html"): "is a web page, not the slide; download it again, logged in",
    (0, b"<html"): "is a web page, not the slide; download it again, logged in",
    (0, b"<DataObject"): "is a Philips iSyntax file; convert it: isyntax2raw and raw2ometiff, or export it as TIFF",
    (4, b"jP  "): f"is a JPEG 2000 image; {VIPS}",
    (0, b"\xff\x4f\xff\x51"): f"is a JPEG 2000 image; {VIPS}",
    (0, b"BM"): f"is a BMP image; {VIPS}",
    (0, b"GIF8"): f"is a GIF image; {VIPS}",
    (8, b"WEBP"): f"is a WebP image; {VIPS}",
}


def reader_of(path: Path) -> Reader:
    """An open reader; `SlideError` with the state and the reason where there is none for this path."""
    if path.is_dir():
        return _dicom(entry_of(path))
    if why := why_no_file(path):
        raise SlideError("unreadable", f"{path}: {why}; check the sheet's path column")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise SlideError("unreadable", f"{path.name}: {error.strerror or error}") from error
    refuse_parts(path)
    if not start:
        raise SlideError("unreadable", f"{path.name}: is empty (0 bytes); copy it again")
    if start[:4] in TIFF:
        return _tiff(path)
    if VMS in start:
        check_vms(path)
    if path.suffix.lower() == MIRAX and (start[:3] == JPEG or path.with_suffix("").is_dir()):
        check_mirax(path)
    elif start[:4] == PNG or start[:3] == JPEG:
        return ImageReader(path)
    if start[128:132] == b"DICM":
        check_dicom(path)
        return _dicom(path)
    for (at, magic), said in NO_SLIDES.items():
        if start[at : at + len(magic)] == magic:
            raise SlideError("not_a_slide", f"{path.name}: {said}")
    return OpenSlideReader(path)


def check_mirax(path: Path) -> None:
    """`SlideError('unreadable')` where a MIRAX slide's ending is in upper case or files are missing of the folder that holds its pixels."""
    folder = path.with_suffix("")
    if why := why_no_file(folder / MIRAX_INI):
        raise SlideError(
            "unreadable",
            f"{path.name}: its pixels lie in the folder {folder.name} beside it, whose {MIRAX_INI} {why}; copy the folder too",
        )
    settings = (folder / MIRAX_INI).read_text("utf-8-sig", "replace")
    listed = re.findall(r"^(?:FILE_\d+|INDEXFILE)\s*=\s*(.+?)\s*$", settings, re.MULTILINE)
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise SlideError(
            "unreadable",
            f"{path.name}: {len(missing)} of the {len(listed)} files that {folder.name}/{MIRAX_INI} lists are missing "
            f"({', '.join(missing[:3])}); copy the folder again",
        )
    if path.suffix != MIRAX:
        raise SlideError("unreadable", f"{path.name}: OpenSlide reads it under the ending {MIRAX} only; rename it")


def check_vms(path: Path) -> None:
    """`SlideError('unreadable')` where a file that the index of a VMS or VMU slide names is a pipe: OpenSlide would wait for ever."""
    for part in named_in(path):
        if (why := why_no_file(part)) and part.exists():
            raise SlideError("unreadable", f"{path.name}: its file {part.name} {why}; copy the slide's files again")


def named_in(path: Path) -> set[Path]:
    """The files that the index of a VMS or VMU slide names (`ImageFile(1,0)=a(1,0).jpg`), whether they are there or not."""
    with open(path, "rb") as file:
        names = NAMED.findall(file.read(LONGEST_INDEX).decode("utf-8", "replace"))
    return {path.parent / Path(name).name for name in names}


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
    if path.name.lower() == MIRAX_INI.lower() or (
        path.suffix.lower() == ".dat" and (path.parent / MIRAX_INI).is_file()
    ):
        raise SlideError(
            "not_a_slide",
            f"{path.name}: is a part of a MIRAX slide; give {path.parent.name}.mrxs, which lies beside its folder",
        )


def _dicom(path: Path) -> Reader:
    for beside in path.parent.iterdir():  # OpenSlide opens them all, and would wait for ever for a pipe
        if beside.exists() and not beside.is_dir() and (why := why_no_file(beside)):
            raise SlideError("unreadable", f"{path.name}: {beside.name} beside it {why}; remove that")
    try:
        return OpenSlideReader(path)
    except SlideError:  # that it is damaged, or stored in a way that only the other reader knows
        return DicomReader(path)


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
