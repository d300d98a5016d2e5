"""Encoders that nobody registered: any model of timm or torchvision by name, a TorchScript file, a Python function."""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from mil.config import EncoderSpec
from mil.encoders.entry import IMAGENET_MEAN, IMAGENET_STD, Entry
from mil.encoders.sources import HubFile, LocalFile, NoWeights, Source, UrlFile
from mil.encoders.state import StateDict, load_known, load_strictly
from mil.errors import MilError, nearest
from mil.user_code import in_one_line, run_source


class Headless(torch.nn.Module):
    """A torchvision classifier without its last layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        net = torchvision.models.get_model(name)
        for head in ("fc", "classifier", "heads", "head"):
            if hasattr(net, head):
                setattr(net, head, torch.nn.Identity())
                break
        else:
            raise MilError(
                f"encoder 'torchvision:{name}': no classification layer to leave out is known; use timm:NAME"
            )
        self.net = net

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Vectors of a batch."""
        return self.net(tiles).flatten(1)


def _timm(name: str, spec: EncoderSpec) -> Entry:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise MilError(
            f"encoder 'timm:{name}': timm {timm.__version__} has no such model; {nearest(name, timm.list_models())}"
        )
    given = timm.get_pretrained_cfg(name, allow_unregistered=True)
    known: dict[str, Any] = given.to_dict() if given is not None else {}
    make = partial(timm.create_model, name, pretrained=False, num_classes=0)
    hub = known.get("hf_hub_id")
    source: Source = HubFile(hub, "model.safetensors", gated=False) if hub else LocalFile()
    return _entry(
        f"timm:{name}",
        make,
        spec,
        source,
        load=load_known,
        input_px=known.get("input_size", (3, 224, 224))[-1],
        mean=known.get("mean", IMAGENET_MEAN),
        std=known.get("std", IMAGENET_STD),
        licence="Apache-2.0 (timm)",
        weights_licence=known.get("license") or "see the model page",
    )


def _torchvision(name: str, spec: EncoderSpec) -> Entry:
    if name not in torchvision.models.list_models(module=torchvision.models):
        known = torchvision.models.list_models(module=torchvision.models)
        raise MilError(f"encoder 'torchvision:{name}': torchvision has no such classifier; {nearest(name, known)}")
    weights = torchvision.models.get_model_weights(name)
    url = next(iter(weights)).url
    digits = url.rsplit("-", 1)[-1].removesuffix(".pth")
    page = f"https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.{name}.html"
    return _entry(
        f"torchvision:{name}",
        partial(Headless, name),
        spec,
        UrlFile(url, page, digits if len(digits) == 8 else ""),
        load=_load_torchvision,
        licence="BSD-3-Clause (torchvision)",
        weights_licence="BSD-3-Clause; trained on ImageNet",
    )


def _torchscript(name: str, spec: EncoderSpec) -> Entry:
    path = _existing(name, "torchscript")

    def make() -> torch.nn.Module:
        source = path.read_bytes()
        try:
            return _stamped(torch.jit.load(io.BytesIO(source), map_location="cpu"), source)
        except (RuntimeError, ValueError) as error:
            raise MilError(
                f"encoder torchscript:{name}: not a TorchScript file ({str(error).splitlines()[0]})"
            ) from error

    return _entry(f"torchscript:{path.name}", make, spec, NoWeights(), licence="yours", weights_licence="yours")


def _python(name: str, spec: EncoderSpec) -> Entry:
    file, colon, function = name.rpartition(":")
    if not colon:
        raise MilError(f"encoder 'python:{name}': say which function makes the module: python:FILE.py:FUNCTION")
    path = _existing(file, "python")

    def make() -> torch.nn.Module:
        source = path.read_bytes()
        module = run_source(path, source, f"encoder python:{name}")
        if not callable(getattr(module, function, None)):
            known = [key for key, value in vars(module).items() if callable(value)]
            raise MilError(f"encoder python:{name}: {path} has no function '{function}'; {nearest(function, known)}")
        try:
            made = getattr(module, function)()
        except (Exception, SystemExit) as error:
            raise MilError(f"encoder python:{name}: {function}() fails: {in_one_line(error)}") from error
        if not isinstance(made, torch.nn.Module):
            raise MilError(f"encoder python:{name}: {function}() returned {type(made).__name__}, not a torch.nn.Module")
        return _stamped(made, source)

    return _entry(f"python:{path.name}:{function}", make, spec, NoWeights(), licence="yours", weights_licence="yours")


