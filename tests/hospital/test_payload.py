"""Messages: what does not fill its form is refused in one line."""

import json
import tracemalloc
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save

from mil.hospital import messages
from mil.hospital.lines import Number
from mil.hospital.payload import (
    Form,
    Message,
    PayloadError,
    Values,
    check,
    digest,
    header,
    pack,
    unpack,
)

pytestmark = pytest.mark.slow


class Trained(Values, frozen=True):
    kind: Literal["train"]
    round: int
    loss: Number
    slots: messages.Numbers
    run: messages.NameValue
    seal: messages.Sha256


FORM = Form("train", {"weight": ((2, 3), torch.float32), "count": ((2,), torch.int64)}, Trained)
VALUES = {"round": 1, "loss": 0.5, "slots": [0, 1], "run": "first", "seal": "0" * 64}


def message(**changes) -> Message[Trained]:
    tensors = {"weight": torch.ones(2, 3), "count": torch.tensor([20, 30])}
    return FORM.filled({**VALUES, **changes.pop("values", {})}, {**tensors, **changes.pop("tensors", {})}, "site A")


def written(values: dict) -> bytes:
    """As somebody writes it who knows the format."""
    return save(
        dict(message().tensors), metadata={"mil": json.dumps({"kind": "train", "values": {**VALUES, **values}})}
    )


def test_a_message_comes_out_as_it_went_in() -> None:
    sent = message()
    blob = pack(sent, FORM, 1e6, "A")
    assert blob == pack(message(), FORM, 1e6, "A")  # the same bytes every time, so that digests compare
    received = unpack(blob, FORM, 1e6, "server")
    assert received.values == sent.values
    assert received.stated == VALUES
    assert digest(received.tensors) == digest(sent.tensors)
    assert header(blob, "A") == {"kind": "train", "values": VALUES}


def test_a_header_that_would_fill_the_memory_is_not_read() -> None:
    """As JSON, 15 MB of empty lists take 600 MB before anything of them is refused; the header of a long search has some 2 MB."""
    blob = pack(message(), FORM, 1e9, "A")
    size = int.from_bytes(blob[:8], "little")
    for more, fits in ((2**20, True), (2**22, False)):
        padded = (size + more).to_bytes(8, "little") + blob[8 : 8 + size] + b" " * more + blob[8 + size :]
        if fits:
            assert unpack(padded, FORM, 1e9, "server").stated == VALUES
        else:
            with pytest.raises(PayloadError, match="not a message of ours"):
                unpack(padded, FORM, 1e9, "server")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"embedding": torch.ones(1)}, "tensor 'embedding' is not on the list"),
        ({"weight": torch.ones(3, 2)}, r"tensor 'weight' is float32 \[3, 2\], not float32 \[2, 3\]"),
        ({"weight": torch.ones(2, 3).double()}, "is float64"),
        ({"weight": torch.tensor([[1.0, float("nan"), 0], [0, 0, 0]])}, "'weight' holds NaN or infinity"),
        ({"weight": torch.tensor([[1.0, float("-inf"), 0], [0, 0, 0]])}, "'weight' holds NaN or infinity"),
    ],
)
def test_a_tensor_that_does_not_belong_is_named(tensors: dict, said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        pack(message(tensors=tensors), FORM, 1e6, "site A")
    blob = save({**message().tensors, **tensors}, metadata={"mil": json.dumps({"kind": "train", "values": VALUES})})
    with pytest.raises(PayloadError, match=said):
        unpack(blob, FORM, 1e6, "site A")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"patient_id": "007"}, "value 'patient_id' is not on the list"),
        ({"kind": "train"}, "value 'kind' is not on the list"),
        ({"round\n": 1}, r"value 'round\\n' is not on the list"),
        ({"round": "one"}, "value 'round' is 'one', not int"),
        ({"round": True}, "value 'round'"),
        ({"loss": float("nan")}, "value 'loss' is nan, not a finite number"),
        ({"loss": 10**400}, "value 'loss' is 1000"),
        ({"round": 10**400}, "value 'round' is 10+..., not a finite number"),
        ({"loss": True}, "value 'loss' is True"),
        ({"loss": "0.5"}, "value 'loss'"),
        ({"slots": [0.5]}, "value 'slots'"),
        ({"run": "Smith, John"}, "value 'run' is 'Smith, John', not a name"),
        ({"seal": "x" * 64}, "value 'seal' is 'x+', not a SHA-256"),
    ],
)
def test_a_value_that_does_not_belong_is_named(values: dict, said: str) -> None:
    with pytest.raises(PayloadError, match=f"site A: {said}") as caught:
        unpack(written(values), FORM, 1e6, "site A")
    assert len(str(caught.value).splitlines()) == 1
    if set(values) <= set(VALUES):
        with pytest.raises(PayloadError, match=f"site A: {said}"):
            message(values=values)


