"""What the server does with what the sites send: pure functions over named tensors.

Site axis first, sorted by site; any further axes (a model axis above all) ride along. Sums are in float64 and cast once,
so that the order in which sites answer changes no bit.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mil.config import FedAvgSpec, LocalSpec, PooledSpec, StrategySpec
from mil.registry import Registry

State = Mapping[str, Tensor]


class Strategy(Protocol):
    """Who trains on what, and how a round ends."""

    federated: bool
    """Sites train apart and the server aggregates; otherwise one learner sees all bags of its sites."""
    by_site: bool
    """One model a training site (True), or one for all of them."""

    def server_step(self, state: State, updates: State, weights: Tensor) -> dict[str, Tensor]:
        """The next global state from the present one and the sites' states (sites, ...), weights (sites, ...) summing to 1."""
        ...


STRATEGIES: Registry[Any] = Registry("strategy")


def build_strategy(spec: StrategySpec) -> Strategy:
    """The strategy of `spec`."""
    return STRATEGIES[spec.name](spec)


def weighted_change(state: State, updates: State, weights: Tensor) -> dict[str, Tensor]:
    """Sum over sites of weight x (site's state - state), in float64. A site of weight 0 contributes nothing at all."""
    change = {}
    for name, value in state.items():
        share = weights.double().view(*weights.shape, *[1] * (updates[name].dim() - weights.dim()))
        difference = updates[name].double() - value.double()
        change[name] = torch.where(share > 0, difference * share, 0.0).sum(0)
    return change


def shares(counts: Tensor) -> Tensor:
    """Patients a site (sites, ...) -> weights that sum to 1 over the sites, float64."""
    counts = counts.double()
    return counts / counts.sum(0)


@STRATEGIES.register("local")
class Local:
    """One model a site, on its own patients."""

    federated = False
    by_site = True

    def __init__(self, spec: LocalSpec) -> None:
        self.spec = spec

    def server_step(self, state: State, updates: State, weights: Tensor) -> dict[str, Tensor]:
        """The only site's state."""
        return {name: update[0] for name, update in updates.items()}


@STRATEGIES.register("pooled")
class Pooled:
    """One model on everybody's patients."""

    federated = False
    by_site = False

    def __init__(self, spec: PooledSpec) -> None:
        self.spec = spec

    def server_step(self, state: State, updates: State, weights: Tensor) -> dict[str, Tensor]:
        """The only learner's state."""
        return {name: update[0] for name, update in updates.items()}


@STRATEGIES.register("fedavg")
class FedAvg:
    """x <- x + sum of w_i (y_i - x) with w_i the site's share of the patients (McMahan et al. 2017)."""

    federated = True
    by_site = False

    def __init__(self, spec: FedAvgSpec) -> None:
        self.spec = spec

    def server_step(self, state: State, updates: State, weights: Tensor) -> dict[str, Tensor]:
        """The patient-weighted mean."""
        change = weighted_change(state, updates, weights)
        return {name: (value.double() + change[name]).to(value.dtype) for name, value in state.items()}
