"""The arithmetic of a private update against the same steps written out, patient by patient. Attacks and budgets: test_privacy.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from heads import spec_of
from small_federation import WIDTH, first_state, site_data
from torch.nn.functional import binary_cross_entropy_with_logits

from mil.hospital import privacy
from mil.hospital.config import PrivacySpec
from mil.hospital.noise import SecretStream
from mil.hospital.privacy import clipped, patient_gradients, private_update, steps_of
from mil.models import HEADS, build
from mil.specs.experiments import TrainingSpec
from mil.training.client import Job, client_update
from mil.training.layout import RowLayout
from mil.training.store import FeatureStore

JOB = Job("task", "A", 2, 0.3, 0.0)
PATIENTS = 9


def private(**changes):
    return PrivacySpec.model_validate(
        {"noise": 0.3, "clip": 0.4, "expected_batch": 3, "epsilon": 9, "delta": 0.01} | changes
    )


def site_of(**changes):
    training = TrainingSpec.model_validate({"optimiser": "sgd", "batch_size": 7, "rounds": 5} | changes)
    site = site_data({"A": PATIENTS}, training)["A"]
    generator = np.random.default_rng(5)
    tiles = {f"p{bag}": generator.normal(size=(1 + bag, WIDTH)).astype(np.float32) for bag in range(PATIENTS)}
    buffers = {"features.mean": torch.linspace(-1, 1, WIDTH), "features.deviation": torch.linspace(0.5, 2, WIDTH)}
    return replace(site, store=FeatureStore.of(tiles), buffers=buffers, bags=np.array([0, 2, 3, 4, 5, 7, 8]))


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
    [
        (0.0, {}),
        (0.6, {}),
        (0.6, {"momentum": 0.7, "clip_norm": 0.1, "schedule": "cosine", "warmup": 3}),
        (0.6, {"optimiser": "adamw"}),
    ],
)
def test_a_private_update_is_these_steps(mu, training, at_once, monkeypatch):
    """Each step: patients drawn with chance batch / patients, their clipped gradients and noise over the batch, FedProx's pull."""
    monkeypatch.setattr(privacy, "NUMBERS", at_once)
    site, spec, job = site_of(**training), private(), replace(JOB, mu=mu, weight_decay=0.1)
    state = {name: value.float() for name, value in first_state({"": site}).items()}
    layout = RowLayout(named(state))
    first = torch.from_numpy(layout.flat(named(state))).double()
    now, stream = first.clone().requires_grad_(), SecretStream(b"s" * 32, "noise")
    rate = job.lr * (2 / 4 * (1 + math.cos(math.pi / 5)) / 2 if "schedule" in training else 1)
    if "optimiser" in training:
        optimiser = torch.optim.AdamW([now], lr=rate, weight_decay=0.1)
    else:
        optimiser = torch.optim.SGD([now], lr=rate, weight_decay=0.1, momentum=training.get("momentum", 0))
    for _ in range(2):  # 7 patients in batches of 3
        chances = stream.uniform(len(site.bags))
        weights = {name: view[0].detach() for name, view in layout.views(now[None]).items()}
        total = torch.zeros_like(first)
        for bag in site.bags[chances < 3 / 7]:
            gradient = gradient_of(weights, site, bag)
            total += gradient * min(1, 0.4 / gradient.norm())
        total += 0.3 * 0.4 * torch.from_numpy(stream.normal(layout.size))
        now.grad = total / 3 + mu * (now.detach() - first)
        if "clip_norm" in training:
            torch.nn.utils.clip_grad_norm_([now], 0.1)
        optimiser.step()
    found = private_update(state, job, site, spec, SecretStream(b"s" * 32, "noise"))
    np.testing.assert_allclose(layout.flat(named(found.state)), now.detach(), atol=3e-6)
    assert (found.patients, found.steps, found.loss) == (7, 2, 0.0)


@pytest.mark.parametrize("of_a_class", [None, 0, 1])
@pytest.mark.parametrize("name", sorted(set(HEADS) - {"clinical"}))
def test_without_noise_or_clipping_a_step_is_the_plain_one(name, of_a_class):
    """Every head, dropout included: one step over all of the site's patients, in the client that knows no privacy and in ours.

    Where all are of a class, weights for the other one may have no gradient.
    """
    spec = spec_of(name)
    spec = spec.model_copy(update={"dropout": 0.4} if "dropout" in type(spec).model_fields else {})
    head = build(spec, WIDTH, 1)
    site = replace(site_of(local_epochs=1), head=head)
    if of_a_class is not None:
        site = replace(site, bags=site.bags[site.targets[site.bags, 0] == of_a_class])
    state = {key: torch.from_numpy(value) for key, value in head.initial(np.random.default_rng(3)).items()}
    found = private_update(state, JOB, site, private(expected_batch=7, clip=1e9, noise=1e-20), SecretStream(b"s" * 32))
    plain, _ = client_update(state, JOB, site)
    assert (found.steps, plain.steps) == (1, 1)
    for key, value in plain.state.items():
        torch.testing.assert_close(found.state[key], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, state[key]) for key, value in plain.state.items())


def test_pieces_of_a_batch_change_no_bit(monkeypatch):
    """Gradients are added in float64, in which sums of few float32 numbers are exact."""
    site, spec = site_of(), private(expected_batch=7, noise=1e-12)
    state = {name: value.float() for name, value in first_state({"": site}).items()}
    found = []
    for at_once in (10**6, 1):
        monkeypatch.setattr(privacy, "NUMBERS", at_once)
        found.append(private_update(state, replace(JOB, lr=1e5), site, spec, SecretStream(b"s" * 32)).state)
    assert all(torch.equal(found[0][name], found[1][name]) for name in state)


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
