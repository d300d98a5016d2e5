"""Attention of patients: by which models, and beside which tiles."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from training_cohort import ENDPOINT, experiment, make_cohort

from mil import hdf5
from mil.files import file_name
from mil.predictions.attention import write_attention
from mil.predictions.predict import predict as predict_run
from mil.progress import quiet
from mil.training.run import train as train_run
from mil.training.store import FeatureStore

BAGS, ARRAYS = make_cohort()


def test_attention_of_a_training_site_is_of_its_held_out_models_alone():
    training = BAGS[BAGS["role"] == "train"]
    store = FeatureStore.of({name: ARRAYS[name] for name in training["patient_id"]}, {"encoder": "e"})
    run = train_run(experiment(strategy="local", training={"rounds": 2}), ENDPOINT, training, store, quiet())
    everyone = FeatureStore.of(ARRAYS, {"encoder": "e"})
    before = predict_run(run, BAGS, everyone).attention
    (family,), models = run.families, run.models
    rows = torch.from_numpy(models.loc[models["trained_on"] == "B", "row"].to_numpy())
    weights = {name: value.clone() for name, value in family.weights.items()}
    for value in weights.values():
        value[rows] *= 3.0
    after = predict_run(replace(run, families=[replace(family, weights=weights)]), BAGS, everyone).attention
    for patient, site in zip(BAGS["patient_id"], BAGS["site"], strict=True):
        same = np.array_equal(before[patient], after[patient])
        assert same == (site == "A"), patient  # B's models judge A's patients as a transfer, which is not averaged in


def test_attention_stands_beside_the_corners_of_its_own_tiles(tmp_path):
    sizes, generator = {"S 12 (b)": 3, "a": 4}, np.random.default_rng(0)
    corners = {name: generator.integers(0, 9999, (size, 2)) for name, size in sizes.items()}
    for name, size in sizes.items():
        with hdf5.writing(tmp_path / "A/features/e" / f"{file_name(name)}.h5") as file:
            file.append("features", np.zeros((size, 2), np.float16))
            file.append("coords", corners[name])
            file.annotate({"slide_id": name})
    weights = np.arange(7) / 21
    bags = pd.DataFrame([{"patient_id": "p", "site": "A", "slides": ";".join(sizes)}])
    for again in (7, 1):  # the second run's files stand in place of the first one's
        write_attention({"p": weights * again}, bags, tmp_path, "e", "x")
    for name, part in zip(sizes, (weights[:3], weights[3:]), strict=True):
        path = tmp_path / "A/attention/x" / f"{file_name(name)}.h5"
        found, at = hdf5.read(path, "attention", "coords")
        assert np.array_equal(at, corners[name])
        np.testing.assert_allclose(found, part, rtol=1e-6)
        assert hdf5.attributes(path)["slide_id"] == name
