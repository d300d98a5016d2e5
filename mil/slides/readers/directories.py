"""A TIFF file -> its directories: classic, BigTIFF, and Hamamatsu's NDPI, a classic TIFF whose offsets have 64 bits."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

NDPI = 65420  # the tag by which OpenSlide knows it, too
MOST = 64 << 20  # bytes of a directory or a value; larger ones no scanner writes
VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a TIFF value by its type (TIFF 6.0, section 2; BigTIFF adds 16 to 18)."""


def directories(file: BinaryIO) -> Iterator[tuple[int, bytes, Iterator[tuple[int, int]]]]:
    """(offset, entries, (offset, bytes) of the values outside the entries) of each directory; without end where they run in a circle."""
    size = os.fstat(file.fileno()).st_size

    def read(start: int, length: int) -> bytes:
        return os.pread(file.fileno(), length, start) if 0 < start <= size - length and length <= MOST else b""

    def entries(start: int) -> tuple[bytes, int]:
        """The entries of a directory and where they end."""
        counted = read(start, struct.calcsize(count))
        number = struct.unpack(order + count, counted)[0] if counted else 0
        return read(start + len(counted), number * entry), start + len(counted) + number * entry

    def values(table: bytes, high: bytes) -> Iterator[tuple[int, int]]:
        for number in range(len(table) // entry):
            _, kind, length = struct.unpack_from(order + "HH" + word, table, number * entry)
            (offset,) = struct.unpack_from(order + word, table, (number + 1) * entry - inline)
            offset += struct.unpack_from("<I", high, 4 * number)[0] << 32 if high else 0
            if VALUE_BYTES.get(kind, 1) * length > inline:
                yield offset, VALUE_BYTES.get(kind, 1) * length

    head = os.pread(file.fileno(), 16, 0).ljust(16, b"\0")
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    if not order or (version := struct.unpack(order + "H", head[2:4])[0]) not in {42, 43}:
        return
    word, count, entry, inline = ("Q", "Q", 20, 8) if version == 43 else ("I", "H", 12, 4)
    (at,) = struct.unpack_from(order + word, head, 8 if version == 43 else 4)
    (far,) = struct.unpack_from("<Q", head, 4)
    tags = struct.iter_unpack("<H10x", entries(far)[0]) if (order, version) == ("<", 42) else ()
    is_ndpi = (NDPI,) in tags
    at, pointer = (far, "Q") if is_ndpi else (at, word)
    while at:
        table, end = entries(at)
        yield at, table, values(table, read(end + 8, len(table) // 3) if is_ndpi else b"")
        following = read(end, struct.calcsize(pointer))
        at = struct.unpack(order + pointer, following)[0] if following else 0
