"""Arrays and their provenance <-> one HDF5 file a slide: complete or absent, checksummed, safe to open when foreign.

The only module that opens HDF5. Root datasets have one row a tile; root attributes are JSON text; `coords` carries
TRIDENT's attributes besides (see `mil.features`). The checksum (SHA-256) covers every array's name, type, shape and
bytes and every attribute. `read` and `attributes` check it, once for each file and process.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mil.errors import CorruptFile
from mil.files import Sink, digest_of, replacing, why_no_file

CHECKSUM = "checksum"
ROWS_A_CHUNK = 512
ROWS_AT_ONCE = 8 * ROWS_A_CHUNK  # read for a checksum
MAX_BYTES = 64 * 2**30  # no slide's features come near; a foreign file that declares more is refused unread
HDF5_FAILS = (OSError, RuntimeError, LookupError, ValueError, TypeError, NotImplementedError)  # h5py, on damaged files
MAX_INFLATION = 200  # declared bytes for each stored byte; gzip reaches 1029 on zeros


@dataclass
class Writer:
    """Appends rows to the root datasets of one file; used through `writing`."""

    file: h5py.File
    sink: Sink
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
        self.sink.check()
        self.digests[name].update(_bytes(rows))

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
        with Sink(partial) as sink, h5py.File(sink, "w", libver="v110") as file:
            writer = Writer(file, sink)
            yield writer
            digests = {name: digest.hexdigest() for name, digest in writer.digests.items()}
            file.attrs[CHECKSUM] = _combine(file, digests)
        verify(partial)


_checked: dict[str, tuple[int, ...]] = {}
"""Files that this process has read whole and found right, with what the system said of them then."""


def verify(path: str | Path) -> str:
    """Read every byte of a file of ours; its checksum if all is as written, `CorruptFile` otherwise."""
    state = _state(path)
    with reading(path) as file:
        stored = _check(file, path, {})
    _checked[str(path)] = state
    return stored


def _check(file: h5py.File, path: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """The checksum, if all is as written; `arrays` are the datasets that have been read already."""
    if CHECKSUM not in file.attrs:
        raise CorruptFile(
            f"{path}: has no checksum, so it is not a finished file of ours; delete it and run the step again"
        )
    digests = {name: _digest(file[name], arrays.get(name)).hexdigest() for name in file}
    checksum, stored = _combine(file, digests), str(file.attrs[CHECKSUM])
    if checksum != stored:
        raise CorruptFile(
            f"{path}: checksum {checksum[:12]} differs from the stored {stored[:12]}; delete it and run the step again"
        )
    return stored


def _check_once(file: h5py.File, path: str | Path, state: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> None:
    """Check the file, unless this process did and it has not changed since."""
    if _checked.get(str(path)) != state:
        _check(file, path, arrays)
        _checked[str(path)] = state


def _state(path: str | Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def reading(path: str | Path) -> Iterator[h5py.File]:
    """The file, opened for reading after `check_foreign`; HDF5's own errors come out as `CorruptFile`."""
    with _opened(path, "; run the step that writes it", "; delete it and run the step again") as file:
        check_foreign(file, path)
        yield file


