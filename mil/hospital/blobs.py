"""Messages as files, written and read row by row: memory does not grow with the number of sites, and little with that of models.

The layout is safetensors', as of messages in memory. A message that carries every hospital's answer can be many times as large as an
answer; the answers in it are messages again, which are read where they lie.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mil.files import replacing

NAMES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}
"""Types of tensors as safetensors names them."""
HEADER, AT_ONCE, LONGEST_HEADER = 8, 2**22, 2**22
"""Bytes: of the header's length, copied at once, and of the longest header that is read: as JSON it may take forty times as much memory."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, unread; as one of bytes (size,) uint8 it is a message in another one."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    def whole(self) -> Tensor:
        """All of it."""
        return self._read(0, self.shape)

    def row(self, number: int) -> Tensor:
        """Of the leading axis."""
        shape = self.shape[1:]
        return self._read(number * self.dtype.itemsize * math.prod(shape), shape)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, `AT_ONCE` at a time."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for done in range(0, self.size, AT_ONCE):
                yield file.read(min(AT_ONCE, self.size - done))

    def _read(self, offset: int, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        if not count:
            return torch.zeros(shape, dtype=self.dtype)
        values = np.fromfile(self.path, np.uint8, count * self.dtype.itemsize, offset=self.start + offset)
        return torch.from_numpy(values).view(self.dtype).view(shape)


@dataclass(frozen=True)
class Made:
    """A tensor that is computed row by row of its leading axis, anew whenever it is asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[int], Tensor]

    def whole(self) -> Tensor:
        """All of it."""
        return torch.stack([self.row(number) for number in range(self.shape[0])])

    def row(self, number: int) -> Tensor:
        """Of the leading axis."""
        return self.make(number)

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes, a row at a time."""
        for number in range(self.shape[0]):
            yield bytes_of(self.row(number))


Part = Tensor | Stored | Made
Blob = bytes | Path | Stored
"""A message: its bytes, the file that holds them, or its bytes' place in a file."""


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each read or computed anew whenever it is asked for; nothing is kept."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)

    def __getitem__(self, name: str) -> Tensor:
        part = self.parts[name]
        return part if isinstance(part, Tensor) else part.whole()

    def __contains__(self, name: object) -> bool:
        return name in self.parts  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def part_of(tensors: Mapping[str, Tensor], name: str) -> Part:
    """A tensor, unread where it is in a file: its shape and type are known all the same."""
    return tensors.parts[name] if isinstance(tensors, Lazy) else tensors[name]


def stacked(rows: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Lazy:
    """Models' tensors along a leading axis, each row where it is."""

    def made(name: str) -> Made:
        first = rows[0][name]
        return Made((len(rows), *first.shape), first.dtype, lambda number: rows[number][name])

    return Lazy({name: made(name) for name in names})


def row_of(tensors: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    """A row of the leading axis of the tensor `name`."""
    part = part_of(tensors, name)
    return part[number] if isinstance(part, Tensor) else part.row(number)


def bytes_of(value: Tensor) -> memoryview:
    """A tensor's bytes in order, where possible without a copy."""
    return value.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data


def chunks_of(part: Part) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor in order, little of it in memory at once where it is in a file or computed."""
    if isinstance(part, Tensor):
        yield bytes_of(part)
    else:
        yield from part.chunks()


def size_of(blob: Blob) -> int:
    """Bytes of a message."""
    if isinstance(blob, Path):
        return blob.stat().st_size
    return blob.size if isinstance(blob, Stored) else len(blob)


def digest_of(blob: Blob) -> str:
    """SHA-256 of a message's bytes, in hex."""
    sha256 = hashlib.sha256()
    for chunk in chunks_of(as_part(blob)):
        sha256.update(chunk)
    return sha256.hexdigest()


def as_part(blob: Blob) -> Part:
    """Bytes as a tensor of a message (bytes,), uint8."""
    if isinstance(blob, Path):
        return Stored(blob, 0, (blob.stat().st_size,))
    return blob if isinstance(blob, Stored) else torch.from_numpy(np.frombuffer(bytearray(blob), np.uint8))


@dataclass(frozen=True)
class MessageHeader:
    """What stands before the tensors of a message."""

    stated: dict
    length: int

    @classmethod
    def of(cls, blob: Blob) -> "MessageHeader":
        """ValueError where it is none."""
        size, length = size_of(blob), int.from_bytes(_bytes(blob, 0, HEADER), "little")
        if not 0 < length <= min(size - HEADER, LONGEST_HEADER):
            raise ValueError(f"a header of {length} bytes in {size}")
        stated = json.loads(_bytes(blob, HEADER, length))
        if not isinstance(stated, dict):
            raise ValueError("its header is no object")
        return cls(stated, length)


def _bytes(blob: Blob, start: int, count: int) -> bytes:
    if isinstance(blob, bytes):
        return blob[start : start + count]
    path, origin = (blob, 0) if isinstance(blob, Path) else (blob.path, blob.start)
    with open(path, "rb") as file:
        file.seek(origin + start)
        return file.read(count)


def read(blob: Path | Stored) -> Lazy:
    """The tensors of a message, unread. ValueError where it is no safetensors file, KeyError for types that no message holds."""
    header = MessageHeader.of(blob)
    path, origin = (blob, 0) if isinstance(blob, Path) else (blob.path, blob.start)
    first = origin + HEADER + header.length
    parts, ends = {}, [(0, 0)]
    for name, tensor in header.stated.items():
        if name == "__metadata__":
            continue
        (begin, end), shape = tensor["data_offsets"], tensor["shape"]
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError(f"{ascii(name)[:80]} has no shape or place")
        parts[name] = Stored(path, first + begin, tuple(shape), NAMES[tensor["dtype"]])
        if parts[name].size != end - begin:
            raise ValueError(f"{ascii(name)[:80]} is not as long as its shape")
        ends.append((begin, end))
    ends.sort()
    if any(before[1] != after[0] for before, after in pairwise(ends)) or first + ends[-1][1] != origin + size_of(blob):
        raise ValueError("its tensors do not fill it")
    return Lazy(parts)


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Tensors as one safetensors file with the metadata `about`; atomic. What is in a file or computed is not held as a whole."""
    with replacing(path) as partial_path:
        fill(partial_path, tensors, about)


def fill(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """The same, neither atomic nor safe from a power cut: for files that are needed for a moment."""
    stated, offset = {}, 0
    codes = {dtype: code for code, dtype in NAMES.items()}
    parts = {name: part_of(tensors, name) for name in tensors}
    order = sorted(parts, key=lambda name: (-parts[name].dtype.itemsize, name))  # every number is aligned to its size
    for name in order:
        part = parts[name]
        end = offset + part.dtype.itemsize * math.prod(part.shape)
        stated[name] = {"dtype": codes[part.dtype], "shape": list(part.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": dict(about), **stated}).encode()
    text += b" " * (-len(text) % HEADER)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(HEADER, "little") + text)
        for name in order:
            for chunk in chunks_of(parts[name]):
                file.write(chunk)