def _stamped(module: torch.nn.Module, source: bytes) -> torch.nn.Module:
    """The module with the SHA-256 of its file among its tensors: the code is part of the weights' hash."""
    if isinstance(module, torch.jit.ScriptModule):  # which takes no further tensor
        module = torch.nn.Sequential(module)
    digest = torch.tensor(list(hashlib.sha256(source).digest()), dtype=torch.uint8)
    module.register_buffer("_source_sha256", digest, persistent=True)
    return module


MAKERS: dict[str, Callable[[str, EncoderSpec], Entry]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "torchscript": _torchscript,
    "python": _python,
}


def _entry(
    name: str,
    make: Callable[[], torch.nn.Module],
    spec: EncoderSpec,
    source: Source,
    load: Callable[[torch.nn.Module, StateDict], None] = load_strictly,
    input_px: int = 224,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    licence: str = "",
    weights_licence: str = "",
) -> Entry:
    """An entry whose width and parameters are found by trying; the spec's input size and normalisation come first."""
    input_px = spec.input_px or input_px
    width, parameters = _measured(name, make, input_px, is_foreign=isinstance(source, NoWeights))
    return Entry(
        name=name,
        summary=name,
        make=make,
        width=width,
        input_px=input_px,
        mean=spec.mean or mean,
        std=spec.std or std,
        mpp=None,
        pooling="the model's own",
        parameters=parameters,
        source=source,
        load=load,
        licence=licence,
        weights_licence=weights_licence,
        reference=source.page if isinstance(source, HubFile | UrlFile) else "yours",
    )


def _measured(name: str, make: Callable[[], torch.nn.Module], input_px: int, is_foreign: bool) -> tuple[int, int]:
    """Width of the vectors and number of parameters. `is_foreign`: the code is a user's, so that two batches are tried."""
    module = make().eval()
    tiles = torch.rand(3, 3, input_px, input_px, generator=torch.Generator().manual_seed(0))
    vectors = _tried(name, module, tiles[:2])
    if is_foreign and not torch.allclose(vectors, _tried(name, module, tiles[[1, 2, 0]])[[2, 0]], 1e-3, 1e-3, True):
        raise MilError(
            f"encoder {name} gives one tile different vectors in two batches, as batch normalisation and dropout do in training "
            "mode; save it after .eval()"
        )
    return vectors.shape[1], sum(parameter.numel() for parameter in module.parameters())


def _tried(name: str, module: torch.nn.Module, tiles: torch.Tensor) -> torch.Tensor:
    """Vectors (tiles, width) of a batch; a `MilError` where there are none."""
    taken = f"({', '.join(map(str, tiles.shape))})"
    with torch.inference_mode():
        try:
            vectors = module(tiles)
        except Exception as error:
            raise MilError(f"encoder {name} fails on a {taken} batch: {in_one_line(error)}") from error
    shape = tuple(getattr(vectors, "shape", ()))
    if not isinstance(vectors, torch.Tensor) or len(shape) != 2 or shape[0] != len(tiles) or not shape[1]:
        raise MilError(
            f"encoder {name} turns {taken} into {shape or type(vectors).__name__}, not ({len(tiles)}, width)"
        )
    return vectors


def _load_torchvision(module: Any, state: StateDict) -> None:
    load_known(module.net, state)


def _existing(name: str, kind: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise MilError(f"encoder '{kind}:{name}': file {path} does not exist")
    return path
