"""Files of several images: which is the slide, at which scale; labels, macros and previews never are, scenes are never dropped in silence."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_slide_formats import HALF_MICRON, state_of
from test_slide_readers import APERIO, texture, write_jpeg_tiles

from mil.slides.slide import open_slide

SLIDE = texture(640, 480)
TILED = {"tile": (128, 128), "compression": "deflate"}


def ome(path: Path, *images: tuple[np.ndarray, float | None, str]) -> Path:
    """An OME-TIFF of (pixels, microns a pixel, name)."""
    with tifffile.TiffWriter(path, ome=True) as file:
        for pixels, mpp, name in images:
            scale = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            colour = "rgb" if pixels.ndim == 3 else "minisblack"
            axes = "YXS" if pixels.ndim == 3 else "YX"
            file.write(pixels, photometric=colour, metadata={"axes": axes, "Name": name, **scale}, **TILED)
    return path


OTHERS = {
    "overview first": (texture(200, 150), 1.0, "a"),
    "macro first, named": (texture(700, 500), 0.4986, "macro image"),
    "macro first, by its scale": (texture(700, 500), 16.4, ""),
    "grey label first": (texture(200, 150)[..., 0].copy(), None, ""),
    "label of unknown scale first": (texture(200, 150), None, ""),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("first", [True, False])
def test_the_scale_is_that_of_the_image_that_is_read(tmp_path, other, first):
    images = [OTHERS[other], (SLIDE, 0.4986, "slide")]
    path = ome(tmp_path / "a.ome.tif", *(images if first else images[::-1]))
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.4986)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 640, 480), SLIDE)
    state, remark = state_of(path)
    assert state == "ok"
    assert ("not read: image" in remark) == (other not in {"macro first, named", "grey label first"})


def test_the_scale_of_an_image_of_another_size_is_not_taken(tmp_path):
    """A copy at half the size that keeps the OME-XML of the whole was read with the whole's scale."""
    path = ome(tmp_path / "a.ome.tif", (texture(300, 200), 0.25, "slide"))
    data = path.read_bytes()
    assert data.count(b'SizeX="300"') == 1
    path.write_bytes(data.replace(b'SizeX="300"', b'SizeX="600"'))
    with open_slide(path) as slide:
        assert slide.mpp is None
        assert (slide.width, slide.height) == (300, 200)


@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_reduced_copy_does_not_have_the_scale_of_the_whole_that_its_description_states(tmp_path, tile):
    """Of an SVS whose whole is gone; its thumbnail was read with the scale of the slide, 0.25 for 1.0."""
    description = "Aperio Image Library v11\n1200x800 [0,0 1200x800] (240x240) -> 300x200 - |AppMag = 40|MPP = 0.25"
    options = {"photometric": "rgb", "description": description, "metadata": None, "tile": tile}
    tifffile.imwrite(tmp_path / "a.svs", texture(300, 200), **options)
    assert state_of(tmp_path / "a.svs")[0] == "no_mpp"
    tifffile.imwrite(
        tmp_path / "a.svs", texture(300, 200), **options | {"description": description.replace("1200x800", "300x200")}
    )
    assert state_of(tmp_path / "a.svs")[0] == "ok"


def test_an_svs_that_begins_with_a_lower_level_is_refused(tmp_path):
    """The lower level was read with the scale of the whole, which tifffile takes for the thumbnail, by its place."""
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        for pixels in (texture(300, 200), texture(600, 400)):
            file.write(pixels, photometric="rgb", description=APERIO, metadata=None, **TILED)
    state, reason = state_of(tmp_path / "a.svs")
    assert state == "unsupported"
    assert "image 1 'Thumbnail' (600 x 400 pixels, 0.25 microns a pixel) is larger than image 0" in reason


def test_several_scenes_are_refused_by_name(tmp_path):
    path = ome(
        tmp_path / "a.ome.tif",
        (SLIDE, 0.5, "left"),
        (SLIDE[:, ::-1].copy(), 0.5, "right"),
        (SLIDE[::4, ::4].copy(), 2.0, ""),
    )
    state, reason = state_of(path)
    assert state == "several_scenes"
    assert "'left' (640 x 480 pixels, 0.5 microns a pixel)" in reason
    assert "'right'" in reason
    assert "bfconvert" in reason
    tifffile.imwrite(
        tmp_path / "b.tif",
        np.stack([SLIDE, SLIDE[::-1]]),
        photometric="rgb",
        tile=(128, 128),
        metadata=None,
        **HALF_MICRON,
    )
    assert state_of(tmp_path / "b.tif")[0] == "several_scenes"


