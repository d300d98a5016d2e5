"""What a tiles file says of a slide's tiles, and the recipe that decides whether features are up to date."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil import hdf5
from mil.config import EncoderSpec
from mil.errors import CorruptFile
from mil.files import digest_of
from mil.provenance import require_slide

STAGE_VERSION = 1  # raised when the same tiles and encoder would now give other features
STAIN_VERSION = 2  # the same for stain normalisation, and counted only where there is some
# Settings that say how work is done, not what comes out of it; the weights count by their hash.
DROPS = "drop_unreadable"  # of `Reading`; no part of the recipe, because it changes no tile that can be read
NOT_IN_RECIPE = {"weights", "batch_size"}


@dataclass(frozen=True)
class Tiling:
    """The tiles of one slide: corners (n, 2) in level-0 pixels, their size and resolution, and the file's attributes."""

    coords: np.ndarray
    size_px: int
    mpp: float
    reading: Mapping[str, Any]
    """How `Slide.read_tiles` reads them, beyond size and resolution."""
    attributes: Mapping[str, Any]
    coords_attributes: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, slide_id: str) -> "Tiling":
        """The tiling of a slide in its file of `mil tile`."""
        (coords,) = hdf5.read(path, "coords")
        attributes = hdf5.attributes(path)
        require_slide(path, slide_id, attributes)
        spec = attributes.get("spec")
        if attributes.get("stage") != "tiles" or not isinstance(spec, dict):
            raise CorruptFile(f"{path}: is no tiles file; run `mil tile` again")
        return cls(
            coords=coords,
            size_px=int(spec["size_px"]),
            mpp=float(spec["mpp"]),
            reading={key: spec[key] for key in ("level", "decoding") if key in spec}
            | ({DROPS: True} if spec.get("unreadable") == "drop" else {}),
            attributes=attributes,
            coords_attributes=hdf5.attributes(path, on="coords"),
        )

    @property
    def slide_mpp(self) -> float | None:
        """The mpp to open the slide with where the sheet gave it; None: the header's own."""
        return float(self.attributes["mpp"]) if self.attributes["mpp_source"] == "sheet" else None

    def recipe(self, spec: EncoderSpec, weights_sha256: str, encoder_version: int = 1) -> str:
        """A hash of everything that decides the features: the slide's bytes, its tiles, the encoder and its weights."""
        ingredients = {
            "stage": "features",
            "version": STAGE_VERSION,
            "encoder": spec.model_dump(mode="json", exclude=NOT_IN_RECIPE),
            "weights": weights_sha256,
            "fingerprint": self.attributes["fingerprint"],
            "slide_mpp": self.attributes["mpp"],
            "size_px": self.size_px,
            "mpp": self.mpp,
            "reading": {key: value for key, value in self.reading.items() if key != DROPS},
            "coords": hashlib.sha256(np.ascontiguousarray(self.coords, "<i8").tobytes()).hexdigest(),
        }
        if spec.stain is not None:
            ingredients["stain_version"] = STAIN_VERSION
        if encoder_version > 1:
            ingredients["encoder_version"] = encoder_version
        return digest_of(ingredients)
