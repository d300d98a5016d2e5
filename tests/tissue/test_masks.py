"""Masks pixel by pixel: specks, margins and holes against SciPy's morphology, outlines against sums that are written out."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mil.errors import SlideError
from mil.specs.slides import TissueSpec
from mil.tissue import find_tissue, masks, tidied
from mil.tissue.masks import read_mask, to_geojson
from mil.tissue.unscanned import large_pieces, unscanned, without_unscanned

EIGHT = np.ones((3, 3), bool)
MPP = 8.0


def blobs(seed, shape=(60, 80), pieces=14):
    """Rectangles put in and cut out: pieces, holes, islands in holes, specks, some at the border."""
    stream = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for number in range(pieces):
        y, x = stream.integers(0, shape[0]), stream.integers(0, shape[1])
        height, width = stream.integers(2, 22, 2)
        mask[y : y + height, x : x + width] = number % 3 != 2
    return mask


def pieces_of(mask, structure):
    """Each connected piece with what it encloses."""
    labels, count = ndimage.label(mask, structure)
    around = EIGHT if structure is None else None
    return [ndimage.binary_fill_holes(labels == number, around) for number in range(1, count + 1)]


def tidied_by_hand(mask, least_px, radius, fill_px):
    mask = mask.copy()
    for piece in pieces_of(mask, EIGHT):
        if piece.sum() < least_px:
            mask[piece] = False
    y = np.arange(-radius, radius + 1)
    disc = np.abs(y)[None] <= np.rint(np.sqrt(radius**2 - y**2))[:, None]
    mask = ndimage.binary_dilation(mask, disc) if radius else mask
    outside = np.pad(mask, 1)  # what reaches the border of the image is no hole
    for hole in pieces_of(~outside, None):
        if not hole[0, 0] and hole.sum() <= fill_px:
            outside[hole] = True
    return outside[1:-1, 1:-1]


@pytest.mark.parametrize(("least", "margin", "fill"), [(0, 0, 0), (40, 0, 0), (0, 0, 60), (30, 17, 50), (8, 30, 1e6)])
def test_specks_margins_and_holes_are_those_of_scipy(least, margin, fill):
    spec = TissueSpec(min_area_um2=least * MPP**2, margin_um=margin, fill_holes_um2=fill * MPP**2)
    for seed in range(12):
        mask = blobs(seed)
        kept = mask.copy()
        np.testing.assert_array_equal(
            tidied(mask, MPP, spec), tidied_by_hand(mask, least, round(margin / MPP), fill), err_msg=str(seed)
        )
        np.testing.assert_array_equal(mask, kept)


def test_areas_are_compared_to_the_pixel():
    """20 pixels are a speck below 21 and none below 20; a hole of 12 is filled from 12 on."""
    mask = np.zeros((30, 30), bool)
    mask[2:6, 2:7] = True
    mask[10:20, 10:20] = True
    mask[13:16, 12:16] = False
    for least, fill in ((20, 12), (20, 11), (21, 12), (21, 11)):
        spec = TissueSpec(min_area_um2=least * 9.0, margin_um=0, fill_holes_um2=fill * 9.0)
        found = tidied(mask, 3.0, spec)
        assert found[3, 3] == (least == 20)
        assert found[14, 14] == (fill == 12)


def thumbnail(seed):
    """Black, almost black, dark and tissue rectangles on glass."""
    stream = np.random.default_rng(seed)
    pixels = np.full((60, 80, 3), 240, np.uint8)
    for colour in (0, 10, 11, (9, 9, 30), 0, (150, 80, 150), 5):
        y, x = stream.integers(0, 50), stream.integers(0, 70)
        height, width = stream.integers(1, 24, 2)
        pixels[y : y + height, x : x + width] = colour
    return pixels


@pytest.mark.parametrize("mpp", [8.0, 20.0])
def test_what_was_never_scanned_is_large_black_and_its_border(mpp):
    for seed in range(12):
        pixels = thumbnail(seed)
        black = (pixels <= 10).all(axis=2)
        labels, count = ndimage.label(black, EIGHT)
        large = np.isin(labels, [one for one in range(1, count + 1) if (labels == one).sum() >= 20_000 / mpp**2])
        found = unscanned(pixels, mpp)
        np.testing.assert_array_equal(found, ndimage.binary_dilation(large, np.ones((5, 5))) if large.any() else large)
        white = without_unscanned(pixels, found)
        assert (white[found] == 255).all()
        np.testing.assert_array_equal(white[~found], pixels[~found])
        sizes = [(labels == one).sum() for one in range(1, count + 1)]
        for area in (1, 50, max(sizes)):
            keep = np.isin(labels, [one for one, size in enumerate(sizes, 1) if size >= area])
            np.testing.assert_array_equal(large_pieces(black, area), keep)
    assert not unscanned(np.full((9, 9, 3), 240, np.uint8), mpp).any()


@pytest.mark.parametrize("margin", [0, 40])
def test_neither_black_nor_ink_is_tissue_and_no_margin_reaches_into_them(margin):
    pixels = np.full((200, 300, 3), 243, np.uint8)
    noise = np.random.default_rng(0).integers(-25, 25, (200, 300, 1))
    pixels[40:160, 40:200] = np.clip(np.array([170, 90, 160]) + noise, 0, 255)[40:160, 40:200]
    pixels[:, 200:240] = 0
    pixels[10:30, 20:180] = (20, 150, 60)  # green pen on glass
    for is_glass in (True, False):
        found = find_tissue(pixels, MPP, TissueSpec(margin_um=margin, ink_is_glass=is_glass))
        assert not found[:, 198:242].any()
        assert not found[170:, 250:].any()
        assert found[14:26, 24:176].all() != is_glass
        assert found[14:26, 24:176].any() != is_glass
        assert found[60:150, 60:190].all()


@pytest.mark.parametrize("finer", [1, 2, 3])
def test_outlines_are_read_back_to_the_pixel(tmp_path, finer):
    """At the mask's size and at finer ones, for slides whose pixels are not square either."""
    ring = np.zeros((60, 80), bool)
    ring[20:40, 30:50] = True
    ring[25:30, 35:38] = ring[25:30, 40:45] = ring[35:37, 33:47] = False
    for mask in (ring, *(blobs(seed) for seed in range(6))):
        size = (80 * 16 + 7, 60 * 12 + 5)
        (tmp_path / "a.geojson").write_text(to_geojson(mask, size))
        expected = np.kron(mask, np.ones((finer, finer))) > 0
        np.testing.assert_array_equal(read_mask(tmp_path / "a.geojson", (80 * finer, 60 * finer), size), expected)
        Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png", (80 * finer, 60 * finer), (1287, 965)), expected)
        features = json.loads(to_geojson(mask, size))["features"]
        polygons = [feature["geometry"]["coordinates"] for feature in features]
        assert len(polygons) == ndimage.label(mask, EIGHT)[1]
        for ring in (ring for polygon in polygons for ring in polygon):
            assert ring[0] == ring[-1]
            assert ring == np.round(ring, 1).tolist()  # tenths of a level-0 pixel
    tissue = {"name": "Tissue", "color": [0, 160, 60]}
    assert features[0]["properties"] == {"objectType": "annotation", "classification": tissue}
    assert json.loads(to_geojson(np.zeros((5, 5), bool), (5, 5)))["features"] == []


