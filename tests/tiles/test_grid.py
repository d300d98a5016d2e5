"""The grid and the shares of a mask against arithmetic that is written out: square by square, pixel by pixel."""

import math
from fractions import Fraction

import numpy as np
import pytest
import tifffile

from mil.config import TileSpec
from mil.errors import SlideError
from mil.slides.slide import open_slide
from mil.specs.slides import TissueSpec
from mil.tiles.grid import _edges, check_magnification, grid, shares, tile_slide
from mil.tissue.unscanned import unscanned

WIDTH, HEIGHT, MPP_X, MPP_Y = 331, 207, 2.5, 2.525
TISSUE = TissueSpec(mpp=20.0, min_area_um2=0, margin_um=0, ink_is_glass=False)


def write(target, pixels, tiles=None, **how):
    """A tiled TIFF whose pixels are higher than wide; `tiles` in place of the pixels, None for one that the file does not hold."""
    tifffile.imwrite(
        target, pixels if tiles is None else iter(tiles), shape=pixels.shape, dtype=np.uint8, photometric="rgb", tile=(64, 64),
        resolution=(10_000 / MPP_X, 10_000 / MPP_Y), resolutionunit="CENTIMETER", **how,
    )  # fmt: skip
    return target


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A slide that is wider than high, whose pixels are higher than wide, with one black, never scanned stripe at its right."""
    pixels = np.full((HEIGHT, WIDTH, 3), 180, np.uint8)
    pixels[:, 280:] = 0
    return write(tmp_path_factory.mktemp("grid") / "a.tif", pixels)


def spec(**changes: object) -> TileSpec:
    return TileSpec.model_validate(
        {"size_px": 32, "mpp": 5.0, "min_tissue": 0.0, "quality": None, "tissue": TISSUE} | changes
    )


def starts(length: int, stride: Fraction, side: Fraction, step: int, pad: bool) -> list[int]:
    """Corner i is i strides, rounded to `step`; it counts where its square ends inside (to half a pixel) or, padded, begins inside."""
    found = []
    for number in range(int(length / stride) + 3):
        at = number * stride
        corner = step * round(float(at / step))
        if pad and at <= length - Fraction(1, 2) and corner < length:
            found.append(corner)
        if not pad and at + side <= length + Fraction(1, 2) and corner + side <= length + Fraction(step, 2):
            found.append(corner)
    return found


@pytest.mark.parametrize("edge", ["drop", "pad"])
@pytest.mark.parametrize(("decoding", "step"), [("full", 1), ("scaled", 8)])
@pytest.mark.parametrize("stride", [None, 1, 20, 45])
@pytest.mark.parametrize("size", [16, 32, 103])
def test_corners_are_whole_strides_of_the_slides_own_scale(path, edge, decoding, step, stride, size):
    with open_slide(path) as slide:
        assert (slide.mpp_x, slide.mpp_y) == pytest.approx((MPP_X, MPP_Y), rel=1e-5)
        per_x, per_y = Fraction(5.0 / slide.mpp_x), Fraction(5.0 / slide.mpp_y)
        found = grid(slide, spec(size_px=size, stride_px=stride, edge=edge, decoding=decoding))
    for corners, length, per in zip(found, (WIDTH, HEIGHT), (per_x, per_y), strict=True):
        assert corners.dtype == np.int64
        assert corners.tolist() == starts(length, (stride or size) * per, size * per, step, edge == "pad")


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("step", [1, 8])
def test_edges_at_every_eighth_of_a_pixel(step, pad):
    """Where squares end or begin within half a pixel of the slide's edge."""
    for length in range(22, 34):
        for eighths in (*range(40, 320, 13), *range(44, 140, 8)):
            for stride in (Fraction(eighths, 16), Fraction(eighths, 8)):
                side = Fraction(eighths, 8)
                found = _edges(length, float(stride), float(side), step, pad)
                assert found.tolist() == starts(length, stride, side, step, pad), (length, stride, side)


