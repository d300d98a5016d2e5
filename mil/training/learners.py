"""The axis of models: their parameters and settings, row by row, and what each does in a round."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass
class Learners:
    """Rows of all learners: parameters (learners, size), and the buffers and settings (learners, ...) that go with them."""

    rows: Tensor
    buffers: dict[str, Tensor]
    """By name: mean and deviation of the features, of the covariates, of the target."""
    lr: Tensor
    decay: Tensor
    balance: Tensor
    """Weight of each class in the loss (learners, classes)."""
    pull: Tensor | None = None
    """FedProx's mu (learners, 1), towards `anchor`."""
    anchor: Tensor | None = None
    shift: Tensor | None = None
    """Added to every gradient: SCAFFOLD's c - c_i."""

    def __getitem__(self, chosen: slice | Tensor) -> "Learners":
        rest = (self.pull, self.anchor, self.shift)
        buffers = {name: buffer[chosen] for name, buffer in self.buffers.items()}
        own = (part[chosen] for part in (self.lr, self.decay, self.balance))
        return Learners(self.rows[chosen], buffers, *own, *(None if part is None else part[chosen] for part in rest))


@dataclass(frozen=True)
class Plan:
    """What a learner does in a round: its batches of places, and the seed of its dropout."""

    batches: Sequence[np.ndarray] = ()
    stream: int = 0
