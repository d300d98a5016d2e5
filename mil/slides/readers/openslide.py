"""Everything OpenSlide opens -> RGB levels: SVS, NDPI, SCN, MRXS, BIF, Philips, VMS, DICOM, generic tiled TIFF."""

import threading
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import openslide

from mil.errors import SlideError
from mil.slides.readers import Gaps, Header, Reader, levels_of
from mil.slides.readers.codecs import CONVERT, over_white
from mil.slides.scale import is_plausible, number, property_scale

GENERIC = "generic-tiff"
# The header field that OpenSlide takes the mpp from, by its vendor name (OpenSlide 4 format notes).
MPP_FIELD = {
    "aperio": "aperio.MPP",
    "dicom": "dicom.PixelSpacing",
    GENERIC: "tiff.XResolution",
    "hamamatsu": "hamamatsu.XResolution",
    "leica": "tiff.XResolution",
    "mirax": "mirax.MICROMETER_PER_PIXEL_X",
    "philips": "philips.DICOM_PIXEL_SPACING",
    "sakura": "sakura.NominalLensMagnification",
    "trestle": "tiff.XResolution",
    "ventana": "ventana.ScanRes",
    "zeiss": "zeiss.Scaling",
}

COARSEST_GAPS = 64  # level-0 pixels: a level as coarse as this shows where pixels are missing well enough
MOST_CELLS, BLOCK_CELLS = 4096, 512


class OpenSlideReader(Reader):
    """A slide through OpenSlide. Reads that run beside each other have a handle each, and one that failed is not used again:
    OpenSlide keeps a handle's first error for ever."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        slide = _open(path)
        self._free = [slide]
        self._downsamples = slide.level_downsamples
        self._sizes = slide.level_dimensions
        self._has_gaps = False
        self.header = _header(slide)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of `level` from its own pixel (x, y), uint8 (height, width, 3); white outside the scanned area."""
        downsample = self._downsamples[level]
        with self._lock:
            slide = self._free.pop() if self._free else None
        slide = slide or _open(self.path)
        try:
            image = slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        except openslide.OpenSlideError as error:
            slide.close()
            raise SlideError(
                "unreadable_region",
                f"{self.path.name}: level {level}, x {x}, y {y}, {width} x {height} pixels cannot be decoded "
                f"({_one_line(error)})",
            ) from error
        with self._lock:
            self._free.append(slide)
        pixels = np.asarray(image)
        self._has_gaps = self._has_gaps or int(pixels[..., 3].min()) == 0
        return over_white(pixels)

    def gaps(self) -> Gaps | None:
        """Where OpenSlide's pixels are transparent, on a coarse level; looked for only where a read met such pixels."""
        if not self._has_gaps:
            return None
        levels = [index for index, downsample in enumerate(self._downsamples) if downsample <= COARSEST_GAPS]
        level = max(levels, key=lambda index: self._downsamples[index], default=0)
        width, height = self._sizes[level]
        step = max(1, -(-max(width, height) // MOST_CELLS))
        cells = np.zeros((-(-height // step), -(-width // step)), bool)
        side = BLOCK_CELLS * step
        per_pixel = self._downsamples[level]
        with closing(_open(self.path)) as slide, suppress(openslide.OpenSlideError):  # faults are for `read` to say
            for y in range(0, height, side):
                for x in range(0, width, side):
                    size = min(side, width - x), min(side, height - y)
                    image = slide.read_region((round(x * per_pixel), round(y * per_pixel)), level, size)
                    held = np.asarray(image)[::step, ::step, 3]
                    cells[y // step : y // step + len(held), x // step : x // step + held.shape[1]] = held == 0
        return Gaps(cells, (step * per_pixel, step * per_pixel)) if cells.any() else None

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            while self._free:
                self._free.pop().close()


def vendor_of(path: Path) -> str | None:
    """OpenSlide's name of the format, without opening the slide; None where it does not know it."""
    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


def _open(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            "not_a_slide", f"{path.name}: not a slide format that can be read here; convert it: {CONVERT}"
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideError(
            "unreadable",
            f"{path.name}: OpenSlide refuses it ({_one_line(error)}); copy it again, or convert it: {CONVERT}",
        ) from error


def _header(slide: openslide.OpenSlide) -> Header:
    properties = slide.properties
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    mpp_x = number(properties.get(openslide.PROPERTY_NAME_MPP_X))
    mpp_y = number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    source = MPP_FIELD.get(vendor, "openslide.mpp-x")
    if mpp_x is None or (vendor == GENERIC and not is_plausible(mpp_x)):  # 72 and 96 dpi are what image editors fill in
        mpp_x, mpp_y, source = property_scale(properties)
    return Header(
        format=vendor,
        levels=levels_of(list(slide.level_dimensions)),
        mpp_x=mpp_x,
        mpp_y=mpp_y if mpp_y is not None else mpp_x,
        mpp_source=source,
        objective_power=number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
