"""The hospitals' server and sites against the reference driver, bit for bit, and against `mil train`."""

import itertools
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import inprocess
import numpy as np
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, Hospitals, make_hospitals, rewrite_protocol
from reference import Course, Federation, state_digest

from mil.hospital.forms import slots
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site
from mil.progress import quiet
from mil.strategies import STRATEGIES
from mil.training.ledger import read
from mil.training.plans import first_weights
from mil.training.protocol import candidates
from mil.training.run import Run, train
from mil.training.store import FeatureStore

pytestmark = pytest.mark.slow

COMPARED = (
    4 if os.environ.get("REPEATS", "1") == "1" else 1
)  # every how manyth inner model; 4 meets every outer and inner fold
RUNS = itertools.count()  # a name belongs to one protocol
SGD = {"rounds": 3, "batch_size": 8, "lr": 0.05, "optimiser": "sgd", "scaling": "standard"}  # moments cross, too
FULL = {**PROTOCOL["experiment"], "training": {"rounds": 3, "batch_size": 8, "lr": 0.01}}
HEART = {"fedavg", "scaffold", "fedper", "cyclic", "median", "fedadam"}
"""Of each way of aggregating a strategy; `make test-all` has all of them."""
SPECIAL = {
    "scaffold": {"training": SGD},
    "fedavg by sgd": {"training": SGD, "strategy": "fedavg"},
    "cyclic": {
        "strategy": {"name": "cyclic", "shuffled": True},
        "training": {"rounds": 2, "batch_size": 8, "lr": 0.01},
    },
    "finetune": {"strategy": {"name": "finetune", "epochs": 2, "base": "cyclic"}},
    "fedavg": {"training": {"rounds": 3, "batch_size": 8, "lr": 0.01, "imbalance": "weights", "local_epochs": 2}},
    "fedprox": {"strategy": {"name": "fedprox", "mu": 0.1, "participation": 0.5}},
    "median": {"training": {"rounds": 2, "batch_size": 8, "lr": 0.01, "imbalance": "sampling", "max_tiles": 6}},
}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def compared(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Server]:
    """A strategy -> its run, compared with the reference once, however many tests ask for it."""

    @cache
    def run_of(strategy: str) -> Server:
        members = hospitals.protocol.model_dump(mode="json")["sites"]
        if strategy == "fedper":  # an external site would have no layers of its own
            members.pop("C")
        with rewrite_protocol(hospitals, experiment=experiment(strategy), sites=members):
            folder = tmp_path_factory.mktemp("compared")
            return compare_with_reference(hospitals, folder, folder.name)

    return run_of


def experiment(strategy: str) -> dict:
    return {**FULL, "strategy": strategy, **SPECIAL.get(strategy, {})}


def run(hospitals: Hospitals, folder: Path, sites: dict[str, Site], after=None) -> Server:
    server = Server(hospitals.protocol, f"run-{next(RUNS)}", folder)
    inprocess.run(server, sites, after)
    return server


def opened(hospitals: Hospitals) -> dict[str, Site]:
    return {name: Site.open(hospitals.site(name)) for name in "ABC"}


@pytest.mark.repeated
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=[] if name in HEART else pytest.mark.extended)
        for name, kind in STRATEGIES.items()
        if kind.between_hospitals
    ],
)
def test_every_round_has_the_reference_driver_s_digest(compared: Callable[[str], Server], strategy: str) -> None:
    assert compared(strategy).kind == "done"


@pytest.mark.repeated
@pytest.mark.parametrize("strategy", [pytest.param("fedavg by sgd", marks=pytest.mark.extended), "scaffold"])
def test_sums_of_32_bits_have_the_reference_driver_s_digests_and_half_the_bytes(
    hospitals: Hospitals, compared: Callable[[str], Server], tmp_path: Path, strategy: str
) -> None:
    bytes_sent, states, servers = {}, {}, {64: compared(strategy)}
    own = experiment(strategy)
    with rewrite_protocol(hospitals, experiment={**own, "strategy": {"name": own["strategy"], "sum_bits": 32}}):
        servers[32] = compare_with_reference(hospitals, tmp_path, f"{own['strategy']}-32")
    for bits, server in servers.items():
        states[bits] = server.stages.state
        trained = [line for line in map(json.loads, server.ledger.lines) if line.get("kind") == "train"]
        bytes_sent[bits] = trained[-1]["answered"]["A"]["bytes"]
    numbers = sum(value.numel() for value in states[64].values()) * (2 if strategy == "scaffold" else 1)
    assert bytes_sent[64] - bytes_sent[32] == pytest.approx(4 * numbers, rel=0.02)
    differences = [float((states[32][name] - value).abs().max()) for name, value in states[64].items()]
    assert 0 < max(differences) < 1e-4


