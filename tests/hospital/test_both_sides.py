"""The two sides of a run: what either refuses of the other, and what a stopped run goes on with."""

import json
from pathlib import Path

import inprocess
import numpy as np
import pytest
import torch
from hospitals import PROTOCOL, SEEN, Bad, Hospitals, edited, make_hospitals
from safetensors.torch import save

from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.hospital.parties import SiteSpec, limits, read_party
from mil.hospital.payload import (
    Mismatch,
    PayloadError,
    TooFewPatients,
    header,
)
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return make_hospitals(tmp_path_factory.mktemp("federation"), **SEEN)


@pytest.fixture(scope="module")
def sites(hospitals: Hospitals) -> dict[str, Site]:
    return {name: Site.open(hospitals.site(name)) for name in "ABC"}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("train", lambda blob: edited(blob, lambda found: {}), "missing"),
        (
            "train",
            lambda blob: edited(blob, lambda found: {**found, "score.bias": found["score.bias"] * float("nan")}),
            "holds NaN",
        ),
        (
            "train",
            lambda blob: edited(blob, lambda found: {**found, "num_bags": found["num_bags"] * 0 + 19}),
            "fewer than 20",
        ),
        (
            "train",
            lambda blob: edited(blob, lambda found: {**found, "num_steps": found["num_steps"] * 0 + 1}),
            "fewer than 2 steps",
        ),
        ("train", lambda blob: edited(blob, lambda found: {**found, "embedding": torch.ones(3)}), "not on the list"),
        ("train", lambda blob: edited(blob, site="B"), "says it is from B"),
        ("train", lambda blob: blob[:100], "not a message of ours"),
        ("train", lambda blob: b"", "not a message of ours"),
        ("join", lambda blob: edited(blob, code_sha256="1" * 64), "code_sha256"),
        ("join", lambda blob: edited(blob, spec_sha256="1" * 64), "spec_sha256"),
    ],
)
def test_the_server_refuses_a_bad_answer_and_names_the_site(
    hospitals: Hospitals, sites: dict[str, Site], tmp_path: Path, kind: str, change, said: str
) -> None:
    server = Server(hospitals.protocol, "bad", tmp_path)
    with pytest.raises(SitesMissing, match=f"A: refused.*{said}"):
        inprocess.run(server, {**sites, "A": Bad(sites["A"], kind, change)})
    last = json.loads(server.ledger.lines[-1])
    assert last["event"] == "waiting"
    assert list(last["missing"]) == ["A"]


def test_a_refused_round_changes_nothing_and_the_next_job_goes_on(
    hospitals: Hospitals, sites: dict[str, Site], tmp_path: Path
) -> None:
    with pytest.raises(SitesMissing):
        inprocess.run(
            Server(hospitals.protocol, "run", tmp_path / "refused"),
            {**sites, "B": Bad(sites["B"], "train", lambda blob: edited(blob, lambda found: {}))},
        )
    again = Server(hospitals.protocol, "run", tmp_path / "refused")
    inprocess.run(again, sites)
    plain = Server(hospitals.protocol, "run", tmp_path / "plain")
    inprocess.run(plain, sites)
    assert again.stages.digest() == plain.stages.digest()


