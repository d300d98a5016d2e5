"""Everything OpenSlide opens -> RGB levels: SVS, NDPI, SCN, MRXS, BIF, Philips, VMS, DICOM, generic tiled TIFF."""

from pathlib import Path

import numpy as np
import openslide

from mil.errors import SlideError
from mil.slides.readers import Header, Level, levels_of

# The header field that OpenSlide takes the mpp from, by its vendor name (OpenSlide 4 format notes).
MPP_FIELD = {
    "aperio": "aperio.MPP",
    "dicom": "dicom.PixelSpacing",
    "generic-tiff": "tiff.XResolution",
    "hamamatsu": "hamamatsu.XResolution",
    "leica": "tiff.XResolution",
    "mirax": "mirax.MICROMETER_PER_PIXEL_X",
    "philips": "philips.DICOM_PIXEL_SPACING",
    "sakura": "sakura.NominalLensMagnification",
    "trestle": "tiff.XResolution",
    "ventana": "ventana.ScanRes",
    "zeiss": "zeiss.Scaling",
}


class OpenSlideReader:
    """A slide through OpenSlide. Reopened after a fault, since OpenSlide keeps a handle's first error for ever."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide = _open(path)
        self._downsamples = self._slide.level_downsamples
        self.header = _header(self._slide)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of `level` from its own pixel (x, y), uint8 (height, width, 3); white outside the scanned area."""
        downsample = self._downsamples[level]
        try:
            image = self._slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        except openslide.OpenSlideError as error:
            self._slide.close()
            self._slide = _open(self.path)
            raise SlideError(
                "unreadable_region",
                f"{self.path.name}: level {level}, x {x}, y {y}, {width} x {height} pixels cannot be decoded ({error})",
            ) from error
        return _on_white(np.asarray(image))

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _open(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError("not_a_slide", f"{path.name}: not a slide format that OpenSlide knows") from error
    except openslide.OpenSlideError as error:
        raise SlideError("unreadable", f"{path.name}: OpenSlide refuses it ({_one_line(error)})") from error


def _header(slide: openslide.OpenSlide) -> Header:
    properties = slide.properties
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    mpp_x = _number(properties.get(openslide.PROPERTY_NAME_MPP_X))
    mpp_y = _number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    return Header(
        format=vendor,
        levels=_levels(slide),
        mpp_x=mpp_x,
        mpp_y=mpp_y if mpp_y is not None else mpp_x,
        mpp_source=MPP_FIELD.get(vendor, "openslide.mpp-x") if mpp_x is not None else "",
        objective_power=_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
    )


def _levels(slide: openslide.OpenSlide) -> tuple[Level, ...]:
    return levels_of(list(slide.level_dimensions))


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA (not premultiplied) over white. Scanned pixels are opaque and come out as they are."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.float32) / 255
    return np.rint(rgba[..., :3] * weight + 255 * (1 - weight)).astype(np.uint8)


def _number(text: str | None) -> float | None:
    """The number in a header field; None if it is absent or no number. Some scanners write a decimal comma."""
    if text is None:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
