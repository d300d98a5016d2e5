"""Our TIFF reader against OpenSlide, pixel by pixel, on files made in every layout; and what passes decode."""

from dataclasses import replace

import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from test_slide import write_slide

from mil.errors import SlideError
from mil.slides.passes import TILES_A_RUN, plan
from mil.slides.readers.codecs import DECODE_ERRORS, jpeg2000
from mil.slides.readers.openslide import OpenSlideReader
from mil.slides.readers.segments import SegmentGrid
from mil.slides.readers.tiff import TiffReader
from mil.slides.slide import Reading, open_slide

APERIO = "Aperio Image Library v12.0.0 |AppMag = 40|MPP = 0.25"


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colour with fine grain on it, so that chroma, edges and rounding all show."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    base = np.stack([128 + 90 * np.sin(x / 17), 128 + 90 * np.cos(y / 23), 128 + 90 * np.sin((x + y) / 31)], axis=-1)
    return np.clip(base + random.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def write_jpeg_tiles(path, pixels, tile=256, subsampling="420", tables=False, missing=(), photometric="ycbcr"):
    """A tiled JPEG TIFF from tiles encoded here: shared tables, missing tiles and RGB-coded tiles as asked."""
    down, across = -(-pixels.shape[0] // tile), -(-pixels.shape[1] // tile)
    padded = np.pad(
        pixels, ((0, down * tile - pixels.shape[0]), (0, across * tile - pixels.shape[1]), (0, 0)), mode="edge"
    )
    streams, shared = [], b""
    for index in range(down * across):
        row, column = divmod(index, across)
        piece = np.ascontiguousarray(padded[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
        stream = simplejpeg.encode_jpeg(piece, quality=85, colorsubsampling=subsampling)
        stream, shared = without_tables(stream) if tables else (stream, shared)
        streams.append(b"" if index in missing else stream)
    tags = [(347, 7, len(shared), shared, True)] if tables else []
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(streams), shape=pixels.shape, dtype=np.uint8, tile=(tile, tile), photometric=photometric, compression="jpeg",
            subsampling=(int(4 / int(subsampling[1])), 2 if subsampling == "420" else 1), metadata=None,
            description=APERIO, extratags=tags,
        )  # fmt: skip
    return path


def without_tables(stream: bytes) -> tuple[bytes, bytes]:
    """(abbreviated stream, tables-only stream) of a JPEG whose quantisation and Huffman tables are put apart."""
    kept, tables, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in {0xDB, 0xC4}:
            tables += stream[at:end]
        else:
            kept += stream[at:end]
        at = end
    return kept + stream[at:], tables + b"\xff\xd9"


def assert_same_as_openslide(path) -> None:
    theirs, ours = OpenSlideReader(path), TiffReader(path, OpenSlideReader(path))
    assert ours.grid(0) is not None
    width, height = ours.header.levels[0].width, ours.header.levels[0].height
    for x, y, across, down in [(0, 0, min(width, 1100), min(height, 1100)), (width - 90, height - 70, 120, 100), (-30, -20, 200, 150), (101, 37, 64, 64)]:  # fmt: skip
        np.testing.assert_array_equal(ours.read(0, x, y, across, down), theirs.read(0, x, y, across, down))
    ours.close()
    theirs.close()


@pytest.mark.parametrize("tile", [240, 256, 512, 1024])
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_jpeg_tiles_are_openslides_pixels(tmp_path, tile, subsampling):
    assert_same_as_openslide(write_jpeg_tiles(tmp_path / "a.tif", texture(700, 530), tile, subsampling))


def test_shared_tables_are_put_in(tmp_path):
    assert_same_as_openslide(write_jpeg_tiles(tmp_path / "a.svs", texture(700, 530), tables=True))


def test_missing_tiles_are_glass(tmp_path):
    path = write_jpeg_tiles(tmp_path / "a.svs", texture(700, 530), missing={1, 5})
    assert_same_as_openslide(path)
    with open_slide(path) as slide:
        assert (slide.read_region(256, 0, 0, 256, 256) == 255).all()
        assert slide.read_region(0, 0, 0, 256, 256).mean() < 200


def test_rgb_photometric_beats_the_streams_own_marker(tmp_path):
    path = write_jpeg_tiles(tmp_path / "a.svs", texture(600, 300), photometric="rgb")
    assert_same_as_openslide(path)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("predictor", [False, True])
def test_lossless_tiles_are_what_was_written(tmp_path, compression, predictor):
    if predictor and compression is None:
        pytest.skip("TIFF has no predictor without compression")
    pixels = texture(500, 300)
    path = write_slide(tmp_path / "a.svs", pixels, compression=compression, predictor=predictor, levels=(2,))
    assert_same_as_openslide(path)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 500, 300), pixels)


@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides_are_openslides_pixels(shared, name):
    assert_same_as_openslide(shared / "data" / "slides" / name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.4321])
