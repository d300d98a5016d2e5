"""Whose numbers a file of ours holds: its slide, its manifest's checksum, and the recipe that all files of a run share."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mil import hdf5
from mil.errors import CorruptFile
from mil.files import sha256_of
from mil.tables import read_table

SAME_EVERYWHERE = ("encoder", "weights_sha256", "size_px", "tile_mpp", "stain", "settings")
"""What the features of one training, and those of a run and its predictions, have in common."""
NORMALISATION = {"precision": "auto", "input_px": None, "mean": None, "std": None}
READING = {"level": "finest", "decoding": "full"}


def shared_recipe(attributes: Mapping[str, Any]) -> dict[str, object]:
    """`SAME_EVERYWHERE` from the root attributes of a features file; what is not stated, or as by default, is left out."""
    spec = attributes.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    recipe: dict[str, object] = {key: value for key, value in attributes.items() if key in SAME_EVERYWHERE}
    chosen = {key: spec[key] for key, default in NORMALISATION.items() if spec.get(key, default) != default}
    chosen |= {key: attributes[key] for key, default in READING.items() if attributes.get(key, default) != default}
    recipe |= {"stain": spec["stain"]} if spec.get("stain") else {}
    words = (
        f"{key}-{'_'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in chosen.items()
    )
    return recipe | ({"settings": ".".join(words)} if chosen else {})


def up_to_date(path: Path, recipe: str) -> str | None:
    """The checksum of the file at `path` if it is whole and made by `recipe`, else None."""
    if not path.is_file():
        return None
    try:
        return hdf5.verify(path) if hdf5.attributes(path).get("recipe") == recipe else None
    except CorruptFile:
        return None


def require_slide(path: Path, slide_id: str, attributes: Mapping[str, Any]) -> None:
    """`CorruptFile` where the file is of another slide, or not the one that the manifests of its folder list."""
    stated = attributes.get("slide_id", slide_id)
    if stated != slide_id:
        raise CorruptFile(
            f"{path}: is the file of slide '{stated}'; put back that of '{slide_id}' or run the step again"
        )
    manifests = _listed(path.parent, path.parent.stat().st_mtime_ns)
    if manifests is None:
        return
    listed = manifests.get(slide_id, set())
    if attributes.get(hdf5.CHECKSUM) not in listed:
        known = f"lists {min(listed)[:12]}" if listed else "does not list the slide"
        raise CorruptFile(
            f"{path}: its checksum is {str(attributes.get(hdf5.CHECKSUM))[:12]}, but the manifest beside it {known}; it was "
            "replaced after it was made: delete it and run the step again"
        )


@lru_cache(maxsize=256)
def _listed(folder: Path, changed_ns: int) -> dict[str, set[str]] | None:
    """Checksums by slide of the folder's manifests, none where there are none; a slide may stand in one of an older shard size.

    `changed_ns`: when the folder last changed, so that what was read before is not used after that.
    """
    paths = sorted(folder.glob("shard*.csv"))
    checksums: dict[str, set[str]] = {}
    for slide_id, checksum in (pair for path in paths for pair in listed_in(path)):
        checksums.setdefault(slide_id, set()).add(checksum)
    return checksums if paths else None


def listed_in(manifest: Path) -> list[tuple[str, str]]:
    """(slide, checksum) of the files that a stage's manifest lists as done."""
    table = read_table(manifest, text=("slide_id", "state", "reason", "checksum"))
    if not {"slide_id", "checksum"} <= set(table.columns):
        raise CorruptFile(
            f"{manifest}: is no manifest of a stage, which has the columns slide_id and checksum; it has "
            f"{', '.join(table.columns)}; move it away, or run the step again"
        )
    done = table[table["checksum"] != ""]
    return list(zip(done["slide_id"], done["checksum"], strict=True))


def require_of_run(path: Path) -> None:
    """`CorruptFile` where a file of a run differs from its digest in the `spec.json` beside it; nothing where there is none."""
    spec = path.with_name("spec.json")
    if not spec.is_file():
        return
    try:
        listed = json.loads(spec.read_text(encoding="utf-8"))["sha256"][path.name]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{spec} does not list {path.name}; run `mil train` again") from error
    if sha256_of(path) != listed:
        raise CorruptFile(
            f"{path} is not as it was written (its SHA-256 is not the one in spec.json); run `mil train` again"
        )
