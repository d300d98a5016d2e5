"""A small federation on disk: three hospitals with features and bag tables of their own, and the files of every side."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save

from mil import hdf5
from mil.bags.table import deal_folds
from mil.config import EndpointSpec
from mil.errors import MilError
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.keys import PartyKey, private_folder
from mil.hospital.parties import ServerSpec, SiteSpec, read_party
from mil.hospital.payload import Received, header
from mil.hospital.relay import signed_content
from mil.hospital.site import Site
from mil.tables import write_table
from mil.training import store

SITES = {"A": ("train", 48), "B": ("train", 52), "C": ("external", 30)}
WIDTH = 12
PROTOCOL = {
    "federation": "test",
    "experiment": {
        "encoder": "toy",
        "endpoint": "response",
        "model": {"name": "gated_attention", "hidden": 16, "attention": 8},
        "strategy": "fedavg",
        "training": {"rounds": 2, "batch_size": 16, "lr": 0.01},
    },
    "endpoint": {"folds": 3, "inner_folds": 3},
    "payload": {"max_mb_a_round": 2.0},
    "metrics": "sites",
}


SEEN = {
    "trust": "coordinator",
    "experiment": {**PROTOCOL["experiment"], "training": {**PROTOCOL["experiment"]["training"], "scaling": "standard"}},
}
"""Changes by which the coordinator sends the models and sees every update."""


@dataclass
class Hospitals:
    """Where everything is."""

    folder: Path

    @property
    def protocol(self) -> FederationSpec:
        return read_federation(self.folder / "server" / "federation.yaml")

    @property
    def server(self) -> ServerSpec:
        return read_party(ServerSpec, self.folder / "server" / "server.yaml")

    def site(self, name: str) -> SiteSpec:
        return read_party(SiteSpec, self.folder / name / "site.yaml")

    def elsewhere(self, name: str, workspace: Path) -> SiteSpec:
        """The same site with another workspace, its keys included."""
        spec = self.site(name)
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / "party.key").write_bytes((Path(spec.workspace) / "party.key").read_bytes())
        (workspace / "party.key").chmod(0o600)
        return spec.model_copy(update={"workspace": str(workspace)})


def make_hospitals(
    folder: Path, port: int = 8002, sites: dict | None = None, write: Callable | None = None, **changes
) -> Hospitals:
    """Write the coordinator's folder and one for every site, each with its own copy of the protocol.

    `write` (results folder, site, role, patients, endpoint) puts the site's features and bag table there.
    """
    sites = sites or SITES
    members = {}
    for name, (role, _) in sites.items():
        private_folder(folder / name / "workspace")
        (folder / name / "workspace" / "party.key").write_bytes(hashlib.sha512(name.encode()).digest())
        (folder / name / "workspace" / "party.key").chmod(0o600)
        key = PartyKey(folder / name / "workspace").public
        members[name] = {"organisation": f"hospital_{name}", "role": role, "key": key}
    protocol = {**PROTOCOL, "sites": members, "server": {"host": "localhost", "port": port}, **changes}
    protocol = trusted(protocol)
    for side in ["server", *sites]:
        (folder / side).mkdir(parents=True, exist_ok=True)
        (folder / side / "federation.yaml").write_text(yaml.safe_dump(protocol))
    (folder / "server" / "server.yaml").write_text(yaml.safe_dump({"workspace": "workspace"}))
    for name, (role, patients) in sites.items():
        own = {"site": name, "results": "results", "workspace": "workspace"}
        (folder / name / "site.yaml").write_text(yaml.safe_dump(own))
        (write or write_data)(folder / name / "results", name, role, patients, EndpointSpec(**protocol["endpoint"]))
    return Hospitals(folder)


def trusted(protocol: dict) -> dict:
    """The protocol with the coordinator trusted where its strategy is no sum, or a round has a single training site."""
    strategy = protocol["experiment"]["strategy"]
    strategy = strategy if isinstance(strategy, dict) else {"name": strategy}
    strategy = strategy.get("base", strategy) if strategy["name"] == "finetune" else strategy
    strategy = strategy if isinstance(strategy, dict) else {"name": strategy}
    sites = sum(member.get("role", "train") == "train" for member in protocol["sites"].values())
    sites = min(sites, protocol.get("rounds", {}).get("minimum") or sites)
    alone = round(strategy.get("participation", 1.0) * sites) < 2
    needs = alone or strategy["name"] in {"median", "trimmed_mean", "cyclic"}
    return {**protocol, "trust": "coordinator"} if needs else protocol


def write_data(results: Path, site: str, role: str, patients: int, endpoint: EndpointSpec) -> None:
    """Features with a weak signal, two slides for every fifth patient, and the bag table with its folds."""
    folder = results / "sites" / site / "features" / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    for slide, content in feature_files(site, patients).items():
        (folder / f"{slide}.h5").write_bytes(content)
    rows = [
        {"patient_id": f"{site}{number:03d}", "slides": ";".join(slides_of(site, number)), "site": site, "role": role}
        | {"label": number % 2}
        for number in range(patients)
    ]
    write_table(deal_folds(pd.DataFrame(rows), endpoint), results / "bags" / "response.csv")


def slides_of(site: str, patient: int) -> list[str]:
    return [f"{site}-{patient}-{k}" for k in range(2 if patient % 5 == 0 else 1)]


@cache
def feature_files(site: str, patients: int) -> dict[str, bytes]:
    """Slide -> its feature file: written once, since HDF5 takes longer than the tests that read it."""
    generator, found = np.random.default_rng([ord(letter) for letter in site]), {}
    with TemporaryDirectory() as folder:
        for number in range(patients):
            for slide in slides_of(site, number):
                tiles = generator.normal(size=(int(generator.integers(5, 12)), WIDTH)) + 0.4 * (number % 2)
                path = Path(folder, f"{slide}.h5")
                with hdf5.writing(path) as file:
                    file.append("features", tiles.astype(np.float16))
                    file.annotate({"encoder": "toy", "weights_sha256": "0" * 64, "tile_mpp": 0.5, "size_px": 224})
                found[slide] = path.read_bytes()
    return found


def once(read: Callable) -> Callable:
    """A reader of a file that parses the same bytes once in this process."""
    known: dict[tuple, Any] = {}

    def found(path: Path, *more: object) -> Any:
        key = (path.read_bytes() if path.is_file() else path, *more)
        if key not in known:
            known[key] = read(path, *more)
        return known[key]

    return found


READ_ONCE = {name: once(getattr(store, name)) for name in ("described_features", "read_tiles")}
"""Of the feature files: HDF5 takes 5 ms for each of the 58 of a site."""


@contextmanager
def features_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, read in READ_ONCE.items():
            patch.setattr(store, name, read)
        yield


@contextmanager
def rewrite_protocol(hospitals: Hospitals, **changes) -> Iterator[None]:
    """Every side's copy of the protocol with `changes`, for a while."""
    copies = list(hospitals.folder.glob("*/federation.yaml"))
    before = copies[0].read_text()
    for path in copies:
        path.write_text(yaml.safe_dump(trusted({**yaml.safe_load(before), **changes})))
    try:
        yield
    finally:
        for path in copies:
            path.write_text(before)


class Bad:
    """A site whose answers to `kind` are tampered with."""

    def __init__(self, site: Site, kind: str, change: Callable[[bytes], bytes]) -> None:
        self.site, self.kind, self.change = site, kind, change

    def answer(self, blob: bytes) -> bytes:
        found = self.site.answer(blob)
        return resigned(self.change(found), self.site) if header(blob, "")["kind"] == self.kind else found


def resigned(blob: bytes, site: Site) -> bytes:
    """A message with the signature that a site that lies puts under it; what is no message stays as it is."""
    try:
        about, tensors = header(blob, ""), load(blob)
    except (MilError, SafetensorError):
        return blob
    message = Received(about["kind"], about["values"], tensors)
    return edited(blob, signature=site.party.sign(signed_content(message)))


def edited(blob: bytes, tensors: Callable[[dict], dict] | None = None, **values) -> bytes:
    """A message with other tensors and values, as somebody who knows the format makes one."""
    about, found = header(blob, ""), load(blob)
    if tensors is not None:
        found = tensors(found)
    kind = values.pop("kind", about["kind"])
    return save(found, metadata={"mil": json.dumps({"kind": kind, "values": {**about["values"], **values}})})
