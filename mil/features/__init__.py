"""tiles -> features: every tile of a slide as an encoder's vector, one checksummed file a slide."""

from mil.features.engine import Engine
from mil.features.shard import extract_shard

__all__ = ["Engine", "extract_shard"]
