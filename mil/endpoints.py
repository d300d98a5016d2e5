"""What is predicted: width of the head, loss, probability, label check and the metric that is reported a round."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from mil.config import EndpointSpec
from mil.errors import MilError
from mil.registry import Registry

ENDPOINTS: Registry[type] = Registry("endpoint")


def build_endpoint(spec: EndpointSpec) -> "Binary":
    """The endpoint object of `spec`."""
    return ENDPOINTS[spec.kind]()


@ENDPOINTS.register("binary")
@dataclass(frozen=True)
class Binary:
    """Yes or no: one logit, cross-entropy, AUROC."""

    outputs: int = 1

    def targets(self, labels: Sequence[object], patients: Sequence[str]) -> np.ndarray:
        """Labels 0/1 as float32 (patients, 1); anything else is an error that names the patient."""
        found = np.zeros((len(labels), 1), np.float32)
        for row, (label, patient) in enumerate(zip(labels, patients, strict=True)):
            if str(label) not in {"0", "1", "0.0", "1.0"}:
                raise MilError(
                    f"bags: patient {patient}: label {label!r} is not 0 or 1; run `mil bag` for a binary endpoint again"
                )
            found[row] = float(str(label))
        return found

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(..., bags, 1) twice -> loss of each bag (..., bags)."""
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").squeeze(-1)

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """(..., 1) logits -> probability of the positive class (...), float64."""
        return 1 / (1 + np.exp(-logits[..., 0].astype(np.float64)))

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """AUROC by the rank sum; NaN without both classes."""
        positive = targets[:, 0] > 0.5
        positives, negatives = int(positive.sum()), int((~positive).sum())
        if not positives or not negatives:
            return float("nan")
        ranks = rankdata(logits[:, 0])
        return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
