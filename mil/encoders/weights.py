"""Weight files -> tensors, with their hashes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mil.errors import MilError
from mil.files import sha256_of


def checked(path: Path, sha256: str, where: str) -> str:
    """The file's hash, which must begin with `sha256`."""
    digest = sha256_of(path)
    if not digest.startswith(sha256):
        raise MilError(f"weights {path}: sha256 {digest[:16]} is not {sha256[:16]} ({where}); get them again")
    return digest


def read_state(path: Path) -> Mapping[str, Any]:
    """The tensors of a safetensors or PyTorch file, read without running any code from it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "Weights only load failed" in str(error):  # followed by PyTorch's advice to run the file's code
            raise MilError(
                f"weights {path} cannot be read: they hold other objects than tensors, which may run code, or are damaged; save the "
                "tensors alone with torch.save"
            ) from error
        raise MilError(
            f"weights {path} cannot be read ({' '.join(str(error).split())[:200]}); get them again"
        ) from error


def hash_of_tensors(module: torch.nn.Module) -> str:
    """SHA-256 over the module's tensors by name: for weights that are no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
