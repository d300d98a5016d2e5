"""The vectorised driver against the plain one, for every strategy; what it records of each round."""

import json
from typing import Literal

import numpy as np
import pytest
import torch
from reference import Course
from small_federation import SPECS
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.endpoints import build_endpoint
from mil.hospital.config import FederationSpec
from mil.hospital.forms import Forms, Shapes
from mil.progress import quiet
from mil.rng import seed_of
from mil.specs.endpoints import EndpointSpec
from mil.strategies import STRATEGIES
from mil.strategies.aggregation import moved
from mil.strategies.strategy import Federated
from mil.training.client import Job, SiteData, client_update
from mil.training.cohort import TrainingCohort
from mil.training.protocol import candidates, groups, inner_tasks, refit_tasks
from mil.training.run import Trainer, train
from mil.training.store import FeatureStore
from mil.training.traffic import bytes_each_way

pytestmark = pytest.mark.slow

BINARY = build_endpoint(EndpointSpec())
APART = ("local", "pooled")
TABLE = [
    *[(name, {}) for name in sorted(set(STRATEGIES) - set(APART))],
    ("fedavg", {"weighting": "uniform", "participation": 0.5}),
    ("fedadam", {"like": "adam", "participation": 0.5}),
    ("scaffold", {"participation": 0.5}),
    ("krum", {}),
    ("krum", {"participation": 0.8}),
]
SITES = {"A": "train", "B": "train", "C": "train", "D": "train", "E": "external"}


class Krum(Federated):
    """The site whose update lies nearest to the others' (Blanchard et al. 2017), written without a thought of many models."""

    name: Literal["krum"] = "krum"

    def server_step(self, state, server, answers):
        change = {name: answers.states[name].double() - value for name, value in state.items()}
        rows = torch.cat([value.flatten(1) for value in change.values()], dim=1)
        distances = torch.cdist(rows, rows).square().sort(dim=1).values
        chosen = distances[:, : max(1, len(rows) - 1)].sum(1).argmin()
        return moved(state, {name: value[chosen] for name, value in change.items()}), {}


TRAINING = {"rounds": 3, "local_epochs": 2, "clip_norm": 5.0, "imbalance": "weights", "max_tiles": 9, "lr": 0.01}
HEAD = {"name": "gated_attention", "hidden": 8, "attention": 4, "dropout": 0.2}


def trainer_of(name, changes, **training):
    """A trainer of this strategy on the small cohort."""
    rows, store = training_part(*make_cohort(sites=SITES, patients_a_site=9))
    strategy = {"name": "fedavg" if name == "krum" else name} | SPECS.get(name, {}) | changes
    stanza = experiment(strategy=strategy, model=HEAD, training=TRAINING | training)
    if name == "krum":
        stanza = stanza.model_copy(update={"strategy": Krum(**changes)})
    return Trainer(stanza, BINARY, TrainingCohort.of(rows, ENDPOINT, BINARY), store, quiet())


