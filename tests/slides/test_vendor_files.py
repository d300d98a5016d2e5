"""Files as scanners, converters and copying leave them: right pixels, or one line that says what to do."""

import gzip
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from test_slide_formats import HALF_MICRON, state_of
from test_slide_readers import texture

from mil.slides.fingerprint import files_of, fingerprint
from mil.slides.readers.directories import directories
from mil.slides.slide import Reading, open_slide

ALPHA = np.repeat(np.array([0, 128, 255], np.uint8), [50, 50, 100])[:, None] * np.ones((1, 300), np.uint8)
LAYOUTS = {
    "tiles": {"tile": (128, 128)},
    "strips": {"compression": "lzw"},
    "apart": {"tile": (128, 128), "planarconfig": "separate"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["unspecified", "assocalpha", "unassalpha"])
def test_a_fourth_sample_is_what_its_tag_says(tmp_path, kind, layout):
    colours, share = texture(300, 200), ALPHA[..., None] / 255
    stored = np.rint(colours * share).astype(np.uint8) if kind == "assocalpha" else colours
    over_glass = np.rint(stored * (share if kind == "unassalpha" else 1) + 255 * (1 - share))
    samples = np.dstack([stored, ALPHA])
    samples = np.moveaxis(samples, 2, 0) if layout == "apart" else samples
    options = {"photometric": "rgb", "extrasamples": [kind], **LAYOUTS[layout], **HALF_MICRON}
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        found = slide.read_region(0, 0, 0, 300, 200)
    np.testing.assert_array_equal(found, colours if kind == "unspecified" else over_glass)
    assert state_of(tmp_path / "a.tif") == ("ok", "")


def test_a_level_without_its_tiles_is_not_read(tmp_path):
    """The overview came from it, all white, so that the slide had no tissue."""
    path, pixels = tmp_path / "a.tif", texture(640, 480)
    with tifffile.TiffWriter(path) as file:
        for level in (pixels, pixels[::2, ::2]):
            options = {"subfiletype": int(level is not pixels), "metadata": None, **HALF_MICRON}
            file.write(level, photometric="rgb", tile=(64, 64), compression="deflate", **options)
    with tifffile.TiffFile(path) as tiff:
        counts = tiff.pages[1].tags["TileByteCounts"]
    data = bytearray(path.read_bytes())
    data[counts.valueoffset : counts.valueoffset + 8] = bytes(8)
    path.write_bytes(data)
    assert state_of(path) == ("ok", "not read: 320 x 240 pixels without tiles that level 0 has")
    with open_slide(path) as slide:
        assert slide.level_for(1.0) == 0


@pytest.mark.parametrize("compression", ["jpeg2000", "webp"])
def test_a_tile_whose_end_was_not_copied_is_not_made_up(tmp_path, compression):
    """A copy that broke off but has its full length ends in zeros, which these decoders pass over."""
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "tile": (128, 128), "compression": compression, **HALF_MICRON}
    tifffile.imwrite(path, texture(300, 200), compressionargs={"level": 80}, **options)
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start + length // 2 : start + length] = bytes(length - length // 2)
    path.write_bytes(data)
    state, reason = state_of(path)
    assert (state, "ends in zeros" in reason) == ("unreadable_region", True)


@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_picture_of_another_shape_is_no_level(tmp_path, tile):
    pixels = texture(640, 480)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in (pixels, pixels[::2, ::2], pixels[:200:2, :300:2]):
            reduced = {} if level is pixels else {"subfiletype": 1}
            file.write(level, photometric="rgb", tile=tile, metadata=None, **reduced, **HALF_MICRON)
    with open_slide(tmp_path / "a.tif") as slide:
        assert [level.downsample for level in slide.levels] in ([1.0, 2.0], [1.0])
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 640, 480), pixels)


