"""Attacks on keys, own files and records: refused in one line, never in silence or a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import inprocess
import pandas as pd
import pytest
import torch
import yaml
from hospitals import SITES, Hospitals, make_hospitals, rewrite_protocol
from reached_runs import BRIEF, BRIEFEST, THREE, opened, reached

from mil.errors import CorruptFile, MilError
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.crosscheck import cross_check
from mil.hospital.keys import PartyKey
from mil.hospital.parties import ServerSpec, SiteSpec, read_party
from mil.hospital.preflight import check_site
from mil.hospital.privacy import BudgetSpent
from mil.hospital.record import read_record
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.training.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("three"), sites=THREE, experiment=BRIEF)


def protocol_with(three: Hospitals, tmp_path: Path, change: Callable[[dict], object]) -> FederationSpec:
    whole = yaml.safe_load((three.folder / "server" / "federation.yaml").read_text())
    change(whole)
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(whole))
    return read_federation(tmp_path / "federation.yaml")


def key_of(whole: dict, first: str | None = None, second: str | None = None) -> None:
    own = whole["sites"]["B"]["key"]
    whole["sites"]["B"]["key"] = (first or own[:64]) + (second or own[64:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda spec: spec["sites"]["B"].update(key=spec["sites"]["A"]["key"]),
            r"sites\.B\.key: is the key of sites\.A",
        ),
        (lambda spec: spec["server"].update(key=spec["sites"]["A"]["key"]), r"server\.key: is the key of sites\.A"),
        (lambda spec: key_of(spec, second=spec["sites"]["A"]["key"][64:]), "is the key of"),
        (lambda spec: key_of(spec, "0" * 64, "0" * 64), "is no key"),
        (lambda spec: key_of(spec, first="01" + "0" * 62), "is no key"),
        (lambda spec: key_of(spec, first="ec" + "f" * 60 + "7f"), "is no key"),
        (lambda spec: key_of(spec, first="f" * 64), "is no key"),
        (lambda spec: key_of(spec, second="01" + "0" * 62), "small order"),
        (lambda spec: spec["sites"].update(server={"organisation": "x", "role": "external"}), "name of the server"),
        (lambda spec: spec["sites"].update(localhost={"organisation": "x", "role": "external"}), "name of the server"),
        (lambda spec: spec["sites"].update(a={"organisation": "x", "role": "external"}), "but for case"),
        (lambda spec: spec.update(rounds={"silent_s": 1e-9}), r"rounds\.silent_s"),
        (lambda spec: spec.update(rounds={"timeout_s": float("nan")}), r"rounds\.timeout_s"),
        (lambda spec: spec.update(rounds={"signatures": 99}), "99, but 3 sites train"),
        (lambda spec: spec.update(rounds={"allow_subset": True, "minimum": 99}), "99, but 3 sites train"),
    ],
)
def test_a_protocol_that_protects_nothing_is_refused(three: Hospitals, tmp_path: Path, change, said: str) -> None:
    with pytest.raises(MilError, match=said):
        protocol_with(three, tmp_path, change)


def test_keys_that_mil_makes_pass(tmp_path: Path) -> None:
    from mil.hospital.keys import check_public

    for number in range(20):
        check_public(PartyKey(tmp_path / str(number)).public)


@pytest.mark.parametrize(
    ("spec", "values", "said"),
    [
        (SiteSpec, {"workspace": "~nobody-of-that-name/x"}, "workspace: .* is no path"),
        (SiteSpec, {"results": "a\0b"}, "results: "),
        (SiteSpec, {"results": ""}, "results"),
        (SiteSpec, {"salt": "salt"}, "salt"),
        (SiteSpec, {"threads": 10**9}, "threads"),
        (ServerSpec, {"operator": "../../x"}, "operator"),
        (ServerSpec, {"operator": "a\nb"}, "operator"),
    ],
)
def test_an_own_file_with_odd_values_is_a_line(tmp_path: Path, spec, values: dict, said: str) -> None:
    given = {"site": "A", "results": "results", **values} if spec is SiteSpec else values
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(MilError, match=said):
        read_party(spec, tmp_path / "own.yaml")


def test_secrets_that_others_may_read_are_faults(three: Hospitals, tmp_path: Path) -> None:
    spec = three.elsewhere("A", tmp_path / "workspace")
    (tmp_path / "workspace" / "party.key").chmod(0o644)
    faults = {one.check: one.sentence for one in check_site(spec) if one.state == "fault"}
    assert "party.key: others than its owner may read it" in faults["keys"]
    (tmp_path / "other" / "party.key").mkdir(parents=True)
    with pytest.raises(MilError, match="cannot be read"):
        PartyKey(tmp_path / "other")


def test_an_account_that_was_lost_is_noticed_under_another_delta(tmp_path: Path) -> None:
    own = {**BRIEF, "training": {**BRIEF["training"], "scaling": "none"}}
    private = {"noise": 1.0, "expected_batch": 8, "epsilon": 1e6, "delta": 1e-3}
    hospitals = make_hospitals(tmp_path, experiment=own, privacy=private)
    run = reached(hospitals, tmp_path / "run", "train")
    run.sites["A"].answer(run.question)
    Path(hospitals.site("A").workspace, "privacy.jsonl").unlink()
    for path in hospitals.folder.glob("*/federation.yaml"):
        path.write_text(path.read_text().replace("delta: 0.001", "delta: 0.002"))
    with pytest.raises(BudgetSpent, match="1 rounds that were not charged"):
        Site.open(hospitals.site("A"))


# Ledgers


@pytest.fixture(scope="module")
def finished(three: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PartyKey]]:
    """Copies of the ledgers of all parties of a run, and their keys; the result lies beside them."""
    folder, run = tmp_path_factory.mktemp("ledgers"), tmp_path_factory.mktemp("finished")
    hospitals = make_hospitals(folder / "h", experiment=BRIEFEST)
    inprocess.run(Server(hospitals.protocol, "run", run), opened(hospitals))
    shutil.copytree(run / "result", folder / "result")
    found = {}
    for party in ("server", *SITES):
        workspace = run if party == "server" else Path(hospitals.site(party).workspace)
        shutil.copy(workspace / "ledger.jsonl", folder / f"{party}.jsonl")
        found[party] = (folder / f"{party}.jsonl", PartyKey(workspace))
    return found


def faults_of(finished: dict[str, tuple[Path, PartyKey]]) -> list[str]:
    try:
        return cross_check(
            finished["server"][0], {site: path for site, (path, _) in finished.items() if site != "server"}
        ).faults
    except CorruptFile as error:
        return [str(error)]


def signed_anew(entries: list[dict], key: PartyKey) -> str:
    ledger = Ledger()
    ledger.signed = lambda body: {**body, "signature": key.sign(body["hash"].encode())}
    for entry in entries:
        ledger.add({name: value for name, value in entry.items() if name not in {"hash", "prev_hash", "signature"}})
    return "".join(f"{line}\n" for line in ledger.lines)


@pytest.mark.parametrize("value", ["removed", None, [], {"A": {}}])
def test_a_line_of_other_types_signed_by_its_owner_is_named(finished, value: object) -> None:
    """Every field of every line of the server and of a site."""
    assert faults_of(finished) == []
    passed = []
    for party in ("server", "A"):
        path, key = finished[party]
        whole = path.read_text()
        entries = [json.loads(line) for line in whole.splitlines()]
        for number, entry in enumerate(entries):
            for name in set(entry) - {"hash", "prev_hash", "signature"}:
                other = {**entry, name: value} if value != "removed" else {k: v for k, v in entry.items() if k != name}
                path.write_text(signed_anew([*entries[:number], other, *entries[number + 1 :]], key))
                passed += [] if other == entry or faults_of(finished) else [f"{party} line {number + 1}: {name}"]
        path.write_text(whole)
    assert passed == []


@pytest.mark.parametrize("party", ["server", "A"])
def test_bytes_that_a_reader_of_lines_does_not_see_are_found(finished, party: str) -> None:
    path, _ = finished[party]
    whole = path.read_bytes()
    for other in (b"\r\n", b"\x0b", b"\x0c", "\x85".encode(), "\u2028".encode(), b"\n\n", b" \n"):
        path.write_bytes(whole.replace(b"\n", other))
        assert faults_of(finished), other
    for content in (
        whole[:-1],
        whole + b"\n",
        b"\xef\xbb\xbf" + whole,
        whole + b"\0",
        whole.decode().encode("utf-16"),
        b"",
    ):
        path.write_bytes(content)
        assert faults_of(finished), content[-10:]
    path.write_bytes(whole)
    assert len(read_record(path)) == len(whole.splitlines())


def test_a_file_that_was_put_into_or_taken_out_of_a_result_is_named(finished) -> None:
    result = finished["server"][0].parent / "result"
    extra, table = result / "sites_corrected.csv", result / "sites.csv"
    extra.write_text("site,metric\nA,0.99\n")
    assert "sites_corrected.csv: is not a file that server line" in faults_of(finished)[0]
    extra.unlink()
    content = table.read_bytes()
    for other in (b"", b"\xff\xfe\0,", content + b"\n"):
        table.write_bytes(other)
        assert "sites.csv: is not a file that server line" in faults_of(finished)[0]
    table.unlink()
    assert "sites.csv: is not a file that server line" in faults_of(finished)[0]
    table.write_bytes(content)
    assert faults_of(finished) == []


# Two runs


def test_metrics_of_two_runs_are_withheld_where_one_patient_was_replaced(tmp_path: Path) -> None:
    """As many patients and positives as before: only who they are tells that the difference is of two patients. The same labels as
    another endpoint, and another patient replaced, are no way around.
    """
    hospitals = make_hospitals(tmp_path, experiment=BRIEFEST)
    path = Path(hospitals.site("C").results) / "bags" / "response.csv"
    found = {}
    for run in ("first", "second", "third"):
        whole = path.read_text()
        lines = whole.splitlines()
        dropped = 1 if run == "second" else 29  # both without the endpoint
        path.write_text("\n".join(lines[:dropped] + lines[dropped + 1 :]) + "\n")
        inprocess.run(Server(hospitals.protocol, run, tmp_path / run), opened(hospitals))
        path.write_text(whole)
        ledger = [
            json.loads(line) for line in Path(hospitals.site("C").workspace, "ledger.jsonl").read_text().splitlines()
        ]
        found[run] = [line["patients"] for line in ledger if line["event"] == "result"][-1]
    assert found == {"first": 29, "second": None, "third": 29}
    for site in hospitals.protocol.sites:
        table = Path(hospitals.site(site).results) / "bags" / "response.csv"
        lines = table.read_text().splitlines(keepends=True)
        table.with_name("renamed.csv").write_text("".join(lines[:3] + lines[4:] if site == "C" else lines))
    with rewrite_protocol(hospitals, experiment={**BRIEFEST, "endpoint": "renamed"}):
        inprocess.run(Server(hospitals.protocol, "fourth", tmp_path / "fourth"), opened(hospitals))
    table = pd.read_csv(tmp_path / "fourth" / "result" / "sites.csv").set_index("site")
    assert pd.isna(table.loc["C", "patients"])
    assert table.loc["A", "patients"] == 48
