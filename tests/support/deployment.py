"""A real deployment on the loopback interface: FLARE's server and sites as processes, with certificates of their own."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from forks import run_main
from hospitals import Hospitals

from mil.hospital.flare import kits
from mil.hospital.flare.processes import server_command, site_command
from mil.hospital.flare.session import ServerAway, connected, session
from mil.training.ledger import read

JOB = ("runner_process", "worker_process")
UNCACHED = {"PYTHONDONTWRITEBYTECODE": "1"}  # before 3.12.8 Python keeps half a file of its cache where a limit is met


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what: Callable[[], bool], seconds: float, why: str) -> None:
    """Return once `what` holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not in {seconds} s: {why}"
        time.sleep(0.1)


@contextmanager
def forked_flare() -> Iterator[None]:
    """FLARE's command line in forked processes: certificates and kits without a second of imports for each call."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        _, _, module, *words = command  # Python's -m
        return run_main(module, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kits, "subprocess", SimpleNamespace(run=run))
        yield


class Deployment:
    """Processes by the side they act for: `server` or a site's name."""

    def __init__(self, hospitals: Hospitals, environments: Mapping[str, dict[str, str]] | None = None) -> None:
        """`environments`: variables of some sides beside this process's."""
        self.hospitals, self.environments = hospitals, environments or {}
        self.processes: dict[str, psutil.Popen] = {}

    def provision(self) -> None:
        """Certificates as a coordinator and three sites make them: each site's key in the site's folder only."""
        spec, folder = self.hospitals.server, self.hospitals.folder
        with ThreadPoolExecutor(2) as pool:
            authority = pool.submit(kits.make_authority, spec, folder / "server" / "server.yaml")
            sites = [self.hospitals.site(name) for name in self.hospitals.protocol.sites]
            requests = list(pool.map(kits.request, sites))
            told = authority.result()
            signed = list(pool.map(lambda path: kits.approve(spec, path), requests))
            list(
                pool.map(
                    lambda site, path: kits.join(site, path, told, folder / site.site / "site.yaml"), sites, signed
                )
            )

    def lift_the_servers_rules(self) -> None:
        """A coordinator who lets everything pass, so that what is refused is refused by the sites."""
        path = Path(self.hospitals.server.workspace) / "kit" / "local" / "authorization.json"
        rules = json.loads(path.read_text())
        rules["permissions"]["lead"]["byoc"] = "any"
        path.write_text(json.dumps(rules))

    def start(self, *sides: str) -> None:
        for side in sides:
            spec = self.hospitals.server if side == "server" else self.hospitals.site(side)
            words, environment, folder = server_command(spec) if side == "server" else site_command(spec)
            given = environment | UNCACHED | self.environments.get(side, {})
            with open(self.log(side), "a") as log:
                self.processes[side] = psutil.Popen(words, env=given, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    def log(self, side: str) -> Path:
        return self.hospitals.folder / f"{side}.log"

    def connected(self) -> set[str]:
        try:
            with session(self.hospitals.server, wait_s=15) as line:
                return connected(line)
        except ServerAway:
            return set()

    def wait_for(self, *sites: str, seconds: float = 300) -> None:
        until(lambda: set(sites) <= self.connected(), seconds, f"{sites} connected")

    def job_process(self, side: str) -> psutil.Process | None:
        """The process that does the work of the running job."""
        for child in self.processes[side].children(recursive=True):
            try:
                if any(word in " ".join(child.cmdline()) for word in JOB):
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def freeze(self, side: str, number: int = signal.SIGSTOP) -> None:
        """Stop everything of a side for a while; `signal.SIGCONT` lets it go on."""
        for process in [self.processes[side], *self.processes[side].children(recursive=True)]:
            process.send_signal(number)

    def kill(self, side: str) -> None:
        """kill -9 of everything of a side."""
        parent = self.processes.pop(side)
        family = [*parent.children(recursive=True), parent] if parent.is_running() else [parent]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=20)

    def stop(self) -> None:
        for side in list(self.processes):
            self.kill(side)

    def ledger(self, run: str) -> list[dict]:
        path = Path(self.hospitals.server.workspace) / "runs" / run / "ledger.jsonl"
        return read(path) if path.exists() else []

    def answered(self, run: str, kind: str = "train") -> list[dict]:
        return [entry for entry in self.ledger(run) if entry["event"] == "answered" and entry["kind"] == kind]
