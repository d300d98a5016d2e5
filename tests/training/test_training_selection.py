"""Number of rounds, candidates of a search and replicas: chosen on the inner folds."""

import numpy as np
import pandas as pd
from training_cohort import ENDPOINT, experiment
from training_runs import BAGS, EVERYONE, ROWS, external_auroc, run_of

from mil.endpoints import build_endpoint
from mil.predictions.predict import predict
from mil.specs.experiments import ExperimentSpec
from mil.training.cohort import TrainingCohort
from mil.training.protocol import candidates, groups, inner_tasks, select
from mil.training.run import Run


def test_selection_sums_over_the_inner_folds():
    cohort = TrainingCohort.of(ROWS, ENDPOINT, build_endpoint(ENDPOINT))
    stanza = experiment()
    stanza = ExperimentSpec.model_validate(stanza.model_dump() | {"search": {"lr": [0.1, 0.01]}})
    tasks = inner_tasks(cohort, groups(cohort, [("A", "B")])[:1], candidates(stanza), 3)
    assert [(task.candidate.lr, task.inner) for task in tasks] == [(0.1, 0), (0.1, 1), (0.01, 0), (0.01, 1)]
    losses = np.array([[3.0, 1.0, 9.0], [3.0, 7.0, 9.0], [4.0, 2.0, 5.0], [4.0, 5.0, np.inf]])
    (best,) = select(tasks, losses, np.ones((4, 3)))
    assert (best.candidate.lr, best.rounds) == (0.1, 1)  # 6 / 2 against 7 / 2; the first candidate's round 2 has 8 / 2
    (best,) = select(tasks, losses, np.array([[4.0, 1, 1], [4, 1, 1], [1, 4, 1], [1, 4, 1]]))
    assert (best.candidate.lr, best.rounds) == (0.1, 1)
    (best,) = select(tasks, losses, np.array([[1.0, 1, 1], [1, 1, 1], [1, 9, 1], [1, 9, 1]]))
    assert (best.candidate.lr, best.rounds) == (0.01, 2)


def test_number_of_rounds_is_the_minimum_of_the_recorded_curve():
    run = run_of(strategy="fedavg", training={"rounds": 8, "lr": 0.05})
    inner = run.rounds[(run.rounds["phase"] == "inner") & (run.rounds["site"] == "A+B")]
    for model in run.models.itertuples():
        own = inner[inner["fold"] == model.fold]
        curve = own.groupby("round")["val_error"].mean()  # both inner folds watch equally many
        assert curve.idxmin() == model.rounds


def test_patience_stops_where_nothing_gets_better():
    run = run_of(training={"rounds": 40, "patience": 3, "lr": 0.1})
    inner = run.rounds[run.rounds["phase"] == "inner"]
    for model in run.models.itertuples():
        last = inner[inner["fold"] == model.fold]["round"].max()
        assert last == min(40, model.rounds + 3)


def test_a_search_chooses_on_the_inner_folds_and_says_what():
    search = {
        "lr": [1e-6, 0.05],
        "weight_decay": [0.0, 0.01],
        "model": ["mean", {"name": "gated_attention", "hidden": 4, "attention": 3}],
    }
    run = run_of(strategy="fedavg", search=search)
    assert set(run.models["lr"]) == {0.05}
    assert len(run.models) == 3
    assert run.rounds[run.rounds["phase"] == "inner"]["model"].nunique() == 3 * 2 * 8
    found = predict(run, BAGS, EVERYONE)
    assert external_auroc(found) > 0.8


def test_a_search_over_heads_is_saved_and_read_back(tmp_path):
    run = run_of(search={"model": ["mean", {"name": "max"}]}, training={"rounds": 3})
    run.save(tmp_path)
    first, second = predict(run, BAGS, EVERYONE), predict(Run.load(tmp_path), BAGS, EVERYONE)
    pd.testing.assert_frame_equal(first.table, second.table)


def test_replicas_are_averaged():
    run = run_of(model="mean", training={"replicas": 3})
    assert len(run.models) == 9
    assert run.models["sha256"].nunique() == 9
    found = predict(run, BAGS, EVERYONE)
    assert len(found.table) == 24 + 36
    one = run.models[run.models["model"] == "A+B/repeat0/fold0"].index[0]
    assert run_of(model="mean").models["sha256"][0] == run.models["sha256"][one]
