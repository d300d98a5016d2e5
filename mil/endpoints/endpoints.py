"""What is predicted: the width of the head, the loss, the check of the labels and the metric watched round by round."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mil.errors import MilError
from mil.registry import Registry
from mil.specs.endpoints import EndpointSpec
from mil.statistics.ranking import auroc_of
from mil.tables import require_columns


class Endpoint:
    """Base of the endpoints. Logits are (..., bags, outputs), targets (..., bags, columns), losses (..., bags)."""

    separable = True
    """A bag's loss depends on that bag alone, so that a batch may be cut up."""
    scaled = False
    """Targets are centred and scaled by the training patients' mean and deviation."""
    thresholds = False
    """Scores of inner folds are kept, on which each model's threshold is chosen."""
    columns: tuple[str, ...] = ("label",)
    """Columns of the bag table that hold the target."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec

    @property
    def outputs(self) -> int:
        """Logits a bag."""
        return 1

    @property
    def classes(self) -> int:
        """Number of classes for weights and sampling; 1 where there are none."""
        return 1

    def targets(self, bags: pd.DataFrame) -> np.ndarray:
        """The table's target columns as float32 (patients, columns); a bad one is an error that names the patient."""
        require_columns(bags, ["patient_id", *self.columns], "bags")
        rows = bags[list(self.columns)].itertuples(index=False)
        found = [self._target(tuple(row), str(patient)) for row, patient in zip(rows, bags["patient_id"], strict=True)]
        return np.array(found, np.float32).reshape(len(bags), len(self.columns))

    def check(self, targets: np.ndarray, whose: str) -> None:
        """Refuse training patients (patients, columns) of whom nothing can be learned, since all are the same."""
        if len(np.unique(targets[:, -1])) < 2:
            raise MilError(
                f"bags: {whose}: all {len(targets)} training patients have the same label, so there is nothing to tell apart; "
                "use fewer folds, add patients, or give their site the role external"
            )

    def losses(self, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Loss of every bag; those that are not `present` (..., bags) have no part in the others'."""
        raise NotImplementedError

    def counts(self, targets: Tensor, present: Tensor) -> Tensor:
        """What each bag adds to the number that a batch's summed loss is divided by (..., bags)."""
        return present.to(targets.dtype)

    def class_of(self, targets: Tensor) -> Tensor:
        """Class number of every bag (..., bags) int64; 0 where there are no classes."""
        return torch.zeros(targets.shape[:-1], dtype=torch.int64, device=targets.device)

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the prediction table from logits (bags, outputs); `score` among them."""
        raise NotImplementedError

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Share of the pairs of patients that are ordered rightly (AUROC, C-index); NaN where no pair can be ordered."""
        raise NotImplementedError

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        raise NotImplementedError


ENDPOINTS: Registry[type[Endpoint]] = Registry("endpoint kind")


def build_endpoint(spec: EndpointSpec) -> Endpoint:
    """The endpoint object of `spec`."""
    return ENDPOINTS[spec.kind](spec)


@ENDPOINTS.register("binary")
class BinaryEndpoint(Endpoint):
    """Yes or no: one logit, cross-entropy, AUROC. The table's label is 0 or 1."""

    thresholds = True

    @property
    def classes(self) -> int:
        """No and yes."""
        return 2

    def losses(self, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Cross-entropy of the logistic function."""
        return binary_cross_entropy_with_logits(logits, targets, reduction="none").squeeze(-1) * present

    def class_of(self, targets: Tensor) -> Tensor:
        """0 or 1."""
        return targets[..., 0].long()

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`score`: probability of yes."""
        return {"score": expit(logits[:, 0].astype(np.float64))}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """AUROC."""
        return auroc_of(logits[:, 0], targets[:, 0] > 0.5)

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        return [_number(cells[0], patient, "label", allowed=(0.0, 1.0))]


@ENDPOINTS.register("multiclass")
class MulticlassEndpoint(Endpoint):
    """One of several: a logit a class, cross-entropy, mean of the classes' AUROC. The table's label is one of `classes`."""

    @property
    def outputs(self) -> int:
        """A logit a class."""
        return len(self.spec.classes)

    @property
    def classes(self) -> int:
        """As many as the spec names."""
        return len(self.spec.classes)

    def losses(self, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Cross-entropy of the softmax."""
        flat = cross_entropy(logits.flatten(0, -2), self.class_of(targets).flatten(), reduction="none")
        return flat.view(logits.shape[:-1]) * present

    def class_of(self, targets: Tensor) -> Tensor:
        """Place in the spec's classes."""
        return targets[..., 0].long()

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`score_{class}`: probability of each class; `score`: the highest of them."""
        powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        shares = powers / powers.sum(1, keepdims=True)
        return {"score": shares.max(1)} | {f"score_{name}": shares[:, k] for k, name in enumerate(self.spec.classes)}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean over the classes of the AUROC of one against the rest, by the class's own logit."""
        each = [auroc_of(logits[:, k], targets[:, 0] == k) for k in range(self.classes)]
        known = [value for value in each if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        label = str(cells[0])
        if label not in self.spec.classes:
            known = ", ".join(self.spec.classes)
            raise MilError(f"bags: patient {patient}: label {label!r} is none of the endpoint's classes ({known})")
        return [float(self.spec.classes.index(label))]


@ENDPOINTS.register("survival")
class SurvivalEndpoint(Endpoint):
    """Time to an event: one logit, the log hazard; Cox's partial likelihood with Efron's ties; C-index.

    The table's `time` is positive, its `label` 1 for an event and 0 for censored. The risk set of a step is its batch,
    so batches should be large.
    """

    separable = False
    thresholds = True
    columns = ("time", "label")

    def check(self, targets: np.ndarray, whose: str) -> None:
        """Hazards are learned from events, each beside somebody who was there and had none yet."""
        time, event = targets[:, 0], targets[:, 1] > 0.5
        if not (event & (time < time.max())).any():
            raise MilError(
                f"bags: {whose}: {len(targets)} training patients have {int(event.sum())} events and nobody was followed up "
                "after one, so there is no order to learn; use fewer folds, add patients, or give their site the role external"
            )

    def losses(self, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Minus each event's term of the log partial likelihood; 0 for the censored."""
        hazard, time, event = logits[..., 0], targets[..., 0], (targets[..., 1] > 0.5) & present
        later = (time.unsqueeze(-2) >= time.unsqueeze(-1)) & present.unsqueeze(-2)  # row: event, column: at risk then
        tied = (time.unsqueeze(-2) == time.unsqueeze(-1)) & event.unsqueeze(-2) & event.unsqueeze(-1)
        before = torch.tril(tied, diagonal=-1).sum(-1) / tied.sum(-1).clamp(min=1)
        peak = hazard.detach().masked_fill(~present, float("-inf")).amax(-1, keepdim=True).clamp(min=-1e30)
        powers = torch.exp(hazard - peak).masked_fill(~present, 0.0).unsqueeze(-1)
        at_risk = (later.to(powers.dtype) @ powers).squeeze(-1)
        dying = (tied.to(powers.dtype) @ powers).squeeze(-1)
        remaining = torch.where(event, at_risk - before * dying, torch.ones_like(at_risk))
        return torch.where(event, torch.log(remaining) + peak - hazard, torch.zeros_like(hazard))

    def counts(self, targets: Tensor, present: Tensor) -> Tensor:
        """Events count, the censored do not."""
        return ((targets[..., 1] > 0.5) & present).to(targets.dtype)

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`score`: log hazard; higher dies sooner."""
        return {"score": logits[:, 0].astype(np.float64)}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Harrell's C-index."""
        time, event = targets[:, 0], targets[:, 1] > 0.5
        first = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
        return concordance(logits[:, 0], first)

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        time = _number(cells[0], patient, "time")
        if time <= 0:
            raise MilError(
                f"bags: patient {patient}: time {time:g} is not positive; correct it or leave the patient out"
            )
        return [time, _number(cells[1], patient, "label", allowed=(0.0, 1.0))]


@ENDPOINTS.register("regression")
class RegressionEndpoint(Endpoint):
    """A number: one logit, half the squared error in deviations of the training patients, share of pairs in order."""

    scaled = True

    def losses(self, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Half the squared error."""
        return (logits[..., 0] - targets[..., 0]) ** 2 / 2 * present

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`score`: the number itself."""
        return {"score": logits[:, 0].astype(np.float64)}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Share of the pairs with different targets that are in the right order."""
        return concordance(logits[:, 0], targets[:, :1] > targets[:, 0])

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        return [_number(cells[0], patient, "label")]


def concordance(scores: np.ndarray, above: np.ndarray) -> float:
    """Share of the pairs marked in `above` (row should score above column) that do; equal scores count half."""
    right = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    return float(right[above].mean()) if above.any() else float("nan")


def _number(cell: object, patient: str, column: str, allowed: tuple[float, ...] = ()) -> float:
    try:
        value = float(str(cell))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (allowed and value not in allowed):
        wanted = " or ".join(f"{one:g}" for one in allowed) or "a number"
        raise MilError(
            f"bags: patient {patient}: {column} {cell!r} is not {wanted}; run `mil bag` for this endpoint again"
        )
    return value
