"""Tissue: the published masks, hard slides, specks and holes, and masks that people bring and take away."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from test_slide_readers import texture

from mil.errors import MilError, SlideError
from mil.slides.slide import open_slide
from mil.specs.slides import TissueSpec
from mil.tissue import find_tissue
from mil.tissue.contrast import glass_of
from mil.tissue.masks import read_mask, to_geojson
from mil.tissue.registry import TISSUE

EXACT = TissueSpec(margin_um=0, min_area_um2=0, fill_holes_um2=0)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def section(glass=(244, 243, 245), faint: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(thumbnail at 8 microns, truth) of an ellipse of textured tissue on glass; `faint` scales its contrast."""
    y, x = np.mgrid[:300, :400]
    truth = ((x - 190) / 120) ** 2 + ((y - 150) / 90) ** 2 < 1
    tissue = np.clip(texture(400, 300) * 0.25 + np.array([190, 120, 170]) * 0.75, 0, 255) / 245 * glass
    pixels = np.where(truth[..., None], np.array(glass) - (np.array(glass) - tissue) * faint, glass)
    return np.clip(pixels + np.random.default_rng(0).normal(0, 1.2, pixels.shape), 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize(
    ("name", "reference", "mpp", "bar"),
    [
        ("cmu-1-small-region.svs", "tissue-mask-cmu-1-small-region.npy", None, 0.80),
        ("tcga-cr-7395-01a-01-ts1.svs", "tissue-mask-tcga-cr-7395.npy", 0.25, 0.90),
        ("tcga-cr-7395-01a-01-ts1.svs", "tissue-mask-tcga-cr-7395.npy", 0.5, 0.90),
    ],
)
def test_published_masks(shared, name, reference, mpp, bar):
    truth = np.load(shared / "data" / "reference" / "tissue_masks" / reference)
    with open_slide(shared / "data" / "slides" / name, mpp) as slide:
        at_a_tenth = slide.thumbnail(slide.mpp * 10)[: truth.shape[0], : truth.shape[1]]
        at_default = slide.thumbnail(TissueSpec().mpp)
        tenth_mpp = slide.mpp * 10
    assert iou(find_tissue(at_a_tenth, tenth_mpp, TissueSpec()), truth) >= bar
    found = find_tissue(at_default, TissueSpec().mpp, TissueSpec()).astype(np.uint8)
    assert iou(cv2.resize(found, truth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0, truth) >= bar


@pytest.mark.parametrize(
    ("glass", "faint"),
    [((244, 243, 245), 1.0), ((244, 243, 245), 0.3), ((150, 149, 151), 1.0), ((240, 228, 196), 1.0), ((255, 255, 255), 1.0)],
    ids=["plain", "faint", "dark", "yellowed", "pure white"],
)  # fmt: skip
def test_hard_slides(glass, faint):
    pixels, truth = section(glass, faint)
    assert iou(find_tissue(pixels, 8.0, EXACT), truth) > 0.95


def test_glass_is_measured():
    glass, noise = glass_of(section((150, 149, 151))[0])
    np.testing.assert_allclose(glass, (150, 149, 151), atol=1.5)
    assert 0 < noise < 0.01


@pytest.mark.parametrize("noise", [0, 4])
@pytest.mark.parametrize("colour", [(235, 195, 217), (190, 160, 130), (205, 210, 228)], ids=["pink", "brown", "blue"])
def test_smooth_tissue_on_white_glass_is_not_taken_for_the_glass(colour, noise):
    """Colloid, mucin, DAB, haematoxylin: all that is as light as they are was glass. Fill, which ends at once, is no glass."""
    pixels, truth = section((255, 255, 255))
    pixels[~truth] = 255
    pixels[200:280, 300:390] = np.random.default_rng(0).normal(colour, noise, (80, 90, 3)).clip(0, 255)
    truth[200:280, 300:390] = True
    assert iou(find_tissue(cv2.GaussianBlur(pixels, (0, 0), 1.0), 8.0, TissueSpec(ink_is_glass=False)), truth) > 0.9
    pixels, truth = section((240, 232, 205))
    pixels[:, 300:] = 255
    assert iou(find_tissue(pixels, 8.0, EXACT)[:, :300], truth[:, :300]) > 0.95


@pytest.mark.parametrize("colour", [(120, 70, 128), (180, 150, 120)])
def test_a_picture_from_within_the_tissue_is_all_tissue(colour):
    """Its flattest places were the glass, so that nothing was darker: a third of regions of 0.3 mm of a real slide had no tissue."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (200, 200)).astype(np.float32), (0, 0), 1.5) * 70
    pixels = np.clip(np.array(colour) + texture[..., None], 0, 255).astype(np.uint8)
    assert find_tissue(pixels, 8.0, EXACT).mean() > 0.97


@pytest.mark.parametrize("method", ["contrast", "otsu_saturation", "otsu_grey"])
def test_every_method_finds_tissue_and_leaves_bare_glass(method):
    pixels, truth = section()
    spec = TissueSpec(method=method)
    assert iou(find_tissue(pixels, 8.0, spec), truth) > 0.85
    bare = np.clip(np.full((300, 400, 3), 243.0) + np.random.default_rng(0).normal(0, 1.5, (300, 400, 3)), 0, 255)
    assert find_tissue(bare.astype(np.uint8), 8.0, spec).mean() < 0.02


def test_every_registered_method_is_tested_here():
    assert set(TISSUE) == {"contrast", "otsu_saturation", "otsu_grey", "mask"}
    with pytest.raises(MilError, match="unknown tissue method 'contrst'; did you mean 'contrast'"):
        find_tissue(section()[0], 8.0, TissueSpec(method="contrst"))
    with pytest.raises(SlideError, match="masks"):
        find_tissue(section()[0], 8.0, TissueSpec(method="mask", masks="{slide_id}.png"))


def test_specks_go_and_holes_stay_or_go_by_their_size():
    pixels = np.full((200, 200, 3), 244, np.uint8)
    pixels[40:160, 40:160] = (150, 80, 150)
    pixels[60:70, 60:70] = 244  # 100 pixels of 64 square microns
    pixels[100:130, 100:130] = 244
    pixels[5:9, 5:9] = (150, 80, 150)
    spec = TissueSpec(margin_um=0, min_area_um2=30 * 64, fill_holes_um2=300 * 64)
    mask = find_tissue(pixels, 8.0, spec)
    assert not mask[5:9, 5:9].any()
    assert mask[60:70, 60:70].all()
    assert not mask[104:126, 104:126].any()
    assert find_tissue(pixels, 8.0, TissueSpec(fill_holes_um2=1e7))[100:130, 100:130].all()
    assert not find_tissue(pixels, 8.0, TissueSpec(margin_um=0, fill_holes_um2=0))[63:67, 63:67].any()


def test_geojson_goes_to_qupath_and_comes_back():
    mask = find_tissue(section()[0], 8.0, TissueSpec())
    mask[140:160, 180:200] = False
    mask[10:30, 20:21] = True
    text = to_geojson(mask, (400 * 16, 300 * 16))
    assert json.loads(text)["features"][0]["properties"]["classification"]["name"] == "Tissue"


@pytest.mark.parametrize("size", [(400, 300), (200, 150)])
def test_masks_are_read_back_as_they_were(tmp_path, size):
    mask = np.zeros((300, 400), bool)
    mask[40:200, 50:301] = True
    mask[80:120, 100:180] = False
    mask[250:251, 10:40] = True
    (tmp_path / "a.geojson").write_text(to_geojson(mask, (400 * 16, 300 * 16)))
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "a.png")
    for name in ("a.geojson", "a.png"):
        found = read_mask(tmp_path / name, size, (400 * 16, 300 * 16))
        expected = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        assert found.shape == expected.shape
        assert (found != expected).mean() < 0.01, name
        assert found[found.shape[0] // 5, found.shape[1] // 5]
        assert not found[found.shape[0] // 3, found.shape[1] // 3]


@pytest.mark.parametrize(
    "text",
    ["{", "[1, 2]", '{"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}', '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[["a", "b"]]]}}]}', '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[1e300, 0], [0, 1e300], [1, 1]]]}}]}'],
)  # fmt: skip
def test_what_is_no_mask_is_a_reason(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(SlideError) as raised:
        read_mask(tmp_path / "a.geojson", (10, 10), (100, 100))
    assert raised.value.state == "no_mask"
    with pytest.raises(SlideError, match="does not exist"):
        read_mask(tmp_path / "b.geojson", (10, 10), (100, 100))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SlideError, match="PNG"):
        read_mask(tmp_path / "a.png", (10, 10), (100, 100))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="needs masks"):
        TissueSpec(method="mask")
    with pytest.raises(ValueError, match="slide_id"):
        TissueSpec(masks="masks/a.png")
