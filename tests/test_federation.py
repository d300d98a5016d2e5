"""Strategies against arithmetic by hand and each other's limits; the vectorised driver against the plain one."""

import dataclasses

import numpy as np
import pytest
import torch
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.endpoints import build_endpoint
from mil.federation.client import Job, SiteData, client_update
from mil.federation.clients import participants, visits
from mil.federation.reference import Course
from mil.federation.strategies import STRATEGIES, Answers, build_strategy, shares
from mil.models import build
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec, TrainingSpec
from mil.specs.models import GatedAttentionSpec, MeanSpec
from mil.training.cohort import Cohort
from mil.training.protocol import candidates, groups, inner_tasks
from mil.training.run import Trainer
from mil.training.store import FeatureStore

BINARY = build_endpoint(EndpointSpec())
WIDTH = 6
LR = 0.1
SPECS = {
    "fedavgm": {"momentum": 0.8, "server_lr": 0.5},
    "fedprox": {"mu": 0.5},
    "fedadam": {"server_lr": 0.05},
    "fedyogi": {"server_lr": 0.05},
    "fedadagrad": {"server_lr": 0.05},
    "fedper": {"local": ("score",)},
    "trimmed_mean": {"trim": 0.34},
    "finetune": {"epochs": 2, "base": "fedprox"},
    "cyclic": {"shuffled": True},
}


def strategy_of(name, **changes):
    spec = ExperimentSpec(
        encoder="e",
        endpoint="r",
        model="mean",
        strategy={"name": name} | SPECS.get(name, {}) | changes,
        training={"optimiser": "sgd"},
    ).strategy
    return build_strategy(spec)


def site_data(counts, training, model=None, same=False):
    """Sites with float64 arithmetic; `same`: all hold the first one's patients."""
    head = build(model or MeanSpec(), WIDTH, 1)
    found = {}
    for place, (name, count) in enumerate(counts.items()):
        generator = np.random.default_rng(0 if same else place)
        prefix = "X" if same else name
        bags = {f"{prefix}{k}": generator.normal(size=(4, WIDTH)).astype(np.float32) for k in range(count)}
        store = FeatureStore.of(bags)
        targets = torch.from_numpy(generator.integers(0, 2, (count, 1)).astype(np.float32))
        buffers = {"features.mean": torch.zeros(WIDTH), "features.deviation": torch.ones(WIDTH)}
        found[name] = SiteData(head, BINARY, training, store, targets, np.arange(count), buffers, torch.ones(2))
    return found


def first_state(sites, dtype=torch.float64):
    head = next(iter(sites.values())).head
    values = head.initial(np.random.default_rng(3))
    return {name: torch.from_numpy(values[name]).to(dtype) for name in sorted(values)}


def course_of(name, counts, steps=None, same=False, model=None, training=None, **changes):
    training = training or TrainingSpec(optimiser="sgd", batch_size=64 if steps is None else 2, local_steps=steps)
    sites = site_data(counts, training, model, same)
    return Course(strategy_of(name, **changes), training, sites, "task", LR, 0.0)


def after(course, rounds, start=None):
    now = start or course.begin(first_state(course.sites))
    for _ in range(rounds):
        now = course.round(now)
    return now


def farthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def full_gradient(course, state):
    """Gradient of the mean loss over all sites' patients, by autograd."""
    weights = {name: value.clone().requires_grad_() for name, value in state.items()}
    total, count = 0, 0
    for site in course.sites.values():
        means = torch.stack([torch.from_numpy(site.store.bag(k)).double().mean(0) for k in range(len(site.bags))])
        logits = means @ weights["score.weight"].T + weights["score.bias"]
        total = total + BINARY.losses(logits, site.targets.double(), torch.ones(len(means))).sum()
        count += len(means)
    return dict(zip(weights, torch.autograd.grad(total / count, list(weights.values())), strict=True))


COUNTS = {"A": 5, "B": 9, "C": 2}


