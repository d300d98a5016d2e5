"""Strategies against arithmetic by hand and each other's limits."""

import dataclasses

import numpy as np
import pytest
import torch
from reference import Course
from test_models import SMALL

from mil.endpoints import build_endpoint
from mil.models import HEADS, build
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec, TrainingSpec
from mil.specs.models import GatedAttentionSpec, MeanSpec
from mil.strategies import STRATEGIES
from mil.strategies.aggregation import Answers
from mil.training.client import Job, SiteData, client_update
from mil.training.clients import participants, visits
from mil.training.plans import Rounds
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
    return ExperimentSpec(
        encoder="e",
        endpoint="r",
        model="mean",
        strategy={"name": name} | SPECS.get(name, {}) | changes,
        training={"optimiser": "sgd", "local_steps": 1},
    ).strategy.of_rounds


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


def gradient_of(state, sites, batches):
    """Gradient of the mean loss over some bags of each site, by autograd."""
    weights = {name: value.clone().requires_grad_() for name, value in state.items()}
    total, count = 0, 0
    for site, batch in zip(sites, batches, strict=True):
        means = torch.stack([torch.from_numpy(site.store.bag(k)).double().mean(0) for k in batch])
        logits = means @ weights["score.weight"].T + weights["score.bias"]
        total = total + BINARY.losses(logits, site.targets[batch].double(), torch.ones(len(means))).sum()
        count += len(means)
    return dict(zip(weights, torch.autograd.grad(total / count, list(weights.values())), strict=True))


def full_gradient(course, state):
    """Over all sites' patients."""
    sites = list(course.sites.values())
    return gradient_of(state, sites, [site.bags for site in sites])


COUNTS = {"A": 5, "B": 9, "C": 2}
SUMMED = 1e-10
"""Sums over sites are rounded to steps of 2^-40, 9e-13, in each round."""


# Identities of FEDERATION.md section 3


def test_fedavg_of_one_full_step_is_gradient_descent():
    course = course_of("fedavg", COUNTS)
    now, plain = course.begin(first_state(course.sites)), first_state(course.sites)
    for _ in range(50):
        now = course.round(now)
        gradient = full_gradient(course, plain)
        plain = {name: value - LR * gradient[name] for name, value in plain.items()}
    assert farthest(now.state, plain) < SUMMED


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
    assert farthest(now.state, {name: value.detach() for name, value in plain.items()}) < SUMMED


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
    assert farthest(now.state, plain) < SUMMED


def test_fedsgd_is_adam_on_all_patients():
    course = course_of("fedsgd", COUNTS, server_lr=0.02, tau=1e-18)
    now = course.begin(first_state(course.sites))
    plain = {name: value.requires_grad_() for name, value in first_state(course.sites).items()}
    optimiser = torch.optim.Adam(list(plain.values()), lr=0.02, eps=1e-18)
    for _ in range(50):
        now = course.round(now)
        gradient = full_gradient(course, {name: value.detach() for name, value in plain.items()})
        for name, value in plain.items():
            value.grad = gradient[name]
        optimiser.step()
    # the server sees -LR x gradient, and Adam's step is the same for a gradient of any length
    assert farthest(now.state, {name: value.detach() for name, value in plain.items()}) < SUMMED


@pytest.mark.parametrize("weighting", ["patients", "uniform"])
def test_scaffolds_server_control_is_the_mean_of_the_sites(weighting):
    course = course_of("scaffold", COUNTS, steps=3, weighting=weighting)
    now = course.begin(first_state(course.sites))
    amounts = course.strategy.amounts(torch.tensor(list(COUNTS.values())))
    for _ in range(6):
        now = course.round(now)
        for name in now.state:
            mean = sum(w * now.controls[site][name] for w, site in zip(amounts / amounts.sum(), "ABC", strict=True))
            assert (now.server[f"control/{name}"] - mean).abs().max() < SUMMED


def test_scaffolds_control_is_the_mean_gradient_on_the_path():
    course = course_of("scaffold", COUNTS, steps=3)
    now = course.round(course.begin(first_state(course.sites)))
    then = course.round(now)
    for name, site in course.sites.items():
        state, gradients = now.state, []
        for batch in Rounds(site.training, site.store).batches(site.bags, 2, None, f"task/{name}"):
            gradients.append(gradient_of(state, [site], [batch]))
            shift = {key: now.server[f"control/{key}"] - now.controls[name][key] for key in state}
            state = {key: value - LR * (gradients[-1][key] + shift[key]) for key, value in state.items()}
        assert len(gradients) == 3
        mean = {key: sum(one[key] for one in gradients) / 3 for key in state}
        assert farthest(then.controls[name], mean) < SUMMED


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
    assert farthest(now.state, after(fedavg, 4).state) < SUMMED


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
    assert farthest(after(course, 4).state, plain) < SUMMED


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "scaffold", "median", "trimmed_mean"])
def test_sites_with_the_same_patients_are_one_site(name):
    many = after(course_of(name, {"A": 7, "B": 7, "C": 7}, steps=3, same=True), 4)
    one = after(course_of(name, {"A": 7}, steps=3, same=True), 4)
    assert farthest(many.state, one.state) < SUMMED


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"local", "pooled"}))
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
    fedavg = after(course_of("fedavg", COUNTS, steps=2), 3)
    for absent in ((), ("batch_norm",)):  # FedBN on a model without batch normalisation is FedAvg
        assert after(course_of("fedper", COUNTS, steps=2, local=absent), 3).sha256 == fedavg.sha256


