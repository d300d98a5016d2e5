"""DICOM slides that OpenSlide does not read -> RGB levels, each a file of the series, whose frames are read by their offsets."""

import tempfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

from mil.errors import SlideError
from mil.slides.readers import MAX_PIXELS, Header, levels_of
from mil.slides.readers.codecs import Codec
from mil.slides.readers.dicom import CONVERT_DICOM, elements, flavours_of, header_errors, opened, siblings
from mil.slides.readers.dicom_codecs import frame_codec
from mil.slides.readers.dicom_frames import frame_grid
from mil.slides.readers.grids import GridReader, usable
from mil.slides.readers.segments import MAX_SEGMENTS, SegmentGrid
from mil.slides.scale import number

PIXELS = 0x7FE0_0010
LONGEST_REASON = 100  # letters; pydicom lists all bytes of an element that it cannot read
MOST_INFLATED = 2**32  # bytes of a data set that is deflated as a whole; pixels beyond them are said to be cut off
NOT_LEVELS = {"LABEL", "OVERVIEW", "LOCALIZER", "THUMBNAIL"}
NAMES = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "NumberOfFrames",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixFocalPlanes",
    "NumberOfOpticalPaths",
    "DimensionOrganizationType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "OpticalPathSequence",
    "InConcatenationTotalNumber",
    "ExtendedOffsetTable",
]
ALONE = ("TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths", "InConcatenationTotalNumber")
"""Elements of which more than 1 means several pictures of the same area, or one level in several files."""


class DicomReader(GridReader):
    """A DICOM slide whose headers pydicom reads; the levels are the files of its series but for labels, overviews and thumbnails."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            files = self._levels(path)
            files.sort(key=lambda level: -level[1].width)
            sizes = [(grid.width, grid.height) for _, grid in files]
            if len(set(sizes)) < len(sizes):
                raise _unsupported(
                    path.name, "several files of its series hold the same level; if one is a copy, remove it"
                )
            if not files:
                raise SlideError("not_a_slide", f"{path.name}: its series holds no level of a slide")
            levels = levels_of(sizes)
            grids: list[SegmentGrid | None] = [grid for _, grid in files]
            used = usable(levels, grids)
            self.grids = grids[:used]
            mpp_x, mpp_y = _scale(files[0][0])
            self.header = Header(
                format="dicom",
                levels=levels[:used],
                mpp_x=mpp_x,
                mpp_y=mpp_y,
                mpp_source="" if mpp_x is None else "dicom.PixelSpacing",
                objective_power=_power(files[0][0]),
            )
        except SlideError:
            self.close()
            raise
        except header_errors() as error:
            self.close()
            reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
            raise SlideError(
                "unreadable", f"{path.name}: its DICOM structure is broken ({reason}); copy it again"
            ) from error

    def _levels(self, path: Path) -> list[tuple[Any, SegmentGrid]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of odd values; what follows for the slide is said once
            return [self._level(file) for file in siblings(path) if not NOT_LEVELS & flavours_of(file)]

    def _level(self, path: Path) -> tuple[Any, SegmentGrid]:
        """The elements `NAMES` of a file, and its frames as a grid."""
        self.files += [open(path, "rb"), cast(BinaryIO, tempfile.TemporaryFile())]  # noqa: SIM115  open as long as the slide
        file, syntax = opened(path, self.files[-2], self.files[-1], MOST_INFLATED)
        header = elements(file, syntax, NAMES, lambda tag, vr, length: tag >= PIXELS)
        _check_kind(path.name, header)
        return header, frame_grid(path.name, file, header, syntax, _codec(path.name, header, syntax))


def _check_kind(name: str, header: Any) -> None:
    """`SlideError` where the file is not one level of a brightfield slide of a plausible size."""
    height, width, rows, columns = (
        int(header.get(element) or 0)
        for element in ("Rows", "Columns", "TotalPixelMatrixRows", "TotalPixelMatrixColumns")
    )
    if min(height, width, rows, columns) < 1:
        raise SlideError("not_a_slide", f"{name}: says no size of its frames or of the whole slide")
    if rows * columns > MAX_PIXELS or -(-rows // height) * -(-columns // width) > MAX_SEGMENTS:
        raise SlideError(
            "implausible_size", f"{name}: declares {columns} x {rows} pixels in frames of {width} x {height}"
        )
    samples, *bits = (header.get(element) for element in ("SamplesPerPixel", "BitsAllocated", "BitsStored"))
    if samples != 3 or bits != [8, 8] or header.get("PixelRepresentation"):
        raise SlideError(
            "not_a_slide",
            f"{name}: has {samples} sample(s) of {bits[1]} bits (DICOM colours {header.get('PhotometricInterpretation')}); "
            "a brightfield slide has red, green and blue of 8 bits",
        )
    several = [f"{element} {header.get(element)}" for element in ALONE if int(header.get(element) or 1) > 1]
    if several:
        raise _unsupported(name, f"{', '.join(several)}: only slides of one plane, one file per level, are read")


def _codec(name: str, header: Any, syntax: str) -> Codec:
    photometric = str(header.get("PhotometricInterpretation", ""))
    planar = int(header.get("PlanarConfiguration") or 0)
    codec = frame_codec(syntax, photometric, planar, int(header.Rows), int(header.Columns))
    if codec is None:
        raise _unsupported(name, f"its pixels (transfer syntax {syntax}, colours {photometric}) cannot be read")
    return codec


def _scale(header: Any) -> tuple[float | None, float | None]:
    """Microns per pixel in x and y, of PixelSpacing: millimetres between rows, then between columns."""
    try:
        spacing = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        y, x = (number(str(value)) for value in spacing)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None, None
    return (None, None) if x is None or y is None else (x * 1000, y * 1000)


def _power(header: Any) -> float | None:
    try:
        return number(str(header.OpticalPathSequence[0].ObjectiveLensPower))
    except (AttributeError, IndexError, TypeError):
        return None


def _unsupported(name: str, reason: str) -> SlideError:
    return SlideError("unsupported", f"{name}: {reason}; convert it: {CONVERT_DICOM}")
