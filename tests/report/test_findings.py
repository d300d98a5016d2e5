"""What the report says of a run with three families, three encoders and five sites, one of them with a single class."""

import shutil

import numpy as np
import pandas as pd
import pytest
from without_label import FURTHER, with_more_patients

from mil.bags.table import deal_folds
from mil.config import Config, ExperimentSpec
from mil.endpoints import build_endpoint
from mil.figures.ablations import draw as draw_ablations
from mil.files import write_text
from mil.metrics.comparison import compare, compare_with
from mil.metrics.localisation import SlideAttention, localise
from mil.metrics.score import score
from mil.report.claims import claims, headline, leak_warning
from mil.report.limits import limits
from mil.report.methods import methods
from mil.report.model_card import model_card
from mil.report.tables import TABLES, tables_of
from mil.results.results import Results
from mil.results.study import main_experiment
from mil.rng import rng
from mil.tables import write_table

ROLES = {"A": "train", "B": "train", "C": "train", "X": "external", "Y": "external"}
ONE_STEP = {"optimiser": "sgd", "lr": 1.0, "local_steps": 1, "batch_size": 64, "schedule": "cosine"}
FEDSGD = {"name": "fedsgd", "server_lr": 0.004, "beta1": 0.8}
FEDADAM = {"name": "fedadam", "server_lr": 0.02, "beta2": 0.97}
EXPERIMENTS = {
    "mean_fedavg": ("effnet", "mean", "fedavg", {}),
    "attention_local": ("effnet", "gated_attention", "local", {}),
    "attention_pooled": ("effnet", "gated_attention", "pooled", {}),
    "attention_fedavg": ("effnet", "gated_attention", "fedavg", {}),
    "colour_fedavg": ("colour", "gated_attention", "fedavg", {}),
    "third_fedavg": ("third", "gated_attention", "fedavg", {}),
    "attention_fedsgd": ("effnet", "gated_attention", FEDSGD, ONE_STEP),
    "attention_fedadam": ("effnet", "gated_attention", FEDADAM, {"optimiser": "sgd", "lr": 0.1}),
}


def config_of(run: tuple[str, ...] = tuple(EXPERIMENTS), **changed) -> Config:
    stanzas = {
        name: {"encoder": encoder, "model": model, "strategy": strategy, "endpoint": "response", "training": training}
        for name, (encoder, model, strategy, training) in EXPERIMENTS.items()
    }
    given = {
        "cohort": "families",
        "slides": {"sheet": "slides.csv", "roles": ROLES},
        "encoders": {"effnet": {}, "colour": {"name": "colour"}, "third": {"name": "colour"}},
        "endpoints": {"response": {"folds": 2, "inner_folds": 2, "repeats": 1}},
        "experiments": stanzas,
        "run": list(run),
        "metrics": {"bootstrap": 100, "on_leak": "flag"},
    }
    return Config.model_validate(given | changed)