def test_an_answer_to_another_question_is_refused(hospitals: Hospitals, sites: dict[str, Site], tmp_path: Path) -> None:
    """A replayed answer of an earlier round has the right form; only the question that it names gives it away."""
    kept: dict[str, bytes] = {}

    class Replaying(Bad):
        def answer(self, blob: bytes) -> bytes:
            found = self.site.answer(blob)
            return kept.setdefault(header(blob, "")["kind"], found)

    server = Server(hospitals.protocol, "replay", tmp_path)
    with pytest.raises(SitesMissing, match=r"A: refused: .*another question"):
        inprocess.run(server, {**sites, "A": Replaying(sites["A"], "", None)})
    assert server.stages.progress.round == 2


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda about: {**about, "kind": "features"}, PayloadError, "not asked of this site by the protocol"),
        (lambda about: {**about, "kind": "open"}, PayloadError, "not asked of this site"),
        (lambda about: {**about, "values": {**about["values"], "phase": "all"}}, PayloadError, "phase 'all'"),
        (lambda about: {**about, "values": {**about["values"], "slots": 3}}, PayloadError, "value 'slots' is 3"),
        (lambda about: {**about, "kind": "watch"}, PayloadError, "is missing"),
        (
            lambda about: {**about, "values": {**about["values"], "spec_sha256": "1" * 64}},
            Mismatch,
            "same federation.yaml",
        ),
        (lambda about: {**about, "values": {**about["values"], "slots": [0, 0]}}, PayloadError, "slots"),
        (lambda about: {**about, "values": {**about["values"], "slots": [99]}}, PayloadError, "slots"),
        (lambda about: {**about, "values": {**about["values"], "slots": []}}, PayloadError, "slots"),
        (lambda about: {**about, "values": {**about["values"], "patients": ["A001"]}}, PayloadError, "not on the list"),
    ],
)
def test_the_site_refuses_a_question_that_is_not_of_its_protocol(
    hospitals: Hospitals, sites: dict[str, Site], tmp_path: Path, change, error: type, said: str
) -> None:
    server = Server(hospitals.protocol, "odd", tmp_path)
    joined = {name: site.answer(server.question()) for name, site in sites.items()}
    server.receive(joined, {})
    blob = server.question()
    odd = save({"unused": torch.zeros(1)}, metadata={"mil": json.dumps(change(header(blob, "")))})
    before = len(sites["A"].ledger.lines)
    with pytest.raises(error, match=said):
        sites["A"].answer(_without_tensors(odd))
    assert json.loads(sites["A"].ledger.lines[-1])["event"] == "refused"
    assert len(sites["A"].ledger.lines) == before + 1


def _without_tensors(blob: bytes) -> bytes:
    about = header(blob, "")
    return save({}, metadata={"mil": json.dumps(about)})


def test_an_external_site_is_not_asked_to_train(hospitals: Hospitals, sites: dict[str, Site], tmp_path: Path) -> None:
    server = Server(hospitals.protocol, "external", tmp_path)
    server.receive({name: site.answer(server.question()) for name, site in sites.items()}, {})
    with pytest.raises(PayloadError, match="not asked of this site"):
        sites["C"].answer(server.question())


def test_a_site_with_too_few_patients_stays_out(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, sites={"A": ("train", 48), "B": ("train", 40)})
    sites = {name: Site.open(hospitals.site(name)) for name in "AB"}
    server = Server(hospitals.protocol, "few", tmp_path / "run")
    server.receive({name: site.answer(server.question()) for name, site in sites.items()}, {})
    with pytest.raises(TooFewPatients, match="fewer than 20; nothing was sent"):
        sites["B"].answer(server.question())  # 40 * 2/3 * 2/3 are 18


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"batch_size": 64}, "1 step of 21 patients, which is their gradient; nothing was sent"),
        ({"local_steps": 2, "batch_size": 10}, "learn from 20 patients, fewer than 21"),
    ],
)
def test_a_gradient_and_a_glimpse_of_few_patients_do_not_leave_a_site(tmp_path: Path, training, said) -> None:
    stanza = {**PROTOCOL["experiment"], "training": {"rounds": 3, "lr": 0.01, **training}}
    hospitals = make_hospitals(tmp_path, experiment=stanza)
    sites = {name: Site.open(hospitals.site(name).model_copy(update={"min_patients": 21})) for name in "AB"}
    server = Server(hospitals.protocol, "gradient", tmp_path / "run")

    def ask() -> None:
        for _ in range(3):
            server.receive({name: site.answer(server.question()) for name, site in sites.items()}, {})

    with pytest.raises(TooFewPatients, match=said):
        ask()


@pytest.mark.parametrize("training", [{"local_steps": 1, "batch_size": 64}, {"local_steps": 3, "batch_size": 4}])
def test_a_protocol_whose_rounds_are_too_short_is_refused(hospitals: Hospitals, training) -> None:
    spec = hospitals.protocol.model_dump()
    spec["experiment"]["training"] |= training
    with pytest.raises(ValueError, match="tell too much of each patient"):
        FederationSpec.model_validate(spec)


