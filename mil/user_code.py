"""Python files that a user wrote (an encoder, a head): the code that runs is the code whose hash is recorded."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType

from mil.errors import MilError


def run_source(path: Path, source: bytes, what: str) -> ModuleType:
    """Run the bytes of a file as a module; `what` names it in the error.

    An import would take Python's cached translation (`__pycache__`) of another text of the same length, saved in the same second.
    """
    module = ModuleType(f"user_{path.stem}_{hashlib.sha256(source).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and TorchScript look a class's module up by its name
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise MilError(f"{what}: {path} cannot be run: {in_one_line(error)}") from error
    return module


def in_one_line(error: BaseException) -> str:
    """An exception's type and message, at most 200 characters of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
