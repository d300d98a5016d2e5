"""Heads: a bag's tiles -> logits. A file each, found by `HEADS.register`; nothing else lists them."""

from importlib import import_module
from pkgutil import iter_modules

from mil.models.covariates import WithCovariates
from mil.models.head import HEADS, Head, Output
from mil.models.user import UserHead
from mil.specs.models import ModelSpec, UserHeadSpec

__all__ = ["HEADS", "Head", "Output", "build"]
for module in iter_modules(__path__, f"{__name__}."):  # importing a head's module enters it into HEADS
    import_module(module.name)


def build(spec: ModelSpec, width: int, outputs: int, covariates: int = 0) -> Head:
    """The head of `spec` for tiles of `width` numbers and `outputs` logits, with late fusion of `covariates` numbers."""
    from_file = isinstance(spec, UserHeadSpec)
    head = UserHead(spec, width, outputs) if from_file else HEADS[spec.name](spec, width, outputs)
    return WithCovariates(head, covariates, outputs) if covariates else head
