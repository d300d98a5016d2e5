"""Differential privacy: the mechanism, and the attack that it bounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hospitals import Hospitals
from private_federation import PRIVATE, private_hospitals
from scipy import stats

from mil.hospital.forms import slots
from mil.hospital.noise import SecretStream
from mil.hospital.privacy import (
    patient_gradients,
    private_update,
    steps_of,
)
from mil.hospital.site import Site
from mil.training.client import Job, SiteData, client_update
from mil.training.layout import RowLayout

pytestmark = pytest.mark.slow


# The mechanism


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return private_hospitals(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def site(hospitals: Hospitals) -> Site:
    return Site.open(hospitals.site("A"))


@pytest.fixture(scope="module")
def data(site: Site) -> SiteData:
    shapes = site.shapes
    buffers = {
        name: torch.zeros(shape) if name.endswith("mean") else torch.ones(shape)
        for name, shape in shapes.buffers.items()
    }
    return site.work.site_data(slots(site.protocol, "refit")[0], buffers)


def first(site: Site) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in site.shapes.head.initial(np.random.default_rng(1)).items()}


def job(number: int = 1) -> Job:
    return Job("A+B/repeat0/fold0", "A", number, 0.05, 0.0)


def test_a_patient_s_gradient_is_that_of_the_patient_alone(site: Site, data: SiteData) -> None:
    """One step of plain SGD on one patient moves the model by exactly -lr x gradient; so does ours."""
    state = first(site)
    layout = RowLayout({name: value.numpy() for name, value in state.items()})
    row = torch.from_numpy(layout.flat({name: value.numpy() for name, value in state.items()}))[None]
    for bag in data.bags[:6]:
        (gradient,) = patient_gradients(layout.views(row), np.array([bag]), data, 0)
        moved, _ = client_update(state, job(), replace(data, bags=np.array([bag])))
        other = layout.flat({name: value.numpy() for name, value in moved.state.items()})
        assert np.abs((row[0].numpy() - other) / 0.05 - gradient.numpy()).max() < 2e-5


def test_opacus_finds_the_same_gradient_of_each_patient(site: Site, data: SiteData) -> None:
    """Its per-sample gradients of the last layer, on the bags' embeddings, against ours."""
    from opacus.grad_sample import GradSampleModule

    state = first(site)
    layout = RowLayout({name: value.numpy() for name, value in state.items()})
    row = torch.from_numpy(layout.flat({name: value.numpy() for name, value in state.items()}))[None]
    bags = data.bags[:8]
    embeddings = torch.cat([_embedding(state, data, int(bag)) for bag in bags])
    layer = torch.nn.Linear(embeddings.shape[1], 1)
    with torch.no_grad():
        layer.weight.copy_(state["score.weight"])
        layer.bias.copy_(state["score.bias"])
    sampled = GradSampleModule(layer, loss_reduction="sum")
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        sampled(embeddings.detach().requires_grad_()), data.targets[bags], reduction="sum"
    )
    loss.backward()
    own = layout.views(patient_gradients(layout.views(row), bags, data, 0))["score.weight"]
    assert torch.allclose(layer.weight.grad_sample, own, atol=1e-6)


def _embedding(state: dict, data: SiteData, bag: int) -> torch.Tensor:
    """The gated-attention pooled vector of a bag (1, hidden), by hand."""
    start, size = int(data.store.starts[bag]), int(data.store.sizes[bag])
    tiles = data.store.tiles[start : start + size].float()
    hidden = torch.relu(tiles @ state["embed.weight"].T + state["embed.bias"])
    tanh, gate = (hidden @ state["branches.weight"].T + state["branches.bias"]).chunk(2, dim=-1)
    scores = (torch.tanh(tanh) * torch.sigmoid(gate)) @ state["weigh.weight"].T + state["weigh.bias"]
    return torch.softmax(scores, 0).T @ hidden


def test_the_noise_of_an_update_has_the_stated_size(site: Site, data: SiteData) -> None:
    """With no patient drawn, SGD moves by -lr x noise x clip / expected batch x N(0, 1)."""
    alone = replace(data, bags=data.bags[:8])
    spec = PRIVATE.model_copy(update={"clip": 1e-9, "noise": 1e9 * 0.7})  # the clipped gradients vanish beside it
    state = first(site)
    update = private_update(state, job(), alone, spec, SecretStream(b"s" * 32, "noise"))
    moved = torch.cat([(update.state[name] - state[name]).flatten() for name in sorted(state)]).double().numpy()
    scale = 0.05 * 0.7 / 8 * np.sqrt(update.steps)
    assert stats.kstest(moved / scale, "norm").pvalue > 1e-3