def drawn(tmp_path, *features, size=(40, 30), slide=(80, 90)):
    (tmp_path / "a.json").write_text(json.dumps({"features": list(features)}))
    return read_mask(tmp_path / "a.json", size, slide)


def polygon(*rings, kind="Polygon", name=None):
    properties = {"classification": {"name": name}} if name else {}
    return {"geometry": {"type": kind, "coordinates": list(rings)}, "properties": properties}


def inside(ring, size=(40, 30), slide=(80, 90)):
    """Pixels to the left of whose middle the outline passes an odd number of times, edge by edge."""
    found = np.zeros(size[::-1], bool)
    corners = [(x * size[0] / slide[0], y * size[1] / slide[1]) for x, y, *_ in ring]
    for (x, y), (next_x, next_y) in zip(corners, corners[1:] + corners[:1], strict=True):
        for row in range(size[1]):
            if min(y, next_y) <= row + 0.5 < max(y, next_y):
                at = x + (row + 0.5 - y) * (next_x - x) / (next_y - y)
                found[row, np.arange(size[0]) + 0.5 >= at] ^= True
    return found


def test_a_pixel_is_drawn_where_its_middle_lies_in_a_polygon_and_not_in_its_holes(tmp_path):
    star = [
        [5.2, 4.1, 9.0],
        [70.7, 80.3, 9.0],
        [40.0, -30.0, 9.0],
        [3.0, 88.0, 9.0],
        [99.9, 20.2, 9.0],
    ]  # beyond the slide too
    hole = [[20, 21], [31, 21], [31, 33], [20, 33]]
    other = [[20, 25], [23, 25], [23, 30], [20, 30], [20, 25]]
    a, b, c = inside(star), inside(hole), inside(other)
    assert 0 < c.sum() < b.sum() < a.sum()
    for found in (drawn(tmp_path, polygon(star)), drawn(tmp_path, polygon([star], kind="MultiPolygon"))):
        np.testing.assert_array_equal(found, a)
    np.testing.assert_array_equal(drawn(tmp_path, polygon(hole, other)), b & ~c)
    np.testing.assert_array_equal(drawn(tmp_path, polygon(hole, other), polygon(other)), b | c)
    np.testing.assert_array_equal(drawn(tmp_path, polygon(hole), polygon(star, name="Ignore*")), b & ~a)
    np.testing.assert_array_equal(drawn(tmp_path, polygon(hole), polygon(), polygon(star, name="Tumour")), b | a)
    for text in (polygon(hole), [polygon(hole)], polygon(hole)["geometry"]):
        (tmp_path / "b.json").write_text(json.dumps(text))
        np.testing.assert_array_equal(read_mask(tmp_path / "b.json", (40, 30), (80, 90)), b)


