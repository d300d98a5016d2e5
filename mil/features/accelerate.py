"""An encoder's module -> the same module, faster: arithmetic, folded normalisation, compilation whose results are kept."""

import copy
import itertools
import os
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mil.errors import MilError

Precision = Literal["fp32", "bf16", "fp16"]
COMPILE_FROM_TILES = 20_000  # a minute of compiling pays off from about here


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """The arithmetic to use: as asked for, or under `auto` bf16 where the device has instructions for it."""
    if wanted in ("fp32", "bf16"):
        return wanted  # type: ignore[return-value]  narrowed by the line above
    if wanted == "fp16":
        if device.type == "cpu":
            raise MilError("precision fp16 is for GPUs; on this machine's CPU use auto, bf16 or fp32")
        return "fp16"
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    # Without these instructions bf16 on the CPU is emulated and slower than fp32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def in_precision(module: torch.nn.Module, dtype: torch.dtype, exact: tuple[str, ...]) -> torch.nn.Module:
    """The module in `dtype`, but for the parts whose names begin with one of `exact`, which stay as they are."""
    if not exact:
        return module.to(dtype)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point() and not name.startswith(exact):
            tensor.data = tensor.data.to(dtype)
    return module


def compiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module compiled for batches of one shape; what is compiled is kept for later jobs in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mil" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch.set_float32_matmul_precision("highest")
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]  torch's stub says a function


def fuse_batchnorm(module: torch.nn.Module, input_px: int | None) -> torch.nn.Module:
    """A copy whose batch normalisations are folded into the convolutions before them; left as it is if the output changes."""
    if not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules()):
        return module
    if isinstance(module, torch.jit.ScriptModule):
        return module
    fused = copy.deepcopy(module)
    for parent in list(fused.modules()):
        for (_, first), (name, second) in pairwise(list(parent.named_children())):
            if not (isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d)):
                continue
            if second.running_mean is not None and second.running_var is not None:
                first.weight, first.bias = fuse_conv_bn_weights(
                    first.weight,
                    first.bias,
                    second.running_mean,
                    second.running_var,
                    second.eps,
                    second.weight,
                    second.bias,
                )
                setattr(parent, name, getattr(second, "act", None) or torch.nn.Identity())
    with torch.inference_mode():
        probe = torch.randn(2, 3, input_px or 64, input_px or 64, generator=torch.Generator().manual_seed(0))
        same = torch.allclose(fused(probe), module(probe), rtol=1e-3, atol=1e-3)
    return fused if same else module
