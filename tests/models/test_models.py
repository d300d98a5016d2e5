"""Every head against somebody else's code or the authors' formula, and the laws that all heads obey."""

import numpy as np
import pytest
import torch

from mil.endpoints import build_endpoint
from mil.models import HEADS, build
from mil.models.head import Inputs
from mil.models.layers import dropout, masked_extremes, masked_softmax
from mil.specs.endpoints import EndpointSpec
from mil.specs.models import PRESETS, ClamSBSpec, TransMILSpec, named
from mil.training.artefact import MODEL

WIDTH = 12
SMALL = {
    "mean": {"hidden": 5},
    "max": {"hidden": (6,)},
    "chowder": {"top": 4, "bottom": 3, "tile_hidden": (6,), "hidden": (5,)},
    "weldon": {"top": 4, "bottom": 3},
    "attention": {"hidden": 7, "attention": 5, "classifier": (4,)},
    "gated_attention": {"hidden": 7, "attention": 5},
    "dsmil": {"queries": 6},
    "clam_sb": {"hidden": 7, "attention": 5, "samples": 3, "dropout": 0.0},
    "transmil": {"width": 8, "heads": 2, "landmarks": 4, "kernel": 5, "dropout": 0.0},
    "clinical": {},
}


def spec_of(name, **changes):
    return MODEL.validate_python(named({"name": name} | SMALL.get(name, {}) | changes))


def head_of(name, outputs=1, seed=0, **changes):
    spec = spec_of(name, **changes)
    head = build(spec, WIDTH, outputs)
    weights = head.initial(np.random.default_rng(seed))
    return head, {key: torch.from_numpy(value) for key, value in weights.items()}


def bag_of(tiles, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(tiles, WIDTH)).astype(np.float32))


def alone(tiles):
    return torch.ones(1, len(tiles), dtype=torch.bool)


def numpy_of(weights):
    return {name: value.double().numpy() for name, value in weights.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


# Laws


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_laws_of_every_head(name, outputs):
    head, weights = head_of(name, outputs)
    bag = bag_of(17)
    output = head(weights, Inputs(bag, alone(bag)))
    assert output.logits.shape == (1, outputs)
    if output.attention is not None:
        assert output.attention.shape == (1, 17)
        assert (output.attention >= 0).all()
        assert output.attention.sum().item() == pytest.approx(1, abs=1e-5)
    # padding, whatever it holds, and other bags beside it change nothing
    other, junk = bag_of(9, seed=2), torch.full((6, WIDTH), 1e4)
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, :17], mask[1, 17:26] = True, True
    packed = head(weights, Inputs(torch.cat([bag, other, junk]), mask))
    torch.testing.assert_close(packed.logits[:1], output.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        packed.logits[1:], head(weights, Inputs(other, alone(other))).logits, rtol=1e-5, atol=1e-6
    )
    if output.attention is not None:
        torch.testing.assert_close(packed.attention[0, :17], output.attention[0], rtol=1e-4, atol=1e-6)
        assert (packed.attention[0, 17:] == 0).all()
    # order
    turned = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    shuffled = head(weights, Inputs(bag[turned], alone(bag)))
    same = torch.allclose(shuffled.logits, output.logits, rtol=1e-5, atol=1e-6)
    assert same != head.positional
    if output.attention is not None and not head.positional:
        torch.testing.assert_close(shuffled.attention[0], output.attention[0, turned], rtol=1e-4, atol=1e-6)
    # a bag of one, and a bag of none (as padding makes them) in finite numbers
    assert torch.isfinite(head(weights, Inputs(bag[:1], alone(bag[:1]))).logits).all()
    assert torch.isfinite(head(weights, Inputs(bag, torch.zeros(1, 17, dtype=torch.bool))).logits).all()


