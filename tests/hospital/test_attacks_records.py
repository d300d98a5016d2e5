"""Attacks on the record and on the people who look after it: who is blamed, what a command is called for, what a file may do."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import inprocess
import pytest
import torch
from hospitals import Hospitals, make_hospitals, rewrite_protocol
from private_federation import PRIVATE
from reached_runs import BRIEF, BRIEFEST, THREE, opened, reached
from typer.testing import CliRunner

from mil.commands.hospital import ledger as ledger_commands
from mil.commands.hospital import server as server_commands
from mil.commands.hospital import site as site_commands
from mil.errors import CorruptFile, MilError
from mil.hospital.crosscheck import cross_check
from mil.hospital.flare import kits
from mil.hospital.keys import PartyKey
from mil.hospital.page import call_for
from mil.hospital.record import LedgerFile, read_record
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.hospital.watch import Watched, parts_or_fault
from mil.progress import quiet
from mil.training.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hospitals, bytes]:
    """A finished run, and the question that closed it."""
    torch.set_num_threads(1)
    hospitals = make_hospitals(tmp_path_factory.mktemp("closed"), sites=THREE, experiment=BRIEF, metrics="sums")
    server, sites, last = _server(hospitals), opened(hospitals), b""
    while server.kind != "done":
        last = server.question()
        server.receive({name: sites[name].answer(last) for name in server.asked}, {})
    return hospitals, last


def _server(hospitals: Hospitals) -> Server:
    folder = Path(hospitals.server.workspace) / "runs" / "run"
    return Server(hospitals.protocol, "run", folder, party=PartyKey(hospitals.server.workspace))


@pytest.fixture
def copied(closed: tuple[Hospitals, bytes], tmp_path: Path) -> Hospitals:
    shutil.copytree(closed[0].folder, tmp_path / "copy")
    return Hospitals(tmp_path / "copy")


def ledgers(hospitals: Hospitals) -> tuple[Path, dict[str, Path]]:
    sites = {name: Path(hospitals.site(name).workspace) / "ledger.jsonl" for name in hospitals.protocol.sites}
    return Path(hospitals.server.workspace) / "runs" / "run" / "ledger.jsonl", sites


def rewritten(path: Path, workspace: str, change: Callable[[list[dict]], object]) -> None:
    """A ledger that its own party wrote anew after the end."""
    key, entries = PartyKey(workspace), [json.loads(line) for line in path.read_text().splitlines()]
    change(entries)
    ledger = Ledger()
    ledger.signed = lambda body: {**body, "signature": key.sign(body["hash"].encode())}
    for entry in entries:
        ledger.add({name: value for name, value in entry.items() if name not in {"hash", "prev_hash", "signature"}})
    path.write_text("".join(f"{line}\n" for line in ledger.lines))


# Who is blamed


def test_a_last_question_that_comes_again_does_not_make_the_site_look_like_a_forger(
    copied: Hospitals, closed: tuple[Hospitals, bytes]
) -> None:
    """A coordinator could spoil the record of any finished run, with the site's signature under it."""
    server, sites = ledgers(copied)
    assert cross_check(server, sites).faults == []
    site, before = opened(copied)["A"], len(read_record(sites["A"]))
    for _ in range(2):
        site.answer(closed[1])
    assert cross_check(server, sites).faults == []
    assert len(read_record(sites["A"])) == before


def test_a_server_that_makes_up_a_site_s_head_is_named_and_not_the_site(copied: Hospitals) -> None:
    server, sites = ledgers(copied)

    def forged(entries: list[dict]) -> None:
        line = next(one for one in entries if one.get("kind") == "train")
        line["answered"]["A"]["ledger"] = "ab" * 32

    rewritten(server, copied.server.workspace, forged)
    first = cross_check(server, sites).faults[0]
    assert "signed by server" in first
    assert "not signed by A" in first


