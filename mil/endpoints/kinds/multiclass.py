"""Several classes: the mean over the classes of the AUROC of one against the rest, and how often the likeliest class is right."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mil.config import EndpointSpec, MetricsSpec
from mil.endpoints.kinds.bounds import row_of
from mil.endpoints.kinds.kind import KINDS, Measure
from mil.endpoints.kinds.rows import Bootstrapped
from mil.statistics import delong, ranking
from mil.statistics.arms import PREDICTED, Scope

OF_CLASS = "auroc of "


@KINDS.register("multiclass")
class Multiclass(Bootstrapped):
    """One of several; labels are places in the spec's classes, scores the classes' probabilities (n, classes)."""

    name = "multiclass"
    primary = Measure("macro_auroc", "Macro AUROC", lambda *given: macro_auroc(*given), chance=0.5)
    better = "tells the classes apart better than chance would"
    worse = "tells the classes apart worse than chance would"
    watched = "mean AUROC"
    how = "a bootstrap over patients within site and class, logit scale"

    def __init__(self, spec: EndpointSpec) -> None:
        super().__init__(spec)
        self.classes = spec.classes
        self.columns = (*PREDICTED, *(f"score_{name}" for name in spec.classes))
        chance = 1 / len(spec.classes)
        self.further = (Measure("balanced_accuracy", "Balanced accuracy", balanced_accuracy, chance=chance),)

    def coded(self, table: pd.DataFrame) -> pd.DataFrame:
        """Names of classes become their places; a name that the spec does not know stays, to be refused."""
        places = {name: number for number, name in enumerate(self.classes)}
        codes = table["label"].astype(str).map(places)
        unknown = codes.isna()
        text = table["label"].astype(str)
        return table.assign(label=codes.astype(object).where(~unknown, text) if unknown.any() else codes.astype(int))

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """Known classes, probabilities in 0-1."""
        fine = {"label": table["label"].isin(list(range(len(self.classes))))}
        return fine | {f"score_{name}": table[f"score_{name}"].between(0, 1) for name in self.classes}

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Probabilities (n, classes)."""
        return table[[f"score_{name}" for name in self.classes]].to_numpy(dtype=float)

    def undefined(self, table: pd.DataFrame) -> str:
        """The mean over the classes needs a patient of every class: over fewer it would be another measure."""
        there = set(table["label"])
        missing = [name for number, name in enumerate(self.classes) if number not in there]
        return f"no patient of class {', '.join(missing)}" if missing else ""

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Mean over the classes of the AUROC over pairs of the same group; nan where a class has no such pair."""
        each = [
            ranking.auroc_within((labels == number).astype(int), scores[:, number], weights, groups)
            for number in range(scores.shape[1])
        ]
        return np.mean(each, axis=0)

    def rows(self, scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
        """The measures, and each class's AUROC against the rest."""
        yield from super().rows(scope, spec)
        labels, scores = self.labels(scope.table), self.scores(scope.table)
        for number, name in enumerate(self.classes):
            own = (labels == number).astype(int)
            if delong.both_classes(own):
                value, low, high = delong.logit_interval(own, scores[:, number], spec.confidence)
                method = "DeLong, logit scale"
                yield {"metric": OF_CLASS + name, "value": value, "low": low, "high": high, "method": method}
            else:
                reason = f"{'no' if not own.any() else 'no other'} patient {'' if own.any() else 'of class ' + name}"
                yield row_of(OF_CLASS + name, "share", np.nan, own, len(own), spec.confidence, reason.strip())


def macro_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over all classes of the AUROC of one against the rest; nan where a class has nobody."""
    each = [
        ranking.auroc((labels == number).astype(int), scores[:, number], weights) for number in range(scores.shape[1])
    ]
    return np.mean(each, axis=0)


def balanced_accuracy(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over all classes of the share of its patients whose likeliest class it is; nan where a class has nobody."""
    right = (scores.argmax(axis=1) == labels).astype(float)
    own = labels[:, None] == np.arange(scores.shape[1])
    with np.errstate(invalid="ignore"):
        return np.mean(((weights * right) @ own) / (weights @ own), axis=1)


def confusion(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Patients by true class (rows) and likeliest class (columns)."""
    number = scores.shape[1]
    return np.bincount(labels.astype(int) * number + scores.argmax(axis=1), minlength=number**2).reshape(number, number)
