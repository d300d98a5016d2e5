"""A model among many is the model alone; gradients, optimisers, stores and samples against the plain way."""

import numpy as np
import pytest
import torch
from heads import spec_of

from mil import hdf5
from mil.endpoints import build_endpoint
from mil.models import HEADS, build
from mil.models.head import Inputs
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import TrainingSpec
from mil.training import engine as engine_module
from mil.training.engine import Data, Engine, Learners, Method, Plan
from mil.training.optimisers import OPTIMISERS, OptimiserState, clip, schedule
from mil.training.packing import Places, pack, padded_length, pieces, runs
from mil.training.plans import Rounds
from mil.training.sources import Pinned, Resident, Streamed
from mil.training.store import FeatureStore

WIDTH, BAGS = 12, 14
CPU = torch.device("cpu")
BINARY = build_endpoint(EndpointSpec())


def store_of(bags=BAGS, seed=0, low=1, high=40):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(low, high, bags)
    return FeatureStore.of(
        {f"p{k:02d}": generator.normal(size=(n, WIDTH)).astype(np.float32) for k, n in enumerate(sizes)}
    )


def engine_of(store, name="gated_attention", method=None, endpoint=BINARY, source=None, **changes):
    head = build(spec_of(name, **changes), WIDTH, endpoint.outputs, covariates=2 if name == "clinical" else 0)
    targets = torch.arange(len(store.patients)).remainder(2).float()[:, None]
    covariates = torch.randn(len(store.patients), 2, generator=torch.Generator().manual_seed(0))
    data = Data(
        source or store.source(CPU), WIDTH, targets, store.patient_keys(), covariates if name == "clinical" else None
    )
    return Engine(head, endpoint, data, method or Method())


def learners_of(engine, count, seed=0):
    generator = np.random.default_rng(seed)
    rows = np.stack([engine.layout.flat(engine.head.initial(np.random.default_rng(k))) for k in range(count)])
    buffers = {}
    for name, width in {"features": WIDTH, "covariates": 2}.items():
        buffers[f"{name}.mean"] = torch.from_numpy(generator.normal(size=(count, width)).astype(np.float32))
        buffers[f"{name}.deviation"] = torch.from_numpy(generator.uniform(0.5, 2, (count, width)).astype(np.float32))
    rates = torch.from_numpy(generator.uniform(1e-3, 1e-2, (count, 1)).astype(np.float32))
    return Learners(torch.from_numpy(rows), buffers, rates, rates / 10, torch.ones(count, engine.endpoint.classes))


def plans_of(count, seed=0, batch=4, bags=BAGS):
    generator = np.random.default_rng(seed)
    plans = []
    for k in range(count):
        own = generator.permutation(bags)[: generator.integers(1, bags)]
        plans.append(Plan([own[start : start + batch] for start in range(0, len(own), batch)], stream=1000 + k))
    return plans


def some(learners, chosen):
    """A copy of some learners by number."""
    index = torch.tensor(chosen)
    buffers = {name: value[index] for name, value in learners.buffers.items()}
    return Learners(
        learners.rows[index].clone(), buffers, learners.lr[index], learners.decay[index], learners.balance[index]
    )


