"""Everything that crosses between a site and the server: one message of named tensors and a few named values.

A message is one safetensors file in memory, its values as JSON in the header: no pickle, no class names, nothing that
runs. Both sides hold a `Form`, made from their own copy of the protocol, and refuse whatever does not fill it exactly: a
tensor too many, one too few (an update that lost its tensors in transport must not be averaged), another shape or type, a
NaN, a text where a count belongs, too many bytes.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mil.errors import MilError
from mil.hospital import blobs
from mil.hospital.blobs import Blob

Value = str | int | float | bool | None | list[str] | list[int] | list[float]
Kind = Any
ABOUT = "mil"
LONGEST_QUOTE, LONGEST_LINE = 100, 1000
"""Characters of the other side's that stand in a message of ours, and of all of that message."""

TYPES = tuple(blobs.NAMES.values())

# No free text crosses: what is not a number or a tensor must look like one of these.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")
KEY = re.compile(r"[0-9a-f]{128}")


class Refusal(MilError):
    """Why a party will not go on. The text stays where it was raised; `code`, one word, is all that the other side is told."""

    code = "other"

    def __init__(self, said: str) -> None:
        super().__init__(said if len(said) <= LONGEST_LINE else f"{said[:LONGEST_LINE]}...")


class PayloadError(Refusal):
    """A message that must not be sent, or must not be used."""

    code = "payload"


class Mismatch(Refusal):
    """The other side runs other code, or holds another protocol."""

    code = "mismatch"


class NotAgreed(Refusal):
    """The hospital has not agreed to the run."""

    code = "run"


class TooFewPatients(Refusal):
    """An update of so few patients would tell too much of each."""

    code = "patients"


@dataclass(frozen=True)
class Message:
    """A question of the server or a site's answer."""

    kind: str
    """`join`, `moments`, `train`, `watch`, `finish`."""
    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """What a message must be: its kind, its tensors' shapes and types, its values' types."""

    kind: str
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    values: Mapping[str, "Kind"] = field(default_factory=dict)
    """A type, a list of one (`list[int]`), a pattern that a text must match whole, or a tuple of these."""


def pack(message: Message, form: Form, max_bytes: float, where: str) -> bytes:
    """The message as bytes, once it fills `form` and `max_bytes`; `PayloadError` naming what does not, otherwise."""
    check(message, form, where)
    blob = save({name: value.contiguous() for name, value in message.tensors.items()}, metadata=_about(message))
    _check_size(len(blob), max_bytes, where)
    return blob


def pack_file(message: Message, form: Form, max_bytes: float, where: str, path: Path) -> None:
    """The same as a file, with one row of a tensor at a time in memory."""
    check(message, form, where)
    blobs.write(path, message.tensors, _about(message))
    _check_size(blobs.size_of(path), max_bytes, where)


def packed(message: Message, form: Form, max_bytes: float, where: str, path: Path | None) -> Blob:
    """`pack` without a path, `pack_file` with one."""
    if path is None:
        return pack(message, form, max_bytes, where)
    pack_file(message, form, max_bytes, where, path)
    return path


@contextmanager
def computed(message: Message, path: Path | None) -> Iterator[Message]:
    """The message with its tensors computed once: in memory or, with a path, in a file beside it as long as the `with` lasts."""
    if path is None:
        yield replace(message, tensors=dict(message.tensors))
        return
    parts = path.with_suffix(".parts")
    try:
        blobs.fill(parts, message.tensors, {})
        yield replace(message, tensors=blobs.read(parts))
    finally:
        parts.unlink(missing_ok=True)


def _about(message: Message) -> dict[str, str]:
    return {ABOUT: json.dumps({"kind": message.kind, "values": dict(message.values)}, sort_keys=True)}


def unpack(blob: Blob, form: Form, max_bytes: float, where: str) -> Message:
    """What `pack` made -> the message, once it fills `form`; `PayloadError` naming what does not, otherwise."""
    _check_size(blobs.size_of(blob), max_bytes, where)
    message = parsed(blob, where)
    check(message, form, where)
    return message


def parsed(blob: Blob, where: str) -> Message:
    """A message whose form is still to be checked; tensors of types that no message has are refused.

    The tensors of a file stay there, and are read whenever they are asked for.
    """
    about = header(blob, where)
    try:
        tensors = load(blob) if isinstance(blob, bytes) else blobs.read(blob)
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AssertionError,
    ) as error:  # the last two: types and sizes that torch does not have
        raise PayloadError(f"{where}: not a message of ours ({error}); refused") from error
    for name, value in tensors.items() if isinstance(blob, bytes) else ():  # `read` knows no other types
        if value.dtype not in TYPES:
            raise PayloadError(f"{where}: tensor {_said(name)} is {value.dtype}, which no message holds; refused")
    return Message(str(about["kind"]), about["values"], tensors)


