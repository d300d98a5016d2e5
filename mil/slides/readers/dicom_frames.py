"""The pixel data of a DICOM file -> where each frame lies in the file, and which part of the level it is."""

import os
import struct
from typing import Any, BinaryIO

import numpy as np

from mil.errors import SlideError
from mil.slides.readers.codecs import Codec
from mil.slides.readers.dicom import CONVERT_DICOM
from mil.slides.readers.dicom_codecs import IMPLICIT, ITEM, NATIVE
from mil.slides.readers.segments import SegmentGrid

PIXELS = b"\xe0\x7f\x10\x00"


def frame_grid(name: str, file: BinaryIO, header: Any, syntax: str, codec: Codec) -> SegmentGrid:
    """The level's frames; `file` stands at the tag of its pixels. Frames that a sparse level does not hold have no bytes."""
    height, width = int(header.Rows), int(header.Columns)
    rows, columns = int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)
    across, down = -(-columns // width), -(-rows // height)
    frames, tiles = int(header.get("NumberOfFrames") or 1), across * down
    is_sparse = header.get("DimensionOrganizationType") != "TILED_FULL" and "PerFrameFunctionalGroupsSequence" in header
    if not (0 < frames <= tiles if is_sparse else frames == tiles):
        raise SlideError("unreadable", f"{name}: lists {frames} frames for {tiles} tiles; copy it again")
    if file.read(4) != PIXELS:
        raise SlideError("unreadable", f"{name}: has no pixels; copy it again")
    file.seek(4 if syntax == IMPLICIT else 8, os.SEEK_CUR)
    if syntax in NATIVE:
        counts = np.full(frames, 3 * height * width, np.int64)
        offsets = file.tell() + np.arange(frames, dtype=np.int64) * counts
    else:
        offsets, counts = _encapsulated(file, frames, header.get("ExtendedOffsetTable"))
    in_place = np.zeros((2, tiles), np.int64)
    in_place[:, _cells(name, header, frames, across, down) if is_sparse else slice(None)] = offsets, counts
    grid = SegmentGrid(name, columns, rows, width, height, in_place[0], in_place[1], codec, file.fileno())
    grid.check(file.seek(0, os.SEEK_END))
    return grid


def _encapsulated(file: BinaryIO, frames: int, extended: bytes | None) -> tuple[np.ndarray, np.ndarray]:
    """(where each frame's first fragment begins, bytes of all its fragments), with the fragments' tags and lengths (DICOM PS3.5, A.4).

    By the extended or the basic table of offsets; without either, a fragment is a frame.
    """
    from pydicom.encaps import parse_fragments

    tag, length = struct.unpack("<II", file.read(8))
    if tag != ITEM or length > 4 * frames:
        raise ValueError("its frames do not begin with a table of offsets")
    table = np.frombuffer(file.read(length), "<u4")
    table = np.frombuffer(extended, "<u8") if extended else table
    start = file.tell()
    if not len(table):
        starts = np.array(parse_fragments(file)[1], np.int64)
    elif table.max() > 2**62:
        raise ValueError("its table of offsets points beyond the file")
    else:
        starts = start + table.astype(np.int64)
    if len(starts) != frames:
        raise ValueError(f"it lists the offsets of {len(starts)} frames of {frames}")
    file.seek(int(starts[-1]))
    last = parse_fragments(file)[1]  # of the last frame
    if not last or (np.diff(starts) < 8).any():
        raise ValueError("its table of offsets does not point at its frames")
    file.seek(last[-1] + 4)
    end = last[-1] + 8 + struct.unpack("<I", file.read(4))[0]
    return starts, np.diff(starts, append=end)


def _cells(name: str, header: Any, frames: int, across: int, down: int) -> np.ndarray:
    """The number of the tile, row by row, that each frame of a sparse level is."""
    positions = [group.PlanePositionSlideSequence[0] for group in header.PerFrameFunctionalGroupsSequence]
    corners = [
        (int(position.RowPositionInTotalImagePixelMatrix) - 1, int(position.ColumnPositionInTotalImagePixelMatrix) - 1)
        for position in positions
    ]
    tiles, off = np.divmod(np.array(corners, np.int64), (int(header.Rows), int(header.Columns)))
    if len(tiles) != frames or (tiles < 0).any() or (tiles >= (down, across)).any():
        raise SlideError("unreadable", f"{name}: lists positions of {len(tiles)} frames, some outside the slide")
    cells = tiles[:, 0] * across + tiles[:, 1]
    if off.any() or len(np.unique(cells)) < frames:
        raise SlideError(
            "unsupported", f"{name}: its frames overlap or do not lie on one grid; convert it: {CONVERT_DICOM}"
        )
    return cells
