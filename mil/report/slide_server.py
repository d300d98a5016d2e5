"""Results -> the slide viewer's pages with every slide at its full resolution, read from the slides when asked for.

The same files as `write_viewer` leaves, made from requests: `slides.js`, and under `slides/{slide}/` `slide.js`, `thumb.jpg`,
`{level}/{column}_{row}.jpg` and `tiles/{x}_{y}.jpg`. The last level is level 0 of the slide. A slide is looked up by its id
among the run's, so no path of a request reaches the disk. Nothing is written.
"""

import mimetypes
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np

from mil.errors import Absent, MilError
from mil.files import file_name
from mil.local_page import Answer, Refused
from mil.report.slide_viewer import PAGE_FILES, TILE_PX, jpeg, shrunk, thumbnail
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
from mil.results.results import Results
from mil.slides.fingerprint import require_same
from mil.slides.slide import Reading, Slide, open_slide

MOST_OPEN = 4  # slides
COARSE_PX = 1024
SOURCE_PX = 2048  # source pixels a side that are read at once
KEPT_S = 3600  # by the browser; the address of another start differs by its token
QUALITY = 90
HOW = Reading(level="nearest", drop_unreadable=True)
UNREADABLE_GREY = 128
SCRIPT, JPEG = "text/javascript; charset=utf-8", "image/jpeg"
WHOLE_NUMBERS = re.compile(r"(0|[1-9][0-9]{0,7})_(0|[1-9][0-9]{0,7})\.jpg", re.ASCII)


@dataclass
class OpenedSlide:
    """A slide that stays open until its stack is closed."""

    stack: ExitStack
    slide: Slide
    coarse: np.ndarray | None = None


