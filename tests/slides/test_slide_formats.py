"""What users bring: OME, flat, stripped and Big TIFF, PNG, JPEG, DICOM; and what is refused, with its reason."""

import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from test_slide import ramp, sheet, write_slide
from test_slide_readers import texture

from mil.config import SlidesSpec
from mil.errors import SlideError
from mil.progress import quiet
from mil.slides.check import check_slides, look_at
from mil.slides.fingerprint import fingerprint
from mil.slides.readers.dicom import check_dicom
from mil.slides.slide import open_slide

HALF_MICRON = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def state_of(path: Path, mpp: str = "") -> tuple[str, str]:
    found = look_at(path, mpp, SlidesSpec())
    return str(found["state"]), str(found["reason"])


def assert_whole(path: Path, pixels: np.ndarray, mpp: float, source: str, kind: str) -> None:
    with open_slide(path) as slide:
        assert (slide.width, slide.height) == (pixels.shape[1], pixels.shape[0])
        assert slide.mpp == pytest.approx(mpp, rel=1e-6)
        assert (slide.mpp_source, slide.format) == (source, kind)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, slide.width, slide.height), pixels)
        np.testing.assert_array_equal(slide.read_tile(33, 21, 64, slide.mpp), pixels[21:85, 33:97])
    assert state_of(path)[0] == "ok"


@pytest.mark.parametrize(("unit", "size"), [("µm", 0.5), ("nm", 500.0), ("mm", 0.0005)])
def test_ome_tiff_with_its_pyramid_in_subifds(tmp_path, unit, size):
    pixels = texture(400, 300)
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size, "PhysicalSizeYUnit": unit}  # fmt: skip
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate"}
        file.write(pixels, subifds=1, metadata=metadata, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
    assert_whole(path, pixels, 0.5, "ome.PhysicalSizeX", "ome-tiff")
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2]


@pytest.mark.parametrize("rows", [1, 37, 300])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd", "jpeg2000"])
def test_flat_and_stripped_tiff(tmp_path, rows, compression):
    pixels = texture(400, 300)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=rows, compression=compression, **HALF_MICRON)
    assert_whole(path, pixels, 0.5, "tiff.XResolution", "tiff")


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_big_and_classic_tiff_of_either_byte_order(tmp_path, bigtiff, byteorder):
    pixels = texture(400, 300)
    path = tmp_path / "a.bin"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), bigtiff=bigtiff, byteorder=byteorder, **HALF_MICRON)  # fmt: skip
    with open_slide(path) as slide:
        kind = slide.format  # OpenSlide does not open every classic TIFF of the other byte order
    assert kind in {"generic-tiff", "tiff"}
    assert_whole(path, pixels, 0.5, "tiff.XResolution", kind)


def test_png_and_jpeg_of_known_mpp(tmp_path):
    pixels = texture(400, 300)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(50_800, 50_800))
    assert_whole(tmp_path / "a.png", pixels, 0.5, "png.pHYs", "png")
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    assert state_of(tmp_path / "a.jpg")[0] == "no_mpp"
    assert state_of(tmp_path / "a.jpg", "0.5")[0] == "ok"
    Image.fromarray(pixels).save(tmp_path / "b.jpg", dpi=(72, 72))
    assert state_of(tmp_path / "b.jpg")[0] == "implausible_mpp"


def test_alpha_is_laid_over_white(tmp_path):
    pixels = np.dstack([texture(300, 200), np.full((200, 300), 255, np.uint8)])
    pixels[:50, :, 3] = 0
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], **HALF_MICRON}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    tifffile.imwrite(tmp_path / "tiled.tif", pixels, tile=(128, 128), **options)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("a.tif", "tiled.tif", "a.png"):
        with open_slide(tmp_path / name, mpp=0.5) as slide:
            found = slide.read_region(0, 0, 0, 300, 200)
        assert (found[:50] == 255).all(), name
        np.testing.assert_array_equal(found[50:], pixels[50:, :, :3])


NOT_SLIDES = {
    "16 bit": lambda path: tifffile.imwrite(path, texture(300, 200).astype(np.uint16), photometric="rgb"),
    "grey": lambda path: tifffile.imwrite(path, texture(300, 200)[..., 0], photometric="minisblack", tile=(128, 128)),
    "CMYK": lambda path: tifffile.imwrite(path, np.zeros((200, 300, 4), np.uint8), photometric="separated"),
    "labels": lambda path: tifffile.imwrite(path, np.zeros((200, 300), np.uint32), photometric="minisblack"),
    "float": lambda path: tifffile.imwrite(path, texture(300, 200).astype(np.float32), photometric="rgb"),
    "channels": lambda path: tifffile.imwrite(
        path, np.zeros((4, 200, 300), np.uint8), photometric="minisblack", ome=True, metadata={"axes": "CYX"}
    ),
    "grey PNG": lambda path: Image.fromarray(texture(300, 200)[..., 0]).save(path, format="PNG"),
    "palette PNG": lambda path: Image.fromarray(texture(300, 200)).quantize(8).save(path, format="PNG"),
    "macro": lambda path: tifffile.imwrite(
        path,
        texture(300, 200),
        photometric="rgb",
        description="Aperio Image Library v12\r\nmacro 300x200",
        metadata=None,
    ),
}


