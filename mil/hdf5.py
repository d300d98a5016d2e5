"""Arrays and their provenance <-> one HDF5 file a slide: complete or absent, checksummed, safe to open when foreign.

The only module that opens HDF5. Root datasets have one row a tile; root attributes are JSON text; `coords` carries
TRIDENT's attributes besides (see `mil.features`). The checksum covers every array's name, type, shape and bytes and
every attribute, so a flipped bit anywhere in what we say is found by `verify`.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mil.errors import CorruptFile
from mil.files import replacing

CHECKSUM = "checksum"
ROWS_A_CHUNK = 512
MAX_BYTES = 64 * 2**30  # no slide's features come near; a foreign file that declares more is refused unread
MAX_INFLATION = 200  # declared bytes for each stored byte; gzip reaches 1029 on zeros


@dataclass
class Writer:
    """Appends rows to the root datasets of one file; used through `writing`."""

    file: h5py.File
    digests: dict[str, Any] = field(default_factory=dict)

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append `rows` (rows, ...) to dataset `name`, made at the first call with the rows' type and trailing shape."""
        rows = np.ascontiguousarray(rows)
        if name not in self.file:
            chunks = (ROWS_A_CHUNK, *rows.shape[1:])
            self.file.create_dataset(
                name, shape=(0, *rows.shape[1:]), maxshape=(None, *rows.shape[1:]), dtype=rows.dtype, chunks=chunks
            )
            self.digests[name] = hashlib.sha256(f"{name}|{rows.dtype.str}|{rows.shape[1:]}".encode())
        dataset = self.file[name]
        start = dataset.shape[0]
        dataset.resize(start + len(rows), axis=0)
        dataset[start:] = rows
        self.digests[name].update(rows.tobytes())

    def annotate(self, attributes: Mapping[str, Any], on: str | None = None) -> None:
        """Set attributes on the root, or on the dataset `on`. Text and numbers as they are, the rest as JSON."""
        target = self.file if on is None else self.file[on]
        for key, value in attributes.items():
            target.attrs[key] = (
                value if isinstance(value, str | int | float | np.generic) else json.dumps(value, sort_keys=True)
            )


@contextmanager
def writing(path: str | Path) -> Iterator[Writer]:
    """A `Writer` whose file appears at `path`, checksummed and read back, on a clean exit only."""
    with replacing(path) as partial:
        partial.touch()  # where it cannot be made, the system's own words are shorter than HDF5's
        try:
            with h5py.File(partial, "w", libver="v110") as file:
                writer = Writer(file)
                yield writer
                digests = {name: digest.hexdigest() for name, digest in writer.digests.items()}
                file.attrs[CHECKSUM] = _combine(file, digests)
        except RuntimeError as error:
            if "write failed" not in str(error):
                raise
            # HDF5 finds out at closing time that its cache does not fit on the disk
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, or a limit on file sizes") from error
        verify(partial)


def verify(path: str | Path) -> str:
    """Read every byte of a file of ours; its checksum if all is as written, `CorruptFile` otherwise."""
    with reading(path) as file:
        if CHECKSUM not in file.attrs:
            raise CorruptFile(
                f"{path}: has no checksum, so it is not a finished file of ours; delete it and run the step again"
            )
        groups = [name for name in file if not isinstance(file[name], h5py.Dataset)]
        if groups:
            raise CorruptFile(f"{path}: holds a group '{groups[0]}', which no file of ours does")
        digests = {name: _digest(file[name]).hexdigest() for name in file}
        found, stored = _combine(file, digests), str(file.attrs[CHECKSUM])
        if found != stored:
            raise CorruptFile(
                f"{path}: checksum {found[:12]} differs from the stored {stored[:12]}; delete it and run the step again"
            )
        return stored


@contextmanager
def reading(path: str | Path) -> Iterator[h5py.File]:
    """The file, opened for reading after `check_foreign`; HDF5's own errors come out as `CorruptFile`."""
    try:
        with h5py.File(path, "r") as file:
            check_foreign(file, path)
            yield file
    except FileNotFoundError as error:
        raise CorruptFile(f"{path}: does not exist; run the step that writes it") from error
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        raise CorruptFile(
            f"{path}: HDF5 cannot read it ({' '.join(str(error).split())}); delete it and run the step again"
        ) from error


def read(path: str | Path, *names: str) -> tuple[np.ndarray, ...]:
    """The named root datasets, whole, in the order asked for."""
    with reading(path) as file:
        for name in names:
            if name not in file:
                raise CorruptFile(f"{path}: dataset '{name}' is missing; it has {', '.join(file) or 'none'}")
        return tuple(file[name][()] for name in names)


