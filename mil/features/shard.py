"""A shard of one site's slides -> a features file each, and the manifest that says how every slide fared."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import mil
from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders import build
from mil.errors import CorruptFile, SlideError
from mil.features.engine import Engine
from mil.files import check_name
from mil.progress import Reporter

MANIFEST = ("slide_id", "state", "reason", "num_tiles", "checksum")


@dataclass(frozen=True)
class Tiling:
    """What a tiles file says: where the tiles of a slide are and how they are cut."""

    coords: np.ndarray
    size_px: int
    tile_mpp: float
    attributes: Mapping[str, Any]
    coords_attributes: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Tiling":
        """The tiling in a file of `mil tile`."""
        (coords,) = hdf5.read(path, "coords")
        attributes = hdf5.attributes(path)
        spec = attributes["spec"]
        return cls(coords, spec["size_px"], spec["mpp"], attributes, hdf5.attributes(path, on="coords"))


def extract_shard(
    slides: pd.DataFrame,
    tiles_folder: str | Path,
    encoder: EncoderSpec,
    folder: str | Path,
    reporter: Reporter,
) -> pd.DataFrame:
    """Write `folder/{slide_id}.h5` for every usable slide and return the shard's manifest, one row a slide.

    A slide whose file is up to date (same recipe, checksum holds) is left alone. One that fails is a row with a state
    and a reason and leaves no file. `slides`: rows of the slides table (slide_id, path, state, reason).
    """
    tiles_folder, folder = Path(tiles_folder), Path(folder)
    built = build(encoder)
    engine = Engine(built, encoder)
    reporter.say(f"encoder {built.name} on {describe(engine.device)}, {engine.precision}")
    rows = []
    with reporter.steps(f"extract {built.name}", len(slides), "slides") as steps:
        for slide in slides.to_dict("records"):
            row = _extract_or_explain(slide, tiles_folder, encoder, engine, folder, reporter)
            rows.append(row)
            steps.done(tiles=row["num_tiles"])
    return pd.DataFrame(rows, columns=list(MANIFEST))


def describe(device: torch.device) -> str:
    """The device in words for the log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads; no CUDA device here)"


def recipe_of(tiling: Tiling, spec: EncoderSpec, weights_sha256: str) -> str:
    """A hash of everything that decides the features: slide, where the tiles are and how they are cut, encoder, weights."""
    ingredients = {
        "stage": "features",
        "encoder": spec.model_dump(mode="json", exclude={"weights", "batch_size"}),
        "weights": weights_sha256,
        "fingerprint": tiling.attributes["fingerprint"],
        "slide_mpp": tiling.attributes["mpp"],
        "size_px": tiling.size_px,
        "tile_mpp": tiling.tile_mpp,
        "coords": hashlib.sha256(np.ascontiguousarray(tiling.coords, "<i8").tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def up_to_date(path: Path, recipe: str) -> str | None:
    """The checksum of the file at `path` if it is whole and made by `recipe`, else None."""
    if not path.is_file():
        return None
    try:
        return hdf5.verify(path) if hdf5.attributes(path).get("recipe") == recipe else None
    except CorruptFile:
        return None


def _extract_or_explain(
    slide: Mapping[str, Any], tiles_folder: Path, spec: EncoderSpec, engine: Engine, folder: Path, reporter: Reporter
) -> dict[str, Any]:
    """The manifest's row of one slide, its file written if it was not there."""
    slide_id = check_name("slide_id", str(slide["slide_id"]), "slides")
    row = {"slide_id": slide_id, "state": slide.get("state", "ok"), "reason": slide.get("reason", "")}
    nothing = {"num_tiles": 0, "checksum": ""}
    if row["state"] != "ok":
        return row | nothing
    path = folder / f"{slide_id}.h5"
    try:
        tiling = Tiling.read(tiles_folder / f"{slide_id}.h5")
        recipe = recipe_of(tiling, spec, engine.encoder.weights_sha256)
        checksum = up_to_date(path, recipe)
        if checksum is None:
            path.unlink(missing_ok=True)
            _extract(slide, tiling, spec, engine, recipe, path)
            checksum = str(hdf5.attributes(path)[hdf5.CHECKSUM])
    except SlideError as error:
        reporter.say(f"{slide_id}: {error.state}: {error}")
        return row | {"state": error.state, "reason": str(error)} | nothing
    except CorruptFile as error:
        reporter.say(f"{slide_id}: no_tiles: {error}")
        return row | {"state": "no_tiles", "reason": str(error)} | nothing
    return row | {"num_tiles": len(tiling.coords), "checksum": checksum}


def _extract(
    slide: Mapping[str, Any], tiling: Tiling, spec: EncoderSpec, engine: Engine, recipe: str, path: Path
) -> None:
    """Read, encode and write one slide."""
    from mil.slides.slide import open_slide

    from_sheet = str(tiling.attributes.get("mpp_source", "")).startswith("sheet")
    mpp = float(tiling.attributes["mpp"]) if from_sheet else None
    with open_slide(str(slide["path"]), mpp=mpp) as source, hdf5.writing(path) as writer:
        writer.append("features", np.empty((0, engine.encoder.width), np.float16))
        writer.append("coords", np.empty((0, 2), np.int64))
        for index, tiles in source.read_tiles(tiling.coords, tiling.size_px, tiling.tile_mpp, threads=2):
            vectors = engine(tiles)
            if not np.isfinite(vectors).all():
                raise SlideError("not_finite", f"the encoder gave a value that is not finite for a tile of {path.stem}")
            writer.append("features", vectors)
            writer.append("coords", tiling.coords[index].astype(np.int64))
        writer.annotate(tiling.coords_attributes, on="coords")
        writer.annotate(provenance(tiling, spec, engine, recipe))


def provenance(tiling: Tiling, spec: EncoderSpec, engine: Engine, recipe: str) -> dict[str, Any]:
    """The root attributes of a features file."""
    about = tiling.attributes
    return {
        "stage": "features",
        "slide_id": about["slide_id"],
        "spec": spec.to_json(),
        "mpp": about["mpp"],
        "mpp_source": about["mpp_source"],
        "fingerprint": about["fingerprint"],
        "size_px": tiling.size_px,
        "tile_mpp": tiling.tile_mpp,
        "tiles_recipe": about["recipe"],
        "encoder": engine.encoder.name,
        "weights_sha256": engine.encoder.weights_sha256,
        "precision": engine.precision,
        "device": engine.device.type,
        "mil_version": mil.__version__,
        "versions": {name: version(name) for name in ("torch", "timm", "h5py", "openslide-python")},
        "recipe": recipe,
    }
