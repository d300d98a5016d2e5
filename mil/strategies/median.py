"""Median of the sites."""

from typing import Literal

from mil.strategies.aggregation import Answers, State, middle, moved
from mil.strategies.strategy import Federated, Stepped


class Median(Federated):
    """Median of the sites, number by number (Yin et al. 2018); every site counts alike."""

    name: Literal["median"] = "median"
    title = "Median"
    colour = "#3b3b3b"
    vectorised = True

    def server_step(self, state: State, server: State, answers: Answers) -> Stepped:
        """x <- x + median of (y_i - x); of an even number of sites the mean of the two in the middle."""
        cut = (len(answers.amounts) - 1) // 2
        change = {name: middle(answers.states[name].double() - value, cut) for name, value in state.items()}
        return moved(state, change), dict(server)