# Identities of FEDERATION.md section 3


def test_fedavg_of_one_full_step_is_gradient_descent():
    course = course_of("fedavg", COUNTS)
    now, plain = course.begin(first_state(course.sites)), first_state(course.sites)
    for _ in range(50):
        now = course.round(now)
        gradient = full_gradient(course, plain)
        plain = {name: value - LR * gradient[name] for name, value in plain.items()}
    assert farthest(now.state, plain) < 5e-15


def test_fedavgm_of_one_full_step_is_descent_with_momentum():
    course = course_of("fedavgm", COUNTS, momentum=0.9, server_lr=1.0)
    now = course.begin(first_state(course.sites))
    plain = {name: value.requires_grad_() for name, value in first_state(course.sites).items()}
    optimiser = torch.optim.SGD(list(plain.values()), lr=LR, momentum=0.9)
    for _ in range(50):
        now = course.round(now)
        gradient = full_gradient(course, {name: value.detach() for name, value in plain.items()})
        for name, value in plain.items():
            value.grad = gradient[name]
        optimiser.step()
    assert farthest(now.state, {name: value.detach() for name, value in plain.items()}) < 5e-15


def test_fedadam_of_one_full_step_is_adam_without_bias_correction():
    course = course_of("fedadam", COUNTS, server_lr=0.02, beta1=0.9, beta2=0.99, tau=1e-3)
    now, plain = course.begin(first_state(course.sites)), first_state(course.sites)
    first = {name: torch.zeros_like(value) for name, value in plain.items()}
    second = {name: torch.full_like(value, 1e-6) for name, value in plain.items()}
    for _ in range(50):
        now = course.round(now)
        gradient = full_gradient(course, plain)
        for name, value in plain.items():
            d = -LR * gradient[name]
            first[name] = 0.9 * first[name] + 0.1 * d
            second[name] = 0.99 * second[name] + 0.01 * d**2
            plain[name] = value + 0.02 * first[name] / (second[name].sqrt() + 1e-3)
    assert farthest(now.state, plain) < 5e-13


@pytest.mark.parametrize("weighting", ["patients", "uniform"])
def test_scaffolds_server_control_is_the_mean_of_the_sites(weighting):
    course = course_of("scaffold", COUNTS, steps=3, weighting=weighting)
    now = course.begin(first_state(course.sites))
    weights = shares(torch.tensor(list(COUNTS.values())), weighting)
    for _ in range(6):
        now = course.round(now)
        for name in now.state:
            mean = sum(w * now.controls[site][name] for w, site in zip(weights, "ABC", strict=True))
            assert (now.server[f"control/{name}"] - mean).abs().max() < 1e-15


def test_scaffolds_control_is_the_mean_gradient_on_the_path():
    course = course_of("scaffold", {"A": 6}, steps=3)
    now = course.round(course.begin(first_state(course.sites)))
    site, job = course.sites["A"], Job("task", "A", 2, LR, 0.0)
    update, kept = client_update(
        now.state, job, site, {n: now.server[f"control/{n}"] for n in now.state}, now.controls["A"]
    )
    # one site: c = c_i, so the steps are plain ones and (x - y) / (K lr) is the mean gradient
    mean = {name: (now.state[name] - update.state[name]) / (3 * LR) for name in now.state}
    assert farthest(kept, mean) < 1e-14


def test_scaffold_with_controls_forced_to_zero_is_fedavg():
    scaffold, fedavg = course_of("scaffold", COUNTS, steps=3), course_of("fedavg", COUNTS, steps=3)
    now = scaffold.begin(first_state(scaffold.sites))
    for _ in range(4):
        now = scaffold.round(now)
        zeros = {name: torch.zeros_like(value) for name, value in now.state.items()}
        now = dataclasses.replace(
            now,
            server={f"control/{name}": zero for name, zero in zeros.items()},
            controls=dict.fromkeys(now.controls, zeros),
        )
    assert farthest(now.state, after(fedavg, 4).state) < 1e-15


