"""Drawn figures on disk -> pictures inside the page: SVG for lines, WebP for pixels, HTML for tables."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import cv2

from mil.errors import MilError
from mil.figures import FIGURES
from mil.figures.results import Results
from mil.report.tables import Table, table_of_figure
from mil.tables import read_text_table

MAX_SVG_BYTES = 700_000
WEBP_QUALITY = 88
PX_A_MM = 4.72  # a double-column figure (183 mm) fills the page's 54 rem


@dataclass
class Picture:
    """One figure in the page; `address` is a data address, `table` stands for figures that are tables."""

    name: str
    title: str
    caption: str
    n: str
    left_out: str = ""
    address: str = ""
    width_px: int = 0
    table: Table | None = None
    number: int = 0


def pictures_of(results: Results, name: str) -> list[Picture]:
    """The figure `name` as drawn, one picture a site where it is drawn a site."""
    if not FIGURES[name].per_site:
        return [_picture(results.folder / "figures", name, FIGURES[name].title)]
    return [
        _picture(results.folder / "figures", f"{name}.{site}", f"{FIGURES[name].title}: {site}")
        for site in results.sites
    ]


def _picture(folder: Path, name: str, title: str) -> Picture:
    path = folder / f"{name}.json"
    if not path.is_file():
        return Picture(name, title, "", "", left_out=f"not drawn; run `mil plot {name.split('.')[0]}`")
    words = json.loads(path.read_text(encoding="utf-8"))
    picture = Picture(name, title, words["caption"], words["n"], words["left_out"])
    if picture.left_out:
        return picture
    if words["is_table"]:
        picture.table = table_of_figure(read_text_table(folder / f"{name}.csv", "figure table"))
    elif set(words["formats"]) & {"svg", "png"}:
        picture.address = _address(folder, name)
        picture.width_px = round(words["width_mm"] * PX_A_MM)
    else:
        picture.left_out = "drawn as PDF only; add svg or png to figures.formats to see it here"
    return picture


def _address(folder: Path, name: str) -> str:
    """A data address: the SVG where it is small (lines), else the PNG as WebP."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    if svg.is_file() and (svg.stat().st_size <= MAX_SVG_BYTES or not png.is_file()):
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
    pixels = cv2.imread(str(png), cv2.IMREAD_COLOR)
    if pixels is None:
        raise MilError(f"{png} cannot be read as a PNG; delete it and run `mil plot {name.split('.')[0]}` again")
    _, encoded = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    return f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}"