@pytest.mark.parametrize("name", ["label image", "Macro", "overview", "thumbnail"])
def test_a_companion_alone_is_no_slide(tmp_path, name):
    state, reason = state_of(ome(tmp_path / "a.ome.tif", (SLIDE, 0.5, name)))
    assert (state, name in reason) == ("not_a_slide", True)


def test_a_larger_image_that_is_not_brightfield_makes_the_file_no_slide(tmp_path):
    grey = np.zeros((960, 960), np.uint16)
    assert state_of(ome(tmp_path / "a.ome.tif", (grey, 0.5, ""), (SLIDE, 0.5, "")))[0] == "not_a_slide"


@pytest.mark.parametrize("tiled", [True, False])
def test_a_plain_tiff_whose_macro_comes_first(tmp_path, tiled):
    path = tmp_path / "a.tif"
    layout = {"tile": (128, 128)} if tiled else {}
    with tifffile.TiffWriter(path) as file:
        file.write(
            texture(300, 128),
            photometric="rgb",
            metadata=None,
            resolution=(600, 600),
            resolutionunit="CENTIMETER",
            **layout,
        )
        file.write(SLIDE, photometric="rgb", metadata=None, **layout, **HALF_MICRON)
        file.write(SLIDE[::2, ::2], photometric="rgb", metadata=None, subfiletype=1, **layout)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert [level.downsample for level in slide.levels] == [1, 2]
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 640, 480), SLIDE)


@pytest.mark.parametrize("said", [f"{APERIO}|", ""])
def test_a_tiled_label_of_the_slide_s_shape_is_no_level(tmp_path, said):
    """OpenSlide takes it for the coarsest level, so that the tissue was looked for on the label."""
    path, options = tmp_path / "a.tif", {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(SLIDE, description=said or None, **options, **HALF_MICRON)
        label = "Aperio Image Library v12.0.0\r\nlabel 320x240" if said else "label"
        file.write(SLIDE[::-2, ::2].copy(), description=label, subfiletype=1, **options)
        file.write(SLIDE[::4, ::4].copy(), subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide.level_for(10.0) == 0
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 640, 480), SLIDE)