def trained(engine, learners, plans, places, rounds=2):
    state = engine.fresh(learners.rows)
    losses = [engine.train(learners, state, plans, places) for _ in range(rounds)]
    return learners.rows, np.array(losses)


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_model_among_others_is_bit_for_bit_the_model_alone(name, optimiser):
    store = store_of()
    changes = {"dropout": 0.3} if name in {"attention", "gated_attention", "clam_sb", "mean", "max", "transmil"} else {}
    count = 5 if name == "transmil" else 30
    engine = engine_of(store, name, Method(optimiser, momentum=0.9, clip_norm=1.0), **changes)
    everyone, plans, places = learners_of(engine, count), plans_of(count), Places.of(store.starts, store.sizes)
    together, losses = trained(engine, some(everyone, range(count)), plans, places)
    for k in (0, count // 2, count - 1):
        alone, loss = trained(engine, some(everyone, [k]), [plans[k]], places)
        assert torch.equal(alone[0], together[k])
        np.testing.assert_array_equal(loss[:, 0], losses[:, k])
    if together.shape[1]:
        assert not torch.equal(together, everyone.rows)


def test_a_hundred_models_of_the_usual_size_are_each_the_model_alone():
    store = store_of(low=20, high=120)
    engine = engine_of(store, hidden=128, attention=128, dropout=0.1)
    everyone, plans, places = learners_of(engine, 100), plans_of(100), Places.of(store.starts, store.sizes)
    together, _ = trained(engine, some(everyone, range(100)), plans, places, rounds=1)
    for k in (3, 57, 99):
        assert torch.equal(trained(engine, some(everyone, [k]), [plans[k]], places, rounds=1)[0][0], together[k])


def test_number_of_threads_changes_no_bit():
    store = store_of()
    engine, plans = engine_of(store), plans_of(20)
    everyone, places = learners_of(engine, 20), Places.of(store.starts, store.sizes)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(trained(engine, some(everyone, range(20)), plans, places)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["gated_attention", "dsmil", "chowder", "clam_sb"])
def test_a_batch_that_is_cut_up_gives_the_same_model(name, monkeypatch):
    store = store_of()
    changes = {"dropout": 0.2} if name in ("gated_attention", "clam_sb") else {}
    whole = engine_of(store, name, Method("sgd"), **changes)  # Adam's first step takes the sign of every rounding error
    plans, places = plans_of(6), Places.of(store.starts, store.sizes)
    expected, _ = trained(whole, learners_of(whole, 6), plans, places)
    monkeypatch.setattr(engine_module, "CPU_NUMBERS", 10 * WIDTH)  # two bags or so a piece
    cut = Engine(whole.head, BINARY, whole.data, whole.method)
    found, _ = trained(cut, learners_of(cut, 6), plans, places)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    logits, same = (one.logits(learners_of(one, 6), [np.arange(BAGS)] * 6, places) for one in (whole, cut))
    np.testing.assert_allclose(same, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"clinical"}))
def test_gradients_are_those_of_plain_autograd(name):
    store = store_of()
    engine = engine_of(store, name, Method("sgd"))
    learners, batch = learners_of(engine, 3), np.array([2, 9, 5])
    learners.lr, learners.decay = torch.ones(3, 1), torch.zeros(3, 1)
    before = some(learners, range(3))
    engine.train(learners, engine.fresh(learners.rows), [Plan([batch])] * 3, Places.of(store.starts, store.sizes))
    for k in range(3):
        weights = {key: value[k].requires_grad_() for key, value in engine.layout.views(before.rows.clone()).items()}
        loss = 0
        for bag in batch:
            tiles = (torch.from_numpy(store.bag(bag)) - before.buffers["features.mean"][k]) / before.buffers[
                "features.deviation"
            ][k]
            output = engine.head(weights, Inputs(tiles, torch.ones(1, len(tiles), dtype=torch.bool), training=True))
            target = torch.tensor([[float(bag % 2)]])
            loss = loss + engine.head.losses(output, target, torch.ones(1, dtype=torch.bool), BINARY).sum() / 3
        gradients = torch.autograd.grad(loss, [weights[key] for key in engine.layout.shapes], allow_unused=True)
        plain = torch.cat(
            [
                torch.zeros(int(np.prod(shape))) if g is None else g.flatten()
                for g, shape in zip(gradients, engine.layout.shapes.values(), strict=True)
            ]
        )
        torch.testing.assert_close(before.rows[k] - learners.rows[k], plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_optimisers_are_torchs(name):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 10, generator=generator)
    lr, decay = torch.tensor([[0.1], [0.01], [0.03]]), torch.tensor([[0.0], [0.1], [0.5]])
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    extra = {"momentum": 0.9} if name == "sgd" else {}
    theirs = [row.clone().requires_grad_() for row in rows]
    optimisers = [
        kinds[name]([row], lr=lr[k].item(), weight_decay=decay[k].item(), **extra) for k, row in enumerate(theirs)
    ]
    state = OptimiserState.zeros(rows)
    for _ in range(5):
        gradient = torch.randn(3, 10, generator=generator)
        for k, row in enumerate(theirs):
            row.grad = gradient[k].clone()
            torch.nn.utils.clip_grad_norm_([row], 2.0)
            optimisers[k].step()
        clip(gradient, 2.0)
        OPTIMISERS[name](rows, gradient, state, lr, decay, 0.9)
    torch.testing.assert_close(rows, torch.stack([row.detach() for row in theirs]), rtol=1e-5, atol=1e-6)


