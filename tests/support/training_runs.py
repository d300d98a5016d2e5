"""Runs on the small cohort of `training_cohort`, the same for every test of a process."""

from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.progress import quiet
from mil.statistics.ranking import auroc_of
from mil.training.run import train
from mil.training.store import FeatureStore

BAGS, ARRAYS = make_cohort()
ROWS, STORE = training_part(BAGS, ARRAYS)
EVERYONE = FeatureStore.of(ARRAYS, {"encoder": "e"})


def run_of(endpoint=ENDPOINT, rows=ROWS, **changes):
    """A run of the small cohort's training sites with the experiment's `changes`."""
    return train(experiment(**changes), endpoint, rows, STORE, quiet())


def external_auroc(found):
    """AUROC of the patients' mean scores at the external site."""
    external = found.table[found.table["split"] == "external"].groupby("patient_id").mean(numeric_only=True)
    return auroc_of(external["score"].to_numpy(), external["label"].to_numpy() == 1)
