"""Losses against others' code or arithmetic by hand, label checks, and the metrics."""

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from mil.config import EndpointSpec, MetricsSpec, parse
from mil.endpoints import ENDPOINTS, build_endpoint
from mil.errors import MilError
from mil.metrics.comparison import compare
from mil.metrics.score import score
from mil.tables import read_table, write_table

SPECS = {
    "binary": EndpointSpec(),
    "multiclass": EndpointSpec(kind="multiclass", classes=("luminal", "her2", "basal")),
    "survival": EndpointSpec(kind="survival", column="months", event="dead"),
    "regression": EndpointSpec(kind="regression"),
}
GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(size=60)
EVENTS = GENERATOR.random(60) < 0.6
TIMES = np.ceil(GENERATOR.exponential(10, 60) * np.exp(-SCORES / 2))  # whole months, so there are ties


def everyone(count):
    return torch.ones(count, dtype=torch.bool)


def test_every_kind_has_an_endpoint():
    assert set(ENDPOINTS) == set(SPECS)


def test_binary():
    endpoint, labels = build_endpoint(SPECS["binary"]), (SCORES + GENERATOR.normal(size=60) > 0).astype(float)
    losses = endpoint.losses(torch.tensor(SCORES)[:, None], torch.tensor(labels)[:, None], everyone(60))
    assert losses.mean().item() == pytest.approx(log_loss(labels, expit(SCORES)))
    errors = endpoint.errors(torch.tensor(SCORES)[:, None], torch.tensor(labels)[:, None], everyone(60))
    assert errors.mean().item() == pytest.approx(brier_score_loss(labels, expit(SCORES)))
    assert endpoint.metric(SCORES[:, None], labels[:, None]) == pytest.approx(roc_auc_score(labels, SCORES))
    np.testing.assert_allclose(endpoint.scores(SCORES[:, None])["score"], expit(SCORES))
    assert np.isnan(endpoint.metric(SCORES[:3, None], np.ones((3, 1))))


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_sums_are_of_all_bags_and_know_a_model_that_diverged(kind):
    endpoint = build_endpoint(SPECS[kind])
    logits = GENERATOR.normal(size=(20, endpoint.outputs))
    columns = [GENERATOR.integers(0, 2, 20), np.arange(20) % 2][-len(endpoint.columns) :]
    targets = torch.tensor(np.stack(columns, axis=1)).double()
    loss, error, count = endpoint.sums(logits, targets)
    given = torch.tensor(logits), targets, everyone(20)
    assert loss == pytest.approx(endpoint.losses(*given).sum().item())
    assert error == pytest.approx(endpoint.errors(*given).sum().item())
    assert 0 <= error <= count * endpoint.largest_error
    assert count == endpoint.counts(targets, everyone(20)).sum()
    assert endpoint.sums(logits[:0], targets[:0]) == (0, 0, 0)
    logits[3] = np.inf
    assert np.isnan(endpoint.sums(logits, targets)[1])


def test_multiclass():
    endpoint = build_endpoint(SPECS["multiclass"])
    logits = GENERATOR.normal(size=(60, 3))
    bags = pd.DataFrame(
        {"patient_id": [f"p{k}" for k in range(60)], "label": GENERATOR.choice(SPECS["multiclass"].classes, 60)}
    )
    targets = endpoint.targets(bags)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = endpoint.losses(torch.tensor(logits), torch.tensor(targets), everyone(60))
    assert losses.mean().item() == pytest.approx(log_loss(targets[:, 0], shares, labels=[0, 1, 2]))
    errors = endpoint.errors(torch.tensor(logits), torch.tensor(targets), everyone(60))
    assert errors.mean().item() == pytest.approx(
        ((shares - np.eye(3)[targets[:, 0].astype(int)]) ** 2).sum(1).mean() / 2
    )
    found = endpoint.scores(logits)
    np.testing.assert_allclose(found["score_her2"], shares[:, 1])
    np.testing.assert_allclose(found["score"], shares.max(1))
    each = [roc_auc_score(targets[:, 0] == k, logits[:, k]) for k in range(3)]
    assert endpoint.metric(logits, targets) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("classes", [("01", "02", "03"), ("1", "1.5", "2"), ("0", "1+", "2+"), ("1.0", "2", "1e1")])
def test_classes_that_are_numbers_are_known_again_in_a_table(classes, tmp_path):
    endpoint = build_endpoint(EndpointSpec(kind="multiclass", classes=classes))
    names = [classes[k % 3] for k in range(9)]
    write_table(pd.DataFrame({"patient_id": [f"p{k}" for k in range(9)], "label": names}), tmp_path / "bags.csv")
    table = read_table(tmp_path / "bags.csv")
    assert endpoint.targets(table)[:, 0].tolist() == [0, 1, 2] * 3
    assert endpoint.coded(table)["label"].tolist() == [0, 1, 2] * 3
    assert endpoint.named(table).tolist() == names