def attributes(path: str | Path, on: str | None = None) -> dict[str, Any]:
    """Attributes of the root, or of dataset `on`; those that hold a JSON object or list come back as such."""
    with reading(path) as file:
        if on is not None and on not in file:
            raise CorruptFile(f"{path}: dataset '{on}' is missing; it has {', '.join(file) or 'none'}")
        source = file if on is None else file[on]
        return {key: _decoded(value) for key, value in source.attrs.items()}


def read_foreign(path: str | Path, *names: str) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Arrays of the datasets `names` that a file of someone else's has, and their attributes; `""` are the file's own.

    Only these datasets are touched, after `check_dataset`, whatever else lies in the file.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            attributes = {"": {key: _decoded(value) for key, value in file.attrs.items()}}
            for name in names:
                dataset = _followed(file, name, path)
                if dataset is not None:
                    check_dataset(dataset, path)
                    arrays[name] = dataset[()]
                    attributes[name] = {key: _decoded(value) for key, value in dataset.attrs.items()}
    except FileNotFoundError as error:
        raise CorruptFile(f"{path}: does not exist") from error
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: HDF5 cannot read it ({' '.join(str(error).split())})") from error
    return arrays, attributes


def names_under(path: str | Path, group: str) -> list[str]:
    """Names in a group of a file of someone else's; none where there is no such group."""
    try:
        with h5py.File(path, "r") as file:
            found = file.get(group, getclass=True)
            return sorted(file[group]) if found is h5py.Group else []
    except (OSError, RuntimeError, KeyError) as error:
        raise CorruptFile(f"{path}: HDF5 cannot read it ({' '.join(str(error).split())})") from error


def _followed(file: h5py.File, name: str, path: str | Path) -> h5py.Dataset | None:
    """The dataset at `name`, reached by hard links only; None where there is none."""
    place: Any = file
    for part in name.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) and part in place else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise CorruptFile(f"{path}: '{name}' is a link to elsewhere; refused")
        place = place[part]
    return place if isinstance(place, h5py.Dataset) else None


def check_foreign(file: h5py.File, path: str | Path) -> None:
    """Refuse what a features file never needs and an attacker does: links, external or virtual storage, objects, bombs."""
    declared = 0
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise CorruptFile(f"{path}: '{name}' is a link to elsewhere; refused")
        dataset = file[name]
        if isinstance(dataset, h5py.Dataset):
            check_dataset(dataset, path)
            declared += dataset.nbytes
    _check_size(declared, path)


def check_dataset(dataset: h5py.Dataset, path: str | Path) -> None:
    """`CorruptFile` for a dataset whose bytes lie elsewhere, that holds no numbers, or that would fill the memory."""
    name = dataset.name.lstrip("/")
    if dataset.external is not None or dataset.is_virtual:
        raise CorruptFile(f"{path}: '{name}' takes its bytes from another file; refused")
    if dataset.dtype.kind not in "fiub":
        raise CorruptFile(f"{path}: '{name}' holds {dataset.dtype}, not numbers; refused")
    _check_size(dataset.nbytes, path)


def _check_size(declared: int, path: str | Path) -> None:
    size = Path(path).stat().st_size
    if declared > MAX_BYTES or declared > MAX_INFLATION * max(size, 2**20):
        raise CorruptFile(f"{path}: declares {declared:,} bytes in a file of {size:,}; refused as a decompression bomb")


def _digest(dataset: h5py.Dataset) -> Any:
    digest = hashlib.sha256(f"{dataset.name.lstrip('/')}|{dataset.dtype.str}|{dataset.shape[1:]}".encode())
    for start in range(0, dataset.shape[0], 8 * ROWS_A_CHUNK):
        digest.update(np.ascontiguousarray(dataset[start : start + 8 * ROWS_A_CHUNK]).tobytes())
    return digest


def _combine(file: h5py.File, digests: Mapping[str, str]) -> str:
    """One digest of the arrays' digests and all attributes but the checksum itself."""
    described = {"": _plain(file.attrs), **{name: _plain(file[name].attrs) for name in sorted(digests)}}
    return hashlib.sha256(json.dumps([dict(sorted(digests.items())), described], sort_keys=True).encode()).hexdigest()


def _plain(attrs: h5py.AttributeManager) -> dict[str, Any]:
    return {
        key: value.item() if isinstance(value, np.generic) else str(value)
        for key, value in sorted(attrs.items())
        if key != CHECKSUM
    }


def _decoded(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
