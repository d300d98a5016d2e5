"""One compressed tile or strip of a TIFF -> RGB pixels, refusing whatever is not exactly what the header promised.

JPEG is decoded by libjpeg-turbo (simplejpeg), strictly: where the decoder would only warn and fill the rest with grey, as
imagecodecs and OpenCV let it, this is an error, as it is in OpenSlide. JPEG 2000 is decoded by OpenJPEG (imagecodecs, or Pillow
at a lower resolution: the same library, the same pixels).
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from PIL import Image

Decode = Callable[[bytes, int, int], np.ndarray]
"""A segment's bytes, its number and a divisor -> its pixels, the sides divided by it (only 1 where `Codec.divisors` is empty)."""

CONVERT = "bfconvert IN OUT.ome.tif, or QuPath: File, Export images, OME TIFF"
JPEG, DEFLATE, ADOBE_DEFLATE = 7, 32946, 8
JPEG2000_YCBCR, JPEG2000_RGB, JPEG2000 = 33003, 33005, 34712
RGB, YCBCR = 2, 6
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
# APP14 'Adobe' of version 100; its last byte says how the colours are coded: 0 as they are, 1 as YCbCr.
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
START, TABLES_END = b"\xff\xd8", b"\xff\xd9"
HOLE = bytes(64)  # what is not there yet of a file that a broken copy left at its full length
WEBP = 50001
LOSSLESS = 0xC3
FRAMES = {0xC0, 0xC1, 0xC2, LOSSLESS}  # baseline, extended, progressive; the others libjpeg-turbo does not read
# What decoders raise on bytes that are not what they should be.
DECODE_ERRORS = (ValueError, RuntimeError, zlib.error, struct.error, IndexError, KeyError, TypeError, MemoryError)


@dataclass(frozen=True)
class Codec:
    """How the segments of one page become pixels, and by what they can be brought down while they are decoded."""

    decode: Decode
    divisors: tuple[int, ...] = ()
    fourth: int = UNASSOCIATED
    """What a fourth sample is, by TIFF's tag ExtraSamples: 0 none of the image, 1 alpha with premultiplied colours, 2 alpha."""


def codec_of(page: tifffile.TiffPage, height: int, width: int) -> Codec | None:
    """The codec from a segment's bytes to uint8 (rows, width, 3) for this page; None where only OpenSlide knows how.

    `height` and `width` are those of a full tile or strip; the last strip may have fewer rows.
    """
    compression, photometric = int(page.compression), int(page.photometric)
    if page.dtype != np.uint8 or page.samplesperpixel not in {3, 4}:
        return None
    samples = 1 if int(page.planarconfig) == 2 else page.samplesperpixel
    fourth = int(page.extrasamples[0]) if page.extrasamples else UNSPECIFIED
    if compression == JPEG and photometric in {RGB, YCBCR} and samples == 3:
        # libjpeg's scaled inverse DCT gives, but for rounding, the mean over squares of 2, 4 or 8 pixels.
        return Codec(jpeg(page.jpegtables or b"", photometric == YCBCR, height, width), (2, 4, 8))
    if photometric != RGB:
        return None
    if compression == JPEG and samples == 1:
        return Codec(jpeg(page.jpegtables or b"", False, height, width, "GRAY"), fourth=fourth)
    if compression in {JPEG2000_RGB, JPEG2000} and samples in {1, 3}:
        return Codec(jpeg2000(height, width, samples), (2, 4, 8), fourth)
    if compression in tifffile.TIFF.DECOMPRESSORS and compression not in {JPEG, JPEG2000_YCBCR}:
        return Codec(_other(page, height, width, samples), fourth=fourth)
    return None


