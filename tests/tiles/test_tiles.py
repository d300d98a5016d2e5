"""Tiles: the grid, tissue shares, the files and their manifest."""

import resource

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from test_slide import ramp, sheet, write_slide
from test_slide_readers import texture, write_jpeg_tiles

from mil import hdf5
from mil.config import EncoderSpec, SlidesSpec, TileSpec
from mil.errors import SlideError
from mil.progress import quiet
from mil.slides.check import check_slides
from mil.slides.slide import Reading, open_slide
from mil.specs.slides import TissueSpec
from mil.tiles.grid import tile_slide
from mil.tiles.shard import TILES, tile_shard

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
    assert list(manifest.columns)[: len(TILES)] == list(TILES)
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


@pytest.mark.parametrize(("least", "said"), [(0.0, "any tissue"), (0.3, "30% tissue")])
def test_a_slide_without_tissue_says_what_no_tile_holds(tmp_path, least, said):
    bare = write_slide(tmp_path / "bare.svs", np.full((600, 600, 3), 240, np.uint8))
    slides = check_slides(sheet(bare), SlidesSpec(), quiet())
    spec = SPEC.model_copy(update={"min_tissue": least})
    row = tile_shard(slides, spec, tmp_path / "tiles", tmp_path / "thumbnails", quiet()).iloc[0]
    assert (row.state, row.reason) == ("no_tissue", f"no tile of the slide holds {said}; see its thumbnail")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["check", "tile"])
def test_the_time_for_a_slide_is_bounded_by_minutes(tmp_path, monkeypatch, stage):
    from mil.slides import check
    from mil.tiles import shard

    path = write_slide(tmp_path / "a.svs", blob())
    slides = check_slides(sheet(path), SlidesSpec(), quiet())
    assert check.SECONDS_A_SLIDE <= shard.SECONDS_A_SLIDE <= 600
    monkeypatch.setattr(check if stage == "check" else shard, "SECONDS_A_SLIDE", 1e-4)
    if stage == "check":
        table = check_slides(sheet(path), SlidesSpec(), quiet())
    else:
        table = tile_shard(slides, SPEC, tmp_path / "tiles", tmp_path / "thumbnails", quiet())
    assert table.state.tolist() == ["timeout"]


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


def many(update: dict) -> TileSpec:
    return SPEC.model_copy(update={"min_tissue": 0.0} | update)


def corners(path, spec: TileSpec) -> np.ndarray:
    """All corners of the grid: the mask is all tissue."""
    with open_slide(path) as slide:
        return tile_slide(slide, spec, np.ones((10, 10), bool)).coords


def test_stride_and_edge_rules(tmp_path):
    path = write_slide(tmp_path / "a.svs", ramp(300, 200))
    assert np.unique(corners(path, many({}))[:, 0]).tolist() == [0, 64, 128, 192]
    assert np.unique(corners(path, many({"stride_px": 50}))[:, 0]).tolist() == [0, 50, 100, 150, 200]
    padded = corners(path, many({"edge": "pad"}))
    assert np.unique(padded[:, 0]).tolist() == [0, 64, 128, 192, 256]
    with open_slide(path) as slide:
        tile = slide.read_tile(256, 0, 64, 0.5)
    assert (tile[:, 44:] == 255).all()
    np.testing.assert_array_equal(tile[:, :44], ramp(300, 200)[:64, 256:])


def test_scaled_decoding_puts_corners_on_multiples_of_eight(tmp_path):
    path = write_slide(tmp_path / "a.svs", ramp(2000, 300), mpp=0.2527)
    found = corners(path, many({"decoding": "scaled"}))
    assert (found % 8 == 0).all()
    assert np.abs(found - corners(path, many({}))[: len(found)]).max() <= 4


def test_coarse_slides_are_magnified_to_a_limit(tmp_path):
    path = write_slide(tmp_path / "a.svs", blob(), mpp=1.0)
    with open_slide(path) as slide:
        assert len(tile_slide(slide, SPEC).coords)
        with pytest.raises(SlideError, match="magnified 2 times, more than max_magnification") as raised:
            tile_slide(slide, SPEC.model_copy(update={"max_magnification": 1.5}))
        assert raised.value.state == "too_coarse"
        with pytest.raises(SlideError) as raised:
            tile_slide(slide, SPEC.model_copy(update={"max_tiles": 3}))
        assert raised.value.state == "too_many_tiles"


