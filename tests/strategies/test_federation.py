"""Strategies against arithmetic by hand and each other's limits."""

import dataclasses

import numpy as np
import pytest
import torch
from heads import SMALL
from small_federation import (
    BINARY,
    LR,
    SUMMED,
    WIDTH,
    after,
    course_of,
    farthest,
    first_state,
)

from mil.models import HEADS, build
from mil.specs.experiments import ExperimentSpec
from mil.specs.models import GatedAttentionSpec
from mil.strategies import STRATEGIES
from mil.training.client import Job, client_update
from mil.training.plans import Rounds


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
