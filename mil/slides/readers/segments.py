"""A level of a TIFF as a grid of compressed segments: its tiles, or its strips, which are tiles as wide as the image."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np

from mil.errors import SlideError
from mil.slides.readers.codecs import DECODE_ERRORS, Codec, over_white

MAX_SEGMENT_BYTES = 2**31
MAX_SEGMENTS = 2**26
Segment = np.ndarray | None | SlideError


@dataclass(frozen=True)
class SegmentGrid:
    """Where the segments lie in the file and how one becomes pixels. Sizes in pixels of the level."""

    name: str
    width: int
    height: int
    segment_width: int
    segment_height: int
    offsets: np.ndarray
    counts: np.ndarray
    codec: Codec
    handle: int
    divisor: int = 1
    """The grid is that of the level's pixels divided by this, by the codec or by their mean, as soon as they are decoded."""
    by_codec: bool = False
    planes: int = 1
    """Colours that are stored apart: the segments of the first, then those of the second."""

    @property
    def across(self) -> int:
        """Segments in a row."""
        return -(-self.width // self.segment_width)

    @property
    def down(self) -> int:
        """Rows of segments."""
        return -(-self.height // self.segment_height)

    @property
    def segment_bytes(self) -> int:
        """Bytes of a decoded segment."""
        return self.segment_width * self.segment_height * 3

    def missing(self) -> np.ndarray:
        """Which segments have no bytes, bool (down, across)."""
        return self.counts.reshape(self.planes, self.down, self.across).max(axis=0) == 0

    def missing_share(self) -> float:
        """Share of the level's area whose segments have no bytes."""
        wide = np.minimum(self.segment_width, self.width - self.segment_width * np.arange(self.across))
        high = np.minimum(self.segment_height, self.height - self.segment_height * np.arange(self.down))
        return float(high @ self.missing() @ wide) / (self.width * self.height)

    def check(self, file_bytes: int) -> None:
        """`SlideError` where the segments are not as many as the level has, or lie beyond the `file_bytes` of their file."""
        number = self.across * self.down * self.planes
        if not len(self.offsets) == len(self.counts) == number or (self.counts < 0).any() or (self.offsets < 0).any():
            raise SlideError(
                "unreadable",
                f"{self.name}: lists {len(self.offsets)} offsets and {len(self.counts)} sizes for {number} tiles",
            )
        beyond = int((self.offsets + self.counts > file_bytes).sum())
        if beyond:
            raise SlideError(
                "unreadable",
                f"{self.name}: is cut off: {beyond} of {number} tiles lie beyond its {file_bytes:,} bytes; copy it again",
            )

    def divided(self, most: float, corners: np.ndarray) -> "SegmentGrid":
        """The grid whose pixels the codec brings down, by the largest number up to `most` that it can and that divides `corners`.

        Corners are in pixels of this grid; half a pixel could not be made up for without blur.
        """
        fitting = (divisor for divisor in reversed(self.codec.divisors) if divisor <= most * (1 + 1e-6))
        largest = next((divisor for divisor in fitting if self._divides(divisor, corners)), 1)
        return self._by(largest, by_codec=largest > 1)

    def averaged(self, scale: float, boxes: np.ndarray) -> "SegmentGrid":
        """The grid of means over `scale` x `scale` pixels, where that gives every box (n, 4: x, y, width, height) the same pixels as
        a mean afterwards: a whole number that divides segments and boxes, and boxes within the image. Itself elsewhere."""
        times = int(scale)
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0, initial=0)
        inside = boxes.min(initial=0) >= 0 and right <= self.width and bottom <= self.height
        return self._by(times) if times == scale > 1 and inside and self._divides(times, boxes) else self

    def _divides(self, divisor: int, positions: np.ndarray) -> bool:
        return not (self.segment_width % divisor or self.segment_height % divisor or (positions % divisor).any())

    def _by(self, divisor: int, by_codec: bool = False) -> "SegmentGrid":
        return replace(
            self,
            width=-(-self.width // divisor),
            height=-(-self.height // divisor),
            segment_width=self.segment_width // divisor,
            segment_height=self.segment_height // divisor,
            divisor=divisor,
            by_codec=by_codec,
        )

    def touched(self, x: int, y: int, width: int, height: int) -> list[int]:
        """Numbers of the segments that a region touches, row by row."""
        left, right = max(x, 0) // self.segment_width, (min(x + width, self.width) - 1) // self.segment_width
        top, bottom = max(y, 0) // self.segment_height, (min(y + height, self.height) - 1) // self.segment_height
        return [row * self.across + column for row in range(top, bottom + 1) for column in range(left, right + 1)]

    def load(self, number: int) -> np.ndarray | None:
        """Pixels uint8 (rows, segment_width, 3) of a segment; None where the file has none there, which is bare glass."""
        numbers = range(number, len(self.counts), len(self.counts) // self.planes)
        if not any(self.counts[plane] for plane in numbers):
            return None
        try:
            planes = [
                self.codec.decode(self._stream(plane), plane, self.divisor if self.by_codec else 1) for plane in numbers
            ]
            pixels = planes[0] if self.planes == 1 else np.concatenate(planes, axis=2)
            pixels = over_white(pixels, self.codec.fourth) if pixels.shape[2] == 4 else pixels
        except (*DECODE_ERRORS, OSError, OverflowError) as error:
            x = number % self.across * self.segment_width * self.divisor
            y = number // self.across * self.segment_height * self.divisor
            raise SlideError(
                "unreadable_region", f"{self.name}: the tile at x {x}, y {y} cannot be decoded ({_one_line(error)})"
            ) from error
        if self.divisor == 1 or self.by_codec:
            return pixels
        return cv2.resize(pixels, None, fx=1 / self.divisor, fy=1 / self.divisor, interpolation=cv2.INTER_AREA)

    def _stream(self, number: int) -> bytes:
        offset, count = int(self.offsets[number]), int(self.counts[number])
        if count > MAX_SEGMENT_BYTES:
            raise ValueError(f"{count} bytes in one segment")
        stream = os.pread(self.handle, count, offset)
        if len(stream) < count:
            raise ValueError(f"the file ends {count - len(stream)} bytes early")
        return stream

    def assemble(self, x: int, y: int, width: int, height: int, segments: Mapping[int, Segment]) -> np.ndarray:
        """The region from its decoded segments, uint8 (height, width, 3); white outside the level and where there is none.

        A segment that is an error is raised.
        """
        touched = self.touched(x, y, width, height)
        loaded: dict[int, np.ndarray | None] = {}
        for number in touched:
            segment = segments[number]
            if isinstance(segment, SlideError):
                raise segment
            loaded[number] = segment
        inside = x >= 0 and y >= 0 and x + width <= self.width and y + height <= self.height
        if len(touched) == 1 and inside:
            only = loaded[touched[0]]
            top, left = y % self.segment_height, x % self.segment_width
            if only is not None and top + height <= len(only):
                return only[top : top + height, left : left + width]
        region = np.empty((height, width, 3), np.uint8)
        if not inside or any(loaded[number] is None for number in touched):
            region.fill(255)
        for number in touched:
            pixels = loaded[number]
            if pixels is None:
                continue
            row, column = divmod(number, self.across)
            top, left = row * self.segment_height, column * self.segment_width
            first_x, last_x = max(x, left), min(x + width, left + self.segment_width, self.width)
            first_y, last_y = max(y, top), min(y + height, top + len(pixels), self.height)
            if last_y < min(y + height, top + self.segment_height, self.height):
                raise SlideError("unreadable_region", f"{self.name}: the tile at x {left}, y {top} has rows missing")
            region[first_y - y : last_y - y, first_x - x : last_x - x] = pixels[
                first_y - top : last_y - top, first_x - left : last_x - left
            ]
        return region


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
