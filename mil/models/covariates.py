"""Late fusion: the logits of a head plus a linear function of the patient's covariates."""

from typing import TYPE_CHECKING

from torch import Tensor

from mil.models.head import Head, Inputs, Output, Weights
from mil.models.layers import Linear

if TYPE_CHECKING:
    from mil.endpoints import Endpoint


class WithCovariates(Head):
    """A head and a linear layer on the covariates, added up at the logits."""

    def __init__(self, head: Head, covariates: int, outputs: int) -> None:
        self.head = head
        self.only_mean, self.positional = head.only_mean, head.positional
        self.dropout, self.needs_classes, self.on_tiles = head.dropout, head.needs_classes, head.on_tiles
        self.kept = head.kept
        self.linear = Linear("covariates", covariates, outputs, bias=not head.parts)
        self.parts = (*head.parts, self.linear)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """The head's output with its logits moved by the covariates."""
        if inputs.covariates is None:
            raise ValueError("this head was built with covariates and is given none")
        return self.head.moved(self.head(weights, inputs), self.linear(weights, inputs.covariates))

    def losses(self, output: Output, targets: Tensor, present: Tensor, endpoint: "Endpoint") -> Tensor:
        """The head's own loss, on the fused logits."""
        return self.head.losses(output, targets, present, endpoint)
