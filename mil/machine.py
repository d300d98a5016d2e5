"""How many cores and how much memory this job was given, which on a cluster is less than the machine has."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mil.errors import MilError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3), as in glibc's malloc.h


def cores(asked: int | None = None, root: Path = Path("/")) -> int:
    """Threads to use: `asked` where given, else what Slurm gave the job, affinity, cgroup v2 and cgroup v1 leave, at least 1."""
    if asked is not None:
        if asked < 1:
            raise MilError(f"threads: {asked} is refused; give 1 or more")
        return asked
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = int(os.environ.get("SLURM_CPUS_PER_TASK", affine))
    return max(1, min(affine, given, *(int(quota + 0.5) or 1 for quota in _quotas(root))))


def keep_memory() -> None:
    """Let this process keep memory that it has freed for its next arrays, shared by its threads. Does nothing without glibc.

    Arrays of some megabytes are otherwise asked of the system anew each time and filled with zeros: a tenth of the time of an
    encoder on a CPU, a sixth of that of drawing slides. Arrays above 1 GiB still go back to the system when they are freed.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option, value in (M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1):
            library.mallopt(option, value)


def memory_given(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may have: the machine's, or less where a scheduler, a container or `ulimit -v` says so."""
    allowed = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if sys.platform != "win32":
        import resource

        allowed += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    allowed += [int(megabytes) * 2**20] if megabytes.isdigit() and int(megabytes) else []
    limits = [_text(path).strip() for path in _limits(root, "memory", "memory.max", "memory.limit_in_bytes")]
    return min(allowed + [int(limit) for limit in limits if limit.isdigit()])


def _quotas(root: Path) -> Iterator[float]:
    """Cores by every cgroup limit of this process."""
    for path in _limits(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = _text(path).strip().partition(" ")
        period = period or _text(path.with_name("cpu.cfs_period_us"))  # v1 has a file for each
        if quota.isdigit() and int(quota):
            yield int(quota) / int(period or 100_000)


def _limits(root: Path, controller: str, version2: str, version1: str) -> Iterator[Path]:
    """Files that limit this process by cgroup v2 or v1: of its own group and of every group above, whose limits hold as well."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = top / group.lstrip("/")
        for path in (folder, *folder.parents):
            yield path / (version1 if controllers else version2)


def _text(path: Path) -> str:
    """What stands in a file; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
