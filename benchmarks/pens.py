"""Pens drawn over real tissue and glass: what is flagged, what of bare glass counts as tissue, what of clean tissue is lost.

python benchmarks/pens.py [0.6 0.8 1.0]
"""

import io
import os
import re
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from drawn_ink import PENS, inked, with_ink
from PIL import Image

from mil.slides.slide import open_slide
from mil.specs.slides import TissueSpec
from mil.tissue import find_tissue

SHARED = Path(os.environ.get("MIL_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
PATCH = 50  # pixels of 4 microns
TILE = re.compile(r"(\d+)_idx5_x(\d+)_y(\d+)_class")
DRAWN_ON = 3  # patients' patches that pens are drawn on, beside the slides


def main() -> None:
    cv2.setNumThreads(1)
    opacities = [float(text) for text in sys.argv[1:]] or [0.6, 0.8, 1.0]
    slides, patients = whole_slides(), patches()
    flagged = [inked(half(pixels))[tissue_of(half(pixels))].mean() for pixels in (slides | patients).values()]
    print(
        f"No pen, {len(flagged)} patients: of the tissue {np.mean(flagged):.4f} is called ink, at most {max(flagged):.3f}"
    )
    crops = slides | dict(list(patients.items())[5 :: len(patients) // DRAWN_ON][:DRAWN_ON])
    print(
        "Mean (least, or most) over slides: inked tissue flagged | bare glass under ink kept as tissue | tissue without ink flagged | lost"
    )
    for pen, colours in PENS.items():
        for opacity in opacities:
            cells = np.array([drawn_on(pixels, colour, opacity) for pixels in crops.values() for colour in colours])
            means, worst = np.nanmean(cells, axis=0), [np.nanmin(cells[:, 0]), *np.nanmax(cells[:, 1:], axis=0)]
            row = " | ".join(f"{mean:.3f} ({bad:.2f})" for mean, bad in zip(means, worst, strict=True))
            print(f"{pen:7s} {opacity:.1f}  {row}", flush=True)


def drawn_on(pixels: np.ndarray, colour: tuple[int, int, int], opacity: float) -> tuple[float, ...]:
    """The four shares for strokes of one ink, whose colour and thickness vary, with soft edges and JPEG, on pixels of 4 microns."""
    stream = np.random.default_rng(sum(colour))
    tissue = tissue_of(half(pixels))
    share = strokes(pixels.shape[:2], tissue, stream)
    uneven = cv2.resize(stream.normal(0, 4, (12, 12)), pixels.shape[1::-1])[..., None]
    shade = np.clip(np.array(colour) + stream.uniform(-12, 12, 3) + uneven, 0, 255)
    noise = stream.normal(0, 1, pixels.shape)
    seen, share = half(with_ink(pixels, share, shade, opacity, noise)), half(share)
    found, kept = inked(seen), tissue_of(seen)
    grown = cv2.dilate(tissue.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    clean = tissue & (cv2.dilate(share, np.ones((11, 11), np.uint8)) < 0.02)
    under, bare = (share > 0.97) & tissue, (share > 0.97) & ~grown
    return tuple(
        mask[where].mean() if where.any() else np.nan
        for mask, where in ((found, under), (kept, bare), (found, clean), (~kept, clean))
    )


def strokes(shape: tuple[int, int], tissue: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Share of ink (h, w): straight strokes of 200 to 1,200 microns through two places of the tissue and on to glass."""
    share = np.zeros(shape, np.float32)
    places = np.argwhere(tissue)[:, ::-1] * 2
    for width_um in (300, 600, 1200) if min(shape) > 700 else (200, 400):
        start, end = places[stream.integers(len(places), size=2)].astype(float)
        beyond = (end - start) / max(float(np.linalg.norm(end - start)), 1.0) * 250
        line = np.rint([start - beyond, end + beyond]).astype(int).tolist()
        cv2.line(share, line[0], line[1], 1, width_um // 4, cv2.LINE_AA)
    return cv2.GaussianBlur(share, (0, 0), 2)


def whole_slides() -> dict[str, np.ndarray]:
    """Pixels of 4 microns of the four slides; two of them put together from their patches."""
    found = {}
    for name, mpp in (("cmu-1-small-region.svs", None), ("tcga-cr-7395-01a-01-ts1.svs", 0.5)):
        with open_slide(SHARED / "slides" / name, mpp) as slide:
            found[name] = on_glass(slide.thumbnail(4.0))
    for patient, squares in read_patches("complete_slides.zip").items():
        places = np.array([(x, y) for x, y, _ in squares])
        places -= places.min(axis=0)
        whole = on_glass(np.full((*(places.max(axis=0)[::-1] + PATCH), 3), 243, np.uint8), noise=True)
        for (x, y), (_, _, patch) in zip(places + 100, squares, strict=True):
            whole[y : y + PATCH, x : x + PATCH] = patch
        found[patient] = whole[: len(whole) // 2 + 200]
    return found


def patches() -> dict[str, np.ndarray]:
    """24 patches of each patient who has as many, side by side on glass."""
    found = {}
    for patient, squares in sorted(read_patches("patches.zip").items()):
        if len(squares) >= 24:
            rows = [
                np.concatenate([patch for _, _, patch in squares[row : row + 6]], axis=1) for row in range(0, 24, 6)
            ]
            found[patient] = on_glass(np.concatenate(rows))
    return found


def read_patches(archive: str) -> dict[str, list[tuple[int, int, np.ndarray]]]:
    """(x, y, pixels) of the whole patches of each patient."""
    found: dict[str, list[tuple[int, int, np.ndarray]]] = {}
    with zipfile.ZipFile(SHARED / "idc" / archive) as file:
        for name in sorted(file.namelist()):
            if matched := TILE.search(name):
                pixels = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB"))
                if pixels.shape == (PATCH, PATCH, 3):
                    found.setdefault(matched[1], []).append((int(matched[2]), int(matched[3]), pixels))
    return found


def on_glass(pixels: np.ndarray, noise: bool = False) -> np.ndarray:
    """The picture with 100 pixels of bare glass around it; `noise` for glass within it too."""
    padded = np.pad(pixels, ((100, 100), (100, 100), (0, 0)), constant_values=243)
    grain = np.random.default_rng(0).normal(0, 1.2, padded.shape)
    if not noise:
        grain[100:-100, 100:-100] = 0
    return np.clip(padded + grain, 0, 255).astype(np.uint8)


def tissue_of(pixels: np.ndarray) -> np.ndarray:
    return find_tissue(pixels, 8.0, TissueSpec())


def half(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    return cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
