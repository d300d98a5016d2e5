"""Slides made with tifffile: regions, exact scale, mpp and its source, states of bad files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from mil.config import SlidesSpec
from mil.errors import MilError, SlideError
from mil.progress import quiet
from mil.schemas import SLIDES
from mil.slides.check import check_slides
from mil.slides.fingerprint import fingerprint
from mil.slides.resample import extents, resample
from mil.slides.slide import open_slide


def ramp(width: int, height: int) -> np.ndarray:
    """Red grows with x, green with y, blue is 128: a pixel says where it is."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x % 256, y % 256, np.full_like(x, 128)], axis=-1).astype(np.uint8)


def write_slide(path: Path, pixels: np.ndarray, mpp: float | None = 0.5, levels=(), tile: int = 256, **options) -> Path:
    """An Aperio-like pyramid; `levels` are whole downsamples, made by mean."""
    if mpp is None:
        description = "Aperio Image Library v12.0.0"
    else:
        description = f"Aperio Image Library v12.0.0 |AppMag = {round(10 / mpp)}|MPP = {mpp}"
    with tifffile.TiffWriter(path) as file:
        for downsample in (1, *levels):
            height, width = pixels.shape[0] // downsample, pixels.shape[1] // downsample
            cut = pixels[: height * downsample, : width * downsample].astype(np.float64)
            small = cut.reshape(height, downsample, width, downsample, 3).mean(axis=(1, 3)).round().astype(np.uint8)
            file.write(
                small,
                tile=(tile, tile),
                photometric="rgb",
                metadata=None,
                description=description,
                **({"compression": "deflate"} | options),
            )
    return path


def sheet(*paths: Path, mpp: str = "", listed: bool = True) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "slide_id": f"s{i}",
                "patient_id": f"p{i}",
                "site": "A",
                "path": str(path),
                "mpp": mpp,
                "listed": listed,
            }
            for i, path in enumerate(paths)
        ]
    )


def test_region_is_what_was_written_and_outside_is_white(tmp_path):
    pixels = ramp(600, 500)
    with open_slide(write_slide(tmp_path / "a.svs", pixels)) as slide:
        assert (slide.width, slide.height, slide.mpp, slide.mpp_source) == (600, 500, 0.5, "aperio.MPP")
        np.testing.assert_array_equal(slide.read_region(100, 37, 0, 300, 200), pixels[37:237, 100:400])
        over = slide.read_region(590, 490, 0, 20, 20)
        np.testing.assert_array_equal(over[:10, :10], pixels[490:, 590:])
        assert (over[10:] == 255).all()
        assert (over[:, 10:] == 255).all()
        np.testing.assert_array_equal(slide.read_tile(100, 37, 224, 0.5), pixels[37:261, 100:324])


@pytest.mark.parametrize("mpp", [0.2276, 0.2527, 0.263, 0.30, 0.35, 0.4986, 0.5, 1.0])
def test_tiles_have_the_same_physical_size_on_every_scanner(tmp_path, mpp):
    period_um = 32.0
    x_um = (np.arange(1400) + 0.5) * mpp
    wave = np.rint(128 + 100 * np.sin(2 * np.pi * x_um / period_um))
    pixels = np.broadcast_to(wave[None, :, None], (700, 1400, 3)).astype(np.uint8)
    with open_slide(write_slide(tmp_path / "a.svs", pixels, mpp, levels=(2, 4))) as slide:
        tile = slide.read_tile(0, 0, 512 if mpp < 0.6 else 256, 0.5)
    row = tile[100, :, 0].astype(float) - 128
    frequencies = np.linspace(0.8, 1.2, 4001) / period_um
    at = (np.arange(len(row)) + 0.5) * 0.5
    power = np.abs(np.exp(-2j * np.pi * frequencies[:, None] * at) @ (row * np.hanning(len(row))))
    assert frequencies[power.argmax()] * period_um == pytest.approx(1, abs=0.005)


def test_resampling_is_the_mean_over_the_box_with_fractions():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    offset, scale, count = 0.37, 3.0, 12
    first, length = extents(np.array([offset]), scale, count)
    assert (first[0], length[0]) == (0, 37)
    weights = np.zeros((count, 40))
    for i in range(count):
        for k in range(40):
            weights[i, k] = max(0, min(offset + (i + 1) * scale, k + 1) - max(offset + i * scale, k)) / scale
    expected = np.einsum("ik,jl,klc->ijc", weights, weights, pixels.astype(float))
    found = resample(pixels[:37, :37], (offset, offset), (scale, scale), (count, count))
    assert np.abs(found - expected).max() < 1.6  # rounded twice


