"""Ledgers: any line changed, dropped, moved or written anew is found."""

import json
from pathlib import Path

import inprocess
import pytest
from hospitals import Hospitals, make_hospitals

from mil.errors import CorruptFile
from mil.hospital.crosscheck import cross_check
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.training.ledger import Ledger, LedgerFile, parsed, read, verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    hospitals = make_hospitals(tmp_path_factory.mktemp("federation"))
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    inprocess.run(Server(hospitals.protocol, "run", _run(hospitals)), sites)
    return hospitals


def _run(hospitals: Hospitals) -> Path:
    return Path(hospitals.server.workspace) / "runs" / "run"


def _ledgers(hospitals: Hospitals) -> tuple[Path, dict[str, Path]]:
    sites = {name: Path(hospitals.site(name).workspace) / "ledger.jsonl" for name in "ABC"}
    return _run(hospitals) / "ledger.jsonl", sites


def _copied(hospitals: Hospitals, folder: Path) -> tuple[Path, dict[str, Path]]:
    server, sites = _ledgers(hospitals)
    copies = {}
    for name, path in {"server": server, **sites}.items():
        copies[name] = folder / f"{name}.jsonl"
        copies[name].write_bytes(path.read_bytes())
    return copies.pop("server"), copies


def _chained(entries: list[dict]) -> str:
    """Entries as somebody with the time to compute every hash anew would write them."""
    ledger = Ledger()
    for entry in entries:
        ledger.add({key: value for key, value in entry.items() if key not in {"hash", "prev_hash"}})
    return "".join(f"{line}\n" for line in ledger.lines)


def test_untouched_ledgers_agree(finished: Hospitals) -> None:
    server, sites = _ledgers(finished)
    found = cross_check(server, sites)
    assert found.faults == []
    asked = [line for line in read(server) if line["event"] == "answered"]
    assert found.answers == sum(len(line["answered"]) for line in asked)
    assert found.lines["A"] == 12  # join, twice moments, 3 + 3 rounds, watch, finish and its own result
    assert verify(sites["A"]) == 12


def test_a_change_anywhere_breaks_the_chain(finished: Hospitals, tmp_path: Path) -> None:
    _, sites = _copied(finished, tmp_path)
    lines = sites["A"].read_text().splitlines()
    for number, line in enumerate(lines):
        for key, value in json.loads(line).items():
            other = {**json.loads(line), key: [*value, 1] if isinstance(value, list) else f"{value}x"}
            changed = [*lines[:number], json.dumps(other, sort_keys=True), *lines[number + 1 :]]
            with pytest.raises(CorruptFile, match=f"line ({number + 1}|{number + 2}) does not follow"):
                parsed(changed)


def test_a_dropped_moved_or_doubled_line_breaks_the_chain(finished: Hospitals) -> None:
    server, _ = _ledgers(finished)
    lines = server.read_text().splitlines()
    for number in range(len(lines) - 1):
        with pytest.raises(CorruptFile, match=f"line {number + 1} "):
            parsed(lines[:number] + lines[number + 1 :])
        swapped = [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]
        with pytest.raises(CorruptFile, match=f"line {number + 1} "):
            parsed(swapped)
        with pytest.raises(CorruptFile, match=f"line {number + 2} "):
            parsed([*lines[: number + 1], lines[number], *lines[number + 1 :]])


def test_lines_cut_off_the_end_are_found_by_the_other_side(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    whole = sites["B"].read_text().splitlines(keepends=True)
    for kept in range(len(whole)):
        sites["B"].write_text("".join(whole[:kept]))
        assert verify(sites["B"]) == kept  # the chain alone looks sound
        assert any("site B" in fault for fault in cross_check(server, sites).faults)
    sites["B"].write_text("".join(whole))
    lines = server.read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):  # down to the line that says that the run began
        server.write_text("".join(lines[:kept]))
        assert verify(server) == kept
        assert cross_check(server, sites).faults, kept
    server.write_text("".join(lines[:-3]))
    assert any(fault.startswith("server: the line") for fault in cross_check(server, sites).faults)
    server.write_text("".join(lines[:-1]))
    assert any("knows nothing of the answer to 'finish'" in fault for fault in cross_check(server, sites).faults)


