"""The coordinator's run, from the first job to the last: submit, watch our own record, submit again until it is complete.

FLARE's job status is asked for one thing only, whether a job has ended; what it came to is read from the checkpoint.
"""

import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session

from mil.errors import MilError
from mil.files import check_name
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.flare.job import Stretch, write_job
from mil.hospital.flare.kits import SERVER_KIT, heartbeat
from mil.hospital.flare.session import ServerAway, abort, connected, session
from mil.hospital.identity import identity
from mil.hospital.local_data import alone, check_room
from mil.hospital.parties import ServerSpec
from mil.hospital.record import whole_entries
from mil.hospital.revocation import revoked_of, revoked_sites
from mil.hospital.standing import Progress, progress_of
from mil.progress import Reporter

POLL_S = 0.5
CANARY = "canary-"
IDLE_JOBS = 3
"""Jobs in a row that may end without a round, before a person is asked."""


def folder_of(spec: ServerSpec, run: str) -> Path:
    """Where a run keeps its checkpoint, ledger and result."""
    return Path(spec.workspace) / "runs" / check_name("run", run, "mil server run")


def run(spec: ServerSpec, name: str, reporter: Reporter, wait_s: float = 3600.0, rehearse: bool = True) -> Path:
    """Run the federation's experiment as `name`, or go on with it; the folder of the result.

    Waits up to `wait_s` for the server and for the sites that are needed, each time one is away. A new run is preceded by a
    canary, unless one of the same protocol and code came back within a day; the run's first line says which, or none.
    """
    folder, flown = folder_of(spec, name), None
    with alone(folder / "running", 0.0, f"mil server run {name}"):  # two would abort each other's jobs
        if rehearse and not _entries(folder):
            flown = rehearsal(spec) or canary(spec, reporter, wait_s).name
        return _run(spec, name, reporter, wait_s, flown)


def _run(
    spec: ServerSpec, name: str, reporter: Reporter, wait_s: float, flown: str | None, canary: bool = False
) -> Path:
    protocol = read_federation(spec.federation)
    _check_heartbeat(spec, protocol)
    folder = folder_of(spec, name)
    idle = 0
    while not _done(folder):
        check_room(spec.workspace, spec.free_gb)
        before, lines = _answered(folder), len(_entries(folder))
        try:
            with session(spec) as line:
                turned_away = set(revoked_of(revoked_sites(Path(spec.workspace)), protocol))
                _wait_for_sites(line, _needed(protocol, folder) - turned_away, wait_s, reporter)
                job = _submit(line, protocol, Stretch(name, protocol.sha256, canary, flown))
                reporter.note(f"{name}: job {job} submitted")
                _follow(line, job, folder, protocol, reporter)
        except ServerAway as error:
            _wait_for_server(spec, wait_s, reporter, error)
            continue
        _stop_where_a_person_is_needed(_entries(folder)[lines:])
        idle = 0 if _answered(folder) > before else idle + 1
        if idle == IDLE_JOBS and not _done(folder):
            last = _entries(folder)[-1:]
            reason = last[0].get("reason") if last else None
            raise MilError(
                f"{name}: {IDLE_JOBS} jobs in a row moved nothing ({reason or 'no job began'}); see "
                f"{spec.workspace}/kit/log.txt, then say `mil server run` again"
            )
    return folder / "result"


def _check_heartbeat(spec: ServerSpec, protocol: FederationSpec) -> None:
    """Raise where the running server still has another `silent_s` than the protocol."""
    running = heartbeat(Path(spec.workspace) / SERVER_KIT)
    if running != protocol.rounds.silent_s:
        raise MilError(
            f"{spec.federation}: rounds.silent_s is {protocol.rounds.silent_s:g}, but the server was started with {running:g}; "
            "stop the server and say `mil server start` again"
        )


def canary(spec: ServerSpec, reporter: Reporter, wait_s: float = 600.0) -> Path:
    """One round on two patients' slides a site, of which nothing comes back but that it worked; the ledger's folder."""
    name = f"{CANARY}{datetime.now(UTC):%Y%m%d-%H%M%S}"
    _run(spec, name, reporter, wait_s, None, canary=True)
    return folder_of(spec, name)


def rehearsal(spec: ServerSpec) -> str | None:
    """The last canary of this protocol and code that came back within a day, if there is one.

    Nor may it be a day ahead of the clock: one whose clock was set since tells nothing of its age.
    """
    same = identity(read_federation(spec.federation)).items()
    for folder in sorted(Path(spec.workspace).glob(f"runs/{CANARY}*"), reverse=True):
        entries = _entries(folder)
        started = next((entry for entry in entries if entry["event"] == "started"), {})
        if not same <= started.items() or not _done(folder):
            continue
        if abs(datetime.now(UTC) - datetime.fromisoformat(entries[-1]["time"])) < timedelta(days=1):
            return folder.name
    return None


@dataclass(frozen=True)
class Status:
    """Where a run stands, by our own record."""

    run: str
    progress: Progress
    last: dict[str, Any]
    """The ledger's last line; the closing line has no time of its own, and takes that of the line before."""
    jobs: int
    missed: list[tuple[str, str, str]]
    """When, which site, why."""
    alarms: list[tuple[str, str, str]]
    """When, which site, what about its update."""

    def lines(self) -> list[str]:
        """For a person to read."""
        progress = self.progress
        rounds = max(progress.rounds, default=0)
        lines = [
            f"{self.run}: {progress.stage}, phase {progress.phase}, round {min(progress.round, rounds)} of {rounds}"
        ]
        lines.append(f"  last: {self.last.get('time')} {self.last.get('event')} {self.last.get('reason', '')}".rstrip())
        lines += [f"  missing at {when}: {site} ({why})" for when, site, why in self.missed]
        lines += [f"  alarm at {when}: {site} ({why})" for when, site, why in self.alarms]
        return lines


