"""Quality flags on made tiles; the contact sheet and the slides that stand out."""

from contextlib import closing

import cv2
import numpy as np
import pandas as pd
import pytest
from test_slide import sheet, write_slide
from test_slide_readers import texture, write_jpeg_tiles

from mil import hdf5
from mil.config import SlidesSpec, TileSpec
from mil.errors import MilError
from mil.progress import quiet
from mil.slides.check import check_slides, look_at
from mil.slides.readers.openslide import OpenSlideReader
from mil.slides.slide import open_slide
from mil.specs.slides import QualitySpec, TissueSpec
from mil.tiles.contact import contact_sheet, tissue_outliers, write_contact_sheet
from mil.tiles.grid import tile_slide
from mil.tiles.quality import FLAGS, blur_of, flagged, straight_edges
from mil.tiles.shard import tile_shard
from mil.tiles.thumbnail import read_jpeg
from mil.tissue import find_tissue
from mil.tissue.contrast import glass_of
from mil.tissue.ink import INKS, ink

GLASS = np.array([244.0, 243.0, 245.0])
SPEC = TileSpec(size_px=112, mpp=1.0, tissue=TissueSpec(mpp=8.0, margin_um=0))


def glass(width: int, height: int) -> np.ndarray:
    return np.clip(GLASS + np.random.default_rng(1).normal(0, 1.5, (height, width, 3)), 0, 255).astype(np.uint8)


def stained(width: int, height: int) -> np.ndarray:
    """Pink and violet structures of some ten microns at 1 micron a pixel."""
    grain = cv2.GaussianBlur(np.random.default_rng(2).normal(0, 1, (height, width)), (0, 0), 2)
    share = np.clip(grain / grain.std() / 3 + 0.5, 0, 1)[..., None]
    return (share * np.array([225, 150, 190]) + (1 - share) * np.array([110, 60, 140])).astype(np.uint8)


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory):
    """1 micron a pixel: crisp tissue, blurred tissue below it, ink on glass and on tissue, a long thin line."""
    pixels = glass(4480, 2240)
    pixels[112:896, 112:1568] = stained(1456, 784)
    pixels[1120:1904, 112:1568] = cv2.GaussianBlur(stained(1456, 784), (0, 0), 4)
    for row, colour in enumerate([(215, 20, 40), (20, 140, 60), (20, 60, 200), (25, 25, 30)]):
        pixels[200 + 450 * row : 424 + 450 * row, 2500:3000] = colour
    pixels[400:500, 112:800] = (20, 140, 60)
    cv2.line(pixels, (0, 2100), (4479, 2150), (150, 150, 150), 40)
    return write_slide(tmp_path_factory.mktemp("quality") / "a.svs", pixels, mpp=1.0)


@pytest.mark.slow
def test_each_fault_raises_its_flag_and_crisp_tissue_none(slide_path):
    spec = SPEC.model_copy(update={"min_tissue": 0.2})
    with open_slide(slide_path) as slide:
        tiles = tile_slide(slide, spec)
    flags = flagged(tiles, spec.quality)
    x, y = tiles.coords.T
    line = y > 1950
    on_tissue = (x < 1600) & (y < 1900)
    inked = (y + 112 > 400) & (y < 500) & (x < 800)
    on_glass = (x > 2450) & (x < 2900) & (y < 1700)
    assert flags["pen"][inked & (x < 700)].all()
    assert not on_glass.any()  # ink on bare glass is no tissue
    assert not flags["pen"][~inked & (x < 2350) | (x > 3200) | line].any()
    crisp = on_tissue & (y < 1000) & ~inked
    assert crisp.sum() > 40
    assert not any(flags[flag][crisp].any() for flag in FLAGS)
    blurred = on_tissue & (y > 1150) & (y < 1750) & (x > 150) & (x < 1400)
    assert flags["blurred"][blurred].all()
    assert line.sum() > 10
    assert flags["coverslip"][line].mean() > 0.9
    assert not flags["coverslip"][~line].any()


