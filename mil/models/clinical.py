"""No head at all: what the covariates say without the slides."""

from torch import Tensor

from mil.models.head import HEADS, Head, Inputs, Output, Weights
from mil.specs.models import ClinicalSpec


@HEADS.register("clinical")
class Clinical(Head):
    """Logits zero for every bag; late fusion adds the covariates' part."""

    only_mean = True

    def __init__(self, spec: ClinicalSpec, width: int, outputs: int) -> None:
        self.spec, self.outputs = spec, outputs

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Zeros."""
        logits: Tensor = inputs.tiles.new_zeros((*inputs.mask.shape[:-1], self.outputs))
        return Output(logits)
