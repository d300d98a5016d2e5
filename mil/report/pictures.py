"""Drawn figures on disk -> pictures inside the page: SVG for lines, WebP for pixels, HTML for tables."""

import base64
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import cv2
import pandas as pd

from mil.errors import MilError
from mil.figures import FIGURES
from mil.report.cells import ReportTable
from mil.report.tables import table_of_figure
from mil.results.results import Results
from mil.tables import as_it_was, read_table, read_text_table

MAX_SVG_BYTES = 700_000
WEBP_QUALITY = 88
ONE_SITE_IS_ENOUGH = ("pipeline_overview",)
MOST_SITES = 6
"""Sites whose pictures stand in the page; of further ones it has links to the files."""
PX_A_MM = 4.72  # a double-column figure (183 mm) fills the page's 54 rem


@dataclass(frozen=True)
class Link:
    """A place in a part that opens the slide viewer; lengths are shares of the part in per cent."""

    address: str
    label: str
    left: float
    top: float
    wide: float
    high: float


@dataclass(frozen=True)
class ReportPart:
    """One image of a figure, a data address; figures that are drawn a site have one a site."""

    label: str
    address: str
    width_px: int
    links: tuple[Link, ...] = ()


@dataclass
class Picture:
    """One figure in the page; `table` stands for figures that are tables."""

    name: str
    title: str
    caption: str = ""
    n: str = ""
    left_out: str = ""
    parts: list[ReportPart] = field(default_factory=list)
    table: ReportTable | None = None
    number: int = 0
    files: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    """Site ('' for a figure of the cohort) and its files in the results: (format, address)."""


def picture_of(results: Results, name: str, in_viewer: Collection[str] = (), figures_at: str = "../figures") -> Picture:
    """The figure `name` as drawn; `in_viewer` are slides that the slide viewer beside the report holds.

    `figures_at` is the address of the results' folder `figures`, as seen from the report.
    """
    folder, entry = results.folder / "figures", FIGURES[name]
    picture = Picture(name, entry.title)
    reasons, counts = [], []
    sites = results.sites[:1] if name in ONE_SITE_IS_ENOUGH else results.sites
    for site in sites if entry.per_site else [""]:
        file = f"{name}.{site}" if site else name
        if not (folder / f"{file}.json").is_file():
            reasons.append(f"not drawn; run `mil plot {name}`")
            continue
        words = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
        if words["left_out"]:
            reasons.append(words["left_out"])
        elif words["is_table"]:
            picture.table = table_of_figure(read_text_table(folder / f"{file}.csv", "figure table").map(as_it_was))
        elif not set(words["formats"]) & {"svg", "png"}:
            reasons.append("drawn as PDF only; add svg or png to figures.formats to see it here")
        elif len(picture.parts) < MOST_SITES:
            links = tuple(_links(folder / f"{file}.csv", in_viewer)) if entry.per_site else ()
            picture.parts.append(ReportPart(site, _address(folder, file), round(words["width_mm"] * PX_A_MM), links))
        if not words["left_out"]:
            picture.title = words["title"]
            picture.caption = picture.caption or words["caption"]
            counts.append((site, words["n"]))
            suffixes = [suffix for suffix in (*words["formats"], "csv") if (folder / f"{file}.{suffix}").is_file()]
            picture.files.append(
                (site, [(suffix.upper(), f"{figures_at}/{quote(f'{file}.{suffix}')}") for suffix in suffixes])
            )
    shown = {part.label for part in picture.parts}
    picture.n = "; ".join(count for site, count in counts if site in shown or not shown)
    if shown and len(counts) > len(shown):
        picture.caption += f" Shown are {len(shown)} of {len(counts)} sites; the files of all sites are linked below."
    if not picture.parts and picture.table is None:
        picture.left_out = "; ".join(dict.fromkeys(reasons)) or "no site to draw it for"
    return picture


def _links(path: Path, in_viewer: Collection[str]) -> list[Link]:
    """Links to the viewer for tiles whose place in the picture stands in the figure's values."""
    table = read_table(path)
    if "left" not in table.columns:
        return []
    table = table[table["slide_id"].isin(in_viewer)]
    return [
        Link(
            f"viewer/index.html#slide={quote(str(row.slide_id))}&x={int(row.x)}&y={int(row.y)}",
            f"Tile of {row.patient_id} in the slide viewer",
            *(round(100 * float(share), 2) for share in (row.left, row.top, row.wide, row.high)),
        )
        for row in pd.DataFrame(table).itertuples()
    ]


def _address(folder: Path, name: str) -> str:
    """A data address: the SVG where it is small (lines), else the PNG as WebP."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    if svg.is_file() and (
        not png.is_file() or (svg.stat().st_size <= MAX_SVG_BYTES and b"<image" not in svg.read_bytes())
    ):
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
    pixels = cv2.imread(str(png), cv2.IMREAD_COLOR)
    if pixels is None:
        raise MilError(f"{png} cannot be read as a PNG; delete it and run `mil plot {name.split('.')[0]}` again")
    _, encoded = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    return f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}"
