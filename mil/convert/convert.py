"""A folder of another tool's features -> a folder of ours with its manifest, and back."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil import hdf5
from mil.convert import readers as _entered  # noqa: F401  the readers enter themselves into the registry
from mil.convert.foreign import READERS, SLIDEFLOW, Foreign, ForeignFeatures
from mil.convert.writers import WRITERS
from mil.errors import CorruptFile, MilError
from mil.features.identity import check_made_by, names
from mil.files import check_id, file_name, reason_of, sha256_of
from mil.progress import Reporter
from mil.provenance import up_to_date
from mil.schemas import MANIFEST
from mil.version import __version__

STAGE_VERSION = 1
SMALLEST_FLOAT16, LARGEST_FLOAT16 = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)


def convert_in(
    layout: str, source: ForeignFeatures, folder: str | Path, reporter: Reporter, slides: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Write `folder/{slide_id}.h5` for every slide of `source.folder`, which `layout`'s tool made; the manifest of `MANIFEST`.

    A file that was converted before from the same bytes is left alone. One that cannot be read is a row with a reason.
    `slides`: rows of a slide table (slide_id, state, reason, mpp); only these are converted, in their order, each with its
    own mpp, and one without features is a row with a reason.
    """
    reader, folder = READERS[layout], Path(folder)
    if not source.folder.is_dir():
        raise MilError(f"{source.folder} is no folder; give the one that holds the features of {reader.tool}")
    paths = reader.find(source.folder)
    if not paths:
        raise MilError(f"{source.folder}: no features of {reader.tool} found; give the folder that holds them")
    if any(source.folder.glob(f"*{SLIDEFLOW}")):
        reporter.say(
            f"{source.folder}: Slideflow's positions of tiles (*{SLIDEFLOW}) are not read; the features are, without corners: no heat map"
        )
    every = pd.DataFrame({"slide_id": list(paths)}).assign(state="ok", reason="", mpp=None)
    wanted = every if slides is None else slides
    rows: list[dict[str, Any]] = []
    with reporter.steps(f"convert {reader.tool}", len(wanted), "slides") as steps:
        for slide in wanted.to_dict("records"):
            slide_id, state = str(slide["slide_id"]), str(slide["state"])
            row = {"slide_id": slide_id, "state": state, "reason": "", "num_tiles": 0, "checksum": ""}
            if state != "ok":
                row["reason"] = slide["reason"]
            elif (path := paths.get(slide_id, paths.get(file_name(slide_id)))) is None:
                row |= {"state": "no_features", "reason": f"{source.folder} holds no features named '{slide_id}'"}
            else:
                features = source if pd.isna(slide["mpp"]) else replace(source, mpp=float(slide["mpp"]))
                row |= _converted(layout, slide_id, path, features, folder)
            if row["state"] in {"no_features", "no_tissue", "unreadable_features"}:
                reporter.say(f"slide {slide_id}: {row['state']}: {row['reason']}")
            rows.append(row)
            steps.done(tiles=int(row["num_tiles"]))
    _refuse_copies(rows, source.folder, reporter)
    return pd.DataFrame(rows, columns=list(MANIFEST))


def _refuse_copies(rows: list[dict[str, Any]], folder: Path, reporter: Reporter) -> None:
    """Give slides whose files are equal to the byte a reason in place of features: at least one is another slide's."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["state"] == "ok":
            alike.setdefault(row.pop("file"), []).append(row)
    for copies in (group for group in alike.values() if len(group) > 1):
        names = " and ".join(f"'{row['slide_id']}'" for row in copies)
        reason = f"{folder}: the files of {names} are equal to the byte; put back the features of each slide"
        for row in copies:
            row |= {"state": "unreadable_features", "reason": reason, "num_tiles": 0, "checksum": ""}
        reporter.say(f"slides {names}: unreadable_features: {reason}")


def convert_out(layout: str, folder: str | Path, target: str | Path, reporter: Reporter) -> list[Path]:
    """Write every features file of ours in `folder` in another tool's layout below `target`; the files written."""
    write = WRITERS[layout]
    paths = sorted(Path(folder).glob("*.h5"))
    if not paths:
        raise MilError(f"{folder}: holds no features files")
    written = []
    with reporter.steps(f"convert to {layout}", len(paths), "slides") as steps:
        for path in paths:
            hdf5.verify(path)
            written.append(write(path, Path(target)))
            steps.done()
    return written


def _converted(layout: str, slide_id: str, path: Path, source: ForeignFeatures, folder: Path) -> dict[str, Any]:
    """What the manifest says of a slide whose features are at `path`, once they are converted."""
    try:
        row = _convert_one(layout, slide_id, path, source, folder)
    except CorruptFile as error:
        return {"state": "unreadable_features", "reason": str(error)}
    except OSError as error:
        return {"state": "unreadable_features", "reason": f"{path}: cannot be read ({reason_of(error)})"}
    if not row["num_tiles"]:
        return {"state": "no_tissue", "reason": f"{path} holds the features of no tile"}
    return row


