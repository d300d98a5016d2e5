"""TIFF files, read by their own offsets -> RGB levels: SVS and tiled TIFF fast, and OME-TIFF, QPTIFF, flat and stripped TIFF.

Where OpenSlide opens the file, it says what the levels and the mpp are and reads whatever is not plain (a level whose codec only it
knows, or with tiles missing that it fills from another level). Where it does not, tifffile's series are the levels.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from mil.errors import SlideError
from mil.slides.readers import MAX_PIXELS, Header, Reader, levels_alike, levels_of
from mil.slides.readers.codecs import CONVERT, DECODE_ERRORS, codec_of
from mil.slides.readers.directories import directories
from mil.slides.readers.grids import GridReader, usable
from mil.slides.readers.scenes import check_upright, images_of, is_companion, slide_image
from mil.slides.readers.segments import MAX_SEGMENTS, SegmentGrid
from mil.slides.scale import UNKNOWN, contradiction, is_of_larger

# Its complaints about damaged tags; what follows from them for the slide is ours to say, once.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

PLAIN = {"aperio", "generic-tiff"}  # OpenSlide's vendors whose levels are plain pages of tiles
MAX_FLAT_BYTES = 2**31  # a segment is decoded whole; a flat TIFF of more in one piece is refused
TIFF_ERRORS = (tifffile.TiffFileError, *DECODE_ERRORS, OSError, AttributeError, OverflowError, ZeroDivisionError)
MAX_DIRECTORIES = 10_000  # a slide has some ten images and levels


class TiffReader(GridReader):
    """A TIFF whose tiles are read by their offsets. `behind` is OpenSlide's reader of the same file, where it has one."""

    def __init__(self, path: Path, behind: Reader | None = None) -> None:
        super().__init__(path, behind)
        self._file = open(path, "rb")  # noqa: SIM115  open as long as the slide
        self.files.append(self._file)
        self._size = path.stat().st_size
        try:
            with tifffile.TiffFile(path) as tiff:
                header, grids = self._open(tiff)
            used = usable(header.levels, grids)
            fault = "of another shape" if used == levels_alike(header.levels) else "without tiles that level 0 has"
            remarks = [f"not read: {level.width} x {level.height} pixels {fault}" for level in header.levels[used:]]
            self.header = replace(header, levels=header.levels[:used], remarks=(*header.remarks, *remarks))
            self.grids = grids[:used]
        except SlideError:
            self.close()
            raise
        except TIFF_ERRORS as error:
            self.close()
            raise SlideError("unreadable", f"{path.name}: its TIFF structure is broken ({error})") from error

    def _open(self, tiff: tifffile.TiffFile) -> tuple[Header, list[SegmentGrid | None]]:
        """Header and levels. `behind` is dropped where its levels are not those of the image that is the slide."""
        if self.behind is not None and self.behind.header.format == "aperio":
            check_upright(self.path, tiff.pages.first)
            header = self.behind.header
            if is_of_larger(tiff.pages.first.description or ""):
                header = replace(header, mpp_x=None, mpp_y=None, mpp_source="")
            taken = header.mpp_x, header.mpp_y, header.mpp_source
            return self._behind(tiff, replace(header, remarks=contradiction(taken, tiff.pages.first, UNKNOWN)))
        image, remarks = slide_image(self.path, images_of(self.path, tiff))
        if self.behind is not None and image.pages[0].index == 0:
            header = self.behind.header
            taken = header.mpp_x, header.mpp_y, header.mpp_source
            remarks += contradiction(taken, image.pages[0], image.scale)
            return self._behind(tiff, replace(header, remarks=remarks))
        if self.behind is not None:
            self.behind.close()
            self.behind = None
        mpp_x, mpp_y, source = image.scale
        header = Header(
            format="ome-tiff" if tiff.is_ome else "qptiff" if tiff.is_qpi else "tiff",
            levels=levels_of([(page.imagewidth, page.imagelength) for page in image.pages]),
            mpp_x=mpp_x,
            mpp_y=mpp_y,
            mpp_source=source,
            objective_power=image.objective_power,
            remarks=remarks + contradiction(image.scale, image.pages[0], UNKNOWN),
        )
        grids = [self._grid(page) for page in image.pages]
        if grids[0] is None:
            raise SlideError("unreadable", f"{self.path.name}: {_why_not(image.pages[0])}; convert it: {CONVERT}")
        kept = [index for index, grid in enumerate(grids) if grid is not None]
        levels = tuple(header.levels[index] for index in kept)
        return replace(header, levels=levels), [grids[index] for index in kept]

    def _behind(self, tiff: tifffile.TiffFile, header: Header) -> tuple[Header, list[SegmentGrid | None]]:
        pages = [_page_of(tiff, (level.width, level.height)) for level in header.levels]
        companions = [page is not None and is_companion(page) for page in pages]
        if companions[0]:
            raise SlideError("not_a_slide", f"{self.path.name}: its description says that it is a label or an overview")
        if any(companions):  # OpenSlide takes every tiled image for a level
            header = replace(header, levels=header.levels[: companions.index(True)])
            pages = pages[: len(header.levels)]
        grids = [None if page is None else self._grid(page) for page in pages]
        if header.format == "aperio":  # OpenSlide fills a missing tile of a lower level from the level above
            grids[1:] = [grid if grid is not None and grid.counts.all() else None for grid in grids[1:]]
        return header, grids

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
        offsets, counts = (np.asarray(numbers, np.int64) for numbers in (page.dataoffsets, page.databytecounts))
        if len(offsets) == len(counts):
            counts = np.where(offsets == 0, 0, counts)  # where the header is, a tile is not
        grid = SegmentGrid(
            name=self.path.name,
            width=width,
            height=height,
            segment_width=segment_width,
            segment_height=segment_height,
            offsets=offsets,
            counts=counts,
            codec=codec,
            handle=self._file.fileno(),
            planes=page.samplesperpixel if int(page.planarconfig) == 2 else 1,
        )
        grid.check(self._size)
        return grid


def check_directories(path: Path) -> None:
    """`SlideError` where the chain of a TIFF's directories runs in a circle or does not end: libraries follow it for hours."""
    seen: set[int] = set()
    with open(path, "rb") as file:
        for at, _, _ in directories(file):
            if at in seen:
                raise SlideError(
                    "unreadable", f"{path.name}: its TIFF directories point back at one another; copy it again"
                )
            if len(seen) == MAX_DIRECTORIES:
                raise SlideError("unreadable", f"{path.name}: lists more than {MAX_DIRECTORIES} images; it is no slide")
            seen.add(at)


def is_ome(path: Path) -> bool:
    """Whether the TIFF carries OME-XML, whose levels and scale OpenSlide does not read."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.is_ome)
    except TIFF_ERRORS:
        return False


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
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
    pages = [page for page in pages if (page.imagewidth, page.imagelength) == size]
    return pages[0] if len(pages) == 1 else None


def _why_not(page: tifffile.TiffPage) -> str:
    layout = "colours stored apart, " if int(page.planarconfig) == 2 else ""
    compression = getattr(page.compression, "name", page.compression)
    photometric = getattr(page.photometric, "name", page.photometric)
    return f"its pixels ({layout}compression {compression}, colours {photometric}) cannot be read"
