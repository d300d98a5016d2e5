"""What a job computes on: a GPU of its own where there are several, the only one, or the CPU."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

_claims: list[TextIO] = []  # open as long as the process lives: the kernel lets go of a lock when its holder dies


def best_device() -> torch.device:
    """CUDA where there is any, else the CPU. Of several GPUs, one that no other job on this machine has claimed."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    return torch.device("cuda", claimed(names) or 0)


def claimed(names: list[str], folder: Path | None = None) -> int | None:
    """The first of the devices `names` whose lock file in `folder` was free, and is this process's from now on; None: all taken."""
    folder = folder or Path(tempfile.gettempdir()) / f"mil-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for index, name in enumerate(names):
        lock = open(folder / f"{name}.lock", "w")  # noqa: SIM115  closed by `claimed` below or by the process's end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _claims.append(lock)
        return index
    return None


def describe(device: torch.device) -> str:
    """The device in words for the log."""
    if device.type == "cuda":
        of = f" ({device.index} of {torch.cuda.device_count()})" if torch.cuda.device_count() > 1 else ""
        return torch.cuda.get_device_name(device) + of
    return "the CPU (no CUDA device here)"


@contextmanager
def pinned(memory: torch.Tensor, device: torch.device) -> Iterator[None]:
    """Keep host `memory` where it is, so that the GPU copies from it by itself; nothing to do for the CPU."""
    if device.type != "cuda":
        yield
        return
    runtime: Any = torch.cuda.cudart()
    failed = int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel() * memory.element_size(), 0))
    try:
        yield  # memory that cannot be pinned is copied more slowly, nothing else
    finally:
        if not failed:
            torch.cuda.synchronize(device)
            runtime.cudaHostUnregister(memory.data_ptr())