def test_cox_loss_is_the_partial_likelihood_of_lifelines():
    endpoint = build_endpoint(SPECS["survival"])
    table = pd.DataFrame({"x": SCORES, "time": TIMES, "event": EVENTS})
    fitted = CoxPHFitter().fit(table, "time", "event")
    hazard = torch.tensor(SCORES * fitted.params_["x"])
    targets = torch.tensor(np.stack([TIMES, EVENTS], 1))
    losses = endpoint.losses(hazard[:, None], targets, everyone(60))
    assert -losses.sum().item() == pytest.approx(fitted.log_likelihood_, rel=1e-6)
    # where lifelines' coefficient is, the gradient is zero
    coefficient = torch.tensor(fitted.params_["x"], requires_grad=True)
    endpoint.losses((coefficient * torch.tensor(SCORES))[:, None], targets, everyone(60)).sum().backward()
    assert abs(coefficient.grad.item()) < 1e-3
    c_index = concordance_index(TIMES, -SCORES, EVENTS)
    assert endpoint.metric(SCORES[:, None], targets.numpy()) == pytest.approx(c_index)
    assert endpoint.counts(targets, everyone(60)).sum().item() == EVENTS.sum()


def test_cox_loss_by_hand_and_without_absent_bags():
    endpoint = build_endpoint(SPECS["survival"])
    hazard = torch.tensor([[0.5], [1.0], [-1.0], [9.0]])
    targets = torch.tensor([[2.0, 1.0], [5.0, 1.0], [3.0, 0.0], [1.0, 1.0]])
    losses = endpoint.losses(hazard, targets, torch.tensor([True, True, True, False]))
    powers = np.exp([0.5, 1.0, -1.0])
    np.testing.assert_allclose(losses, [np.log(powers.sum()) - 0.5, 0, 0, 0], rtol=1e-6, atol=1e-6)


def test_regression():
    endpoint = build_endpoint(SPECS["regression"])
    targets = SCORES + GENERATOR.normal(size=60)
    losses = endpoint.losses(torch.tensor(SCORES)[:, None], torch.tensor(targets)[:, None], everyone(60))
    np.testing.assert_allclose(losses, (SCORES - targets) ** 2 / 2)
    assert endpoint.metric(np.array([[1.0], [2.0], [2.0]]), np.array([[1.0], [2.0], [3.0]])) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_an_axis_of_models_changes_no_loss(kind):
    endpoint = build_endpoint(SPECS[kind])
    logits = torch.tensor(GENERATOR.normal(size=(4, 20, endpoint.outputs)))
    columns = {
        "binary": EVENTS[:20, None].astype(float),
        "multiclass": GENERATOR.integers(0, 3, (20, 1)).astype(float),
        "survival": np.stack([TIMES, EVENTS], 1)[:20],
        "regression": SCORES[:20, None],
    }
    targets = torch.tensor(columns[kind])
    together = endpoint.losses(logits, targets.expand(4, -1, -1), everyone(20).expand(4, -1))
    for k in range(4):
        torch.testing.assert_close(together[k], endpoint.losses(logits[k], targets, everyone(20)))


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("binary", {"label": "yes"}, "patient p7: label 'yes' is not 0 or 1"),
        (
            "multiclass",
            {"label": "luminl"},
            "patient p7: label 'luminl' is none of the endpoint's classes (luminal, her2, basal)",
        ),
        ("survival", {"label": 1, "time": -3}, "patient p7: time -3 is not positive"),
        ("survival", {"label": 2, "time": 3}, "patient p7: label 2 is not 0 or 1"),
        ("survival", {"label": 1}, "column 'time' is missing"),
        ("regression", {"label": "nan"}, "patient p7: label 'nan' is not a number"),
    ],
)
def test_bad_labels_name_the_patient(kind, row, said):
    bags = pd.DataFrame([{"patient_id": "p7"} | row])
    with pytest.raises(MilError) as caught:
        build_endpoint(SPECS[kind]).targets(bags)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "multiclass"},
        *({"kind": "multiclass", "classes": classes} for classes in (["a", "a"], ["1", "01"])),
        {"kind": "survival"},
    ],
)
def test_incomplete_specs_are_refused(spec):
    with pytest.raises(MilError, match="needs"):
        parse(EndpointSpec, spec, "cohort.yaml")


@pytest.mark.parametrize("kind", ["survival", "multiclass"])
@pytest.mark.parametrize("number", [1, 4, 5])
def test_few_events_or_patients_of_a_class_have_a_value_and_no_interval(kind, number):
    """Bootstraps within so few are too narrow (`FEWEST`); from five on there is an interval and a test."""
    endpoint, patients = build_endpoint(SPECS[kind]), np.arange(30)
    table = pd.DataFrame({"patient_id": patients, "trained_on": "A", "repeat": 0, "fold": 0, "site": "B"})
    table = table.assign(experiment="x", role="external", split="external", score=SCORES[:30])
    if kind == "survival":
        table = table.assign(time=patients + 1.0, label=(patients < number).astype(int))
    else:
        shares = softmax(np.random.default_rng(0).normal(size=(30, 3)), axis=1)
        table[[f"score_{name}" for name in SPECS[kind].classes]] = shares
        table["label"] = np.where(patients < number, "basal", np.where(patients % 2, "her2", "luminal"))
    other = table.assign(experiment="y", score=-table["score"])
    rows = score(table, MetricsSpec(bootstrap=100), kind=endpoint).set_index(["site", "metric"]).loc["external sites"]
    for name in (endpoint.primary.name, f"{endpoint.primary.name}_within_sites"):
        row = rows.loc[name]
        assert np.isfinite(row["value"])
        assert np.isfinite(row["low"]) == (number == 5)
        assert row["method"].startswith("no interval: ") == (number < 5)
    tested = compare({"x": table, "y": other}, MetricsSpec(bootstrap=100), kinds={"x": endpoint, "y": endpoint})
    assert tested["p"].notna().all() == (number == 5)
    assert tested["method"].str.startswith("no test: ").all() == (number < 5)
