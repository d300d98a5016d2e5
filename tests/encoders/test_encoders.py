import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mil.config import EncoderSpec, parse
from mil.encoders.build import build, make_random
from mil.encoders.conch import PooledVit
from mil.encoders.resnet import ResNet50
from mil.encoders.state import from_huggingface, from_old_swin, load_huggingface, load_timm, resized_positions
from mil.encoders.table import ENCODERS
from mil.encoders.vit import Vit
from mil.errors import MilError
from mil.features.engine import EncoderEngine

# Model cards, papers and the authors' code, written down apart from the registry: width, input, normalisation, interpolation,
# side before the middle is cut out, microns a pixel, published parameters (to the digits given; none: none were).
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
CARDS = {
    "uni": (1024, 224, IMAGENET, "bilinear", None, 0.5, 303e6),
    "uni2_h": (1536, 224, IMAGENET, "bilinear", None, 0.5, 681e6),
    "conch": (512, 448, CLIP, "bicubic", None, 0.5, None),
    "conch_v1_5": (768, 448, IMAGENET, "bilinear", None, 0.5, 306e6),
    "virchow": (2560, 224, IMAGENET, "bicubic", None, 0.5, 631e6),
    "virchow2": (2560, 224, IMAGENET, "bicubic", None, None, 631e6),
    "prov_gigapath": (1536, 224, IMAGENET, "bicubic", 256, 0.5, 1_134_953_984),
    "h_optimus_0": (1536, 224, BIOPTIMUS, "bicubic", None, 0.5, 1.13e9),
    "h_optimus_1": (1536, 224, BIOPTIMUS, "bicubic", None, 0.5, 1.13e9),
    "h0_mini": (1536, 224, BIOPTIMUS, "bicubic", None, 0.5, 86e6),
    "hibou_b": (768, 224, HIBOU, "bicubic", None, 0.5, 85.7e6),
    "hibou_l": (1024, 224, HIBOU, "bicubic", None, 0.5, 304e6),
    "phikon": (768, 224, IMAGENET, "bilinear", None, 0.5, 85.8e6),
    "phikon_v2": (1024, 224, IMAGENET, "bilinear", None, 0.5, 303e6),
    "ctranspath": (768, 224, IMAGENET, "bilinear", None, None, 27.5e6),
    "gpfm": (1024, 224, IMAGENET, "bicubic", None, 0.5, 303e6),
    "midnight_12k": (3072, 224, HALF, "bilinear", None, None, 1.14e9),
    "kaiko_vits16": (384, 224, HALF, "bilinear", None, None, 21.7e6),
    "kaiko_vits8": (384, 224, HALF, "bilinear", None, None, 21.7e6),
    "kaiko_vitb16": (768, 224, HALF, "bilinear", None, None, 85.8e6),
    "kaiko_vitb8": (768, 224, HALF, "bilinear", None, None, 85.8e6),
    "kaiko_vitl14": (1024, 224, HALF, "bilinear", None, None, 303e6),
    "lunit_dino_s16": (384, 224, LUNIT, "bicubic", None, None, 21.7e6),
    "lunit_dino_s8": (384, 224, LUNIT, "bicubic", None, None, 21.7e6),
    "resnet50": (2048, 224, IMAGENET, "bilinear", None, None, 25_557_032 - 2_049_000),
    "resnet50_layer3": (1024, 224, IMAGENET, "bilinear", None, None, None),
    "efficientnet_lite0": (192, 128, HALF, "bilinear", None, None, None),
    "colour": (6, None, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), "bilinear", None, None, None),
}


def test_every_encoder_stands_in_the_table_of_cards():
    assert set(ENCODERS) == set(CARDS)


@pytest.mark.parametrize("name", sorted(CARDS))
def test_an_encoder_is_what_its_card_says(name):
    entry = ENCODERS[name]
    *card, published = CARDS[name]
    normalisation = (entry.mean, entry.std)
    assert [entry.width, entry.input_px, normalisation, entry.interpolation, entry.resize_px, entry.mpp] == card
    with torch.device("meta"):  # shapes and counts without memory: the largest has 4.5 GB
        module = entry.make().eval()
        size = entry.input_px or 32
        assert module(torch.zeros(2, 3, size, size)).shape == (2, entry.width)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert parameters == entry.parameters
    assert (entry.published is None) == (published is None)
    if published is not None:
        assert parameters == pytest.approx(published, rel=0.006)
        assert parameters == pytest.approx(entry.published, rel=0.005)
    assert entry.pooling
    assert entry.licence
    assert entry.weights_licence
    assert entry.reference


