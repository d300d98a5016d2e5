"""An encoder's module -> the same module, faster: arithmetic, folded normalisation, compilation whose results are kept."""

import copy
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mil.errors import MilError

Precision = Literal["fp32", "bf16", "fp16"]
# Tiles from which a compiled encoder is sooner done than an eager network, with an empty cache: compile seconds divided by
# (1 / eager rate - 1 / compiled rate), both in tiles/s, measured on one H100 under bf16. By parameters (at least).
TRANSFORMERS_PAY_FROM = ((600_000_000, 240_000), (200_000_000, 790_000), (0, 1_600_000))
CONVOLUTIONS_PAY_FROM = 480_000
WARM_SHARE = 0.25  # compile time left when the compiled code lies in the cache


def pays_from(module: torch.nn.Module, warm: bool) -> int:
    """Number of tiles from which compiling `module` saves time; `warm`: its compiled code lies in the cache."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in module.modules())
    if convolutions > 8:
        tiles = CONVOLUTIONS_PAY_FROM
    else:
        tiles = next(tiles for least, tiles in TRANSFORMERS_PAY_FROM if parameters >= least)
    return round(tiles * (WARM_SHARE if warm else 1))


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


def cache_folder() -> Path:
    """Folder for compiled code: the user's cache, or the temporary folder where the user's cache cannot be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mil" / "inductor"
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    return home if os.access(home, os.W_OK) else Path(tempfile.gettempdir()) / f"mil-inductor-{os.getuid()}"


def warm_mark(*key: object) -> Path:
    """File that says that the compiled code of `key` (encoder, shapes, device, ...) lies in the cache."""
    name = hashlib.sha256(repr((torch.__version__, *key)).encode()).hexdigest()[:32]
    return cache_folder() / "warm" / name


def compiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module compiled for batches of one shape; the compiled code is kept for later jobs in the cache."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]  torch's stub says a function


def cached_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors compiled for every size at once; the compiled code is kept for later jobs in the cache."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    return torch.compile(function, dynamic=True)


def exact_fp32() -> None:
    """Make fp32 on CUDA what it says: no TF32 in convolutions and matrix products."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


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