@pytest.mark.parametrize("name", sorted(HEADS))
def test_models_on_the_leading_axis_do_not_see_one_another(name):
    head, first = head_of(name, seed=0)
    _, second = head_of(name, seed=1)
    together = {key: torch.stack([first[key], second[key]]) for key in first}
    bags = torch.stack([bag_of(11, seed=1), bag_of(11, seed=2)])
    mask = torch.zeros(2, 2, 11, dtype=torch.bool)
    mask[:, 0, :4], mask[:, 1, 4:] = True, True
    both = head(together, Inputs(bags, mask)).logits
    for k, weights in enumerate((first, second)):
        torch.testing.assert_close(both[k], head(weights, Inputs(bags[k], mask[k])).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_gradients_agree_with_finite_differences(name):
    head, weights = head_of(name)
    wide = {key: value.double().requires_grad_() for key, value in weights.items()}
    endpoint = build_endpoint(EndpointSpec())
    bag = torch.cat([bag_of(7), bag_of(5, seed=3)]).double()
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, :7], mask[1, 7:] = True, True
    targets, present = torch.tensor([[1.0], [0.0]]).double(), torch.ones(2, dtype=torch.bool)
    keys = sorted(wide)
    if not keys:
        pytest.skip("the head has no weights of its own")

    def loss(*values):
        output = head(dict(zip(keys, values, strict=True)), Inputs(bag, mask, training=True))
        return head.losses(output, targets, present, endpoint).sum()

    assert torch.autograd.gradcheck(loss, tuple(wide[key] for key in keys), fast_mode=True)


@pytest.mark.parametrize("tiles", [1, 200_000])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_any_number_of_tiles(name, tiles):
    head, weights = head_of(name)
    bag = bag_of(tiles)
    assert torch.isfinite(head(weights, Inputs(bag, alone(bag))).logits).all()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_build(name):
    spec = spec_of(name)
    head = build(spec, WIDTH, 1)
    assert head.initial(np.random.default_rng(0))