@pytest.mark.parametrize("mpp", [0.2276, 0.2527, 0.263, 0.30, 0.35, 0.4986, 0.5, 1.0])
def test_tiles_are_as_large_as_the_spec_says_and_lie_where_it_says(tmp_path, mpp):
    path = write_slide(tmp_path / "a.svs", ramp(1500, 600), mpp=mpp)
    found = corners(path, many({}))
    columns = np.unique(found[:, 0])
    assert np.abs(columns * mpp - np.arange(len(columns)) * 32.0).max() <= mpp / 2
    with open_slide(path) as slide:
        regions = slide.regions(found.astype(float), (64, 64), 0.5)
    assert regions.scale[0] * mpp * 64 == pytest.approx(32.0, rel=1e-9)


def test_other_pyramids_of_the_same_slide_give_the_same_tiles_and_features(shared, tmp_path):
    from mil.encoders.build import build

    with open_slide(shared / "data" / "slides" / "cmu-1-small-region.svs") as slide:
        pixels = slide.read_region(700, 1000, 0, 1100, 1100)
    paths = [
        write_slide(tmp_path / f"{index}.svs", pixels, mpp=0.25, levels=levels, **options)
        for index, (levels, options) in enumerate(
            [((), {}), ((2, 4), {}), ((4,), {"tile": 512}), ((2,), {"tile": 240})]
        )
    ]
    corners = np.array([[x, y] for y in (0, 301, 602) for x in (0, 301, 602)])

    def tiles_of(path, how: Reading) -> np.ndarray:
        with open_slide(path) as slide:
            return np.concatenate([tiles for _, tiles in slide.read_tiles(corners, 224, 0.5, 1, how)])

    reference = tiles_of(paths[0], Reading())
    encoder = build(EncoderSpec())
    import torch

    def features_of(tiles: np.ndarray) -> np.ndarray:
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.mean, encoder.std))
        batch = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
        batch = torch.nn.functional.interpolate(batch, size=(encoder.input_px, encoder.input_px), mode="area")
        with torch.inference_mode():
            return encoder.module(batch).numpy()

    expected = features_of(reference)
    for path in paths[1:]:
        np.testing.assert_array_equal(tiles_of(path, Reading()), reference)  # level 0 is read, whatever else there is
        nearest = features_of(tiles_of(path, Reading(level="nearest")))
        cosine = (nearest * expected).sum(axis=1) / np.linalg.norm(nearest, axis=1) / np.linalg.norm(expected, axis=1)
        # a lower level has lost where within its pixels an edge lies: that shows where corners fall between them
        assert cosine[(corners % 2 == 0).all(axis=1)].min() > 0.999
        assert cosine.min() > 0.99


def test_masks_that_people_bring_replace_the_method(tmp_path):
    path = write_slide(tmp_path / "a.svs", blob())
    slides = check_slides(sheet(path), SlidesSpec(), quiet())
    spec = SPEC.model_copy(
        update={"tissue": TissueSpec(mpp=4.0, method="mask", masks=str(tmp_path / "masks" / "{slide_id}.png"))}
    )
    folders = tmp_path / "tiles", tmp_path / "thumbnails"
    assert list(tile_shard(slides, spec, *folders, quiet()).state) == ["no_mask"]
    (tmp_path / "masks").mkdir()
    drawn = np.zeros((80, 100), np.uint8)
    drawn[:40, :50] = 255  # the slide's upper left quarter: 500 x 400 pixels
    Image.fromarray(drawn).save(tmp_path / "masks" / "s0.png")
    manifest = tile_shard(slides, spec, *folders, quiet())
    coords, tissue = hdf5.read(tmp_path / "tiles" / "s0.h5", "coords", "tissue")
    assert (coords + 32 <= (500, 400)).all()
    assert len(coords) == manifest.num_tiles[0] == 8 * 6
    assert tissue.max() == 1
    Image.fromarray(255 - drawn).save(tmp_path / "masks" / "s0.png")
    assert tile_shard(slides, spec, *folders, quiet()).num_tiles[0] > 48
    exported = tmp_path / "thumbnails" / "s0.geojson"
    (tmp_path / "masks" / "s0.geojson").write_text(exported.read_text())
    back = spec.model_copy(
        update={"tissue": TissueSpec(mpp=4.0, method="mask", masks=str(tmp_path / "masks" / "{slide_id}.geojson"))}
    )
    before = hdf5.read(tmp_path / "tiles" / "s0.h5", "coords")[0]
    tile_shard(slides, back, *folders, quiet())
    np.testing.assert_array_equal(hdf5.read(tmp_path / "tiles" / "s0.h5", "coords")[0], before)


