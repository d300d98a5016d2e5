import numpy as np
import pandas as pd
import pytest
import torch

from mil.errors import CorruptFile, MilError
from mil.federation import ledger
from mil.predictions import predict
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.training.run import Run, train
from mil.training.store import FeatureStore

ENDPOINT = EndpointSpec(folds=3, inner_folds=2)
SITES = {"A": "train", "B": "train", "C": "external"}


def make_cohort(patients_a_site=12, width=8, seed=0):
    """A toy cohort whose positive bags hold some tiles that are shifted along one axis."""
    generator = np.random.default_rng(seed)
    rows, bags = [], {}
    for site, role in SITES.items():
        for number in range(patients_a_site):
            patient, label = f"{site}{number:02d}", number % 2
            tiles = generator.normal(size=(int(generator.integers(3, 20)), width)).astype(np.float32)
            tiles[: max(1, len(tiles) // 3), 0] += 3 * label
            bags[patient] = tiles
            row = {"patient_id": patient, "slides": patient, "site": site, "role": role, "label": label}
            fold = (number // 2) % 3
            for f in range(3) if role == "train" else ():
                row[f"repeat0_fold{f}_inner"] = "" if f == fold else (number // 6 + (fold == (f + 1) % 3)) % 2
            rows.append(row | {"repeat0": fold if role == "train" else ""})
    return pd.DataFrame(rows), bags


def experiment(**changes):
    base = {
        "encoder": "e",
        "endpoint": "response",
        "model": {"name": "gated_attention", "hidden": 8, "attention": 4},
        "strategy": "pooled",
        "training": {"rounds": 6, "local_epochs": 4, "batch_size": 4, "lr": 0.02},
    }
    return ExperimentSpec.model_validate(base | changes)


def run_of(bags, arrays, **changes):
    rows = bags[bags.role == "train"]
    store = FeatureStore.of({patient: arrays[patient] for patient in rows.patient_id}, {"encoder": "e"})
    return train(experiment(**changes), ENDPOINT, rows, store, quiet())


@pytest.mark.parametrize("strategy", ["local", "pooled", "fedavg"])
@pytest.mark.parametrize("model", ["mean", "gated_attention"])
def test_a_run_learns_saves_and_predicts(strategy, model, tmp_path):
    bags, arrays = make_cohort()
    run = run_of(bags, arrays, strategy=strategy, model=model)
    assert list(run.models.trained_on.unique()) == (["A", "B"] if strategy == "local" else ["A+B"])
    assert set(run.rounds.phase) == {"inner", "refit"}
    run.save(tmp_path)
    loaded = Run.load(tmp_path)
    assert ledger.verify(tmp_path / "ledger.jsonl") == len(run.ledger.lines)
    for name, weight in run.families[0].weights.items():
        assert torch.equal(weight, loaded.families[0].weights[name])
    found = predict(loaded, bags, FeatureStore.of(arrays, {"encoder": "e"}))
    external = (
        found.table[found.table.split == "external"]
        .groupby("patient_id")
        .agg(score=("score", "mean"), label=("label", "first"))
    )
    positive = external.score[external.label == 1].to_numpy()
    assert (positive[:, None] > external.score[external.label == 0].to_numpy()).mean() > 0.8
    held_out = found.table[found.table.split == "held_out"]
    assert len(held_out) == 24
    for patient, attention in found.attention.items():
        assert attention.shape == (len(arrays[patient]),)
        assert attention.sum() == pytest.approx(1, abs=1e-5)


def test_same_seed_same_bits():
    bags, arrays = make_cohort()
    first, second = (run_of(bags, arrays, strategy="fedavg") for _ in range(2))
    assert first.models.equals(second.models)
    assert first.ledger.lines == second.ledger.lines
    assert not any("A00" in line for line in first.ledger.lines)


def test_training_refuses_external_sites():
    bags, arrays = make_cohort()
    with pytest.raises(MilError, match=r"C00 of site C has role external"):
        train(experiment(), ENDPOINT, bags, FeatureStore.of(arrays), quiet())
    with pytest.raises(MilError, match="patient C00 is not in the training rows"):
        train(experiment(), ENDPOINT, bags[bags.role == "train"], FeatureStore.of(arrays), quiet())


def test_altered_ledger_is_found(tmp_path):
    bags, arrays = make_cohort()
    run = run_of(bags, arrays, model="mean")
    run.save(tmp_path)
    lines = run.ledger.lines
    for altered in (
        lines[:3] + lines[4:],
        [lines[1], lines[0], *lines[2:]],
        [lines[0].replace('"round": 1', '"round": 2')],
    ):
        (tmp_path / "ledger.jsonl").write_text("\n".join(altered))
        with pytest.raises(CorruptFile, match="the ledger was altered"):
            ledger.verify(tmp_path / "ledger.jsonl")