def test_first_weights_of_several_layers_do_not_dim_the_tiles():
    tiles, spread = np.random.default_rng(1).normal(size=(256, 230)), {}  # as wide as Elephant's
    for init in ("uniform", "xavier"):
        spec = spec_of("ilse_gated_attention").model_copy(update={"init": init})
        weights, hidden = build(spec, 230, 1).initial(np.random.default_rng(0)), tiles
        for layer in ("before.0", "before.1", "embed"):
            hidden = np.maximum(hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
        spread[init] = hidden.std()
        assert all(not value.any() for name, value in weights.items() if name.endswith("bias")) == (init == "xavier")
    assert spread["xavier"] > 3 * spread["uniform"]


# Others' code


def copied(module, pairs):
    """Put our weights into a torch module: (parameter name there, tensor)."""
    state = dict(module.state_dict())
    for name, value in pairs.items():
        assert state[name].shape == value.shape, name
        state[name] = value
    module.load_state_dict(state)
    return module.eval()


@pytest.mark.parametrize("name", ["attention", "gated_attention"])
def test_layers_before_attention_are_an_mlp_in_front_of_it(name):
    deep, weights = head_of(name, before=(6, WIDTH))
    plain, _ = head_of(name)
    bag = bag_of(9)
    hidden = bag
    for k in range(2):
        hidden = torch.relu(hidden @ weights[f"before.{k}.weight"].T + weights[f"before.{k}.bias"])
    expected = plain(weights, Inputs(hidden, alone(bag))).logits
    torch.testing.assert_close(deep(weights, Inputs(bag, alone(bag))).logits, expected)


@pytest.mark.parametrize("name", ["attention", "gated_attention"])
def test_attention_is_torchmils(name):
    from torchmil.models import ABMIL

    head, weights = head_of(name, activation="relu", classifier=())
    weights["weigh.bias"].zero_()  # a softmax does not see it, and torchmil has none
    embed = torch.nn.Sequential(torch.nn.Linear(WIDTH, 7), torch.nn.ReLU())
    theirs = ABMIL((WIDTH,), att_dim=5, gated=name == "gated_attention", feat_ext=embed)
    pairs = {
        "feat_ext.0.weight": weights["embed.weight"],
        "feat_ext.0.bias": weights["embed.bias"],
        "pool.fc1.module.weight": weights["branches.weight"][:5],
        "pool.fc1.module.bias": weights["branches.bias"][:5],
        "pool.fc2.weight": weights["weigh.weight"],
        "classifier.module.weight": weights["score.weight"],
        "classifier.module.bias": weights["score.bias"],
    }
    if name == "gated_attention":
        pairs |= {
            "pool.fc_gated.module.weight": weights["branches.weight"][5:],
            "pool.fc_gated.module.bias": weights["branches.bias"][5:],
        }
    copied(theirs, pairs)
    bag = bag_of(23)
    logits, scores = theirs(bag[None], return_att=True)
    ours = head(weights, Inputs(bag, alone(bag)))
    torch.testing.assert_close(ours.logits[0], logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.attention, scores.softmax(-1), rtol=1e-5, atol=1e-6)


def test_dsmil_is_torchmils():
    from torchmil.models import DSMIL

    head, weights = head_of("dsmil", values=False)
    theirs = DSMIL((WIDTH,), att_dim=6)
    copied(
        theirs,
        {
            "q_nn.weight": weights["query.weight"],
            "q_nn.bias": weights["query.bias"],
            "inst_classifier.weight": weights["tile_score.weight"],
            "inst_classifier.bias": weights["tile_score.bias"],
            "bag_classifier.weight": weights["score.weight"],
            "bag_classifier.bias": weights["score.bias"],
        },
    )
    bag, label = bag_of(23), torch.tensor([1.0])
    bag_logit, losses = theirs.compute_loss(label, bag[None])
    ours = head(weights, Inputs(bag, alone(bag)))
    torch.testing.assert_close(ours.logits[0], bag_logit, rtol=1e-5, atol=1e-6)
    loss = head.losses(ours, label[:, None], torch.ones(1, dtype=torch.bool), build_endpoint(EndpointSpec()))
    assert loss.item() == pytest.approx(sum(losses.values()).item() / 2, rel=1e-5)


class CrossEntropyOfColumn(torch.nn.Module):
    """CLAM's cross-entropy, for targets as torchmil hands them over."""

    def forward(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets[:, 0].long())


@pytest.mark.parametrize("tiles", [4, 23])
@pytest.mark.parametrize("label", [0, 1])
def test_clams_tile_loss_is_torchmils(label, tiles):
    from torchmil.models import CLAM_SB

    head, weights = head_of("clam_sb", subtyping=True, bag_weight=0.0, samples=4)
    weights["weigh.bias"].zero_()
    embed = torch.nn.Sequential(torch.nn.Linear(WIDTH, 7), torch.nn.ReLU())
    theirs = CLAM_SB((WIDTH,), att_dim=5, k_sample=4, gated=True, feat_ext=embed, inst_loss_name="BCEWithLogitsLoss")
    theirs.inst_loss_fn = CrossEntropyOfColumn()
    copied(
        theirs,
        {
            "feat_ext.0.weight": weights["embed.weight"],
            "feat_ext.0.bias": weights["embed.bias"],
            "pool.fc1.module.weight": weights["branches.weight"][:5],
            "pool.fc1.module.bias": weights["branches.bias"][:5],
            "pool.fc_gated.module.weight": weights["branches.weight"][5:],
            "pool.fc_gated.module.bias": weights["branches.bias"][5:],
            "pool.fc2.weight": weights["weigh.weight"],
            "classifier.module.weight": weights["score.weight"],
            "classifier.module.bias": weights["score.bias"],
            "inst_classifiers.0.module.weight": weights["tile_class.weight"][:2],
            "inst_classifiers.0.module.bias": weights["tile_class.bias"][:2],
            "inst_classifiers.1.module.weight": weights["tile_class.weight"][2:],
            "inst_classifiers.1.module.bias": weights["tile_class.bias"][2:],
        },
    )
    bag, target = bag_of(tiles), torch.tensor([float(label)])
    _, losses = theirs.compute_loss(target, bag[None])
    ours = head(weights, Inputs(bag, alone(bag), training=True))
    loss = head.losses(ours, target[:, None], torch.ones(1, dtype=torch.bool), build_endpoint(EndpointSpec()))
    assert loss.item() == pytest.approx(losses["InstLoss"].item() / 2, rel=1e-5)  # CLAM's code: mean over the classes


def test_a_small_bag_is_sampled_only_as_far_as_it_goes():
    head, weights = head_of("clam_sb", bag_weight=0.0, samples=8)
    small, _ = head_of("clam_sb", bag_weight=0.0, samples=3)
    bag, endpoint = bag_of(3), build_endpoint(EndpointSpec())
    target, present = torch.tensor([[1.0]]), torch.ones(1, dtype=torch.bool)
    first, second = (
        one.losses(one(weights, Inputs(bag, alone(bag), training=True)), target, present, endpoint)
        for one in (head, small)
    )
    torch.testing.assert_close(first, second)


def test_transmil_is_torchmils_where_theirs_has_no_convolution_of_values():
    from torchmil.models import TransMIL

    head, weights = head_of("transmil")
    for layer in ("first", "second"):  # torchmil leaves these two out of the authors' attention
        weights[f"{layer}.residual.weight"].zero_()
        weights[f"{layer}.out.weight"].copy_(torch.eye(8))
        weights[f"{layer}.out.bias"].zero_()
    embed = torch.nn.Sequential(torch.nn.Linear(WIDTH, 8), torch.nn.ReLU())
    theirs = TransMIL((WIDTH,), att_dim=8, n_heads=2, n_landmarks=4, feat_ext=embed)
    pairs = {
        "feat_ext.0.weight": weights["embed.weight"],
        "feat_ext.0.bias": weights["embed.bias"],
        "cls_token": weights["token"][None],
        "pos_layer.proj.weight": weights["pyramid7.weight"],
        "pos_layer.proj.bias": weights["pyramid7.bias"],
        "pos_layer.proj1.weight": weights["pyramid5.weight"],
        "pos_layer.proj1.bias": weights["pyramid5.bias"],
        "pos_layer.proj2.weight": weights["pyramid3.weight"],
        "pos_layer.proj2.bias": weights["pyramid3.bias"],
        "norm.weight": weights["norm.weight"],
        "norm.bias": weights["norm.bias"],
        "classifier.weight": weights["score.weight"],
        "classifier.bias": weights["score.bias"],
    }
    for k, layer in enumerate(("first", "second")):
        pairs |= {
            f"layers.{k}.norm1.weight": weights[f"{layer}.norm.weight"],
            f"layers.{k}.norm1.bias": weights[f"{layer}.norm.bias"],
            f"layers.{k}.att_module.qkv_nn.weight": weights[f"{layer}.qkv.weight"],
        }
    copied(theirs, pairs)
    bag = bag_of(16)  # with the token 17: torchmil pads at the end, the authors in front, and here neither does
    head.spec = TransMILSpec(**(SMALL["transmil"] | {"landmarks": 17}))
    for layer in (head.first, head.second):
        layer.spec = head.spec
    for layer in theirs.layers:
        layer.att_module.n_landmarks = 17
    ours = head(weights, Inputs(bag, alone(bag)))
    torch.testing.assert_close(ours.logits[0], theirs(bag[None]), rtol=1e-4, atol=1e-5)


def test_transmils_attention_is_the_authors_formula():
    """One Nystroem layer in numpy, written from the authors' equations: zeros in front, landmarks, convolution."""
    head, weights = head_of("transmil")
    values, tokens = numpy_of(weights), 11
    x = np.random.default_rng(5).normal(size=(tokens, 8))
    mean, deviation = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    normed = (x - mean) / np.sqrt(deviation + 1e-5) * values["first.norm.weight"] + values["first.norm.bias"]
    padded = np.concatenate([np.zeros((1, 8)), normed])  # 12 = 4 landmarks x 3
    q, k, v = np.split(padded @ values["first.qkv.weight"].T, 3, axis=1)
    heads = []
    for h in range(2):
        own = slice(4 * h, 4 * h + 4)
        qh, kh, vh = q[:, own] / 2, k[:, own], v[:, own]
        ql, kl = qh.reshape(4, 3, 4).mean(1), kh.reshape(4, 3, 4).mean(1)
        inverse = np.linalg.pinv(softmax(ql @ kl.T))
        mixed = softmax(qh @ kl.T) @ inverse @ softmax(ql @ kh.T) @ vh
        kernel = values["first.residual.weight"][h, 0, :, 0]
        around = np.pad(vh, ((2, 2), (0, 0)))
        heads.append(mixed + sum(kernel[j] * around[j : j + 12] for j in range(5)))
    expected = x + linear(values, "first.out", np.concatenate(heads, 1))[1:]
    head.spec = TransMILSpec(**(SMALL["transmil"] | {"iterations": 30}))
    head.first.spec = head.spec  # enough iterations for the pseudo-inverse to be one
    wide = {name: value.double() for name, value in weights.items()}
    found, attention = head.first(wide, torch.from_numpy(x), None, 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert attention.shape == (tokens,)


# The authors' formulas in numpy


def test_mean_and_max_by_hand():
    bag = bag_of(9)
    head, weights = head_of("mean", hidden=None)
    values = numpy_of(weights)
    expected = linear(values, "score", bag.double().numpy().mean(0))
    np.testing.assert_allclose(head(weights, Inputs(bag, alone(bag))).logits[0], expected, rtol=1e-5)
    head, weights = head_of("max", outputs=2, hidden=())
    expected = linear(numpy_of(weights), "score", bag.double().numpy()).max(0)
    np.testing.assert_allclose(head(weights, Inputs(bag, alone(bag))).logits[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["chowder", "weldon"])
def test_extremes_by_hand(name):
    head, weights = head_of(name)
    values, bag = numpy_of(weights), bag_of(15)
    x = bag.double().numpy()
    if name == "weldon":
        scores = np.sort(linear(values, "score", x)[:, 0])
        expected = np.mean([*scores[-4:], *scores[:3]])
    else:
        scores = np.sort(linear(values, "tile_score.1", sigmoid(linear(values, "tile_score.0", x)))[:, 0])
        found = np.concatenate([scores[::-1][:4], scores[:3]])
        expected = linear(values, "score.1", sigmoid(linear(values, "score.0", found)))[0]
    assert head(weights, Inputs(bag, alone(bag))).logits.item() == pytest.approx(expected, rel=1e-5)


def test_extremes_of_a_small_bag_repeat_its_last_tile():
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]])
    values, where = masked_extremes(torch.tensor([3.0, 5.0, 1.0, 2.0]), mask, 3)
    assert values.tolist() == [[5, 3, 3], [2, 1, 1]]
    assert where.tolist() == [[1, 0, 0], [3, 2, 2]]


