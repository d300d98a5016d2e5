"""Multiple-instance learning on arrays, in scikit-learn's manner, trained by the engine and protocol of `mil train`."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from mil.bags.table import check_classes, deal_folds
from mil.config import EndpointSpec, ExperimentSpec, parse
from mil.errors import MilError
from mil.predictions.predict import Predictions, predict
from mil.progress import quiet
from mil.training.run import train
from mil.training.store import FeatureStore

ONE_SITE = "all"
"""Site of every patient where no groups are given."""


class MILClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of bags. A bag is an array (tiles, width); all bags have one width, each may have other tiles.

    `fit` trains one model per outer fold, exactly as the workflow does: the number of rounds is chosen on inner folds, then
    the model is trained again on all patients outside the fold. `predict_proba` gives the mean over these models.

    Parameters
    ----------
    model : a head of docs/glossary.md ("head, model") by name, or a mapping of its settings, e.g. `{"name": "gated_attention"}`.
    strategy : `local`, `pooled`, `fedavg`, ... by name, or a mapping of its settings.
    folds, inner_folds : numbers of folds in every site; both classes must have enough patients at every site.
    rounds, lr, seed : most rounds of training, learning rate of the clients, seed.
    training : further settings of training, as under `training:` of an experiment.

    >>> import numpy as np
    >>> numbers = np.random.default_rng(0)
    >>> labels = np.tile([0, 1], 12)
    >>> bags = [numbers.normal(2.0 * label, 1, (5, 4)) for label in labels]
    >>> sites = np.repeat(["a", "b"], 12)
    >>> fitted = MILClassifier(folds=2, inner_folds=2, rounds=3, lr=0.01).fit(bags, labels, groups=sites)
    >>> fitted.predict_proba(bags).shape
    (24, 2)
    """

    def __init__(
        self,
        model: str | dict[str, Any] = "gated_attention",
        strategy: str | dict[str, Any] = "fedavg",
        folds: int = 3,
        inner_folds: int = 2,
        rounds: int = 30,
        lr: float = 1e-3,
        seed: int = 0,
        training: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.strategy = model, strategy
        self.folds, self.inner_folds = folds, inner_folds
        self.rounds, self.lr, self.seed, self.training = rounds, lr, seed, training

    def fit(self, X: Sequence[np.ndarray], y: Sequence[Any] | np.ndarray, groups: Any = None) -> "MILClassifier":
        """Train on bags `X` with labels `y`; `groups` has the site of each bag (default, where nothing is federated: one site).

        Raises `MilError` where `groups` are missing and the strategy is federated, a setting is unknown, labels are no
        classes, or a site has too few patients of a class for the folds.
        """
        bags, labels, experiment = _bags(X), _labels(y), self._experiment()
        strategy = experiment.strategy
        if groups is None and strategy.of_rounds.federated:
            raise MilError(
                f"strategy '{strategy.name}' is federated and groups are missing; give groups=, the site of each bag, or strategy='pooled'"
            )
        sites = np.full(len(bags), ONE_SITE) if groups is None else _filled("groups", groups).astype(str)
        if not len(bags) == len(labels) == len(sites):
            raise MilError(
                f"{len(bags)} bags, {len(labels)} labels and {len(sites)} groups; give one of each per patient"
            )
        classes = np.unique(labels)
        if len(classes) < 2:
            raise MilError(f"every label is {labels[0] if len(labels) else 'missing'}; two classes are needed")
        codes = np.searchsorted(classes, labels)
        counts = np.bincount(codes)
        if len(classes) > 2 and counts.min() < 2:
            rare, alone = classes[counts.argmin()], int((counts == 1).sum())
            raise MilError(
                f"{alone} of {len(classes)} classes have 1 patient (the first is {rare}), who cannot be both trained on and tested; "
                "join classes, or leave these patients out"
            )
        endpoint = self._endpoint(len(classes))
        table = _table(len(bags), sites, "train")
        table["label"] = codes if len(classes) == 2 else [str(code) for code in codes]
        check_classes(table, dict.fromkeys(sites.tolist(), "train"), endpoint)
        store = FeatureStore.of(dict(zip(table["patient_id"], bags, strict=True)))
        self.run_ = train(experiment, endpoint, deal_folds(table, endpoint), store, quiet())
        self.classes_, self.n_features_in_ = classes, store.width  # not of a fit that ended with an error
        return self

    def predict_proba(self, X: Sequence[np.ndarray]) -> np.ndarray:
        """Probability of each class: (bags, classes), in the order of `classes_`."""
        patients, predictions = self._applied(X)
        names = ["score"] if len(self.classes_) == 2 else [f"score_{code}" for code in range(len(self.classes_))]
        means = predictions.table.groupby("patient_id")[names].mean().loc[patients].to_numpy(float)
        return np.column_stack([1 - means[:, 0], means[:, 0]]) if len(self.classes_) == 2 else means

    def predict(self, X: Sequence[np.ndarray]) -> np.ndarray:
        """The most probable class of each bag."""
        chances = self.predict_proba(X)
        return self.classes_[chances.argmax(axis=1)]

    def attention(self, X: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Attention over the tiles of each bag, summing to 1; equal weights for a head that has none."""
        patients, predictions = self._applied(X)
        return [predictions.attention[patient] for patient in patients]

    def _applied(self, X: Sequence[np.ndarray]) -> tuple[list[str], Predictions]:
        """Names of the bags, in order, and what every model of the run says of them: as of patients of an external site."""
        if not hasattr(self, "run_"):
            raise NotFittedError("this MILClassifier is not fitted; call fit first")
        bags = _bags(X)
        if bags and bags[0].shape[1] != self.n_features_in_:
            raise MilError(f"bags have width {bags[0].shape[1]}, the model was trained on {self.n_features_in_}")
        table = _table(len(bags), np.full(len(bags), ONE_SITE), "external").assign(label=np.nan)
        store = FeatureStore.of(dict(zip(table["patient_id"], bags, strict=True)))
        predictions = predict(self.run_, deal_folds(table, self.run_.endpoint), store)
        for warning in predictions.warnings:
            warnings.warn(warning, stacklevel=3)
        return list(table["patient_id"]), predictions

    def _endpoint(self, classes: int) -> EndpointSpec:
        kind: dict[str, Any] = {"kind": "binary"}
        if classes > 2:
            kind = {"kind": "multiclass", "classes": [str(code) for code in range(classes)]}
        folds = {"folds": self.folds, "inner_folds": self.inner_folds, "seed": self.seed}
        return parse(EndpointSpec, {**kind, **folds, "column": "label"}, "MILClassifier")

    def _experiment(self) -> ExperimentSpec:
        settings = {"rounds": self.rounds, "lr": self.lr, "seed": self.seed, **(self.training or {})}
        stanza = {"encoder": "arrays", "endpoint": "label", "model": self.model, "strategy": self.strategy}
        return parse(ExperimentSpec, {**stanza, "training": settings}, "MILClassifier")


def _bags(X: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The bags as float32 (or float16) arrays of one width, each with a tile or more."""
    bags = [np.asarray(bag) for bag in X]
    for number, bag in enumerate(bags):
        if bag.ndim != 2 or not len(bag):
            raise MilError(f"bag {number} has shape {bag.shape}; give (tiles, width) with one tile or more")
        if bag.dtype.kind not in "fiub":
            raise MilError(f"bag {number} holds {bag.dtype}; give real numbers")
        if not (np.abs(bag) <= np.finfo(np.float32).max).all():
            raise MilError(f"bag {number} holds NaN, infinity or a number beyond float32; remove its tile or its bag")
    return [bag if bag.dtype == np.float16 else bag.astype(np.float32) for bag in bags]


def _filled(what: str, values: Any) -> np.ndarray:
    """`values` as an array (patients,) without a missing one."""
    array = np.asarray(values)
    missing = np.flatnonzero(pd.isna(array)) if array.ndim == 1 else []
    if array.ndim != 1 or len(missing):
        what = f"{what} have shape {array.shape}" if array.ndim != 1 else f"{what} hold a missing value at {missing[0]}"
        raise MilError(f"{what}; give one value per patient, and leave out patients without one")
    return array


def _labels(y: Any) -> np.ndarray:
    """Labels as an array (patients,): texts, or whole numbers (True and False among them)."""
    labels = _filled("labels", y)
    kinds = {"text" if isinstance(label, str) else "number" if np.isscalar(label) else "other" for label in y}
    if len(kinds) > 1:
        raise MilError(
            f"labels are of several types ({', '.join(sorted(kinds))}); give all as text, or all as whole numbers"
        )
    fractions = labels[labels % 1 != 0] if labels.dtype.kind == "f" else labels[:0]
    if len(fractions):
        raise MilError(
            f"label {fractions[0]:g} is not a class; give classes, or train on numbers with an endpoint of kind regression in `mil train`"
        )
    return labels


def _table(count: int, sites: np.ndarray, role: str) -> pd.DataFrame:
    """Rows of a bag table, in the order of the bags."""
    patients = [f"p{number:06d}" for number in range(count)]
    return pd.DataFrame({"patient_id": patients, "slides": patients, "site": sites, "role": role})