def complete_jpeg(stream: bytes, tables: bytes, is_ycbcr: bool) -> tuple[bytes, tuple[int, int, int]]:
    """A JPEG that stands alone, and its (height, width, components): shared tables put in, colour coding as the TIFF says.

    A TIFF's photometric tag decides on RGB or YCbCr; libjpeg would go by the stream's JFIF or Adobe marker, so those are
    replaced by one that says the same as the tag.
    """
    if not isinstance(tables, bytes):
        raise ValueError("the tag of the shared JPEG tables holds no bytes")
    parts = [START, ADOBE + (b"\x01" if is_ycbcr else b"\x00")]
    if len(tables) > 4:
        parts.append(tables[2:-2] if tables.endswith(TABLES_END) else tables[2:])
    size = None
    kept = 2
    for marker, start, end in _segments(stream):
        if marker in FRAMES:
            bits, *size = struct.unpack_from(">BHHB", stream, start + 4)
            if bits != 8:
                raise ValueError(f"a JPEG of {bits} bits")
        if marker in {0xE0, 0xEE}:
            parts.append(stream[kept:start])
            kept = end
    if size is None:
        raise ValueError(f"no header of a baseline, progressive or lossless JPEG; convert it: {CONVERT}")
    parts.append(stream[kept:])
    return b"".join(parts), (size[0], size[1], size[2])


def _is_lossless(stream: bytes) -> bool:
    """Whether a complete JPEG is a lossless one (process 14)."""
    return any(marker == LOSSLESS for marker, _, _ in _segments(stream))


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each marker segment before the scan."""
    if stream[:2] != START:
        raise ValueError("not a JPEG stream")
    at = 2
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            raise ValueError("JPEG marker expected")
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        yield marker, at, end
        at = end


def jpeg(tables: bytes, is_ycbcr: bool, height: int, width: int, colours: Literal["RGB", "GRAY"] = "RGB") -> Decode:
    """JPEG streams with these shared tables -> pixels (rows up to `height`, `width`, 3); of one colour that is stored apart, 1 in place of 3."""
    samples = 3 if colours == "RGB" else 1

    def decode(stream: bytes, number: int, divisor: int) -> np.ndarray:
        whole, (rows, columns, components) = complete_jpeg(stream, tables, is_ycbcr)
        if rows > height or columns != width or components != samples:
            raise ValueError(f"JPEG of {columns} x {rows} x {components} where {width} x {height} x {samples} is due")
        lossless = _is_lossless(whole)
        if lossless and is_ycbcr:
            raise ValueError(f"a lossless JPEG whose tag says YCbCr must be converted: {CONVERT}")
        if lossless and divisor > 1:  # libjpeg-turbo would write beyond its array
            size = -(-columns // divisor), -(-rows // divisor)
            return cv2.resize(decode(stream, number, 1), size, interpolation=cv2.INTER_AREA)
        least = {"min_height": -(-rows // divisor), "min_width": -(-columns // divisor), "min_factor": divisor}
        return simplejpeg.decode_jpeg(
            whole, colours, fastdct=False, fastupsample=False, strict=True, **(least if divisor > 1 else {})
        )

    return decode


def jpeg2000(height: int, width: int, samples: int) -> Decode:
    """JPEG 2000 streams, high-throughput ones (HTJ2K) too -> pixels (rows up to `height`, `width`, `samples`)."""

    def decode(stream: bytes, number: int, divisor: int) -> np.ndarray:
        _check_end(stream)
        at = stream.find(b"\xff\x51", 0, 4096)  # SIZ: Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz
        if at < 0:
            raise ValueError("no JPEG 2000 size marker")
        right, bottom, left, top = struct.unpack_from(">IIII", stream, at + 6)
        lines = bottom - top  # the last strip has fewer
        if right - left != width or not 0 < lines <= height:
            raise ValueError(f"JPEG 2000 of {right - left} x {lines} where {width} x {height} is due")
        rows, columns = -(-lines // divisor), -(-width // divisor)
        halvings = divisor.bit_length() - 1
        if halvings > _jpeg2000_levels(stream):  # OpenJPEG cannot: the mean of the whole's pixels
            whole = decode(stream, number, 1)
            return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, samples)
        pixels = _reduced(stream, halvings) if halvings else imagecodecs.jpeg2k_decode(stream, numthreads=1)
        if pixels.shape != (rows, columns, 3)[: 3 if samples == 3 else 2] or pixels.dtype != np.uint8:
            raise ValueError(f"JPEG 2000 gave {pixels.shape} of {pixels.dtype}")
        return pixels.reshape(rows, columns, samples)

    return decode


def _check_end(stream: bytes) -> None:
    """`ValueError` where a stream of JPEG 2000 or WebP ends in a hole: their decoders make up the rest without a word."""
    if stream.endswith(HOLE) and not stream.rstrip(b"\0").endswith(TABLES_END):
        raise ValueError("the stream ends in zeros: a part of it was not copied")


def _jpeg2000_levels(stream: bytes) -> int:
    """How often the stream's wavelets halve it, from its COD marker (ISO 15444-1, A.6.1)."""
    at = stream.find(b"\xff\x52", 0, 4096)
    return stream[at + 9] if 0 <= at < len(stream) - 9 else 0


