"""Every head against somebody else's code or the authors' formula, and the laws that all heads obey."""

import numpy as np
import pytest
import torch
from heads import WIDTH, alone, bag_of, head_of, spec_of

from mil.endpoints import build_endpoint
from mil.models import HEADS, build
from mil.models.head import Inputs
from mil.models.layers import dropout, masked_softmax, tanh
from mil.specs.endpoints import EndpointSpec
from mil.specs.models import PRESETS, ClamSBSpec

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


@pytest.mark.parametrize("shift", [-1e4, 0.0, 90.0, 1e4])
def test_masked_softmax_is_softmax_however_large_scores_are(shift):
    scores = torch.linspace(-3, 9, 12)[None] + shift
    mask = torch.ones(1, 12, dtype=torch.bool)
    torch.testing.assert_close(masked_softmax(scores, mask), scores.softmax(-1))
    half = masked_softmax(scores.bfloat16(), mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, scores.bfloat16().float().softmax(-1))
    assert masked_softmax(scores.double(), mask).dtype == torch.float64


def test_tanh_is_torch_s():
    x = torch.linspace(-30, 30, 601)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=2e-7)


def test_dropout_follows_its_key_and_its_share():
    keys = torch.arange(4000)
    ones = torch.ones(4000, 50)
    dropped = dropout(ones, 0.25, keys, layer=0)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout(ones[:7], 0.25, keys[:7], 0), dropped[:7])
    assert not torch.equal(dropout(ones, 0.25, keys, layer=1), dropped)
    assert not torch.equal(dropout(ones, 0.25, keys + 1, layer=0), dropped)


@pytest.mark.parametrize("name", ["attention", "gated_attention"])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_attention_drops_every_layer_by_a_stream_of_its_own(name, activation):
    head, weights = head_of(name, before=[7, 6], dropout=0.4, activation=activation)
    tiles, keys = bag_of(9), torch.arange(9)
    inputs = Inputs(tiles, alone(tiles), None, True, keys)
    hidden = tiles
    for number, layer in enumerate(head.before):
        hidden = dropout(torch.relu(layer(weights, hidden)), 0.4, keys, layer=2 + number)
    hidden = head.embed(weights, hidden)
    hidden = dropout(torch.relu(hidden) if activation == "relu" else hidden, 0.4, keys, layer=0)
    left, right = head.branches(weights, hidden).tensor_split([head.spec.attention], dim=-1)
    gate = torch.tanh(left) * (torch.sigmoid(right) if name == "gated_attention" else 1)
    gate = dropout(gate, 0.4, keys, layer=1)
    attention = torch.softmax(head.weigh(weights, gate)[:, 0], 0)
    output = head(weights, inputs)
    torch.testing.assert_close(output.attention, attention[None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.logits, head.score(weights, attention[None] @ hidden), rtol=1e-5, atol=1e-6)


def test_clam_wants_classes():
    assert build(ClamSBSpec(), WIDTH, 1).needs_classes
