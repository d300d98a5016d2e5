"""What is known of an encoder before its weights are read: an entry of the table, and the built encoder. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mil.encoders.sources import Source

if TYPE_CHECKING:
    import torch

RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What an encoder takes and returns, and how tiles become its input."""

    name: str
    width: int
    """Length of a tile's vector."""
    input_px: int | None
    """Side of the input; tiles of another size are resized on the device. None: tiles as they are read."""
    resize_px: int | None = None
    """Side that tiles are resized to before the middle `input_px` are cut out; None: `input_px`, nothing is cut."""
    mean: RGB
    std: RGB
    """Normalisation of RGB in 0-1."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How tiles are resized (always antialiased)."""
    exact: tuple[str, ...] = ()
    """Parts of the module, by the beginning of their names, that compute in fp32 whatever the precision."""
    version: int = 1
    """Raised when the same weights would now give other features."""


@dataclass(frozen=True, kw_only=True)
class Entry(Signature):
    """An encoder of the table: besides, where its weights come from and on what terms."""

    summary: str
    make: "Callable[[], torch.nn.Module]"
    """The module with random weights: normalised (tiles, 3, input_px, input_px) -> (tiles, width)."""
    load: "Callable[[torch.nn.Module, Mapping[str, torch.Tensor]], None]"
    """Puts a state dictionary of the source into the module."""
    source: Source
    """Where its weights come from."""
    mpp: float | None
    """Microns per pixel that the encoder was trained at; None: not on slides, or at several."""
    pooling: str
    """What of the network's output becomes the vector."""
    parameters: int
    """Parameters of the module as built here."""
    published: float | None = None
    """Parameters as published, to the digits given there; None where no number was."""
    licence: str
    """Licence of the architecture's code as used here."""
    weights_licence: str
    """Licence or terms of the weights."""
    reference: str
    """Publication or model page."""

    @property
    def gated(self) -> bool:
        """Whether access to the weights must be asked for."""
        return getattr(self.source, "gated", False)


@dataclass(frozen=True, kw_only=True)
class Encoder(Signature):
    """A built encoder, ready to be put on a device."""

    weights_sha256: str
    """Hash of the weights as loaded; `none` where there are none."""
    module: "torch.nn.Module"
    """Normalised float (tiles, 3, input_px, input_px) -> (tiles, width)."""
