"""A shard's slides -> a tiles file and a thumbnail each, and the shard's manifest. A slide that fails is a row with a reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil import hdf5
from mil.config import TileSpec
from mil.errors import SlideError
from mil.files import check_id, digest_of, file_name, sha256_of, why_no_file, write_text
from mil.progress import Reporter
from mil.provenance import up_to_date
from mil.schemas import MANIFEST
from mil.slides.fingerprint import fingerprint, require_same, size_of
from mil.slides.isolation import isolated
from mil.slides.slide import Slide, open_slide
from mil.tables import table_of
from mil.tiles.grid import tile_slide
from mil.tiles.quality import FLAGS, flagged
from mil.tiles.thumbnail import draw_thumbnail, write_jpeg
from mil.tiles.tiles import Tiles
from mil.tissue.masks import read_mask, to_geojson
from mil.version import __version__

STAGE_VERSION = 5  # raised when the same spec and slide would now give other tiles
SECONDS_A_SLIDE = 300.0  # a slide that takes longer, and longer than its bytes need, hangs its decoder
BYTES_A_SECOND = 2e6  # of compressed pixels; JPEG 2000 on one busy core is decoded at about this
MAX_MASK_PX = 8192  # a brought mask is used at the thumbnail's resolution, at most this many pixels a side
TILES = (*MANIFEST, "tissue_share", *FLAGS, "dropped")
NOTHING = {"num_tiles": 0, "checksum": "", "tissue_share": None, **dict.fromkeys(FLAGS), "dropped": 0}


def tile_shard(
    slides: pd.DataFrame, spec: TileSpec, folder: Path, thumbnails: Path, reporter: Reporter, threads: int | None = None
) -> pd.DataFrame:
    """Tile the slides of a shard (rows of `slides.csv`) into `folder/{slide}.h5`; the manifest of `TILES`.

    A slide whose file has the same recipe and an intact checksum is left as it is. Slides are opened in a process of their own, so
    that one that kills its decoder is a row like any other. Beside the thumbnail stands the tissue's outline as GeoJSON.
    """
    rows = []
    with reporter.steps("tile", len(slides), "slides") as steps:
        for slide in slides.to_dict("records"):
            row = _row(slide, spec, Path(folder), Path(thumbnails), threads)
            steps.done(tiles=row["num_tiles"])
            if row["state"] != "ok":
                reporter.note(f"slide {row['slide_id']}: {row['state']}: {row['reason']}")
            rows.append(row)
    return table_of(rows, TILES)


def recipe(spec: TileSpec, fingerprint: str, mpp: float | None, mask: str = "") -> str:
    """What a tiles file is made from, as one hash: spec, version of this stage, the slide's bytes, the sheet's mpp, the mask's bytes."""
    made_from = {
        "stage": "tiles",
        "version": STAGE_VERSION,
        "spec": spec.to_json(),
        "slide": fingerprint,
        "mpp": mpp,
        "mask": mask,
    }
    return digest_of(made_from)


def override_of(row: Mapping[str, Any]) -> float | None:
    """The mpp to open a row of `slides.csv` with: the sheet's where it was the sheet's, else the header's own (None)."""
    return float(row["mpp"]) if row.get("mpp_source") == "sheet" else None


def _row(
    slide: Mapping[str, Any], spec: TileSpec, folder: Path, thumbnails: Path, threads: int | None
) -> dict[str, Any]:
    """The manifest's row of one slide, its files written if they were not there."""
    slide_id = check_id("slide_id", str(slide["slide_id"]), "tile")
    row = {"slide_id": slide_id, "state": slide.get("state", "ok"), "reason": slide.get("reason", "")}
    if row["state"] != "ok":
        return row | NOTHING
    name = file_name(slide_id)
    target, picture = folder / f"{name}.h5", thumbnails / f"{name}.jpg"
    try:
        mask = mask_of(slide_id, spec)
        wanted = recipe(spec, str(slide["fingerprint"]), override_of(slide), sha256_of(mask) if mask else "")
        checksum = up_to_date(target, wanted) if picture.is_file() else None
        if checksum is None:
            target.unlink(missing_ok=True)
            arguments = (dict(slide), spec, mask, wanted, target, picture, threads)
            timeout_s = SECONDS_A_SLIDE + size_of(Path(slide["path"])) / BYTES_A_SECOND
            isolated(make_tiles, *arguments, name=Path(slide["path"]).name, timeout_s=timeout_s)
            checksum = hdf5.verify(target)
    except SlideError as error:
        return row | {"state": error.state, "reason": str(error)} | NOTHING
    about = hdf5.attributes(target)
    counts = {"num_tiles": int(about["num_tiles"]), "checksum": checksum, "tissue_share": about["tissue_share"]}
    counts |= {flag: about["flagged"].get(flag) for flag in FLAGS} | {"dropped": sum(about["dropped"].values())}
    if not counts["num_tiles"]:
        return row | {"state": "no_tissue", "reason": _why_none(spec, about)} | counts
    return row | {"reason": ""} | counts


