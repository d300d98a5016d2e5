"""Measures of every kind against scikit-learn, lifelines and scipy: ties, censoring, resamples, and what is not defined."""

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, r2_score, roc_auc_score

from mil.config import EndpointSpec, MetricsSpec
from mil.endpoints import ENDPOINTS, build_endpoint
from mil.endpoints.bounds import bootstrap_bounds
from mil.endpoints.curves import of_classes
from mil.endpoints.multiclass import balanced_accuracy, macro_auroc
from mil.endpoints.regression import absolute_error, mean_error, r_squared, slope, spearman
from mil.endpoints.survival import harrell
from mil.errors import MilError
from mil.metrics.comparison import compare
from mil.metrics.score import primary, score
from mil.metrics.strategies import strategy_table
from mil.predictions.patients import by_patient
from mil.statistics.arms import Scope
from mil.tables import read_table, write_table

SPEC = MetricsSpec(bootstrap=200)
CLASSES = ("low", "middle", "high")
SPECS = {
    "binary": EndpointSpec(),
    "multiclass": EndpointSpec(kind="multiclass", classes=CLASSES),
    "survival": EndpointSpec(kind="survival", column="months", event="relapsed"),
    "regression": EndpointSpec(kind="regression"),
}
PATIENTS = 30


def drawn(kind, seed=0, patients=PATIENTS):
    """Labels and scores as measures take them, with ties in both."""
    random = np.random.default_rng(seed)
    severity = random.normal(size=patients)
    seen = np.round(severity + random.normal(size=patients), 1)
    if kind == "multiclass":
        powers = np.exp(np.round(np.stack([-seen, 0 * seen, seen], axis=1), 1))
        labels = np.digitize(severity, [-0.5, 0.5])
        return np.where(np.arange(patients) < 3, np.arange(patients), labels), powers / powers.sum(1, keepdims=True)
    if kind == "survival":
        event, censored = random.exponential(20 * np.exp(-severity)), random.uniform(5, 40, patients)
        return np.stack([np.ceil(np.minimum(event, censored)), event <= censored], axis=1), seen
    if kind == "regression":
        return np.round(severity, 1), seen
    return (severity > 0).astype(int), 1 / (1 + np.exp(-seen))


def one_by_one(kind, labels, scores):
    """The primary measure by somebody else's code."""
    if kind == "multiclass":
        return roc_auc_score(labels, scores, multi_class="ovr", labels=range(3))
    if kind == "survival":
        return concordance_index(labels[:, 0], -scores, labels[:, 1])
    if kind == "regression":
        return stats.spearmanr(labels, scores).statistic
    return roc_auc_score(labels, scores)


def table_of(kind, seed=0, site=("north", "south"), name="e", patients=PATIENTS):
    """A table of predictions as `mil predict` writes it: two folds at training sites, both folds' models at an external one."""
    labels, scores = drawn(kind, seed, patients)
    rows = []
    for number in range(patients):
        external, fold = number % 3 == 2, number // 3 % 2
        row = {"patient_id": f"p{number:02d}", "site": "east" if external else site[number % 3], "repeat": 0}
        row |= {"role": "external" if external else "train", "split": "external" if external else "held_out"}
        row |= {"experiment": name, "trained_on": "north+south"}
        if kind == "multiclass":
            row |= {"label": CLASSES[labels[number]], "score": scores[number].max()}
            row |= {f"score_{one}": scores[number, place] for place, one in enumerate(CLASSES)}
        elif kind == "survival":
            row |= {"label": int(labels[number, 1]), "time": labels[number, 0], "score": scores[number]}
        else:
            row |= {"label": labels[number], "score": scores[number]}
        rows += [row | {"fold": one} for one in ((0, 1) if external else (fold,))]
    return pd.DataFrame(rows)


