"""What a party is, as digests: its code, its protocol, its data. Compared before every run; nothing here names a patient."""

import ast
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from mil.errors import CorruptFile, MilError
from mil.files import sha256_of, write_bytes
from mil.hospital.config import FederationSpec
from mil.training.store import FeatureStore
from mil.version import __version__

SECRET_BYTES = 32


ROOTS = ("hospital/flare/client.py", "hospital/flare/executor.py", "hospital/flare/controller.py")
"""What a party runs for the engine; everything else that it runs is imported from these."""


@cache
def code_sha256() -> str:
    """Digest of the files that a party runs, as installed: two parties with the same digest compute the same.

    Figures, report and commands are not among them, so that a change there keeps no hospital out.
    """
    return code_digest(Path(__file__).parents[1])


def arithmetic(threads: int) -> str:
    """What the last bits of a site's numbers follow from, besides the machine: the code, torch and the number of threads."""
    return f"{code_sha256()}|{torch.__version__}|{threads}"


def code_digest(folder: Path) -> str:
    """SHA-256 over names and contents of `import_closure` in the package at `folder`."""
    sha256 = hashlib.sha256()
    for path in import_closure(folder):
        sha256.update(f"{path.relative_to(folder).as_posix()}|{sha256_of(path)}\n".encode())
    return sha256.hexdigest()


def import_closure(folder: Path) -> list[Path]:
    """Files of the package at `folder` that `ROOTS` import, directly or not, sorted.

    A module that finds others by `pkgutil` counts as importing everything in its folder.
    """
    files: set[Path] = set()
    waiting = [folder / root for root in ROOTS]
    while waiting:
        path = waiting.pop()
        if path in files or not path.is_file():
            continue
        files.add(path)
        names = _imported(ast.parse(path.read_bytes()))
        if "pkgutil" in names:
            waiting += path.parent.rglob("*.py")
        for name in names:
            parts = name.split(".")
            if parts[0] == folder.name:
                for depth in range(len(parts)):
                    module = folder.joinpath(*parts[1 : depth + 1])
                    waiting += [module / "__init__.py", module.with_suffix(".py")]
    return sorted(files)


def _imported(tree: ast.AST) -> set[str]:
    """Full names of modules (or of things in modules) that a file imports, wherever in it but for types alone."""
    names: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.expr):  # in an expression nothing can be imported
            waiting += ast.iter_child_nodes(node)
    return names


def identity(protocol: FederationSpec) -> dict[str, str]:
    """Versions and digests that must be equal at all parties."""
    return {
        "mil": __version__,
        "torch": torch.__version__,
        "code_sha256": code_sha256(),
        "spec_sha256": protocol.sha256,
    }


def differences(mine: Mapping[str, str], theirs: Mapping[str, object]) -> list[str]:
    """Sentences about what differs. The build of torch (its `+` part) may; the rest may not."""
    sentences = []
    for key, value in mine.items():
        other = str(theirs.get(key, ""))
        if key == "torch" and value.split("+")[0] == other.split("+")[0]:
            continue
        if value != other:
            sentences.append(f"{key} is {other[:12]}, not {value[:12]}")
    return sentences


def site_secret(workspace: str | Path) -> bytes:
    """The site's secret key, made at the first call; it stays in the workspace, readable by its owner only.

    Under another key every patient in the ledger would be somebody else, so a lost one is not replaced after an answer.
    """
    path = Path(workspace) / "secret"
    ledger = path.with_name("ledger.jsonl")
    if not path.exists():
        if ledger.exists() and b'"event": "answered"' in ledger.read_bytes():
            raise CorruptFile(f"{path}: is gone, but questions were answered with it; restore it from the backup")
        write_bytes(path, secrets.token_bytes(SECRET_BYTES), private=True)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise MilError(f"{path}: {len(secret)} bytes, not {SECRET_BYTES}; restore it from the backup of the workspace")
    return secret


def data_sha256(secret: bytes, bags: pd.DataFrame, features: FeatureStore) -> str:
    """Digest of the site's bag table and feature files under its own secret, so that nobody else can test a guess.

    It changes when a patient, label, fold or feature does; the server only sees whether it stayed the same.
    """
    digest = hmac.new(secret, digestmod=hashlib.sha256)
    digest.update(bags.to_csv(index=False).encode())
    paths = (path for path, _ in features.files)
    for path, checksum in sorted(zip(paths, features.checksums, strict=True)):
        digest.update(f"{path.name}|{checksum}\n".encode())
    return digest.hexdigest()