def test_a_pass_gives_the_tiles_read_one_by_one(tmp_path, threads, mpp):
    path = write_jpeg_tiles(tmp_path / "a.svs", texture(1000, 900))
    coords = np.array([[x, y] for y in range(-20, 800, 130) for x in range(0, 1000, 90)])
    with open_slide(path) as slide:
        got = list(slide.read_tiles(coords, 48, mpp, threads))
        np.testing.assert_array_equal(np.concatenate([index for index, _ in got]), np.arange(len(coords)))
        tiles = np.concatenate([tiles for _, tiles in got])
        for tile, (x, y) in zip(tiles, coords, strict=True):
            np.testing.assert_array_equal(tile, slide.read_tile(int(x), int(y), 48, mpp))


def test_a_pass_decodes_each_tile_once(tmp_path, monkeypatch):
    path = write_jpeg_tiles(tmp_path / "a.svs", texture(2000, 1500))
    loaded = []
    load = SegmentGrid.load
    monkeypatch.setattr(SegmentGrid, "load", lambda grid, number: loaded.append(number) or load(grid, number))
    coords = np.array([[x, y] for y in range(0, 1400, 70) for x in range(0, 1900, 70)])
    with open_slide(path) as slide:
        for _ in slide.read_tiles(coords, 100, 0.25, 2):
            pass
    assert sorted(loaded) == list(range(8 * 6))


def test_a_strip_larger_than_what_may_be_kept_is_decoded_once_a_pass(tmp_path):
    """It was decoded again for every 16 tiles, a flat slide of 20,000 x 20,000 pixels hundreds of times."""
    tifffile.imwrite(tmp_path / "a.tif", texture(1000, 800), photometric="rgb", rowsperstrip=800)
    boxes = np.array([[x, y, 20, 20] for y in range(0, 800, 20) for x in range(0, 1000, 20)])
    with open_slide(tmp_path / "a.tif") as slide:
        grid = slide.reader.grid(0)
        assert plan(grid, boxes, TILES_A_RUN, kept_bytes=grid.segment_bytes - 1).segments.tolist() == [0]
        two = replace(grid, segment_height=400)
        found = plan(two, boxes, TILES_A_RUN, kept_bytes=1)
    runs = [run * TILES_A_RUN for run in found.owners.tolist()]
    assert found.segments.tolist() == [0, 1]
    assert runs == [0, 992]  # box 1000 is the first of the second strip


def test_little_memory_means_more_decoding_never_other_pixels(tmp_path):
    path = write_jpeg_tiles(tmp_path / "a.svs", texture(2000, 700))
    with open_slide(path) as slide:
        grid = slide.reader.grid(0)
        boxes = np.array([[x, y, 120, 120] for y in range(0, 570, 60) for x in range(0, 1880, 60)])
        roomy, tight = plan(grid, boxes, TILES_A_RUN), plan(grid, boxes, TILES_A_RUN, kept_bytes=grid.segment_bytes * 4)
    assert len(roomy.segments) == len(set(roomy.segments.tolist())) == grid.across * grid.down
    assert len(tight.segments) > len(roomy.segments)
    assert set(tight.segments.tolist()) == set(roomy.segments.tolist())
    for run, stays in enumerate(tight.by_run):
        needed = {n for box in boxes[run * TILES_A_RUN : (run + 1) * TILES_A_RUN] for n in grid.touched(*box)}
        assert set(tight.segments[stays].tolist()) == needed
        assert (tight.owners[stays] <= run).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_broken_tile_is_an_error_or_left_out_never_white(tmp_path, threads):
    path = write_jpeg_tiles(tmp_path / "a.svs", texture(1024, 768))
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    coords = np.array([[x, y] for y in range(0, 768, 128) for x in range(0, 1024, 128)])
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match="x 256, y 256") as raised:
            list(slide.read_tiles(coords, 128, 0.25, threads))
        assert raised.value.state == "unreadable_region"
        got = list(slide.read_tiles(coords, 128, 0.25, threads, Reading(drop_unreadable=True)))
        indices = np.concatenate([index for index, _ in got])
        bad = [i for i, (x, y) in enumerate(coords) if 256 <= x < 512 and 256 <= y < 512]
        assert sorted(set(range(len(coords))) - set(indices.tolist())) == bad
        assert all((tile < 250).any() for _, tiles in got for tile in tiles)


