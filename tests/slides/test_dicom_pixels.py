"""DICOM whole-slide images by how their pixels are stored: right pixels, or one line that says what to do."""

import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_writing import (
    DEFLATED,
    DEFLATED_FRAMES,
    EXPLICIT,
    HTJ2K,
    HTJ2K_LOSSY,
    IMPLICIT,
    JPEG,
    JPEG2000,
    JPEG_LS,
    JPEG_XL,
    LOSSLESS_JPEG,
    NEAR_LS,
    PIXELS,
    RLE,
    apart,
    deflated,
    jpeg,
    jpeg2000,
    jpeg_xl,
    lossless_jpeg,
    lossy_htj2k,
    near,
    raw,
    rle,
    write,
)
from pydicom.pixels import convert_color_space
from test_slide_formats import state_of

from mil.slides.fingerprint import state_on_disk
from mil.slides.readers import dicom
from mil.slides.readers.dicom import check_dicom
from mil.slides.slide import open_slide


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


def read(path: Path) -> np.ndarray:
    assert state_of(path)[0] == "ok"
    with open_slide(path) as slide:
        assert (slide.format, slide.mpp_source) == ("dicom", "dicom.PixelSpacing")
        assert slide.mpp == pytest.approx(0.5)
        return slide.read_region(0, 0, 0, 300, 200)


@pytest.mark.parametrize(
    ("syntax", "encode", "most"),
    [
        (JPEG_LS, imagecodecs.jpegls_encode, 0),
        (NEAR_LS, near, 2),
        (HTJ2K, imagecodecs.htj2k_encode, 0),
        (HTJ2K_LOSSY, lossy_htj2k, 4),
        (RLE, rle, 0),
        (LOSSLESS_JPEG, lossless_jpeg, 0),
        (JPEG_XL, jpeg_xl, 0),
        (DEFLATED_FRAMES, deflated, 0),
    ],
)
def test_frames_that_openslide_does_not_read_have_the_pixels_that_were_written(tmp_path, syntax, encode, most):
    write(tmp_path / "a.dcm", syntax, encode)
    assert np.abs(read(tmp_path / "a.dcm").astype(int) - PIXELS).max() <= most
    with open_slide(tmp_path / "a.dcm") as slide:
        for mpp in (0.5, 1.0, 1.37):
            whole = [tile for _, tiles in slide.read_tiles(np.array([[0, 0], [77, 33]]), 60, mpp) for tile in tiles]
            np.testing.assert_array_equal(whole[1], slide.read_tile(77, 33, 60, mpp))


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("missing", [(), (0, 4)])
def test_frames_that_are_missing_are_white_and_counted_whatever_lists_the_frames(tmp_path, table, missing):
    write(tmp_path / "a.dcm", JPEG_LS, imagecodecs.jpegls_encode, missing=missing, table=table)
    expected = PIXELS.copy()
    if missing:
        expected[:128, :128] = expected[128:200, 128:256] = 255
    np.testing.assert_array_equal(read(tmp_path / "a.dcm"), expected)
    with open_slide(tmp_path / "a.dcm") as slide:
        gaps = slide.reader.gaps()
        assert (gaps.cells.ravel().nonzero()[0].tolist() if gaps else []) == list(missing)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
@pytest.mark.parametrize(("encode", "planar"), [(raw, 0), (apart, 1)])
def test_native_pixels_together_and_apart(tmp_path, syntax, encode, planar):
    write(tmp_path / "a.dcm", syntax, encode, planar=planar)
    np.testing.assert_array_equal(read(tmp_path / "a.dcm"), PIXELS)


@pytest.mark.parametrize(
    ("syntax", "encode", "planar"),
    [(EXPLICIT, apart, 1), (IMPLICIT, raw, 0), (JPEG_LS, imagecodecs.jpegls_encode, 0), (RLE, rle, 1)],
)
def test_luma_and_chroma_become_red_green_and_blue(tmp_path, syntax, encode, planar):
    """By ITU-T T.871; `expected` is what these bytes of luma and chroma stand for."""
    ybr = convert_color_space(PIXELS, "RGB", "YBR_FULL").astype(float)
    luma, blue, red = ybr[..., 0], ybr[..., 1] - 128, ybr[..., 2] - 128
    expected = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    write(tmp_path / "a.dcm", syntax, encode, "YBR_FULL", planar, pixels=ybr.astype(np.uint8))
    assert np.abs(read(tmp_path / "a.dcm") - np.clip(expected, 0, 255)).max() <= 1.01


