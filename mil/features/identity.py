"""Whether features were made by the encoder that the cohort names."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from mil.config import EncoderSpec
from mil.encoders.table import ENCODERS
from mil.errors import MilError


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
