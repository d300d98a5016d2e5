"""DICOM whole-slide images of drawn pixels, for tests: one level in every way of storing its frames."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence
from pydicom.uid import UID
from test_slide_readers import texture

TILE = 128
PIXELS = texture(300, 200)
EXPLICIT, JPEG, JPEG2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
JPEG_LS, NEAR_LS, RLE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.5"
HTJ2K, HTJ2K_LOSSY, JPEG_XL = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.4.110"
LOSSLESS_JPEG, DEFLATED_FRAMES = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.8.1"
IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
NATIVE = {EXPLICIT, IMPLICIT, DEFLATED}
UNKNOWN = {JPEG_XL: HTJ2K, DEFLATED_FRAMES: JPEG_LS}  # to pydicom, and one of as many bytes that it knows


def raw(tile: np.ndarray) -> bytes:
    return tile.tobytes()


def apart(tile: np.ndarray) -> bytes:
    return np.moveaxis(tile, 2, 0).tobytes()


def jpeg(tile: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(tile, level=98, colorspace="RGB", outcolorspace="YCBCR", subsampling="444")


def jpeg2000(tile: np.ndarray) -> bytes:
    return imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", reversible=True, mct=True)


def rle(tile: np.ndarray) -> bytes:
    planes = [imagecodecs.packbits_encode(np.ascontiguousarray(tile[..., plane])) for plane in range(3)]
    planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
    starts = np.cumsum([64, len(planes[0]), len(planes[1])]).tolist()
    return struct.pack("<16I", 3, *starts, *[0] * 12) + b"".join(planes)


def near(tile: np.ndarray) -> bytes:
    return imagecodecs.jpegls_encode(tile, level=2)


def lossy_htj2k(tile: np.ndarray) -> bytes:
    return imagecodecs.htj2k_encode(tile, reversible=False)


def lossless_jpeg(tile: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(tile, lossless=True, colorspace="RGB", outcolorspace="RGB")


def jpeg_xl(tile: np.ndarray) -> bytes:
    return imagecodecs.jpegxl_encode(tile, lossless=True)


def deflated(tile: np.ndarray) -> bytes:
    data = zlib.compressobj(wbits=-15)
    return data.compress(tile.tobytes()) + data.flush()


def write(
    path: Path,
    syntax: str,
    encode,
    photometric: str = "RGB",
    planar: int = 0,
    missing: tuple[int, ...] = (),
    fragments: int = 1,
    table: str = "basic",
    pixels: np.ndarray = PIXELS,
    **elements,
) -> None:
    """A level of 0.5 microns in frames of 128 pixels; with `missing` frames it is TILED_SPARSE."""
    height, width = pixels.shape[:2]
    whole = np.full((-(-height // TILE) * TILE, -(-width // TILE) * TILE, 3), 255, np.uint8)
    whole[:height, :width] = pixels
    corners = [(y, x) for y in range(0, height, TILE) for x in range(0, width, TILE)]
    corners = [corner for number, corner in enumerate(corners) if number not in missing]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    known = UNKNOWN.get(syntax, syntax)
    header.file_meta.TransferSyntaxUID = UID(known)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.3"
    header.ImageType, header.Modality = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "SM"
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.4", "1.5", "1.6"
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, photometric, planar
    header.Rows = header.Columns = TILE
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = width, height
    header.ImagedVolumeWidth, header.ImagedVolumeHeight = width * 0.0005, height * 0.0005
    header.TotalPixelMatrixFocalPlanes = header.NumberOfOpticalPaths = 1
    header.NumberOfFrames = len(corners)
    spacing, shared = Dataset(), Dataset()
    spacing.PixelSpacing, spacing.SliceThickness = [0.0005 * 300 / width] * 2, 0.001
    shared.PixelMeasuresSequence = Sequence([spacing])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    header.DimensionOrganizationType = "TILED_SPARSE" if missing else "TILED_FULL"
    if missing:
        header.PerFrameFunctionalGroupsSequence = Sequence([positioned(y, x) for y, x in corners])
    frames = [encode(np.ascontiguousarray(whole[y : y + TILE, x : x + TILE])) for y, x in corners]
    if syntax in NATIVE:
        header.PixelData = b"".join(frames)
    elif table == "extended":
        header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        header.PixelData = encapsulate(frames, fragments, has_bot=table == "basic")
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = syntax not in NATIVE
    for name, value in elements.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes().replace(known.encode(), syntax.encode().ljust(len(known), b"\0"), 1))


def positioned(y: int, x: int) -> Dataset:
    position, frame = Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
    frame.PlanePositionSlideSequence = Sequence([position])
    return frame
