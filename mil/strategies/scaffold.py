"""Control variates against the drift of the sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mil.strategies.aggregation import Answers, State, moved, weighted_change, weighted_sum
from mil.strategies.strategy import ServerRate, Stepped, server_part, server_tensors

if TYPE_CHECKING:
    from torch import Tensor


class Scaffold(ServerRate):
    """Control variates against the sites' drift (Karimireddy et al. 2020, option II). The sites' optimiser must be sgd.

    x <- x + server_lr sum of w_i (y_i - x); c <- c + sum over all sites of their share x (c_i+ - c_i).
    """

    name: Literal["scaffold"] = "scaffold"
    title = "Scaffold"
    colour = "#56b4e9"
    sent = "model weights and control variates"
    controls = True
    plain_sgd = "its controls are gradients"

    def begin(self, state: State) -> dict[str, Tensor]:
        """Control variate zero, in the state's type, since sites add it to their gradients."""
        return server_tensors("control", {name: value.new_zeros(value.shape) for name, value in state.items()})

    def server_step(self, state: State, server: State, answers: Answers) -> Stepped:
        """`step` by both sums: of the changes, over the sites that answered; of the controls, over all sites."""
        if not answers.controls or answers.total is None:
            raise ValueError("scaffold needs the sites' control variates, and the total of the sites")
        share = answers.amounts / answers.total
        controls = {name: weighted_sum(value, share, self.fixed) for name, value in answers.controls.items()}
        change = weighted_change(state, answers, self.fixed)
        return self.step(state, server, change | server_tensors("control", controls))

    def step(self, state: State, server: State, change: State) -> Stepped:
        """From the changes of the state and, named `control/NAME`, of the control variates."""
        control = {
            name: (value.double() + change[f"control/{name}"]).to(value.dtype)
            for name, value in server_part(server, "control").items()
        }
        return moved(state, change, self.server_lr), server_tensors("control", control)


def control_after(control: Tensor, server: Tensor, start: Tensor, end: Tensor, travelled: Tensor | float) -> Tensor:
    """Option II at a site: c_i - c + (x - y) / (sum of the learning rates of the local steps)."""
    return control - server + (start - end) / travelled
