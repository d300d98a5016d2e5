import numpy as np
import torch

from mil.config import EncoderSpec
from mil.encoders import ENCODERS, build
from mil.features import Engine


def test_every_encoder_gives_its_width_and_has_its_parameters():
    for name in ENCODERS:
        entry = ENCODERS[name]
        module = entry.make()
        assert sum(parameter.numel() for parameter in module.parameters()) == entry.parameters, name
        size = entry.input_px or 32
        assert module.eval()(torch.zeros(2, 3, size, size)).shape == (2, entry.width), name


def test_the_embedded_weights_are_those_of_the_package_and_fp32_and_bf16_agree():
    spec = EncoderSpec(name="efficientnet_lite0", precision="fp32")
    tiles = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3)).astype(np.uint8)
    exact = torch.from_numpy(Engine(build(spec), spec)(tiles)).float()
    short = torch.from_numpy(Engine(build(spec), spec.model_copy(update={"precision": "bf16"}))(tiles)).float()
    assert torch.cosine_similarity(exact, short).min() > 0.999
    encoder = build(spec)
    plain = encoder.module((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    assert torch.allclose(exact, plain, atol=2e-2, rtol=2e-3)
