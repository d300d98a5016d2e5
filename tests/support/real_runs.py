"""Runs of a federation of real processes, and the same runs in this process to compare them with."""

import json
import threading
from pathlib import Path

import inprocess
import torch
from deployment import Deployment
from hospitals import Hospitals

from mil.errors import MilError
from mil.hospital import coordinator as hospital
from mil.hospital.payload import header
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.progress import Reporter


class Background:
    """`hospital.run` in a thread, its error kept."""

    def __init__(self, deployment: Deployment, name: str, rehearse: bool = False) -> None:
        self.rehearse = rehearse
        self.error: BaseException | None = None
        self.log = deployment.hospitals.folder / f"{name}.run.log"
        self.thread = threading.Thread(target=self._run, args=(deployment, name), daemon=True)
        self.thread.start()

    def _run(self, deployment: Deployment, name: str) -> None:
        reporter = Reporter(self.log)
        try:
            hospital.run(deployment.hospitals.server, name, reporter, 300, self.rehearse)
        except BaseException as error:  # noqa: BLE001  handed to the test
            self.error = error
        finally:
            assert reporter.log is not None
            reporter.log.close()

    def finished(self, seconds: float) -> None:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.log.read_text()
        assert self.error is None, self.error


def reference(hospitals: Hospitals, folder: Path, silent: dict[str, tuple[str, int]] | None = None) -> dict:
    """Digest after every round of the same run in this process; `silent`: from which phase and round a site is away."""
    protocol = hospitals.protocol
    torch.set_num_threads(1)
    sites = {}
    for name in protocol.sites:
        sites[name] = Site.open(hospitals.elsewhere(name, folder / name))
    digests = {}

    def note(server: Server) -> None:
        entry = json.loads(server.ledger.lines[-1])
        if entry["event"] == "answered" and entry["kind"] != "join":  # every job asks for it anew
            digests[entry["kind"], entry["phase"], entry["round"]] = server.stages.digest()

    inprocess.run(Server(protocol, "reference", folder / "server"), Leaving(sites, silent or {}), note)
    return digests


class Leaving(dict):
    """Sites, some of which stop answering at a place."""

    def __init__(self, sites: dict[str, Site], silent: dict[str, tuple[str, int]]) -> None:
        super().__init__({name: Mute(site, silent[name]) if name in silent else site for name, site in sites.items()})


class Mute:
    def __init__(self, site: Site, place: tuple[str, int]) -> None:
        self.site, self.place = site, place

    def answer(self, blob: bytes) -> bytes:
        values = header(blob, "")["values"]
        if (values.get("phase"), values.get("round")) == self.place:
            raise MilError("away")
        return self.site.answer(blob)


def digests_of(deployment: Deployment, run: str) -> dict:
    lines = [entry for entry in deployment.ledger(run) if entry["event"] == "answered" and entry["kind"] != "join"]
    return {(line["kind"], line["phase"], line["round"]): line["global_sha256"] for line in lines}


def start_the_server_again(deployment: Deployment) -> None:
    deployment.kill("server")
    deployment.start("server")
    deployment.wait_for(*deployment.hospitals.protocol.sites)