@contextmanager
def _opened(path: str | Path, if_absent: str = "", if_broken: str = "") -> Iterator[h5py.File]:
    """The file, opened for reading; `CorruptFile` with a way out where there is none, or where HDF5 cannot read it."""
    if why := why_no_file(path):
        raise CorruptFile(f"{path}: {why}{if_absent}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except HDF5_FAILS as error:
        raise CorruptFile(f"{path}: HDF5 cannot read it ({' '.join(str(error).split())}){if_broken}") from error


def read(path: str | Path, *names: str) -> tuple[np.ndarray, ...]:
    """The named root datasets, whole, in the order asked for; the file's checksum holds."""
    return read_with_attributes(path, *names)[0]


def read_with_attributes(path: str | Path, *names: str) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
    """What `read` and `attributes` give; the file is opened once."""
    state = _state(path)
    with reading(path) as file:
        arrays = {name: _needed(file, name, path)[()] for name in names}
        _check_once(file, path, state, arrays)
        return tuple(arrays[name] for name in names), _attributes(file)


def described(path: str | Path, name: str) -> tuple[tuple[int, ...], str, dict[str, Any]]:
    """Shape and type of a root dataset, and the attributes of the root; for files that `read` will check later."""
    with reading(path) as file:
        dataset = _needed(file, name, path)
        return dataset.shape, str(dataset.dtype), _attributes(file)


def attributes(path: str | Path, on: str | None = None) -> dict[str, Any]:
    """Attributes of the root, or of dataset `on`, JSON decoded; the file's checksum holds."""
    state = _state(path)
    with reading(path) as file:
        source = file if on is None else _needed(file, on, path)
        _check_once(file, path, state, {})
        return _attributes(source)


def _needed(file: h5py.File, name: str, path: str | Path) -> h5py.Dataset:
    if name not in file:
        raise CorruptFile(f"{path}: dataset '{name}' is missing; it has {', '.join(file) or 'none'}")
    return file[name]


def read_foreign(path: str | Path, *names: str) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Arrays of the datasets `names` that a file of someone else's has, and their attributes; `""` are the file's own.

    Only these datasets are touched, after `check_dataset`, whatever else lies in the file.
    """
    arrays: dict[str, np.ndarray] = {}
    with _opened(path) as file:
        attributes = {"": _attributes(file)}
        for name in names:
            dataset = _followed(file, name, path)
            if dataset is not None:
                check_dataset(dataset, path)
                if dataset.shape is None:
                    raise CorruptFile(f"{path}: dataset '{name}' has no shape and holds nothing")
                arrays[name] = dataset[()]
                attributes[name] = _attributes(dataset)
    return arrays, attributes


def names_under(path: str | Path, group: str) -> list[str]:
    """Names in a group of a file of someone else's; none where there is no such group."""
    with _opened(path) as file:
        kind = file.get(group, getclass=True)
        return sorted(file[group]) if kind is h5py.Group else []


def _followed(file: h5py.File, name: str, path: str | Path) -> h5py.Dataset | None:
    """The dataset at `name`, reached by hard links only; None where there is none."""
    node: Any = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise CorruptFile(f"{path}: '{name}' is a link to elsewhere; refused")
        node = node[part]
    return node if isinstance(node, h5py.Dataset) else None


def check_foreign(file: h5py.File, path: str | Path) -> None:
    """Refuse what a features file never needs and an attacker does: links, external or virtual storage, objects, bombs."""
    declared = 0
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise CorruptFile(f"{path}: '{name}' is a link to elsewhere; refused")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise CorruptFile(
                f"{path}: '{name}' is a group, which no file of ours holds; delete it and run the step again"
            )
        check_dataset(dataset, path)
        declared += dataset.nbytes
    check_size(declared, path)


def check_dataset(dataset: h5py.Dataset, path: str | Path) -> None:
    """`CorruptFile` for a dataset whose bytes lie elsewhere, that holds no numbers, or that would fill the memory."""
    name = dataset.name.lstrip("/")
    if dataset.external is not None or dataset.is_virtual:
        raise CorruptFile(f"{path}: '{name}' takes its bytes from another file; refused")
    if dataset.dtype.kind not in "fiub":
        raise CorruptFile(f"{path}: '{name}' holds {dataset.dtype}, not numbers; refused")
    check_size(dataset.nbytes, path)


def check_size(declared: int, path: str | Path) -> None:
    """`CorruptFile` where a file unpacks to more than memory or `MAX_INFLATION` times its own bytes."""
    size = Path(path).stat().st_size
    if declared > MAX_BYTES or declared > MAX_INFLATION * max(size, 2**20):
        raise CorruptFile(f"{path}: declares {declared:,} bytes in a file of {size:,}; refused as a decompression bomb")


def _digest(dataset: h5py.Dataset, array: np.ndarray | None = None) -> Any:
    """SHA-256 of a dataset, read in pieces unless it is here as `array`."""
    digest = hashlib.sha256(f"{dataset.name.lstrip('/')}|{dataset.dtype.str}|{dataset.shape[1:]}".encode())
    if array is not None:
        digest.update(_bytes(array))
        return digest
    for start in range(0, dataset.shape[0], ROWS_AT_ONCE):
        digest.update(_bytes(dataset[start : start + ROWS_AT_ONCE]))
    return digest


def _bytes(array: np.ndarray) -> Any:
    """The array's memory, row by row, without a copy where it lies so."""
    return np.ascontiguousarray(array).ravel().view(np.uint8).data


def _combine(file: h5py.File, digests: Mapping[str, str]) -> str:
    """One digest of the arrays' digests and all attributes but the checksum itself."""
    described = {"": _plain(file.attrs), **{name: _plain(file[name].attrs) for name in digests}}
    return digest_of([digests, described])


def _plain(attrs: h5py.AttributeManager) -> dict[str, Any]:
    return {
        key: value.item() if isinstance(value, np.generic) else str(value)
        for key, value in attrs.items()
        if key != CHECKSUM
    }


def _attributes(source: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Attributes, JSON decoded."""
    return {key: _decoded(value) for key, value in source.attrs.items()}


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