def test_a_slide_that_changed_since_it_was_checked_is_not_tiled(tmp_path):
    path = write_slide(tmp_path / "a.svs", blob())
    slides = check_slides(sheet(path), SlidesSpec(), quiet())
    whole = path.read_bytes()
    middle = len(whole) // 2
    for other in (
        whole + b"x",
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ):  # larger; another, as large
        path.write_bytes(other)
        table = tile_shard(slides, SPEC, tmp_path / "t", tmp_path / "p", quiet())
        assert list(table.state) == ["changed"]
        assert not list((tmp_path / "t").glob("*.h5"))
    path.write_bytes(whole)
    full = check_slides(sheet(path), SlidesSpec(fingerprint="full"), quiet())
    assert list(tile_shard(full, SPEC, tmp_path / "t", tmp_path / "p", quiet()).state) == ["ok"]


def test_unreadable_tiles_refuse_the_slide_or_are_left_out_and_counted(tmp_path):
    path = write_jpeg_tiles(tmp_path / "a.svs", np.minimum(texture(1024, 768), 200))
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    slides = check_slides(sheet(path), SlidesSpec(unreadable="drop"), quiet())
    assert list(slides.state) == ["ok"]
    assert list(check_slides(sheet(path), SlidesSpec(), quiet()).state) == ["unreadable_region"]
    spec = SPEC.model_copy(update={"mpp": 0.25})
    manifest = tile_shard(slides, spec, tmp_path / "t", tmp_path / "p", quiet())
    assert list(manifest.state) == ["unreadable_region"]
    assert "x 256, y 256" in manifest.reason[0]
    dropping = spec.model_copy(update={"unreadable": "drop"})
    manifest = tile_shard(slides, dropping, tmp_path / "t", tmp_path / "p", quiet())
    assert (manifest.state[0], manifest.dropped[0]) == ("ok", 16)
    coords = hdf5.read(tmp_path / "t" / "s0.h5", "coords")[0]
    inside = ((coords >= 256) & (coords < 512)).all(axis=1)
    assert len(coords) == manifest.num_tiles[0] > 140
    assert not inside.any()
    assert cv2.imread(str(tmp_path / "p" / "s0.jpg")) is not None


@pytest.mark.slow
def test_two_hundred_thousand_tiles_take_flat_memory(tmp_path):
    # 9,600 x 9,600 pixels of tissue in tiles of 20 pixels: 230,400 tiles, of which every one is looked at
    block = np.minimum(texture(960, 960), 200)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(block, (10, 10, 1)), photometric="rgb", tile=(480, 480), compression="jpeg", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    spec = TileSpec(size_px=20, mpp=0.5, quality=None)
    with open_slide(path) as slide:
        tiles = tile_slide(slide, spec, np.ones((100, 100), bool))
        assert len(tiles.coords) == 480 * 480
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        number = sum(len(indices) for indices, _ in slide.read_tiles(tiles.coords, 20, 0.5, 2, batch=1024))
        assert number == len(tiles.coords)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 250  # MB


def test_a_slide_that_is_smaller_than_a_tile_is_said_to_be(tmp_path):
    small = write_slide(tmp_path / "small.svs", blob()[100:120])
    slides = check_slides(sheet(small), SlidesSpec(), quiet())
    row = tile_shard(slides, SPEC, tmp_path / "tiles", tmp_path / "thumbnails", quiet()).iloc[0]
    assert row.state == "no_tissue"
    assert row.reason.startswith("the slide has")
    assert "microns, less than a tile of" in row.reason
