"""What a job computes on: a GPU of its own where there are several, the only one, or the CPU."""

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from mil.errors import MilError
from mil.progress import Reporter

GIVEN = ("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")  # environment variables by which a job is given GPUs
_claims: dict[Path, TextIO] = {}  # open as long as the process lives: the kernel lets go of a lock when its holder dies


def best_device() -> torch.device:
    """CUDA where there is any, else the CPU. Of several GPUs, one that no other job on this machine has claimed.

    A job that was given a GPU which torch cannot use is a `MilError`: on the CPU it would take a hundred times as long.
    """
    if not torch.cuda.is_available():
        given = next((name for name in GIVEN if os.environ.get(name, "").strip() not in ("", "-1", "NoDevFiles")), None)
        if given is not None:
            raise MilError(
                f"{given}={os.environ[given]} gives this job a GPU, but {_why_unusable()}; mend that, or unset {given} to "
                "compute on the CPU"
            )
        return torch.device("cpu")
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    return torch.device("cuda", claimed(names) or 0)


def _why_unusable() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build for CPUs"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU: the driver may be missing or too old"


def claimed(names: list[str], folder: Path | None = None) -> int | None:
    """The first of the devices `names` whose lock file in `folder` was free, and is this process's from now on; None: all taken.

    A process that asks again gets the same device.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"mil-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = [folder / f"{name}.lock" for name in names]
    if (mine := next((index for index, path in enumerate(paths) if path in _claims), None)) is not None:
        return mine
    for index, path in enumerate(paths):
        lock = open(path, "w")  # noqa: SIM115  closed by `claimed` below or by the process's end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _claims[path] = lock
        return index
    return None


def describe(device: torch.device) -> str:
    """The device in words for the log."""
    if device.type == "cuda":
        of = f" ({device.index} of {torch.cuda.device_count()})" if torch.cuda.device_count() > 1 else ""
        return torch.cuda.get_device_name(device) + of
    return "the CPU (no CUDA device here)"


@contextmanager
def pinned(memory: torch.Tensor, device: torch.device, reporter: Reporter) -> Iterator[None]:
    """Register host `memory`, so that the GPU copies from it without the CPU; nothing to do for the CPU.

    Memory that cannot be registered is copied more slowly, and the log says so.
    """
    if device.type != "cuda":
        yield
        return
    registered = register(memory, reporter)
    try:
        yield
    finally:
        if registered:
            torch.cuda.synchronize(device)
            runtime: Any = torch.cuda.cudart()
            runtime.cudaHostUnregister(memory.data_ptr())


def register(memory: torch.Tensor, reporter: Reporter) -> bool:
    """Pin host `memory` where it lies, without a copy, until the process ends or `cudaHostUnregister`; whether it was possible."""
    runtime: Any = torch.cuda.cudart()
    failed = int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel() * memory.element_size(), 0))
    if failed:
        clear_error()
        reporter.note(f"host memory is not pinned (cudaHostRegister: error {failed}); copies to the GPU are slower")
    return not failed


def short_of_memory(error: RuntimeError) -> bool:
    """Whether the device had too little memory, by whichever library noticed."""
    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(word in str(error) for word in words)


def clear_error() -> None:
    """Take the pending error of the CUDA runtime away. Otherwise the next kernel launch raises it, far from its cause."""
    major = str(torch.version.cuda or "").split(".")[0]
    try:
        runtime = ctypes.CDLL(
            f"libcudart.so.{major}"
        )  # the library that torch has loaded: the same name is the same library
    except OSError:
        return
    runtime.cudaGetLastError()
