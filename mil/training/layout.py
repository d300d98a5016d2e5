"""Named tensors <-> one flat row a model, so that a model's optimiser step and hash touch one stretch of memory."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class Layout:
    """Where each named tensor lies in the row; names in sorted order."""

    def __init__(self, example: Mapping[str, np.ndarray]) -> None:
        self.shapes = {name: example[name].shape for name in sorted(example)}
        self.places: dict[str, slice] = {}
        start = 0
        for name, shape in self.shapes.items():
            self.places[name] = slice(start, start + int(np.prod(shape)))
            start = self.places[name].stop
        self.size = start

    def flat(self, named: Mapping[str, np.ndarray]) -> np.ndarray:
        """Named arrays of one model -> its row (size,)."""
        return np.concatenate([np.asarray(named[name], np.float32).ravel() for name in self.shapes])

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (models, size) -> views (models, *shape) on the same memory."""
        return {
            name: rows[:, place].view(len(rows), *self.shapes[name])
            if len(rows)
            else torch.empty(0, *self.shapes[name])
            for name, place in self.places.items()
        }
