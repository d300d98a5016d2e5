"""tiles -> features: every tile of a slide as an encoder's vector, one checksummed file a slide."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mil.features.engine import EncoderEngine
    from mil.features.shard import extract_shard

__all__ = ["EncoderEngine", "extract_shard"]

HOMES = {"EncoderEngine": "mil.features.engine", "extract_shard": "mil.features.shard"}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: reader processes live in this package too and do without torch."""
    if name not in HOMES:
        raise AttributeError(f"module 'mil.features' has no attribute '{name}'")
    return getattr(import_module(HOMES[name]), name)
