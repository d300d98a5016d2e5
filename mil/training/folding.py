"""The scaling of features inside the weights of the layers that read tiles: W / sd and b - W mean / sd, and back for gradients.

A bag is then read as it lies in memory, by all models that hold it, without a scaled copy for each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mil.models.head import Head
from mil.training.data import PARTS
from mil.training.layout import RowLayout
from mil.training.learners import Learners
from mil.training.sources import Centre


@dataclass(frozen=True)
class Folding:
    """Of one head over tiles that lie on the device centred and divided by `centre`."""

    head: Head
    layout: RowLayout
    centre: Centre | None
    dtype: torch.dtype
    """Type of the numbers in matrix products."""

    def folds(self, learners: Learners) -> bool:
        """Whether the scaling is in the weights; not where the head reads tiles in other ways or every site has its own."""
        return bool(self.head.on_tiles) and learners.buffers["features.mean"].dim() == 2

    def scale(self, learners: Learners) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the features as the tiles lie on the device."""
        mean, deviation = (learners.buffers[f"features.{name}"] for name in PARTS)
        if self.centre is None:
            return mean, deviation
        middle, unit = self.centre
        return (mean - middle) / unit, deviation / unit

    def weights(self, learners: Learners) -> dict[str, Tensor]:
        """Weights by name (learners, *shape) in the type of the products, with the scaling where that is possible."""
        weights = dict(self.layout.views(learners.rows))
        if self.folds(learners):
            mean, deviation = self.scale(learners)
            for layer in self.head.on_tiles:
                weight = weights[f"{layer.name}.weight"] / deviation.unsqueeze(1)
                shift = torch.bmm(weight, mean.unsqueeze(-1)).squeeze(-1)
                weights |= {f"{layer.name}.weight": weight, f"{layer.name}.bias": weights[f"{layer.name}.bias"] - shift}
        dtype = self.dtype if self.head.on_tiles else torch.float32
        return {name: value.to(dtype) for name, value in weights.items()}

    def unfold(self, gradient: Tensor, learners: Learners) -> None:
        """The gradient (learners, size) of those weights -> that of the learners' rows, in place."""
        if not self.folds(learners):
            return
        mean, deviation = self.scale(learners)
        views = self.layout.views(gradient)
        for layer in self.head.on_tiles:
            bias = views[f"{layer.name}.bias"].unsqueeze(-1)
            views[f"{layer.name}.weight"].addcmul_(bias, mean.unsqueeze(1), value=-1).div_(deviation.unsqueeze(1))
