"""Adam, AdamW and SGD on rows of parameters: every model has its own learning rate, decay and step count."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Kingma & Ba 2015, and PyTorch's defaults


@dataclass
class OptimiserState:
    """Of rows (models, size): both moments (sgd: the velocity in the first), and the steps taken (models, 1)."""

    first: Tensor
    second: Tensor
    steps: Tensor

    @classmethod
    def zeros(cls, rows: Tensor, second: bool = True) -> "OptimiserState":
        """Before the first step; without `second` that moment takes no memory."""
        return cls(
            torch.zeros_like(rows),
            torch.zeros_like(rows) if second else rows.new_zeros((len(rows), 1)),
            torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device),
        )

    def __getitem__(self, chosen: slice | Tensor) -> "OptimiserState":
        return OptimiserState(self.first[chosen], self.second[chosen], self.steps[chosen])

    def put(self, where: Tensor, some: "OptimiserState") -> None:
        """Write the states of the models numbered `where` back."""
        self.first[where], self.second[where], self.steps[where] = some.first, some.second, some.steps


Step = Callable[[Tensor, Tensor, OptimiserState, Tensor, Tensor, float], None]
"""(rows, gradient, state, lr (models, 1), decay (models, 1), momentum): one step in place; the gradient is used up."""


def adamw(
    rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor, decay: Tensor, momentum: float = 0.0
) -> None:
    """Adam; decay acts on the weights themselves (Loshchilov & Hutter 2019)."""
    rows.mul_(1 - lr * decay)
    _adam_step(rows, gradient, state, lr)


def adam(
    rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor, decay: Tensor, momentum: float = 0.0
) -> None:
    """Adam; decay is part of the gradient."""
    _adam_step(rows, gradient.addcmul_(rows, decay), state, lr)


def sgd(
    rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor, decay: Tensor, momentum: float = 0.0
) -> None:
    """Gradient descent, with momentum as PyTorch has it; decay is part of the gradient."""
    state.steps += 1
    gradient.addcmul_(rows, decay)
    if momentum:
        gradient = state.first.mul_(momentum).add_(gradient)
    rows.addcmul_(gradient, lr, value=-1)


OPTIMISERS: dict[str, Step] = {"adamw": adamw, "adam": adam, "sgd": sgd}


def clip(gradient: Tensor, longest: float) -> None:
    """Shorten each model's gradient (models, size) to norm `longest`, in place, as PyTorch's `clip_grad_norm_`."""
    norm = gradient.square().sum(-1, keepdim=True).sqrt()
    gradient.mul_((longest / (norm + 1e-6)).clamp(max=1))


def schedule(kind: str, done: int, rounds: int, warmup: int) -> float:
    """What the learning rate is multiplied with in the round after `done` rounds of at most `rounds`."""
    rise = min(1.0, (done + 1) / (warmup + 1))
    share = done / rounds
    fall = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[kind]
    return rise * fall


def _adam_step(rows: Tensor, gradient: Tensor, state: OptimiserState, lr: Tensor) -> None:
    """x <- x - lr m' / (sqrt(v') + epsilon) with m', v' the corrected moments, in few passes over the rows."""
    state.steps += 1
    state.first.lerp_(gradient, 1 - BETA1)
    state.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    stretch = (1 - BETA1**state.steps) / lr.double()
    slope = (stretch / (1 - BETA2**state.steps).sqrt()).to(rows.dtype)
    # A compiled step reuses memory by itself, and stops at `out=`.
    root = state.second.sqrt() if torch.compiler.is_compiling() else torch.sqrt(state.second, out=gradient)
    scale = root.mul_(slope).add_((EPSILON * stretch).to(rows.dtype))
    rows.addcdiv_(state.first, scale, value=-1)
