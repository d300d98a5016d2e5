"""What sites sent -> sums over sites and steps of the server: functions of named tensors, for one model.

The site axis comes first. Sums are exact (`mil.strategies.fixed_point`) and cast once. No torch is imported: see `mil.strategies.strategy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mil.strategies.fixed_point import WIDE, FixedPoint

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""Tensors of one model by name, or of the sites' (sites, *shape)."""


@dataclass(frozen=True)
class Answers:
    """What the sites sent in a round: those that answered, one or more, in the order of their names."""

    states: State
    """The sites' models (sites, *shape)."""
    amounts: Tensor
    """What each site counts (sites,) float64: its training patients, or 1 where sites count alike."""
    total: Tensor | None = None
    """Sum of the amounts of all training sites, whether they answered or not, () float64. Control variates need it."""
    controls: State = field(default_factory=dict)
    """SCAFFOLD: change of the sites' control variates (sites, *shape)."""

    @property
    def weights(self) -> Tensor:
        """Share of each site (sites,) float64, summing to 1."""
        return self.amounts / self.amounts.sum()


def weighted_change(state: State, answers: Answers, fixed: FixedPoint = WIDE) -> dict[str, Tensor]:
    """Weighted mean over sites of (site's state - state), float64."""
    sites = answers.states
    return {name: weighted_sum(sites[name].double() - value, answers.weights, fixed) for name, value in state.items()}


def weighted_sum(values: Tensor, weights: Tensor, fixed: FixedPoint = WIDE) -> Tensor:
    """Sum over sites of weight x value: (sites, *shape), (sites,) -> (*shape) float64, the same in any order of sites."""
    return fixed.sum(values.double(), weights.view(-1, *[1] * (values.dim() - 1)))


def moved(state: State, change: State, rate: float = 1.0) -> dict[str, Tensor]:
    """state + rate x change, summed in float64 and cast once."""
    return {name: (value.double() + rate * change[name]).to(value.dtype) for name, value in state.items()}


def zeros(state: State) -> dict[str, Tensor]:
    """float64 zeros of the shapes of `state`."""
    return {name: value.double().new_zeros(value.shape) for name, value in state.items()}


def middle(values: Tensor, cut: int) -> Tensor:
    """Mean over sites, number by number, without the `cut` lowest and highest: (sites, *shape) -> (*shape) float64."""
    ordered = values.double().sort(dim=0).values
    return ordered[cut : len(ordered) - cut].mean(0)