def test_schedules_by_hand():
    assert [schedule("constant", done, 4, 0) for done in range(4)] == [1, 1, 1, 1]
    assert [schedule("linear", done, 4, 0) for done in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [round(schedule("cosine", done, 4, 0), 6) for done in range(4)] == [1, 0.853553, 0.5, 0.146447]
    assert [schedule("constant", done, 4, 1) for done in range(3)] == [0.5, 1, 1]


def test_models_that_have_stopped_are_left_alone():
    store = store_of()
    engine = engine_of(store)
    learners, plans = learners_of(engine, 4), plans_of(4)
    plans[2] = Plan()
    before = learners.rows.clone()
    losses = engine.train(learners, engine.fresh(learners.rows), plans, Places.of(store.starts, store.sizes))
    assert torch.equal(learners.rows[2], before[2])
    assert np.isnan(losses).tolist() == [False, False, True, False]


def test_models_that_have_stopped_cost_nothing(monkeypatch):
    store = store_of()
    engine, places = engine_of(store), Places.of(store.starts, store.sizes)
    plans = [plan if k % 3 else Plan() for k, plan in enumerate(plans_of(30))]
    everyone, live = learners_of(engine, 30), [k for k in range(30) if k % 3]
    objective, calls = engine.objective, []

    def counted(weights, inputs, targets, present):
        calls.append(inputs.tiles.shape)
        return objective(weights, inputs, targets, present)

    monkeypatch.setattr(engine, "objective", counted)
    alone, _ = trained(engine, some(everyone, live), [plans[k] for k in live], places, rounds=1)
    without = calls.copy()
    calls.clear()
    rows, _ = trained(engine, some(everyone, range(30)), plans, places, rounds=1)
    with_stopped = calls
    assert with_stopped == without  # the same calls, as wide
    assert torch.equal(rows[live], alone)
    assert torch.equal(rows[::3], everyone.rows[::3])


def written(store, folder):
    """The store's bags as feature files in half precision, one a patient."""
    paths = []
    for number, patient in enumerate(store.patients):
        paths.append(folder / f"{patient}.h5")
        with hdf5.writing(paths[-1]) as writer:
            writer.append("features", store.bag(number).astype(np.float16))
    return paths


def test_resident_pinned_and_streamed_tiles_train_the_same_model(tmp_path):
    plain = store_of()
    half = FeatureStore.of({p: plain.bag(k).astype(np.float16) for k, p in enumerate(plain.patients)})
    paths = written(plain, tmp_path)
    memory = half.tiles.nbytes // 4
    streamed = Streamed(paths, half.sizes, WIDTH, "float16", memory, CPU)
    found = []
    for source in (Resident(half.tiles, CPU), Pinned(half.tiles, CPU), streamed):
        engine = engine_of(half, source=source)
        found.append(trained(engine, learners_of(engine, 6), plans_of(6), Places.of(half.starts, half.sizes))[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert streamed.peak <= max(memory, int(half.sizes.max()) * WIDTH * 2)  # four times larger than the memory given


def test_sampled_tiles_are_drawn_anew_each_epoch_and_alike_for_all_models():
    store = store_of(low=3, high=60)
    rounds = Rounds(TrainingSpec(max_tiles=10, local_epochs=2, batch_size=4), store)
    places = rounds.places(1, 2)
    assert places.sizes.tolist() == [min(n, 10) for n in store.sizes] * 2
    big = int(np.argmax(store.sizes))
    first, second = (
        places.rows[places.starts[p] : places.starts[p] + places.sizes[p]].tolist() for p in (big, big + BAGS)
    )
    assert first != second
    for rows in (first, second):
        assert len(set(rows)) == 10
        assert store.starts[big] <= min(rows) <= max(rows) < store.starts[big] + store.sizes[big]
    again = Rounds(TrainingSpec(max_tiles=10, local_epochs=2, batch_size=4), store).places(1, 2)
    assert torch.equal(again.rows, places.rows)
    batches = rounds.batches(np.arange(BAGS), 1, None, "")
    assert sorted(np.concatenate(batches).tolist()) == list(range(2 * BAGS))


def test_order_is_each_patients_own():
    store = store_of()
    rounds = Rounds(TrainingSpec(batch_size=3), store)
    everyone, half = (
        np.concatenate(rounds.batches(own, 1, None, "")) for own in (np.arange(BAGS), np.arange(0, BAGS, 2))
    )
    assert [bag for bag in everyone if bag % 2 == 0] == half.tolist()
    assert np.concatenate(rounds.batches(np.arange(BAGS), 2, None, "")).tolist() != everyone.tolist()


def test_steps_a_round_and_balanced_draws():
    store = store_of()
    rounds = Rounds(TrainingSpec(batch_size=4, local_steps=9), store)
    assert len(rounds.batches(np.arange(BAGS), 1, None, "")) == 9  # 4 batches an epoch
    weights = np.where(np.arange(BAGS) < 2, 6.0, 1.0)
    drawn = np.concatenate([np.concatenate(rounds.batches(np.arange(BAGS), k, weights, "s")) for k in range(60)])
    assert (drawn < 2).mean() == pytest.approx(0.5, abs=0.05)


def test_packing_by_hand():
    places = Places.of(np.array([0, 3, 5]), np.array([3, 2, 4]))
    packed = pack(torch.tensor([[2, 0], [1, -1]]), places, 8)
    assert packed.rows.tolist() == [[5, 6, 7, 8, 0, 1, 2, 0], [3, 4, 0, 0, 0, 0, 0, 0]]
    assert packed.mask.int().tolist() == [
        [[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0]],
        [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
    ]
    assert packed.rank[0].tolist()[:7] == [0, 1, 2, 3, 0, 1, 2]
    assert [padded_length(n) for n in (0, 1, 16, 17, 32, 63, 64, 100, 300)] == [16, 16, 16, 32, 32, 64, 64, 128, 320]
    assert [piece.tolist() for piece in pieces(np.array([0, 1, 2]), np.array([3, 2, 4]), 5)] == [[0, 1], [2]]
    assert list(runs(["a", "a", None, "b", "a"])) == [slice(0, 2), slice(3, 4), slice(4, 5)]


def test_bf16_is_near_and_its_weights_are_fp32():
    store = store_of()
    engine, low = engine_of(store), engine_of(store, method=Method(precision="bf16"))
    places, plans = Places.of(store.starts, store.sizes), plans_of(4)
    exact, rough = (trained(one, learners_of(one, 4), plans, places)[0] for one in (engine, low))
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.05
    assert not torch.equal(exact, rough)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(set(HEADS) - {"transmil"}))
def test_the_gpu_trains_the_same_model(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    store = store_of()
    engine, places, plans = engine_of(store, name), Places.of(store.starts, store.sizes), plans_of(6)
    expected, _ = trained(engine, learners_of(engine, 6), plans, places)
    cuda = torch.device("cuda")
    data = Data(
        store.source(cuda),
        WIDTH,
        engine.data.targets.to(cuda),
        engine.data.patients.to(cuda),
        None if engine.data.covariates is None else engine.data.covariates.to(cuda),
    )
    there = Engine(engine.head, BINARY, data, engine.method, cuda)
    learners = learners_of(engine, 6)
    moved = Learners(
        *(
            part.to(cuda) if not isinstance(part, dict) else {k: v.to(cuda) for k, v in part.items()}
            for part in (learners.rows, learners.buffers, learners.lr, learners.decay, learners.balance)
        )
    )
    found, _ = trained(there, moved, plans, places)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