def tiny(pooling="class", **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Vit("vit_tiny_patch16_224", pooling, embed_dim=48, depth=3, num_heads=3, init_values=0.5, **settings)
        for parameter in made.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def test_the_last_block_is_shortened_without_changing_the_class_token():
    for settings in ({}, {"reg_tokens": 4, "no_embed_class": True}):
        made = tiny(**settings)
        tiles = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            assert torch.allclose(made(tiles), made.net(tiles), atol=1e-5)


def to_huggingface(state):
    """The names that transformers' DINOv2 gives the tensors of a timm ViT."""
    named = {}
    for name, tensor in state.items():
        name = name.replace("net.", "").replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("cls_token", "embeddings.cls_token").replace("reg_token", "embeddings.register_tokens")
        name = name.replace("pos_embed", "embeddings.position_embeddings").replace("blocks.", "encoder.layer.")
        name = name.replace(".attn.proj.", ".attention.output.dense.")
        name = name.replace(".ls1.gamma", ".layer_scale1.lambda1").replace(".ls2.gamma", ".layer_scale2.lambda1")
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        if ".attn.qkv." in name:
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = chunk
        else:
            named[name] = tensor
    return named | {"embeddings.mask_token": torch.zeros(1, 48)}


def test_weights_from_transformers_are_those_of_timm():
    given, empty = tiny(), tiny()
    for parameter in empty.parameters():
        parameter.data.zero_()
    named = to_huggingface(given.state_dict())
    assert set(from_huggingface(named)) - {"embeddings.mask_token"} == set(given.net.state_dict())
    load_huggingface(empty, named)
    tiles = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(given(tiles), empty(tiles))


def test_positions_of_another_input_size_are_resized_and_the_class_tokens_stays():
    positions = torch.randn(1, 1 + 37 * 37, 8)
    resized = resized_positions(positions, 16, prefix=1, antialias=False)
    assert resized.shape == (1, 257, 8)
    assert torch.equal(resized[:, 0], positions[:, 0])
    large, small = tiny(img_size=224), tiny(img_size=112)
    load_timm(small, {"teacher": {f"backbone.{name}": tensor for name, tensor in large.net.state_dict().items()}})
    assert small(torch.zeros(1, 3, 112, 112)).shape == (1, 48)


def test_position_of_the_class_token_moves_into_it_where_the_network_keeps_none():
    plain, registers = tiny(), tiny(reg_tokens=4, no_embed_class=True)
    state = dict(registers.net.state_dict())
    state["pos_embed"] = torch.cat([torch.full((1, 1, 48), 2.0), state["pos_embed"]], dim=1)
    before = state["cls_token"].clone()
    load_timm(registers, state)
    assert torch.equal(registers.net.cls_token, before + 2)
    assert plain.net.pos_embed.shape[1] == 197


def test_old_swin_names_move_merging_to_the_next_stage():
    old = {"model": {"layers.0.downsample.norm.weight": torch.ones(1), "layers.0.blocks.1.attn_mask": torch.ones(1)}}
    assert list(from_old_swin(old)) == ["layers.1.downsample.norm.weight"]


def test_conch_leaves_its_caption_head_out():
    conch = ENCODERS["conch"]
    with torch.device("meta"):
        module = conch.make()
    assert isinstance(module, PooledVit)
    state = {f"visual.{name}": torch.zeros(tensor.shape) for name, tensor in module.state_dict().items()}
    state |= {"visual.proj_contrast": torch.zeros(512, 512), "text.cls_emb": torch.zeros(768)}
    conch.load(module, state)
    assert not any(parameter.is_meta for parameter in module.parameters())


def test_truncated_resnet_is_the_beginning_of_the_whole_one():
    whole = make_random(ENCODERS["resnet50"]).eval()
    cut = ResNet50(3)
    ENCODERS["resnet50_layer3"].load(cut, whole.state_dict() | {"fc.weight": torch.zeros(1)})
    planes = []
    whole.get_submodule("layer3").register_forward_hook(lambda module, given, plane: planes.append(plane))
    tiles = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        whole(tiles)
        assert torch.allclose(cut.eval()(tiles), planes[0].mean((2, 3)), atol=1e-6)


@pytest.mark.slow
def test_the_embedded_weights_are_those_of_the_package_and_fp32_and_bf16_agree():
    spec = EncoderSpec(name="efficientnet_lite0", precision="fp32")
    tiles = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3)).astype(np.uint8)
    exact = torch.from_numpy(EncoderEngine(build(spec), spec)(tiles)).float()
    short = torch.from_numpy(EncoderEngine(build(spec), spec.model_copy(update={"precision": "bf16"}))(tiles)).float()
    assert torch.cosine_similarity(exact, short).min() > 0.999
    plain = build(spec).module((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    assert torch.allclose(exact, plain, atol=2e-2, rtol=2e-3)


def test_random_weights_depend_on_the_name_alone():
    spec = EncoderSpec(name="torchvision:squeezenet1_1", weights="random", input_px=64)
    first = build(spec)
    torch.rand(3)
    assert build(spec).weights_sha256 == first.weights_sha256
    assert first.width == 512 * 3 * 3 or first.width == 512


def test_timm_torchscript_and_python_encoders(tmp_path):
    made = build(EncoderSpec(name="timm:resnet10t", weights="random", input_px=64))
    assert (made.width, made.input_px) == (512, 64)
    save_file(made.module.state_dict(), tmp_path / "resnet10t.safetensors")
    again = build(EncoderSpec(name="timm:resnet10t", weights=str(tmp_path / "resnet10t.safetensors"), input_px=64))
    tiles = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.module(tiles), made.module(tiles))
    code = tmp_path / "mine.py"
    code.write_text(
        "import torch\ndef encoder():\n    return torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten())\n"
    )
    mine = EncoderSpec(name=f"python:{code}:encoder", input_px=32, mean=(0, 0, 0), std=(1, 1, 1))
    built = build(mine)
    assert built.width == 3
    code.write_text(code.read_text() + "# changed\n")
    assert build(mine).weights_sha256 != built.weights_sha256
    with pytest.raises(MilError, match="no function 'encodr'; did you mean 'encoder'"):
        build(EncoderSpec(name=f"python:{code}:encodr"))
    code.write_text("def encoder():\n    return missing\n")
    with pytest.raises(MilError, match=r"encoder\(\) fails: NameError: name 'missing' is not defined"):
        build(mine)
    code.write_text("def encoder():\n    raise SystemExit(3)\n")
    with pytest.raises(MilError, match=r"encoder\(\) fails: SystemExit: 3"):
        build(mine)
    code.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(MilError, match=r"mine.py cannot be run: SystemExit: 3"):
        build(mine)
    code.write_text("def encoder(:\n")
    with pytest.raises(MilError, match=r"mine.py cannot be run: SyntaxError"):
        build(mine)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_torchscript_file_is_an_encoder(tmp_path):
    module = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
    torch.jit.save(torch.jit.trace(module, torch.zeros(2, 3, 32, 32)), tmp_path / "mine.pt")
    built = build(EncoderSpec(name=f"torchscript:{tmp_path / 'mine.pt'}", input_px=32))
    assert built.width == 12


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "unii"}, "unknown encoder 'unii'; did you mean 'uni'"),
        ({"name": "uni"}, "ask for access at https://huggingface.co/MahmoodLab/UNI"),
        ({"name": "uni", "weights": "/nowhere"}, "weights /nowhere do not exist; ask for access at"),
        ({"name": "timm:resnt18"}, "no such model; did you mean"),
        ({"name": "lite:x"}, "unknown kind 'lite'"),
        ({"name": "torchvision:squeezenet"}, "no such classifier; did you mean"),
        ({"name": "python:/nowhere.py:f"}, "does not exist"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(spec, message):
    with pytest.raises(MilError, match=message) as caught:
        build(EncoderSpec(**spec))
    assert "\n" not in str(caught.value)


def test_settings_of_registered_encoders_are_fixed():
    with pytest.raises(MilError, match="are fixed"):
        parse(EncoderSpec, {"name": "uni", "input_px": 256}, "config")


def test_weights_of_another_network_or_broken_ones_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(MilError, match="do not fit encoder kaiko_vits16"):
        build(EncoderSpec(name="kaiko_vits16", weights=str(tmp_path / "other.safetensors")))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MilError, match="cannot be read"):
        build(EncoderSpec(name="kaiko_vits16", weights=str(tmp_path / "broken.safetensors")))
    evil = tmp_path / "evil.pth"
    evil.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(MilError, match="cannot be read"):
        build(EncoderSpec(name="gpfm", weights=str(evil)))