@pytest.mark.parametrize("make", ["narrow", "filled up"])
def test_the_overview_lies_as_level_0_does_whatever_the_lower_levels_rounded(tmp_path, make):
    """The mean of both axes' ratios shifted the overview of a narrow slide, and of levels filled up to whole tiles by 1 %."""
    width, height = (40, 8000) if make == "narrow" else (1200, 840)
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[height * 7 // 8 :, : width // 2] = (150, 60, 140)
    levels = [pixels]
    for factor in (3.17, 10.05) if make == "narrow" else (2, 4):
        size = int(width / factor), int(height / factor)
        filled = [0, 0] if make == "narrow" else [-side % 16 for side in reversed(size)]
        level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        levels.append(np.pad(level, [(0, filled[0]), (0, filled[1]), (0, 0)], constant_values=240))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in levels:
            options = {"subfiletype": int(level is not pixels), "metadata": None, **HALF_MICRON}
            file.write(level, photometric="rgb", tile=(64, 64), **options)
    with open_slide(tmp_path / "a.tif") as slide:
        found, expected = slide.thumbnail(2.0), replace(slide, levels=slide.levels[:1]).thumbnail(2.0)
    first = [np.flatnonzero(picture[:, 0, 1] < 150)[0] for picture in (found, expected)]
    assert abs(first[0] - first[1]) <= 2  # pixels, of 2000 or 210; the mean of both ratios: 45 and 4


def patched(path: Path, tag: int, entry: bytes = b"", value: bytes = b"") -> None:
    """Overwrite a tag's entry in the first directory, or the first bytes of its value."""
    with tifffile.TiffFile(path) as file:
        found = file.pages.first.tags[tag]
    data = bytearray(path.read_bytes())
    for start, new in ((found.offset, entry), (found.valueoffset, value)):
        data[start : start + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize("tile", [(128, 128), None])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_bits_that_are_stored_in_reverse_order_are_turned_round(tmp_path, compression, tile):
    """TIFF 6.0, FillOrder 2. Uncompressed pixels came out wrong (225 of 255 off), deflated ones were called damaged."""
    pixels, path = texture(300, 200), tmp_path / "a.tif"
    options = {"photometric": "rgb", "tile": tile, "compression": compression, "software": "x", **HALF_MICRON}
    tifffile.imwrite(path, pixels, **options)
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages.first.dataoffsets, file.pages.first.databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    for start, length in places:
        data[start : start + length] = imagecodecs.bitorder_decode(bytes(data[start : start + length]))
    path.write_bytes(data)
    patched(path, 305, entry=struct.pack("<HHII", 266, 3, 1, 2))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), pixels)


def test_a_tile_whose_offset_is_0_is_one_that_the_file_does_not_hold(tmp_path):
    """The file's header was read as its pixels."""
    pixels = texture(300, 200)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128), **HALF_MICRON)
    patched(tmp_path / "a.tif", 324, value=bytes(4))
    assert state_of(tmp_path / "a.tif") == ("ok", "the file holds no pixels for 1 of 6 tiles")
    pixels[:128, :128] = 255
    with open_slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), pixels)


def test_an_aperio_description_that_contradicts_the_tags_is_remarked_on(tmp_path):
    """A copy at half the size keeps the description, and so the MPP, of the whole."""
    description = "Aperio Image Library v12.0.0 |AppMag = 40|MPP = 0.25"
    options = {"photometric": "rgb", "tile": (128, 128), "description": description, "metadata": None}
    tifffile.imwrite(tmp_path / "a.svs", texture(300, 200), **options, **HALF_MICRON)
    assert state_of(tmp_path / "a.svs") == ("ok", "tiff.XResolution says 0.5 microns a pixel, aperio.MPP 0.25")


@pytest.mark.parametrize("name", ["a.zarr", "a"])
def test_a_zarr_folder_is_named_as_such(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / ".zattrs").write_text("{}")
    state, reason = state_of(tmp_path / name)
    assert state == "unsupported"
    assert reason.startswith(f"{name}: is a Zarr folder; convert it: ")


