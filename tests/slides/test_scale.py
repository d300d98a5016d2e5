"""Microns per pixel from tags and texts, by hand; two axes differ, so that neither stands for the other."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from mil.slides.scale import (
    UNKNOWN,
    _ratio,
    described_scale,
    number,
    ome_scale,
    page_scale,
    property_scale,
    resolution_scale,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), (" 0,25 ", 0.25), (3, 3.0), ("1e-3", 1e-3), ("0", None), ("-1", None), ("nan", None), ("inf", None),
     ("x", None), (None, None), ("", None)],
)  # fmt: skip
def test_a_number_is_positive_and_finite(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "mpp", "source"),
    [
        ("Aperio |AppMag = 40|MPP = 0.2527", 0.2527, "MPP"),
        ("mpp-x: 0,25", 0.25, "MPP"),
        ("MPP_X=2.5e-1", 0.25, "MPP"),
        ("empp=9 MPP=0.5", 0.5, "MPP"),
        ("MPP = 0 PhysicalSizeX = 0.3", 0.3, "PhysicalSizeX"),
        ('PhysicalSizeX="0.5"', 0.5, "PhysicalSizeX"),
        ("Pixel Size (um): 1\nPixelSize=0.46", 0.46, "PixelSize"),
        ("pixel_size_microns = 0.33", 0.33, "PixelSize"),
        ("MicronsPerPixel: 0.23", 0.23, "MicronsPerPixel"),
        ("micron per pixel x=0.24", 0.24, "MicronsPerPixel"),
        ('{"mpp": 0.5}', 0.5, "MPP"),
        ('<slide MPP="0.5"/>', 0.5, "MPP"),
    ],
)
def test_spellings_of_descriptions(text, mpp, source):
    assert described_scale(text) == (mpp, mpp, f"description.{source}")


@pytest.mark.parametrize(
    "text", ["mpp-x=0.5\nmpp-y=0.25", 'PhysicalSizeX="0.5" PhysicalSizeY="0.25"', "PixelSizeX: 0.5, PixelSizeY: 0.25"]
)
def test_a_description_s_scale_in_y_is_its_own(text):
    assert described_scale(text)[:2] == (0.5, 0.25)


@pytest.mark.parametrize("text", ["", "AppMag = 40", "MPP = unknown", "compression MPP"])
def test_a_description_without_a_scale_says_nothing(text):
    assert described_scale(text) == UNKNOWN


@pytest.mark.parametrize(
    ("unit", "microns"), [(2, 25_400.0), (3, 10_000.0), ("inch", 25_400.0), ("centimeter", 10_000.0)]
)
def test_resolution_counts_pixels_for_each_unit(unit, microns):
    assert resolution_scale(20_000.0, 10_000.0, unit) == (microns / 20_000, microns / 10_000, "tiff.XResolution")
    assert resolution_scale(20_000.0, None, unit) == (microns / 20_000, microns / 20_000, "tiff.XResolution")
    assert resolution_scale(None, 10_000.0, unit) == resolution_scale(20_000.0, 1.0, None) == UNKNOWN
    assert resolution_scale(20_000.0, 1.0, 1) == resolution_scale(20_000.0, 1.0, "none") == UNKNOWN


def test_properties_are_read_from_the_description_before_the_tags():
    tags = {"tiff.XResolution": "40000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}
    assert property_scale(tags) == (0.25, 0.5, "tiff.XResolution")
    assert property_scale(tags | {"tiff.ImageDescription": "MPP = 0.4"}) == (0.4, 0.4, "description.MPP")
    assert property_scale(tags | {"openslide.comment": "MPP = 0.4"}) == (0.4, 0.4, "description.MPP")
    assert property_scale({}) == UNKNOWN


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        (None, 1),
        ("µm", 1),
        ("um", 1),
        ("nm", 1e-3),
        ("mm", 1e3),
        ("cm", 1e4),
        ("m", 1e6),
        ("in", 25_400),
        ("Å", 1e-4),
        ("pm", 1e-6),
    ],
)
def test_ome_sizes_are_brought_to_microns(unit, factor):
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    sizes = {"PhysicalSizeX": "0.25", "PhysicalSizeY": "0.5"}
    assert ome_scale(sizes | units) == pytest.approx((0.25 * factor, 0.5 * factor, "ome.PhysicalSizeX"))
    assert ome_scale({"PhysicalSizeX": "0.25"} | units)[:2] == pytest.approx((0.25 * factor, 0.25 * factor))


def test_ome_sizes_in_units_of_their_own():
    mixed = {"PhysicalSizeX": "250", "PhysicalSizeXUnit": "nm", "PhysicalSizeY": "0.5"}
    assert ome_scale(mixed)[:2] == pytest.approx((0.25, 0.5))
    assert ome_scale(mixed | {"PhysicalSizeXUnit": "parsec"}) == UNKNOWN
    assert ome_scale({"PhysicalSizeY": "0.5"}) == ome_scale({}) == UNKNOWN


def page_of(path: Path, **options: object) -> tuple[float | None, float | None, str]:
    tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint8), photometric="rgb", **options)
    with tifffile.TiffFile(path) as tiff:
        return page_scale(tiff.pages[0]), page_scale(tiff.pages[0], described=False)


def test_a_page_is_read_by_description_then_imagej_s_unit_then_tags(tmp_path):
    tags = {"resolution": (4.0, 2.0), "metadata": None}
    found, plain = page_of(tmp_path / "a.tif", description="MPP = 0.4", resolutionunit="CENTIMETER", **tags)
    assert found == (0.4, 0.4, "description.MPP")
    assert plain == (2500.0, 5000.0, "tiff.XResolution")
    found, plain = page_of(tmp_path / "b.tif", description="ImageJ=1.53\nunit=um\n", resolutionunit="NONE", **tags)
    assert found == (0.25, 0.5, "imagej.unit")
    assert plain == UNKNOWN
    found, _ = page_of(tmp_path / "c.tif", description="ImageJ=1.53\nunit=furlong\n", resolutionunit="INCH", **tags)
    assert found == (6350.0, 12_700.0, "tiff.XResolution")
    found, _ = page_of(tmp_path / "d.tif", description="a unit=um b", resolutionunit="INCH", **tags)
    assert found == (6350.0, 12_700.0, "tiff.XResolution")


def test_a_rational_is_its_quotient_and_one_over_nothing_is_unknown():
    assert _ratio((10, 4)) == 2.5
    assert _ratio((10, 0)) is None
    assert _ratio((1, 2, 3)) is None
    assert _ratio(3) == 3.0
    assert _ratio(None) is None