def test_flagged_tiles_are_left_out_where_the_spec_says_so_and_counted(slide_path):
    keep = SPEC
    drop = SPEC.model_copy(update={"quality": QualitySpec(drop=("pen", "blurred"))})
    with open_slide(slide_path) as slide:
        all_tiles, fewer = tile_slide(slide, keep), tile_slide(slide, drop)
        none = tile_slide(slide, SPEC.model_copy(update={"quality": None}))
    flags = flagged(all_tiles, keep.quality)
    left = ~(flags["pen"] | flags["blurred"])
    np.testing.assert_array_equal(fewer.coords, all_tiles.coords[left])
    assert sum(fewer.dropped.values()) == (~left).sum()
    np.testing.assert_array_equal(none.coords, all_tiles.coords)
    assert none.scores == {}


PENS = {
    "red": [(215, 20, 40), (190, 30, 50)],
    "green": [(20, 140, 60), (0, 110, 70)],
    "blue": [(20, 60, 200), (30, 40, 140), (10, 20, 90)],
    "purple": [(120, 30, 150), (90, 20, 130)],
    "black": [(25, 25, 30), (45, 45, 48)],
}


@pytest.mark.parametrize("opacity", [0.6, 0.7, 0.8, 1.0])
@pytest.mark.parametrize("pen", PENS)
def test_pens_on_glass_are_ink_and_no_tissue_on_bright_and_dim_slides(pen, opacity):
    for colour in PENS[pen]:
        for light in (1.0, 0.7):
            picture = glass(300, 200).astype(float)
            picture[50:100, 50:150] = (1 - opacity) * picture[50:100, 50:150] + opacity * np.array(colour)
            picture[120:180, 50:250] = stained(200, 60)
            picture = np.rint(picture * light).astype(np.uint8)
            found = ink(picture, GLASS * light, 8.0)
            assert np.any(found, axis=0)[55:95, 55:145].mean() > 0.95
            assert found[INKS.index(pen)].any()
            assert not found[:, 118:].any()
            tissue = find_tissue(picture, 8.0, TissueSpec())
            assert not tissue[:112].any()
            assert tissue[125:175, 55:245].mean() > 0.95


@pytest.mark.parametrize(("name", "mpp"), [("cmu-1-small-region.svs", None), ("tcga-cr-7395-01a-01-ts1.svs", 0.5)])
def test_real_tissue_is_no_ink_and_pens_on_it_are(shared, name, mpp):
    with open_slide(shared / "data" / "slides" / name, mpp) as slide:
        thumbnail = slide.thumbnail(8.0)
    glass_colour, _ = glass_of(thumbnail)
    assert not ink(thumbnail, glass_colour, 8.0).any()
    height, width = thumbnail.shape[:2]
    place = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    for pen in PENS:
        picture = thumbnail.astype(float)
        picture[place] = 0.2 * picture[place] + 0.8 * np.array(PENS[pen][0])
        found = np.any(ink(np.rint(picture).astype(np.uint8), glass_colour, 8.0), axis=0)
        assert found[place].mean() > 0.65, pen


def test_a_thin_stroke_on_glass_is_no_tissue_and_the_tissue_beside_it_is():
    picture = glass(400, 300)
    picture[80:220, 40:200] = stained(160, 140)
    cv2.line(picture, (60, 150), (390, 150), (44, 144, 102), 7)
    tissue = find_tissue(picture, 8.0, TissueSpec())
    assert not tissue[:, 225:].any()
    assert tissue[85:140, 60:180].mean() > 0.95
    assert tissue[162:215, 60:180].mean() > 0.95


def test_stains_are_no_ink():
    for colour in [(200, 60, 90), (230, 120, 160), (90, 50, 130), (70, 80, 140), (120, 70, 30), (60, 40, 90), (235, 215, 225)]:  # fmt: skip
        picture = glass(200, 200)
        picture[50:150, 50:150] = colour
        assert not ink(picture, GLASS, 8.0).any(), colour


