"""The protocol: what is selected on what, what may be seen by whom, and a run from table to predictions."""

import re

import numpy as np
import pytest
import torch
from heads import SMALL
from training_cohort import ENDPOINT, GRADIENTS, experiment, make_cohort
from training_runs import ARRAYS, BAGS, EVERYONE, ROWS, STORE, external_auroc, run_of

from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError
from mil.models import HEADS
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.statistics.moments import Moments
from mil.statistics.ranking import auroc_of
from mil.statistics.thresholds import read_inner
from mil.strategies import STRATEGIES
from mil.training.artefact import FILES
from mil.training.cohort import TrainingCohort
from mil.training.engine import Engine
from mil.training.protocol import candidates, groups, inner_tasks, refit_tasks
from mil.training.run import Run, _key, train
from mil.training.store import FeatureStore


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_run_learns_saves_and_predicts(strategy, tmp_path):
    sgd = {"optimiser": "sgd", "lr": 0.1} if strategy == "scaffold" else {}
    rates = {"fedadam": 0.2, "fedyogi": 0.2, "fedadagrad": 0.2, "fedsgd": 0.02}
    spec = {"name": strategy} | ({"server_lr": rates[strategy]} if strategy in rates else {})
    sgd = GRADIENTS | {"rounds": 60} if strategy == "fedsgd" else sgd
    run = run_of(strategy=spec, model="mean", training=sgd)
    assert list(run.models["trained_on"].unique()) == (["A", "B"] if strategy == "local" else ["A+B"])
    several = STRATEGIES[strategy].personal
    assert sorted(run.models["member"].unique()) == (["A", "B"] if several else [""])
    assert list(run.rounds.columns) == [
        "model", "phase", "round", "repeat", "fold", "site", "train_loss", "val_loss", "val_error", "val_auroc"
    ]  # fmt: skip
    run.save(tmp_path)
    loaded = Run.load(tmp_path)
    for name, weight in run.families[0].weights.items():
        assert torch.equal(weight, loaded.families[0].weights[name])
    found = predict(loaded, BAGS, EVERYONE)
    assert external_auroc(found) > 0.75
    by = found.table.groupby(["trained_on", "split"]).size()
    if strategy == "local":
        assert by.to_dict() == {
            (site, split): n for site in "AB" for split, n in (("held_out", 12), ("transfer", 12), ("external", 36))
        }
    else:
        assert by.to_dict() == {("A+B", "held_out"): 24, ("A+B", "external"): 36}
    assert set(found.attention) == set(ARRAYS)
    for patient, attention in found.attention.items():
        assert attention.shape == (len(ARRAYS[patient]),)
        assert attention.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("model", sorted(set(HEADS) - {"clinical", "mean"}))
def test_every_head_goes_through_a_run(model):
    training = {"rounds": 2, "local_epochs": 2}
    found = predict(run_of(model={"name": model} | SMALL[model], strategy="fedavg", training=training), BAGS, EVERYONE)
    assert np.isfinite(found.table["score"]).all()
    assert all(attention.sum() == pytest.approx(1, abs=1e-5) for attention in found.attention.values())


def test_same_seed_same_bits():
    first, second = (run_of(strategy="fedavg") for _ in range(2))
    assert first.models.equals(second.models)
    assert first.ledger.lines == second.ledger.lines
    assert run_of(strategy="fedavg", training={"seed": 1}).models["sha256"][0] != first.models["sha256"][0]


# Who sees whom


def test_training_refuses_external_sites():
    with pytest.raises(MilError, match=r"C00 of site C has role external"):
        train(experiment(), ENDPOINT, BAGS, EVERYONE, quiet())
    with pytest.raises(MilError, match="patient C00 is not in the training rows"):
        train(experiment(), ENDPOINT, ROWS, EVERYONE, quiet())


@pytest.mark.parametrize("strategy", ["local", "pooled", "fedavg"])
def test_what_the_outer_fold_and_external_sites_hold_changes_no_model(strategy):
    """Selection and refit for fold 0 with the patients of fold 0 replaced by noise of another label."""
    plain = run_of(strategy=strategy)
    hidden = ROWS["repeat0"] == 0
    arrays = {
        p: np.full_like(ARRAYS[p], 9.0) if out else ARRAYS[p] for p, out in zip(ROWS["patient_id"], hidden, strict=True)
    }
    rows = ROWS.assign(label=np.where(hidden, 1 - ROWS["label"], ROWS["label"]))
    other = train(experiment(strategy=strategy), ENDPOINT, rows, FeatureStore.of(arrays, {"encoder": "e"}), quiet())
    fold0 = plain.models["fold"] == 0
    assert plain.models[fold0].equals(other.models[fold0])
    assert not plain.models[~fold0].equals(other.models[~fold0])


