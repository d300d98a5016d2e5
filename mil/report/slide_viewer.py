"""Results -> a static folder with a slide viewer: deep zoom, attention over it, tiles to inspect; opens without a server.

`viewer/index.html` with its script and style, OpenSeadragon (BSD-3-Clause, its licence beside it), `slides.js` (what is known
of each slide and its tiles) and a folder a slide: `{level}/{column}_{row}.jpg`, `thumb.jpg`, and `tiles/{x}_{y}.jpg`, the
tiles with the highest attention at full size.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mil.config import ReportSpec
from mil.errors import MilError, SlideError
from mil.figures.arms import input_name
from mil.figures.heatmaps import choose
from mil.figures.style import strategy_name
from mil.files import reason_of, way_out, write_text
from mil.progress import Reporter, quiet
from mil.results.results import Absent, Results
from mil.slides.slide import Slide, open_slide

HERE = Path(__file__).parent / "viewer"
FONTS = Path(__file__).parents[1] / "figures" / "fonts"
FONT_FILES = ("inter-regular.ttf", "inter-semibold.ttf")
STATIC = ("index.html", "viewer.css", "viewer.js", "openseadragon.min.js", "openseadragon.LICENSE.txt")
SQUARE_PX = 512
SMALLEST_PX = 256  # no level is smaller
THUMB_PX = 160
JPEG_QUALITY = 82
FULL_SIZE_TILES = 24
TILE_PX = 256


def write_viewer(
    results: Results, folder: str | Path, spec: ReportSpec | None = None, reporter: Reporter | None = None
) -> list[str]:
    """Write the viewer of the main experiment into `folder`, which is made anew; returns the slides that it holds.

    Slides are chosen as for the heat maps. Where a site's slides are not on this machine it has none; without any slide
    no folder is left.
    """
    spec, folder, reporter = spec or results.config.report, Path(folder), reporter or quiet()
    shutil.rmtree(folder, ignore_errors=True)
    chosen = [(site, *one) for site in results.sites for one in _choice(results, site, spec.viewer_slides)]
    written = []
    with reporter.steps("slide viewer", len(chosen), "slides") as steps:
        for site, slide_id, patient, label, score in chosen:
            try:
                known = _write_slide(results, site, slide_id, folder / slide_id, spec.viewer_px)
            except (Absent, SlideError) as error:
                reporter.note(f"slide viewer: slide {slide_id} is left out: {error}")
                continue
            written.append({"id": slide_id, "site": site, "patient": patient, "label": label, "score": score, **known})
            steps.done()
    if not written:
        return []
    experiment = results.experiments[results.main]
    page = {
        "title": spec.title,
        "model": f"{strategy_name(experiment.strategy.name)}, {input_name(experiment)}",
        "endpoint": experiment.endpoint,
        "slides": written,
    }
    write_text(folder / "slides.js", f"window.VIEWER = {json.dumps(page, separators=(',', ':'))};\n")
    for path in (*(HERE / name for name in STATIC), *(FONTS / name for name in FONT_FILES)):
        shutil.copyfile(path, folder / path.name)
    return [slide["id"] for slide in written]


def _choice(results: Results, site: str, count: int) -> list[tuple[str, str, int, float]]:
    try:
        return choose(results, site, count) if count and results.two_classes else []
    except Absent:
        return []


def _write_slide(results: Results, site: str, slide_id: str, folder: Path, longest_px: int) -> dict[str, Any]:
    """One slide's pyramid, thumbnail and full-size tiles; what `slides.js` says of it."""
    coords, attention = results.files.attention(site, results.main, slide_id)
    geometry, spec = results.files.geometry(site, slide_id), results.config.tiles
    mpp = float(geometry["mpp"])
    relative = attention.astype(float) * results.bag_tiles(site, results.main, _patient_of(results, site, slide_id))
    with open_slide(results.files.slide_path(site, slide_id), mpp) as slide:
        scale = min(1.0, longest_px / max(slide.width, slide.height))
        whole = slide.thumbnail(mpp / scale)
        levels = _write_pyramid(whole, folder)
        order = np.argsort(-relative, kind="stable")[:FULL_SIZE_TILES]
        _write_tiles(slide, coords[order], spec.size_px * spec.mpp / TILE_PX, folder)
        width, height = slide.width, slide.height
    share = results.files.tile_truth(site, slide_id, coords) if results.config.truth is not None else None
    full = {tuple(corner) for corner in coords[order].tolist()}
    return {
        "width": width,
        "height": height,
        "mpp": mpp,
        "side": spec.size_px * spec.mpp / mpp,
        "pixels": [whole.shape[1], whole.shape[0]],
        "levels": levels,
        "square": SQUARE_PX,
        "tiles": [
            [
                int(x),
                int(y),
                round(float(value), 4),
                None if share is None else round(float(share[n]), 3),
                int((x, y) in full),
            ]
            for n, ((x, y), value) in enumerate(zip(coords.tolist(), relative, strict=True))
        ],
        "positive_share": None if share is None else results.files.truth.spec.positive_share,
    }


def _patient_of(results: Results, site: str, slide_id: str) -> str:
    bags = results.bags(results.endpoint)
    bags = bags[bags["site"] == site]
    return str(bags.loc[[slide_id in str(slides).split(";") for slides in bags["slides"]], "patient_id"].iloc[0])


def _write_pyramid(whole: np.ndarray, folder: Path) -> list[int]:
    """Levels as Deep Zoom numbers them (the largest is ceil(log2(longest side))); returns the first and the last."""
    last = int(np.ceil(np.log2(max(whole.shape[:2]))))
    level, pixels = last, whole
    while True:
        place = folder / str(level)
        place.mkdir(parents=True, exist_ok=True)
        for row in range(0, pixels.shape[0], SQUARE_PX):
            for column in range(0, pixels.shape[1], SQUARE_PX):
                square = pixels[row : row + SQUARE_PX, column : column + SQUARE_PX]
                _write_jpeg(place / f"{column // SQUARE_PX}_{row // SQUARE_PX}.jpg", square)
        if max(pixels.shape[:2]) <= SMALLEST_PX:
            break
        level -= 1
        pixels = cv2.resize(pixels, _size_at(whole, last - level), interpolation=cv2.INTER_AREA)
    longest = max(whole.shape[:2])
    thumb = (max(round(whole.shape[1] * THUMB_PX / longest), 1), max(round(whole.shape[0] * THUMB_PX / longest), 1))
    _write_jpeg(folder / "thumb.jpg", cv2.resize(whole, thumb, interpolation=cv2.INTER_AREA))
    return [level, last]


def _size_at(whole: np.ndarray, halvings: int) -> tuple[int, int]:
    """(width, height) after so many halvings, rounded up as Deep Zoom does."""
    height, width = whole.shape[:2]
    return -(-width // 2**halvings), -(-height // 2**halvings)


def _write_tiles(slide: Slide, corners: np.ndarray, mpp: float, folder: Path) -> None:
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    for x, y in corners.tolist():
        _write_jpeg(folder / "tiles" / f"{x}_{y}.jpg", slide.read_tile(x, y, TILE_PX, mpp))


def _write_jpeg(path: Path, pixels: np.ndarray) -> None:
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise MilError(f"{path}: cannot be written ({reason_of(error)}){way_out(error)}") from error
