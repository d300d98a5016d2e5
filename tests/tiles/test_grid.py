"""The grid and the shares of a mask against arithmetic that is written out: square by square, pixel by pixel."""

import math
from fractions import Fraction

import numpy as np
import pytest
import tifffile

from mil.config import TileSpec, TissueSpec
from mil.errors import SlideError
from mil.slides.slide import open_slide
from mil.tiles.grid import check_magnification, grid, shares, tile_slide

WIDTH, HEIGHT, MPP_X, MPP_Y = 331, 207, 2.5, 2.525
TISSUE = TissueSpec(mpp=20.0, min_area_um2=0, margin_um=0, ink_is_glass=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A slide that is wider than high, whose pixels are higher than wide, with one black, never scanned stripe at its right."""
    pixels = np.full((HEIGHT, WIDTH, 3), 180, np.uint8)
    pixels[:, 280:] = 0
    target = tmp_path_factory.mktemp("grid") / "a.tif"
    resolution = (10_000 / MPP_X, 10_000 / MPP_Y)
    tifffile.imwrite(
        target, pixels, photometric="rgb", tile=(64, 64), resolution=resolution, resolutionunit="CENTIMETER"
    )
    return target


def spec(**changes: object) -> TileSpec:
    return TileSpec.model_validate(
        {"size_px": 32, "mpp": 5.0, "min_tissue": 0.0, "quality": None, "tissue": TISSUE} | changes
    )


def starts(length: int, stride: Fraction, side: Fraction, step: int, pad: bool) -> list[int]:
    """Corner i is i strides, rounded to `step`; it counts where its square ends inside (to half a pixel) or, padded, begins inside."""
    found = []
    for number in range(1000):
        at = number * stride
        corner = step * round(float(at / step))
        if pad and at <= length - Fraction(1, 2):
            found.append(corner)
        if not pad and at + side <= length + Fraction(1, 2) and corner + side <= length + Fraction(step, 2):
            found.append(corner)
    return found


@pytest.mark.parametrize("edge", ["drop", "pad"])
@pytest.mark.parametrize(("decoding", "step"), [("full", 1), ("scaled", 8)])
@pytest.mark.parametrize("stride", [None, 32, 20, 45])
@pytest.mark.parametrize("size", [16, 32, 103])
def test_corners_are_whole_strides_of_the_slides_own_scale(path, edge, decoding, step, stride, size):
    with open_slide(path) as slide:
        assert (slide.mpp_x, slide.mpp_y) == pytest.approx((MPP_X, MPP_Y), rel=1e-5)
        per_x, per_y = Fraction(5.0 / slide.mpp_x), Fraction(5.0 / slide.mpp_y)
        found = grid(slide, spec(size_px=size, stride_px=stride, edge=edge, decoding=decoding))
    for corners, length, per in zip(found, (WIDTH, HEIGHT), (per_x, per_y), strict=True):
        assert corners.dtype == np.int64
        assert corners.tolist() == starts(length, (stride or size) * per, size * per, step, edge == "pad")


def counted(mask: np.ndarray, left: float, top: float, side_x: float, side_y: float) -> float:
    """Share of the square that lies in pixels of the mask, pixel by pixel."""
    total = 0.0
    for row, column in zip(*np.nonzero(mask), strict=True):
        across = max(min(column + 1, left + side_x) - max(column, left), 0)
        down = max(min(row + 1, top + side_y) - max(row, top), 0)
        total += across * down
    return total / (side_x * side_y)


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


def test_a_tile_is_kept_by_its_share_of_the_mask_and_stands_with_it(path):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[40:130, 30:200] = True
    with open_slide(path) as slide:
        columns, rows = grid(slide, spec())
        side = (32 * 5.0 / slide.mpp_x, 32 * 5.0 / slide.mpp_y)
        expected = [(x, y, counted(mask, x, y, *side)) for y in rows for x in columns]
        for least in (0.0, 0.25, 0.5, 1.0):
            tiles = tile_slide(slide, spec(min_tissue=least), mask)
            kept = [one for one in expected if np.float32(round(one[2], 9)) >= least and one[2] > 0]
            assert tiles.coords.tolist() == [[x, y] for x, y, _ in kept]
            np.testing.assert_allclose(tiles.tissue, [share for *_, share in kept], atol=1e-6)
    assert tiles.size_level0 == pytest.approx(side)
    assert tiles.scores == {}
    assert tiles.thumbnail_mpp == TISSUE.mpp
    assert tiles.mask is mask


def test_what_was_never_scanned_is_counted_where_it_is(path):
    with open_slide(path) as slide:
        every = np.ones((10, 10), bool)
        tiles = tile_slide(
            slide, spec(edge="pad", quality={"drop": []}, tissue=TISSUE.model_copy(update={"mpp": 10.0})), every
        )
    black = 280 - 2 * 4  # with two thumbnail pixels of 10 microns beside it
    left, side = tiles.coords[:, 0], tiles.size_level0[0]
    expected = np.clip((np.minimum(left + side, WIDTH) - np.maximum(left, black)) / side, 0, 1)
    down, side_y = tiles.coords[:, 1], tiles.size_level0[1]
    expected *= (np.minimum(down + side_y, HEIGHT) - down) / side_y  # nothing is missing below the slide
    np.testing.assert_allclose(tiles.scores["missing"], expected, atol=0.02)
    assert tiles.missing_share == pytest.approx((WIDTH - black) / WIDTH, abs=0.005)


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


def test_more_tiles_than_allowed_are_refused(path):
    with open_slide(path) as slide:
        every = np.ones((10, 10), bool)
        number = len(tile_slide(slide, spec(), every).coords)
        assert number == math.floor(WIDTH / 64.5) * math.floor(HEIGHT / 63.0)
        assert len(tile_slide(slide, spec(max_tiles=number), every).coords) == number
        with pytest.raises(SlideError, match="more than max_tiles"):
            tile_slide(slide, spec(max_tiles=number - 1), every)
