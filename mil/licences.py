"""The licence of every package that this installation needs, as the package states it, and of every encoder."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pandas as pd

from mil.encoders.table import ENCODERS
from mil.errors import MilError
from mil.version import DISTRIBUTION

COLUMNS = ("kind", "name", "version", "licence", "stated_in")
NAME = re.compile(r"[A-Za-z0-9._-]+")
LICENCE_FILE = re.compile(r"(^|/)(licen[cs]e|copying)[^/]*$", re.IGNORECASE)
NOT_STATED = "not stated"


def licences() -> pd.DataFrame:
    """`COLUMNS`, a row per installed dependency (of this package and of its dependencies), then two per encoder."""
    rows = [_of_package(package) for package in sorted(_needed(DISTRIBUTION), key=lambda package: package.name.lower())]
    for name in sorted(ENCODERS):
        entry = ENCODERS[name]
        rows.append(("encoder, code", name, "", entry.licence, "mil/encoders/encoders.toml"))
        rows.append(("encoder, weights", name, entry.source.pin(), entry.weights_licence, entry.reference))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _needed(name: str) -> Iterator[Distribution]:
    """Installed packages that `name` needs, at any remove, each once; extras only where they are installed.

    `MilError` where `name` itself is not installed: an empty list would read as "needs nothing".
    """
    try:
        distribution(name)
    except PackageNotFoundError:
        raise MilError(
            f"package '{name}' is not installed in {sys.prefix}, so its dependencies are not known: "
            "install it (`make environment`, or `pip install .` in the project's folder)"
        ) from None
    waiting, seen = [name], {_plain(name)}
    while waiting:
        try:
            package = distribution(waiting.pop())
        except PackageNotFoundError:
            continue
        if _plain(package.name) != _plain(name):
            yield package
        for requirement in package.requires or ():
            needed = NAME.match(requirement)
            if needed and _plain(needed[0]) not in seen:
                seen.add(_plain(needed[0]))
                waiting.append(needed[0])


def _of_package(package: Distribution) -> tuple[str, str, str, str, str]:
    licence, where = _stated(package)
    return "package", package.name, package.version, licence, where


def _stated(package: Distribution) -> tuple[str, str]:
    """The licence in a few words and where it stands: the metadata's own fields first, then the text that is installed."""
    known = package.metadata
    for field in ("License-Expression", "License"):
        text = " ".join(" ".join(known.get_all(field) or ()).split())
        if text and text.upper() != "UNKNOWN":
            return text if len(text) <= 80 else f"{text[:77]}...", field
    classifiers = [
        classifier.rsplit(" :: ", 1)[1]
        for classifier in known.get_all("Classifier") or ()
        if classifier.startswith("License :: ")
    ]
    if classifiers:
        return "; ".join(classifiers), "Classifier"
    for path in package.files or ():
        if LICENCE_FILE.search(str(path)) and Path(str(path.locate())).is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            first = next((line.strip() for line in lines if line.strip()), "")
            return (first[:80], str(path)) if first else (NOT_STATED, str(path))
    return NOT_STATED, ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
