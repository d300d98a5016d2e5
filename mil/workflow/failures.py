"""Logs of a run that failed -> one line per failed job with its cause: the last lines of Snakemake's output."""

import re
from collections.abc import Iterable
from pathlib import Path

CAUSES = {
    r"OUT_OF_MEMORY|oom.kill|OOM Killed|exceeded memory limit|non-zero exit status 137|SIGKILL": (
        "memory: it took more than it was given, and was killed; give it more (in the profile, set-resources: {{{rule}: {{mem_mb: 32000}}}}) or less to do (shard_size)"
    ),
    r"TIMEOUT|DUE TO TIME LIMIT|DEADLINE": (
        "time: it reached its time limit; give it more (in the profile, set-resources: {{{rule}: {{runtime: 1440}}}})"
    ),
    r"NODE_FAIL|BOOT_FAIL|DUE TO NODE FAILURE": "node: the node failed; start the same command again",
    r"PREEMPTED|DUE TO PREEMPTION": "preempted: a job of higher priority took its place; start the same command again",
    r"CANCELLED": "cancelled, as by scancel; start the same command again",
}
"""What Slurm says of a job, or its log -> the cause and the way out. The first that matches holds."""
TERMINATED = "terminated (SIGTERM)"
ERROR = re.compile(r"(\d\d:\d\d:\d\d )?error: (.*)")


def failures(logs: str | Path, since: float, runs: Iterable[str | Path] = ()) -> list[str]:
    """`log: error: cause` for each job of the run that failed.

    `runs` are the logs of Snakemake itself; a log below `logs`, written since then (seconds of the epoch), that ends with an error counts
    without them, too.
    """
    causes = {}
    for path in sorted(Path(logs).rglob("*.log")):
        if path.stat().st_mtime < since:
            continue
        if (said := _last_error(path)) is not None:
            causes[str(path)] = said
    for run in runs:
        for log, cause in _killed(Path(run).read_text(encoding="utf-8", errors="replace")):
            if log not in causes or TERMINATED in causes[log]:
                causes[log] = cause
    return [f"{log}: error: {cause}" for log, cause in sorted(causes.items())]


def _last_error(path: Path) -> str | None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    matched = ERROR.match(lines[-1]) if lines else None
    return matched[2] if matched else None


def _killed(run: str) -> list[tuple[str, str]]:
    """(log, cause) of each job that something else ended, and that no later attempt finished."""
    ended: dict[str, tuple[str, str]] = {}
    for part in re.split(r"^(?=Error in rule |Finished jobid: )", run, flags=re.MULTILINE):
        if done := re.match(r"Finished jobid: (\d+)", part):
            ended.pop(done[1], None)
            continue
        named = re.search(r"^    log: (.*?) \(check log", part, re.MULTILINE)
        job = re.search(r"^    jobid: (\d+)$", part, re.MULTILINE)
        if named is None or job is None:
            continue
        rule = part.removeprefix("Error in rule ").partition(":")[0]
        log, *others = named[1].split(", ")
        evidence = "\n".join([*re.findall(r"SLURM status is: '.*?'", part), *map(_tail, others), *_local_end(run, log)])
        cause = next((said for pattern, said in CAUSES.items() if re.search(pattern, evidence)), None)
        if cause is not None:
            number = re.search(r"^    external_jobid: (\S+)", part, re.MULTILINE)
            ended[job[1]] = log, cause.format(rule=rule) + (f" (Slurm job {number[1]})" if number else "")
    return list(ended.values())


def _local_end(run: str, log: str) -> list[str]:
    """How the process of a job without Slurm ended, where a signal ended it."""
    return re.findall(
        re.escape(f"--log {log}' ") + r"(returned non-zero exit status 137|died with <Signals.SIGKILL)", run
    )


def _tail(path: str) -> str:
    """What slurmstepd wrote of the job's end."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(
        line for line in lines if line.startswith(("slurmstepd", "srun: error")) or line.endswith("status 137.")
    )