def test_dsmil_by_the_authors_code():
    head, weights = head_of("dsmil", outputs=2)
    values, bag = numpy_of(weights), bag_of(15)
    x = bag.double().numpy()
    scores, queries, information = (linear(values, name, x) for name in ("tile_score", "query", "value"))
    attentions = [softmax(queries @ queries[scores[:, c].argmax()] / np.sqrt(6)) for c in range(2)]
    joined = np.concatenate([attention @ information for attention in attentions])
    expected = (linear(values, "score", joined) + scores.max(0)) / 2
    output = head(weights, Inputs(bag, alone(bag)))
    np.testing.assert_allclose(output.logits[0], expected, rtol=1e-5)
    np.testing.assert_allclose(output.attention[0], np.mean(attentions, 0), rtol=1e-5)


def test_covariates_are_joined_at_the_logits():
    head, weights = head_of("mean", hidden=None)
    fused = build(spec_of("mean", hidden=None), WIDTH, 1, covariates=2)
    bag, known = bag_of(5), torch.tensor([[2.0, -1.0]])
    weights["covariates.weight"] = torch.tensor([[0.5, 3.0]])
    plain = head(weights, Inputs(bag, alone(bag))).logits
    torch.testing.assert_close(fused(weights, Inputs(bag, alone(bag), known)).logits, plain + 2 * 0.5 - 3)
    clinical = build(spec_of("clinical"), WIDTH, 1, covariates=2)
    weights["covariates.bias"] = torch.tensor([7.0])
    assert clinical(weights, Inputs(bag, alone(bag), known)).logits.item() == -2 + 7


