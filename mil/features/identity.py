"""Whether features are those of their slide, made by the encoder that the cohort names."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders.table import ENCODERS
from mil.errors import CorruptFile, MilError
from mil.files import file_name
from mil.provenance import SAME_EVERYWHERE, require_slide, shared_recipe
from mil.tables import slides_of


def check_bags(bags: pd.DataFrame, sites_folder: str | Path, key: str, spec: EncoderSpec) -> None:
    """Raise a `MilError` for the first features file of `bags` that is another slide's, not of the encoder `key` or not as the others.

    Headers alone are read; the checksum is checked by those who read the numbers.
    """
    first: tuple[Path, Mapping[str, object]] | None = None
    for row in bags.itertuples():
        for slide in slides_of(row.slides):
            path = Path(sites_folder) / str(row.site) / "features" / key / f"{file_name(slide)}.h5"
            shape, kind, attributes = described_features(path, slide)
            check_made_by(spec, key, attributes, shape[1], str(path))
            made = shared_recipe(attributes) | {"width": shape[1], "type": kind}
            first = first or (path, made)
            check_same(first[1], made, first[0], path)


def check_same(about: Mapping[str, object], other: Mapping[str, object], first: Path, path: Path) -> None:
    """Raise `CorruptFile` where the features in `path` were made in another way (`other`) than those in `first` (`about`)."""
    for key in (*SAME_EVERYWHERE, "width", "type"):
        stated, expected = other.get(key) or "not stated", about.get(key) or "not stated"
        if stated != expected:
            raise CorruptFile(
                f"{path}: {key} is {stated}, but {expected} in {first}; extract both with the same settings, or give what another tool's "
                f"files do not state under `slides.features`"
            )


def described_features(path: Path, slide_id: str) -> tuple[tuple[int, int], str, dict[str, Any]]:
    """Shape and type of a slide's features, and the file's attributes; no tile is read, so the checksum is checked later."""
    shape, kind, attributes = hdf5.described(path, "features")
    if len(shape) != 2 or hdf5.CHECKSUM not in attributes:
        raise CorruptFile(f"{path}: has no features (tiles, width) with a checksum; extract the slide again")
    require_slide(path, slide_id, attributes)
    return (shape[0], shape[1]), kind, attributes


def check_made_by(spec: EncoderSpec, key: str, stated: Mapping[str, Any], width: int, where: str) -> None:
    """Raise a `MilError` where features differ from those of `spec`, which the cohort calls `key`.

    `stated`: attributes of the features file (`encoder`, `weights_sha256`, `spec`). `width`: numbers for each tile. Tools write a name in
    their own way, so case and signs do not count, and the cohort's own `key` counts as a name.
    """
    made_by, settings = str(stated.get("encoder") or ""), stated.get("spec")
    known = {_plain(name) for name in (spec.name, re.sub(r":.*/", ":", spec.name), key)}  # files state no folder
    if _plain(made_by) not in known:
        way_out = (
            f"if that is {spec.name}, state `encoder: {spec.name}` for the site under `slides.features`"
            if names(made_by, spec.name)
            else f"add `{made_by}: {{name: {_registered(made_by)}}}` under `encoders:` and set `encoder: {made_by}` in the experiments"
        )
        raise MilError(
            f"{where}: its features are of encoder '{made_by}' ({width} numbers a tile), but the cohort's encoder '{key}' is "
            f"{spec.name}; {way_out}"
        )
    entry = ENCODERS[spec.name] if ":" not in spec.name and spec.name in ENCODERS else None
    if entry is not None and width != entry.width:
        raise MilError(
            f"{where}: has {width} numbers a tile, but {spec.name} (the cohort's encoder '{key}') gives {entry.width}; name the "
            "encoder that made them under `encoders:` and in the experiments"
        )
    known, weights = getattr(entry and entry.source, "sha256", ""), str(stated.get("weights_sha256") or "")
    if known and spec.weights is None and len(weights) == 64 and not weights.startswith(known):
        raise MilError(
            f"{where}: was made with weights {weights[:12]}, but those of {spec.name} are {known[:12]}; if the weights are your "
            f"own, name their file under encoders.{key}.weights"
        )
    if isinstance(settings, dict) and settings.get("stain") != spec.stain:
        raise MilError(
            f"{where}: was made with stain {settings.get('stain')}, but the cohort's encoder '{key}' has stain {spec.stain}; run "
            "`mil extract` again"
        )


def names(made_by: str, name: str) -> bool:
    """Whether what a tool wrote of an encoder holds `name` as words of it, and no longer name of a registered encoder.

    `STAMP-extract_ctranspath-7c998680` names `ctranspath`; `virchow2` does not name `virchow`.
    """
    longer = (encoder for encoder in ENCODERS if _plain(name) in _plain(encoder) and _plain(encoder) != _plain(name))
    words = f" {' '.join(_words(name))} "
    return words in f" {' '.join(_words(made_by))} " and not any(
        _plain(encoder) in _plain(made_by) for encoder in longer
    )


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.casefold())


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _registered(name: str) -> str:
    """The registered encoder that is most like a name of another tool; the name itself where none is."""
    longer = [encoder for encoder in ENCODERS if _plain(encoder).startswith(_plain(name))]
    held = [encoder for encoder in ENCODERS if names(name, encoder)]
    return next(iter(longer or held or difflib.get_close_matches(name, list(ENCODERS), n=1, cutoff=0.5)), name)
