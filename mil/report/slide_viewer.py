"""Results -> a static folder with a slide viewer: deep zoom, attention over it, tiles to inspect; opens without a server.

`viewer/index.html` with its scripts and style, OpenSeadragon (BSD-3-Clause, its licence beside it), `slides.js` (the list of
slides) and a folder a slide under `slides/`: `slide.js` (its tiles), `thumb.jpg`, `{level}/{column}_{row}.jpg`, and
`tiles/{x}_{y}.jpg`, the tiles with the highest attention at full size.
"""

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from mil.config import ReportSpec
from mil.errors import MilError, SlideError
from mil.figures.heatmaps import choose
from mil.files import file_name, reason_of, way_out, write_text
from mil.progress import Reporter, quiet
from mil.report.viewer_data import (
    SQUARE_PX,
    ListedSlide,
    index_script,
    levels_of,
    models_of,
    size_at,
    slide_script,
    tiles_of,
)
from mil.results.results import Absent, Results
from mil.slides.slide import Slide, open_slide

HERE = Path(__file__).parent / "viewer"
FONTS = Path(__file__).parents[1] / "figures" / "fonts"
SCRIPTS = ("openseadragon.min.js", "overlay.js", "annotations.js", "viewer.js")
PAGE_FILES = {
    **{name: HERE / name for name in ("index.html", "viewer.css", "openseadragon.LICENSE.txt", *SCRIPTS)},
    **{name: FONTS / name for name in ("inter-regular.ttf", "inter-semibold.ttf")},
}
"""Files that the viewer is made of, by their name in it."""
THUMB_PX = 160
JPEG_QUALITY = 82
FULL_SIZE_TILES = 24
TILE_PX = 256


def write_viewer(
    results: Results, folder: str | Path, spec: ReportSpec | None = None, reporter: Reporter | None = None
) -> list[str]:
    """Write the viewer into `folder`, which is made anew; returns the slides that it holds.

    Slides are chosen as for the heat maps. Where a site's slides are not on this machine it has none; without any slide
    no folder is left.
    """
    spec, folder, reporter = spec or results.config.report, Path(folder), reporter or quiet()
    shutil.rmtree(folder, ignore_errors=True)
    chosen = [(site, *pair) for site in results.sites for pair in _choice(results, site, spec.viewer_slides)]
    models = models_of(results, chosen)
    written, left_out = [], Counter[str]()
    with reporter.steps("slide viewer", len(chosen), "slides") as steps:
        for listed in chosen:
            try:
                _write_slide(results, listed, models, folder / "slides" / file_name(listed[1]), spec.viewer_px)
                written.append(listed)
            except (Absent, SlideError) as error:
                left_out[str(error)] += 1
            steps.done()
    for reason, count in left_out.items():
        reporter.note(f"slide viewer: {count} slide{'s are' if count > 1 else ' is'} left out: {reason}")
    if not written:
        return []
    write_text(folder / "slides.js", index_script(results, written, models, spec.title, served=False))
    for name, path in PAGE_FILES.items():
        shutil.copyfile(path, folder / name)
    return [slide for _, slide, _ in written]


def _choice(results: Results, site: str, count: int) -> list[tuple[str, str]]:
    """Slide and patient of a site's slides in the viewer."""
    try:
        return [slide[:2] for slide in choose(results, site, count)] if count and results.kind.two_classes else []
    except Absent:
        return []


def _write_slide(results: Results, listed: ListedSlide, models: list[str], folder: Path, longest_px: int) -> None:
    """One slide's pyramid, thumbnail, full-size tiles and `slide.js`."""
    known = tiles_of(results, listed, models)
    corners = np.array(known["corners"])
    with open_slide(results.files.slide_path(*listed[:2]), known["mpp"]) as slide:
        scale = min(1.0, longest_px / max(slide.width, slide.height))
        whole = slide.thumbnail(known["mpp"] / scale)
        levels = _write_pyramid(whole, folder)
        order = np.argsort(-np.array(known["attention"][0]), kind="stable")[:FULL_SIZE_TILES]
        _write_tiles(slide, corners[order], known["side"] * known["mpp"] / TILE_PX, folder)
        known |= {"width": slide.width, "height": slide.height, "full": sorted(order.tolist())}
    known |= {"pixels": [whole.shape[1], whole.shape[0]], "levels": levels}
    write_text(folder / "slide.js", slide_script(known))


def _write_pyramid(whole: np.ndarray, folder: Path) -> list[int]:
    """Write the levels and the thumbnail; returns the first level and the last."""
    height, width = whole.shape[:2]
    first, last = levels_of(width, height)
    for level in range(first, last + 1):
        subfolder = folder / str(level)
        subfolder.mkdir(parents=True, exist_ok=True)
        pixels = shrunk(whole, size_at(width, height, last - level))
        for row in range(0, pixels.shape[0], SQUARE_PX):
            for column in range(0, pixels.shape[1], SQUARE_PX):
                square = pixels[row : row + SQUARE_PX, column : column + SQUARE_PX]
                _write(subfolder / f"{column // SQUARE_PX}_{row // SQUARE_PX}.jpg", square)
    _write(folder / "thumb.jpg", thumbnail(whole))
    return [first, last]


def thumbnail(whole: np.ndarray) -> np.ndarray:
    """A slide's picture with a longer side of `THUMB_PX`."""
    height, width = whole.shape[:2]
    longest = max(width, height)
    return shrunk(whole, (max(round(width * THUMB_PX / longest), 1), max(round(height * THUMB_PX / longest), 1)))


def shrunk(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`pixels` at `size` (width, height), by area."""
    return pixels if pixels.shape[1::-1] == size else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def jpeg(pixels: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """RGB pixels as JPEG."""
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def _write_tiles(slide: Slide, corners: np.ndarray, mpp: float, folder: Path) -> None:
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    for x, y in corners.tolist():
        _write(folder / "tiles" / f"{x}_{y}.jpg", slide.read_tile(x, y, TILE_PX, mpp))


def _write(path: Path, pixels: np.ndarray) -> None:
    try:
        path.write_bytes(jpeg(pixels))
    except OSError as error:
        raise MilError(f"{path}: cannot be written ({reason_of(error)}){way_out(error)}") from error
