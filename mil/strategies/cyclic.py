"""A model that travels from site to site."""

from typing import Literal

from mil.strategies.strategy import Strategy


class Cyclic(Strategy):
    """One model passed from site to site (Chang et al. 2018); a round is a visit to every site."""

    name: Literal["cyclic"] = "cyclic"
    title = "Cyclic"
    colour = "#cc79a7"
    federated = True
    cyclic = True
    between_hospitals = True

    shuffled: bool = False
    """Every round visits the sites in an order drawn anew; otherwise in the order of their names."""

    @property
    def random_order(self) -> bool:
        """`shuffled`."""
        return self.shuffled
