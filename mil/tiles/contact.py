"""A site's thumbnails -> one page on which a person checks them all, with the slides that stand out marked."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from mil import hdf5
from mil.errors import CorruptFile, MilError
from mil.files import file_name, replacing
from mil.tables import read_table
from mil.tiles.quality import FLAGS
from mil.tiles.thumbnail import read_jpeg

CELL_PX, CAPTION_PX, GAP_PX, HEADING_PX = 300, 54, 8, 44
INK, FAINT, ALARM, UNUSUAL = (40, 40, 40), (225, 225, 225), (200, 30, 30), (225, 140, 0)
FEWEST = 5  # slides of a site from which outliers are sought
ROBUST_Z = 3.5  # Iglewicz & Hoaglin 1993, How to detect and handle outliers


def tissue_outliers(shares: pd.Series) -> pd.Series:
    """Which slides' share of tissue is an outlier of their site: modified z-score of its logarithm above 3.5; bool, same index."""
    known = shares.astype(float)
    if known.notna().sum() < FEWEST:
        return pd.Series(False, index=shares.index)
    logs = np.log(known.clip(lower=1e-6))
    middle = logs.median()
    spread = (logs - middle).abs().median()
    if not spread > 0:
        return pd.Series(False, index=shares.index)
    return (0.6745 * (logs - middle).abs() / spread > ROBUST_Z).fillna(False)


def contact_sheet(slides: pd.DataFrame, tiles_folder: Path, thumbnails: Path) -> tuple[np.ndarray, list[str]]:
    """One page, uint8 RGB (h, w, 3), of every slide of a site: thumbnail with outline and grid, number of tiles, flags; outliers in words.

    `slides` are rows with slide_id, state and reason (`slides.csv`, a manifest or a census). Slides that cannot be used have their state in
    place of a picture; those whose share of tissue is an outlier of the site are framed in orange.
    """
    rows = [_described(row, Path(tiles_folder)) for row in slides.to_dict("records")]
    unusual = tissue_outliers(pd.Series([row["tissue_share"] for row in rows], dtype=float))
    columns = max(1, int(np.ceil(np.sqrt(len(rows) * 1.4))))
    lines = -(-len(rows) // columns)
    cell_w, cell_h = CELL_PX + GAP_PX, CELL_PX + CAPTION_PX + GAP_PX
    page = np.full((HEADING_PX + max(lines, 1) * cell_h + GAP_PX, columns * cell_w + GAP_PX, 3), 255, np.uint8)
    used = sum(row["num_tiles"] > 0 for row in rows)
    heading = f"{len(rows)} slides, {used} with tiles"
    if unusual.any():
        heading += f", {int(unusual.sum())} with unusual tissue (orange)"
    _write(page, heading, (GAP_PX, 28), INK, 0.6)
    for index, (row, odd) in enumerate(zip(rows, unusual, strict=True)):
        left, top = GAP_PX + index % columns * cell_w, HEADING_PX + index // columns * cell_h
        cell = page[top : top + CELL_PX + CAPTION_PX, left : left + CELL_PX]
        _draw_cell(cell, row, bool(odd), Path(thumbnails) / f"{file_name(row['slide_id'])}.jpg")
    return page, [
        f"slide {row['slide_id']}: {row['tissue_share']:.1%} tissue, an outlier of its site"
        for row, odd in zip(rows, unusual, strict=True)
        if odd
    ]


def write_contact_sheet(slides: pd.DataFrame, tiles_folder: Path, thumbnails: Path, out: Path) -> list[str]:
    """Write the sheet of one site's slide table as JPEG, states as the manifests in `tiles_folder` have them; outliers in words."""
    manifests = [
        read_table(path) for path in sorted(tiles_folder.glob("shard*.csv"), key=lambda path: path.stat().st_mtime_ns)
    ]
    if not manifests:
        raise MilError(
            f"{tiles_folder}: holds no manifest (shard*.csv); run `mil tile` with --out {tiles_folder}/shard0.csv"
        )
    tiled = pd.concat(manifests).drop_duplicates("slide_id", keep="last").set_index("slide_id")[["state", "reason"]]
    states = slides.set_index("slide_id", drop=False)
    states.loc[states.index.intersection(tiled.index), ["state", "reason"]] = tiled
    page, outliers = contact_sheet(states, tiles_folder, thumbnails)
    encoded, data = cv2.imencode(".jpg", page[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not encoded:
        raise MilError(
            f"{out}: a page of {page.shape[1]} x {page.shape[0]} pixels cannot be a JPEG; cut the site in two"
        )
    with replacing(out) as partial:
        partial.write_bytes(data.tobytes())
    return outliers


def _described(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the sheet says of one slide: state, reason, number of tiles, flags, share of tissue."""
    described = {
        "slide_id": str(row["slide_id"]),
        "state": str(row.get("state", "ok")),
        "reason": str(row.get("reason", "")),
    }
    described |= {"num_tiles": 0, "flags": "", "tissue_share": np.nan}
    try:
        about = hdf5.attributes(folder / f"{file_name(str(row['slide_id']))}.h5")
    except CorruptFile:
        return described
    flags = ", ".join(f"{about['flagged'][flag]} {flag}" for flag in FLAGS if about.get("flagged", {}).get(flag))
    return described | {
        "num_tiles": int(about["num_tiles"]),
        "flags": flags,
        "tissue_share": about.get("tissue_share", np.nan),
    }


def _draw_cell(cell: np.ndarray, row: Mapping[str, Any], odd: bool, picture: Path) -> None:
    try:
        thumbnail = read_jpeg(picture)
    except MilError:  # there is none, or it is damaged
        cell[:CELL_PX] = FAINT
    else:
        scale = min(CELL_PX / max(thumbnail.shape[:2]), 4.0)
        size = max(round(thumbnail.shape[1] * scale), 1), max(round(thumbnail.shape[0] * scale), 1)
        small = cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = (CELL_PX - size[1]) // 2, (CELL_PX - size[0]) // 2
        cell[top : top + size[1], left : left + size[0]] = small
    if row["state"] != "ok":
        for number, line in enumerate(textwrap.wrap(f"{row['state']}: {row['reason']}", 44)[:6]):
            _write(cell, line, (6, 24 + 18 * number), ALARM, 0.38)
    frame = UNUSUAL if odd else FAINT if row["state"] == "ok" else ALARM
    cv2.rectangle(cell, (0, 0), (CELL_PX - 1, CELL_PX - 1), frame, 3 if odd else 1)
    _write(cell, row["slide_id"][:40], (2, CELL_PX + 16), INK, 0.45)
    share = f", {row['tissue_share']:.0%} tissue" if row["tissue_share"] == row["tissue_share"] else ""
    _write(cell, f"{row['num_tiles']} tiles{share}", (2, CELL_PX + 33), INK, 0.42)
    _write(cell, row["flags"][:48], (2, CELL_PX + 49), ALARM, 0.38)


def _write(page: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int], size: float) -> None:
    cv2.putText(
        page, text.encode("ascii", "replace").decode(), at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA
    )
