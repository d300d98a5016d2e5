"""Adagrad at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mil.strategies.adaptive import Adaptive

if TYPE_CHECKING:
    from torch import Tensor


class FedAdagrad(Adaptive):
    """Adagrad at the server (Reddi et al. 2021)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    title = "FedAdagrad"
    colour = "#66a61e"

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Sum of all squares."""
        return old + square
