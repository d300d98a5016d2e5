"""Federated averaging with a proximal term at the sites."""

from typing import Literal

from pydantic import Field

from mil.strategies.strategy import WeightedSum


class FedProx(WeightedSum):
    """Federated averaging whose sites are pulled towards the global model (Li et al. 2020)."""

    name: Literal["fedprox"] = "fedprox"
    title = "FedProx"
    colour = "#009e73"

    mu: float = Field(default=0.01, ge=0)
    """The loss gets mu/2 times the squared distance to the global model."""

    @property
    def pull(self) -> float:
        """`mu`."""
        return self.mu