def test_a_change_that_needs_64_bits_is_refused_in_a_line_that_says_so(hospitals: Hospitals, tmp_path: Path) -> None:
    training = {"rounds": 1, "batch_size": 8, "lr": 3.0}
    own = {**FULL, "training": training, "strategy": {"name": "fedavg", "sum_bits": 32}}
    with rewrite_protocol(hospitals, experiment=own), pytest.raises(SitesMissing, match="A: refused: payload"):
        run(hospitals, tmp_path, opened(hospitals))
    last = read(Path(hospitals.site("A").workspace) / "ledger.jsonl")[-1]
    assert "with 32 bits it must be below 2. " in last["reason"]
    assert "sum_bits to 64. Nothing was sent" in last["reason"]


@pytest.mark.repeated
def test_a_search_and_replicas_are_more_models_with_the_reference_driver_s_digests(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    training = {"rounds": 2, "batch_size": 8, "replicas": 2, "patience": 1}
    more = {"training": training, "search": {"lr": [0.001, 0.03], "weight_decay": [0.0, 0.1]}}
    with rewrite_protocol(hospitals, experiment={**FULL, **more}):
        server = compare_with_reference(hospitals, tmp_path, "search")
        assert len(server.stages.progress.rounds) == 3 * 2
        assert len(set(server.stages.progress.choices)) > 1 or server.stages.progress.choices[0] > 0


def compare_with_reference(hospitals: Hospitals, folder: Path, name: str) -> Server:
    """A run between hospitals and the plain driver on every slot: global and own tensors equal after every round."""
    protocol, sites = hospitals.protocol, {one: Site.open(hospitals.site(one)) for one in hospitals.protocol.sites}
    rounds: dict[str, dict[int, dict]] = {"inner": {}, "refit": {}}
    scales: dict[str, dict] = {}

    def note(server: Server) -> None:
        entry = json.loads(server.ledger.lines[-1])
        if entry.get("kind") == "moments":
            scales[entry["phase"]] = dict(server.stages.buffers)
        if (
            entry.get("kind") == "train"
        ):  # after the last round of a phase the next one's first models are there already
            rounds[entry["phase"]][entry["round"]] = {key: value.clone() for key, value in server.stages.state.items()}

    server = Server(protocol, name, folder)
    inprocess.run(server, sites, note)
    training, progress = protocol.experiment.training, server.stages.progress
    for phase, found in rounds.items():
        for number, slot in enumerate(slots(protocol, phase, progress.choices)):
            if phase == "inner" and number % COMPARED:
                continue
            buffers = {key: value[number] for key, value in scales[phase].items()}
            data = {one: sites[one].work.site_data(slot, buffers) for one in protocol.training_sites}
            chosen = candidates(protocol.experiment)[slot.choice]
            parts = (protocol.strategy, training, data, slot.name)
            course = Course(*parts, chosen.lr, chosen.weight_decay)
            drawn = server.stages.shapes.head.initial(
                first_weights(training.seed, slot.repeat, slot.fold, slot.replica)
            )
            now = course.begin({key: torch.from_numpy(value) for key, value in drawn.items()})
            last = progress.rounds[number] if phase == "refit" else max(found)
            for place in range(1, last + 1):
                now = course.round(now)
                state = {key: value[number] for key, value in found[place].items()}
                shared = {key: now.state[key] for key in state}
                assert state_digest(state) == state_digest(shared), (phase, slot.name, place)
                assert set(now.state) - set(state) == set(server.stages.shapes.own)
            strategy = protocol.experiment.strategy
            if phase == "refit" and strategy.personal:
                if strategy.finetune_epochs:
                    now = course.finetuned(now, strategy.finetune_epochs)
                compare_own(hospitals, name, number, course, now)
    return server


def compare_own(hospitals: Hospitals, run: str, number: int, course: Course, now: Federation) -> None:
    """What each site has kept for itself is what the reference has it keep, bit for bit."""
    for site in course.sites:
        kept = Run.load(Path(hospitals.site(site).workspace) / "runs" / run)
        own = now.local[site] if course.strategy.local_parts == () else course.personal(now, site)
        found = {key: kept.families[0].weights[key][number] for key in own}
        assert state_digest(found) == state_digest(own), (site, number)
        assert kept.models["member"][number] == site


@pytest.mark.parametrize(
    ("patience", "participation"),
    [*(pytest.param(patience, 1.0, marks=pytest.mark.extended) for patience in (None, 1)), (1, 0.5)],
)
def test_a_run_between_hospitals_is_that_of_mil_train(
    hospitals: Hospitals, tmp_path: Path, patience: int | None, participation: float
) -> None:
    """Selected rounds, scales and models of the vectorised driver on all rows at once, to 1e-5."""
    long = {**SGD, "rounds": 6, "patience": patience}
    strategy = {"name": "fedadam", "participation": participation}
    changed = {**FULL, "training": long, "strategy": strategy}
    with rewrite_protocol(hospitals, experiment=changed):
        sites = opened(hospitals)
        server = run(hospitals, tmp_path, sites)
        whole = train_on_all(hospitals, sites)
    assert server.stages.progress.rounds == whole.models["rounds"].tolist()
    for name, value in whole.families[0].weights.items():
        found = (server.stages.state | server.stages.buffers)[name]
        assert torch.allclose(found, value, rtol=1e-5, atol=1e-5), name


LIKE_TRAIN = {
    "search": {"search": {"lr": [0.001, 0.05], "weight_decay": [0.0, 0.1]}, "strategy": "fedavgm"},
    "replicas": {"training": {**SGD, "replicas": 2}},
    "cyclic": {"strategy": {"name": "cyclic", "shuffled": True}},
    "fedper": {"strategy": "fedper"},
    "finetune": {"strategy": {"name": "finetune", "epochs": 2, "base": "scaffold"}},
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.extended if case in {"replicas", "cyclic"} else []) for case in LIKE_TRAIN],
)
def test_searches_and_personal_strategies_are_those_of_mil_train(
    hospitals: Hospitals, tmp_path: Path, case: str
) -> None:
    """Candidates, rounds and every model, a site's own included, of the vectorised driver on all rows at once."""
    changed = {**FULL, "training": SGD, **LIKE_TRAIN[case]}
    members = {name: one for name, one in hospitals.protocol.model_dump(mode="json")["sites"].items() if name != "C"}
    with rewrite_protocol(hospitals, experiment=changed, sites=members):
        sites = {name: Site.open(hospitals.site(name)) for name in "AB"}
        inprocess.run(Server(hospitals.protocol, f"like-{case}", tmp_path), sites)
        whole = train_on_all(hospitals, sites)
    for name in "AB":
        found = Run.load(Path(hospitals.site(name).workspace) / "runs" / f"like-{case}")
        own = whole.models[whole.models["member"].isin(["", name])]
        for column in ("model", "rounds", "lr", "weight_decay"):
            assert found.models[column].tolist() == own[column].tolist(), column
        for key, value in whole.families[0].weights.items():
            other = found.families[0].weights[key]
            assert torch.allclose(other, value[own["row"].to_numpy()], rtol=1e-5, atol=1e-5), (name, key)


