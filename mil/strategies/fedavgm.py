"""Federated averaging with momentum at the server."""

from typing import Literal

from mil.strategies.aggregation import State, moved, zeros
from mil.strategies.strategy import Decay, ServerRate, Stepped, server_part, server_tensors


class FedAvgM(ServerRate):
    """Federated averaging with momentum at the server (Hsu et al. 2019): v <- momentum v - change; x <- x - server_lr v."""

    name: Literal["fedavgm"] = "fedavgm"
    title = "FedAvgM"
    colour = "#00305c"

    momentum: Decay = 0.9

    def begin(self, state: State):
        """Velocity zero."""
        return server_tensors("velocity", zeros(state))

    def step(self, state: State, server: State, change: State) -> Stepped:
        """Momentum."""
        velocity = {
            name: self.momentum * value - change[name] for name, value in server_part(server, "velocity").items()
        }
        return moved(state, velocity, -self.server_lr), server_tensors("velocity", velocity)
