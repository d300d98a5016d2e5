"""The way of computing on a GPU, on the CPU: the same models as the CPU's way, bounded calls and graphs, sizes that do not matter."""

import io

import numpy as np
import pytest
import torch
from test_training_engine import BAGS, engine_of, learners_of, plans_of, store_of, trained

from mil.endpoints import build_endpoint
from mil.models import HEADS
from mil.progress import Reporter
from mil.specs.endpoints import EndpointSpec
from mil.training.engine import Engine, Method
from mil.training.optimisers import OPTIMISERS
from mil.training.packing import Places
from mil.training.pairs import Cost, PairTable
from mil.training.sources import Pinned

DROPPING = {"attention", "gated_attention", "clam_sb", "mean", "max", "transmil"}
SURVIVAL = build_endpoint(EndpointSpec(kind="survival", column="time", event="event"))


def by_pairs(engine, **changes):
    return Engine(engine.head, engine.endpoint, engine.data, engine.method, by_pairs=True, **changes)


@pytest.mark.parametrize("worth", [1, 10**9])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_pairs_of_learners_and_bags_give_the_same_model(name, worth, monkeypatch):
    store = store_of()
    changes = {"dropout": 0.3} if name in DROPPING else {}
    engine = engine_of(store, name, Method("sgd", clip_norm=1.0), **changes)
    pairs = by_pairs(engine)
    monkeypatch.setattr("mil.training.card.WORTH", worth)
    pairs.card.__post_init__()
    plans, places = plans_of(7), Places.of(store.starts, store.sizes)
    expected, losses = trained(engine, learners_of(engine, 7), plans, places)
    found, same = trained(pairs, learners_of(pairs, 7), plans, places)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(same, losses, rtol=1e-4, atol=1e-5)
    bags = [np.arange(k, BAGS) for k in range(7)]
    for ours, theirs in zip(
        pairs.logits(learners_of(engine, 7), bags, places),
        engine.logits(learners_of(engine, 7), bags, places),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batches_whose_losses_depend_on_one_another_are_not_cut():
    store = store_of()
    engine = engine_of(store, "gated_attention", Method("sgd"), SURVIVAL)
    engine.data.targets = torch.stack([torch.arange(BAGS) + 1.0, torch.arange(BAGS).remainder(2).float()], 1)
    pairs, plans, places = by_pairs(engine), plans_of(5, batch=6), Places.of(store.starts, store.sizes)
    expected, losses = trained(engine, learners_of(engine, 5), plans, places)
    found, same = trained(pairs, learners_of(pairs, 5), plans, places)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(same, losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
def test_every_optimiser_gives_the_same_model(optimiser):
    store = store_of()
    engine = engine_of(store, "attention", Method(optimiser, momentum=0.9))
    pairs, plans, places = by_pairs(engine), plans_of(5), Places.of(store.starts, store.sizes)
    expected, _ = trained(engine, learners_of(engine, 5), plans, places)
    found, _ = trained(pairs, learners_of(pairs, 5), plans, places)
    assert (found - expected).abs().mean() < 1e-4  # Adam's first step takes the sign of a rounding error here and there


def test_a_small_budget_and_tiles_on_the_host_change_nothing():
    store = store_of()
    engine, plans, places = engine_of(store), plans_of(6), Places.of(store.starts, store.sizes)
    found = []
    for source, budget in ((store.source(torch.device("cpu")), 10**9), (Pinned(store.tiles, torch.device("cpu")), 1)):
        pairs = by_pairs(engine_of(store, method=Method("sgd"), source=source))
        pairs.card.fitting.budget = budget
        found.append(trained(pairs, learners_of(engine, 6), plans, places)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


MANY = 100
SIZES = {
    "equal": lambda generator: np.full(480, 4096),
    "half_to_one_and_a_half": lambda generator: generator.integers(2048, 6145, 480),
    "lognormal": lambda generator: np.exp(generator.normal(np.log(4096), 0.8, 480)).astype(int),
    "biopsies": lambda generator: np.exp(generator.normal(np.log(600), 0.8, 480)).astype(int),
}


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_sizes_of_bags_cost_neither_calls_nor_padding(kind):
    generator = np.random.default_rng(0)
    sizes = SIZES[kind](generator)
    batches = []
    for _ in range(MANY):
        own = generator.permutation(480)[:360]
        batches.append([own[start : start + 16] for start in range(0, 360, 16)])
    cost = Cost(tile=16_000, pair=10_000_000, worth=43_600)
    table = PairTable.of(batches, sizes, cost.worth, whole=False)
    calls = [call for step in range(table.steps()) for call in table.calls(step, cost, 16 * 2**30)]
    covered = np.concatenate([np.arange(call.first, call.stop) for call in calls])
    assert covered.tolist() == list(range(MANY * 360))
    wanted = sorted((k, int(place)) for k, own in enumerate(batches) for batch in own for place in batch)
    assert sorted(zip(table.learner.tolist(), table.place.tolist(), strict=True)) == wanted
    columns = sum((call.stop - call.first) * call.tiles for call in calls)
    real = int(sizes[table.place].sum())
    assert columns <= 1.08 * real
    assert real / len(calls) >= cost.worth  # tiles per call: computing takes longer than launching
    for call in calls[:40]:
        for stretch in table.stretches(call):
            own = table.learner[call.first : call.stop][stretch]
            assert len(set(own.tolist())) == len(own)


def test_where_a_step_cannot_be_compiled_it_goes_on_without_and_says_so(monkeypatch):
    def refused(function):
        def fails(*_):
            raise OSError("Triton requires a working C compiler")

        return fails

    monkeypatch.setattr("mil.training.card.cached_compile", refused)
    store, said = store_of(), io.StringIO()
    engine, plans, places = engine_of(store), plans_of(4), Places.of(store.starts, store.sizes)
    expected = trained(by_pairs(engine), learners_of(engine, 4), plans, places)[0]
    pairs = by_pairs(engine, tiles=float("inf"), reporter=Reporter(stream=said))
    torch.testing.assert_close(trained(pairs, learners_of(engine, 4), plans, places)[0], expected)
    assert said.getvalue() == "training is not compiled (Triton requires a working C compiler); going on without\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "gated_attention" else pytest.mark.extended) for n in sorted(HEADS)]
)
def test_few_graphs_serve_every_size_of_bag_and_number_of_models(name, monkeypatch):
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        "mil.training.card.cached_compile", lambda function: torch.compile(function, dynamic=True, backend=counted)
    )
    store = store_of(bags=30)
    engine = engine_of(store, name, **({"dropout": 0.1} if name in DROPPING else {}))
    pairs = by_pairs(engine, tiles=float("inf"))
    pairs.card.cost = Cost(pairs.card.cost.tile, pairs.card.cost.pair, 60)
    places, counts = Places.of(store.starts, store.sizes), []
    for seed, models in enumerate((9, 5, 7)):
        plans = plans_of(models, seed, batch=5, bags=30)
        pairs.train(learners_of(engine, models), None, plans, places)
        counts.append(len(graphs))
    assert counts[-1] <= 8
    assert counts[-1] == counts[0]  # the first round has seen every kind of call
