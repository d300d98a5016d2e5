"""A federated run whose process, server and sites, is killed again and again ends with the very models of one that was not."""

import hashlib
import json

import inprocess
import pytest
import torch
from hospitals import PROTOCOL, SITES, Hospitals, make_hospitals
from killing import check_whole, hidden, killed, undisturbed

from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.training.ledger import read
from mil.training.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.repeated]


def federated(hospitals: Hospitals, folder) -> None:
    """Begin or go on with a run whose server and sites keep everything below `folder`."""
    torch.set_num_threads(1)
    sites = {}
    for name in hospitals.protocol.sites:
        sites[name] = Site.open(hospitals.elsewhere(name, folder / name))
    inprocess.run(Server(hospitals.protocol, "run", folder / "server"), sites)


def results(folder):
    """SHA-256 of every file of the results, the record of what happened and a site's state of the last step excepted."""
    found = [*(folder / "server" / "result").glob("*"), *folder.glob("*/runs/run/*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(stated(path)).hexdigest()
        for path in found
        if path.is_file() and path.name not in ("ledger.jsonl", "replica.safetensors") and path.name[0] != "."
    }


def stated(path):
    """Content of a file; of `spec.json` without the digest of the ledger, which tells the kills."""
    if path.name != "spec.json":
        return path.read_bytes()
    spec = json.loads(path.read_text())
    spec["sha256"].pop("ledger.jsonl", None)  # a site has none
    spec.pop("self_sha256")
    return json.dumps(spec).encode()


def test_killed_at_random_moments_the_run_is_the_same(tmp_path):
    stanza = {
        **PROTOCOL["experiment"],
        "strategy": "scaffold",  # server and sites keep tensors of their own
        "training": {"rounds": 2, "batch_size": 8, "lr": 0.01, "optimiser": "sgd"},
    }
    members = {name: SITES[name] for name in "AB"}
    hospitals = make_hospitals(tmp_path / "hospitals", sites=members, experiment=stanza)
    whole = undisturbed(federated, (hospitals,), tmp_path / "whole")
    expected = results(tmp_path / "whole")
    assert any(name.endswith("weights.safetensors") for name in expected)
    for folder, finished in killed(federated, (hospitals,), tmp_path / "killed", whole):
        check_whole(folder)
        assert results(folder).items() <= expected.items()
        if finished:
            assert results(folder) == expected
            assert not hidden(folder)
            for path in folder.rglob("ledger.jsonl"):
                read(path)
            for name in "AB":
                Run.load(folder / name / "runs" / "run")
