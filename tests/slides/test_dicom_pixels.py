"""DICOM whole-slide images by how their pixels are stored: right pixels, or one line with the tool that converts them."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID
from test_slide_formats import state_of
from test_slide_readers import texture

from mil.slides.slide import open_slide

TILE = 128
PIXELS = texture(300, 200)
EXPLICIT, JPEG, JPEG2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
JPEG_LS, HTJ2K, RLE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"


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


def write(path: Path, syntax: str, encode, photometric: str, planar: int = 0, missing: tuple[int, ...] = ()) -> None:
    """A level of 300 x 200 pixels of 0.5 microns in frames of 128; with `missing` frames it is TILED_SPARSE."""
    height, width = PIXELS.shape[:2]
    whole = np.full((-(-height // TILE) * TILE, -(-width // TILE) * TILE, 3), 255, np.uint8)
    whole[:height, :width] = PIXELS
    corners = [(y, x) for y in range(0, height, TILE) for x in range(0, width, TILE)]
    corners = [corner for number, corner in enumerate(corners) if number not in missing]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(syntax)
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
    spacing.PixelSpacing, spacing.SliceThickness = [0.0005, 0.0005], 0.001
    shared.PixelMeasuresSequence = Sequence([spacing])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    header.DimensionOrganizationType = "TILED_SPARSE" if missing else "TILED_FULL"
    if missing:
        header.PerFrameFunctionalGroupsSequence = Sequence([positioned(y, x) for y, x in corners])
    frames = [encode(np.ascontiguousarray(whole[y : y + TILE, x : x + TILE])) for y, x in corners]
    header.PixelData = b"".join(frames) if syntax == EXPLICIT else encapsulate(frames)
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = syntax != EXPLICIT
    header.save_as(path, enforce_file_format=True)


def positioned(y: int, x: int) -> Dataset:
    position, frame = Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
    frame.PlanePositionSlideSequence = Sequence([position])
    return frame


@pytest.mark.parametrize("missing", [(), (4,)])
@pytest.mark.parametrize(
    ("syntax", "encode", "photometric", "most"),
    [(EXPLICIT, raw, "RGB", 0), (JPEG, jpeg, "YBR_FULL_422", 12), (JPEG2000, jpeg2000, "YBR_RCT", 0)],
)
def test_pixels_that_openslide_reads_are_right_and_frames_that_are_missing_are_counted(
    tmp_path, syntax, encode, photometric, most, missing
):
    write(tmp_path / "a.dcm", syntax, encode, photometric, missing=missing)
    assert state_of(tmp_path / "a.dcm") == ("ok", "")
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.mpp == pytest.approx(0.5)
        found = slide.read_region(0, 0, 0, 300, 200).astype(int)
        assert (slide.reader.gaps() is not None) == bool(missing)
    expected = PIXELS.astype(int)
    if missing:
        expected[128:200, 128:256] = 255
    assert np.abs(found - expected).max() <= most


@pytest.mark.parametrize(
    ("syntax", "encode", "photometric", "planar"),
    [
        (JPEG_LS, imagecodecs.jpegls_encode, "RGB", 0),
        (HTJ2K, imagecodecs.htj2k_encode, "YBR_RCT", 0),
        (RLE, rle, "RGB", 1),
        (EXPLICIT, apart, "RGB", 1),
    ],
)
def test_pixels_that_it_does_not_read_end_in_a_line_with_the_tool(tmp_path, syntax, encode, photometric, planar):
    write(tmp_path / "a.dcm", syntax, encode, photometric, planar)
    state, reason = state_of(tmp_path / "a.dcm", "0.5")
    assert state == "unreadable"
    assert reason.startswith("a.dcm: OpenSlide refuses it (")
    assert "convert it: with wsidicom" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("syntax", "encode"), [(RLE, rle), (EXPLICIT, apart)])
def test_the_conversion_by_pydicom_that_the_page_gives(tmp_path, syntax, encode):
    write(tmp_path / "a.dcm", syntax, encode, "RGB", planar=1)
    header = pydicom.dcmread(tmp_path / "a.dcm")
    header.set_pixel_data(pydicom.pixels.pixel_array(header), "RGB", 8, generate_instance_uid=False)
    (tmp_path / "out").mkdir()
    header.save_as(tmp_path / "out" / "b.dcm")
    with open_slide(tmp_path / "out") as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), PIXELS)
