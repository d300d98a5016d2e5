"""Heads against torchmil, the authors' code and formulas by hand."""

import numpy as np
import pytest
import torch
from heads import SMALL, WIDTH, alone, bag_of, head_of, linear, numpy_of, sigmoid, softmax

from mil.endpoints import build_endpoint
from mil.models.head import Inputs
from mil.models.layers import masked_extremes
from mil.specs.endpoints import EndpointSpec
from mil.specs.models import TransMILSpec

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