@pytest.mark.parametrize("kind", NOT_SLIDES)
def test_what_is_no_brightfield_slide_is_refused(tmp_path, kind):
    path = tmp_path / "a.tif"
    NOT_SLIDES[kind](path)
    state, reason = state_of(path, "0.5")
    assert state == "not_a_slide"
    assert reason.startswith("a.tif: ")


@pytest.mark.parametrize("tile", [None, (128, 128)])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_turned_images_are_refused_never_read_as_they_lie(tmp_path, tile, orientation):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, texture(300, 200), photometric="rgb", tile=tile, extratags=[(274, 3, 1, orientation, True)])
    assert state_of(path, "0.5") == (
        "unsupported",
        f"a.tif: its orientation tag is {orientation} (turned or mirrored); rewrite it upright",
    )
    image = Image.fromarray(texture(300, 200))
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    assert state_of(tmp_path / "a.jpg", "0.5")[0] == "unsupported"


@pytest.mark.parametrize(
    ("description", "mpp", "source"),
    [
        ("Aperio Image Library v12 |AppMag = 40|MPP = 0.2527", 0.2527, "aperio.MPP"),
        ("Aperio Image Library v12 |AppMag = 40|MPP = 0,2527", 0.2527, "aperio.MPP"),
        ("made here; mpp=0.2276", 0.2276, "description.MPP"),
        ("pixel size = 0.263", 0.263, "description.PixelSize"),
        ("Microns per pixel: 0.35", 0.35, "description.MicronsPerPixel"),
        ('PhysicalSizeX="0.4986"', 0.4986, "description.PhysicalSizeX"),
    ],
)
def test_spellings_of_mpp(tmp_path, description, mpp, source):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp(300, 200), photometric="rgb", tile=(128, 128), description=description, metadata=None)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(mpp)
        assert slide.mpp_source == source


@pytest.mark.parametrize("tile", [(128, 128), None])
@pytest.mark.parametrize(("stated", "differs"), [(0.25, True), (0.52, False)])
def test_a_description_that_contradicts_the_resolution_tags_is_remarked_on(tmp_path, tile, stated, differs):
    path, text = tmp_path / "a.tif", f"scanned at |MPP = {stated}|"
    options = {"photometric": "rgb", "tile": tile, "description": text, "metadata": None}
    tifffile.imwrite(path, texture(300, 200), **options, **HALF_MICRON)
    state, reason = state_of(path)
    assert state == "ok"
    assert ("says 0.25 microns a pixel" in reason or "description.MPP 0.25" in reason) == differs
    tifffile.imwrite(path, texture(300, 200), **options, resolution=(72, 72), resolutionunit="INCH")
    sheet_differs = "the sheet says 0.5 microns a pixel, description.MPP 0.25 in x and 0.25 in y"
    assert state_of(path, "0.5")[1] == (sheet_differs if differs else "")


@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_description_that_states_two_scales_is_remarked_on(tmp_path, tile):
    path = tmp_path / "a.tif"
    options = {
        "photometric": "rgb",
        "tile": tile,
        "description": "MPP = 0.5; before export MPP = 0.25",
        "metadata": None,
    }
    tifffile.imwrite(path, texture(300, 200), **options)
    assert state_of(path) == ("ok", "description.MPP says 0.25 microns a pixel, description.MPP 0.5")


@pytest.mark.parametrize("dpi", [72, 96])
@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_description_holds_where_the_tags_have_what_editors_fill_in(tmp_path, tile, dpi):
    path = tmp_path / "a.tif"
    tags = {"photometric": "rgb", "tile": tile, "metadata": None, "resolution": (dpi, dpi), "resolutionunit": "INCH"}
    tifffile.imwrite(path, texture(300, 200), **tags, description="exported |MPP = 0.25|")
    assert state_of(path) == ("ok", "")
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "description.MPP")
    tifffile.imwrite(path, texture(300, 200), **tags)
    state, reason = state_of(path)
    assert state == "implausible_mpp"
    assert f"tiff.XResolution says {25_400 / dpi:g} microns a pixel" in reason


def test_anisotropic_pixels(tmp_path):
    def write(name: str, x: float, y: float) -> Path:
        path = tmp_path / name
        tifffile.imwrite(path, texture(300, 200), photometric="rgb", resolution=(x, y), resolutionunit="CENTIMETER")
        return path

    assert state_of(write("a.tif", 20_000, 10_000))[0] == "anisotropic_mpp"
    path = write("b.tif", 20_000, 19_800)
    assert state_of(path)[0] == "ok"
    with open_slide(path) as slide:
        assert slide.mpp_x == pytest.approx(0.5)
        assert slide.mpp_y == pytest.approx(0.50505, rel=1e-4)