def make_tiles(
    row: Mapping[str, Any],
    spec: TileSpec,
    mask: Path | None,
    recipe: str,
    target: Path,
    picture: Path,
    threads: int | None,
) -> None:
    """Tile one slide and write its files."""
    path = Path(row["path"])
    recorded = row.get("bytes")
    if recorded and np.isfinite(float(recorded)) and size_of(path) != int(float(recorded)):
        raise SlideError(
            "changed", f"{path.name}: is not the file that was checked (its size changed); run `mil check` again"
        )
    known = row.get("fingerprint")
    require_same(path, known if isinstance(known, str) else "")
    with open_slide(path, override_of(row)) as slide:
        brought = None if mask is None else read_mask(mask, _mask_size(slide, spec), (slide.width, slide.height))
        tiles = tile_slide(slide, spec, brought, threads)
        write_jpeg(picture, draw_thumbnail(slide, tiles, spec.quality))
        write_text(picture.with_suffix(".geojson"), to_geojson(tiles.mask, (slide.width, slide.height)))
        _write(
            target, str(row["slide_id"]), slide, tiles, spec, recipe, str(row.get("fingerprint") or fingerprint(path))
        )


def mask_of(slide_id: str, spec: TileSpec) -> Path | None:
    """The mask that somebody brought for this slide; None where the method is to find the tissue."""
    if spec.tissue.masks is None:
        return None
    path = Path(spec.tissue.masks.replace("{slide_id}", slide_id))
    why = why_no_file(path)
    if why and path.exists():
        raise SlideError("no_mask", f"mask {path} {why}; put the mask there, or remove it")
    if why and spec.tissue.method == "mask":
        raise SlideError(
            "no_mask", f"mask {path} {why} and the tissue method is 'mask'; draw it, or name another method"
        )
    return None if why else path


def _mask_size(slide: Slide, spec: TileSpec) -> tuple[int, int]:
    per_x, per_y = slide.level0_px(spec.tissue.mpp)
    width, height = (min(max(round(size), 1), MAX_MASK_PX) for size in (slide.width / per_x, slide.height / per_y))
    return width, height


def _write(
    target: Path, slide_id: str, slide: Slide, tiles: Tiles, spec: TileSpec, recipe: str, fingerprint: str
) -> None:
    with hdf5.writing(target) as file:
        file.append("coords", tiles.coords)
        file.append("tissue", tiles.tissue)
        for flag, scores in tiles.scores.items():
            file.append(flag, scores.astype(np.float32))
        about = {
            "stage": "tiles",
            "slide_id": slide_id,
            "spec": spec.model_dump(mode="json"),
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "fingerprint": fingerprint,
            "width": slide.width,
            "height": slide.height,
            "num_tiles": len(tiles.coords),
            "tissue_share": tiles.tissue_share,
            "missing_share": tiles.missing_share,
            "flagged": {flag: int(raised.sum()) for flag, raised in flagged(tiles, spec.quality).items()},
            "dropped": tiles.dropped,
            "mil_version": __version__,
            "recipe": recipe,
        }
        file.annotate(about)
        file.annotate(trident_attributes(slide_id, slide, spec), on="coords")


def trident_attributes(slide_id: str, slide: Slide, spec: TileSpec) -> dict[str, Any]:
    """The attributes that TRIDENT (mahmoodlab/TRIDENT) puts on `coords`; magnification is 10 / mpp, rounded."""
    per_x, per_y = slide.level0_px(spec.mpp)
    magnification = 10 * (per_x + per_y) / 2 / spec.mpp
    return {
        "patch_size": spec.size_px,
        "patch_size_level0": round(spec.size_px * (per_x + per_y) / 2),
        "level0_magnification": max(round(magnification), 1),
        "target_magnification": max(round(10 / spec.mpp), 1),
        "overlap": spec.size_px - (spec.stride_px or spec.size_px),
        "name": slide_id,
        "level0_width": slide.width,
        "level0_height": slide.height,
    }


def _why_none(spec: TileSpec, about: Mapping[str, Any]) -> str:
    width, height = (about[side] * about["mpp"] for side in ("width", "height"))
    if spec.edge == "drop" and min(width, height) + about["mpp"] / 2 < spec.size_px * spec.mpp:
        side = f"{spec.size_px * spec.mpp:g}"
        return f"the slide has {width:.4g} x {height:.4g} microns, less than a tile of {side} x {side}"
    left_out = ", ".join(f"{count} {flag}" for flag, count in about["dropped"].items() if count)
    if left_out:
        return f"all its tiles were left out: {left_out}; see its thumbnail"
    least = f"{spec.min_tissue:.0%} tissue" if spec.min_tissue else "any tissue"
    return f"no tile of the slide holds {least}; see its thumbnail"