def test_fedprox_without_pull_is_fedavg_and_pulls_from_the_second_step():
    fedavg = after(course_of("fedavg", COUNTS, steps=3), 4)
    assert after(course_of("fedprox", COUNTS, steps=3, mu=0.0), 4).sha256 == fedavg.sha256
    assert after(course_of("fedprox", COUNTS, steps=3, mu=1.0), 4).sha256 != fedavg.sha256
    one = after(course_of("fedavg", COUNTS, steps=1), 4)
    assert after(course_of("fedprox", COUNTS, steps=1, mu=7.0), 4).sha256 == one.sha256


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "median", "trimmed_mean", "cyclic"])
def test_one_site_is_plain_training(name):
    course = course_of(name, {"A": 7}, steps=3, mu=0.0) if name == "fedprox" else course_of(name, {"A": 7}, steps=3)
    plain = first_state(course.sites)
    for number in range(1, 5):
        plain = client_update(plain, Job("task", "A", number, LR, 0.0), course.sites["A"])[0].state
    assert farthest(after(course, 4).state, plain) < 1e-15


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "scaffold", "median", "trimmed_mean"])
def test_sites_with_the_same_patients_are_one_site(name):
    many = after(course_of(name, {"A": 7, "B": 7, "C": 7}, steps=3, same=True), 4)
    one = after(course_of(name, {"A": 7}, steps=3, same=True), 4)
    assert farthest(many.state, one.state) < 1e-13


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"local", "pooled", "ensemble"}))
def test_order_of_arrival_changes_no_bit_and_every_round_can_be_gone_on_from(name):
    course = course_of(name, COUNTS, steps=2)
    backwards = dataclasses.replace(course, sites=dict(reversed(course.sites.items())))
    start = {key: value.float() for key, value in first_state(course.sites).items()}
    digests, now, same = [], course.begin(start), backwards.begin(start)
    kept = [now]
    for _ in range(4):
        now, same = course.round(now), backwards.round(same)
        assert now.sha256 == same.sha256
        digests.append(now.sha256)
        kept.append(now)
    assert len(set(digests)) == 4
    for done in range(1, 4):
        assert [after(course, k, kept[done]).sha256 for k in range(1, 5 - done)] == digests[done:]


def test_body_and_head_of_fedper():
    course = course_of("fedper", COUNTS, steps=2, model=GatedAttentionSpec(hidden=4, attention=3))
    now = after(course, 3)
    own, other = course.personal(now, "A"), course.personal(now, "B")
    for name in now.state:
        assert torch.equal(own[name], now.state[name]) != name.startswith("score")
        assert torch.equal(own[name], other[name]) != name.startswith("score")
    nothing_local = course_of("fedper", COUNTS, steps=2, local=())
    assert after(nothing_local, 3).sha256 == after(course_of("fedavg", COUNTS, steps=2), 3).sha256


# Arithmetic by hand


def answers_of(values, counts, weighting="patients"):
    states = {"w": torch.tensor([[value] for value in values], dtype=torch.float64)}
    return Answers(states, shares(torch.tensor(counts), weighting))


STATE = {"w": torch.tensor([10.0], dtype=torch.float64)}


def stepped(name, answers, rounds=1, **changes):
    """Global value after the same changes in every round."""
    strategy, state = strategy_of(name, **changes), dict(STATE)
    server = strategy.begin(state)
    for _ in range(rounds):
        moved = Answers({"w": answers.states["w"] - STATE["w"] + state["w"]}, answers.weights)
        state, server = strategy.server_step(state, server, moved)
    return state["w"].item()