def test_openslide_reads_on_after_a_broken_region(shared, tmp_path):
    data = bytearray((shared / "data/slides/fluorescence.ndpi").read_bytes())
    data[400_000:410_000] = bytes(10_000)
    path = tmp_path / "broken.ndpi"
    path.write_bytes(data)
    reader = OpenSlideReader(path)
    whole = openslide.OpenSlide(shared / "data/slides/fluorescence.ndpi")
    bad = 0
    for y in range(0, 4864, 256):
        try:
            found = reader.read(0, 0, y, 3968, 64)
        except SlideError:
            bad += 1
            continue
        np.testing.assert_array_equal(found, np.asarray(whole.read_region((0, y), 0, (3968, 64)))[..., :3])
    assert 0 < bad < 5
    whole.close()
    with open_slide(path) as slide:  # threads beside each other, of which one meets the fault
        corners = np.array([[x, y] for y in range(0, 4608, 256) for x in range(0, 3840, 256)])
        mpp = slide.mpp
        got = list(slide.read_tiles(corners, 256, mpp, 3, Reading(drop_unreadable=True)))
        indices = np.concatenate([index for index, _ in got])
        assert 0.7 * len(corners) < len(indices) < len(corners)
        for index, tiles in got[::5]:
            x, y = corners[index[0]].tolist()
            np.testing.assert_array_equal(tiles[0], reader.read(0, x, y, 256, 256))
    reader.close()


def test_scaled_decoding_is_close_where_corners_allow_it_and_exact_elsewhere(shared):
    scaled = Reading(decoding="scaled")
    with open_slide(shared / "data" / "slides" / "cmu-1-small-region.svs", mpp=0.25) as slide:
        exact = slide.read_tile(504, 1000, 224, 0.5).astype(float)
        close = slide.read_tile(504, 1000, 224, 0.5, scaled)
        assert 0 < np.abs(exact - close).mean() < 0.3
        np.testing.assert_array_equal(next(slide.read_tiles(np.array([[504, 1000]]), 224, 0.5, 1, scaled))[1][0], close)
        # half a pixel of the scaled image cannot be made up for: such corners are decoded in full
        np.testing.assert_array_equal(
            slide.read_tile(501, 1000, 224, 0.5, scaled), slide.read_tile(501, 1000, 224, 0.5)
        )
    with open_slide(shared / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs", mpp=0.25) as slide:  # JPEG 2000
        exact = slide.read_tile(504, 1000, 224, 0.5).astype(float)
        assert 0 < np.abs(exact - slide.read_tile(504, 1000, 224, 0.5, scaled)).mean() < 5
        np.testing.assert_array_equal(
            slide.read_tile(501, 1000, 224, 0.5, scaled), slide.read_tile(501, 1000, 224, 0.5)
        )


@pytest.mark.parametrize(("levels", "is_reduced"), [(5, True), (1, False)])
def test_jpeg_2000_is_brought_down_by_its_wavelets_where_it_has_them(tmp_path, levels, is_reduced):
    """Where decoding is `scaled`: close to the mean of pixels, or exactly that where the stream cannot be halved so often."""
    pixels = texture(512, 256)
    for samples in (3, 1):
        tile = np.ascontiguousarray(pixels[:256, :256] if samples == 3 else pixels[:256, :256, 0])
        stream = imagecodecs.jpeg2k_encode(tile, reversible=True, resolutions=levels + 1, codecformat="j2k")
        decode = jpeg2000(256, 256, samples)
        np.testing.assert_array_equal(decode(stream, 0, 1)[..., 0], tile[..., 0] if samples == 3 else tile)
        for divisor in (2, 4, 8):
            found, size = decode(stream, 0, divisor), 256 // divisor
            mean = tile.reshape(size, divisor, size, divisor, samples).mean(axis=(1, 3))
            assert found.shape == mean.shape
            assert np.abs(found - mean).mean() < (12 if is_reduced or divisor == 2 else 0.51)
    if is_reduced:
        with pytest.raises(DECODE_ERRORS):
            decode(stream[: len(stream) // 3], 0, 4)
