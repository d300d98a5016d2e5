"""Tissue methods by name."""

from collections.abc import Callable

import numpy as np

from mil.config import TissueSpec
from mil.registry import Registry

TissueMethod = Callable[[np.ndarray, float, TissueSpec], np.ndarray]

TISSUE: Registry[TissueMethod] = Registry("tissue method")
