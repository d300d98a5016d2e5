"""The way of computing on a GPU, on the CPU: the same models as the CPU's way, bounded calls and graphs, sizes that do not matter."""

import numpy as np
import pytest
import torch
from test_training_engine import BAGS, engine_of, learners_of, plans_of, store_of, trained

from mil.endpoints.endpoints import build_endpoint
from mil.models import HEADS
from mil.specs.endpoints import EndpointSpec
from mil.training.engine import Engine, Method
from mil.training.packing import Places

SURVIVAL = build_endpoint(EndpointSpec(kind="survival", column="time", event="event"))


def by_pairs(engine, **changes):
    return Engine(engine.head, engine.endpoint, engine.data, engine.method, by_pairs=True, **changes)


@pytest.mark.parametrize("worth", [1, 10**9])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_pairs_of_learners_and_bags_give_the_same_model(name, worth, monkeypatch):
    store = store_of()
    changes = {"dropout": 0.3} if name in {"attention", "gated_attention", "clam_sb", "mean", "max", "transmil"} else {}
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
