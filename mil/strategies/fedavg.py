"""Federated averaging."""

from typing import Literal

from mil.strategies.strategy import WeightedSum


class FedAvg(WeightedSum):
    """Federated averaging (McMahan et al. 2017): x <- x + sum of w_i (y_i - x)."""

    name: Literal["fedavg"] = "fedavg"
    title = "FedAvg"
    colour = "#0072b2"
    description = "federated averaging, weighted by patients"
