"""A federated strategy, then local work at each site."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mil.strategies.fedavg import FedAvg
from mil.strategies.strategy import Strategy

if TYPE_CHECKING:
    FederatedSpec = Strategy


class Finetune(Strategy):
    """Any federated strategy, then some rounds of local work on each site's patients: one model for each site."""

    name: Literal["finetune"] = "finetune"
    title = "FedAvg, fine-tuned"
    colour = "#8a6d00"
    personal = True
    between_hospitals = True

    epochs: int = Field(default=5, ge=1)
    """Rounds of local work after the last round: epochs, where `local_epochs` is 1."""
    base: "FederatedSpec" = FedAvg()

    @property
    def of_rounds(self) -> Strategy:
        """`base`."""
        return self.base

    @property
    def finetune_epochs(self) -> int:
        """`epochs`."""
        return self.epochs

    def at_rate(self, server_lr: float | None) -> Strategy:
        """With another rate of the base."""
        return self.model_copy(update={"base": self.base.at_rate(server_lr)})
