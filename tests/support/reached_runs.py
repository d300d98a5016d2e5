"""A run of three training hospitals that has come to a question."""

from dataclasses import dataclass
from pathlib import Path

from hospitals import PROTOCOL, Hospitals

from mil.hospital.server import Server
from mil.hospital.site import Site

BRIEF = {**PROTOCOL["experiment"], "training": {"rounds": 2, "batch_size": 16, "lr": 0.01}}
BRIEFEST = {**BRIEF, "training": {**BRIEF["training"], "rounds": 1}}
THREE = {**dict.fromkeys("ABD", ("train", 48)), "C": ("external", 30)}


@dataclass
class Reached:
    """A run of three training hospitals that has come to a question."""

    hospitals: Hospitals
    server: Server
    sites: dict[str, Site]
    question: bytes


def opened(hospitals: Hospitals) -> dict[str, Site]:
    return {name: Site.open(hospitals.site(name)) for name in hospitals.protocol.sites}


def reached(hospitals: Hospitals, folder: Path, kind: str, number: int | None = None) -> Reached:
    sites, server = opened(hospitals), Server(hospitals.protocol, folder.name, folder)
    while server.kind != kind or number not in (None, server.stages.progress.round):
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})
    return Reached(hospitals, server, sites, server.question())


def until_kind(server: Server, sites: dict[str, Site], kind: str) -> bytes:
    """The server's next question of this kind, everything before it answered."""
    while server.kind != kind:
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})
    return server.question()
