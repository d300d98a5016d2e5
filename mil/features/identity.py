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
from mil.provenance import require_slide


def check_bags(bags: pd.DataFrame, sites_folder: str | Path, key: str, spec: EncoderSpec) -> None:
    """Raise a `MilError` for the first features file of `bags` that is another slide's or not of the cohort's encoder `key`.

    Headers alone are read; the checksum is checked by those who read the numbers.
    """
    for row in bags.itertuples():
        for slide in str(row.slides).split(";"):
            path = Path(sites_folder) / str(row.site) / "features" / key / f"{file_name(slide)}.h5"
            shape, _, attributes = described_features(path, slide)
            check_made_by(spec, key, attributes, shape[1], str(path))


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
    made_by, own = str(stated.get("encoder") or ""), stated.get("spec")
    known = {_plain(name) for name in (spec.name, re.sub(r":.*/", ":", spec.name), key)}  # files state no folder
    if _plain(made_by) not in known:
        raise MilError(
            f"{where}: its features are of encoder '{made_by}' ({width} numbers a tile), but the cohort's encoder '{key}' is "
            f"{spec.name}; add `{made_by}: {{name: {_registered(made_by)}}}` under `encoders:` and set `encoder: {made_by}` in "
            "the experiments"
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
    if isinstance(own, dict) and own.get("stain") != spec.stain:
        raise MilError(
            f"{where}: was made with stain {own.get('stain')}, but the cohort's encoder '{key}' has stain {spec.stain}; run "
            "`mil extract` again"
        )


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _registered(name: str) -> str:
    """The registered encoder that is most like a name of another tool; the name itself where none is."""
    longer = [one for one in ENCODERS if _plain(one).startswith(_plain(name))]
    return next(iter(longer or difflib.get_close_matches(name, list(ENCODERS), n=1, cutoff=0.5)), name)
