"""Mean of the sites without the most extreme."""

from typing import Literal

from pydantic import Field

from mil.strategies.aggregation import Answers, State, middle, moved
from mil.strategies.strategy import Federated, Stepped


class TrimmedMean(Federated):
    """Mean of the sites without the most extreme at either end, number by number (Yin et al. 2018)."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    title = "Trimmed mean"
    colour = "#4d1a7f"
    vectorised = True

    trim: float = Field(default=0.2, ge=0, lt=0.5)
    """Share of the sites left out at either end, rounded down."""

    def server_step(self, state: State, server: State, answers: Answers) -> Stepped:
        """x <- x + trimmed mean of (y_i - x)."""
        cut = int(len(answers.amounts) * self.trim + 1e-9)
        change = {name: middle(answers.states[name].double() - value, cut) for name, value in state.items()}
        return moved(state, change), dict(server)
