"""Feature files -> the tiles of all bags, end to end, with the patient as the key."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mil import hdf5
from mil.config import EncoderSpec
from mil.errors import CorruptFile, MilError
from mil.features.device import short_of_memory
from mil.features.identity import check_made_by, check_same, described_features
from mil.files import file_name
from mil.machine import memory_given
from mil.progress import Reporter
from mil.provenance import shared_recipe
from mil.rng import seed_of
from mil.tables import slides_of
from mil.training.sources import Centre, Pinned, Resident, Source, Streamed, read_tiles

RESIDENT = 0.6
"""Share of a GPU's free memory that tiles may take; models and their steps need the rest."""


@dataclass(frozen=True)
class FeatureStore:
    """Bag i is tiles `starts[i]` to `starts[i] + sizes[i]` of all tiles, which are in memory (`tiles`) or in `files`."""

    patients: tuple[str, ...]
    sizes: np.ndarray
    """Tiles of every bag (bags,) int64."""
    width: int
    dtype: str
    """Type of the tiles as stored, as numpy names it."""
    tiles: torch.Tensor | None
    """All tiles (tiles, width), float16 or float32 as they were stored; none: they stay in the files."""
    files: tuple[tuple[Path, int], ...] = ()
    """Every slide's file and number of tiles, in order."""
    memory: int = 0
    """Bytes that tiles in files may take up at once."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What the files say of the encoder: name, hash of its weights, size and resolution of the tiles, stain, other settings."""
    checksums: tuple[str, ...] = ()
    """Of `files`, in order."""

    @classmethod
    def open(
        cls,
        bags: pd.DataFrame,
        sites_folder: str | Path,
        encoder: str,
        memory: int | None = None,
        spec: EncoderSpec | None = None,
    ) -> "FeatureStore":
        """`{sites_folder}/{site}/features/{encoder}/{slide}.h5` of every row; a bag is its slides in the row's order.

        Tiles that take more than `memory` bytes (none: half of the machine's) stay in their files and are streamed. Each
        file must be the one of its slide that its manifest lists, and of the encoder `spec` (none: not compared).
        """
        if not len(bags):
            raise MilError("bags: no row, so there is nothing to learn from; see the flow table beside it")
        files: list[tuple[Path, int]] = []
        sizes, checksums, about, width, dtype = [], [], None, 0, "float16"
        for row in bags.itertuples():
            folder = Path(sites_folder) / str(row.site) / "features" / encoder
            held = 0
            for slide in slides_of(row.slides):
                path = folder / f"{file_name(slide)}.h5"
                shape, kind, attributes = described_features(path, slide)
                if spec is not None:
                    check_made_by(spec, encoder, attributes, shape[1], str(path))
                recipe = shared_recipe(attributes)
                checksums.append(str(attributes[hdf5.CHECKSUM]))
                if about is None:
                    about, width, dtype = recipe, shape[1], kind
                first = files[0][0] if files else path
                check_same(
                    about | {"width": width, "type": dtype}, recipe | {"width": shape[1], "type": kind}, first, path
                )
                files.append((path, shape[0]))
                held += shape[0]
            if not held:
                raise CorruptFile(f"{folder}: patient {row.patient_id} has no tile; leave the patient out of the bags")
            sizes.append(held)
        allowed = memory_given() // 2 if memory is None else memory
        small = sum(sizes) * width * np.dtype(dtype).itemsize <= allowed
        tiles = torch.from_numpy(_filled(files, width, dtype)) if small else None
        patients = tuple(bags["patient_id"].astype(str))
        counts, of_files = np.array(sizes, np.int64), (tuple(files), allowed, about or {}, tuple(checksums))
        return cls(patients, counts, width, dtype, tiles, *of_files)

    @classmethod
    def of(cls, bags: Mapping[str, np.ndarray], about: Mapping[str, object] | None = None) -> "FeatureStore":
        """From arrays (tiles, width) in memory, by patient."""
        widths = {patient: bag.shape[1:] for patient, bag in bags.items()}
        if not bags or len(set(widths.values())) > 1:
            raise MilError(
                f"features: bags of one width are wanted, these have {sorted(set(widths.values())) or 'none'}"
            )
        for patient, bag in bags.items():
            if not len(bag):
                raise CorruptFile(f"features of patient {patient} have no tile; leave the patient out of the bags")
        tiles = torch.from_numpy(np.concatenate(list(bags.values())))
        if not torch.isfinite(tiles).all():
            culprit = next(patient for patient, bag in bags.items() if not np.isfinite(bag).all())
            raise CorruptFile(
                f"features of patient {culprit} hold NaN or infinity; extract that patient's slides again"
            )
        sizes = np.array([len(bag) for bag in bags.values()], np.int64)
        return cls(tuple(bags), sizes, tiles.shape[1], str(tiles.numpy().dtype), tiles, about=dict(about or {}))

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of every bag's first tile (bags,) int64."""
        return np.cumsum(self.sizes) - self.sizes

    def bag(self, index: int) -> np.ndarray:
        """The tiles of bag `index` (tiles, width)."""
        start, stop = int(self.starts[index]), int(self.starts[index] + self.sizes[index])
        if self.tiles is not None:
            return self.tiles[start:stop].numpy()
        ends = np.cumsum([count for _, count in self.files])
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        return np.concatenate([read_tiles(path) for path, _ in self.files[first : last + 1]])

    def digest(self) -> str:
        """SHA-256 that changes with any tile: of the files' checksums, or of the tiles where there are no files."""
        hasher = hashlib.sha256("|".join(self.checksums).encode())
        if not self.files and self.tiles is not None:
            hasher.update(self.tiles.numpy().tobytes())
        return hasher.hexdigest()

    def patient_keys(self) -> torch.Tensor:
        """A number of each patient's own (bags,) int64, to seed what is drawn for that patient."""
        return torch.tensor([seed_of(0, "patient", patient) for patient in self.patients])

    def means(self) -> "FeatureStore":
        """Every bag as one tile, the mean of its tiles (in float64, then float32)."""
        bags = (self.bag(number).mean(0, dtype=np.float64, keepdims=True) for number in range(len(self.patients)))
        return FeatureStore.of(
            {patient: bag.astype(np.float32) for patient, bag in zip(self.patients, bags, strict=True)}, self.about
        )

    def source(self, device: torch.device, centre: Centre | None = None, reporter: Reporter | None = None) -> Source:
        """Tiles as the device gets them: from its own memory if they take at most `RESIDENT` of it, else from the host.

        With a `centre` tiles come to a GPU as bf16, centred and scaled by it.
        """
        if self.tiles is None:
            paths, sizes = zip(*self.files, strict=True)
            return Streamed(paths, np.array(sizes), self.width, self.dtype, self.memory, device, centre)
        if device.type == "cuda":
            there = self.tiles.numel() * (self.tiles.itemsize if centre is None else 2)
            if there > RESIDENT * torch.cuda.mem_get_info(device)[0]:
                return Pinned(self.tiles, device, centre, reporter)
        try:
            return Resident(self.tiles, device, centre)
        except RuntimeError as error:  # another process has taken the memory meanwhile
            if not short_of_memory(error):
                raise
            return Pinned(self.tiles, device, centre, reporter)

    def require(self, patients: Iterable[str]) -> np.ndarray:
        """Bag numbers of the patients; one that was not read is an error."""
        known = {patient: number for number, patient in enumerate(self.patients)}
        missing = [patient for patient in patients if patient not in known]
        if missing:
            raise MilError(f"features: patient {missing[0]} is not among the {len(known)} patients that were read")
        return np.array([known[patient] for patient in patients], np.int64)


def _filled(files: Sequence[tuple[Path, int]], width: int, dtype: str) -> np.ndarray:
    """The tiles of all files, each read into its rows of one array."""
    tiles = np.empty((sum(count for _, count in files), width), dtype)
    start = 0
    for path, count in files:
        tiles[start : start + count] = read_tiles(path)
        start += count
    return tiles
