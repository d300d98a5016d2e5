"""What the adaptive servers have in common (Reddi et al. 2021, Algorithm 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mil.strategies.aggregation import State, moved, zeros
from mil.strategies.strategy import Decay, Rate, ServerRate, Stepped, server_part, server_tensors

if TYPE_CHECKING:
    from torch import Tensor


class Adaptive(ServerRate):
    """Server optimisers without bias correction, the second moment beginning at tau squared."""

    server_lr: Rate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Rate = 1e-3
    like: Literal["reddi", "adam"] = "reddi"
    """`adam`: the second moment begins at zero, and fedadam has Adam's bias correction (Kingma and Ba 2015)."""

    def begin(self, state: State) -> dict[str, Tensor]:
        """First moment zero; second tau squared, or zero to be like Adam's."""
        start = self.tau**2 if self.like == "reddi" else 0.0
        second = {name: value + start for name, value in zeros(state).items()}
        return server_tensors("first", zeros(state)) | server_tensors("second", second)

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """The second moment after a round from that before it and the change's square."""
        raise NotImplementedError

    def correction(self, server: State) -> float | Tensor:
        """What the learning rate is multiplied by in this round."""
        return 1.0

    def step(self, state: State, server: State, change: State) -> Stepped:
        """m, v and x from the change."""
        first = {n: self.beta1 * m + (1 - self.beta1) * change[n] for n, m in server_part(server, "first").items()}
        second = {n: self.second_moment(v, change[n] * change[n]) for n, v in server_part(server, "second").items()}
        rate = self.correction(server)
        steps = {name: rate * (m / (second[name].sqrt() + self.tau)) for name, m in first.items()}
        return moved(state, steps, self.server_lr), server_tensors("first", first) | server_tensors("second", second)