def test_a_value_of_a_thousand_faults_is_refused_for_the_first() -> None:
    tracemalloc.start()
    with pytest.raises(PayloadError, match=r"value 'slots' is \['x', 'x'"):
        unpack(written({"slots": ["x"] * 500_000}), FORM, 1e9, "site A")
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


def test_a_value_that_is_missing_is_named() -> None:
    blob = save(dict(message().tensors), metadata={"mil": json.dumps({"kind": "train", "values": {"round": 1}})})
    with pytest.raises(PayloadError, match="value 'loss' is missing"):
        unpack(blob, FORM, 1e6, "site A")


def test_an_update_that_lost_its_tensors_is_refused() -> None:
    """FLARE drops what it takes for no tensor, with a warning, and goes on."""
    with pytest.raises(PayloadError, match="tensor 'weight' is missing"):
        check(Message(message().values, {}), FORM, "site A")


def test_too_many_bytes_are_refused_on_either_side() -> None:
    blob = pack(message(), FORM, 1e6, "A")
    for refuse in (lambda: pack(message(), FORM, len(blob) - 1, "A"), lambda: unpack(blob, FORM, len(blob) - 1, "A")):
        with pytest.raises(PayloadError, match="more than the"):
            refuse()


def test_no_text_crosses_but_names_versions_and_digests() -> None:
    """Every text of every kind of message has a pattern or is a name; a new value that is any text is found here."""
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Values)]
    assert len(kinds) > 12
    for kind in kinds:
        texts = {name for name, field in kind.model_fields.items() if "str" in str(field.annotation)} - {"kind"}
        with pytest.raises(ValidationError) as caught:
            kind.model_validate(dict.fromkeys(kind.names(), "Smith, John"))
        assert texts <= {str(error["loc"][0]) for error in caught.value.errors()}, kind


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_in_one_line(noise: bytes) -> None:
    with pytest.raises(PayloadError):
        unpack(noise, FORM, 1e6, "server")


@pytest.mark.parametrize(
    "value",
    ["1" + "0" * 400, "[" * 100_000, "NaN", "Infinity", "true", '"1"', '"' + "x" * 100_000 + '"', '"\\ud800\\n"'],
)
def test_odd_json_is_refused_in_a_short_printable_line(value: str) -> None:

    class Tile(Values, frozen=True):
        kind: Literal["join"]
        tile_mpp: Number

    form = Form("join", {}, Tile)
    for key in ("tile_mpp", "tile\\ud800"):
        about = f'{{"kind": "join", "values": {{"{key}": {value}}}}}'
        with pytest.raises(PayloadError) as caught:
            unpack(save({}, {"mil": about}), form, 1e6, "site A")
        assert len(str(caught.value)) < 200
        assert str(caught.value).isascii()
        assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_still_fills_the_form(place: int, value: int) -> None:
    blob = bytearray(pack(message(), FORM, 1e6, "A"))
    blob[place % len(blob)] = value
    try:
        received = unpack(bytes(blob), FORM, 1e6, "server")
    except PayloadError:
        return
    check(received, FORM, "server")
