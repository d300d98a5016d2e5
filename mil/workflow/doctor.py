"""This machine -> what a run needs and whether it is here, with the command that mends what is missing."""

import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from mil.config import Config
from mil.errors import MilError
from mil.files import sha256_of
from mil.machine import cores, memory_given
from mil.version import __version__

SAMPLE_MB = 64
HUB = ("huggingface.co", 443)


@dataclass(frozen=True)
class Examined:
    """A part of the machine, and whether a run can use it."""

    what: str
    state: Literal["ok", "note", "missing"]
    found: str
    mend: str = ""
    """Command or edit that mends it."""


def examine(config: Config | None, results: Path, slurm: bool = False) -> list[Examined]:
    """All parts of this machine; with a config also the weights of its encoders, with `slurm` a cluster that must answer."""
    parts = [_packages(), _device(), _memory(), _disk(results), _slurm(slurm), _hub()]
    if config is not None:
        parts.append(_weights(config))
    return [finding for part in parts for finding in part]


def _packages() -> Iterator[Examined]:
    yield Examined("mil", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    try:
        wanted = requires("milpath") or []
    except PackageNotFoundError:
        yield Examined(
            "installation", "missing", "the package milpath is not installed", "pip install -r requirements.lock -e ."
        )
        return
    lacking = []
    for name in [re.split(r"[^\w.-]", line)[0] for line in wanted if "extra ==" not in line]:
        try:
            version(name)
        except PackageNotFoundError:
            lacking.append(name)
    if lacking:
        yield Examined("packages", "missing", ", ".join(lacking), "pip install -r requirements.lock -e .")
    else:
        shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "openslide-python", "h5py", "snakemake"))
        yield Examined("packages", "ok", f"all of pyproject.toml; {shown}")


def _device() -> Iterator[Examined]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            "torch is built without CUDA" if built is None else f"torch is built for CUDA {built}, but sees no device"
        )
        yield Examined("GPU", "note", f"none ({reason}); large encoders take days on a CPU", "run on a node with a GPU")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield Examined(
            "GPU", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}{_driver()}"
        )


def _driver() -> str:
    said = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return f", driver {said.splitlines()[0]}" if said else ""


def _memory() -> Iterator[Examined]:
    import resource

    total, given = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_given()
    limit = f", of which this process may have {given / 2**30:.1f}" if given < total else ""
    enough = "ok" if given > 8 * 2**30 else "note"
    yield Examined("memory", enough, f"{total / 2**30:.0f} GiB{limit}; {cores()} cores for this process")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    mend = "" if files >= 1024 else "ulimit -n 4096"
    yield Examined("open files", "ok" if files >= 1024 else "note", f"at most {files}", mend)


def _disk(results: Path) -> Iterator[Examined]:
    folder = next(path for path in [results, *results.absolute().parents] if path.is_dir())
    if not os.access(folder, os.W_OK):
        yield Examined(
            "results",
            "missing",
            f"{folder} cannot be written",
            "name another folder: results: FOLDER in the cohort file",
        )
        return
    free = shutil.disk_usage(folder).free / 1e9
    sample = folder / f".doctor-{os.getpid()}"
    try:
        started = time.monotonic()
        with open(sample, "wb") as file:
            for _ in range(SAMPLE_MB):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        written = time.monotonic()
        sha256_of(sample)
        read = time.monotonic()
    except OSError as error:
        yield Examined("results", "missing", f"{folder}: {error.strerror}", "free some space, or name another folder")
        return
    finally:
        sample.unlink(missing_ok=True)
    speed = (
        f"writes {SAMPLE_MB / (written - started):,.0f} MB/s, reads (cached) {SAMPLE_MB / (read - written):,.0f} MB/s"
    )
    yield Examined("results", "ok" if free > 10 else "note", f"{folder.absolute()}: {free:,.0f} GB free, {speed}")


def _slurm(wanted: bool) -> Iterator[Examined]:
    """Slurm is missing only where it is asked for: by `wanted`, inside a job of it, or by Snakemake's default profile."""
    wanted |= bool(os.environ.get("SLURM_JOB_ID")) or "slurm" in os.environ.get("SNAKEMAKE_PROFILE", "").lower()
    state = "missing" if wanted else "note"
    if shutil.which("sbatch") is None:
        yield Examined(
            "Slurm", state, "no sbatch here", "log in to the cluster's login node, or run without the profile"
        )
        return
    partitions = _said("sinfo", "--noheader", "--format=%P %G %l")
    if not partitions:
        mend = "on a cluster: ask its support about sinfo; on a machine without one: run without the Slurm profile"
        yield Examined("Slurm", state, "sinfo does not answer", mend)
        return
    yield Examined("Slurm", "ok", "partitions (* default), GPUs, time limit: " + "; ".join(partitions.splitlines()))
    accounts = (
        "kept" if _said("sacct", "--noheader", "--starttime=now-1minute") is not None else "not kept; none are needed"
    )
    yield Examined("Slurm accounting", "ok", f"accounts of finished jobs are {accounts}")


def _hub() -> Iterator[Examined]:
    try:
        with socket.create_connection(HUB, timeout=3):
            yield Examined("hub", "ok", f"{HUB[0]} can be reached")
    except OSError:
        mend = "run `mil encoders fetch NAME --weights FOLDER` on a machine with a network"
        yield Examined("hub", "note", f"{HUB[0]} cannot be reached from here", mend)


def _weights(config: Config) -> Iterator[Examined]:
    from mil.encoders.sources import NoWeights, locate
    from mil.encoders.table import resolve

    for name in config.used_encoders:
        spec = config.encoders[name]
        source = resolve(spec).source
        if isinstance(source, NoWeights) or spec.weights == "random":
            yield Examined(f"encoder {name}", "ok", f"{spec.name}: needs no weights")
            continue
        try:
            yield Examined(f"encoder {name}", "ok", f"{spec.name}: {locate(spec.name, source, spec.weights)}")
        except MilError as error:
            yield Examined(f"encoder {name}", "missing", str(error).split(";")[0], str(error).partition(": ")[2])


def _said(*command: str) -> str | None:
    """What a command printed, stripped; none where it is not here or failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def lines(findings: Sequence[Examined]) -> Iterator[str]:
    """For a person: a line per finding, and its way out below it."""
    signs = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}
    for finding in findings:
        yield f"{signs[finding.state]}  {finding.what}: {finding.found}"
        if finding.mend:
            yield f"           -> {finding.mend}"
