"""What sites sent -> sums over sites and steps of the server: functions of named tensors, for one model.

The site axis comes first. Sums are exact (`mil.strategies.fixed_point`) and cast once. No torch is imported: see `mil.strategies.strategy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mil.strategies.fixed_point import exact_sum

if TYPE_CHECKING:
    from torch import Tensor

    from mil.strategies.strategy import Answers


def weighted_change(state: Mapping[str, Tensor], answers: Answers) -> dict[str, Tensor]:
    """Weighted mean over sites of (site's state - state), float64."""
    return {name: weighted_sum(answers.states[name].double() - value, answers.weights) for name, value in state.items()}


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over sites of weight x value: (sites, *shape), (sites,) -> (*shape) float64, the same in any order of sites."""
    return exact_sum(values.double() * weights.view(-1, *[1] * (values.dim() - 1)))


def moved(state: Mapping[str, Tensor], change: Mapping[str, Tensor], rate: float = 1.0) -> dict[str, Tensor]:
    """state + rate x change, summed in float64 and cast once."""
    return {name: (value.double() + rate * change[name]).to(value.dtype) for name, value in state.items()}


def zeros(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float64 zeros of the shapes of `state`."""
    return {name: value.double().new_zeros(value.shape) for name, value in state.items()}


def middle(values: Tensor, cut: int) -> Tensor:
    """Mean over sites, number by number, without the `cut` lowest and highest: (sites, *shape) -> (*shape) float64."""
    ordered = values.double().sort(dim=0).values
    return ordered[cut : len(ordered) - cut].mean(0)