def test_a_site_that_makes_up_the_server_s_head_does_not_convict_the_server(copied: Hospitals) -> None:
    server, sites = ledgers(copied)

    def forged(entries: list[dict]) -> None:
        next(one for one in entries if one.get("kind") == "train")["server_ledger"] = "ab" * 32

    rewritten(sites["A"], copied.site("A").workspace, forged)
    told = [fault for fault in cross_check(server, sites).faults if "abababababab" in fault]
    assert told
    assert "site A line" in told[0]
    assert "or the line of site A is false" in told[0]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e308, 10**400, -1.0])
def test_numbers_that_cannot_be_added_up_are_named_and_no_traceback(copied: Hospitals, number: float) -> None:
    server, sites = ledgers(copied)
    whole = server.read_bytes()
    for party, place in (("server", "pooled"), ("A", None)):
        path = server if party == "server" else sites[party]
        workspace = copied.server.workspace if party == "server" else copied.site(party).workspace

        def forged(entries: list[dict], place: str | None = place) -> None:
            line = next(one for one in entries if place in one or (place is None and one["event"] == "result"))
            (line[place] if place else line)["patients" if place else "metric"] = number

        rewritten(path, workspace, forged)
        try:
            said = cross_check(server, sites).faults[0]
        except CorruptFile as error:
            said = str(error)
        assert f"signed by {party}" in said or "sums of metrics are not those" in said
        server.write_bytes(whole)


def test_sums_of_no_site_are_no_sums(copied: Hospitals) -> None:
    server, sites = ledgers(copied)

    def forged(entries: list[dict]) -> None:
        next(one for one in entries if "pooled" in one)["roles"] = {}

    rewritten(server, copied.server.workspace, forged)
    assert any("sums of metrics are not those" in fault for fault in cross_check(server, sites).faults)


def test_what_was_not_compared_is_said(copied: Hospitals) -> None:
    """With the ledger of one site, or without the result, nothing is known of the rest."""
    server, sites = ledgers(copied)
    runner = CliRunner()
    whole = ["verify", str(server), *(word for name, path in sites.items() for word in ("--site", f"{name}={path}"))]
    done = runner.invoke(ledger_commands, whole, catch_exceptions=False)
    assert "not compared" not in done.output
    shutil.rmtree(server.parent / "result")
    done = runner.invoke(ledger_commands, ["verify", str(server), "--site", f"A={sites['A']}"], catch_exceptions=False)
    assert "not compared: the ledgers of B, C, D; the files of a result, which is not beside" in done.output
    with pytest.raises(MilError, match="A is given twice"):
        runner.invoke(ledger_commands, [*whole, "--site", f"A={sites['B']}"], catch_exceptions=False)


# Files that were spoilt


def test_a_last_line_that_lost_its_newline_is_kept(tmp_path: Path) -> None:
    """As an editor leaves it: the line is whole and signed, and what it says was answered must not be forgotten."""
    key = PartyKey(tmp_path)
    path = tmp_path / "ledger.jsonl"
    LedgerFile(path, "A", key).add({"event": "one"})
    path.write_bytes(path.read_bytes()[:-1])
    LedgerFile(path, "A", key).add({"event": "two"})
    assert [line["event"] for line in read_record(path, "A")] == ["key", "one", "two"]


