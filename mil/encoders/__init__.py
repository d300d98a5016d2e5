"""A name -> a frozen encoder: tile in, vector out."""

from mil.config import EncoderSpec
from mil.encoders import colour, efficientnet  # noqa: F401  they enter themselves into the registry
from mil.encoders.entry import ENCODERS, Encoder, Entry
from mil.encoders.weights import NoWeights, checked, read_state

__all__ = ["ENCODERS", "Encoder", "Entry", "build"]


def build(spec: EncoderSpec) -> Encoder:
    """The encoder that `spec` names, its weights loaded and their hash checked, on the CPU and in evaluation mode."""
    entry = ENCODERS[spec.name]
    module = entry.make()
    sha256 = "none"
    if not isinstance(entry.source, NoWeights):
        path = entry.source.locate()
        sha256 = checked(path, entry.source.sha256)
        entry.load(module, read_state(path))
    module.requires_grad_(False).eval()
    return Encoder(
        name=entry.name,
        width=entry.width,
        input_px=entry.input_px,
        mean=entry.mean,
        std=entry.std,
        interpolation=entry.interpolation,
        weights_sha256=sha256,
        module=module,
    )