def without_label(table):
    """The same predictions, of other patients of these sites and of a further site, whose labels are not known."""
    targets = [name for name in ("label", "time") if name in table]
    blank = table.assign(patient_id="x" + table["patient_id"], **dict.fromkeys(targets, np.nan))
    further = table[table["split"] == "external"].assign(site="west", **dict.fromkeys(targets, np.nan))
    return pd.concat([blank, further.assign(patient_id="y" + further["patient_id"])])


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_patients_without_a_label_have_a_score_and_are_in_no_measure(kind, tmp_path):
    built, targets = build_endpoint(SPECS[kind]), ["label", *(["time"] if kind == "survival" else [])]
    tables = {name: table_of(kind, seed, name=name) for seed, name in enumerate("ef")}
    tables["f"][targets] = tables["e"][targets]  # other scores of the same patients
    more = {
        name: pd.concat([without_label(table)[:9], table, without_label(table)[9:]]) for name, table in tables.items()
    }
    write_table(more["e"], tmp_path / "e.csv")
    read = read_table(tmp_path / "e.csv", only_labelled=True)
    pd.testing.assert_frame_equal(read, tables["e"], check_dtype=False)
    for found in (more["e"], read):
        pd.testing.assert_frame_equal(score(found, SPEC, kind=built), score(tables["e"], SPEC, kind=built))
    kinds = dict.fromkeys("ef", built)
    pd.testing.assert_frame_equal(compare(more, SPEC, kinds=kinds), compare(tables, SPEC, kinds=kinds))
    pd.testing.assert_frame_equal(
        strategy_table(more, SPEC, "e", None, built), strategy_table(tables, SPEC, "e", None, built)
    )
    patients = by_patient(more["e"], built).set_index("patient_id")
    assert len(patients) == more["e"]["patient_id"].nunique()
    columns = [name for name in patients if name.startswith(built.quantity)]
    twins = patients.loc["x" + patients.index[patients.index.str.startswith("p")]]
    known = patients[patients.index.str.startswith("p")]
    assert twins["label"].isna().all()
    assert np.array_equal(twins[columns], known[columns])
    assert set(patients.loc[patients["site"] == "west", "models"]) == {2}


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_a_label_that_is_lost_is_no_patient_without_a_label(kind):
    built, table = build_endpoint(SPECS[kind]), table_of(kind)
    with pytest.raises(MilError, match="none of 30 patients has a label"):
        score(without_label(table).query("site != 'west'"), SPEC, kind=built)
    lost = table.astype({"label": object})
    row = table.index[table["patient_id"] == "p02"][0]
    lost.loc[row, [name for name in ("label", "time") if name in table]] = np.nan
    with pytest.raises(MilError, match="patient p02 has a label in some rows and none in others"):
        score(lost, SPEC, kind=built)


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_every_resample_is_what_others_make_of_the_patients_drawn(kind):
    (labels, scores), built = drawn(kind), build_endpoint(SPECS[kind])
    random = np.random.default_rng(1)
    chosen = [np.r_[:3, random.integers(0, PATIENTS, PATIENTS)] if kind == "multiclass" else
              random.integers(0, PATIENTS, PATIENTS) for _ in range(20)]  # fmt: skip
    weights = np.stack([np.bincount(one, minlength=PATIENTS) for one in chosen]).astype(float)
    found = built.primary.function(labels, scores, np.concatenate([np.ones((1, PATIENTS)), weights]))
    assert found[0] == pytest.approx(one_by_one(kind, labels, scores))
    assert found[1:] == pytest.approx([one_by_one(kind, labels[one], scores[one]) for one in chosen])


def test_further_measures_are_those_of_scikit_learn_and_scipy():
    labels, scores = drawn("multiclass")
    once = np.ones((1, PATIENTS))
    assert balanced_accuracy(labels, scores, once)[0] == pytest.approx(
        balanced_accuracy_score(labels, scores.argmax(1))
    )
    scope = Scope("A", "external", "C", pd.DataFrame({"label": labels}))
    points = pd.concat(of_classes(scope, scores, "abc"))
    counts = points.loc[points["curve"] == "confusion", "patients"].to_numpy().reshape(3, 3)
    assert (counts == confusion_matrix(labels, scores.argmax(1), labels=range(3))).all()
    labels, scores = drawn("regression")
    assert r_squared(labels, scores, once)[0] == pytest.approx(r2_score(labels, scores))
    assert slope(labels, scores, once)[0] == pytest.approx(stats.linregress(scores, labels).slope)
    assert absolute_error(labels, scores, once)[0] == pytest.approx(np.abs(labels - scores).mean())
    assert mean_error(labels, scores + 2, once)[0] == pytest.approx((scores - labels).mean() + 2)


def test_within_sites_no_measure_is_earned_by_telling_sites_apart():
    """Two sites, scores that know the site alone: over both well above chance, within them chance."""
    sites = np.repeat(["a", "b"], 15)
    high = (sites == "b").astype(float)
    once = np.ones((1, 30))
    event = np.stack([np.where(high > 0, 5.0, 50.0) + np.tile(np.arange(15), 2), np.ones(30)], axis=1)
    survival, regression = build_endpoint(SPECS["survival"]), build_endpoint(SPECS["regression"])
    assert harrell(event, high, once)[0] > 0.7
    assert survival.within(event, high, once, sites)[0] == 0.5
    assert spearman(-event[:, 0], high, once)[0] > 0.7
    assert np.isnan(regression.within(-event[:, 0], high, once, sites)[0])  # no site's scores vary: said, not 0
    classes = np.where(high > 0, 2, np.arange(30) % 2)
    shares = np.stack([1 - high, 1 - high, high], axis=1) + 0.0
    assert macro_auroc(classes, shares, once)[0] > 0.7
    assert np.isnan(build_endpoint(SPECS["multiclass"]).within(classes, shares, once, sites)[0])


