"""What is known of an encoder before its weights are there: the registry's entry and the built encoder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from mil.encoders.state import StateDict, load_strictly
from mil.encoders.weights import NoWeights, Source
from mil.registry import Registry

RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
HALF: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One encoder's card: what it takes, what it gives, where its weights come from and on what terms."""

    name: str
    summary: str
    make: Callable[[], torch.nn.Module]
    """The module with random weights: normalised (tiles, 3, input_px, input_px) -> (tiles, width)."""
    width: int
    """Length of a tile's vector."""
    input_px: int | None
    """Side of the input; tiles of another size are resized on the device. None: tiles as they are read."""
    resize_px: int | None = None
    """Side that tiles are resized to before the middle `input_px` are cut out; None: `input_px`, nothing is cut."""
    mean: RGB
    std: RGB
    """Normalisation of RGB in 0-1."""
    mpp: float | None
    """Microns a pixel that the encoder was trained at; None: not on slides, or at several."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How tiles are resized (always antialiased)."""
    pooling: str
    """What of the network's output becomes the vector."""
    parameters: int
    """Parameters of the module as built here."""
    published: float | None = None
    """Parameters as published, to the digits given there; None where no number was."""
    source: Source = field(default_factory=NoWeights)
    """Where its weights come from."""
    load: Callable[[torch.nn.Module, StateDict], None] = load_strictly
    """Puts a state dictionary of the source into the module."""
    exact: tuple[str, ...] = ()
    """Parts of the module, by the beginning of their names, that compute in fp32 whatever the precision."""
    version: int = 1
    """Raised when the same weights would now give other features."""
    licence: str
    """Licence of the architecture's code as used here."""
    weights_licence: str
    """Licence or terms of the weights."""
    reference: str
    """Publication or model card."""


ENCODERS: Registry[Entry] = Registry("encoder")


def enter(entry: Entry) -> None:
    """Put an entry into the registry under its own name."""
    ENCODERS.register(entry.name)(entry)


@dataclass(frozen=True)
class Encoder:
    """A built encoder, ready to be put on a device."""

    name: str
    width: int
    input_px: int | None
    resize_px: int | None
    mean: RGB
    std: RGB
    interpolation: Literal["bilinear", "bicubic"]
    weights_sha256: str
    """Hash of the weights as loaded; `none` where there are none."""
    module: torch.nn.Module
    """Normalised float (tiles, 3, input_px, input_px) -> (tiles, width)."""
    exact: tuple[str, ...] = ()
    version: int = 1