def status(spec: ServerSpec, name: str) -> Status:
    """Where the run `name` stands."""
    folder = folder_of(spec, name)
    entries = _entries(folder)
    if not entries:
        raise MilError(f"{folder}: no run of that name has begun; `mil server run` starts one")
    missed, alarms = (
        [(str(entry["time"]), site, why) for entry in entries for site, why in entry.get(key, {}).items()]
        for key in ("missing", "alarms")
    )
    starts = [entry for entry in entries if entry["event"] in {"started", "resumed"}]
    last = {"time": next(entry["time"] for entry in reversed(entries) if "time" in entry), **entries[-1]}
    return Status(name, progress_of(folder / "checkpoint.safetensors"), last, len(starts), missed, alarms)


def _done(folder: Path) -> bool:
    return progress_of(folder / "checkpoint.safetensors").stage == "done"


def _entries(folder: Path) -> list[dict[str, Any]]:
    return whole_entries(folder / "ledger.jsonl")


def _answered(folder: Path) -> int:
    """Questions that moved the run on; that the sites are there does not."""
    return sum(entry["event"] == "answered" and entry["kind"] != "join" for entry in _entries(folder))


def _needed(protocol: FederationSpec, folder: Path) -> set[str]:
    """Sites that the next questions cannot do without."""
    last = progress_of(folder / "checkpoint.safetensors").stage in {"finish", "close"}
    return set(protocol.required_sites) | (set(protocol.external_sites) if last else set())


def _wait_for_sites(line: Session, needed: set[str], wait_s: float, reporter: Reporter) -> None:
    deadline = time.monotonic() + wait_s
    said: set[str] = set()
    while lacking := needed - connected(line):
        if lacking != said:
            reporter.say(f"waiting for {', '.join(sorted(lacking))} to connect")
            said = lacking
        if time.monotonic() > deadline:
            raise MilError(
                f"{', '.join(sorted(lacking))} did not connect in {wait_s:g} s; ask the site to look at its log"
            )
        time.sleep(POLL_S)


def _wait_for_server(spec: ServerSpec, wait_s: float, reporter: Reporter, error: MilError) -> None:
    reporter.say(f"waiting for the server: {error}")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with session(spec, wait_s=5.0) as line:
                connected(line)
                return
        except ServerAway as again:
            if time.monotonic() > deadline:
                raise MilError(f"the server was away for {wait_s:g} s: {again}") from again
            time.sleep(POLL_S)


def _submit(line: Session, protocol: FederationSpec, stretch: Stretch) -> str:
    """Submit the next job of the run. A job of it that the engine still believes in, as after a crash, is aborted first."""
    title = f"{protocol.federation}-{stretch.run}"
    for job in line.list_jobs(name_prefix=title):
        if job.get("job_name") == title and not str(job.get("status", "")).startswith("FINISHED"):
            abort(line, job["job_id"])
    with tempfile.TemporaryDirectory() as folder:
        return line.submit_job(str(write_job(Path(folder) / title, protocol, stretch)))


def _follow(line: Session, job: str, folder: Path, protocol: FederationSpec, reporter: Reporter) -> None:
    """Return when the run is done, the job has ended, or nothing has been heard of it for too long (it is aborted then)."""
    before = seen = len(_entries(folder))
    longest = 2 * protocol.rounds.timeout_s + 120.0
    deadline = time.monotonic() + longest
    while not _done(folder):
        entries = _entries(folder)
        for entry in entries[seen:]:
            reporter.note(_sentence(entry))
            deadline = time.monotonic() + longest
        seen = len(entries)
        if entries[-1:] and entries[-1]["event"] in {"waiting", "paused", "stopped"} and seen > before:
            return
        if str(line.get_job_meta(job).get("status", "")).startswith("FINISHED"):
            return
        if time.monotonic() > deadline:
            reporter.say(f"{folder.name}: nothing heard for {longest:g} s; the job is aborted and submitted again")
            abort(line, job)
            return
        time.sleep(POLL_S)


def _sentence(entry: dict[str, Any]) -> str:
    missing = "; ".join(f"without {site}: {why}" for site, why in entry.get("missing", {}).items())
    alarms = "; ".join(f"ALARM {site}: {why}" for site, why in entry.get("alarms", {}).items())
    event = (entry["event"], entry.get("kind"), entry.get("phase"), entry.get("round"))
    words = (*event, missing, alarms, entry.get("reason"))
    return " ".join(str(word) for word in words if word)


def _stop_where_a_person_is_needed(entries: list[dict[str, Any]]) -> None:
    """A site that refuses will refuse again: say so instead of trying for ever. `entries`: the lines since the job was submitted."""
    if entries and entries[-1]["event"] == "stopped":
        raise MilError(entries[-1]["reason"])
    if entries and entries[-1]["event"] == "waiting":
        refused = {site: why for site, why in entries[-1]["missing"].items() if why.startswith("refused")}
        if refused or not entries[-1]["missing"]:
            raise MilError(entries[-1]["reason"])