def test_a_ledger_written_anew_is_found_by_the_other_side(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    entries = read(sites["A"])
    entries[3]["patients"] = [entries[3]["patients"][0] + 1] * len(entries[3]["patients"])
    sites["A"].write_text(_chained(entries))
    assert verify(sites["A"]) == len(entries)
    assert cross_check(server, sites).faults[0].startswith("site A: the line")


def test_a_server_that_says_it_received_something_else_is_found(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    entries = read(server)
    line = next(entry for entry in entries if entry.get("kind") == "train")
    line["answered"]["A"]["answer_sha256"] = "0" * 64
    server.write_text(_chained(entries))
    assert any("is not what it says it sent" in fault for fault in cross_check(server, sites).faults)
    line["answered"]["A"]["answer_sha256"] = read(sites["A"])[2]["answer_sha256"]
    line["asked_sha256"] = "1" * 64
    server.write_text(_chained(entries))
    assert any("was asked something else" in fault for fault in cross_check(server, sites).faults)


def test_a_line_torn_by_a_power_cut_is_taken_off_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = LedgerFile(path, "A")
    ledger.add({"event": "one"})
    ledger.add({"event": "two"})
    with open(path, "a") as file:
        file.write('{"event": "thr')
    again = LedgerFile(path, "A")
    again.add({"event": "three"})
    assert [entry["event"] for entry in read(path)] == ["one", "two", "three"]


def test_two_processes_may_write_to_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    one, other = LedgerFile(path, "A"), LedgerFile(path, "A")
    for number in range(4):
        (one if number % 2 else other).add({"event": str(number)})
    assert [entry["event"] for entry in read(path)] == ["0", "1", "2", "3"]


def test_a_site_with_an_altered_ledger_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = LedgerFile(path, "A")
    ledger.add({"event": "one"})
    ledger.add({"event": "two"})
    path.write_text(path.read_text().replace("one", "eno"))
    with pytest.raises(CorruptFile, match="line 1 does not follow"):
        LedgerFile(path, "A")


def test_ledgers_swapped_between_sides_are_not_gone_on_with(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    with pytest.raises(CorruptFile, match="line 1 is of B, not of A"):
        LedgerFile(sites["B"], "A")
    with pytest.raises(CorruptFile, match="line 1 is of B, not of A"):
        cross_check(server, {**sites, "A": sites["B"]})
    with pytest.raises(CorruptFile, match="line 1 is of A, not of server"):
        cross_check(sites["A"], sites)


@pytest.mark.parametrize(
    "altered",
    [
        lambda line: line.replace('"event"', '"event": "other", "event"', 1),
        lambda line: line.replace(": ", ":"),
        lambda line: f" {line}",
        lambda line: "5",
        lambda line: "[]",
        lambda line: "null",
        lambda line: "[" * 100_000,
    ],
)
def test_a_line_that_is_not_as_it_was_written_is_named(finished: Hospitals, altered) -> None:
    """A key that stands twice keeps the hash: some readers take the first of the two, and show it."""
    lines = _ledgers(finished)[1]["A"].read_text().splitlines()
    with pytest.raises(CorruptFile, match="line 2 is not"):
        parsed([lines[0], altered(lines[1]), *lines[2:]])


def test_no_patient_and_no_path_stands_in_any_ledger(finished: Hospitals) -> None:
    server, sites = _ledgers(finished)
    for path in [server, *sites.values()]:
        text = path.read_text()
        assert str(finished.folder) not in text
        for site in "ABC":
            bags = (Path(finished.site(site).results) / "bags" / "response.csv").read_text()
            assert not [row.split(",")[0] for row in bags.splitlines()[1:] if row.split(",")[0] in text]