def tasks_of(trainer, count=3):
    sites = trainer.cohort.sites
    trained_on = [(site,) for site in sites] if trainer.strategy.by_site else [tuple(sites)]
    stanza = trainer.experiment
    tasks = inner_tasks(trainer.cohort, groups(trainer.cohort, trained_on), candidates(stanza), stanza.training.rounds)
    return tasks[:: len(tasks) // count][:count]


@pytest.mark.parametrize(("name", "changes"), TABLE)
def test_the_vectorised_driver_agrees_with_the_plain_one(name, changes):
    optimiser = "sgd" if name in ("scaffold", "cyclic") else "adam"
    trainer = trainer_of(name, changes, schedule="cosine", optimiser=optimiser)
    tasks = tasks_of(trainer, 5)
    before = {key: value.clone() for key, value in trainer.setup.buffers(tasks).items()}
    driver, phase, clients = trainer._run(trainer.experiment.model, tasks, "inner", "inner")
    engine, _ = trainer._engine(trainer.experiment.model)
    models = driver.personal(phase, clients)
    for k, task in enumerate(tasks):
        course, start = course_like(trainer, task)
        now = course.begin(start)
        for _ in range(3):
            now = course.round(now)
        assert (flat(engine, now.state) - phase.rows[k]).abs().max() < 1e-5
        for place, site in enumerate(trainer.cohort.sites):
            learner = k * clients.sites + place
            assert (flat(engine, course.personal(now, site)) - models[learner]).abs().max() < 1e-5
            for key, value in before.items():  # buffers are the same at every site, and no round changes them
                assert torch.equal(phase.learners.buffers[key][learner], value[k])


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("name", APART)
def test_a_learner_without_a_server_agrees_with_the_plain_one(name, optimiser):
    rounds = 3 if optimiser == "sgd" else 1  # the plain one begins every round with a fresh optimiser, this one goes on
    trainer = trainer_of(name, {}, optimiser=optimiser, rounds=rounds)
    tasks = tasks_of(trainer)
    _, phase, clients = trainer._run(trainer.experiment.model, tasks, "inner", "inner")
    engine, _ = trainer._engine(trainer.experiment.model)
    for k, task in enumerate(tasks):
        course, state = course_like(trainer, task, together=True)
        (site,) = course.sites
        for number in range(1, rounds + 1):
            job = Job(task.name, clients.name(k), number, task.candidate.lr, task.candidate.weight_decay)
            state = client_update(state, job, course.sites[site])[0].state
        assert (flat(engine, state) - phase.rows[k]).abs().max() < 1e-5


@pytest.mark.parametrize("base", ["fedavg", "scaffold", "cyclic", "fedper", "fedadam"])
def test_finetuning_agrees_with_plain_training_from_the_last_model(base):
    trainer = trainer_of("finetune", {"epochs": 2, "base": base}, optimiser="sgd")
    tasks = refit_tasks(trainer.cohort, tasks_of(trainer, 2), 1)
    _, phase, clients = trainer._run(trainer.experiment.model, tasks, "refit", "refit")
    engine, _ = trainer._engine(trainer.experiment.model)
    for k, task in enumerate(tasks):
        course, start = course_like(trainer, task)
        now = course.begin(start)
        for _ in range(3):
            now = course.round(now)
        for place, site in enumerate(trainer.cohort.sites):
            state = course.personal(now, site)
            for number in (4, 5):
                job = Job(task.name, site, number, task.candidate.lr, task.candidate.weight_decay)
                state = client_update(state, job, course.sites[site])[0].state
            assert (flat(engine, state) - phase.learners.rows[k * clients.sites + place]).abs().max() < 1e-5


def test_a_searched_rate_of_the_server_is_that_rate():
    rows, store = training_part(*make_cohort())
    strategy = {"name": "fedadam", "tau": 0.1}
    searched = train(
        experiment(strategy=strategy, search={"server_lr": [1e-4, 0.3]}, training={"rounds": 3}),
        ENDPOINT,
        rows,
        store,
        quiet(),
    )
    plain = train(
        experiment(strategy=strategy | {"server_lr": 0.3}, training={"rounds": 3}), ENDPOINT, rows, store, quiet()
    )
    assert plain.models["server_lr"].tolist() == [0.3] * 3
    for one, other in zip(searched.models.itertuples(), plain.models.itertuples(), strict=True):
        assert one.server_lr in (1e-4, 0.3)
        assert (one.sha256 == other.sha256) == (one.server_lr == 0.3 and one.rounds == other.rounds)
    assert 0.3 in searched.models["server_lr"].tolist()
    with pytest.raises(ValueError, match="strategy fedavg has no learning rate"):
        experiment(strategy="fedavg", search={"server_lr": [1.0]})


BODY = (8 * 8 + 8) + (8 * 8 + 8) + (4 + 1)
"""Numbers in the head of this test below its score: hidden layer, both branches of the gate, and their weighing."""
SCORE = 8 + 1


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("fedavg", BODY + SCORE),
        ("fedadam", BODY + SCORE),
        ("cyclic", BODY + SCORE),
        ("scaffold", 2 * (BODY + SCORE)),
        ("fedper", BODY),
    ],
)
def test_the_ledger_counts_patients_and_the_bytes_that_cross(name, numbers):
    rows, store = training_part(*make_cohort())
    training = {"rounds": 2} | ({"optimiser": "sgd"} if name == "scaffold" else {})
    run = train(experiment(strategy=name, training=training), ENDPOINT, rows, store, quiet())
    lines = [json.loads(line) for line in run.ledger.lines]
    for way in ("bytes_received", "bytes_sent"):
        assert {line[way] for line in lines} == {4 * numbers}
    told = sum(line["patients"] for line in lines if line["phase"] == "refit" and line["round"] == 1)
    models = run.models if name == "fedper" else run.models.drop_duplicates(["repeat", "fold"])
    assert told == models["patients"].sum()  # sites' counts add up to the models' own