def test_the_files_of_a_vms_slide_are_those_that_its_index_names(tmp_path):
    """A slide beside it whose name begins alike changed the fingerprint, so that both were checked and tiled again."""
    index = "[Virtual Microscope Specimen]\r\nNoLayers=1\r\nImageFile={0}.jpg\r\nImageFile(1,0)={0}(1,0).jpg\r\nMapFile={0}_map.jpg\r\n"
    names = {}
    for stem in ("a", "a1"):
        (tmp_path / f"{stem}.vms").write_text(index.format(stem))
        names[stem] = [f"{stem}.vms", f"{stem}.jpg", f"{stem}(1,0).jpg", f"{stem}_map.jpg"]
        for name in names[stem][1:]:
            (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a_notes.txt").write_text("of the same name")
    for stem, expected in names.items():
        assert {file.name for file in files_of(tmp_path / f"{stem}.vms")} == set(expected)
    before = fingerprint(tmp_path / "a.vms")
    (tmp_path / "a1.jpg").write_bytes(b"other")
    assert fingerprint(tmp_path / "a.vms") == before
    (tmp_path / "a(1,0).jpg").write_bytes(b"other")
    assert fingerprint(tmp_path / "a.vms") != before


def test_a_mirax_slide_without_its_folder_or_with_a_file_missing(tmp_path):
    path = tmp_path / "a.mrxs"
    Image.fromarray(texture(300, 200)).save(path, format="JPEG")
    state, reason = state_of(path)
    assert state == "unreadable"
    assert "its pixels lie in the folder a beside it" in reason
    (tmp_path / "a").mkdir()
    listed = (
        "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT = 2\nFILE_0 = Data0.dat\nFILE_1 = Data1.dat\n"
    )
    (tmp_path / "a" / "Slidedat.ini").write_text("\ufeff" + listed, encoding="utf-8")
    for name in ("Index.dat", "Data0.dat"):
        (tmp_path / "a" / name).write_bytes(b"x")
    state, reason = state_of(path)
    assert state == "unreadable"
    assert "1 of the 3 files" in reason
    assert "(Data1.dat); copy the folder again" in reason
    (tmp_path / "a" / "Data1.dat").touch()
    assert state_of(path.rename(tmp_path / "a.MRXS")) == (
        "unreadable",
        "a.MRXS: OpenSlide reads it under the ending .mrxs only; rename it",
    )


def test_a_tiff_without_an_image_says_so(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"II*\0" + bytes(4))
    assert state_of(tmp_path / "a.svs") == ("unreadable", "a.svs: is a TIFF that lists no image; copy it again")


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.svs", b"x")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__, "a.svs")


OTHER_FILES = {
    "ZIP": (archive, "is a ZIP archive; unpack it"),
    "tar": (tar, "is a tar archive; unpack it"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "is a gzip archive; unpack it"),
    "Git LFS": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "login page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "download it again"),
    "iSyntax": (lambda path: path.write_bytes(b'<DataObject ObjectType="DPUfsImport">'), "isyntax2raw"),
    "BMP": (lambda path: Image.fromarray(texture(300, 200)).save(path, format="BMP"), "vips copy"),
    "JPEG 2000": (lambda path: Image.fromarray(texture(300, 200)).save(path, format="JPEG2000"), "vips copy"),
    "16 bits": (lambda path: tifffile.imwrite(path, texture(300, 200).astype(np.uint16)), "vips colourspace"),
    "palette": (lambda path: Image.fromarray(texture(300, 200)).quantize(8).save(path, format="TIFF"), "vips colour"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_what_is_no_slide_file_is_said_with_the_way_out(tmp_path, kind):
    write, said = OTHER_FILES[kind]
    write(tmp_path / "a.svs")
    state, reason = state_of(tmp_path / "a.svs", "0.5")
    assert state == "not_a_slide"
    assert reason.startswith("a.svs: ")
    assert said in reason


def test_lossless_jpeg_in_a_tiff(tmp_path):
    pixels = texture(300, 200)
    how = {"lossless": True, "outcolorspace": "rgb"}
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "jpeg"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, compressionargs=how, **options)
    with open_slide(tmp_path / "a.tif", mpp=0.5) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), pixels)
        exact, scaled = (slide.read_tile(0, 0, 64, 1.0, how) for how in (Reading(), Reading(decoding="scaled")))
    assert np.abs(exact.astype(int) - scaled).max() <= 1
    tifffile.imwrite(tmp_path / "a.tif", pixels, compressionargs={"lossless": True}, **options)  # its tag says YCbCr
    state, reason = state_of(tmp_path / "a.tif", "0.5")
    assert (state, "YCbCr must be converted: bfconvert" in reason) == ("unreadable_region", True)


