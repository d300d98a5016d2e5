"""DICOM files and folders -> the file that OpenSlide opens the whole slide from; labels and overviews are refused."""

from pathlib import Path

from mil.errors import SlideError

HEADER_BYTES = 2**18  # the elements looked for stand before the pixels, within the first few kilobytes
IMAGE_TYPE, MODALITY, SERIES = b"\x08\x00\x08\x00", b"\x08\x00\x60\x00", b"\x20\x00\x0e\x00"
NOT_VOLUME = ("LABEL", "OVERVIEW", "LOCALIZER")


def check_dicom(path: Path) -> None:
    """`SlideError('not_a_slide')` where the file is of another modality or is a slide's label, overview or segmentation."""
    header = _header(path)
    kind, modality = _text(header, IMAGE_TYPE), _text(header, MODALITY)
    flavours = kind.upper().split("\\")
    for flavour in NOT_VOLUME:
        if flavour in flavours:
            raise SlideError(
                "not_a_slide", f"{path.name}: is the {flavour.lower()} image of a slide (DICOM ImageType {kind})"
            )
    if modality and modality not in {"SM", "GM", "OT"}:
        raise SlideError("not_a_slide", f"{path.name}: its DICOM modality is {modality}, not SM (slide microscopy)")


def entry_of(folder: Path) -> Path:
    """The file of a folder to open its one slide from: the first, by name, that is a level of a DICOM slide."""
    levels: dict[str, Path] = {}
    refused = ""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if not is_dicom(file):
            continue
        try:
            check_dicom(file)
        except SlideError as error:
            refused = str(error)
            continue
        levels.setdefault(_text(_header(file), SERIES), file)
    if not levels:
        raise SlideError(
            "not_a_slide", f"{folder.name}: the folder holds no DICOM slide" + (f" ({refused})" if refused else "")
        )
    if len(levels) > 1:
        raise SlideError(
            "not_a_slide",
            f"{folder.name}: the folder holds {len(levels)} DICOM series; give each slide a folder of its own",
        )
    return next(iter(levels.values()))


def siblings(path: Path) -> list[Path]:
    """The files beside a DICOM file that belong to the same series, itself among them; OpenSlide reads them together."""
    series = _text(_header(path), SERIES)
    beside = sorted(file for file in path.parent.iterdir() if file.is_file() and is_dicom(file))
    return [file for file in beside if file == path or (series and _text(_header(file), SERIES) == series)]


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's magic word after its preamble."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _header(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER_BYTES)


def _text(header: bytes, tag: bytes) -> str:
    """The first value of a text element, little endian, explicit or implicit; empty where it is not there."""
    at = header.find(tag, 132)
    if at < 0 or at + 8 > len(header):
        return ""
    explicit = header[at + 4 : at + 6].isalpha()
    length = int.from_bytes(header[at + 6 : at + 8] if explicit else header[at + 4 : at + 8], "little")
    return header[at + 8 : at + 8 + min(length, 256)].decode("latin-1").strip(" \0")