def test_a_scale_that_does_not_fit_the_objective_and_a_drawing_are_remarked_on(tmp_path):
    def described(name: str, pixels: np.ndarray, text: str) -> tuple[str, str]:
        path = tmp_path / name
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), description=text, metadata=None)
        return state_of(path)

    pixels = texture(300, 200)
    assert described("a.svs", pixels, "Aperio Image Library |AppMag = 40|MPP = 0.25") == ("ok", "")
    state, remark = described("b.svs", pixels, "Aperio Image Library |AppMag = 20|MPP = 0.25")
    assert (state, "20x (about 0.5)" in remark) == ("ok", True)
    drawing = pixels // 128 * 100
    state, remark = described("c.svs", drawing, "Aperio Image Library |AppMag = 40|MPP = 0.25")
    assert (state, "is it a segmentation?" in remark) == ("ok", True)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    path = write_slide(tmp_path / "bomb.svs", np.full((256, 256, 3), 240, np.uint8))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        width, height = page.tags["ImageWidth"].valueoffset, page.tags["ImageLength"].valueoffset
    data = bytearray(path.read_bytes())
    data[width : width + 4] = data[height : height + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(data)
    state, reason = state_of(path, "0.5")
    assert state in {"implausible_size", "unreadable"}, reason
    # a tile that inflates to a thousand times its due
    stream = zlib.compress(bytes(256 * 256 * 3 * 1000), 9)
    with tifffile.TiffWriter(tmp_path / "tile.tif") as file:
        file.write(iter([stream]), shape=(256, 256, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="deflate", metadata=None)  # fmt: skip
    with open_slide(tmp_path / "tile.tif", mpp=0.5) as slide, pytest.raises(SlideError, match="inflates to more"):
        slide.read_tile(0, 0, 64, 0.5)


def test_the_files_of_shared_are_what_their_provenance_says(shared):
    folder = shared / "data" / "slides"
    files = sorted(path for path in folder.iterdir() if path.name != "PROVENANCE.txt")
    table = check_slides(sheet(*files), SlidesSpec(), quiet()).assign(name=[path.name for path in files])
    states = dict(zip(table.name, table.state, strict=True))
    assert states == {
        "boxes.tiff": "implausible_mpp",
        "broken.svs": "not_a_slide",
        "cmu-1-small-region.svs": "ok",
        "fluorescence.ndpi": "not_a_slide",
        "jpeg.dicom": "implausible_mpp",
        "multi_frame_jpeg_camelyon_challenge_image.dcm": "implausible_mpp",
        "small.svs": "ok",
        "tcga-cr-7395-01a-01-ts1.svs": "no_mpp",
        "test_wsi2.dcm": "not_a_slide",
        "unopenable.tiff": "unreadable",
    }
    assert all(reason for reason, state in zip(table.reason, table.state, strict=True) if state != "ok")


def test_dicom_folders(shared, tmp_path):
    folder = tmp_path / "slide"
    folder.mkdir()
    source = shared / "data" / "slides"
    (folder / "0").write_bytes((source / "test_wsi2.dcm").read_bytes())
    assert state_of(folder)[0] == "not_a_slide"
    (folder / "1").write_bytes((source / "multi_frame_jpeg_camelyon_challenge_image.dcm").read_bytes())
    before = fingerprint(folder)
    assert fingerprint(folder / "1") == before
    row = {"patient_id": "p", "site": "A", "mpp": "0.5", "listed": True}
    rows = [row | {"slide_id": name, "path": path} for name, path in (("a", folder), ("b", folder / "1"))]
    table = check_slides(pd.DataFrame(rows), SlidesSpec(), quiet())
    assert table.state.tolist() == ["duplicate", "duplicate"]
    assert "slide b" in table.reason[0]
    with open_slide(folder, mpp=0.5) as slide:
        assert (slide.width, slide.height, slide.format) == (1152, 700, "dicom")
    (folder / "2").write_bytes((source / "jpeg.dicom").read_bytes())
    state, reason = state_of(folder)
    assert (state, "2 DICOM series" in reason) == ("not_a_slide", True)


def test_special_files_are_reasons_too(tmp_path):
    (tmp_path / "link.svs").symlink_to(tmp_path / "gone.svs")
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.svs").write_bytes(b"")
    for name in ("link.svs", "pipe.svs", "empty", "zero.svs"):
        state, reason = state_of(tmp_path / name)
        assert state in {"unreadable", "not_a_slide"}
        assert name in reason


def test_dicom_headers_are_read_element_by_element_however_they_are_damaged(tmp_path):
    header, path = pydicom.Dataset(), tmp_path / "a.dcm"
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID, header.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2"
    header.file_meta.MediaStorageSOPInstanceUID = "1.3"
    header.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.AccessionNumber = "\x08\x00`\x00CS\x02\x00CT"  # looks like a Modality, and is another element's text
    header.Modality, header.SeriesInstanceUID = "SM", "1.2.3"
    header.save_as(path, enforce_file_format=True)
    check_dicom(path)
    header.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    header.save_as(path, enforce_file_format=True)
    with pytest.raises(SlideError, match="is the label image of a slide"):
        check_dicom(path)
    whole, stream = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        at, value = int(stream.integers(132, len(whole))), int(stream.integers(256))
        path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 : int(stream.integers(at, 2 * len(whole)))])
        with suppress(SlideError):
            check_dicom(path)
