"""The arithmetic of a private update against the same steps written out, patient by patient. Attacks and budgets: test_privacy.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_federation import WIDTH, first_state, site_data
from torch.nn.functional import binary_cross_entropy_with_logits

from mil.hospital import privacy
from mil.hospital.config import PrivacySpec
from mil.hospital.noise import SecretStream
from mil.hospital.privacy import clipped, patient_gradients, private_update, steps_of
from mil.specs.experiments import TrainingSpec
from mil.training.client import Job
from mil.training.layout import RowLayout

JOB = Job("task", "A", 2, 0.3, 0.0)
PATIENTS = 9


def private(**changes):
    return PrivacySpec.model_validate(
        {"noise": 0.3, "clip": 0.4, "expected_batch": 3, "epsilon": 9, "delta": 0.01} | changes
    )


def site_of(**changes):
    training = TrainingSpec(optimiser="sgd", batch_size=4, rounds=5, **changes)
    site = site_data({"A": PATIENTS}, training)["A"]
    buffers = {"features.mean": torch.linspace(-1, 1, WIDTH), "features.deviation": torch.linspace(0.5, 2, WIDTH)}
    return replace(site, buffers=buffers, bags=np.array([0, 2, 3, 4, 5, 7, 8]))


def named(state):
    return {name: value.numpy() for name, value in state.items()}


def gradient_of(weights, site, bag):
    """Of one patient's loss in float64, as a row (bias, weight)."""
    weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
    tiles = (torch.from_numpy(site.store.bag(bag)) - site.buffers["features.mean"]) / site.buffers["features.deviation"]
    logit = tiles.double().mean(0) @ weights["score.weight"].T + weights["score.bias"]
    loss = binary_cross_entropy_with_logits(logit, site.targets[bag].double())
    found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_each_patient_s_gradient_is_that_of_the_patient_alone():
    site, state = site_of(), first_state({"": site_of()})
    layout = RowLayout(named(state))
    row = torch.from_numpy(layout.flat(named(state)))[None]
    found = patient_gradients(layout.views(row), site.bags, site, 0)
    expected = torch.stack([gradient_of(state, site, bag) for bag in site.bags])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1e-3, 0.4, 7.0, 1e4])
def test_clipping_shortens_each_gradient_and_lengthens_none(length):
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows / rows.norm(dim=1, keepdim=True) * length, torch.zeros(1, 5)])
    found = clipped(rows, 0.5)
    torch.testing.assert_close(found.norm(dim=1), torch.tensor([min(length, 0.5)] * 3 + [0.0]))
    torch.testing.assert_close(found * length, rows * min(length, 0.5))
    if length < 0.5:
        assert torch.equal(found, rows)


@pytest.mark.parametrize("at_once", [10**6, 2 * (WIDTH + 1), 1])
@pytest.mark.parametrize(
    ("mu", "training"),
    [(0.0, {}), (0.6, {}), (0.6, {"momentum": 0.7, "clip_norm": 0.3, "schedule": "cosine", "warmup": 3})],
)
def test_a_private_update_is_these_steps(mu, training, at_once, monkeypatch):
    """Each step: patients drawn with chance batch / patients, their clipped gradients and noise over the batch, FedProx's pull."""
    monkeypatch.setattr(privacy, "NUMBERS", at_once)
    site, spec, job = site_of(**training), private(), replace(JOB, mu=mu, weight_decay=0.1)
    state = {name: value.float() for name, value in first_state({"": site}).items()}
    layout = RowLayout(named(state))
    first = torch.from_numpy(layout.flat(named(state))).double()
    now, velocity, stream = first.clone(), torch.zeros_like(first), SecretStream(b"s" * 32, "noise")
    rate = job.lr * (2 / 4 * (1 + math.cos(math.pi / 5)) / 2 if training else 1)
    for _ in range(2):  # 7 patients in batches of 3
        chances = stream.uniform(len(site.bags))
        weights = {name: view[0] for name, view in layout.views(now[None]).items()}
        total = torch.zeros_like(now)
        for bag in site.bags[chances < 3 / 7]:
            gradient = gradient_of(weights, site, bag)
            total += gradient * min(1, 0.4 / gradient.norm())
        total += 0.3 * 0.4 * torch.from_numpy(stream.normal(layout.size))
        gradient = total / 3 + mu * (now - first)
        if training:
            gradient *= min(1, 0.3 / gradient.norm())
        velocity = training.get("momentum", 0) * velocity + gradient + 0.1 * now
        now = now - rate * velocity
    found = private_update(state, job, site, spec, SecretStream(b"s" * 32, "noise"))
    np.testing.assert_allclose(layout.flat(named(found.state)), now, atol=2e-6)
    assert (found.patients, found.steps, found.loss) == (7, 2, 0.0)


@pytest.mark.parametrize(("patients", "batch", "steps"), [(7, 3, 2), (8, 3, 3), (7, 7, 1), (7, 100, 1), (40, 0.5, 80)])
def test_a_round_is_one_pass_over_the_patients_on_average(patients, batch, steps):
    assert steps_of(private(expected_batch=batch), patients) == steps


def test_batches_larger_than_the_site_are_everybody_and_everybody_is_drawn():
    """Without noise, then, an update is one step of the mean of all clipped gradients."""
    site = site_of()
    state = {name: value.float() for name, value in first_state({"": site}).items()}
    layout = RowLayout(named(state))
    first = torch.from_numpy(layout.flat(named(state))).double()
    weights = {name: view[0] for name, view in layout.views(first[None]).items()}
    gradients = clipped(torch.stack([gradient_of(weights, site, bag) for bag in site.bags]), 0.4)
    spec = private(expected_batch=100, noise=1e-12)
    found = private_update(state, JOB, site, spec, SecretStream(b"s" * 32, "noise"))
    np.testing.assert_allclose(layout.flat(named(found.state)), first - 0.3 * gradients.mean(0), atol=1e-6)