def train_on_all(hospitals: Hospitals, sites: dict[str, Site]) -> Run:
    """`mil train` with the rows of both hospitals in one place."""
    bags = pd.concat([sites[name].bags for name in "AB"], ignore_index=True)
    pooled = {
        patient: sites[name].features.bag(number)
        for name in "AB"
        for number, patient in enumerate(sites[name].features.patients)
    }
    store = FeatureStore.of(pooled, sites["A"].features.about)
    return train(hospitals.protocol.experiment, hospitals.protocol.endpoint, bags, store, quiet())


def test_scaffold_goes_on_exactly_after_a_round_that_did_not_count(
    hospitals: Hospitals, compared: Callable[[str], Server], tmp_path: Path
) -> None:
    """B is lost in every second attempt: A's controls must not move by a round that is asked again."""
    plain = compared("scaffold")
    with rewrite_protocol(hospitals, experiment=experiment("scaffold")):
        sites = opened(hospitals)
        server = Server(hospitals.protocol, "torn", tmp_path / "torn")
        attempt = 0
        while server.kind != "done":
            if not server.joined:
                server.receive({name: site.answer(server.question()) for name, site in sites.items()}, {})
            attempt += 1
            question = server.question()
            answers = {name: sites[name].answer(question) for name in server.asked}
            if attempt % 2 and "B" in answers:
                answers.pop("B")
                with pytest.raises(SitesMissing):
                    server.receive(answers, {"B": "lost"})
                server = Server(hospitals.protocol, "torn", tmp_path / "torn")
                sites = opened(hospitals) if attempt == 3 else sites
            else:
                server.receive(answers, {})
        assert server.stages.digest() == plain.stages.digest()


