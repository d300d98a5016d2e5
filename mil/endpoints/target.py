"""What is predicted: the target columns, the loss, and the metric watched round by round."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.errors import MilError
from mil.specs.endpoints import EndpointSpec
from mil.tables import require_columns

if TYPE_CHECKING:
    from torch import Tensor

    from mil.slides.sheet import Cohort


class Target:
    """What training and prediction need of an endpoint. Logits are (..., bags, outputs), targets (..., bags, columns), losses (..., bags)."""

    name: str
    separable = True
    """A bag's loss depends on that bag alone, so that a batch may be cut up."""
    relative = False
    """A constant added to all scores changes no loss: the mean of a model's scores has no meaning, only differences have."""
    scaled = False
    """Targets are centred and scaled by the training patients' mean and deviation."""
    thresholds = False
    """Scores of inner folds are kept, on which each model's threshold is chosen."""
    two_classes = False
    """The label is 0 or 1, as baselines, controls and most figures need it."""
    error = "loss"
    """What rounds and candidates are chosen by, in words: the mean of `errors` over patients of inner folds."""
    largest_error = float("inf")
    """Of one patient."""
    outputs: int = 1
    """Number of logits per bag."""
    classes: int = 1
    """Number of classes for weights and sampling; 1 where there are none."""
    columns: tuple[str, ...] = ("label",)
    """Columns of the bag table that hold the target."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec

    def read(self, cohort: "Cohort") -> pd.DataFrame:
        """`label` (and `time`) by patient_id, of patients whose cells are filled; an error names the line of a wrong value."""
        raise NotImplementedError

    @property
    def meaning(self) -> str:
        """Which values of the column mean what, in words."""
        return f"positive: {', '.join(self.spec.positive)}; negative: {', '.join(self.spec.negative)}"

    def targets(self, bags: pd.DataFrame) -> np.ndarray:
        """The table's target columns as float32 (patients, columns); a bad one is an error that names the patient."""
        require_columns(bags, ["patient_id", *self.columns], "bags")
        rows = bags[list(self.columns)].itertuples(index=False)
        values = [self._target(tuple(row), str(patient)) for row, patient in zip(rows, bags["patient_id"], strict=True)]
        return np.array(values, np.float32).reshape(len(bags), len(self.columns))

    def check(self, targets: np.ndarray, whose: str) -> None:
        """Refuse training patients (patients, columns) whose targets are all equal; `whose` names their table and their models."""
        if len(np.unique(targets[:, -1])) < 2:
            raise MilError(
                f"{whose}: all {len(targets)} training patients have the same label in column '{self.spec.column}', so no "
                "difference can be learned; use fewer folds, add patients, or give their site the role external"
            )

    def losses(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Loss of every bag; bags that are not `present` (..., bags) do not change the loss of others."""
        raise NotImplementedError

    def errors(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """What rounds and candidates are chosen by, of every bag (..., bags), to be divided as the loss is."""
        return self.losses(logits, targets, present)

    def counts(self, targets: "Tensor", present: "Tensor") -> "Tensor":
        """The divisor of a batch's summed loss is the sum of these (..., bags)."""
        return present.to(targets.dtype)

    def sums(self, logits: np.ndarray, targets: "Tensor") -> tuple[float, float, float]:
        """Summed loss and error of bags (bags, outputs), and the number to divide them by; NaN for an error where a logit is not finite."""
        import torch

        if not len(targets):
            return 0.0, 0.0, 0.0
        given, present = torch.from_numpy(logits).double(), torch.ones(len(targets), dtype=torch.bool)
        loss, error = (float(measure(given, targets, present).sum()) for measure in (self.losses, self.errors))
        finite = bool(given.isfinite().all())
        return loss, error if finite else float("nan"), float(self.counts(targets, present).sum())

    def class_of(self, targets: "Tensor") -> "Tensor":
        """Class number of every bag (..., bags) int64; 0 where there are no classes."""
        return targets[..., 0].long() if self.classes > 1 else targets.new_zeros(targets.shape[:-1]).long()

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the prediction table from logits (bags, outputs), `score` among them: here the logit itself."""
        return {"score": logits[:, 0].astype(np.float64)}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Share of the pairs of patients in the right order (AUROC, C-index); nan where no pair has an order."""
        raise NotImplementedError

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        raise NotImplementedError


def number_of(cell: object, patient: str, column: str, allowed: tuple[float, ...] = ()) -> float:
    """The number in a cell of the bag table; an error that names the patient where it is none, or not among `allowed`."""
    try:
        value = float(str(cell))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (allowed and value not in allowed):
        wanted = " or ".join(f"{number:g}" for number in allowed) or "a number"
        raise MilError(
            f"bags: patient {patient}: {column} {cell!r} is not {wanted}; run `mil bag` for this endpoint again"
        )
    return value
