"""Pens over real tissue and over glass, with soft edges and JPEG; what of tissue must not be taken for a pen."""

import cv2
import numpy as np
import pytest

from mil.config import TissueSpec
from mil.slides.slide import open_slide
from mil.tissue import find_tissue
from mil.tissue.contrast import glass_of
from mil.tissue.ink import ink

PENS = {
    "red": [(215, 20, 40), (190, 30, 50), (230, 60, 70)],
    "green": [(20, 140, 60), (0, 110, 70), (60, 160, 90)],
    "blue": [(20, 60, 200), (40, 90, 220), (30, 40, 140), (10, 20, 90)],
    "purple": [(120, 30, 150), (90, 20, 130)],
    "black": [(25, 25, 30), (45, 45, 48)],
}
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


def inked(pixels: np.ndarray) -> np.ndarray:
    return np.any(ink(pixels, glass_of(pixels)[0], 8.0), axis=0)


def with_stroke(pixels: np.ndarray, colour, opacity: float, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a stroke from glass over tissue to glass, soft at its edges, as JPEG; and the share of ink (h, w)."""
    share = np.zeros(pixels.shape[:2], np.float32)
    height, across = share.shape
    cv2.line(share, (5, height // 3), (across - 5, 2 * height // 3), 1, width, cv2.LINE_AA)
    share = cv2.GaussianBlur(share, (0, 0), 1)
    weight = opacity * share[..., None]
    drawn = np.rint((1 - weight) * pixels + weight * np.array(colour)).astype(np.uint8)
    _, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy(), share


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
