"""Adam, AdamW and SGD on rows of parameters: every model has its own learning rate, decay and step count."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mil.registry import Registry

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Kingma & Ba 2015, and PyTorch's defaults


@dataclass
class OptimiserState:
    """Of rows (models, size): both moments, and the steps taken (models,)."""

    first: Tensor
    second: Tensor
    steps: Tensor

    @classmethod
    def zeros(cls, rows: Tensor) -> "OptimiserState":
        """Before the first step."""
        return cls(torch.zeros_like(rows), torch.zeros_like(rows), torch.zeros(len(rows), 1, dtype=torch.float64))

    def __getitem__(self, chosen: slice) -> "OptimiserState":
        return OptimiserState(self.first[chosen], self.second[chosen], self.steps[chosen])


OPTIMISERS: Registry = Registry("optimiser")


@OPTIMISERS.register("adamw")
def adamw(rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor, decay: Tensor) -> None:
    """One step in place; decay acts on the weights themselves (Loshchilov & Hutter 2019). lr, decay (models, 1)."""
    rows.mul_(1 - lr * decay)
    _adam_step(rows, gradient, state, lr)


@OPTIMISERS.register("adam")
def adam(rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor, decay: Tensor) -> None:
    """One step in place; decay is part of the gradient."""
    _adam_step(rows, gradient.add_(rows * decay), state, lr)


@OPTIMISERS.register("sgd")
def sgd(rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor, decay: Tensor) -> None:
    """One plain step in place; decay is part of the gradient."""
    state.steps += 1
    rows.sub_(gradient.add_(rows * decay).mul_(lr))


def _adam_step(rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor) -> None:
    state.steps += 1
    correction1 = (1 - BETA1**state.steps).to(rows.dtype).to(rows.device)
    correction2 = (1 - BETA2**state.steps).to(rows.dtype).to(rows.device)
    state.first.lerp_(gradient, 1 - BETA1)
    state.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    scale = state.second.div(correction2).sqrt_().add_(EPSILON)
    rows.sub_(state.first.div(scale).mul_(lr / correction1))
