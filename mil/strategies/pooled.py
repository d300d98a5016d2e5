"""One model on all rows."""

from typing import Literal

from mil.strategies.strategy import Strategy


class Pooled(Strategy):
    """One model on all training sites' patients together, as no federation could."""

    name: Literal["pooled"] = "pooled"
    title = "Pooled"
    colour = "#6b7480"
    description = "one model on all training patients in one place, as no federation could"
    collaboration = 1