class SlidePages:
    """Answers a request for a part of the viewer; see `mil.local_page.Pages`. One slide is read at a time."""

    def __init__(self, results: Results) -> None:
        self._results = results
        try:
            slides = results.census()
        except Absent:  # the run has not come so far
            slides = results.slides()
        slides = slides[(slides["state"] == "ok") & ~slides["site"].isin(list(results.config.slides.features))]
        if slides.empty:
            raise MilError(f"{results.folder}: no slide of this run can be used, so there is nothing to view")
        listed = [(str(row.site), str(row.slide_id), str(row.patient_id)) for row in slides.itertuples()]
        self._slides: dict[str, ListedSlide] = {file_name(slide): (site, slide, who) for site, slide, who in listed}
        self._models = models_of(results, listed)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenedSlide] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slides)

    def __call__(self, parts: tuple[str, ...]) -> Answer:
        """The answer to the decoded parts of a path; `Refused` for what is not there."""
        try:
            return self._answer(parts)
        except MilError as error:  # the slide, its tiles or its attention are not there (any more)
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from error

    def close(self) -> None:
        """Close every slide."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].stack.close()

    def _answer(self, parts: tuple[str, ...]) -> Answer:
        match parts:
            case ("slides.js",):
                listed, title = list(self._slides.values()), self._results.config.report.title
                return _script(index_script(self._results, listed, self._models, title, served=True))
            case (name,) if name in PAGE_FILES:
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                return Answer(PAGE_FILES[name].read_bytes(), SCRIPT if name.endswith(".js") else kind)
            case ("slides", name, *rest) if name in self._slides:
                return self._of_slide(name, rest)
        raise Refused(HTTPStatus.NOT_FOUND, "This page has no such part.")

    def _of_slide(self, name: str, parts: list[str]) -> Answer:
        site, slide_id, _ = self._slides[name]
        match parts:
            case ["slide.js"]:
                return _script(slide_script(self._known(name)))
            case ["thumb.jpg"]:
                return _picture(thumbnail(self._results.files.thumbnail(site, slide_id)))
            case ["tiles", file]:
                x, y = _numbers(file)
                with self._reading(name) as slide:
                    if x >= slide.width or y >= slide.height:
                        raise Refused(HTTPStatus.NOT_FOUND, f"Slide {slide_id} ends before {x}, {y}.")
                    spec = self._results.config.tiles
                    return _picture(slide.read_tile(x, y, TILE_PX, spec.size_px * spec.mpp / TILE_PX))
            case [level, file] if re.fullmatch(r"[0-9]{1,2}", level, re.ASCII):
                return _picture(self._square(name, int(level), *_numbers(file)))
        raise Refused(
            HTTPStatus.BAD_REQUEST, "A slide has slide.js, thumb.jpg, LEVEL/COLUMN_ROW.jpg and tiles/X_Y.jpg."
        )

    def _known(self, name: str) -> dict[str, Any]:
        """What `slide.js` says; `absent` with the reason where the slide cannot be shown."""
        try:
            known = tiles_of(self._results, self._slides[name], self._models)
            with self._reading(name) as slide:
                width, height = slide.width, slide.height
        except MilError as error:
            return {"id": self._slides[name][1], "absent": str(error)}
        size = {"width": width, "height": height, "pixels": [width, height], "levels": levels_of(width, height)}
        return known | size | {"full": None}

    @contextmanager
    def _reading(self, name: str) -> Iterator[Slide]:
        """The slide, which nobody else reads meanwhile; `MOST_OPEN` stay open."""
        with self._lock:
            if name not in self._open:
                files, (site, slide_id, _) = self._results.files, self._slides[name]
                geometry, path = files.geometry(site, slide_id), files.slide_path(site, slide_id)
                require_same(path, str(geometry.get("fingerprint", "")))
                stack = ExitStack()
                self._open[name] = OpenedSlide(stack, stack.enter_context(open_slide(path, float(geometry["mpp"]))))
            self._open.move_to_end(name)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].stack.close()
            yield self._open[name].slide

    def _square(self, name: str, level: int, column: int, row: int) -> np.ndarray:
        """A square of a level; of a slide without coarse levels from a picture of the whole, so that it is not read again for each."""
        with self._reading(name) as slide:
            first, last = levels_of(slide.width, slide.height)
            width, height = size_at(slide.width, slide.height, max(last - level, 0))
            left, top = column * SQUARE_PX, row * SQUARE_PX
            if not (first <= level <= last and left < width and top < height):
                raise Refused(HTTPStatus.NOT_FOUND, f"Level {level} has no square {column}_{row}.")
            size = min(SQUARE_PX, width - left), min(SQUARE_PX, height - top)
            if slide.levels[-1].downsample * 2 <= 2 ** (last - level) and max(width, height) <= COARSE_PX:
                return shrunk(self._coarse(name, slide), (width, height))[top : top + size[1], left : left + size[0]]
            return read_square(slide, last - level, (left, top), size)

    def _coarse(self, name: str, slide: Slide) -> np.ndarray:
        """The whole of an open slide without such a level, with a longer side of `COARSE_PX` or less; made once."""
        opened = self._open[name]
        if opened.coarse is None:
            assert slide.mpp is not None
            smaller = max(max(slide.width, slide.height) / COARSE_PX, 1.0)
            opened.coarse = slide.thumbnail(slide.mpp * smaller, threads=1, drop_unreadable=True)
        return opened.coarse


def read_square(slide: Slide, halvings: int, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """`size` pixels (width, height) of the slide at 1/2**halvings of level 0, from pixel `corner` of that size; unreadable parts are grey."""
    scale = 2**halvings
    assert slide.mpp is not None
    mpp = slide.mpp * scale
    source = scale / slide.levels[slide.level_for(mpp)].downsample
    block = max(min(SQUARE_PX, int(SOURCE_PX / source)), 1)
    corners = np.array([(x, y) for y in range(0, size[1], block) for x in range(0, size[0], block)])
    square = np.full((size[1], size[0], 3), UNREADABLE_GREY, np.uint8)
    for indices, pixels in slide.read_tiles((corners + corner) * scale, block, mpp, threads=1, how=HOW, batch=1):
        for (x, y), part in zip(corners[indices].tolist(), pixels, strict=True):
            square[y : y + block, x : x + block] = part[: size[1] - y, : size[0] - x]
    return square


def _numbers(path: str) -> tuple[int, int]:
    match = WHOLE_NUMBERS.fullmatch(path)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "Two whole numbers are needed, as in 3_4.jpg.")
    return int(match[1]), int(match[2])


def _script(text: str) -> Answer:
    return Answer(text.encode(), SCRIPT)


def _picture(pixels: np.ndarray) -> Answer:
    return Answer(jpeg(pixels, QUALITY), JPEG, kept_s=KEPT_S)
