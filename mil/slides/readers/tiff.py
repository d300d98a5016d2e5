"""TIFF files, read by their own offsets -> RGB levels: SVS and tiled TIFF fast, and OME-TIFF, QPTIFF, flat and stripped TIFF.

Where OpenSlide opens the file, it says what the levels and the mpp are and reads whatever is not plain (a level whose codec only it
knows, or with tiles missing that it fills from another level). Where it does not, tifffile's series are the levels.
"""

import logging
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
import tifffile

from mil.errors import SlideError
from mil.slides.readers import MAX_PIXELS, Header, Reader, levels_of
from mil.slides.readers.codecs import DECODE_ERRORS, codec_of
from mil.slides.readers.segments import SegmentGrid
from mil.slides.scale import tiff_objective_power, tiff_scale

# Its complaints about damaged tags; what follows from them for the slide is ours to say, once.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

PLAIN = {"aperio", "generic-tiff"}  # OpenSlide's vendors whose levels are plain pages of tiles
MAX_SEGMENTS = 2**26
MAX_FLAT_BYTES = 2**31  # a segment is decoded whole; a flat TIFF of more in one piece is refused
KEPT_BYTES = 2**26  # decoded segments kept between single reads
TIFF_ERRORS = (tifffile.TiffFileError, *DECODE_ERRORS, OSError, AttributeError, OverflowError, ZeroDivisionError)
NOT_BRIGHTFIELD = "a brightfield slide has red, green and blue of 8 bits"


class TiffReader:
    """A TIFF whose tiles are read by their offsets. `behind` is OpenSlide's reader of the same file, where it has one."""

    def __init__(self, path: Path, behind: Reader | None = None) -> None:
        self.path = path
        self.behind = behind
        self._kept: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._lock = Lock()
        self._file = open(path, "rb")  # noqa: SIM115  open as long as the slide
        self._size = path.stat().st_size
        try:
            with tifffile.TiffFile(path) as tiff:
                check_pages(path, tiff)
                self.header, self.grids = self._levels(tiff)
        except SlideError:
            self.close()
            raise
        except TIFF_ERRORS as error:
            self.close()
            raise SlideError("unreadable", f"{path.name}: its TIFF structure is broken ({error})") from error

    def grid(self, level: int) -> SegmentGrid | None:
        """The level as segments; None where it is read through OpenSlide."""
        return self.grids[level]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of `level` from its own pixel (x, y), uint8 (height, width, 3); white outside, `SlideError` on faults."""
        grid = self.grids[level]
        if grid is None:
            if self.behind is None:
                raise SlideError("unreadable", f"{self.path.name}: level {level} has no reader")
            return self.behind.read(level, x, y, width, height)
        segments = {number: self._segment(level, grid, number) for number in grid.touched(x, y, width, height)}
        return grid.assemble(x, y, width, height, segments)

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        if self.behind is not None:
            self.behind.close()

    def _segment(self, level: int, grid: SegmentGrid, number: int) -> np.ndarray | None:
        with self._lock:
            if (level, number) in self._kept:
                self._kept.move_to_end((level, number))
                return self._kept[level, number]
        pixels = grid.load(number)
        with self._lock:
            self._kept[level, number] = pixels
            most = max(KEPT_BYTES // grid.segment_bytes, 1)
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        return pixels

    def _levels(self, tiff: tifffile.TiffFile) -> tuple[Header, list[SegmentGrid | None]]:
        if self.behind is not None:
            header = self.behind.header
            sizes = [(level.width, level.height) for level in header.levels]
            pages = [_page_of(tiff, size) for size in sizes]
            grids = [None if page is None else self._grid(page) for page in pages]
            if header.format == "aperio":  # OpenSlide fills a missing tile of a lower level from the level above
                grids[1:] = [grid if grid is not None and grid.counts.all() else None for grid in grids[1:]]
            return header, grids
        pages = _series_pages(self.path, tiff)
        mpp_x, mpp_y, source = tiff_scale(tiff, pages[0])
        header = Header(
            format="ome-tiff" if tiff.is_ome else "qptiff" if tiff.is_qpi else "tiff",
            levels=levels_of([(page.imagewidth, page.imagelength) for page in pages]),
            mpp_x=mpp_x,
            mpp_y=mpp_y,
            mpp_source=source,
            objective_power=tiff_objective_power(tiff),
        )
        grids = [self._grid(page) for page in pages]
        if grids[0] is None:
            raise SlideError(
                "unreadable",
                f"{self.path.name}: its TIFF compression {pages[0].compression} cannot be read; convert it",
            )
        kept = [index for index, grid in enumerate(grids) if grid is not None]
        levels = tuple(header.levels[index] for index in kept)
        return Header(**{**vars(header), "levels": levels}), [grids[index] for index in kept]

    def _grid(self, page: tifffile.TiffPage) -> SegmentGrid | None:
        width, height = page.imagewidth, page.imagelength
        if page.is_tiled:
            segment_width, segment_height = page.tilewidth, page.tilelength
        else:
            segment_width, segment_height = width, min(page.rowsperstrip or height, height)
        codec = codec_of(page, segment_height, segment_width)
        if codec is None:
            return None
        _check_bounds(self.path, width, height, segment_width, segment_height)
        grid = SegmentGrid(
            name=self.path.name,
            width=width,
            height=height,
            segment_width=segment_width,
            segment_height=segment_height,
            offsets=np.asarray(page.dataoffsets, np.int64),
            counts=np.asarray(page.databytecounts, np.int64),
            codec=codec,
            handle=self._file.fileno(),
        )
        number = grid.across * grid.down
        if not len(grid.offsets) == len(grid.counts) == number or (grid.counts < 0).any() or (grid.offsets < 0).any():
            raise SlideError(
                "unreadable",
                f"{self.path.name}: lists {len(grid.offsets)} offsets and {len(grid.counts)} sizes for {number} tiles",
            )
        beyond = int((grid.offsets + grid.counts > self._size).sum())
        if beyond:
            raise SlideError(
                "unreadable",
                f"{self.path.name}: is cut off: {beyond} of {number} tiles lie beyond its {self._size:,} bytes; copy it again",
            )
        return grid


def is_ome(path: Path) -> bool:
    """Whether the TIFF carries OME-XML, whose levels and scale OpenSlide does not read."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.is_ome)
    except TIFF_ERRORS:
        return False