WHOLE = [[0, 0], [80, 0], [80, 90], [0, 90]]
FOLD = [[10, 10], [60, 10], [60, 60], [10, 60]]


@pytest.mark.parametrize("stated", [{"name": "Ignore*"}, {"names": ["Tissue", "Ignore*"]}, "Ignore*"])
def test_an_area_to_ignore_is_no_tissue_within_another_annotation_either(tmp_path, stated):
    """A fold that was drawn and classified as `Ignore*` stayed tissue, and by QuPath's list of names it became tissue itself."""
    fold = {"geometry": {"type": "Polygon", "coordinates": [FOLD]}, "properties": {"classification": stated}}
    point = {"geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {"classification": stated}}
    expected = ~inside(FOLD)
    for order in ((polygon(WHOLE), fold, point), (fold, polygon(WHOLE))):
        np.testing.assert_array_equal(drawn(tmp_path, *order), expected)
    assert not drawn(tmp_path, fold).any()


@pytest.mark.parametrize("properties", [None, {}, {"classification": None}, {"classification": "Tissue"}])
def test_annotations_without_a_class_and_a_mark_of_the_byte_order_are_read(tmp_path, properties):
    whole = {"geometry": {"type": "Polygon", "coordinates": [WHOLE]}, "properties": properties}
    (tmp_path / "b.json").write_text(json.dumps({"features": [whole]}), encoding="utf-8-sig")
    assert read_mask(tmp_path / "b.json", (40, 30), (80, 90)).all()


@pytest.mark.parametrize(
    "shape", [{"type": "LineString", "coordinates": [[1, 1], [2, 2]]}, None, {"type": "GeometryCollection"}]
)
def test_an_annotation_without_an_area_is_named(tmp_path, shape):
    with pytest.raises(SlideError, match=r"a\.json: its object 1 is .*, not a Polygon .*; delete it"):
        drawn(tmp_path, polygon(WHOLE), {"geometry": shape})


@pytest.mark.parametrize(
    "ring", [[[100, 1], [300, 1], [300, 80]], [[0, 0], [1, 0], [1, 1]], [[-9, 5], [-2, 5], [-2, 9]]]
)
def test_a_mask_of_another_slide_or_unit_is_refused(tmp_path, ring):
    """All its polygons lie beside the slide, or span a pixel: the slide had no tissue, for no reason that a user could see."""
    with pytest.raises(SlideError, match="the slide 80 x 90 pixels; export them in level-0 pixels, of this slide"):
        drawn(tmp_path, polygon(ring))
    assert drawn(tmp_path, polygon(ring), polygon(WHOLE)).all()


def test_a_picture_without_bright_pixels_is_refused_and_a_transparent_pixel_is_no_tissue(tmp_path):
    """A mask of 0 and 1 held no tissue; one that is white all over, but transparent beside the tissue, held nothing else."""
    half = np.zeros((40, 80), np.uint8)
    half[:, :40] = 255
    for one in (half // 255, half // 3, np.dstack([half, half * 0, half * 0])):
        Image.fromarray(one).save(tmp_path / "a.png")
        with pytest.raises(SlideError, match=r"brightest pixel is (1|85|76) of 255.*write tissue as 255"):
            read_mask(tmp_path / "a.png", (80, 40), (800, 400))
    for white in ([np.full_like(half, 255)] * 3, [np.full_like(half, 255)]):
        Image.fromarray(np.dstack([*white, half])).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png", (80, 40), (800, 400)), half > 0)
    Image.fromarray(half * 0).save(tmp_path / "a.png")
    assert not read_mask(tmp_path / "a.png", (80, 40), (800, 400)).any()


def test_any_outline_is_drawn_as_its_edges_are_crossed(tmp_path):
    stream = np.random.default_rng(0)
    for number in range(40):
        ring = stream.uniform(-10, 70, (3 + number % 4, 2)).tolist()
        np.testing.assert_array_equal(drawn(tmp_path, polygon(ring)), inside(ring), err_msg=str(ring))


def test_outlines_without_end_are_refused(tmp_path, monkeypatch):
    corners = [[[0, 0], [40, 90], [80, 0]]]
    monkeypatch.setattr(masks, "MAX_CROSSINGS", 60)  # two edges over thirty rows
    assert drawn(tmp_path, polygon(*corners)).any()
    monkeypatch.setattr(masks, "MAX_CROSSINGS", 59)
    with pytest.raises(SlideError, match="simplify"):
        drawn(tmp_path, polygon(*corners))
    monkeypatch.setattr(masks, "MAX_CROSSINGS", 60)
    monkeypatch.setattr(masks, "MAX_GEOJSON_BYTES", (tmp_path / "a.json").stat().st_size)
    assert drawn(tmp_path, polygon(*corners)).any()
    monkeypatch.setattr(masks, "MAX_GEOJSON_BYTES", (tmp_path / "a.json").stat().st_size - 1)
    with pytest.raises(SlideError, match="bytes; simplify its outlines"):
        drawn(tmp_path, polygon(*corners))
    for wrong in (
        [[[1], [2], [3]]],
        [*corners, [[0, 0], [2**40, 1], [3, 3]]],
        [[[0, 0], [1, -(2**40)], [3, 3]]],
        [[[0, 0], [float("nan"), 1], [3, 3]]],
        [[]],
    ):
        monkeypatch.setattr(masks, "MAX_CROSSINGS", 10**6)
        monkeypatch.setattr(masks, "MAX_GEOJSON_BYTES", 10**6)
        with pytest.raises(SlideError) as raised:
            drawn(tmp_path, polygon(*wrong))
        assert raised.value.state == "no_mask"


def test_a_picture_is_read_by_its_brighter_half_and_brought_to_size_by_area(tmp_path, monkeypatch):
    grey = np.repeat([[0, 127, 128, 255, 255, 0, 0, 255]], 4, axis=0).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", (8, 4), (80, 40))[0].tolist() == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    assert read_mask(tmp_path / "a.png", (4, 2), (80, 40))[0].tolist() == [False, True, True, True]  # half is enough
    monkeypatch.setattr(masks, "MAX_IMAGE_PIXELS", 32)
    assert read_mask(tmp_path / "a.png", (8, 4), (80, 40)).any()
    monkeypatch.setattr(masks, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(SlideError, match="8 x 4 pixels"):
        read_mask(tmp_path / "a.png", (8, 4), (80, 40))


@pytest.mark.parametrize("size", [(40, 80), (40, 40), (92, 40)])
def test_a_picture_of_another_shape_than_the_slide_is_refused(tmp_path, size):
    """A turned mask, or one of another slide, was stretched over the slide."""
    Image.fromarray(np.full(size[::-1], 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="another shape than the slide's 8000 x 4000"):
        read_mask(tmp_path / "a.png", (100, 50), (8000, 4000))


@pytest.mark.parametrize("size", [(80, 40), (81, 40), (8000, 4000), (3, 2)])
def test_a_picture_whose_sides_were_rounded_is_read(tmp_path, size):
    Image.fromarray(np.full(size[::-1], 255, np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", (100, 50), (8000, 4000)).all()
