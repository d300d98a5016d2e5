"""Kinds of endpoint: by what each is measured, with intervals over patients."""

from mil.endpoints.kinds import binary, multiclass, regression, survival
from mil.endpoints.kinds.kind import KINDS, Kind, Measure, Pair, build_kind, scope_columns

__all__ = ["KINDS", "MODULES", "Kind", "Measure", "Pair", "build_kind", "scope_columns"]
MODULES = (binary, multiclass, survival, regression)  # importing them fills KINDS
