"""Yogi at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mil.strategies.adaptive import Adaptive

if TYPE_CHECKING:
    from torch import Tensor


class FedYogi(Adaptive):
    """Yogi at the server (Reddi et al. 2021)."""

    name: Literal["fedyogi"] = "fedyogi"
    title = "FedYogi"
    colour = "#a6761d"

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """v - (1 - beta2) d^2 sign(v - d^2)."""
        return old - (1 - self.beta2) * square * (old - square).sign()