@pytest.mark.parametrize("name", sorted(HEADS))
def test_no_head_holds_statistics_that_a_strategy_would_have_to_leave_alone(name):
    covariates = ("age",) if name == "clinical" else ()
    stanza = {"encoder": "e", "endpoint": "r", "model": {"name": name} | SMALL.get(name, {}), "strategy": "fedavg"}
    head = build(ExperimentSpec(**stanza, covariates=covariates).model, WIDTH, 2, len(covariates))
    assert not [key for key in head.initial(np.random.default_rng(0)) if "running" in key or "batches" in key]


# Arithmetic by hand


def answers_of(values, counts, weighting="patients"):
    states = {"w": torch.tensor([[value] for value in values], dtype=torch.float64)}
    return Answers(states, strategy_of("fedavg", weighting=weighting).amounts(torch.tensor(counts)))


STATE = {"w": torch.tensor([10.0], dtype=torch.float64)}


def stepped(name, answers, rounds=1, **changes):
    """Global value after the same changes in every round."""
    strategy, state = strategy_of(name, **changes), dict(STATE)
    server = strategy.begin(state)
    for _ in range(rounds):
        moved = Answers({"w": answers.states["w"] - STATE["w"] + state["w"]}, answers.amounts)
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


def test_fedadam_with_adam_s_bias_correction_by_hand():
    answers = answers_of([11.0, 14.0], [1, 3])
    rates = {"server_lr": 0.1, "beta1": 0.5, "beta2": 0.9, "tau": 0.01}
    d, m1, m2 = 3.25, 1.625, 0.5 * 1.625 + 0.5 * 3.25
    v1, v2 = 0.1 * d**2, 0.9 * 0.1 * d**2 + 0.1 * d**2  # from zero
    steps = [0.1 * m / (v**0.5 + 0.01) for m, v in ((m1, v1), (m2, v2))]
    corrections = [(1 - 0.9**k) ** 0.5 / (1 - 0.5**k) for k in (1, 2)]
    expected = 10 + corrections[0] * steps[0] + corrections[1] * steps[1]
    assert stepped("fedadam", answers, 2, like="adam", **rates) == pytest.approx(expected, rel=1e-13)


def test_of_two_sites_the_robust_means_are_the_plain_one():
    plain = after(course_of("fedavg", {"A": 5, "B": 9}, steps=3, weighting="uniform"), 3)
    for name in ("median", "trimmed_mean"):
        assert farthest(after(course_of(name, {"A": 5, "B": 9}, steps=3), 3).state, plain.state) < SUMMED


def test_robust_means_by_hand():
    assert stepped("median", answers_of([11.0, 1e9, 12.0], [1, 100, 1])) == 12
    assert stepped("median", answers_of([11.0, 13.0], [1, 1])) == 12
    assert stepped("trimmed_mean", answers_of([11.0, 1e9, 12.0, 14.0, -1e9], [1] * 5), trim=0.2) == pytest.approx(
        37 / 3
    )
    assert stepped("trimmed_mean", answers_of([11.0, 13.0], [1, 9]), trim=0.2) == 12


def test_scaffold_s_control_counts_sites_that_did_not_answer():
    scaffold = strategy_of("scaffold")
    answers = dataclasses.replace(
        answers_of([11.0], [1]), controls={"w": torch.tensor([[4.0]])}, total=torch.tensor(4.0, dtype=torch.float64)
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
        answers = Answers({"w": states[order][place]}, counts[order][place].double())
        results.add(strategy.server_step(state, {}, answers)[0]["w"].numpy().tobytes())
    assert len(results) == 1


def test_draws_of_sites_are_named():
    assert participants(10, 0.3, 0, 1).sum() == 3
    assert participants(3, 0.01, 0, 1).sum() == 1
    assert participants(10, 0.3, 0, 1).tolist() == participants(10, 0.3, 0, 1).tolist()
    assert len({tuple(participants(10, 0.3, 0, k).tolist()) for k in range(5)}) > 1
    assert visits(3, False, 0, 5) == [0, 1, 2]
    assert sorted(visits(5, True, 0, 5)) == list(range(5))
