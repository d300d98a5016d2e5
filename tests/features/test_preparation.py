"""Preparation on a GPU by matrix products is the resizing, cutting and normalising of torch."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

from mil.features.preparation import Preparation


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize", "inputs"), [(64, None, 64), (64, None, 48), (40, None, 48), (64, 56, 48), (48, 56, 48), (56, 56, 48), (64, None, None)])  # fmt: skip
def test_matrix_products_prepare_as_torch_does(size, resize, inputs, mode):
    tiles = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    encoder = SimpleNamespace(resize_px=resize, input_px=inputs, interpolation=mode)
    scale, shift = torch.full((1, 3, 1, 1), 0.02), torch.full((1, 3, 1, 1), -1.5)
    found = Preparation(torch.nn.Identity(), encoder, size, scale, shift, torch.float32)(tiles)
    wanted = resize or inputs or size
    expected = interpolate(tiles.float(), (wanted, wanted), mode=mode, antialias=True).clamp(0, 255)
    margin = (wanted - (inputs or size)) // 2
    cut = slice(margin, margin + (inputs or size))
    torch.testing.assert_close(found, expected[:, :, cut, cut] * 0.02 - 1.5, rtol=1e-4, atol=1e-3)