def test_no_task_holds_a_patient_of_its_outer_fold_or_teaches_whom_it_watches():
    cohort = TrainingCohort.of(ROWS, ENDPOINT, build_endpoint(ENDPOINT))
    wanted = groups(cohort, [("A",), ("B",), ("A", "B")])
    tasks = inner_tasks(cohort, wanted, candidates(experiment()), 3)
    assert len(tasks) == 3 * 3 * 2
    for task in [*tasks, *refit_tasks(cohort, tasks, 2)]:
        outer = np.flatnonzero(cohort.outer[:, 0] == task.group.fold)
        assert not set(outer) & (set(task.train) | set(task.watched))
        assert not set(task.train) & set(task.watched)
        assert set(cohort.site[task.train]) <= set(task.group.trained_on)
        whole = cohort.outer_train(task.group.trained_on, 0, task.group.fold)
        assert sorted([*task.train, *task.watched]) == whole.tolist()


def test_an_inner_model_is_watched_on_its_fold_alone_and_learns_from_all_others():
    endpoint = EndpointSpec(folds=2, inner_folds=3)
    bags, _ = make_cohort(patients_a_site=18, endpoint=endpoint)
    cohort = TrainingCohort.of(bags[bags["role"] == "train"], endpoint, build_endpoint(endpoint))
    for task in inner_tasks(cohort, groups(cohort, [("A", "B")]), candidates(experiment()), 3):
        inner = cohort.inner[:, task.group.repeat, task.group.fold]
        seen = cohort.outer_train(task.group.trained_on, task.group.repeat, task.group.fold)
        assert task.watched.tolist() == [number for number in seen if inner[number] == task.inner]
        assert task.train.tolist() == [number for number in seen if inner[number] != task.inner]


