"""One gradient of each site a round, taken by Adam at the server."""

from typing import Literal

from mil.strategies.fedadam import FedAdam
from mil.strategies.strategy import Rate


class FedSGD(FedAdam):
    """One gradient of each site's patients a round (FedSGD, McMahan et al. 2017), taken by Adam at the server.

    With the whole site in a batch this is Adam on all patients together, to the rounding: what federation costs when it costs
    nothing but rounds. The sites take one step of sgd, at any learning rate. A gradient tells more of patients than an update
    of many steps, so hospitals are refused it.
    """

    name: Literal["fedsgd"] = "fedsgd"  # type: ignore[assignment]
    title = "FedSGD, Adam at the server"
    colour = "#1b9e9e"
    sent = "gradients of the model weights"
    between_hospitals = False
    plain_sgd = "its rounds are gradients"
    one_step = True

    server_lr: Rate = 1e-3
    beta2: float = 0.999
    tau: Rate = 1e-8
    like: Literal["reddi", "adam"] = "adam"
