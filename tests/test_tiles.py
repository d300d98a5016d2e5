"""Tiles: the grid, tissue shares, the files and their manifest."""

import numpy as np
import pytest
from test_slide import ramp, sheet, write_slide

from mil import hdf5
from mil.config import SlidesSpec, TileSpec, TissueSpec
from mil.progress import quiet
from mil.slides.check import check_slides
from mil.slides.slide import open_slide
from mil.tiles import COLUMNS, tile_shard, tile_slide

SPEC = TileSpec(size_px=64, mpp=0.5, tissue=TissueSpec(mpp=4.0, min_area_um2=100, margin_um=0))


def blob(width: int = 1000, height: int = 800) -> np.ndarray:
    """White glass with a purple rectangle from (200, 100) to (600, 500)."""
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[100:500, 200:600] = (150, 80, 160)
    return pixels


def test_tiles_lie_on_the_tissue_row_by_row(tmp_path):
    with open_slide(write_slide(tmp_path / "a.svs", blob())) as slide:
        tiles = tile_slide(slide, SPEC)
    assert tiles.coords.dtype == np.int64
    assert (np.lexsort((tiles.coords[:, 0], tiles.coords[:, 1])) == np.arange(len(tiles.coords))).all()
    assert tiles.tissue.min() >= 0.5
    middle = tiles.coords + 32
    assert ((middle > (190, 90)) & (middle < (610, 510))).all()
    assert len(tiles.coords) == pytest.approx((400 / 64) ** 2, rel=0.25)


def test_shard_writes_verified_files_and_skips_them_next_time(tmp_path):
    good = write_slide(tmp_path / "good.svs", blob(), levels=(4,))
    bare = write_slide(tmp_path / "bare.svs", np.full((600, 600, 3), 240, np.uint8))
    slides = check_slides(sheet(good, bare, tmp_path / "gone.svs"), SlidesSpec(), quiet())
    folder, pictures = tmp_path / "tiles", tmp_path / "thumbnails"
    manifest = tile_shard(slides, SPEC, folder, pictures, quiet())
    assert list(manifest.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert list(manifest.state) == ["ok", "no_tissue", "unreadable"]
    assert (pictures / "s0.jpg").is_file()
    coords, tissue = hdf5.read(folder / "s0.h5", "coords", "tissue")
    assert len(coords) == len(tissue) == manifest.num_tiles[0] > 0
    attributes = hdf5.attributes(folder / "s0.h5")
    assert attributes["stage"] == "tiles"
    assert attributes["spec"] == SPEC.model_dump(mode="json")
    with hdf5.reading(folder / "s0.h5") as file:
        assert dict(file["coords"].attrs) == {
            "patch_size": 64,
            "patch_size_level0": 64,
            "level0_magnification": 20,
            "target_magnification": 20,
            "overlap": 0,
            "name": "s0",
            "level0_width": 1000,
            "level0_height": 800,
        }
    written = (folder / "s0.h5").stat().st_mtime_ns
    assert tile_shard(slides, SPEC, folder, pictures, quiet()).equals(manifest)
    assert (folder / "s0.h5").stat().st_mtime_ns == written
    (folder / "s0.h5").write_bytes((folder / "s0.h5").read_bytes()[:-100])
    assert tile_shard(slides, SPEC, folder, pictures, quiet()).equals(manifest)
    other = SPEC.model_copy(update={"min_tissue": 0.9})
    assert tile_shard(slides, other, folder, pictures, quiet()).num_tiles[0] < manifest.num_tiles[0]


def test_one_tile_is_enough(tmp_path):
    pixels = np.full((64, 64, 3), (150, 80, 160), np.uint8)
    pixels[:, 60:] = 245
    with open_slide(write_slide(tmp_path / "a.svs", pixels)) as slide:
        assert tile_slide(slide, SPEC).coords.tolist() == [[0, 0]]


def test_grid_does_not_drift(tmp_path):
    with open_slide(write_slide(tmp_path / "a.svs", ramp(2000, 300), mpp=0.2527)) as slide:
        tiles = tile_slide(slide, SPEC.model_copy(update={"min_tissue": 0.0, "size_px": 32}))
    columns = np.unique(tiles.coords[:, 0])
    assert np.abs(columns - np.arange(len(columns)) * 32 * 0.5 / 0.2527).max() <= 0.5