def test_patients_are_drawn_one_by_one_with_the_stated_chance() -> None:
    """Poisson sampling: the sample's size varies as a binomial does, and patients are drawn independently."""
    drawn = np.stack([SecretStream(b"k" * 32, round_).uniform(40) < 0.2 for round_ in range(4000)])
    sizes = drawn.sum(1)
    assert sizes.mean() == pytest.approx(8, abs=0.15)
    assert sizes.var() == pytest.approx(40 * 0.2 * 0.8, rel=0.1)
    together = np.corrcoef(drawn.T)
    assert np.abs(together - np.eye(40)).max() < 0.08


def test_the_stream_is_the_same_again_and_different_for_every_name_and_secret() -> None:
    one = SecretStream(b"a" * 32, "noise", "run", 3).normal(1000)
    assert np.array_equal(one, SecretStream(b"a" * 32, "noise", "run", 3).normal(1000))
    for other in (SecretStream(b"b" * 32, "noise", "run", 3), SecretStream(b"a" * 32, "noise", "run", 4)):
        assert abs(np.corrcoef(one, other.normal(1000))[0, 1]) < 0.12
    assert stats.kstest(SecretStream(b"c" * 32, "x").normal(20000), "norm").pvalue > 1e-3
    uniform = SecretStream(b"c" * 32, "y").uniform(100000)
    assert 0 < uniform.min() < uniform.max() < 1


def test_a_patient_whose_gradient_overflows_is_neither_seen_nor_changes_another_s(site: Site, data: SiteData) -> None:
    """Weights by which one patient's largest number overflows: the update held NaN and was refused, and that has no noise."""
    state, tiles = first(site), torch.cat([torch.from_numpy(data.store.bag(bag)) for bag in data.bags]).float()
    for tile in (tiles[tiles[:, 0].argmax()], data.store.tiles[0].float()):  # the store's first was everybody's padding
        column = int(tile.abs().argmax())
        weight = torch.zeros_like(state["embed.weight"])
        weight[:, column] = 3.41e38 / float(tile[column])
        rows = {name: value[None] for name, value in (state | {"embed.weight": weight}).items()}
        together = patient_gradients(rows, data.bags, data, 0).isfinite().all(1).tolist()
        assert together == [
            bool(patient_gradients(rows, np.array([bag]), data, 0).isfinite().all()) for bag in data.bags
        ]
        assert 0 < sum(together) < len(together)
        update = private_update(state | {"embed.weight": weight}, job(), data, PRIVATE, SecretStream(b"s" * 32, "x"))
        assert all(value.isfinite().all() for value in update.state.values())


def test_dropout_and_adam_and_prox_run_privately(site: Site, data: SiteData) -> None:
    training = data.training.model_copy(update={"optimiser": "adamw", "clip_norm": 1.0})
    other = replace(job(), mu=0.1)
    update = private_update(first(site), other, replace(data, training=training), PRIVATE, SecretStream(b"a" * 32, "x"))
    assert all(torch.isfinite(value).all() for value in update.state.values())
    assert update.steps == steps_of(PRIVATE, len(data.bags)) == 4


# The attack


def test_one_bag_s_gradient_gives_its_embedding_away_and_the_private_profile_does_not(
    site: Site, data: SiteData
) -> None:
    """The last layer's update over its bias' update is the slide's embedding, exactly; the sign of the bias its label."""
    state = first(site)
    plain, private = [], []
    for bag in data.bags[:20]:
        alone = replace(data, bags=np.array([bag]))
        embedding = _embedding(state, data, int(bag))[0]
        update, _ = client_update(state, job(), alone)
        plain.append(_recovered(state, update.state, embedding))
        assert bool(update.state["score.bias"] > state["score.bias"]) == bool(data.targets[bag] > 0.5)
        spec = PRIVATE.model_copy(update={"expected_batch": 1.0})  # the attacker's best case: nobody else in the batch
        stream = SecretStream(b"s" * 32, "attack", int(bag))
        private.append(_recovered(state, private_update(state, job(), alone, spec, stream).state, embedding))
    assert np.mean(plain) == pytest.approx(1.0, abs=1e-4)
    whole = private_update(state, job(), data, PRIVATE, SecretStream(b"s" * 32, "attack"))
    everyone = torch.stack([_embedding(state, data, int(bag))[0] for bag in data.bags]).mean(0)
    assert abs(np.mean(private)) <= 0.2
    assert abs(_recovered(state, whole.state, everyone)) <= 0.6  # 16 numbers wide: chance alone gives 0.2


def _recovered(state: dict, after: dict, embedding: torch.Tensor) -> float:
    """Cosine of the true embedding and what the update's last layer gives away."""
    weight, bias = after["score.weight"] - state["score.weight"], after["score.bias"] - state["score.bias"]
    return float(torch.nn.functional.cosine_similarity((weight / bias)[0], embedding, dim=0))