def test_server_steps_by_hand():
    answers = answers_of([11.0, 14.0], [1, 3])  # changes 1 and 4, weighted mean 3.25
    assert stepped("fedavg", answers) == 13.25
    assert stepped("fedavg", answers_of([11.0, 14.0], [1, 3], "uniform")) == 12.5
    assert stepped("fedavgm", answers, 2, momentum=0.5, server_lr=2.0) == 10 + 6.5 + 2 * (3.25 * 1.5)
    rates = {"server_lr": 0.1, "beta1": 0.5, "beta2": 0.9, "tau": 0.01}
    d, m1, m2 = 3.25, 1.625, 0.5 * 1.625 + 0.5 * 3.25
    v1 = 0.9 * 1e-4 + 0.1 * d**2
    v2 = 0.9 * v1 + 0.1 * d**2
    expected = 10 + 0.1 * m1 / (v1**0.5 + 0.01) + 0.1 * m2 / (v2**0.5 + 0.01)
    assert stepped("fedadam", answers, 2, **rates) == pytest.approx(expected, rel=1e-13)
    v1, v2 = 1e-4 + d**2, 1e-4 + 2 * d**2
    expected = 10 + 0.1 * m1 / (v1**0.5 + 0.01) + 0.1 * m2 / (v2**0.5 + 0.01)
    assert stepped("fedadagrad", answers, 2, **rates) == pytest.approx(expected, rel=1e-13)
    v1 = 1e-4 + 0.1 * d**2
    v2 = v1 + 0.1 * d**2
    expected = 10 + 0.1 * m1 / (v1**0.5 + 0.01) + 0.1 * m2 / (v2**0.5 + 0.01)
    assert stepped("fedyogi", answers, 2, **rates) == pytest.approx(expected, rel=1e-13)


def test_yogi_shrinks_its_second_moment_by_the_square_of_the_change():
    strategy = strategy_of("fedyogi", beta2=0.9, tau=5.0)
    server = strategy.begin(STATE)
    _, server = strategy.server_step(STATE, server, answers_of([11.0], [1]))
    assert server["second/w"].item() == pytest.approx(25 - 0.1)  # v - (1 - b2) d^2 sign(v - d^2)


def test_robust_means_by_hand():
    assert stepped("median", answers_of([11.0, 1e9, 12.0], [1, 100, 1])) == 12
    assert stepped("median", answers_of([11.0, 13.0], [1, 1])) == 12
    assert stepped("median", answers_of([11.0, 1e9, 13.0], [1, 0, 1])) == 12  # the middle one did not answer
    assert stepped("trimmed_mean", answers_of([11.0, 1e9, 12.0, 14.0, -1e9], [1] * 5), trim=0.2) == pytest.approx(
        37 / 3
    )
    assert stepped("trimmed_mean", answers_of([11.0, 13.0], [1, 9]), trim=0.2) == 12


def test_a_site_that_did_not_answer_weighs_nothing_even_if_it_holds_nonsense():
    assert stepped("fedavg", answers_of([11.0, float("nan")], [2, 0])) == 11
    scaffold = strategy_of("scaffold")
    answers = dataclasses.replace(
        answers_of([11.0, 14.0], [1, 0]),
        controls={"w": torch.tensor([[4.0], [0.0]])},
        standing=shares(torch.tensor([1, 3]), "patients"),
    )
    state, server = scaffold.server_step(STATE, scaffold.begin(STATE), answers)
    assert (state["w"].item(), server["control/w"].item()) == (11, 1)


def test_float64_sums_do_not_depend_on_order():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(11, 500, generator=generator) * 10.0 ** torch.arange(-5, 6)[:, None]
    strategy, state = strategy_of("fedavg"), {"w": torch.randn(500, generator=generator)}
    counts = torch.arange(1, 12)
    results = set()
    for seed in range(11):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
        place = order.argsort()  # sites arrive in any order and are sorted by name before the sum
        answers = Answers({"w": states[order][place]}, shares(counts[order][place], "patients"))
        results.add(strategy.server_step(state, {}, answers)[0]["w"].numpy().tobytes())
    assert len(results) == 1


