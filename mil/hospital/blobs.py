"""Messages as files, written and read tensor by tensor: memory does not grow with the number of tensors in them.

The layout is safetensors', as of messages in memory. A message that carries every hospital's answer can be many times as large as an answer.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mil.files import replacing, sha256_of

Blob = bytes | Path
"""A message: its bytes, or the file that holds them."""
NAMES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8}
"""Types of tensors as safetensors names them."""


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each made anew whenever it is asked for; nothing is kept."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self.makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class Kept:
    """A message inside another file: the bytes of its tensor `name` (bytes,) uint8."""

    path: Path
    name: str


def size_of(blob: Blob) -> int:
    """Bytes of a message."""
    return blob.stat().st_size if isinstance(blob, Path) else len(blob)


def digest_of(blob: Blob) -> str:
    """SHA-256 of a message's bytes, in hex."""
    return sha256_of(blob) if isinstance(blob, Path) else hashlib.sha256(blob).hexdigest()


def as_tensor(blob: Blob | Kept) -> Tensor:
    """Bytes as a tensor of a message (bytes,), uint8."""
    if isinstance(blob, Kept):
        return read(blob.path)[blob.name]
    found = np.fromfile(blob, np.uint8) if isinstance(blob, Path) else np.frombuffer(bytearray(blob), np.uint8)
    return torch.from_numpy(found)


def read(path: Path) -> Lazy:
    """The tensors of a safetensors file. `SafetensorError` where it is none, `KeyError` for types that no message holds."""
    with safe_open(path, "pt"):  # checks the header against the file's size
        pass
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        stated = json.loads(file.read(length))
    stated.pop("__metadata__", None)
    return Lazy({name: partial(_read, path, 8 + length, one, NAMES[one["dtype"]]) for name, one in stated.items()})


def _read(path: Path, start: int, stated: Mapping, dtype: torch.dtype) -> Tensor:
    begin, end = stated["data_offsets"]
    values = np.fromfile(path, np.uint8, end - begin, offset=start + begin)
    return (
        torch.from_numpy(values).view(dtype).view(stated["shape"])
        if len(values)
        else torch.zeros(stated["shape"], dtype=dtype)
    )


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Tensors as one safetensors file with the metadata `about`, one tensor in memory at a time; atomic."""
    stated, offset = {}, 0
    codes = {dtype: code for code, dtype in NAMES.items()}
    sizes = {name: (value.element_size(), tuple(value.shape), value.dtype) for name, value in tensors.items()}
    order = sorted(sizes, key=lambda name: (-sizes[name][0], name))  # so that every number is aligned to its size
    for name in order:
        width, shape, dtype = sizes[name]
        end = offset + width * int(np.prod(shape, dtype=np.int64))
        stated[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": dict(about), **stated}).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial_path, open(partial_path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensors[name].contiguous().numpy().tofile(file)
