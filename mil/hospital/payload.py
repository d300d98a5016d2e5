"""Everything that crosses between a site and the server: one message of named tensors and a few named values.

A message is one safetensors file in memory, its values as JSON in the header: no pickle, no class names, nothing that
runs. Both sides hold a `Form`, made from their own copy of the protocol, and refuse whatever does not fill it exactly: a
tensor too many, one too few (an update that lost its tensors in transport must not be averaged), another shape or type, a
NaN, a text where a count belongs, too many bytes. The values of every kind of message are typed in `mil.hospital.messages`.
"""

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from pydantic import BaseModel, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mil.errors import MilError
from mil.hospital import blobs
from mil.hospital.blobs import Blob

Shaped = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of every tensor; -1 stands for any length."""
ABOUT = "mil"
FINITE = "a finite number"
LONGEST_QUOTE, LONGEST_LINE = 100, 1000
"""Characters of the other side's that stand in a message of ours, and of all of that message."""

TYPES = tuple(blobs.NAMES.values())


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


class Values(BaseModel, extra="forbid", strict=True, frozen=True):
    """What a message says beside its tensors: its kind and a few named values, all of them required."""

    kind: str

    @field_validator("*")
    @classmethod
    def _finite(cls, value: object) -> object:
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            raise ValueError(FINITE)
        return value

    @classmethod
    def names(cls) -> list[str]:
        """Names of the values, without the kind."""
        return [name for name in cls.model_fields if name != "kind"]

    @classmethod
    def read(cls, kind: str, stated: Mapping[str, Any], where: str) -> Self:
        """The values of a message as they came -> typed; `PayloadError` names the first that does not belong."""
        _check_names("value", stated, cls.names(), where)
        try:
            return cls.model_validate({**stated, "kind": kind})
        except ValidationError as error:
            field, why = fault_of(error)
            name = field.split(".")[0]
            what, value = cls.model_fields[name], {**stated, "kind": kind}[name]
            wanted = what.description or (
                what.annotation.__name__ if isinstance(what.annotation, type) else what.annotation
            )
            raise PayloadError(
                f"{where}: value '{name}' is {_said(value)}, not {FINITE if why.endswith(FINITE) else wanted}; refused"
            ) from error

    @property
    def stated(self) -> dict[str, Any]:
        """As they cross."""
        return self.model_dump(exclude={"kind"})


V = TypeVar("V", bound=Values, covariant=True)


@dataclass(frozen=True)
class Message(Generic[V]):
    """A question of the server or a site's answer."""

    values: V
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """`join`, `moments`, `canary`, `train`, `watch`, `finish` or `close`."""
        return self.values.kind

    @property
    def stated(self) -> dict[str, Any]:
        """The values as they cross."""
        return self.values.stated


@dataclass(frozen=True)
class Received:
    """A message as it came: of its values nothing is known but that they are JSON."""

    kind: str
    stated: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Form(Generic[V]):
    """What a message must be: its kind, its tensors' shapes and types, its values."""

    kind: str
    tensors: Shaped
    values: type[V]

    def filled(self, known: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Message[V]:
        """A message of this form: the values that it states are taken from all that a side knows."""
        stated = {name: known[name] for name in self.values.names()}
        return Message(self.values.read(self.kind, stated, where), tensors)


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
def computed(message: Message[V], path: Path | None) -> Iterator[Message[V]]:
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
    return {ABOUT: json.dumps({"kind": message.kind, "values": message.stated}, sort_keys=True)}


def unpack(blob: Blob, form: Form[V], max_bytes: float, where: str) -> Message[V]:
    """What `pack` made -> the message, once it fills `form`; `PayloadError` naming what does not, otherwise."""
    _check_size(blobs.size_of(blob), max_bytes, where)
    return check(parsed(blob, where), form, where)


def parsed(blob: Blob, where: str) -> Received:
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
    return Received(about["kind"], about["values"], tensors)


def header(blob: Blob, where: str) -> dict[str, Any]:
    """Kind and values of a message, its tensors unread."""
    try:
        about = json.loads(blobs.MessageHeader.of(blob).stated["__metadata__"][ABOUT])
        if not isinstance(about["kind"], str) or not isinstance(about["values"], dict):
            raise TypeError("kind or values")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PayloadError(f"{where}: not a message of ours (no header); refused") from error
    return about


def check(message: Message | Received, form: Form[V], where: str) -> Message[V]:
    """The message with the values that `form` has; `PayloadError` for the first thing in it that `form` does not allow."""
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
    return Message(form.values.read(message.kind, message.stated, where), message.tensors)


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
    length = float(lengths(after, before).max())
    if not length <= longest:
        raise PayloadError(
            f"{where}: an update of length {length:.3g}, more than the {longest:g} of max_update; refused"
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, names sorted, in hex."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        value = blobs.part_of(tensors, name)
        sha256.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        for chunk in blobs.chunks_of(value):
            sha256.update(chunk)
    return sha256.hexdigest()


def content_digest(message: Message | Received) -> str:
    """SHA-256 of all of a message but the head of its sender's ledger and its signature."""
    values = {name: value for name, value in message.stated.items() if name not in {"ledger", "signature"}}
    whole = f"{message.kind}|{json.dumps(values, sort_keys=True)}|{digest(message.tensors)}"
    return hashlib.sha256(whole.encode()).hexdigest()


def _fits(shape: tuple[int, ...], allowed: tuple[int, ...]) -> bool:
    """-1 stands for any length: what is encrypted has no fixed one."""
    return len(shape) == len(allowed) and all(b in {-1, a} for a, b in zip(shape, allowed, strict=True))


def _check_size(size: int, max_bytes: float, where: str) -> None:
    if size > max_bytes:
        raise PayloadError(
            f"{where}: {size:,} bytes are more than the {int(max_bytes):,} allowed a round; raise max_mb_a_round, or "
            "take a smaller model"
        )


def _check_names(what: str, names: Collection[str], allowed: Collection[str], where: str) -> None:
    for name in names:
        if name not in allowed:
            raise PayloadError(f"{where}: {what} {_said(name)} is not on the list of what may cross; refused")
    for name in allowed:
        if name not in names:
            raise PayloadError(f"{where}: {what} '{name}' is missing; refused")


def _described(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def fault_of(error: ValidationError) -> tuple[str, str]:
    """Place of the first fault that pydantic found, and what is wrong there: one line, without the value, which may be secret."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return ascii(".".join(map(str, fault["loc"])))[1:-1][:LONGEST_QUOTE], fault["msg"]


def _said(value: object) -> str:
    """What the other side wrote, fit for a line of a log: no character of a language, no line break, no more than a line."""
    text = ascii(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