def test_a_site_may_only_be_stricter(hospitals: Hospitals, tmp_path: Path) -> None:
    protocol = hospitals.protocol
    loose = SiteSpec(site="A", results="r", max_mb_a_round=1000, min_patients=20, small_cells=5)
    assert limits(protocol, loose) == protocol.payload
    strict = SiteSpec(site="A", results="r", max_mb_a_round=1, min_patients=30, small_cells=20)
    found = limits(protocol, strict).model_dump()
    assert found == {"max_mb_a_round": 1, "min_patients": 30, "small_cells": 20, "max_update": None}
    for own, common, both in [(None, 2.0, 2.0), (1.0, 2.0, 1.0), (3.0, 2.0, 2.0), (3.0, None, 3.0)]:
        changed = protocol.model_copy(update={"payload": protocol.payload.model_copy(update={"max_update": common})})
        assert limits(changed, SiteSpec(site="A", results="r", max_update=own)).max_update == both
    (tmp_path / "site.yaml").write_text("site: A\nresults: r\nsmall_cells: 2\n")
    with pytest.raises(MilError, match="small_cells"):
        read_party(SiteSpec, tmp_path / "site.yaml")
    with pytest.raises(ValueError, match="min_patients"):
        FederationSpec.model_validate({**protocol.model_dump(), "payload": {"min_patients": 5}})


def test_data_that_changed_since_the_run_began_are_noticed(hospitals: Hospitals, tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path)
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    server = Server(hospitals.protocol, "changed", tmp_path / "run")
    server.receive({name: site.answer(server.question()) for name, site in sites.items()}, {})
    bags = Path(hospitals.site("A").results) / "bags" / "response.csv"
    lines = bags.read_text().splitlines()
    bags.write_text("\n".join(lines[:-1]) + "\n")
    sites["A"] = Site.open(hospitals.site("A"))
    again = Server(hospitals.protocol, "changed", tmp_path / "run")
    with pytest.raises(SitesMissing, match="data have changed"):
        again.receive({name: site.answer(again.question()) for name, site in sites.items()}, {})


def test_a_hospital_s_table_with_another_hospital_s_patient_is_refused(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path)
    bags = Path(hospitals.site("A").results) / "bags" / "response.csv"
    bags.write_text(bags.read_text().replace("A001,A-1-0,A,", "A001,A-1-0,B,"))
    with pytest.raises(MilError, match="patient A001 is of site B, not A"):
        Site.open(hospitals.site("A"))


@pytest.mark.extended
def test_resume_at_every_round_boundary_gives_the_same_digest(
    hospitals: Hospitals, sites: dict[str, Site], tmp_path: Path
) -> None:
    plain = Server(hospitals.protocol, "run", tmp_path / "plain")
    digests: list[str] = []
    inprocess.run(plain, sites, lambda server: digests.append(server.stages.digest()))
    resumed: list[str] = []
    server = Server(hospitals.protocol, "run", tmp_path / "resumed")
    while server.kind != "done":
        for _ in range(2 if not server.joined else 1):  # the join and one question, then the process is gone
            question = server.question()
            server.receive({name: sites[name].answer(question) for name in server.asked}, {})
            resumed.append(server.stages.digest())
        server = Server(hospitals.protocol, "run", tmp_path / "resumed")
    assert [one for place, one in enumerate(resumed) if place == 0 or place % 2] == digests
    assert np.array_equal(
        (tmp_path / "plain" / "result" / "weights.safetensors").read_bytes(),
        (tmp_path / "resumed" / "result" / "weights.safetensors").read_bytes(),
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("A/workspace/ledger.jsonl", b"", "is empty, but .* shows that questions were answered"),
        ("A/workspace/runs/run/kept/refit.1.safetensors", b"half", "was damaged .* restore the workspace's backup"),
        ("A/results/bags/response.csv", b"", "is not as it was written"),
        ("A/results/bags/response.csv", b"\xff\xfe", "is not as it was written"),
        ("A/results/bags/response.csv", b"patient_id;site\n", "column 'patient_id' is missing"),
        ("run/checkpoint.safetensors", b"half", "not a checkpoint of ours"),
        ("run/checkpoint.safetensors", save({}), "not a checkpoint of ours"),
        ("run/checkpoint.safetensors", save({}, {"progress": '{"stag": 1}'}), "not a checkpoint of ours"),
    ],
)
def test_a_damaged_file_of_a_run_under_way_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    training = {**PROTOCOL["experiment"]["training"], "optimiser": "sgd"}
    experiment = {**PROTOCOL["experiment"], "strategy": "scaffold", "training": training}
    hospitals = make_hospitals(tmp_path, experiment=experiment)

    def go_on(until: str = "") -> None:
        server = Server(hospitals.protocol, "run", tmp_path / "run")
        members = {name: Site.open(hospitals.site(name)) for name in "ABC"}
        while server.kind != "done" and (server.stages.progress.phase, server.stages.progress.round) != (until, 2):
            question = server.question()
            server.receive({name: members[name].answer(question) for name in server.asked}, {})

    go_on("refit")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MilError, match=said):
        go_on()
