"""Registry of heads: a bag's tiles -> logits. Importing this package registers every head."""

from mil.config import ModelSpec
from mil.models import gated_attention, mean  # noqa: F401  registering
from mil.models.head import HEADS, Head, Output, attention_of

__all__ = ["HEADS", "Head", "Output", "attention_of", "build"]


def build(spec: ModelSpec, width: int, outputs: int) -> Head:
    """The head of `spec` for tiles of `width` numbers and `outputs` logits."""
    return HEADS[spec.name](spec, width, outputs)