def test_a_frame_in_several_fragments(tmp_path):
    write(tmp_path / "a.dcm", JPEG_LS, imagecodecs.jpegls_encode, fragments=3)
    np.testing.assert_array_equal(read(tmp_path / "a.dcm"), PIXELS)
    write(tmp_path / "a.dcm", JPEG_LS, imagecodecs.jpegls_encode, fragments=3, table="none")
    state, reason = state_of(tmp_path / "a.dcm")
    assert state == "unreadable"
    assert "its DICOM structure is broken (it lists the offsets of 18 frames of 6)" in reason


@pytest.mark.parametrize("entry", ["a.dcm", "b.dcm", ""])
def test_a_series_of_two_levels_of_which_openslide_reads_one(tmp_path, entry):
    write(tmp_path / "a.dcm", JPEG_LS, imagecodecs.jpegls_encode)
    write(tmp_path / "b.dcm", JPEG, jpeg, "YBR_FULL_422", pixels=PIXELS[::2, ::2], SOPInstanceUID="1.9")
    write(tmp_path / "c.dcm", JPEG, jpeg, "YBR_FULL_422", pixels=PIXELS[::8, ::8], SOPInstanceUID="1.10", ImageType=["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"])  # fmt: skip
    with open_slide(tmp_path / entry) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(300, 200), (150, 100)]
    np.testing.assert_array_equal(read(tmp_path / entry), PIXELS)


REFUSED = {
    "one colour": ("not_a_slide", {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "red, green and blue of 8 bits"),
    "16 bits": ("not_a_slide", {"BitsAllocated": 16, "BitsStored": 12}, "red, green and blue of 8 bits"),
    "palette": ("unsupported", {"PhotometricInterpretation": "PALETTE COLOR"}, "colours PALETTE COLOR) cannot be read; convert it: with wsidicom"),
    "halved chroma": ("unsupported", {"PhotometricInterpretation": "YBR_FULL_422"}, "colours YBR_FULL_422) cannot be read"),
    "planes": ("unsupported", {"TotalPixelMatrixFocalPlanes": 3}, "TotalPixelMatrixFocalPlanes 3"),
    "parts": ("unsupported", {"InConcatenationTotalNumber": 2}, "InConcatenationTotalNumber 2"),
    "frames": ("unreadable", {"NumberOfFrames": 7}, "lists 7 frames for 6 tiles"),
    "bomb": ("implausible_size", {"TotalPixelMatrixColumns": 2**31 - 1, "TotalPixelMatrixRows": 2**31 - 1}, "declares"),
    "sizes": ("not_a_slide", {"Rows": 0}, "no size"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_brightfield_level_is_refused_in_a_line(tmp_path, kind):
    state, elements, said = REFUSED[kind]
    write(tmp_path / "a.dcm", JPEG_LS, imagecodecs.jpegls_encode, **elements)
    found, reason = state_of(tmp_path / "a.dcm", "0.5")
    assert (found, reason.startswith("a.dcm: "), "\n" in reason) == (state, True, False)
    assert said in reason


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(JPEG_LS, imagecodecs.jpegls_encode), (HTJ2K, imagecodecs.htj2k_encode), (RLE, rle), (LOSSLESS_JPEG, lossless_jpeg), (JPEG_XL, jpeg_xl), (DEFLATED_FRAMES, deflated)],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.99, 0.1])
def test_a_frame_that_is_cut_short_refuses_the_slide(tmp_path, syntax, encode, share):
    frames = iter(range(6))

    def cut(tile: np.ndarray) -> bytes:
        stream = encode(tile)
        return stream[: int(len(stream) * share)] if next(frames) == 4 else stream

    write(tmp_path / "a.dcm", syntax, cut)
    state, reason = state_of(tmp_path / "a.dcm")
    assert state == "unreadable_region"
    assert reason.startswith("a.dcm: the tile at x 128, y 128 cannot be decoded (")
    assert "\n" not in reason