def predictions_of(name: str, experiment: ExperimentSpec, bags: pd.DataFrame) -> pd.DataFrame:
    training = sorted(site for site, role in ROLES.items() if role == "train")
    rows = []
    for on in training if experiment.strategy.name == "local" else ["+".join(training)]:
        for fold in range(2):
            for bag in bags.itertuples():
                if bag.role == "train" and bag.repeat0 != fold:
                    continue
                split = (
                    "external" if bag.role == "external" else "held_out" if bag.site in on.split("+") else "transfer"
                )
                seen = rng(0, name, on, bag.patient_id, fold).normal(1.2 * bag.label - 0.6, 1)
                score_of = float(1 / (1 + np.exp(-seen)))
                rows.append((name, on, 0, fold, bag.patient_id, bag.site, bag.role, split, bag.label, score_of))
    columns = ["experiment", "trained_on", "repeat", "fold", "patient_id", "site", "role", "split", "label", "score"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Tables alone: what the findings and the methods are made of needs no slide."""
    folder, config = tmp_path_factory.mktemp("families"), config_of()
    write_text(folder / "config.json", config.to_json())
    stream = rng(0, "labels")
    rows = [
        (f"{site}{number:02d}", f"{site}{number:02d}-1", site, role, 0 if site == "Y" else int(stream.random() < 0.5))
        for site, role in ROLES.items()
        for number in range(14)
    ]
    bags = pd.DataFrame(rows, columns=["patient_id", "slides", "site", "role", "label"])
    bags = deal_folds(bags, config.endpoints["response"])
    write_table(bags, folder / "bags/response.csv")
    tables = {name: predictions_of(name, one, bags) for name, one in config.selected().items()}
    for name, table in tables.items():
        write_table(table, folder / f"predictions/{name}.csv")
        write_table(score(table, config.metrics, config.experiments[name]), folder / f"metrics/{name}.csv")
    write_table(compare(tables, config.metrics, config.selected()), folder / "metrics/comparisons.csv")
    clinical = {"clinical_pooled": predictions_of("clinical_pooled", config.experiments["attention_pooled"], bags)}
    opened = Results.open(folder)
    table = compare_with(opened.federated, tables[opened.federated], clinical, config.metrics, "response")
    write_table(table, folder / "baselines/response/comparisons.csv")
    leak = {"check": "features effnet", "subject": "column 7", "state": "leak", "reason": "AUROC 1", "value": 1.0}
    write_table(pd.DataFrame([leak, leak | {"subject": "column 8", "state": "ok"}]), folder / "checks/deep.csv")
    return opened


def test_the_main_experiment_is_the_first_with_attention():
    assert main_experiment(config_of()) == "attention_local"
    assert main_experiment(config_of(("mean_fedavg", "attention_fedavg", "attention_fedadam"))) == "attention_fedavg"
    assert main_experiment(config_of(("mean_fedavg",))) == "mean_fedavg"
    config = config_of(("attention_pooled", "attention_fedavg"))
    left_out = config.experiments["attention_pooled"].model_copy(update={"protocol": "leave_one_site_out"})
    config = config.model_copy(update={"experiments": {**config.experiments, "attention_pooled": left_out}})
    assert main_experiment(config) == "attention_fedavg"
    assert main_experiment(config_of(figures={"main": "attention_fedsgd"})) == "attention_fedsgd"


@pytest.mark.slow
def test_every_arm_of_the_run_stands_in_the_comparisons(results):
    table = results.comparisons()
    assert {*table["first"], *table["second"]} == set(EXPERIMENTS)
    by_pair = table.set_index(["first", "second"])["factor"]
    assert set(by_pair.loc[[("attention_fedadam", "attention_pooled")]]) == {"strategy"}
    assert set(by_pair.loc[[("third_fedavg", "colour_fedavg")]]) == {"encoder"}


def test_findings_hold_federated_against_pooled_local_and_baselines(results):
    """Also where the report's main experiment is a local one."""
    assert (results.main, results.federated) == ("attention_local", "attention_fedavg")
    said = {claim.text: claim.numbers for claim in claims(results)}
    strategies = next(numbers for text, numbers in said.items() if "Pooled" in numbers)
    assert "of FedAvg less that of" in strategies
    assert "Local" in strategies
    assert "FedAdam" in strategies
    baselines = next(numbers for numbers in said.values() if "clinical" in numbers)
    assert "of FedAvg less that of: baseline clinical" in baselines


def test_a_site_without_a_patient_is_not_said_to_train(results):
    slides = results.config.slides.model_copy(update={"roles": {**ROLES, "D": "train", "Z": "external"}})
    further = Results(results.folder, results.config.model_copy(update={"slides": slides}))
    assert (further.training_sites, further.external_sites) == (["A", "B", "C"], ["X", "Y"])


def test_the_measure_says_whose_patients_are_not_in_it(results):
    said = claims(results)[bool(leak_warning(results))].numbers
    assert "28 patients" in said
    assert "It leaves out the patients of Y: no AUROC can be formed there." in said


def test_a_finding_on_training_sites_says_why_there_is_none_on_external_ones(results, tmp_path):
    shutil.copytree(results.folder / "metrics", tmp_path / "metrics")
    path = tmp_path / f"metrics/{results.main}.csv"
    table, reason = pd.read_csv(path), "not defined: patients of one class only"
    table.loc[table["split"] == "external", ["value", "low", "high", "method"]] = [np.nan, np.nan, np.nan, reason]
    table.to_csv(path, index=False)
    said = [claim.numbers for claim in claims(Results(tmp_path, results.config)) if "less that of" not in claim.numbers]
    assert any("On external sites no AUROC is defined: patients of one class only." in numbers for numbers in said)
    assert not any("On external sites no AUROC" in claim.numbers for claim in claims(results))


def test_differences_count_the_patients_of_sites_that_have_pairs(results):
    """Y has 14 patients of one class: of 28 external patients, 14 are set against one another."""
    numbers = [claim.numbers for claim in claims(results) if "less that of" in claim.numbers]
    assert len(numbers) == 2
    assert all("Paired on 14 patients." in said for said in numbers)


def test_a_measure_and_differences_that_do_not_vary_do_not_blame_the_number_of_patients(results, tmp_path):
    """No interval and no test though there are patients enough: the reason is that of the column `method`."""
    shutil.copytree(results.folder / "metrics", tmp_path / "metrics")
    for path in (tmp_path / "metrics").glob("*.csv"):
        table = pd.read_csv(path)
        if "difference" in table:
            blank = dict.fromkeys(["low", "high", "p", "low_adjusted", "high_adjusted", "p_adjusted"], np.nan)
            table.assign(method="DeLong, paired", **blank).to_csv(path, index=False)
        elif path.stem == results.main:
            table.assign(low=np.nan, high=np.nan, method="the resamples do not vary").to_csv(path, index=False)
    said = " ".join(claim.text + claim.numbers for claim in claims(Results(tmp_path, results.config)))
    assert "it cannot be said whether" in said
    assert "cannot be tested against" in said
    assert "too few" not in said


def test_encoders_and_models_are_drawn_where_any_strategy_has_several(results):
    drawn = draw_ablations(results, results.config.figures)
    assert set(drawn.data["experiment"]) == {"mean_fedavg", "attention_fedavg", "colour_fedavg", "third_fedavg"}


def test_methods_state_each_setting_and_what_leaves_a_site(results):
    text = " ".join(paragraph.text for paragraph in methods(results))
    for stated in (
        "server learning rate 0.004",
        "beta1 0.8",
        "server learning rate 0.02",
        "beta2 0.97",
        "schedule cosine",
        "local steps 1",
    ):
        assert stated in text
    assert "gradients" in text
    assert "Only model weights" not in text
    assert "squared deviations of the features" in text  # scaling `standard` merges the sites' moments


def test_a_flagged_leak_is_a_warning_a_finding_and_a_limit(results):
    assert "1 leak (features effnet, column 7)" in leak_warning(results)
    assert claims(results)[0].text == leak_warning(results)
    assert limits(results)[0] == leak_warning(results)


def test_patients_without_a_label_are_counted_apart_and_change_no_finding(results, tmp_path):
    more = with_more_patients(results, tmp_path / "results")
    assert (more.external_sites, more.sites) == (results.external_sites, [*results.sites, FURTHER])
    assert claims(more) == claims(results)
    plain, counted = ([(fact.number, fact.what) for fact in headline(one)] for one in (results, more))
    assert counted == [
        (number, what + ("; 19 more without a label" if what.startswith("patients") else "")) for number, what in plain
    ]
    for name in set(TABLES) - {"without_label"}:
        assert repr(tables_of(more, name)) == repr(tables_of(results, name)), name
    assert tables_of(results, "without_label") is None
    told = tables_of(more, "without_label")
    counts = {row[0].text: (row[2].text, row[-1].text) for row in told.rows}
    assert counts.pop(FURTHER) == ("14", "none, as no patient has a label")
    assert counts == dict.fromkeys(results.sites, ("1", "of the other patients"))
    new = set(limits(more)) - set(limits(results))
    assert len(new) == 1
    assert f"Of {FURTHER} there is no AUROC, as no patient there has a label." in new.pop()


def test_the_mean_over_slides_counts_only_the_slides_that_were_averaged(results):
    def slide(number: int, positive: int) -> SlideAttention:
        attention = rng(0, "slide", number).random(10)
        return SlideAttention(f"s{number}", f"p{number}", "A", "train", attention, np.arange(10) < positive, 10)

    table = localise([slide(0, 3), slide(1, 4), slide(2, 0), slide(3, 10)], results.config.metrics, "attention_fedavg")
    table = table[table["site"] == "A"].set_index("metric")
    counts = table[["patients", "slides", "tiles", "positive_tiles"]]
    assert counts.loc["tile_auroc_mean"].tolist() == [2, 2, 20, 7]
    assert counts.loc["tile_auroc_pooled"].tolist() == [4, 4, 40, 17]


def test_rows_and_limits_are_of_their_own_endpoint(tmp_path):
    """Endpoints of one kind and of another: which row is of which must be seen, and a model card counts its own patients."""
    names = {
        "attention_pooled": "response",
        "attention_fedavg": "response",
        "colour_fedavg": "her2",
        "third_fedavg": "age",
    }
    stanzas = {name: config_of().experiments[name].model_dump() | {"endpoint": one} for name, one in names.items()}
    folds = {"folds": 2, "inner_folds": 2}
    endpoints = {"response": folds, "her2": folds | {"column": "her2"}}
    endpoints["age"] = folds | {"column": "age", "kind": "regression"}
    config = config_of(tuple(names), experiments=stanzas, endpoints=endpoints)
    write_text(tmp_path / "config.json", config.to_json())
    bags, tables = {}, {}
    for endpoint, number in (("response", 12), ("her2", 16), ("age", 14)):
        rows = [(f"{s}{k:02d}", f"{s}{k:02d}-1", s, ROLES[s], k % 2) for s in ROLES for k in range(number)]
        bags[endpoint] = pd.DataFrame(rows, columns=["patient_id", "slides", "site", "role", "label"])
        bags[endpoint] = deal_folds(bags[endpoint], config.endpoints[endpoint])
        write_table(bags[endpoint], tmp_path / f"bags/{endpoint}.csv")
    for name, one in config.selected().items():
        predictions, kind = (
            predictions_of(name, one, bags[one.endpoint]),
            build_endpoint(config.endpoints[one.endpoint]),
        )
        write_table(score(predictions, config.metrics, one, kind=kind), tmp_path / f"metrics/{name}.csv")
        if kind.two_classes:
            tables[name] = predictions
    write_table(compare(tables, config.metrics, config.selected()), tmp_path / "metrics/comparisons.csv")
    results = Results.open(tmp_path)
    table = tables_of(results, "performance")
    assert table.head[0] == "Endpoint"
    counts = {(row[0].text, row[5].text) for row in table.rows if row[3].text == "A"}
    assert counts == {("response", "12"), ("her2", "16")}
    assert {row[0].text for row in tables_of(results, "comparisons").rows} == {"response"}
    further = tables_of(results, "further_endpoints")
    assert {tuple(cell.text for cell in row[:2]) for row in further.rows} == {("age", "Spearman's ρ")}
    assert {row[6].text for row in further.rows if row[4].text == "A"} == {"14"}
    assert any("about the endpoint response; of age, her2 the tables" in line for line in limits(results))
    for name, number in (("attention_pooled", 12), ("colour_fedavg", 16)):
        assert f"Few patients: A {number} ({number // 2} positive)" in model_card(results, name)


@pytest.mark.parametrize("strategy", ["attention_local", "attention_fedavg"])
@pytest.mark.parametrize(
    ("kind", "labels", "said"),
    [
        ({}, {"A": [0, 1], "B": [1, 1]}, "Site B has no negative patient of response: its local models"),
        (
            {"kind": "multiclass", "column": "grade", "classes": ("low", "middle", "high")},
            {"A": ["low", "middle", "high"], "B": ["low", "middle"]},
            "Site B has no patient of class high of response: its local models",
        ),
    ],
)
def test_a_site_that_lacks_a_class_comes_with_a_caution_about_its_local_models(tmp_path, strategy, kind, labels, said):
    config = config_of(
        (strategy,),
        slides={"sheet": "slides.csv", "roles": {"A": "train", "B": "train"}},
        endpoints={"response": {"folds": 2, "inner_folds": 2, **kind}},
    )
    rows = [
        (f"{s}{k:02d}", f"{s}{k:02d}-1", s, "train", own[k % len(own)]) for s, own in labels.items() for k in range(12)
    ]
    bags = pd.DataFrame(rows, columns=["patient_id", "slides", "site", "role", "label"])
    write_text(tmp_path / "config.json", config.to_json())
    write_table(bags, tmp_path / "bags/response.csv")
    told = [line for line in limits(Results.open(tmp_path)) if "local models" in line]
    assert [line.startswith(said) for line in told] == [True] * (strategy == "attention_local")
    if strategy == "attention_fedavg":  # baselines have local models as well
        metrics = pd.DataFrame({"experiment": ["clinical_local"], "value": [0.5]})
        write_table(metrics, tmp_path / "baselines/response/metrics.csv")
        assert any(line.startswith(said) for line in limits(Results.open(tmp_path)))


@pytest.mark.parametrize(
    ("patients", "said"),
    [(16, "one in twenty cohorts of 16 patients (8 positive)"), (60, "up to 3 in 100 have an interval below 0.5")],
)
def test_an_auroc_far_below_one_half_comes_with_what_chance_does(tmp_path, patients, said):
    """Held-out patients whom a model ranks in reverse: too few for an interval, and enough for one."""
    name, roles = "attention_fedavg", {"A": "train", "B": "train"}
    config = config_of((name,), slides={"sheet": "slides.csv", "roles": roles})
    bags = pd.DataFrame({"patient_id": [f"p{k:02d}" for k in range(patients)], "slides": "s", "role": "train"})
    bags = bags.assign(site=["AB"[k % 2] for k in range(patients)], label=[k // 2 % 2 for k in range(patients)])
    bags = deal_folds(bags, config.endpoints["response"])
    table = predictions_of(name, config.experiments[name], bags)
    table = table.assign(score=1 - table["score"])
    write_text(tmp_path / "config.json", config.to_json())
    write_table(bags, tmp_path / "bags/response.csv")
    write_table(score(table, config.metrics, config.experiments[name]), tmp_path / f"metrics/{name}.csv")
    assert said in " ".join(claim.numbers for claim in claims(Results.open(tmp_path)))