def numbers_at_two_sites(folds):
    """Predictions of a number by two models: `good` ranks as observed, `flat` as well at A and says one number at B."""
    random, tables = np.random.default_rng(0), {}
    label = random.normal(size=40)
    site = np.repeat(["A", "B"], 20)
    seen = {"good": np.where(site == "A", label, -label), "flat": np.where(site == "A", label, 0.5)}
    for name, score_ in seen.items():
        table = {"experiment": name, "trained_on": "A+B", "repeat": 0, "site": site, "label": label, "score": score_}
        table["patient_id"] = [f"p{number:02d}" for number in range(40)]
        table |= (
            {"fold": np.arange(40) % 4, "role": "train", "split": "held_out"}
            if folds
            else {"fold": 0, "role": "external", "split": "external"}
        )
        tables[name] = pd.DataFrame(table)
    return tables


@pytest.mark.parametrize("folds", [True, False])
def test_a_difference_of_correlations_rests_on_the_same_sites_on_both_sides(folds):
    """At B one model's scores do not vary: both count site A alone, where they are equal."""
    kinds = dict.fromkeys(("good", "flat"), build_endpoint(SPECS["regression"]))
    table = compare(numbers_at_two_sites(folds), SPEC, kinds=kinds)
    row = table[table["site"] == ("training sites" if folds else "external sites")].iloc[0]
    assert row["first_value"] == row["second_value"] == pytest.approx(1)
    assert row["difference"] == 0
    found = strategy_table(numbers_at_two_sites(folds), SPEC, "flat", None, kinds["good"])
    found = found[(found["experiment"] == "good") & (found["against"] == "pooled") & (found["site"] == row["site"])]
    assert found[["value", "against_value"]].to_numpy().tolist() == [[pytest.approx(1), pytest.approx(1)]]


@pytest.mark.parametrize("kind", [kind for kind in ENDPOINTS if kind != "binary"])
def test_what_is_not_defined_is_said_and_not_one_half(kind):
    table = table_of(kind)
    if kind == "multiclass":
        table = table[(table["site"] != "north") | (table["label"] != "high")]
        reason = "not defined: no patient of class high"
    elif kind == "survival":
        table.loc[table["site"] == "north", "label"] = 0
        reason = "not defined: no patient had the event"
    else:
        table.loc[table["site"] == "north", "label"] = 4.0
        reason = "not defined: all patients have the same label"
    built = build_endpoint(SPECS[kind])
    found = score(table, SPEC, kind=built)
    rows = found[(found["metric"] == built.primary.name) & (found["site"] == "north")]
    assert (rows["value"].isna() & rows["low"].isna() & (rows["method"] == reason)).all()
    assert len(rows)
    assert primary(found).set_index("site").loc[["east", "south"], "value"].notna().all()


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_scores_and_comparisons_have_intervals_around_their_values(kind):
    built = build_endpoint(SPECS[kind])
    tables = {name: table_of(kind, seed, name=name) for name, seed in (("first", 0), ("second", 0))}
    noise = np.random.default_rng(5)
    columns = [name for name in tables["second"] if name.startswith("score")]
    for column in columns:
        moved = tables["second"][column] + noise.normal(0, 0.05, len(tables["second"]))
        tables["second"][column] = moved.clip(0, 1) if kind in {"binary", "multiclass"} else moved
    shares = [name for name in columns if name != "score"]
    tables["second"][shares] = tables["second"][shares].div(tables["second"][shares].sum(axis=1), axis=0)
    found = primary(score(tables["first"], SPEC, kind=built))
    assert set(found["site"]) == {"north", "south", "east", "training sites", "external sites"}
    reason = found["method"].str.startswith("no interval")  # few patients, named
    assert not reason.any() or kind != "regression"
    assert (reason | ((found["low"] < found["value"]) & (found["value"] < found["high"]))).all()
    compared = compare(tables, SPEC, kinds=dict.fromkeys(tables, built))
    shown = compared
    reason = shown["method"].str.startswith("no test")
    unvaried = (shown["difference"] == 0) & (shown["p"] == 1) & shown["low"].isna()  # the same in both folds
    known = (shown["low"] <= shown["difference"]) & (shown["difference"] <= shown["high"])
    assert (reason | unvaried | known).all()
    assert (reason | shown["p"].between(0, 1)).all()
    quoted = compared[compared["primary"] == 1]
    assert set(quoted["site"]) == {"training sites", "external sites"}
    method = quoted.set_index("site").loc["training sites", "method"]
    assert method.startswith("no test" if kind == "binary" else "corrected resampled t-test")
    again = compare({"first": tables["first"], "second": tables["first"]}, SPEC, kinds=dict.fromkeys(tables, built))
    assert (again["difference"] == 0).all()
    assert (again["p"].dropna() == 1).all()


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_measures_of_a_number_hold_in_any_unit(unit):
    kind, table = build_endpoint(SPECS["regression"]), table_of("regression")
    other = table.assign(label=table["label"] * unit, score=table["score"] * unit)
    plain, scaled = (
        score(one, SPEC, kind=kind).set_index("metric")[["value", "low", "high"]] for one in (table, other)
    )
    lengths = plain.index.isin(["mae", "mean_error"])
    assert plain.notna().to_numpy().any(axis=0).all()
    pd.testing.assert_frame_equal(scaled, plain.mul(np.where(lengths, unit, 1), axis=0))


