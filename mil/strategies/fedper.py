"""Federated averaging of some layers; the others stay at their site."""

from typing import Literal

from mil.strategies.strategy import WeightedSum


class FedPer(WeightedSum):
    """Shared body, and a head for each site (Arivazhagan et al. 2019): one model for each site."""

    name: Literal["fedper"] = "fedper"
    title = "FedPer"
    colour = "#e7298a"
    sent = "model weights but for the layers that stay"
    personal = True

    local: tuple[str, ...] = ("score",)
    """Layers that never leave the site, by the first part of their tensors' names."""

    @property
    def local_parts(self) -> tuple[str, ...]:
        """`local`."""
        return self.local