def counted(mask: np.ndarray, left: float, top: float, side_x: float, side_y: float) -> float:
    """Share of the square that lies in pixels of the mask, from each pixel's overlap with it."""
    rows, columns = (np.arange(length) for length in mask.shape)
    across = np.clip(np.minimum(columns + 1, left + side_x) - np.maximum(columns, left), 0, None)
    down = np.clip(np.minimum(rows + 1, top + side_y) - np.maximum(rows, top), 0, None)
    return down @ mask @ across / (side_x * side_y)


@pytest.mark.parametrize(("side_x", "side_y"), [(3.0, 2.0), (2.5, 3.3), (0.4, 0.7), (9.0, 6.0)])
def test_a_share_is_the_area_of_the_mask_in_the_square(side_x, side_y):
    mask = np.random.default_rng(0).random((6, 9)) < 0.5
    left, top = np.array([0.0, 1.25, 4.0, 8.9]), np.array([0.0, 0.5, 3.75])
    found = shares(mask, left, top, side_x, side_y)
    assert found.shape == (3, 4)
    assert found.dtype == np.float32
    expected = [[counted(mask, x, y, side_x, side_y) for x in left] for y in top]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert shares(np.ones((6, 9), bool), left[:1], top[:1], 9.0, 6.0) == 1


def test_no_share_is_above_one():
    """Not even where the last digits of large sums are lost."""
    at = 1990 * np.random.default_rng(0).random(50)
    found = shares(np.ones((2000, 2000), bool), at, at, 0.001, 0.001)
    assert found.max() == 1
    np.testing.assert_allclose(found, 1, atol=0.01)