@pytest.mark.parametrize("content", [b"{\n", b"5\n", b"[]\n", b"null\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_a_spoilt_ledger_is_a_line_for_whoever_looks_at_it(copied: Hospitals, content: bytes) -> None:
    server, sites = ledgers(copied)
    watching = [Watched(copied.server), Watched(copied.site("A"))]
    for path in (server, sites["A"]):
        path.write_bytes(content)
    for watched in watching:
        assert parts_or_fault(watched)[0].title == "These files cannot be shown"
        with pytest.raises(CorruptFile, match=r"ledger.jsonl: line 1"):
            list(watched.news())
    with pytest.raises(CorruptFile, match=r"ledger.jsonl: line 1"):
        CliRunner().invoke(
            server_commands, ["status", str(copied.folder / "server" / "server.yaml"), "run"], catch_exceptions=False
        )


# The command that is called


def test_a_call_that_fails_is_said_and_calls_for_no_event_twice(copied: Hospitals, tmp_path: Path) -> None:
    """The second of three events fails: the first would have been told again every two seconds, the third never."""
    watched, out = Watched(copied.site("A")), tmp_path / "told"
    ledger = LedgerFile(Path(copied.site("A").workspace) / "ledger.jsonl", "A", PartyKey(copied.site("A").workspace))
    for reason in ("first", "second", "third"):
        ledger.add({"event": "refused", "reason": reason})
    code = (
        f"import os; text = os.environ['MIL_EVENT']; open({str(out)!r}, 'a').write(text + '\\n'); "
        "raise SystemExit('second' in text)"
    )
    for _ in range(2):
        call_for(watched, [sys.executable, "-c", code], quiet())
    assert out.read_text().splitlines() == ["refusal: first", "refusal: second", "refusal: third"]


# Files that come by mail


def archived(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return path


@pytest.mark.parametrize(
    "stated", [b"[]", b"5", b'"x"', b"null", b"[" * 100_000, b"\xff", b" " * 60_000_000 + b"{}", b'{"name": []}']
)
def test_a_request_that_is_none_is_a_line(copied: Hospitals, tmp_path: Path, stated: bytes) -> None:
    """Also 60 MB of blanks in 58 kB: whoever has the coordinator's address can send one."""
    request = archived(tmp_path / "A.request.zip", request_json=stated, A_csr=stated)
    with pytest.raises(MilError, match="request"):
        kits.approve(copied.server, request)
    with pytest.raises(MilError, match="is no signing request"):
        kits.request_fingerprint(request)


def test_a_request_whose_bytes_are_damaged_is_a_line(copied: Hospitals, tmp_path: Path) -> None:
    whole = archived(tmp_path / "A.request.zip", request_json=b'{"name": "A"}' * 9, A_csr=b"x" * 99).read_bytes()
    for place in range(0, len(whole), 3):
        spoilt = tmp_path / "spoilt.request.zip"
        spoilt.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(MilError):
            kits.approve(copied.server, spoilt)
        with pytest.raises(MilError):
            kits.request_fingerprint(spoilt)


# What a person types


@pytest.mark.parametrize("command", [site_commands, server_commands])
def test_a_command_that_no_shell_reads_is_a_line(copied: Hospitals, command) -> None:
    own = "A/site.yaml" if command is site_commands else "server/server.yaml"
    with pytest.raises(MilError, match="--notify"):
        CliRunner().invoke(command, ["watch", str(copied.folder / own), "--notify", "mail 'it"], catch_exceptions=False)


# Names that are words of the record


@pytest.mark.parametrize("name", ["known", "judged"])
def test_a_run_with_the_name_of_a_key_of_the_ledger_locks_nobody_out(tmp_path: Path, name: str) -> None:
    """The coordinator names the runs, and a site searches its ledger for what earlier runs told."""
    hospitals = make_hospitals(tmp_path, experiment=BRIEFEST)
    sites = opened(hospitals)
    for run in (name, "next"):
        inprocess.run(Server(hospitals.protocol, run, tmp_path / run), sites)
        assert (tmp_path / run / "result" / "sites.csv").is_file()


def test_rounds_of_a_run_named_epsilon_are_no_rounds_that_were_not_charged(tmp_path: Path) -> None:
    own = {**BRIEFEST, "training": {**BRIEFEST["training"], "scaling": "none"}}
    hospitals = make_hospitals(tmp_path, experiment=own)
    run = reached(hospitals, tmp_path / "epsilon", "train")
    assert run.sites["A"].answer(run.question)
    with rewrite_protocol(hospitals, privacy=PRIVATE.model_dump(mode="json")):
        assert Site.open(hospitals.site("A")).budget is not None