def test_draws_of_sites_are_named():
    assert participants(10, 0.3, 0, 1).sum() == 3
    assert participants(3, 0.01, 0, 1).sum() == 1
    assert participants(10, 0.3, 0, 1).tolist() == participants(10, 0.3, 0, 1).tolist()
    assert len({tuple(participants(10, 0.3, 0, k).tolist()) for k in range(5)}) > 1
    assert visits(3, False, 0, 5) == [0, 1, 2]
    assert sorted(visits(5, True, 0, 5)) == list(range(5))


# The vectorised driver

TABLE = [
    *[(name, {}) for name in sorted(set(STRATEGIES) - {"local", "ensemble", "pooled"})],
    ("fedavg", {"weighting": "uniform", "participation": 0.5}),
    ("scaffold", {"participation": 0.5}),
]


@pytest.mark.parametrize(("name", "changes"), TABLE)
def test_the_vectorised_driver_agrees_with_the_plain_one(name, changes):
    bags, arrays = make_cohort()
    rows, store = training_part(bags, arrays)
    stanza = experiment(
        strategy={"name": name} | SPECS.get(name, {}) | changes,
        model={"name": "gated_attention", "hidden": 8, "attention": 4, "dropout": 0.2},
        training={
            "optimiser": "sgd" if name in ("scaffold", "cyclic") else "adam",
            "rounds": 3,
            "local_epochs": 2,
            "schedule": "cosine",
            "clip_norm": 5.0,
            "imbalance": "weights",
            "max_tiles": 9,
            "lr": 0.01,
        },
    )
    cohort = Cohort.of(rows, ENDPOINT, BINARY)
    trainer = Trainer(stanza, BINARY, cohort, store, quiet())
    tasks = inner_tasks(cohort, groups(cohort, [tuple(cohort.sites)]), candidates(stanza), 3)[:3]
    driver, phase, clients = trainer._run(stanza.model, tasks, "inner", "inner")
    engine, _ = trainer._engine(stanza.model)
    models = driver.personal(phase, clients)
    for k, task in enumerate(tasks):
        course, start = course_like(trainer, task)
        now = course.begin(start)
        for _ in range(3):
            now = course.round(now)
        plain = torch.from_numpy(engine.layout.flat({key: value.numpy() for key, value in now.state.items()}))
        assert (plain - phase.rows[k]).abs().max() < 1e-5
        for place, site in enumerate(cohort.sites):
            own = engine.layout.flat({key: value.numpy() for key, value in course.personal(now, site).items()})
            assert np.abs(own - models[k * 2 + place].numpy()).max() < 1e-5


def course_like(trainer, task):
    """The plain driver's view of a task: each site's own store, targets and training patients."""
    stanza, cohort = trainer.experiment, trainer.cohort
    engine, store = trainer._engine(stanza.model)
    buffers = {name: value[0] for name, value in trainer.setup.buffers([task]).items()}
    sites = {}
    for name in cohort.sites:
        mine = np.flatnonzero(cohort.site == name)
        own = FeatureStore.of({cohort.patients[k]: store.bag(store.index()[cohort.patients[k]]) for k in mine})
        bags = np.flatnonzero(np.isin(mine, task.train))
        targets = torch.from_numpy(cohort.targets[mine])
        balance = trainer.setup.balance([task])[0]
        sites[name] = SiteData(engine.head, trainer.endpoint, stanza.training, own, targets, bags, buffers, balance)
    start = engine.head.initial(np.random.default_rng(trainer_seed(stanza, task)))
    state = {name: torch.from_numpy(start[name]) for name in sorted(start)}
    strategy = build_strategy(stanza.strategy)
    course = Course(strategy, stanza.training, sites, task.name, task.candidate.lr, task.candidate.weight_decay)
    return course, state


def trainer_seed(stanza, task):
    from mil.rng import seed_of

    return seed_of(stanza.training.seed, "initial", task.group.repeat, task.group.fold)
