"""Feature files -> the tiles of all bags, end to end in one array, with the patient as the key."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mil import hdf5
from mil.errors import CorruptFile, MilError

SAME_EVERYWHERE = ("encoder", "weights_sha256", "size_px", "tile_mpp")


@dataclass(frozen=True)
class FeatureStore:
    """Tiles of bags: `tiles` (all tiles, width) float32; bag i is `tiles[starts[i] : starts[i] + sizes[i]]`."""

    patients: tuple[str, ...]
    tiles: torch.Tensor
    starts: np.ndarray
    sizes: np.ndarray
    about: Mapping[str, object]
    """What the files say of the encoder: name, hash of its weights, size and resolution of the tiles."""

    @classmethod
    def open(cls, bags: pd.DataFrame, sites_folder: str | Path, encoder: str) -> "FeatureStore":
        """Read `{sites_folder}/{site}/features/{encoder}/{slide}.h5` of every row; a bag is its slides in the row's order."""
        about: dict[str, object] = {}
        first, parts, sizes = None, [], []
        for row in bags.itertuples():
            slides = str(row.slides).split(";")
            paths = [Path(sites_folder) / str(row.site) / "features" / encoder / f"{slide}.h5" for slide in slides]
            for path in paths:
                stated = hdf5.attributes(path)
                found = {key: stated[key] for key in SAME_EVERYWHERE if key in stated}
                if first is None:
                    first, about = path, found
                _same(about, found, first, path)
            bag = np.concatenate([_features(path) for path in paths])
            if not len(bag):
                raise CorruptFile(
                    f"{paths[0]}: patient {row.patient_id} has no tile; leave the patient out of the bags"
                )
            parts.append(bag)
            sizes.append(len(bag))
        if not parts:
            raise MilError("bags: no row, so there is nothing to learn from; see the flow table beside it")
        return cls.of(dict(zip(bags.patient_id.astype(str), parts, strict=True)), about)

    @classmethod
    def of(cls, bags: Mapping[str, np.ndarray], about: Mapping[str, object] | None = None) -> "FeatureStore":
        """From arrays (tiles, width) in memory, by patient."""
        sizes = np.array([len(bag) for bag in bags.values()], np.int64)
        tiles = torch.from_numpy(np.concatenate([np.asarray(bag, np.float32) for bag in bags.values()]))
        if not torch.isfinite(tiles).all():
            culprit = next(patient for patient, bag in bags.items() if not np.isfinite(bag).all())
            raise CorruptFile(
                f"features of patient {culprit} hold NaN or infinity; extract that patient's slides again"
            )
        return cls(tuple(bags), tiles, np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes, dict(about or {}))

    @property
    def width(self) -> int:
        """Numbers a tile."""
        return self.tiles.shape[1]

    def bag(self, index: int) -> torch.Tensor:
        """The tiles of bag `index` (tiles, width)."""
        return self.tiles[self.starts[index] : self.starts[index] + self.sizes[index]]

    def index(self) -> dict[str, int]:
        """Bag number of every patient."""
        return {patient: number for number, patient in enumerate(self.patients)}

    def only(self, patients: Iterable[str]) -> "FeatureStore":
        """The store of these patients and nobody else, in the order given."""
        known = self.index()
        missing = [patient for patient in patients if patient not in known]
        if missing:
            raise MilError(f"features: patient {missing[0]} is not among the {len(known)} patients that were read")
        return FeatureStore.of({patient: self.bag(known[patient]).numpy() for patient in patients}, self.about)

    def means(self) -> "FeatureStore":
        """Every bag as one tile, the mean of its tiles (in float64)."""
        return FeatureStore.of(
            {
                patient: self.bag(number).numpy().mean(0, dtype=np.float64, keepdims=True)
                for number, patient in enumerate(self.patients)
            },
            self.about,
        )


def _same(about: Mapping[str, object], found: Mapping[str, object], first: Path, path: Path) -> None:
    for key in SAME_EVERYWHERE:
        if about.get(key) != found.get(key):
            raise CorruptFile(
                f"{path}: {key} is {found.get(key)!r}, but {about.get(key)!r} in {first}; extract both with the same spec"
            )


def _features(path: Path) -> np.ndarray:
    (features,) = hdf5.read(path, "features")
    if features.ndim != 2:
        raise CorruptFile(f"{path}: features have {features.ndim} axes, not 2 (tiles, width); extract the slide again")
    return features
