"""Pens over real tissue and over glass, with soft edges and JPEG; what of tissue must not be taken for a pen."""

import cv2
import numpy as np
import pytest
from drawn_ink import PENS, inked, with_ink

from mil.slides.slide import open_slide
from mil.specs.slides import TissueSpec
from mil.tissue import find_tissue
from mil.tissue.contrast import glass_of

PAD = 40  # thumbnail pixels of bare glass around the slide


@pytest.fixture(scope="module")
def thumbnail(shared):
    """Real tissue at 8 microns with bare glass around it."""
    with open_slide(shared / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs", 0.5) as slide:
        pixels = slide.thumbnail(8.0)
    noise = np.random.default_rng(0).normal(0, 1.2, (pixels.shape[0] + 2 * PAD, pixels.shape[1] + 2 * PAD, 3))
    padded = np.clip(glass_of(pixels)[0] + noise, 0, 255).astype(np.uint8)
    padded[PAD:-PAD, PAD:-PAD] = pixels
    return padded


def with_stroke(pixels: np.ndarray, colour, opacity: float, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a stroke from glass over tissue to glass, soft at its edges, as JPEG; and the share of ink (h, w)."""
    share = np.zeros(pixels.shape[:2], np.float32)
    height, across = share.shape
    cv2.line(share, (5, height // 3), (across - 5, 2 * height // 3), 1, width, cv2.LINE_AA)
    share = cv2.GaussianBlur(share, (0, 0), 1)
    return with_ink(pixels, share, np.array(colour), opacity), share


@pytest.mark.parametrize("opacity", [0.6, 0.8])
@pytest.mark.parametrize("pen", PENS)
def test_pens_are_followed_from_glass_onto_tissue(thumbnail, pen, opacity):
    tissue = find_tissue(thumbnail, 8.0, TissueSpec())
    for colour in PENS[pen]:
        for width in (25, 60):
            pixels, share = with_stroke(thumbnail, colour, opacity, width)
            found = inked(pixels)
            under = (share > 0.98) & tissue
            assert found[under].mean() > 0.9, (colour, width)
            clean = tissue & (cv2.dilate(share, np.ones((15, 15), np.uint8)) < 0.02)
            assert found[clean].mean() < 0.03, (colour, width)
            kept = find_tissue(pixels, 8.0, TissueSpec())
            bare = (share > 0.98) & ~cv2.dilate(tissue.astype(np.uint8), np.ones((21, 21), np.uint8)).astype(bool)
            assert kept[bare].mean() < 0.05, (colour, width)
            assert kept[clean].mean() > 0.95, (colour, width)


@pytest.mark.parametrize("pen", ["black", "red"])
def test_a_thin_opaque_stroke_on_glass_is_ink(thumbnail, pen):
    """80 to 130 microns wide, so that no part of it is smooth."""
    tissue = find_tissue(thumbnail, 8.0, TissueSpec()).astype(np.uint8)
    for width in (10, 16):
        pixels, share = with_stroke(thumbnail, PENS[pen][0], 1.0, width)
        bare = (share > 0.98) & ~cv2.dilate(tissue, np.ones((21, 21), np.uint8)).astype(bool)
        assert inked(pixels)[bare].mean() > 0.95, width


@pytest.mark.parametrize("sigma", [1, 2, 3, 5])
def test_tissue_that_is_out_of_focus_is_no_ink(thumbnail, sigma):
    half = thumbnail.shape[0] // 2
    pixels = thumbnail.copy()
    pixels[half:] = cv2.GaussianBlur(pixels, (0, 0), sigma)[half:]
    assert not inked(pixels).any()


@pytest.mark.parametrize("stain", [(1, 2, 1), (2, 1, 1), (3, 0.7, 1), (1, 2, 3), (2, 2, 2), (0.4, 0.4, 0.4)])
def test_strong_and_weak_stains_are_no_ink(thumbnail, stain):
    """Optical densities of haematoxylin, eosin and the rest (Ruifrok 2001), each times a number."""
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    density = -np.log((thumbnail + 1.0) / 256) @ np.linalg.inv(stains) * stain @ stains
    pixels = np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)
    assert inked(pixels).mean() < 0.01


@pytest.mark.parametrize("colour", [(200, 60, 90), (70, 50, 130), (50, 40, 100), (120, 70, 30), (225, 120, 160)])
def test_clusters_of_nuclei_and_eosin_with_the_texture_of_tissue_are_no_ink(thumbnail, colour):
    height, width = thumbnail.shape[:2]
    y, x = np.mgrid[:height, :width]
    grain = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (height, width)), (0, 0), 1.2)
    density = -np.log((np.array(colour) + 1) / 246) * (1 + 0.15 * grain / grain.std())[..., None]
    for middle in ((height // 2, width // 2), (30, width // 2)):
        inside = ((y - middle[0]) / 20) ** 2 + ((x - middle[1]) / 30) ** 2 < 1
        pixels = np.where(inside[..., None], np.clip(246 * np.exp(-density) - 1, 0, 255), thumbnail).astype(np.uint8)
        assert not inked(pixels).any()


def test_grey_ink_of_the_hue_of_mucin_is_followed_onto_tissue(thumbnail):
    """Black of 60 % on glass whose red exceeds its green by 5 of 255: a hue of 167, which says nothing of so grey a colour."""
    tissue = find_tissue(thumbnail, 8.0, TissueSpec())
    pixels, share = with_stroke(thumbnail, (35, 26, 31), 0.6, 40)
    assert inked(pixels)[(share > 0.98) & tissue].mean() > 0.95


def test_dark_tissue_beside_grey_ink_is_no_ink(shared):
    """The slide's dark epithelium has the colours of pale tissue under grey ink, but in patches."""
    with open_slide(shared / "data" / "slides" / "cmu-1-small-region.svs") as slide:
        pixels = np.pad(slide.thumbnail(8.0), ((50, 50), (50, 50), (0, 0)), constant_values=243)
    pixels[:50] = pixels[-50:] = np.clip(243 + np.random.default_rng(0).normal(0, 1.2, (50, *pixels.shape[1:])), 0, 255)
    tissue = find_tissue(pixels, 8.0, TissueSpec())
    for x in (90, 120, 150):
        share = np.zeros(pixels.shape[:2], np.float32)
        cv2.line(share, (x, 5), (x, len(pixels) - 5), 1, 30, cv2.LINE_AA)
        found = inked(with_ink(pixels, cv2.GaussianBlur(share, (0, 0), 1), np.array((41, 38, 48)), 0.6))
        clean = tissue & (cv2.dilate(share, np.ones((25, 25), np.uint8)) == 0)
        assert found[clean].mean() < 0.02
        assert found[(share == 1) & tissue].mean() > 0.9