def check_pages(path: Path, tiff: tifffile.TiffFile) -> None:
    """`SlideError` where the first image is not an upright brightfield RGB image of 8 bits, or is a label or macro."""
    page = tiff.pages[0]
    if not isinstance(page, tifffile.TiffPage):
        raise SlideError("unreadable", f"{path.name}: its first TIFF page cannot be read")
    colours = {2: "RGB", 6: "YCbCr"}
    if page.bitspersample != 8 or page.dtype != np.uint8:
        raise SlideError(
            "not_a_slide", f"{path.name}: has {page.dtype or page.bitspersample} samples; {NOT_BRIGHTFIELD}"
        )
    if int(page.photometric) not in colours or page.samplesperpixel < 3:
        kind = getattr(page.photometric, "name", str(page.photometric))
        raise SlideError(
            "not_a_slide", f"{path.name}: has {page.samplesperpixel} sample(s) of {kind} a pixel; {NOT_BRIGHTFIELD}"
        )
    if page.samplesperpixel > 4 or (page.samplesperpixel == 4 and not page.extrasamples):
        raise SlideError("not_a_slide", f"{path.name}: has {page.samplesperpixel} channels; {NOT_BRIGHTFIELD}")
    orientation = page.tags.valueof(274, 1)
    if orientation != 1:
        raise SlideError(
            "unsupported", f"{path.name}: its orientation tag is {orientation} (turned or mirrored); rewrite it upright"
        )
    first_words = (page.description or "").partition("\n")[2][:64].lower().split()
    if first_words and first_words[0] in {"label", "macro"}:
        raise SlideError("not_a_slide", f"{path.name}: is the {first_words[0]} image of a slide, not the slide")


def _check_bounds(path: Path, width: int, height: int, segment_width: int, segment_height: int) -> None:
    if min(width, height, segment_width, segment_height) < 1:
        raise SlideError("unreadable", f"{path.name}: has a level without pixels")
    if width * height > MAX_PIXELS:
        raise SlideError(
            "implausible_size", f"{path.name}: declares {width} x {height} pixels; more than any scanner makes"
        )
    if segment_width * segment_height * 3 > MAX_FLAT_BYTES:
        raise SlideError(
            "implausible_size",
            f"{path.name}: its pixels come in pieces of {segment_width} x {segment_height}, too large to decode; rewrite it tiled",
        )
    if -(-width // segment_width) * -(-height // segment_height) > MAX_SEGMENTS:
        raise SlideError("implausible_size", f"{path.name}: declares more than {MAX_SEGMENTS} tiles")


def _page_of(tiff: tifffile.TiffFile, size: tuple[int, int]) -> tifffile.TiffPage | None:
    """The tiled page of this (width, height), where there is exactly one."""
    found = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
    found = [page for page in found if (page.imagewidth, page.imagelength) == size]
    return found[0] if len(found) == 1 else None


def _series_pages(path: Path, tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The pages of the levels of the largest image in the file, finest first."""
    series = max(tiff.series, key=lambda series: series.size)
    axes = dict(zip(series.axes, series.shape, strict=True))
    planes = {axis: axes[axis] for axis in axes if axis not in "YXS" and axes[axis] != 1}
    if planes or axes.get("S", 1) < 3:
        found = ", ".join(f"{axis} {length}" for axis, length in axes.items())
        raise SlideError("not_a_slide", f"{path.name}: is an image of axes {found}, several planes; {NOT_BRIGHTFIELD}")
    pages = []
    for level in series.levels:
        page = level.keyframe
        if not pages or page.imagewidth < pages[-1].imagewidth:
            pages.append(page)
    return pages