def test_the_measure_of_a_fold_is_of_its_own_patients():
    table, kind = table_of("survival"), build_endpoint(SPECS["survival"])
    found = kind.folds(table).set_index(["site", "fold"])["value"]
    own = table[(table["site"] == "north") & (table["fold"] == 1)]
    assert found["north", 1] == pytest.approx(concordance_index(own["time"], -own["score"], own["label"]))


def test_a_constant_added_to_one_models_log_hazards_changes_no_number():
    kind, tables = build_endpoint(SPECS["survival"]), {name: table_of("survival", name=name) for name in "ef"}
    tables["f"]["score"] = -tables["f"]["score"]
    moved = {name: table.assign(score=table["score"] + 7 * table["fold"]) for name, table in tables.items()}
    pd.testing.assert_frame_equal(score(moved["e"], SPEC, kind=kind), score(tables["e"], SPEC, kind=kind))
    before, after = (strategy_table(one, SPEC, "e", None, kind) for one in (tables, moved))
    pd.testing.assert_frame_equal(after, before)


def test_log_hazards_of_a_site_left_out_are_compared_model_by_model():
    kind, table = build_endpoint(SPECS["survival"]), table_of("survival")
    table = table[table["split"] == "held_out"].assign(split="transfer")
    table["trained_on"] = table["site"].map({"north": "south+x", "south": "north+x"})
    moved = table.assign(score=table["score"] + 7 * table["fold"] + 5 * (table["site"] == "north"))
    pd.testing.assert_frame_equal(score(moved, SPEC, kind=kind), score(table, SPEC, kind=kind))
    local, own = (one.assign(split="held_out", trained_on=one["site"]) for one in (table, moved))  # a model per site
    pd.testing.assert_frame_equal(score(own, SPEC, kind=kind), score(local, SPEC, kind=kind))


def test_too_many_undefined_resamples_leave_no_interval():
    values = np.r_[np.full(80, 0.6), np.full(20, np.nan)]
    found = bootstrap_bounds("share", 0.6, values, 20, 0.95)
    assert np.isnan(found.low)
    assert found.method == "no interval: not defined in 20% of the resamples"


@pytest.mark.parametrize(
    ("kind", "column", "value", "said"),
    [
        ("multiclass", "label", "huge", "label 'huge' is refused"),
        ("multiclass", "score_low", 1.5, "score_low '1.5' is refused"),
        ("multiclass", "score_low", 0.999, "the probabilities of the classes add up to 1."),
        ("survival", "time", -3.0, "time '-3.0' is refused"),
        ("survival", "score", np.inf, "score 'inf' is refused"),
        ("survival", "label", 2, "label '2' is refused"),
        ("regression", "label", np.inf, "label 'inf' is refused"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_with_its_patient(kind, column, value, said):
    table = table_of(kind)
    table.loc[3, column] = value
    with pytest.raises(MilError) as caught:
        score(table, SPEC, kind=build_endpoint(SPECS[kind]))
    assert said in str(caught.value)
    assert f"patient {table.loc[3, 'patient_id']}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(MilError, match="column 'time' is missing"):
        score(table_of("survival").drop(columns="time"), SPEC, kind=build_endpoint(SPECS["survival"]))