class Pooled(torch.nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.weight, self.pool = torch.nn.Parameter(torch.ones(3)), pool

    def forward(self, tiles):
        return self.weight * (tiles.amax((2, 3)) if self.pool == "max" else tiles.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_the_code_of_a_torchscript_file_is_part_of_its_hash(tmp_path):
    spec, made = EncoderSpec(name=f"torchscript:{tmp_path / 'mine.pt'}", input_px=32), []
    for pool in ("mean", "max"):
        torch.jit.save(torch.jit.trace(Pooled(pool), torch.zeros(2, 3, 32, 32)), tmp_path / "mine.pt")
        made.append(build(spec))
    assert made[0].weights_sha256 != made[1].weights_sha256
    tiles = torch.rand(2, 3, 32, 32)
    assert torch.equal(made[1].module(tiles), tiles.amax((2, 3)))
    (tmp_path / "mine.py").write_text(
        f"import torch\ndef net():\n    return torch.jit.load({str(tmp_path / 'mine.pt')!r})\n"
    )
    assert torch.equal(
        build(EncoderSpec(name=f"python:{tmp_path / 'mine.py'}:net")).module(tiles), made[1].module(tiles)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_users_file_is_a_module_like_any_other(tmp_path):
    """Dataclasses whose annotations are texts, and TorchScript, look a class's module up by its name."""
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nimport torch\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Settings:\n    side: int = 32\n"
        "class Mean(torch.nn.Module):\n    def forward(self, tiles: torch.Tensor):\n        return tiles.mean((2, 3))\n"
        "def net():\n    assert Settings().side == 32\n    return torch.jit.script(Mean())\n"
    )
    assert build(EncoderSpec(name=f"python:{tmp_path / 'mine.py'}:net", input_px=32)).width == 3


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            "torch.nn.functional.batch_norm(tiles, None, None, training=True).amax((2, 3))",
            "different vectors in two batches",
        ),
        ("torch.nn.functional.dropout(tiles.flatten(1), 0.5)", "different vectors in two batches"),
        ("tiles.mean((2, 3)).reshape(2, -1)", r"turns \(3, 3, 32, 32\) into|fails on a \(3, 3, 32, 32\) batch"),
        ("tiles.mean((2, 3)).numpy()", "into"),
        ("tiles.mean((2, 3))[:, :0]", r"into \(2, 0\), not \(2, width\)"),
        ("tiles.missing", "fails on a .* batch: AttributeError"),
    ],
)
def test_an_encoder_whose_vectors_depend_on_the_batch_or_are_none_is_refused(tmp_path, forward, said):
    (tmp_path / "mine.py").write_text(
        f"import torch\nclass Net(torch.nn.Module):\n    def forward(self, tiles):\n        return {forward}\n"
    )
    with pytest.raises(MilError, match=said):
        build(EncoderSpec(name=f"python:{tmp_path / 'mine.py'}:Net", input_px=32))


@pytest.mark.parametrize("wrong", [{"mean": [123.7, 116.3, 103.5]}, {"std": [0, 1, 1]}, {"std": [-1, 1, 1]}])
def test_a_normalisation_of_colours_from_0_to_255_is_refused(wrong):
    with pytest.raises(MilError, match=r"config: (mean|std)"):
        parse(EncoderSpec, {"name": "python:mine.py:net"} | wrong, "config")


@pytest.mark.parametrize("name", ["python:mine.py:net", "torchscript:mine.pt"])
def test_weights_beside_a_file_that_has_its_own_are_refused(name):
    with pytest.raises(MilError, match="takes its weights from its own file"):
        parse(EncoderSpec, {"name": name, "weights": "mine.pth"}, "config")
