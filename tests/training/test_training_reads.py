"""Which patients training and selection read."""

import numpy as np
import pytest
from training_cohort import ENDPOINT, experiment, make_cohort

from mil.progress import quiet
from mil.training.engine import Engine
from mil.training.rounds import Driver
from mil.training.run import train as train_run
from mil.training.store import FeatureStore


@pytest.mark.parametrize(
    ("strategy", "protocol"),
    [("local", "cross_validation"), ("pooled", "cross_validation"), ("fedavg", "cross_validation"),
     ("fedavg", "leave_one_site_out"), ("pooled", "leave_one_site_out")],
)  # fmt: skip
def test_a_spy_sees_no_judged_patient_read_by_training_or_selection(monkeypatch, strategy, protocol):
    """Every bag that the engine is given, to learn from or to watch, by the sites, repeat and fold of the model it is for."""
    bags, arrays = make_cohort(sites={"A": "train", "B": "train", "C": "train", "X": "external"})
    training = bags[bags["role"] == "train"].sort_values(["site", "patient_id"])
    store = FeatureStore.of({patient: arrays[patient] for patient in training["patient_id"]}, {"encoder": "e"})
    read, tasks = {}, []
    plain_run, plain_train, plain_logits = Driver.run, Engine.train, Engine.logits

    def note(number, count, given):
        group = tasks[-1][number * len(tasks[-1]) // count].group
        read.setdefault(group, set()).update(store.patients[bag] for bag in given)

    def spy_run(self, some, *rest):
        tasks.append(some)
        return plain_run(self, some, *rest)

    def spy_train(self, learners, state, plans, places):
        for number, plan in enumerate(plans):
            note(number, len(plans), np.concatenate(plan.batches) if plan.batches else [])
        return plain_train(self, learners, state, plans, places)

    def spy_logits(self, learners, given, places):
        for number, own in enumerate(given):
            note(number, len(given), own)
        return plain_logits(self, learners, given, places)

    monkeypatch.setattr(Driver, "run", spy_run)
    monkeypatch.setattr(Engine, "train", spy_train)
    monkeypatch.setattr(Engine, "logits", spy_logits)
    train_run(
        experiment(strategy=strategy, protocol=protocol, training={"rounds": 2}), ENDPOINT, training, store, quiet()
    )
    folds = training.set_index("patient_id")
    assert len(read) == (9 if strategy == "local" or protocol != "cross_validation" else 3)
    for group, patients in read.items():
        known = folds.loc[sorted(patients)]
        assert set(known["site"]) == set(group.trained_on)
        assert (known["repeat0"].astype(int) != group.fold).all()
        assert len(known) == 8 * len(group.trained_on)  # and everybody else is read, so the spy sees
