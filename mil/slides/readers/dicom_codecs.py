"""How a DICOM slide's frames are stored -> the codec that gives their RGB pixels, refusing whatever is not what the header promised.

JPEG-LS is decoded by CharLS, JPEG XL by libjxl, run-length coding by imagecodecs; JPEG (lossless too) and JPEG 2000 (HTJ2K too) by the
libraries that decode them in TIFF.
"""

import struct
import zlib
from collections.abc import Callable
from functools import partial

import imagecodecs
import numpy as np

from mil.slides.readers.codecs import TABLES_END, Codec, Decode, inflate, jpeg, jpeg2000
from mil.slides.readers.dicom import DEFLATED

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
NATIVE = {IMPLICIT, EXPLICIT, DEFLATED}
"""Transfer syntaxes whose pixels lie in the data set as they are; the last is deflated as a whole."""
LOSSY_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
JPEG2000 = {f"1.2.840.10008.1.2.4.{last}" for last in (90, 91, 201, 202, 203)}
JPEG_XL = {f"1.2.840.10008.1.2.4.{last}" for last in (110, 111, 112)}
ITEM, END = 0xE000FFFE, 0xE0DDFFFE  # tags of a fragment and of the end of all, as they lie in the file


def frame_codec(syntax: str, photometric: str, planar: int, height: int, width: int) -> Codec | None:
    """The codec of frames (`height`, `width`, 3) of 8 bits, by DICOM's names of the transfer syntax and the colours; None where there is
    none. `planar` is 1 where the colours of a native frame are stored apart."""
    if photometric not in _colours_of(syntax):
        return None
    if syntax in LOSSY_JPEG:
        return Codec(_joined(jpeg(b"", photometric != "RGB", height, width)), (2, 4, 8))
    if syntax in NATIVE:
        decode = _native(planar, height, width)
    else:
        make = FRAMES.get(syntax)
        decode = None if make is None else _joined(make(height, width))
    if decode is None:
        return None
    return Codec(_as_rgb(decode) if photometric == "YBR_FULL" else decode)


def _colours_of(syntax: str) -> set[str]:
    """The colours that frames of this transfer syntax may have; of others a decoder's pixels would be taken for red, green and blue."""
    if syntax in JPEG_XL:
        return {"RGB", "YBR_FULL_422", "XYB"}
    return {"RGB", "YBR_FULL"} | (
        {"YBR_RCT", "YBR_ICT"} if syntax in JPEG2000 else {"YBR_FULL_422"} if syntax in LOSSY_JPEG else set()
    )


def _joined(decode: Decode) -> Decode:
    """`decode` for frames that are given as the file has them: fragments, each behind its tag and length."""

    def whole(stream: bytes, number: int, divisor: int) -> np.ndarray:
        parts, at = [], 0
        while at < len(stream):
            tag, length = struct.unpack_from("<II", stream, at)
            if tag == END:
                break
            if tag != ITEM or length > len(stream) - at - 8:
                raise ValueError("a fragment of a frame does not fit into the frame")
            parts.append(stream[at + 8 : at + 8 + length])
            at += 8 + length
        return decode(b"".join(parts), number, divisor)

    return whole


def _as_rgb(decode: Decode) -> Decode:
    from pydicom.pixels.processing import convert_color_space  # here, because few slides need it and it is slow to load

    return lambda stream, number, divisor: convert_color_space(decode(stream, number, divisor), "YBR_FULL", "RGB")


def _native(planar: int, height: int, width: int) -> Decode:
    return lambda stream, number, divisor: _pixels(stream, planar, height, width)


def _pixels(samples: bytes | bytearray, planar: int, height: int, width: int) -> np.ndarray:
    """Samples as they are, uint8 (height, width, 3); with `planar`, all of the first colour, then those of the second."""
    values = np.frombuffer(samples, np.uint8)
    if not planar:
        return values.reshape(height, width, 3)
    return np.ascontiguousarray(np.moveaxis(values.reshape(3, height, width), 0, 2))


def _run_lengths(height: int, width: int) -> Decode:
    def decode(stream: bytes, number: int, divisor: int) -> np.ndarray:
        pixels = 3 * height * width
        if len(stream) > 2 * pixels + 65_536:
            raise ValueError(f"{len(stream)} bytes for {pixels} bytes of pixels")
        return _pixels(imagecodecs.dicomrle_decode(stream, np.dtype("u1")), 1, height, width)

    return decode


def _deflated(height: int, width: int) -> Decode:
    most = 3 * height * width
    return lambda stream, number, divisor: _pixels(inflate(stream, most, -zlib.MAX_WBITS), 0, height, width)


def _by(decoder: Callable[..., np.ndarray]) -> Callable[[int, int], Decode]:
    """A decoder of imagecodecs that refuses streams of another size than the array that it is to fill."""

    def make(height: int, width: int) -> Decode:
        return lambda stream, number, divisor: decoder(stream, out=np.empty((height, width, 3), np.uint8))

    return make


def _jpeg_ls(height: int, width: int) -> Decode:
    decode = _by(imagecodecs.jpegls_decode)(height, width)

    def ended(stream: bytes, number: int, divisor: int) -> np.ndarray:
        if not stream.rstrip(b"\0").endswith(TABLES_END):  # CharLS takes 7 s to notice
            raise ValueError("the JPEG-LS stream ends early")
        return decode(stream, number, divisor)

    return ended


FRAMES: dict[str, Callable[[int, int], Decode]] = {
    "1.2.840.10008.1.2.5": _run_lengths,
    "1.2.840.10008.1.2.8.1": _deflated,
    **{f"1.2.840.10008.1.2.4.{last}": partial(jpeg, b"", False) for last in (57, 70)},
    **{f"1.2.840.10008.1.2.4.{last}": _jpeg_ls for last in (80, 81)},
    **dict.fromkeys(JPEG_XL, _by(imagecodecs.jpegxl_decode)),
    **dict.fromkeys(JPEG2000, partial(jpeg2000, samples=3)),
}
"""By transfer syntax (DICOM PS3.6, table A-1), what decodes the frames that are not native and not lossy JPEG."""
