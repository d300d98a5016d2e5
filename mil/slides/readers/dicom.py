"""DICOM files and folders -> the file that OpenSlide opens the whole slide from; labels and overviews are refused."""

import io
import warnings
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from mil.errors import SlideError
from mil.slides.readers.codecs import CONVERT, DECODE_ERRORS

SERIES = 0x0020_000E  # SeriesInstanceUID, the last of the elements that are looked at; they are in ascending order
CONVERT_DICOM = "with wsidicom, WsiDicom.open(FOLDER).save(OUT, transcoding=JpegSettings()) (docs/slides.md)"
LONGEST_BYTES = 2**16
DEFLATED = "1.2.840.10008.1.2.1.99"
BLOCK = 2**20  # bytes of one step of inflating
ZARR = (".zattrs", ".zgroup", "zarr.json")
NOT_VOLUME = ("LABEL", "OVERVIEW", "LOCALIZER")


def check_dicom(path: Path) -> None:
    """`SlideError('not_a_slide')` where the file is of another modality or is a slide's label, overview or segmentation."""
    header = _header(path)
    kind, modality = header["ImageType"], header["Modality"]
    flavours = _flavours(kind)
    for flavour in NOT_VOLUME:
        if flavour in flavours:
            raise SlideError(
                "not_a_slide", f"{path.name}: is the {flavour.lower()} image of a slide (DICOM ImageType {kind})"
            )
    if modality and modality not in {"SM", "GM", "OT"}:
        raise SlideError("not_a_slide", f"{path.name}: its DICOM modality is {modality}, not SM (slide microscopy)")


def entry_of(folder: Path) -> Path:
    """The file of a folder to open its one slide from: the first, by name, that is a level of a DICOM slide."""
    if folder.suffix.lower() == ".zarr" or any((folder / name).is_file() for name in ZARR):
        raise SlideError("unsupported", f"{folder.name}: is a Zarr folder; convert it: {CONVERT}")
    levels: dict[str, list[Path]] = {}
    refused = ""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if not is_dicom(file):
            continue
        try:
            check_dicom(file)
        except SlideError as error:
            refused = str(error)
            continue
        levels.setdefault(_header(file)["SeriesInstanceUID"], []).append(file)
    if not levels:
        raise SlideError(
            "not_a_slide", f"{folder.name}: the folder holds no DICOM slide" + (f" ({refused})" if refused else "")
        )
    if len(levels) > 1:
        raise SlideError(
            "not_a_slide",
            f"{folder.name}: the folder holds {len(levels)} DICOM series; give each slide a folder of its own",
        )
    (files,) = levels.values()
    if len({file.parent for file in files}) > 1:  # those of one folder are read together
        raise SlideError(
            "unsupported",
            f"{folder.name}: the levels of its DICOM series lie in several folders; put its files into one",
        )
    return files[0]


def flavours_of(path: Path) -> set[str]:
    """The values of a file's ImageType: VOLUME, LABEL, THUMBNAIL, ..."""
    return _flavours(_header(path)["ImageType"])


def siblings(path: Path) -> list[Path]:
    """The files beside a DICOM file that belong to the same series, itself among them; OpenSlide reads them together."""
    series = _header(path)["SeriesInstanceUID"]
    beside = sorted(file for file in path.parent.iterdir() if file.is_file() and is_dicom(file))
    return [file for file in beside if file == path or (series and _header(file)["SeriesInstanceUID"] == series)]


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's magic word after its preamble."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def opened(path: Path, file: BinaryIO, inflated: BinaryIO, most: int) -> tuple[BinaryIO, str]:
    """(`file`, its transfer syntax); of a data set that is deflated as a whole, at least its first `most` bytes in `inflated`."""
    from pydicom import filereader  # here, because only DICOM files need it and it takes a fifth of a second

    meta = filereader.read_file_meta_info(path)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax != DEFLATED:
        return file, syntax
    file.seek(144 + int(meta.FileMetaInformationGroupLength))  # behind the preamble and that element itself
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while inflated.tell() < most and not inflater.eof:
        block = inflater.unconsumed_tail or file.read(BLOCK)
        if not block:
            raise ValueError("its deflated data end early")
        inflated.write(inflater.decompress(block, BLOCK))
    inflated.seek(0)
    return inflated, syntax


def elements(
    file: BinaryIO, syntax: str, names: Iterable[str], stop_when: Callable[[Any, str | None, int], bool]
) -> Any:
    """The elements of these names of what `opened` gives; the file then stands at the tag at which `stop_when` says so."""
    from pydicom import filereader
    from pydicom.tag import Tag

    tags: list[Any] = [Tag(name) for name in names]
    if syntax == DEFLATED:
        return filereader.read_dataset(file, False, True, stop_when=stop_when, specific_tags=tags)
    return filereader.read_partial(file, stop_when=stop_when, specific_tags=tags)


def header_errors() -> tuple[type[Exception], ...]:
    """What pydicom raises on headers that are not what they should be."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    others = OSError, EOFError, AttributeError, NotImplementedError, OverflowError, RecursionError
    return InvalidDicomError, BytesLengthException, *DECODE_ERRORS, *others


def _flavours(kind: str) -> set[str]:
    return set(kind.upper().split("\\"))


def _header(path: Path) -> dict[str, str]:
    """ImageType (values parted by a backslash), Modality and SeriesInstanceUID of a file, blank where it has none that can be read."""
    state = path.stat()
    return _header_read(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=2**14)  # every slide of a folder asks for the headers of all its files, several times
def _header_read(path: Path, *_state: int) -> dict[str, str]:
    """`_header` of a file in this state. Reading stops long before the pixels and the tables of frames."""

    def is_behind(tag: int, _: str | None, length: int) -> bool:
        return tag > SERIES or (length > LONGEST_BYTES and length != 0xFFFFFFFF)

    names = ("ImageType", "Modality", "SeriesInstanceUID")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values in elements that are not looked at
            header = elements(*opened(path, file, io.BytesIO(), LONGEST_BYTES), names, is_behind)
            values = {name: header.get(name) or "" for name in names}
    except header_errors():
        return dict.fromkeys(names, "")
    return {name: value if isinstance(value, str) else "\\".join(map(str, value)) for name, value in values.items()}