@pytest.mark.parametrize(("syntax", "encode"), [(JPEG_LS, imagecodecs.jpegls_encode), (EXPLICIT, apart), (DEFLATED, raw)])  # fmt: skip
def test_a_file_that_is_cut_off_or_damaged_ends_in_a_line(tmp_path, syntax, encode):
    path, stream = tmp_path / "a.dcm", np.random.default_rng(0)
    write(path, syntax, encode, planar=1 if encode is apart else 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    assert state_of(path)[0] == "unreadable"
    for _ in range(25):
        damaged = bytearray(whole)
        for at in stream.integers(132, 2500, 3):
            damaged[at] = stream.integers(256)
        path.write_bytes(damaged)
        state, reason = state_of(path)
        assert state == "ok" or reason.startswith("a.dcm: ")
        assert "\n" not in reason


def test_an_element_of_a_wrong_length_ends_in_a_line(tmp_path):
    write(tmp_path / "a.dcm", JPEG_LS, imagecodecs.jpegls_encode)
    whole, columns = (tmp_path / "a.dcm").read_bytes(), struct.pack("<HH2sH", 0x48, 6, b"UL", 4)
    (tmp_path / "a.dcm").write_bytes(whole.replace(columns, columns[:6] + struct.pack("<H", 255), 1))
    state, reason = state_of(tmp_path / "a.dcm")
    assert (state, len(reason) < 200) == ("unreadable", True)
    assert "its DICOM structure is broken (Expected total bytes" in reason


def test_a_bomb_in_a_deflated_header_is_not_inflated(tmp_path):
    write(tmp_path / "a.dcm", DEFLATED, raw)
    start = (tmp_path / "a.dcm").read_bytes()[:500]
    length = 144 + struct.unpack_from("<I", start, 140)[0]
    data = zlib.compressobj(wbits=-15)
    text = data.compress(struct.pack("<HH2sHI", 8, 5, b"OB", 0, 2**30) + bytes(2**28)) + data.flush()
    (tmp_path / "a.dcm").write_bytes(start[:length] + text)
    tracemalloc.start()
    check_dicom(tmp_path / "a.dcm")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_levels_in_several_folders_are_refused(tmp_path):
    """Those of one folder are read together: the coarser level stood for the slide."""
    for name, pixels, uid in (("1", PIXELS[::2, ::2], "1.9"), ("2", PIXELS, "1.3")):
        (tmp_path / "slide" / name).mkdir(parents=True)
        write(tmp_path / "slide" / name / "a.dcm", JPEG, jpeg, "YBR_FULL_422", pixels=pixels, SOPInstanceUID=uid)
    state, reason = state_of(tmp_path / "slide")
    assert (state, "put its files into one" in reason) == ("unsupported", True)
    (tmp_path / "slide/2/a.dcm").rename(tmp_path / "slide/1/b.dcm")
    with open_slide(tmp_path / "slide") as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(300, 200), (150, 100)]


def test_a_level_that_is_added_beside_a_slide_s_file_is_noticed(tmp_path):
    write(tmp_path / "b.dcm", JPEG, jpeg, "YBR_FULL_422", pixels=PIXELS[::2, ::2], SOPInstanceUID="1.9")
    before = state_on_disk(tmp_path / "b.dcm")
    assert state_on_disk(tmp_path / "b.dcm") == before
    time.sleep(0.02)  # what a file system's clock may take
    write(tmp_path / "a.dcm", JPEG, jpeg, "YBR_FULL_422")
    assert state_on_disk(tmp_path / "b.dcm") != before


def test_the_headers_of_a_folder_are_read_once_until_a_file_changes(tmp_path, monkeypatch):
    read, opened = [], dicom.opened
    monkeypatch.setattr(dicom, "opened", lambda path, *others: [read.append(path.name), opened(path, *others)][1])
    for number in range(3):
        write(tmp_path / f"{number}.dcm", JPEG, jpeg, "YBR_FULL_422", SeriesInstanceUID=f"1.5.{number}")
    for number in (0, 1, 2, 0):
        assert dicom.siblings(tmp_path / f"{number}.dcm") == [tmp_path / f"{number}.dcm"]
    assert sorted(read) == ["0.dcm", "1.dcm", "2.dcm"]
    write(tmp_path / "1.dcm", JPEG, jpeg, "YBR_FULL_422", SeriesInstanceUID="1.5.0")
    assert dicom.siblings(tmp_path / "0.dcm") == [tmp_path / "0.dcm", tmp_path / "1.dcm"]
    assert sorted(read) == ["0.dcm", "1.dcm", "1.dcm", "2.dcm"]