@pytest.mark.parametrize("across", [1, 3])
@pytest.mark.parametrize("down", [1, 2])
def test_a_tile_is_kept_by_its_share_of_the_mask_and_stands_with_it(path, across, down):
    """A mask of any size stands for the whole slide."""
    mask = np.zeros((HEIGHT // down, WIDTH // across), bool)
    mask[40 // down : 130 // down, 30 // across : 200 // across] = True
    with open_slide(path) as slide:
        columns, rows = grid(slide, spec())
        side = (32 * 5.0 / slide.mpp_x, 32 * 5.0 / slide.mpp_y)
        expected = [(x, y, share_of(mask, (x, y), side, (WIDTH, HEIGHT))) for y in rows for x in columns]
        for least in (0.0, 0.25, 0.5, 1.0):
            tiles = tile_slide(slide, spec(min_tissue=least), mask)
            kept = [one for one in expected if np.float32(round(one[2], 9)) >= least and one[2] > 0]
            assert tiles.coords.tolist() == [[x, y] for x, y, _ in kept]
            np.testing.assert_allclose(tiles.tissue, [share for *_, share in kept], atol=1e-6)
    assert tiles.size_level0 == pytest.approx(side)
    assert tiles.scores == {}
    assert tiles.thumbnail_mpp == TISSUE.mpp
    assert tiles.mask is mask


def share_of(mask: np.ndarray, corner: tuple[int, int], side: tuple[float, float], size: tuple[int, int]) -> float:
    """Share of a square in level-0 pixels that lies in a mask of the whole slide."""
    x, y = size[0] / mask.shape[1], size[1] / mask.shape[0]
    return counted(mask, corner[0] / x, corner[1] / y, side[0] / x, side[1] / y)


@pytest.mark.parametrize("width", [128, 192])
def test_what_the_file_does_not_hold_and_black_are_missing_and_not_twice(tmp_path, width):
    """Left black, then a column of tiles without pixels, then (wider slide) tissue."""
    pixels = np.full((128, width, 3), 180, np.uint8)
    pixels[:, :64] = 0
    tiles = [pixels[y : y + 64, x : x + 64] for y in (0, 64) for x in range(0, width, 64)]
    tiles[1 :: width // 64] = [None, None]
    gaps = np.arange(width)[None] // 64 == np.ones((128, 1))
    with open_slide(write(tmp_path / "a.tif", pixels, tiles)) as slide:
        wanted = spec(size_px=16, mpp=2.5, quality={"drop": []}, tissue=TISSUE.model_copy(update={"mpp": 10.0}))
        found = tile_slide(slide, wanted, np.ones((1, 1), bool))
    black = unscanned(found.thumbnail, 10.0)
    for number, corner in enumerate(found.coords.tolist()):
        parts = [share_of(mask, corner, found.size_level0, (width, 128)) for mask in (black, gaps)]
        assert found.scores["missing"][number] == pytest.approx(min(sum(parts), 1), abs=1e-6)
    assert found.missing_share == pytest.approx(min(black.mean() + gaps.mean(), 1))
    assert (found.missing_share == 1) == (width == 128)


def test_a_tile_that_cannot_be_decoded_refuses_the_slide_or_is_left_out(tmp_path):
    pixels = np.random.default_rng(0).integers(100, 200, (128, 128, 3)).astype(np.uint8)
    target = write(tmp_path / "a.tif", pixels, compression="zlib")
    with tifffile.TiffFile(target) as file:
        offset = file.pages[0].dataoffsets[3]
    data = bytearray(target.read_bytes())
    data[offset + 9 : offset + 99] = bytes(90)
    target.write_bytes(data)
    with open_slide(target) as slide:
        with pytest.raises(SlideError) as raised:
            tile_slide(slide, spec(), np.ones((1, 1), bool))
        assert raised.value.state == "unreadable_region"
        assert len(tile_slide(slide, spec(unreadable="drop"), np.ones((1, 1), bool)).coords) == 4


def test_what_was_never_scanned_is_counted_where_it_is(path):
    with open_slide(path) as slide:
        every = np.ones((10, 10), bool)
        tiles = tile_slide(
            slide, spec(edge="pad", quality={"drop": []}, tissue=TISSUE.model_copy(update={"mpp": 10.0})), every
        )
    black = unscanned(tiles.thumbnail, 10.0)
    expected = [share_of(black, corner, tiles.size_level0, (WIDTH, HEIGHT)) for corner in tiles.coords.tolist()]
    np.testing.assert_allclose(tiles.scores["missing"], expected, atol=1e-6)
    assert len(tiles.scores) > 1  # and the measures of what is scanned
    assert tiles.missing_share == pytest.approx(black.mean())
    assert tiles.missing_share == pytest.approx(
        (WIDTH - 280 + 2 * 4) / WIDTH, abs=0.005
    )  # two thumbnail pixels beside it


def test_magnification_is_that_of_the_coarser_axis(path):
    with open_slide(path) as slide:
        for mpp, most, is_refused in ((1.25, 2.0, False), (1.25, 1.98, True), (2.0, 1.25, False), (2.0, 1.24, True)):
            if is_refused:
                with pytest.raises(SlideError) as raised:
                    check_magnification(slide, spec(mpp=mpp, max_magnification=most))
                assert raised.value.state == "too_coarse"
                assert f"{slide.mpp_y / mpp:.3g} times" in str(raised.value)
            else:
                check_magnification(slide, spec(mpp=mpp, max_magnification=most))


def test_more_tiles_than_allowed_are_refused(path, monkeypatch):
    with open_slide(path) as slide:
        every = np.ones((10, 10), bool)
        number = len(tile_slide(slide, spec(), every).coords)
        assert number == math.floor(WIDTH / 64.5) * math.floor(HEIGHT / 63.0)
        assert len(tile_slide(slide, spec(max_tiles=number), every).coords) == number
        with pytest.raises(SlideError, match="more than max_tiles"):
            tile_slide(slide, spec(max_tiles=number - 1), every)
        monkeypatch.setattr("mil.tiles.grid.MOST_SQUARES", 8)  # before all of them are laid, which fills the memory
        with pytest.raises(SlideError, match="squares; raise stride_px"):
            tile_slide(slide, spec(), every)