# Pieces


def test_masked_softmax_ignores_even_infinite_padding():
    scores = torch.tensor([[1.0, 2.0, float("inf"), float("nan")]])
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    found = masked_softmax(scores, mask)
    torch.testing.assert_close(found[0, :2], torch.tensor([1.0, 2.0]).softmax(0))
    assert (found[0, 2:] == 0).all()
    assert (found[1] == 0).all()


def test_dropout_follows_its_key_and_its_share():
    keys = torch.arange(4000)
    ones = torch.ones(4000, 50)
    dropped = dropout(ones, 0.25, keys, layer=0)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout(ones[:7], 0.25, keys[:7], 0), dropped[:7])
    assert not torch.equal(dropout(ones, 0.25, keys, layer=1), dropped)
    assert not torch.equal(dropout(ones, 0.25, keys + 1, layer=0), dropped)


def test_attention_drops_every_layer_by_a_stream_of_its_own():
    head, weights = head_of("attention", before=[7, 6], dropout=0.4)
    tiles, keys = bag_of(9), torch.arange(9)
    inputs = Inputs(tiles, alone(tiles), None, True, keys)
    hidden = tiles
    for number, layer in enumerate(head.before):
        hidden = dropout(torch.relu(layer(weights, hidden)), 0.4, keys, layer=2 + number)
    hidden = head.embed(weights, hidden)
    hidden = dropout(torch.relu(hidden) if head.spec.activation == "relu" else hidden, 0.4, keys, layer=0)
    gate = dropout(torch.tanh(head.branches(weights, hidden)), 0.4, keys, layer=1)
    attention = torch.softmax(head.weigh(weights, gate)[:, 0], 0)
    output = head(weights, inputs)
    torch.testing.assert_close(output.attention, attention[None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.logits, head.score(weights, attention[None] @ hidden), rtol=1e-5, atol=1e-6)


def test_clam_wants_classes():
    assert build(ClamSBSpec(), WIDTH, 1).needs_classes
