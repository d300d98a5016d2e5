"""Adam at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mil.strategies.adaptive import Adaptive
from mil.strategies.aggregation import State
from mil.strategies.strategy import Stepped

if TYPE_CHECKING:
    from torch import Tensor


class FedAdam(Adaptive):
    """Adam at the server (Reddi et al. 2021)."""

    name: Literal["fedadam"] = "fedadam"
    title = "FedAdam"
    colour = "#7570b3"

    def begin(self, state: State) -> dict[str, Tensor]:
        """Both moments and, to be like Adam, the number of rounds with an answer ()."""
        begun = super().begin(state)
        if self.like == "adam":
            begun["rounds"] = next(iter(begun.values())).new_zeros(())
        return begun

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Moving mean."""
        return self.beta2 * old + (1 - self.beta2) * square

    def correction(self, server: State) -> float | Tensor:
        """Adam's, for the round that is being taken."""
        if self.like == "reddi":
            return 1.0
        rounds = server["rounds"] + 1
        return (1 - self.beta2**rounds).sqrt() / (1 - self.beta1**rounds)

    def step(self, state: State, server: State, change: State) -> Stepped:
        """As `Adaptive`, and the round is counted."""
        state, after = super().step(state, server, change)
        return state, after | {name: value + 1 for name, value in server.items() if name == "rounds"}
