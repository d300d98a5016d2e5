"""Several classes: the mean over the classes of the AUROC of one against the rest, and how often the likeliest class is right."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from mil.endpoints import curves
from mil.endpoints.binary import fixed_interval
from mil.endpoints.bounds import metric_row, row_of
from mil.endpoints.cells import filled, refuse_cells, spelt_as
from mil.endpoints.endpoint import ENDPOINTS, FEWEST, Endpoint
from mil.endpoints.measures import Measure
from mil.errors import MilError
from mil.specs.endpoints import EndpointSpec
from mil.statistics import delong, held_out, ranking
from mil.statistics.arms import PREDICTED, Scope

if TYPE_CHECKING:
    from torch import Tensor

    from mil.config import MetricsSpec
    from mil.slides.sheet import Cohort

OF_CLASS = "auroc of "


@ENDPOINTS.register("multiclass")
class Multiclass(Endpoint):
    """One of several classes: one logit per class, cross-entropy, mean over the classes of the AUROC.

    The bag table's label is one of the spec's classes; labels of measures are positions in them, scores the classes'
    probabilities (n, classes).
    """

    name = "multiclass"
    primary = Measure("macro_auroc", "Macro AUROC", lambda *given: macro_auroc(*given), chance=0.5)
    quantity = "probability"
    better = "tells the classes apart better than chance would"
    worse = "tells the classes apart worse than chance would"
    watched = "mean AUROC"
    pairs = "pairs of patients of the same site and, held out, of the same fold"
    error, largest_error = "squared error of the probabilities (Brier score, halved)", 1.0
    measured = (
        "Of several classes the measure is the mean over all classes of the AUROC of one against the rest (macro AUROC; not defined "
        "where a class has no patient; held-out patients are compared within folds); beside it each class's AUROC and the balanced accuracy of the class with the highest mean probability."
    )

    def __init__(self, spec: EndpointSpec) -> None:
        super().__init__(spec)
        self.outputs = self.classes = len(spec.classes)
        self.predicted = (*PREDICTED, *(f"score_{name}" for name in spec.classes))
        chance = 1 / len(spec.classes)
        self.further = (Measure("balanced_accuracy", "Balanced accuracy", balanced_accuracy, chance=chance),)
        self.places = {spelt: number for number, name in enumerate(spec.classes) for spelt in _spellings(name)}
        """Positions of the classes, by all spellings that a table of labels may have made of their names."""

    def read(self, cohort: "Cohort") -> pd.DataFrame:
        """Names of classes."""
        classes = self.spec.classes
        known = spelt_as(filled(cohort, self.spec.column), classes)
        wrong = known[~known.isin(classes)]
        refuse_cells(wrong, self.spec.column, f"none of {', '.join(classes)}", cohort=cohort)
        return known.to_frame("label")

    @property
    def meaning(self) -> str:
        """The classes."""
        return f"classes: {', '.join(self.spec.classes)}"

    def losses(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Cross-entropy of the softmax."""
        from torch.nn.functional import cross_entropy

        flat = cross_entropy(logits.flatten(0, -2), self.class_of(targets).flatten(), reduction="none")
        return flat.view(logits.shape[:-1]) * present

    def errors(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Half the squared errors of the classes' probabilities, summed: of two classes the squared error of either."""
        from torch.nn.functional import one_hot

        wanted = one_hot(self.class_of(targets), self.classes)
        return ((logits.softmax(-1) - wanted) ** 2).sum(-1) / 2 * present

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`score_{class}`: probability of each class; `score`: the highest of them."""
        shares = softmax(logits.astype(np.float64), axis=1)
        return {"score": shares.max(1)} | {f"score_{name}": shares[:, k] for k, name in enumerate(self.spec.classes)}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean over the classes present of the AUROC of one against the rest, by the class's own logit."""
        each = [ranking.auroc_of(logits[:, k], targets[:, 0] == k) for k in range(self.classes)]
        known = [value for value in each if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        label = str(cells[0])
        if label not in self.places:
            known = ", ".join(self.spec.classes)
            raise MilError(f"bags: patient {patient}: label {label!r} is none of the endpoint's classes ({known})")
        return [float(self.places[label])]

    def coded(self, table: pd.DataFrame) -> pd.DataFrame:
        """Names of classes become their places; a name that the spec does not know stays, to be refused."""
        text = table["label"].astype(str)
        codes = text.map(self.places)
        unknown = codes.isna()
        return table.assign(label=codes.astype(object).where(~unknown, text) if unknown.any() else codes.astype(int))

    def named(self, table: pd.DataFrame) -> pd.Series:
        """Names of classes."""
        return self.coded(table)["label"].map(dict(enumerate(self.spec.classes)))

    def checked(self, table: pd.DataFrame, where: str) -> pd.DataFrame:
        """Also refuses classes' probabilities that do not add up to 1, by more than rounding to two decimals could do."""
        table = super().checked(table, where)
        total = self.scores_of(table).sum(axis=1)
        wrong = np.abs(total - 1) > 0.01
        if wrong.any():
            patient, value = table["patient_id"].to_numpy()[wrong][0], total[wrong][0]
            raise MilError(
                f"{where}: patient {patient}: the probabilities of the classes add up to {value:.3g}, not to 1; name the right "
                "file, or run `mil predict` again"
            )
        return table

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """Known classes, probabilities in 0-1."""
        fine = {"label": table["label"].isin(list(range(len(self.spec.classes))))}
        return fine | {f"score_{name}": table[f"score_{name}"].between(0, 1) for name in self.spec.classes}

    def scores_of(self, table: pd.DataFrame) -> np.ndarray:
        """Probabilities (n, classes)."""
        return table[[f"score_{name}" for name in self.spec.classes]].to_numpy(dtype=float)

    def undefined(self, table: pd.DataFrame) -> str:
        """The mean over the classes needs a patient of every class: over fewer it would be another measure."""
        there = set(table["label"])
        missing = [name for number, name in enumerate(self.spec.classes) if number not in there]
        return f"no patient of class {', '.join(missing)}" if missing else ""

    def by_model(self, scope: Scope) -> pd.DataFrame | None:
        """A fold short of a class leaves a training set rich in it, so that a model which knows nothing ranks that class below the others'."""
        return scope.folds

    def too_few(self, table: pd.DataFrame) -> str:
        """The rarest class decides how well the mean over the classes is known."""
        counts = np.bincount(table["label"].to_numpy(int), minlength=len(self.spec.classes))
        name, count = self.spec.classes[counts.argmin()], int(counts.min())
        return f"no interval: {count} patients of class {name}; {FEWEST} needed" if count < FEWEST else ""

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Mean over the classes of the AUROC over pairs of the same group; nan where a class has no such pair."""
        each = [
            ranking.auroc_within((labels == number).astype(int), scores[:, number], weights, groups)
            for number in range(scores.shape[1])
        ]
        return np.mean(each, axis=0)

    def rows(self, scope: Scope, spec: "MetricsSpec") -> Iterator[dict[str, Any]]:
        """The measures, and each class's AUROC against the rest."""
        yield from super().rows(scope, spec)
        labels, scores = self.labels_of(scope.table), self.scores_of(scope.table)
        for number, name in enumerate(self.spec.classes):
            mask = (labels == number).astype(int)
            if delong.both_classes(mask) and scope.folds is not None:
                rows = scope.folds.assign(label=scope.folds["label"] == number, score=scope.folds[f"score_{name}"])
                pairs = held_out.pairs_of(rows, within_sites=False)
                yield metric_row(OF_CLASS + name, *held_out.interval(pairs, spec.confidence))
            elif delong.both_classes(mask):
                everywhere = np.zeros(len(mask))
                interval = fixed_interval(mask, scores[:, number], everywhere, spec.confidence)
                yield metric_row(OF_CLASS + name, *interval)
            else:
                reason = f"{'no' if not mask.any() else 'no other'} patient {'' if mask.any() else 'of class ' + name}"
                yield row_of(OF_CLASS + name, "share", np.nan, mask, len(mask), spec.confidence, reason.strip())

    def curves(
        self, scope: Scope, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[pd.DataFrame]:
        """ROC of every class."""
        return curves.of_classes(scope, self.scores_of(scope.table), self.spec.classes)


def _spellings(name: str) -> set[str]:
    """A class's name, and what reading a column of nothing but numbers makes of it: `01` is read as 1, and as 1.0 beside 1.5."""
    try:
        value = float(name)
    except ValueError:
        return {name}
    return {name, str(value), *([str(int(value))] if value.is_integer() else [])}


def macro_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over all classes of the AUROC of one against the rest; nan where a class has nobody."""
    each = [
        ranking.auroc((labels == number).astype(int), scores[:, number], weights) for number in range(scores.shape[1])
    ]
    return np.mean(each, axis=0)


def balanced_accuracy(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over all classes of the share of its patients whose likeliest class it is; nan where a class has nobody."""
    right = (scores.argmax(axis=1) == labels).astype(float)
    classes = labels[:, None] == np.arange(scores.shape[1])
    with np.errstate(invalid="ignore"):
        return np.mean(((weights * right) @ classes) / (weights @ classes), axis=1)