@pytest.mark.parametrize("name", APART)
def test_nothing_crosses_where_nobody_federates(name):
    rows, store = training_part(*make_cohort())
    run = train(experiment(strategy=name, model="mean", training={"rounds": 2}), ENDPOINT, rows, store, quiet())
    assert not any("bytes" in line for line in run.ledger.lines)


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_bytes_are_those_of_the_messages_between_hospitals(name):
    training = {"optimiser": "sgd"} if name == "scaffold" else {}
    protocol = hospitals(strategy=name, training=training)
    shapes = Shapes(protocol, 8)
    one_way = bytes_each_way(shapes.state, protocol.experiment.strategy)
    for form, besides in (
        (Forms(shapes).question("train", 3), shapes.buffers),
        (Forms(shapes).answer("train", 3, 0), ("num_bags", "num_steps", "train_loss")),
    ):
        model = {key: shape for key, (shape, _) in form.tensors.items() if key not in besides}
        assert sum(4 * int(np.prod(shape)) for shape in model.values()) == 3 * one_way


def hospitals(**changes):
    """A protocol for two hospitals."""
    stanza = {"encoder": "e", "endpoint": "response", "model": "gated_attention"}
    sites = {"A": {"role": "train", "organisation": "a"}, "B": {"role": "train", "organisation": "b"}}
    settings = {"federation": "f", "server": {"host": "localhost"}, "sites": sites, "trust": "coordinator"}
    return FederationSpec.model_validate(settings | {"experiment": stanza | changes})


def course_like(trainer, task, together=False):
    """The plain driver's view of a task: each site's own store, targets and training patients; `together`: as one site."""
    stanza, cohort = trainer.experiment, trainer.cohort
    engine, store = trainer._engine(stanza.model)
    buffers = {name: value[0] for name, value in trainer.setup.buffers([task]).items()}
    sites = {}
    for name in ("+".join(task.group.trained_on),) if together else cohort.sites:
        mine = np.flatnonzero(np.isin(cohort.site, name.split("+")))
        own = FeatureStore.of(
            {cohort.patients[k]: store.bag(int(store.require([cohort.patients[k]])[0])) for k in mine}
        )
        bags = np.flatnonzero(np.isin(mine, task.train))
        targets = torch.from_numpy(cohort.targets[mine])
        balance = trainer.setup.balance([task])[0]
        sites[name] = SiteData(engine.head, trainer.endpoint, stanza.training, own, targets, bags, buffers, balance)
    seed = seed_of(stanza.training.seed, "initial", task.group.repeat, task.group.fold)
    start = engine.head.initial(np.random.default_rng(seed))
    state = {name: torch.from_numpy(start[name]) for name in sorted(start)}
    course = Course(
        stanza.strategy.of_rounds, stanza.training, sites, task.name, task.candidate.lr, task.candidate.weight_decay
    )
    return course, state


def flat(engine, state):
    return torch.from_numpy(engine.layout.flat({key: value.numpy() for key, value in state.items()}))
