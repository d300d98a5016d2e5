"""Metrics of a binary endpoint by name; each takes labels (n,), scores (n,) and weights (resamples, n)."""

from mil.registry import Registry
from mil.statistics.bootstrap import Metric

METRICS: Registry[Metric] = Registry("metric")
