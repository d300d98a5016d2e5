"""A PNG or JPEG image -> one level of RGB pixels, for images whose mpp the sheet or the file knows."""

import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mil.errors import SlideError
from mil.slides.readers import Header, Reader, levels_of
from mil.slides.readers.codecs import DECODE_ERRORS, over_white
from mil.slides.scale import resolution_scale

MAX_IMAGE_PIXELS = 1.7e8  # decoded whole: 0.5 GB as RGB; Pillow itself refuses a little more
ORIENTATION = 274


class ImageReader(Reader):
    """A PNG or JPEG, decoded whole on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # bounded by our own check
                image = Image.open(path, formats=("PNG", "JPEG"))
            with image:
                self._check(image)
                dots = image.info.get("dpi", (None, None)) if _says_dpi(image) else (None, None)
                size = image.size
                self._is_jpeg = image.format == "JPEG"
        except Image.DecompressionBombError as error:
            raise SlideError("implausible_size", f"{path.name}: {error}; rewrite it as tiled TIFF") from error
        except (UnidentifiedImageError, SyntaxError, OSError, *DECODE_ERRORS) as error:
            raise SlideError("unreadable", f"{path.name}: is no PNG or JPEG that can be read ({error})") from error
        mpp_x, mpp_y, source = resolution_scale(dots[0], dots[1], "inch")
        self.header = Header(
            format="jpeg" if self._is_jpeg else "png",
            levels=levels_of([size]),
            mpp_x=mpp_x,
            mpp_y=mpp_y,
            mpp_source=("jpeg.density" if self._is_jpeg else "png.pHYs") if source else "",
            objective_power=None,
        )
        self._pixels: np.ndarray | None = None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels from (x, y), uint8 (height, width, 3); white outside; `SlideError` where the image is damaged."""
        if self._pixels is None:
            self._pixels = self._decoded()
        rows, columns = self._pixels.shape[:2]
        region = np.full((height, width, 3), 255, np.uint8)
        left, right, top, bottom = max(x, 0), min(x + width, columns), max(y, 0), min(y + height, rows)
        if left < right and top < bottom:
            region[top - y : bottom - y, left - x : right - x] = self._pixels[top:bottom, left:right]
        return region

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels = None

    def _check(self, image: Image.Image) -> None:
        name = self.path.name
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise SlideError(
                "implausible_size",
                f"{name}: {image.width} x {image.height} pixels in one piece; rewrite it as tiled TIFF",
            )
        if image.mode not in {"RGB", "RGBA"}:
            raise SlideError(
                "not_a_slide", f"{name}: is an image of mode {image.mode}; a brightfield slide is RGB of 8 bits"
            )
        if image.getexif().get(ORIENTATION, 1) != 1:
            raise SlideError("unsupported", f"{name}: its orientation tag says it is turned; rewrite it upright")

    def _decoded(self) -> np.ndarray:
        try:
            if self._is_jpeg:
                return simplejpeg.decode_jpeg(
                    self.path.read_bytes(), "RGB", fastdct=False, fastupsample=False, strict=True
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(self.path, formats=("PNG",)) as image:
                    pixels = np.asarray(image)
            return over_white(pixels) if pixels.shape[2] == 4 else pixels
        except (OSError, SyntaxError, *DECODE_ERRORS) as error:
            raise SlideError("unreadable_region", f"{self.path.name}: cannot be decoded ({error})") from error


def _says_dpi(image: Image.Image) -> bool:
    """Whether the file gives a density in a unit; Pillow fills in 72 where a JPEG says nothing."""
    return "dpi" in image.info and (image.format == "PNG" or image.info.get("jfif_unit", 0) in {1, 2})
