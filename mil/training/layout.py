"""Named tensors <-> one flat row a model, so that a model's optimiser step and hash touch one stretch of memory."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class RowLayout:
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
        """Rows (models, size) or (models, sites, size) -> views (models, [sites,] *shape) on the same memory."""
        return {
            name: rows[..., columns].view(*rows.shape[:-1], *self.shapes[name])
            if len(rows)
            else torch.empty(*rows.shape[:-1], *self.shapes[name])
            for name, columns in self.places.items()
        }

    def rows(self, named: Mapping[str, Tensor]) -> Tensor:
        """Named tensors (models, *shape) -> rows (models, size)."""
        return torch.cat([named[name].flatten(1) for name in self.shapes], dim=1)