@pytest.mark.parametrize("strategy", ["local", "pooled", "fedavg"])
def test_a_spy_sees_no_patient_of_the_outer_fold_or_of_another_site_in_any_learners_hands(strategy, monkeypatch):
    """Every bag that a learner trains on or is watched with, in selection and refit, as the engine is asked for it."""
    seen = []
    train_plainly, apply_plainly = Engine.train, Engine.apply

    def spied_train(self, learners, state, plans, places):
        seen.append([np.concatenate([np.empty(0, np.int64), *plan.batches]) for plan in plans])
        return train_plainly(self, learners, state, plans, places)

    def spied_apply(self, learners, bags, places, receive):
        seen.append(bags)
        return apply_plainly(self, learners, bags, places, receive)

    monkeypatch.setattr(Engine, "train", spied_train)
    monkeypatch.setattr(Engine, "apply", spied_apply)
    run_of(strategy=strategy, training={"rounds": 2, "local_epochs": 1})
    cohort = TrainingCohort.of(ROWS, ENDPOINT, build_endpoint(ENDPOINT))
    number = {patient: k for k, patient in enumerate(cohort.patients)}
    patient = np.array([number[name] for name in STORE.patients])
    wanted = groups(cohort, [("A",), ("B",)] if strategy == "local" else [("A", "B")])
    for bags in seen:  # group by group, each with its inner folds and sites
        for group, own in zip(np.repeat(wanted, len(bags) // len(wanted)), bags, strict=True):
            assert set(patient[own]) <= set(cohort.outer_train(group.trained_on, group.repeat, group.fold))
    assert sum(len(own) for bags in seen for own in bags) > 100


def test_one_training_site_makes_federated_and_pooled_the_same():
    rows = ROWS[ROWS["site"] == "A"]
    store = FeatureStore.of({patient: ARRAYS[patient] for patient in rows["patient_id"]})
    sgd = {"optimiser": "sgd", "lr": 0.1}
    pooled, fedavg, cyclic = (
        train(experiment(strategy=name, training=sgd), ENDPOINT, rows, store, quiet())
        for name in ("pooled", "fedavg", "cyclic")
    )
    assert pooled.models["rounds"].tolist() == fedavg.models["rounds"].tolist()
    for name, weight in pooled.families[0].weights.items():
        torch.testing.assert_close(fedavg.families[0].weights[name], weight, rtol=1e-6, atol=1e-6)
        assert torch.equal(cyclic.families[0].weights[name], weight)


# Scales, imbalance, covariates, endpoints


def test_scales_are_the_training_patients_and_merged_from_sites():
    run = run_of(strategy="fedavg", training={"rounds": 1})
    seen = ROWS[ROWS["repeat0"] != 1]
    tiles = np.concatenate([ARRAYS[patient] for patient in seen["patient_id"]]).astype(np.float64)
    weights = run.families[0].weights
    np.testing.assert_allclose(weights["features.mean"][1], tiles.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights["features.deviation"][1], tiles.std(0), rtol=1e-5)


def test_moments_merge_without_loss_far_from_zero():
    bags = {f"p{k}": np.random.default_rng(k).normal(1e3, 1e-1, (50, 3)).astype(np.float32) for k in range(6)}
    moments, tiles = Moments.of_bags(FeatureStore.of(bags)), np.concatenate(list(bags.values())).astype(np.float64)
    sites = Moments.stacked([moments.merged(np.array([0, 1])), moments.merged(np.array([2, 3, 4, 5]))])
    whole = sites.merged(np.arange(2))
    np.testing.assert_allclose(whole.mean[0], tiles.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.squares[0], ((tiles - tiles.mean(0)) ** 2).sum(0), rtol=1e-10)


def test_a_column_that_never_varies_is_only_centred():
    bags = {"p": np.tile(np.float32([5.0, 0.0]), (4, 1))}
    mean, deviation = Moments.of_bags(FeatureStore.of(bags)).scale()
    assert mean.tolist() == [5, 0]
    assert deviation.tolist() == [1, 1]


def test_scaling_does_not_depend_on_the_unit():
    tiles = np.random.default_rng(0).normal(2, 1, (40, 3))
    for unit in (1e-12, 1e-7, 1.0, 1e9):
        mean, deviation = Moments.of_bags(FeatureStore.of({"p": (tiles * unit).astype(np.float32)})).scale()
        np.testing.assert_allclose(mean / unit, tiles.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation / unit, tiles.std(0), rtol=1e-5)


@pytest.mark.parametrize("imbalance", ["weights", "sampling"])
def test_rare_classes_count_as_much_as_common_ones(imbalance):
    rows = ROWS[(ROWS["label"] == 0) | ROWS["patient_id"].isin(["A01", "A03", "A05", "B01", "B03", "B05"])]
    store = FeatureStore.of({patient: ARRAYS[patient] for patient in rows["patient_id"]}, {"encoder": "e"})
    noise = {"rounds": 4, "lr": 0.05, "local_epochs": 8}
    plain, even = (
        train(experiment(model="mean", training=noise | {"imbalance": kind}), ENDPOINT, rows, store, quiet())
        for kind in ("none", imbalance)
    )
    there = BAGS[BAGS["patient_id"].isin(rows["patient_id"]) | (BAGS["role"] == "external")]
    means = [predict(run, there, EVERYONE).table["score"].mean() for run in (plain, even)]
    assert means[1] > means[0] + 0.03


def test_covariates_alone_and_beside_the_slides(tmp_path):
    generator = np.random.default_rng(1)
    bags = BAGS.assign(age=BAGS["label"] * 20 + 50 + generator.normal(size=len(BAGS)), grade="")
    bags.loc[bags.index[::7], "age"] = np.nan
    bags.loc[bags.index[::2], "grade"] = "2"
    rows = bags[bags["role"] == "train"]
    for model in ("clinical", "mean"):
        run = run_of(model=model, strategy="fedavg", rows=rows, covariates=["age", "grade"], training={"lr": 0.1})
        run.save(tmp_path / model)
        assert external_auroc(predict(Run.load(tmp_path / model), bags, EVERYONE)) > 0.8
    with pytest.raises(MilError, match="patient A00: covariate grade is 'high'"):
        run_of(model="mean", rows=rows.assign(grade="high"), covariates=["grade"])
    with pytest.raises(MilError, match="column 'agee' is missing; did you mean 'age'"):
        run_of(model="mean", rows=rows, covariates=["agee"])


@pytest.mark.parametrize("strategy", ["pooled", "fedavg"])
@pytest.mark.parametrize("kind", ["multiclass", "survival", "regression"])
def test_every_kind_of_endpoint_goes_through_a_run(kind, strategy, tmp_path):
    shape = {"folds": 3, "inner_folds": 2}
    generator = np.random.default_rng(2)
    if kind == "multiclass":
        spec = EndpointSpec(kind=kind, classes=("no", "some", "much"), **shape)
        bags = BAGS.assign(label=np.where(BAGS["label"] == 0, "no", "much"))
    elif kind == "survival":
        spec = EndpointSpec(kind=kind, column="months", event="dead", **shape)
        bags = BAGS.assign(time=np.where(BAGS["label"] == 1, 5, 50) + generator.integers(0, 9, len(BAGS)), label=1)
    else:
        spec = EndpointSpec(kind=kind, **shape)
        bags = BAGS.assign(label=1000 + 50 * BAGS["label"] + generator.normal(size=len(BAGS)))
    training = {"lr": 0.05, "batch_size": 24, "rounds": 8}
    run = run_of(endpoint=spec, rows=bags[bags["role"] == "train"], model="mean", strategy=strategy, training=training)
    run.save(tmp_path)
    table = predict(Run.load(tmp_path), bags, EVERYONE).table
    score = table.assign(wanted=table["patient_id"].map(BAGS.set_index("patient_id")["label"]))
    column = "score_much" if kind == "multiclass" else "score"
    assert auroc_of(score[column].to_numpy(), score["wanted"].to_numpy() == 1) > 0.75
    if kind == "regression":
        assert 950 < score["score"].mean() < 1100
    if kind == "multiclass":
        np.testing.assert_allclose(table[["score_no", "score_some", "score_much"]].sum(1), 1)


# Refusals


def test_clam_needs_classes_and_scaffold_needs_sgd():
    with pytest.raises(MilError, match="clam_sb needs an endpoint with classes"):
        run_of(
            endpoint=EndpointSpec(kind="regression", folds=3, inner_folds=2),
            model={"name": "clam_sb"} | SMALL["clam_sb"],
        )
    with pytest.raises(ValueError, match="scaffold needs training"):
        experiment(strategy="scaffold")
    with pytest.raises(ValueError, match="clinical needs covariates"):
        experiment(model="clinical")


def test_every_file_of_a_run_that_was_altered_is_refused(tmp_path):
    run = run_of(model="mean", training={"rounds": 1})
    run.save(tmp_path)
    Run.load(tmp_path)
    generator = np.random.default_rng(0)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == sorted([*FILES, "spec.json"])
    for name in names:
        content = (tmp_path / name).read_bytes()
        for at in generator.integers(len(content), size=8):
            flipped = bytes([content[at] ^ (1 << int(generator.integers(8)))])
            (tmp_path / name).write_bytes(content[:at] + flipped + content[at + 1 :])
            with pytest.raises(CorruptFile, match=re.escape(name)):
                Run.load(tmp_path)
        if name == "inner.csv":
            with pytest.raises(CorruptFile, match=r"inner\.csv is not as it was written"):
                read_inner(tmp_path / name)
        (tmp_path / name).unlink()
        with pytest.raises(MilError, match=re.escape(name) if name in FILES else "not there or not finished"):
            Run.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    Run.load(tmp_path)


def test_a_checkpoint_is_of_its_features_folds_and_labels():
    def key(bags, features):
        target = build_endpoint(ENDPOINT)
        return _key(experiment(), ENDPOINT, TrainingCohort.of(bags, ENDPOINT, target), features)

    own = list(ROWS["patient_id"])
    arrays = {patient: ARRAYS[patient] for patient in own}
    before = key(ROWS, FeatureStore.of(arrays, {"encoder": "e"}))
    assert (
        key(ROWS, FeatureStore.of({name: tiles.copy() for name, tiles in arrays.items()}, {"encoder": "e"})) == before
    )
    changed = arrays | {own[3]: arrays[own[3]] + np.float32(0.01)}
    assert key(ROWS, FeatureStore.of(changed, {"encoder": "e"})) != before
    assert key(ROWS, FeatureStore.of(arrays, {"encoder": "e"} | {"stain": "reinhard"})) != before
    for column in ("label", "repeat0"):
        other = ROWS.copy()
        other.loc[other.index[0], column] = 1 - int(other[column].iloc[0] > 0)
        assert key(other, FeatureStore.of(arrays, {"encoder": "e"})) != before


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"encoder": "f"}, "encoder is 'f', but the run was trained on 'e'"),
        ({"encoder": "e", "stain": "reinhard"}, "stain is 'reinhard', but the run was trained on None"),
    ],
)
def test_features_of_another_encoder_or_stain_are_refused(about, said):
    run = run_of(model="mean", training={"rounds": 1})
    with pytest.raises(CorruptFile, match=said):
        predict(run, BAGS, FeatureStore.of(ARRAYS, about))