SCN_IMAGE = (
    '<image name="{0}"><creationDate>2010-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1"/>'
    '<pixels sizeX="{1}" sizeY="{2}"><dimension sizeX="{1}" sizeY="{2}" r="0" ifd="{0}"/></pixels>'
    '<view sizeX="{3}" sizeY="{4}" offsetX="{5}" offsetY="{6}"/><scanSettings><objectiveSettings><objective>{7}</objective>'
    "</objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
)


def test_both_scanned_regions_of_a_leica_slide_are_read_where_they_lie(tmp_path):
    """Sizes and offsets in nanometres; 0.5 microns per pixel."""
    path, regions = tmp_path / "a.scn", [texture(320, 240, 1), texture(320, 240, 2)]
    images = SCN_IMAGE.format(0, 160, 240, 800_000, 1_200_000, 0, 0, 0.6)
    images += SCN_IMAGE.format(1, 320, 240, 160_000, 120_000, 50_000, 100_000, 20)
    images += SCN_IMAGE.format(2, 320, 240, 160_000, 120_000, 500_000, 800_000, 20)
    text = '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
    text += f'<collection name="c" sizeX="800000" sizeY="1200000"><barcode>x</barcode>{images}</collection></scn>'
    options = {"photometric": "ycbcr", "compression": "jpeg", "tile": (128, 128)}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(texture(160, 240), description=text, metadata=None, **options)
        for region in regions:
            file.write(region, metadata=None, compressionargs={"level": 98}, **options, **HALF_MICRON)
    assert state_of(path) == ("ok", "")
    with open_slide(path) as slide:
        assert (slide.width, slide.height, slide.format) == (1600, 2400, "leica")
        assert slide.mpp == pytest.approx(0.5)
        for page, (x, y) in ((1, (100, 200)), (2, (1000, 1600))):
            found = slide.read_region(x, y, 0, 320, 240).astype(int)
            assert np.abs(found - tifffile.imread(path, key=page)).max() <= 2
        assert (slide.read_region(0, 0, 0, 50, 50) == 255).all()
        gaps = slide.reader.gaps()
        assert gaps is not None
        assert gaps.cells.mean() > 0.9


def test_directories_of_an_ndpi_slide_lie_beyond_4_gb(shared, tmp_path):
    """Its offsets have 8 bytes. The lower 4 point into pixels, here at what looks like a directory that points at itself."""
    slide = (shared / "data/slides/fluorescence.ndpi").read_bytes()
    (at,) = struct.unpack_from("<Q", slide, 4)
    tables = []
    while at:
        end = at + 2 + 12 * struct.unpack_from("<H", slide, at)[0]
        tables.append(slide[at + 2 : end])
        (at,) = struct.unpack_from("<Q", slide, end)
    path, low = tmp_path / "far.ndpi", len(slide) + 1000
    with open(path, "wb") as file:
        file.write(slide[:4] + struct.pack("<Q", 2**32 + low) + slide[12:])
        file.seek(low)
        file.write(struct.pack("<H12xI", 1, low))
        file.seek(at := 2**32 + low)
        for table in tables:
            at += 10 + len(table) + len(table) // 3
            behind = struct.pack("<Q", at if table is not tables[-1] else 0) + bytes(len(table) // 3)
            file.write(struct.pack("<H", len(table) // 12) + table + behind)
    with open(path, "rb") as file:
        assert [table for _, table, _ in directories(file)] == tables
    with open_slide(path, 0.5) as far, open_slide(shared / "data/slides/fluorescence.ndpi", 0.5) as near:
        assert far.levels == near.levels
        np.testing.assert_array_equal(far.read_region(0, 0, 3, 200, 200), near.read_region(0, 0, 3, 200, 200))
