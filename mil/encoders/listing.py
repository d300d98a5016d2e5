"""The table of encoders as people read it: rows of `mil encoders list`, and the entry of one encoder as text. No torch."""

from typing import Any

from mil.encoders.entry import Entry
from mil.encoders.sources import HubFile
from mil.encoders.table import ENCODERS, resolve


def list_encoders() -> list[dict[str, Any]]:
    """A row per registered encoder, by name: what it takes and returns, and on what terms."""
    return [
        {
            "name": name,
            "width": entry.width,
            "input_px": entry.input_px,
            "mpp": entry.mpp,
            "parameters": entry.parameters,
            "gated": entry.gated,
            "pinned": entry.source.pinned,
            "weights_licence": entry.weights_licence,
            "source": entry.source.describe(),
            "summary": entry.summary,
        }
        for name in sorted(ENCODERS)
        for entry in [ENCODERS[name]]
    ]


def show_encoder(name: str) -> str:
    """One encoder's entry as text, a line per property."""
    entry = ENCODERS[name] if ":" not in name else _generic(name)
    lines = {
        "name": entry.name,
        "summary": entry.summary,
        "input": "tiles as they are read" if entry.input_px is None else _input(entry),
        "normalisation": f"mean {entry.mean}, sd {entry.std} of RGB in 0-1",
        "trained at": "several resolutions, or not on slides"
        if entry.mpp is None
        else f"{entry.mpp} microns per pixel",
        "output": f"{entry.width} numbers: {entry.pooling}",
        "parameters": f"{entry.parameters:,}",
        "weights": entry.source.describe(),
        "version": entry.source.pin(),
        "access": f"ask at {entry.source.page}" if isinstance(entry.source, HubFile) and entry.gated else "open",
        "licence": f"code {entry.licence}; weights {entry.weights_licence}",
        "reference": entry.reference,
    }
    return "\n".join(f"{key:14s} {value}" for key, value in lines.items())


def _generic(name: str) -> Entry:
    from mil.config import EncoderSpec

    return resolve(EncoderSpec(name=name))


def _input(entry: Entry) -> str:
    cut = f"resized to {entry.resize_px} px and cut to " if entry.resize_px else "resized to "
    return f"{cut}{entry.input_px} px ({entry.interpolation}, antialiased)"