def test_sheet_mpp_overrides_the_header(tmp_path):
    path = write_slide(tmp_path / "a.svs", ramp(300, 300), mpp=0.5)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "sheet")


def test_check_gives_every_bad_slide_a_state_and_a_reason(tmp_path):
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "text.svs").write_text("not a slide")
    paths = [
        write_slide(tmp_path / "good.svs", ramp(300, 300)),
        write_slide(tmp_path / "none.svs", ramp(300, 300), mpp=None),
        write_slide(tmp_path / "huge.svs", ramp(300, 300), mpp=352.8),
        tmp_path / "empty.svs",
        tmp_path / "text.svs",
        tmp_path / "absent.svs",
    ]
    table = check_slides(sheet(*paths), SlidesSpec(), quiet())
    assert list(table.columns) == list(SLIDES)
    assert list(table.state) == ["ok", "no_mpp", "implausible_mpp", "unreadable", "not_a_slide", "unreadable"]
    assert all(table.reason[1:])
    assert list(check_slides(sheet(paths[1], mpp="0.5"), SlidesSpec(), quiet()).mpp_source) == ["sheet"]
    assert list(check_slides(sheet(paths[0], listed=False), SlidesSpec(), quiet()).state) == ["no_patient"]
    with pytest.raises(MilError, match="s0: no_mpp"):
        check_slides(sheet(paths[1]), SlidesSpec(on_bad_slide="stop"), quiet())


def test_fingerprint_covers_all_files_of_a_folder(tmp_path):
    folder = tmp_path / "slide"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(b"a")
    (folder / "b.dcm").write_bytes(b"b")
    before = fingerprint(folder)
    (folder / "b.dcm").write_bytes(b"c")
    assert fingerprint(folder) != before
    with pytest.raises(SlideError, match="does not exist"):
        fingerprint(tmp_path / "absent")


def test_a_tile_covers_its_microns_in_x_and_in_y_by_their_own_scale(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        ramp(600, 400),
        tile=(256, 256),
        photometric="rgb",
        resolution=(40_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    with open_slide(path) as slide:
        assert (slide.mpp_x, slide.mpp_y) == pytest.approx((0.25, 0.5))
        assert slide.level0_px(1.0) == pytest.approx((4.0, 2.0))


def test_what_an_earlier_check_kept_is_used_and_what_was_damaged_there_is_not(tmp_path, monkeypatch):
    slides, kept = sheet(write_slide(tmp_path / "a.svs", ramp(256, 256))), tmp_path / "kept.jsonl"
    expected = check_slides(slides, SlidesSpec(), quiet(), kept)
    whole, stream = kept.read_bytes(), np.random.default_rng(0)
    for at in stream.integers(len(whole), size=40):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert check_slides(slides, SlidesSpec(), quiet(), kept).equals(expected)
    kept.write_bytes(whole)

    def opened(*_: object) -> None:
        raise AssertionError("a slide that is known was opened")

    monkeypatch.setattr("mil.slides.check.check_slide", opened)
    assert check_slides(slides, SlidesSpec(), quiet(), kept).equals(expected)


def test_a_sheet_that_contradicts_the_file_is_remarked_on(tmp_path):
    path = write_slide(tmp_path / "a.svs", ramp(256, 256), mpp=0.5)
    said = "the sheet says 0.25 microns a pixel, aperio.MPP 0.5 in x and 0.5 in y"
    for mpp, differs in (("0.5", False), ("0.49", False), ("0.25", True)):
        assert (said in check_slides(sheet(path).assign(mpp=mpp), SlidesSpec(), quiet()).reason[0]) == differs


def test_what_an_earlier_version_kept_is_looked_at_again(tmp_path, monkeypatch):
    slides, kept = sheet(write_slide(tmp_path / "a.svs", ramp(256, 256))), tmp_path / "kept.jsonl"
    check_slides(slides, SlidesSpec(), quiet(), kept)
    monkeypatch.setattr("mil.slides.check.__version__", "later")
    monkeypatch.setattr("mil.slides.check.check_slide", lambda *_: {"state": "no_mpp", "reason": "looked at"})
    assert check_slides(slides, SlidesSpec(), quiet(), kept).reason[0] == "looked at"