def test_blur_grows_with_blur_and_not_with_contrast():
    grey = cv2.cvtColor(stained(224, 224), cv2.COLOR_RGB2GRAY)
    scores = [blur_of(cv2.GaussianBlur(grey, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    assert scores == sorted(scores)
    assert blur_of(grey // 2) == pytest.approx(blur_of(grey), abs=0.05)
    assert blur_of(np.full((50, 50), 7, np.uint8)) == 1


def test_the_border_of_the_scanned_area_is_no_coverslip():
    picture = glass(600, 500)
    picture[:, :100] = 255
    picture[300:] = 255
    assert not straight_edges(picture, GLASS, 8.0).any()
    cv2.line(picture, (150, 0), (160, 299), (120, 120, 120), 2)
    assert not straight_edges(picture, GLASS, 8.0).any()  # 2.4 mm: shorter than a coverslip
    cv2.line(picture, (120, 50), (590, 70), (120, 120, 120), 2)
    assert straight_edges(picture, GLASS, 8.0).any()


def test_blank_tiles_are_flagged(tmp_path):
    pixels = glass(1344, 896)
    pixels[:448:8, :896] = pixels[1:448:8, :896] = (150, 60, 140)  # fibres: a quarter of the pixels
    pixels[448:, :896] = stained(896, 448)
    spec = SPEC.model_copy(update={"min_tissue": 0.3, "quality": QualitySpec(blank=0.7)})
    with open_slide(write_slide(tmp_path / "a.svs", pixels, mpp=1.0)) as slide:
        tiles = tile_slide(slide, spec)
    flags = flagged(tiles, spec.quality)
    np.testing.assert_array_equal(flags["blank"], tiles.coords[:, 1] < 400)
    assert flags["blank"].any()


def test_outliers_of_a_site():
    shares = pd.Series([0.30, 0.32, 0.28, 0.35, 0.27, 0.31, 0.01, np.nan], index=list("abcdefgh"))
    assert tissue_outliers(shares).to_dict() == {key: key == "g" for key in "abcdefgh"}
    assert not tissue_outliers(shares[-3:]).any()


def test_a_small_square_of_black_fill_is_missing(tmp_path):
    """Converters fill in black for a tile that they cannot decode; below 20,000 square microns it was tissue."""
    pixels = texture(768, 768) // 2 + 60
    pixels[256:512, 256:512] = 0
    pixels[0:64, 0:64] = 0  # a sixteenth of a tile: pigment
    spec = TileSpec(size_px=128, mpp=0.5)
    with open_slide(write_slide(tmp_path / "a.svs", pixels, mpp=0.25)) as slide:
        tiles = tile_slide(slide, spec)
    assert tiles.dropped["missing"] == 1
    assert [256, 256] not in tiles.coords.tolist()
    assert [0, 0] in tiles.coords.tolist()


def test_a_contact_sheet_without_manifests_says_what_is_missing(tmp_path):
    with pytest.raises(MilError, match="holds no manifest"):
        write_contact_sheet(pd.DataFrame({"slide_id": ["a"]}), tmp_path, tmp_path, tmp_path / "a.jpg")


def test_contact_sheet_shows_every_slide(tmp_path):
    paths = []
    for index in range(7):
        pixels = glass(700, 500)
        pixels[50 : 60 + (380 if index else 40), 50:600] = texture(550, 10 + (380 if index else 40), index) // 2 + 60
        paths.append(write_slide(tmp_path / f"{index}.svs", pixels, mpp=1.0))
    slides = check_slides(sheet(*paths, tmp_path / "gone.svs"), SlidesSpec(), quiet())
    manifest = tile_shard(slides, SPEC, tmp_path / "tiles", tmp_path / "thumbnails", quiet())
    page, outliers = contact_sheet(manifest, tmp_path / "tiles", tmp_path / "thumbnails")
    assert page.dtype == np.uint8
    assert page.shape[2] == 3
    orange = (page == (225, 140, 0)).all(axis=2).sum()
    red = (page == (200, 30, 30)).all(axis=2).sum()
    assert orange > 1000  # the frame of the slide with little tissue
    assert red > 1000  # the frame of the slide that is gone
    assert outliers == [f"slide s0: {manifest.tissue_share[0]:.1%} tissue, an outlier of its site"]
    assert contact_sheet(manifest[:0], tmp_path / "tiles", tmp_path / "thumbnails")[0].shape[0] > 0
    picture = tmp_path / "thumbnails" / "s1.jpg"
    np.testing.assert_array_equal(read_jpeg(picture), cv2.imread(str(picture))[..., ::-1])
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    with pytest.raises(MilError, match=r"s1\.jpg cannot be read as a JPEG; delete it"):
        read_jpeg(picture)
    about = hdf5.attributes(tmp_path / "tiles" / "s1.h5")
    assert set(about["flagged"]) == set(FLAGS)
    assert manifest.loc[1, list(FLAGS)].notna().all()


def scene(fill: int) -> np.ndarray:
    """Two scanned regions with tissue; the rest was never scanned and is filled."""
    pixels = np.full((1792, 2688, 3), fill, np.uint8)
    for left in (200, 1700):
        pixels[200:1500, left : left + 800] = glass(800, 1300)
        pixels[400:1100, left + 100 : left + 700] = stained(600, 700)
    return pixels


@pytest.mark.slow
@pytest.mark.parametrize("method", ["contrast", "otsu_grey", "otsu_saturation"])
def test_black_that_was_never_scanned_is_no_tissue(tmp_path, method):
    spec = SPEC.model_copy(update={"tissue": SPEC.tissue.model_copy(update={"method": method})})
    found = []
    for fill in (255, 0):
        path = write_slide(tmp_path / f"{fill}.svs", scene(fill), mpp=1.0, compression="jpeg")
        with open_slide(path) as slide:
            found.append(tile_slide(slide, spec))
        assert look_at(path, "", SlidesSpec())["state"] == "ok"
    white, black = found
    np.testing.assert_array_equal(black.coords, white.coords)
    assert len(white.coords) > 50
    assert not any(flags.any() for flags in flagged(black, spec.quality).values())
    assert white.missing_share == 0
    assert black.missing_share == pytest.approx(1 - 2 * 800 * 1300 / (1792 * 2688), abs=0.03)


def test_pixels_that_the_file_does_not_hold_are_counted_and_dropped(tmp_path):
    pixels = glass(1536, 1024)
    pixels[128:896, 128:1408] = stained(1280, 768)
    path = write_jpeg_tiles(tmp_path / "a.svs", pixels, tile=256, missing={8})
    slides = check_slides(sheet(path), SlidesSpec(), quiet())
    assert slides.reason[0] == "the file holds no pixels for 1 of 24 tiles"
    manifests = {}
    for drop in ((), ("missing",)):
        quality = QualitySpec(missing=0.2, drop=drop)
        spec = TileSpec(size_px=128, mpp=0.25, min_tissue=0.1, quality=quality, tissue=TissueSpec(mpp=2, margin_um=0))
        folder = tmp_path / f"{len(drop)}"
        manifests[drop] = tile_shard(slides, spec, folder, folder, quiet()).iloc[0]
        assert hdf5.attributes(folder / "s0.h5")["missing_share"] == pytest.approx(1 / 24)
    kept, left = manifests[()], manifests["missing",]
    assert kept.missing > 0
    assert (left.missing, left.dropped) == (0, kept.missing)
    assert left.num_tiles == kept.num_tiles - kept.missing
    with closing(OpenSlideReader(path)) as reader:  # which says it by transparent pixels
        assert reader.gaps() is None
        reader.read(0, 0, 0, 1536, 1024)
        gaps = reader.gaps()
    assert gaps is not None
    assert gaps.cells.mean() == pytest.approx(1 / 24, abs=1e-6)