@pytest.mark.parametrize("other", [SLIDE[::-2, ::2], np.full((240, 320, 3), 255, np.uint8), SLIDE[::2, ::2]])
def test_a_level_that_shows_another_picture_is_not_read(tmp_path, other):
    """A tiled label without a description, or a level of another slide: the tissue was looked for on it."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for pixels in (SLIDE, other):
            options = {"subfiletype": int(pixels is not SLIDE), "metadata": None, **HALF_MICRON}
            file.write(pixels, photometric="rgb", tile=(128, 128), **options)
    is_level = np.array_equal(other, SLIDE[::2, ::2])
    remark = "not read: 320 x 240 pixels, another picture than the finer level's"
    assert state_of(tmp_path / "a.tif") == ("ok", "" if is_level else remark)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.level_for(1.0) == int(is_level)


def test_a_second_picture_in_an_svs_is_named(tmp_path):
    path, options = (
        tmp_path / "a.svs",
        {"photometric": "rgb", "tile": (128, 128), "metadata": None, "description": APERIO},
    )
    with tifffile.TiffWriter(path) as file:
        for pixels in (SLIDE, SLIDE[::-1, :600].copy()):
            file.write(pixels, **options)
    assert state_of(path) == ("ok", "not read: 600 x 480 pixels of another shape")


def test_pixels_in_another_file_are_named(tmp_path):
    path = ome(tmp_path / "a.ome.tif", (SLIDE, 0.5, ""), (SLIDE, 0.5, ""))
    with tifffile.TiffFile(path) as tiff:
        text = str(tiff.ome_metadata)
    text = text.replace(
        '<TiffData IFD="1" PlaneCount="1"/>',
        '<TiffData IFD="0" PlaneCount="1"><UUID FileName="b.tif">urn:b</UUID></TiffData>',
    )
    text = text.replace(
        '<TiffData IFD="0" PlaneCount="1"/>',
        '<TiffData IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:a</UUID></TiffData>',
    )
    tifffile.imwrite(path, SLIDE, photometric="rgb", description=text.encode(), metadata=None)
    state, reason = state_of(path)
    assert (state, "b.tif" in reason) == ("unsupported", True)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg", "jpeg2000"])
@pytest.mark.parametrize(("tile", "as_ome"), [((128, 128), True), ((128, 128), False), (None, False)])
def test_colours_stored_apart(tmp_path, compression, tile, as_ome):
    path = tmp_path / ("a.ome.tif" if as_ome else "a.tif")
    options = (
        {"metadata": {"axes": "SYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}}
        if as_ome
        else {"metadata": None, **HALF_MICRON}
    )
    planes = np.ascontiguousarray(SLIDE.transpose(2, 0, 1))
    tifffile.imwrite(
        path, planes, photometric="rgb", planarconfig="separate", tile=tile, compression=compression, **options
    )
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        found = slide.read_region(0, 0, 0, 640, 480)
    with tifffile.TiffFile(path) as tiff:
        expected = tiff.asarray(key=0).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - expected).max() <= (2 if compression == "jpeg" else 0)
    if compression not in {"jpeg", "jpeg2000"}:
        np.testing.assert_array_equal(found, SLIDE)
    assert state_of(path)[0] == "ok"


@pytest.mark.parametrize("bigtiff", [True, False])
@pytest.mark.parametrize("description", [APERIO, "x"])
def test_directories_in_a_circle_are_refused_at_once(tmp_path, bigtiff, description):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for _ in range(2):
            file.write(SLIDE, photometric="rgb", tile=(128, 128), metadata=None, description=description)
    with tifffile.TiffFile(path) as tiff:
        first, second = (page.offset for page in tiff.pages)
    data = bytearray(path.read_bytes())
    count, entry, offset = ("<Q", 20, "<Q") if bigtiff else ("<H", 12, "<I")
    end = second + struct.calcsize(count) + struct.unpack_from(count, data, second)[0] * entry
    struct.pack_into(offset, data, end, first)
    path.write_bytes(data)
    start = time.monotonic()
    assert state_of(path) == ("unreadable", "a.tif: its TIFF directories point back at one another; copy it again")
    assert time.monotonic() - start < 5


def test_imagej_writes_its_micron_in_either_case(tmp_path):
    for unit in ("\\u00B5m", "\\u00b5m", "micron", "um"):
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path, SLIDE, photometric="rgb", metadata=None, resolution=(2, 2), description=f"ImageJ=1.54f\nunit={unit}\n"
        )
        with open_slide(path) as slide:
            assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.5), "imagej.unit")


@pytest.mark.parametrize("name", ["slide.vsi", "slide.tif"])
def test_the_preview_of_an_olympus_slide_is_refused(tmp_path, name):
    tifffile.imwrite(tmp_path / name, SLIDE, photometric="rgb", tile=(128, 128), metadata=None, **HALF_MICRON)
    ets = tmp_path / "_slide_" / "stack10001" / "frame_t.ets"
    ets.parent.mkdir(parents=True)
    ets.write_bytes(b"SIS\0")
    state, reason = state_of(tmp_path / name, "0.5")
    assert state == "unsupported"
    assert "_slide_/stack10001/frame_t.ets" in reason
    assert "bfconvert" in reason


def test_a_format_that_cannot_be_read_says_what_to_do(tmp_path):
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE" + bytes(1000))
    state, reason = state_of(tmp_path / "a.czi")
    assert state in {"not_a_slide", "unreadable"}
    assert "bfconvert" in reason


@pytest.mark.parametrize(("right", "wrong"), [(6, 2), (2, 6)])
def test_colours_that_contradict_the_photometric_tag_are_refused(tmp_path, right, wrong):
    noise = np.random.default_rng(0).normal(0, 1.5, (512, 512, 1))
    pixels = np.clip(244 + noise + np.zeros(3), 0, 255).astype(np.uint8)
    pixels[150:350, 150:350] = (205, 135, 180)  # as YCbCr (255, 165, 217)
    path = tmp_path / "a.svs"
    if right == 6:
        write_jpeg_tiles(path, pixels, subsampling="444")
    else:
        options = {"compressionargs": {"outcolorspace": "rgb"}, "description": APERIO, "metadata": None}
        tifffile.imwrite(
            path, pixels, photometric="rgb", tile=(256, 256), compression="jpeg", subsampling=(1, 1), **options
        )
    assert state_of(path)[0] == "ok"
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags[262].valueoffset
    data = bytearray(path.read_bytes())
    assert data[at] == right
    data[at] = wrong
    path.write_bytes(data)
    state, reason = state_of(path)
    assert (state, f"tiffset -s 262 {right}" in reason) == ("unsupported", True)
