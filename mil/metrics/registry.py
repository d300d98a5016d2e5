"""Metrics of a binary endpoint by name; each takes labels (n,), scores (n,) and weights (resamples, n)."""

from mil.metrics.bootstrap import Metric
from mil.registry import Registry

METRICS: Registry[Metric] = Registry("metric")
