"""Predictions of every model -> a row per patient, for a spreadsheet: whose response is predicted, with which probability."""

import pandas as pd

from mil.endpoints import Endpoint
from mil.statistics.arms import ENSEMBLE, OTHER_SITES, OWN_SITE, patient_scores, score_columns
from mil.tables import TARGETS

BY_MANY = (OWN_SITE, ENSEMBLE, OTHER_SITES)
"""Arms that go before the model of a single site, the first that a patient has."""


def by_patient(predictions: pd.DataFrame, kind: Endpoint) -> pd.DataFrame:
    """patient_id, site, role, label (of survival also time; blank where not known), the mean score and `models`, how many it is the mean of.

    Sorted by site and patient. The score is named by what it is (`Endpoint.quantity`), of several classes with a column per class.
    Where sites have models of their own, a training patient has the mean of the site's own models, others that of all models.
    """
    outcomes = [name for name in TARGETS if name in predictions.columns]
    patients = predictions.drop_duplicates("patient_id").set_index("patient_id")
    scores = patient_scores(predictions.drop(columns=outcomes))
    scores = scores[(scores["split"] != "transfer") | (scores["trained_on"] == OTHER_SITES)]
    rank = scores["trained_on"].map({name: number for number, name in enumerate(BY_MANY)}).fillna(len(BY_MANY))
    first = scores.assign(rank=rank).sort_values(["site", "patient_id", "rank"]).drop_duplicates("patient_id")
    several = [name for name in score_columns(first) if name != "score"]
    names = {name: kind.quantity + name.removeprefix("score") for name in several or ["score"]}
    table = first[["patient_id", "site", "role"]].reset_index(drop=True)
    for name in outcomes:
        table[name] = patients[name].reindex(table["patient_id"]).array
    return pd.concat([table, first[[*names, "models"]].rename(columns=names).reset_index(drop=True)], axis=1)
