"""The axis of models: their parameters and settings, row by row, and what each does in a round."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mil.training.optimisers import clip


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
        settings = (part[chosen] for part in (self.lr, self.decay, self.balance))
        return Learners(
            self.rows[chosen], buffers, *settings, *(None if part is None else part[chosen] for part in rest)
        )

    def bend(self, gradient: Tensor, clip_norm: float | None) -> None:
        """Add to the gradients (learners, size) what the strategy adds, then shorten them to `clip_norm`, in place."""
        if self.pull is not None and self.anchor is not None:
            gradient += self.pull * (self.rows - self.anchor)
        if self.shift is not None:
            gradient += self.shift
        if clip_norm is not None:
            clip(gradient, clip_norm)


@dataclass(frozen=True)
class Plan:
    """What a learner does in a round: its batches of places, and the seed of its dropout."""

    batches: Sequence[np.ndarray] = ()
    stream: int = 0