def _convert_one(layout: str, slide_id: str, path: Path, source: ForeignFeatures, folder: Path) -> dict[str, Any]:
    try:
        check_id("slide_id", slide_id, str(path))
    except MilError as error:
        raise CorruptFile(str(error)) from error
    facts = {
        key: value for key, value in vars(source).items() if key not in {"folder", "expected"} and value is not None
    }
    made_from = {"stage": "convert", "version": STAGE_VERSION, "layout": layout, "told": facts, "file": sha256_of(path)}
    foreign = read_expected(layout, path, source)
    # what files beside it, and the folder's name, say of its features
    made_from["said"] = {key: value for key, value in vars(foreign).items() if key not in {"features", "coords"}}
    made_from["coords"] = None if foreign.coords is None else hashlib.sha256(foreign.coords.tobytes()).hexdigest()
    recipe = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
    target = folder / f"{file_name(slide_id)}.h5"
    if (checksum := up_to_date(target, recipe)) is None:
        _write(target, slide_id, foreign, layout, recipe, source.weights_sha256)
        checksum = str(hdf5.attributes(target)[hdf5.CHECKSUM])
    return {"num_tiles": int(hdf5.attributes(target)["num_tiles"]), "checksum": checksum, "file": made_from["file"]}


def read_expected(layout: str, path: Path, source: ForeignFeatures) -> Foreign:
    """The features of one slide; a `MilError` where another encoder than `source.expected` made them."""
    foreign = READERS[layout].read(path, source)
    if source.encoder is not None and (source.weights_sha256 is not None or names(foreign.encoder, source.encoder)):
        foreign = replace(foreign, encoder=source.encoder)
    if source.expected is None:
        return foreign
    key, spec = source.expected
    stated = {"encoder": foreign.encoder, "weights_sha256": source.weights_sha256}
    check_made_by(spec, key, stated, foreign.features.shape[1], str(path))
    return replace(foreign, encoder=spec.name)


def _write(target: Path, slide_id: str, foreign: Foreign, layout: str, recipe: str, weights_sha256: str | None) -> None:
    """A features file in our layout. What the other tool did not say is empty, never guessed."""
    features = _stored(slide_id, foreign)
    with hdf5.writing(target) as writer:
        writer.append("features", features)
        coords = np.zeros((len(features), 2), np.int64) if foreign.coords is None else foreign.coords
        writer.append("coords", coords)
        tiling = {"name": slide_id, "patch_size": foreign.size_px, "patch_size_level0": foreign.side_level0}
        writer.annotate({key: value for key, value in tiling.items() if value is not None}, on="coords")
        writer.annotate(
            {
                "stage": "features",
                "slide_id": slide_id,
                "encoder": foreign.encoder,
                # Where nobody knows the weights' hash, tool and encoder stand for it, so that bags refuse a mixture.
                "weights_sha256": weights_sha256 or f"unknown ({READERS[layout].tool}, {foreign.encoder})",
                "precision": "unknown",
                "mpp": foreign.mpp or "",
                "mpp_source": f"convert ({layout})" if foreign.mpp else "",
                "size_px": foreign.size_px or "",
                "tile_mpp": foreign.tile_mpp or "",
                "fingerprint": "",
                "coords_known": int(foreign.coords is not None),
                "num_tiles": len(features),
                "converted_from": READERS[layout].tool,
                "mil_version": __version__,
                "recipe": recipe,
            }
        )


def _stored(slide_id: str, foreign: Foreign) -> np.ndarray:
    """The features as float16; `CorruptFile` where float16 does not hold them, or they are not those of a slide's tiles, each once."""
    largest = np.abs(foreign.features).max(initial=0.0)
    if foreign.features.size and not SMALLEST_FLOAT16 <= largest <= LARGEST_FLOAT16:
        raise CorruptFile(
            f"{slide_id}: its largest feature is {largest:.3g}, which float16 does not hold ({SMALLEST_FLOAT16:.2g} to "
            f"{LARGEST_FLOAT16:.0f}); extract the slide again"
        )
    half = len(foreign.features) // 2
    first, last = foreign.features[:half], foreign.features[-half:]
    if foreign.coords is None and half and (first != first[0]).any() and np.array_equal(first, last):
        raise CorruptFile(
            f"{slide_id}: its features are the same {half} twice: a second extraction was appended to them; delete the file and extract "
            "the slide again"
        )
    if foreign.coords is not None and len(foreign.coords) > 1:
        again = (foreign.coords[1:] == foreign.coords[0]).all(axis=1)
        if again.all():
            raise CorruptFile(
                f"{slide_id}: all its {len(again) + 1} tiles have one corner, {foreign.coords[0].tolist()}"
            )
        again &= (foreign.features[1:] == foreign.features[0]).all(axis=1)
        if again.any():
            raise CorruptFile(
                f"{slide_id}: tile {again.argmax() + 1} is tile 0 again, by corner and features: a second extraction was "
                "appended to its file; delete the file and extract the slide again"
            )
    return foreign.features.astype(np.float16)
