"""A model for each site, on its patients only."""

from typing import Literal

from mil.strategies.strategy import Strategy


class Local(Strategy):
    """One model for each training site, on that site's patients only."""

    name: Literal["local"] = "local"
    title = "Local"
    colour = "#d55e00"
    description = "one model for each training site on its patients"
    collaboration = 0
    by_site = True