def header(blob: Blob, where: str) -> dict:
    """Kind and values of a message, its tensors unread."""
    try:
        about = json.loads(blobs.MessageHeader.of(blob).stated["__metadata__"][ABOUT])
        if not isinstance(about["kind"], str) or not isinstance(about["values"], dict):
            raise TypeError("kind or values")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PayloadError(f"{where}: not a message of ours (no header); refused") from error
    return about


def check(message: Message, form: Form, where: str) -> None:
    """Raise `PayloadError` for the first thing in `message` that `form` does not allow."""
    if message.kind != form.kind:
        raise PayloadError(f"{where}: a message {_said(message.kind)} where '{form.kind}' belongs; refused")
    _check_names("tensor", message.tensors, form.tensors, where)
    for name, (shape, dtype) in form.tensors.items():
        value = blobs.part_of(message.tensors, name)
        if not _fits(tuple(value.shape), shape) or value.dtype != dtype:
            raise PayloadError(
                f"{where}: tensor '{name}' is {_described(tuple(value.shape), value.dtype)}, not "
                f"{_described(shape, dtype)}; refused"
            )
        if value.dtype.is_floating_point and not torch.isfinite(message.tensors[name]).all():
            raise PayloadError(f"{where}: tensor '{name}' holds NaN or infinity; refused")
    _check_names("value", message.values, form.values, where)
    for name, kind in form.values.items():
        if not _is(message.values[name], kind):
            raise PayloadError(f"{where}: value '{name}' is {_said(message.values[name])}, not {_named(kind)}; refused")


def lengths(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """L2 norm of every model's change (models,), float64; `before` may hold more tensors."""
    names, count = sorted(after), len(next(iter(before.values())))

    def change(number: int) -> Tensor:
        rows = [
            (blobs.row_of(after, name, number).double() - before[name][number].double()).flatten() for name in names
        ]
        return torch.cat(rows).norm()

    return torch.stack([change(number) for number in range(count)])


def check_updates(after: Mapping[str, Tensor], before: Mapping[str, Tensor], longest: float | None, where: str) -> None:
    """Raise `PayloadError` for an update that is longer than the protocol, or the site, allows."""
    if longest is None:
        return
    found = float(lengths(after, before).max())
    if not found <= longest:
        raise PayloadError(
            f"{where}: an update of length {found:.3g}, more than the {longest:g} of max_update; refused"
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, names sorted, in hex."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = blobs.part_of(tensors, name)
        found.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        for chunk in blobs.chunks_of(value):
            found.update(chunk)
    return found.hexdigest()


def content_digest(message: Message) -> str:
    """SHA-256 of all of a message but the head of its sender's ledger and its signature."""
    values = {name: value for name, value in message.values.items() if name not in {"ledger", "signature"}}
    whole = f"{message.kind}|{json.dumps(values, sort_keys=True)}|{digest(message.tensors)}"
    return hashlib.sha256(whole.encode()).hexdigest()


def _fits(found: tuple[int, ...], allowed: tuple[int, ...]) -> bool:
    """-1 stands for any length: what is encrypted has no fixed one."""
    return len(found) == len(allowed) and all(b in {-1, a} for a, b in zip(found, allowed, strict=True))


def _check_size(size: int, max_bytes: float, where: str) -> None:
    if size > max_bytes:
        raise PayloadError(
            f"{where}: {size:,} bytes are more than the {int(max_bytes):,} allowed a round; raise max_mb_a_round, or "
            "take a smaller model"
        )


def _check_names(what: str, found: Mapping[str, object], allowed: Mapping[str, object], where: str) -> None:
    for name in found:
        if name not in allowed:
            raise PayloadError(f"{where}: {what} {_said(name)} is not on the list of what may cross; refused")
    for name in allowed:
        if name not in found:
            raise PayloadError(f"{where}: {what} '{name}' is missing; refused")


def _described(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _is(value: object, kind: Kind) -> bool:
    if isinstance(kind, tuple):
        return any(_is(value, one) for one in kind)
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and kind.fullmatch(value) is not None
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _said(value: object) -> str:
    """What the other side wrote, fit for a line of a log: no character of a language, no line break, no more than a line."""
    text = ascii(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def _named(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return " or ".join(_named(one) for one in kind)
    if isinstance(kind, re.Pattern):
        return {NAME: "a name", SHA256: "a SHA-256", KEY: "a public key"}.get(kind, f"of the pattern {kind.pattern}")
    return "nothing" if kind is type(None) else str(kind) if get_origin(kind) else kind.__name__
