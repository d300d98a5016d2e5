"""Registry of heads: a bag's tiles -> logits. Importing this package registers every head."""

from mil.models import attention, chowder, clam, clinical, dsmil, pooling, transmil  # noqa: F401  registering
from mil.models.covariates import WithCovariates
from mil.models.head import HEADS, Head, Output
from mil.models.user import UserHead
from mil.specs.models import ModelSpec, UserHeadSpec

__all__ = ["HEADS", "Head", "Output", "build"]


def build(spec: ModelSpec, width: int, outputs: int, covariates: int = 0) -> Head:
    """The head of `spec` for tiles of `width` numbers and `outputs` logits, with late fusion of `covariates` numbers."""
    own = isinstance(spec, UserHeadSpec)
    head = UserHead(spec, width, outputs) if own else HEADS[spec.name](spec, width, outputs)
    return WithCovariates(head, covariates, outputs) if covariates else head
