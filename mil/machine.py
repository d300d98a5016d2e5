"""How many cores and how much memory this job was given, which on a cluster is less than the machine has."""

import ctypes
import os
import sys
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


def _quotas(root: Path) -> list[float]:
    """Cores by every cgroup limit between this process's group and the top."""
    quotas = []
    for version, group in _groups(root):
        base = root / "sys/fs/cgroup" / ("" if version == 2 else "cpu")
        folder = base / group.lstrip("/")
        for place in [folder, *folder.parents]:
            quotas.append(_quota_v2(place / "cpu.max") if version == 2 else _quota_v1(place))
            if place == base:
                break
    return [quota for quota in quotas if quota is not None]


def _groups(root: Path) -> list[tuple[int, str]]:
    """(cgroup version, path of this process's group) from /proc/self/cgroup; none where there is no such file."""
    text = _text(root / "proc/self/cgroup")
    found = []
    for line in (text or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            found.append((2, group))
        elif "cpu" in controllers.split(","):
            found.append((1, group))
    return found


def _quota_v2(path: Path) -> float | None:
    quota, _, period = (_text(path) or "max 1").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int(_text(folder / "cpu.cfs_quota_us") or -1)
    return None if quota <= 0 else quota / int(_text(folder / "cpu.cfs_period_us") or 100_000)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def memory_given(proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or less where a scheduler, a container or `ulimit -v` says so."""
    allowed = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if sys.platform != "win32":
        import resource

        allowed += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    allowed += [int(megabytes) * 2**20] if megabytes.isdigit() and int(megabytes) else []
    lines = proc.read_text().splitlines() if proc.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in {"", "memory"}:
            continue
        folder, name = (mount, "memory.max") if not controllers else (mount / "memory", "memory.limit_in_bytes")
        inside = folder / path.lstrip("/")
        for one in (inside, *inside.parents):  # a limit above holds as well
            limit = (one / name).read_text().strip() if (one / name).is_file() else "max"
            allowed += [int(limit)] if limit.isdigit() else []
    return min(allowed)
