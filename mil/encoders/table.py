"""encoders.toml -> entries by name. Modules are imported only when an encoder is made, so that a list needs no torch."""

import importlib
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mil.encoders.entry import RGB, Entry
from mil.encoders.sources import HubFile, NoWeights, PackageFile, Source, UrlFile
from mil.errors import MilError, nearest
from mil.registry import Registry

if TYPE_CHECKING:
    from mil.config import EncoderSpec

FILE = Path(__file__).with_name("encoders.toml")
POOLINGS = {"class": "class token", "class+mean": "class token and mean of the patch tokens"}
LOADERS = {"timm": "state:load_timm", "huggingface": "state:load_huggingface", "strictly": "state:load_strictly"}
GENERIC = ("timm", "torchvision", "torchscript", "python")
"""Kinds of `kind:name` that need no entry; `generic` makes their entries."""


def resolve(spec: "EncoderSpec") -> Entry:
    """The entry that `spec.name` means: a registered one, or one made from `kind:name`."""
    kind, colon, rest = spec.name.partition(":")
    if not colon:
        return ENCODERS[spec.name]
    if kind not in GENERIC:
        raise MilError(f"encoder '{spec.name}': unknown kind '{kind}'; {nearest(kind, GENERIC)}")
    from mil.encoders.generic import MAKERS

    return MAKERS[kind](rest, spec)


def read_table(path: Path = FILE) -> Registry[Entry]:
    """The entries of a table of encoders, in its order."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    normalisations = raw.pop("normalisations")
    entries: Registry[Entry] = Registry("encoder")
    for name, values in raw.items():
        entries.register(name)(_entry(name, values, normalisations))
    return entries


def _entry(name: str, values: dict[str, Any], normalisations: dict[str, dict[str, list[float]]]) -> Entry:
    values = dict(values)
    source = _source(values)
    if "vit" in values:
        pool = values.pop("pool")
        values["pooling"] = POOLINGS[pool]
        make, arguments = "vit:make_vit", {**values.pop("vit"), "pool": pool}
    else:
        make, arguments = values.pop("make"), values.pop("arguments", {})
    normalisation = normalisations[values.pop("normalisation")]
    load = values.pop("load", "strictly" if isinstance(source, NoWeights) else "timm")
    exact = tuple(values.pop("exact", ()))
    given = {"input_px": None, "mpp": None, "licence": "Apache-2.0 (timm)"} | values
    return Entry(
        name=name,
        make=partial(_call, make, **arguments),
        load=partial(_call, LOADERS.get(str(load), str(load))),
        source=source,
        mean=_rgb(normalisation["mean"]),
        std=_rgb(normalisation["std"]),
        exact=exact,
        **given,
    )


def _rgb(values: list[float]) -> RGB:
    red, green, blue = values
    return red, green, blue


def _source(values: dict[str, Any]) -> Source:
    """Take the keys of the source out of an entry's `values`."""
    for key, kind, names in (
        ("hub", HubFile, ("hub", "file", "gated", "revision", "sha256")),
        ("url", UrlFile, ("url", "page", "sha256")),
        ("package", PackageFile, ("package", "file", "sha256", "distribution")),
    ):
        if key in values:
            given = {name: values.pop(name) for name in names if name in values}
            renamed = {"hub": "repository", "file": "path" if kind is PackageFile else "file"}
            return kind(**{renamed.get(name, name): value for name, value in given.items()})
    return NoWeights()


def _call(target: str, *arguments: Any, **settings: Any) -> Any:
    """Call `module:function` of mil.encoders."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(f"mil.encoders.{module}"), function)(*arguments, **settings)


ENCODERS = read_table()