def _reduced(stream: bytes, halvings: int) -> np.ndarray:
    """The picture at a lower resolution of its wavelets, 3 to 9 times faster than the whole; imagecodecs has no such argument."""
    try:
        with Image.open(io.BytesIO(stream), formats=("JPEG2000",)) as picture:
            picture.reduce = halvings  # type: ignore[method-assign, assignment]  Pillow's way to say it for this format
            return np.asarray(picture)
    except OSError as error:
        raise ValueError(str(error)) from error


def _other(page: tifffile.TiffPage, height: int, width: int, samples: int) -> Decode:
    """Uncompressed, LZW, Deflate, ZSTD, WebP, ... through tifffile, (rows, width, samples)."""
    row_bytes = width * samples
    deflated = int(page.compression) in {DEFLATE, ADOBE_DEFLATE}

    def decode(stream: bytes, number: int, divisor: int) -> np.ndarray:
        if deflated or int(page.compression) == 1:
            stream = bytes(imagecodecs.bitorder_decode(stream)) if int(page.fillorder) == 2 else stream
            stream = inflate(stream, height * row_bytes) if deflated else stream
            pixels = np.frombuffer(stream, np.uint8)[: len(stream) // row_bytes * row_bytes].reshape(-1, width, samples)
            if int(page.predictor) == 2:
                pixels = np.cumsum(pixels, axis=1, dtype=np.uint8)
            elif int(page.predictor) != 1:
                raise ValueError(f"predictor {page.predictor} is not one of 8-bit images")
        else:
            if len(stream) > 2 * height * row_bytes + 65_536:
                raise ValueError(f"{len(stream)} bytes for {height * row_bytes} bytes of pixels")
            if int(page.compression) == WEBP:
                _check_end(stream)
            decoded = page.decode(stream, number, jpegtables=page.jpegtables, _fullsize=page.is_tiled)[0]
            if decoded is None:
                raise ValueError("no pixels")
            pixels = decoded.reshape(-1, width, samples)
        if not len(pixels) or len(pixels) > height:
            raise ValueError(f"{len(pixels)} rows where {height} are due")
        return pixels

    return decode


def inflate(stream: bytes, most: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Deflated bytes, at most `most` of them: a bomb is cut short and refused. `wbits`: zlib's, negative without its header."""
    inflater = zlib.decompressobj(wbits)
    data = inflater.decompress(stream, most)
    if not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
        raise ValueError(f"inflates to more than the {most} bytes of its pixels")
    if not inflater.eof:
        raise ValueError("deflated data end early")
    return data


def over_white(rgba: np.ndarray, fourth: int = UNASSOCIATED) -> np.ndarray:
    """Four samples -> RGB: alpha over white, a sample that is not alpha left out. Opaque pixels come out as they are."""
    alpha = rgba[..., 3:]
    if fourth == UNSPECIFIED or alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    if fourth == ASSOCIATED:
        return np.minimum(rgba[..., :3].astype(np.uint16) + (255 - alpha), 255).astype(np.uint8)
    weight = alpha.astype(np.float32) / 255
    return np.rint(rgba[..., :3] * weight + 255 * (1 - weight)).astype(np.uint8)
