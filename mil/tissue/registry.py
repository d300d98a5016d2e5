"""Tissue methods by name."""

from collections.abc import Callable

import numpy as np

from mil.registry import Registry
from mil.specs.slides import TissueSpec

TissueMethod = Callable[[np.ndarray, float, TissueSpec], np.ndarray]

TISSUE: Registry[TissueMethod] = Registry("tissue method")
