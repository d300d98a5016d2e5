"""`scaling: site`: each site's features by its own moments, so that laboratories need not stain or scan alike."""

from pathlib import Path

import inprocess
import numpy as np
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, make_hospitals, rewrite_protocol
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.hospital.models import Refit, run_of
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.training.run import Run, train
from mil.training.store import FeatureStore

pytestmark = pytest.mark.slow

BAGS, ARRAYS = make_cohort()
BY_SITE = {"scaling": "site"}


def scanned(arrays):
    """The same tissue under three other scanners: a gain and an offset a site."""
    gain, offset = {"A": 1.0, "B": 2.0, "C": 0.5}, {"A": 0.0, "B": 5.0, "C": -4.0}
    return {p: (tiles * gain[p[0]] + offset[p[0]]).astype(np.float32) for p, tiles in arrays.items()}


def predicted(arrays, strategy, scaling="site", bags=BAGS):
    rows, store = training_part(BAGS, arrays)
    run = train(experiment(strategy=strategy, training={"scaling": scaling}), ENDPOINT, rows, store, quiet())
    everyone = FeatureStore.of({patient: arrays[patient] for patient in bags["patient_id"]}, {"encoder": "e"})
    return run, predict(run, bags, everyone)


@pytest.mark.parametrize("strategy", ["local", "pooled", "fedavg", "finetune"])
def test_another_scanner_at_a_site_changes_no_score(strategy):
    (_, plain), (_, other) = (predicted(arrays, strategy) for arrays in (ARRAYS, scanned(ARRAYS)))
    assert (plain.table["score"] - other.table["score"]).abs().max() < 1e-4
    for patient, attention in plain.attention.items():
        np.testing.assert_allclose(attention, other.attention[patient], atol=1e-4)
    if strategy == "pooled":
        (_, plain), (_, other) = (predicted(arrays, strategy, "standard") for arrays in (ARRAYS, scanned(ARRAYS)))
        assert (plain.table["score"] - other.table["score"]).abs().max() > 0.1  # the test would notice


def test_scales_are_each_site_s_own_training_patients(tmp_path):
    run, _ = predicted(ARRAYS, "fedavg")
    for number, site in enumerate("AB"):
        seen = BAGS[(BAGS["repeat0"] != 1) & (BAGS["site"] == site)]
        tiles = np.concatenate([ARRAYS[patient] for patient in seen["patient_id"]]).astype(np.float64)
        np.testing.assert_allclose(run.families[0].weights["features.mean"][1, number], tiles.mean(0), atol=1e-5)
        np.testing.assert_allclose(run.families[0].weights["features.deviation"][1, number], tiles.std(0), rtol=1e-5)
    run.save(tmp_path)
    assert Run.load(tmp_path).families[0].weights["features.mean"].shape == (3, 2, 8)


def test_patients_of_a_training_site_are_scaled_as_it_was_trained_whoever_is_beside_them():
    run, whole = predicted(ARRAYS, "pooled")
    few = BAGS[BAGS["patient_id"].isin(["A00", "B03"])]
    alone = predict(run, few, FeatureStore.of({p: ARRAYS[p] for p in few["patient_id"]}, {"encoder": "e"})).table
    both = whole.table.merge(alone, on=["patient_id", "fold"])
    assert len(both) == 2
    np.testing.assert_allclose(both["score_x"], both["score_y"], atol=1e-6)


@pytest.mark.parametrize("strategy", ["local", "pooled", "fedavg"])
def test_what_the_outer_fold_and_external_sites_hold_changes_no_model(strategy):
    rows = BAGS[BAGS["role"] == "train"]
    hidden = set(rows.loc[rows["repeat0"] == 0, "patient_id"])
    planted = {patient: np.full_like(tiles, 9.0) if patient in hidden else tiles for patient, tiles in ARRAYS.items()}
    runs = [
        train(experiment(strategy=strategy, training=BY_SITE), ENDPOINT, *training_part(BAGS, arrays), quiet())
        for arrays in (ARRAYS, planted)
    ]
    plain, other = (run.models for run in runs)
    fold0 = plain["fold"] == 0
    assert plain[fold0].equals(other[fold0])
    assert not plain[~fold0].equals(other[~fold0])


def test_between_hospitals_no_moment_of_the_features_leaves_a_site(tmp_path: Path) -> None:
    """The models of `mil train` on all rows at once, and nothing of the features in any answer or in the result."""
    torch.set_num_threads(1)
    hospitals = make_hospitals(tmp_path / "hospitals")
    training = {"rounds": 3, "batch_size": 8, "lr": 0.05, "optimiser": "sgd", "scaling": "site"}
    with rewrite_protocol(hospitals, experiment={**PROTOCOL["experiment"], "training": training}):
        protocol = hospitals.protocol
        sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
        server = Server(protocol, "run", tmp_path / "server")
        inprocess.run(server, sites)
        bags = pd.concat([sites[name].bags for name in "AB"], ignore_index=True)
        pooled = {
            patient: sites[name].features.bag(number)
            for name in "AB"
            for number, patient in enumerate(sites[name].features.patients)
        }
        store = FeatureStore.of(pooled, sites["A"].features.about)
        whole = train(protocol.experiment, protocol.endpoint, bags, store, quiet())
    assert server.stages.progress.rounds == whole.models["rounds"].tolist()
    for name, value in server.stages.state.items():
        assert torch.allclose(value, whole.families[0].weights[name], rtol=1e-5, atol=1e-5), name
    stages = server.stages
    assert not stages.buffers["features.mean"].any()
    refit = Refit(stages.progress.choices, stages.progress.rounds, sites["A"].features.about)
    run = run_of(protocol, stages.state | stages.buffers, refit)
    external = sites["C"]
    here = predict(run, external.bags, external.features).table
    there = predict(whole, external.bags, external.features).table
    np.testing.assert_allclose(here["score"], there["score"], atol=1e-4)
