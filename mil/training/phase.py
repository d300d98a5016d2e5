"""Where a phase of a run stands between two rounds."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mil.training.learners import Learners
from mil.training.optimisers import OptimiserState


@dataclass
class Phase:
    """Where a phase stands: everything that the next round needs."""

    rows: Tensor
    """Global models (tasks, size)."""
    learners: Learners
    """Models at the sites (tasks x sites, size), with their buffers."""
    state: OptimiserState
    server: dict[str, Tensor]
    """The strategy's tensors (tasks, ...) by name."""
    controls: Tensor | None
    """SCAFFOLD: the sites' control variates (tasks x sites, size)."""
    live: np.ndarray
    """Tasks that are still training."""