def test_covariates_and_regression_cross_as_moments(tmp_path: Path) -> None:
    """An endpoint whose target is scaled, with a covariate that is not always known."""
    own = {**FULL, "covariates": ["age"]}
    endpoint = {**PROTOCOL["endpoint"], "kind": "regression"}
    hospitals = make_hospitals(tmp_path, experiment=own, endpoint=endpoint)
    for name in "ABC":
        path = Path(hospitals.site(name).results) / "bags" / "response.csv"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table["age"] = [str(40 + number % 30) if number % 7 else "" for number in range(len(table))]
        table["label"] = [str(float(label) + number % 5) for number, label in enumerate(table["label"].astype(int))]
        table.to_csv(path, index=False)
    sites = opened(hospitals)
    server = run(hospitals, tmp_path / "run", sites)
    bags = pd.concat([sites[name].bags for name in "AB"], ignore_index=True)
    ages = pd.to_numeric(bags.loc[bags["repeat0"] != 0, "age"], errors="coerce")
    scale = server.stages.buffers["covariates.mean"][0]
    assert float(scale[0]) == pytest.approx(ages.mean(), rel=1e-6)
    table = pd.read_csv(tmp_path / "run" / "result" / "covariates.csv").set_index("site")
    everyone = pd.concat([bags["age"], sites["C"].bags["age"]])
    known = pd.to_numeric(everyone, errors="coerce").dropna()
    assert table.loc["all sites", "known"] == len(known)
    assert table.loc["all sites", "mean"] == pytest.approx(known.mean(), rel=1e-6)
    assert table.loc["all sites", "deviation"] == pytest.approx(known.std(), rel=1e-6)
    metrics = pd.read_csv(tmp_path / "run" / "result" / "sites.csv").set_index("site")
    assert metrics.loc["C", "metric"] > 0.5
    labels = bags.loc[bags["repeat0"] != 0, "label"].astype(float)
    assert float(server.stages.buffers["target.deviation"][0][0]) == pytest.approx(labels.std(ddof=0), rel=1e-6)


def test_survival_ends_in_a_log_rank_stratified_by_site(tmp_path: Path) -> None:
    endpoint = {**PROTOCOL["endpoint"], "kind": "survival", "event": "label"}
    hospitals = make_hospitals(tmp_path, endpoint=endpoint)
    for number, name in enumerate("ABC"):
        path = Path(hospitals.site(name).results) / "bags" / "response.csv"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        generator = np.random.default_rng(number)
        table["time"] = [f"{generator.exponential(10 if label == '1' else 40) + 0.1:.3f}" for label in table["label"]]
        table.to_csv(path, index=False)
    run(hospitals, tmp_path / "run", opened(hospitals))
    table = pd.read_csv(tmp_path / "run" / "result" / "sites.csv").set_index("site")
    own = table.loc[["A", "B"]]
    together = own["logrank_difference"].sum() ** 2 / own["logrank_variance"].sum()
    assert table.loc["training sites", "logrank_chi2"] == pytest.approx(together)
    assert table.loc["training sites", "logrank_p"] < 0.05
    assert table.loc["training sites", "patients"] == 100


def test_a_site_with_a_small_class_withholds_its_metrics(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, sites={"A": ("train", 48), "B": ("train", 52), "C": ("external", 18)})
    run(hospitals, tmp_path / "run", opened(hospitals))
    table = pd.read_csv(tmp_path / "run" / "result" / "sites.csv").set_index("site")
    assert table.loc["C", ["patients", "positives", "metric", "variance"]].isna().all()  # 9 positives
    assert (
        table.loc["training sites", "low"] < table.loc["training sites", "metric"] < table.loc["training sites", "high"]
    )
    assert "external sites" not in table.index
