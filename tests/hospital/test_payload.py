"""Messages: what does not fill its form is refused in one line."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mil.hospital.forms import JOIN_ANSWER
from mil.hospital.payload import (
    NAME,
    SHA256,
    Form,
    Message,
    PayloadError,
    check,
    digest,
    header,
    pack,
    unpack,
)

pytestmark = pytest.mark.slow

FORM = Form(
    "train",
    {"weight": ((2, 3), torch.float32), "count": ((2,), torch.int64)},
    {"round": int, "loss": (float, type(None)), "slots": list[int], "run": NAME, "seal": SHA256},
)
VALUES = {"round": 1, "loss": 0.5, "slots": [0, 1], "run": "first", "seal": "0" * 64}


def message(**changes) -> Message:
    tensors = {"weight": torch.ones(2, 3), "count": torch.tensor([20, 30])}
    return Message("train", {**VALUES, **changes.pop("values", {})}, {**tensors, **changes.pop("tensors", {})})


def test_a_message_comes_out_as_it_went_in() -> None:
    sent = message()
    blob = pack(sent, FORM, 1e6, "A")
    assert blob == pack(message(), FORM, 1e6, "A")  # the same bytes every time, so that digests compare
    received = unpack(blob, FORM, 1e6, "server")
    assert received.values == sent.values
    assert digest(received.tensors) == digest(sent.tensors)
    assert header(blob, "A") == {"kind": "train", "values": VALUES}


def test_a_header_that_would_fill_the_memory_is_not_read() -> None:
    """As JSON, 15 MB of empty lists take 600 MB before anything of them is refused; the header of a long search has some 2 MB."""
    blob = pack(message(), FORM, 1e9, "A")
    size = int.from_bytes(blob[:8], "little")
    for more, fits in ((2**20, True), (2**22, False)):
        padded = (size + more).to_bytes(8, "little") + blob[8 : 8 + size] + b" " * more + blob[8 + size :]
        if fits:
            assert unpack(padded, FORM, 1e9, "server").values == VALUES
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
        ({"round": "one"}, "value 'round' is 'one', not int"),
        ({"round": True}, "value 'round'"),
        ({"loss": float("nan")}, "value 'loss'"),
        ({"loss": "0.5"}, "value 'loss'"),
        ({"slots": [0.5]}, "value 'slots'"),
        ({"run": "Smith, John"}, "value 'run' is 'Smith, John', not a name"),
        ({"seal": "x" * 64}, "not a SHA-256"),
    ],
)
def test_a_value_that_does_not_belong_is_named(values: dict, said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        pack(message(values=values), FORM, 1e6, "site A")


def test_an_update_that_lost_its_tensors_is_refused() -> None:
    """FLARE drops what it takes for no tensor, with a warning, and goes on."""
    with pytest.raises(PayloadError, match="tensor 'weight' is missing"):
        check(Message("train", VALUES, {}), FORM, "site A")


def test_too_many_bytes_are_refused_on_either_side() -> None:
    blob = pack(message(), FORM, 1e6, "A")
    for refuse in (lambda: pack(message(), FORM, len(blob) - 1, "A"), lambda: unpack(blob, FORM, len(blob) - 1, "A")):
        with pytest.raises(PayloadError, match="more than the"):
            refuse()


def test_no_text_crosses_but_names_versions_and_digests() -> None:
    kinds = [kind for kind in JOIN_ANSWER.values.values() if kind is str or (isinstance(kind, tuple) and str in kind)]
    assert kinds == []


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
    form = Form("join", {}, {"tile_mpp": (float, type(None))})
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
