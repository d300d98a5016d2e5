"""Ledgers: any line changed, dropped, moved or written anew is found."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import inprocess
import pytest
from hospitals import Hospitals, make_hospitals

from mil.errors import CorruptFile
from mil.hospital.coordinator import status
from mil.hospital.crosscheck import cross_check
from mil.hospital.keys import PartyKey
from mil.hospital.preflight import check_site
from mil.hospital.record import LedgerFile, read_record
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.training.artefact import Run
from mil.training.ledger import Ledger, parsed, read

EVERY = 4 if os.environ.get("REPEATS", "1") == "1" else 1  # every how manyth forgery


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


def test_a_finished_run_has_a_time_and_a_hospital_no_second_empty_ledger(finished: Hospitals) -> None:
    said = status(finished.server, "run").lines()[1].split()
    assert said[0] == "last:"
    assert datetime.fromisoformat(said[1]).tzinfo is not None
    for name in "ABC":
        own = Path(finished.site(name).workspace) / "runs" / "run"
        assert Run.load(own).ledger.lines == []
        assert not (own / "ledger.jsonl").exists()


def _copied(hospitals: Hospitals, folder: Path) -> tuple[Path, dict[str, Path]]:
    server, sites = _ledgers(hospitals)
    copies = {}
    for name, path in {"server": server, **sites}.items():
        copies[name] = folder / f"{name}.jsonl"
        copies[name].write_bytes(path.read_bytes())
    return copies.pop("server"), copies


def _chained(entries: list[dict], key: PartyKey | None = None) -> str:
    """Entries as somebody with the time to compute every hash anew would write them; with the party's `key`, the party."""
    ledger = Ledger()
    ledger.signed = lambda body: {**body, "signature": key.sign(body["hash"].encode())} if key else dict(body)
    for entry in entries:
        ledger.add({key: value for key, value in entry.items() if key not in {"hash", "prev_hash", "signature"}})
    return "".join(f"{line}\n" for line in ledger.lines)


def test_untouched_ledgers_agree(finished: Hospitals) -> None:
    server, sites = _ledgers(finished)
    found = cross_check(server, sites)
    assert found.faults == []
    asked = [line for line in read(server) if line["event"] == "answered"]
    assert found.answers == sum(len(line["answered"]) for line in asked)
    assert found.lines["A"] == 12  # key, join, twice moments, 2 + 2 rounds, watch, finish, its own result, closed
    assert len(read_record(sites["A"])) == 12


def test_a_change_anywhere_breaks_the_chain(finished: Hospitals, tmp_path: Path) -> None:
    _, sites = _copied(finished, tmp_path)
    lines = sites["A"].read_text().splitlines()
    for number, line in enumerate(lines):
        for key, value in json.loads(line).items():
            other = {**json.loads(line), key: [*value, 1] if isinstance(value, list) else f"{value}x"}
            changed = [*lines[:number], json.dumps(other, sort_keys=True), *lines[number + 1 :]]
            sites["A"].write_text("".join(f"{one}\n" for one in changed))
            said = f"line ({number + 1}|{number + 2}) does not follow|line {number + 1} is (not signed|of )"
            with pytest.raises(CorruptFile, match=said):
                read_record(sites["A"], "A")


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
    for kept in range(1, len(whole)):
        sites["B"].write_text("".join(whole[:kept]))
        assert len(read_record(sites["B"])) == kept  # chain and signatures alone look sound
        assert any("site B" in fault for fault in cross_check(server, sites).faults)
    sites["B"].write_text("".join(whole))
    lines = server.read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):  # down to the line that says that the run began
        server.write_text("".join(lines[:kept]))
        assert len(read_record(server)) == kept
        assert cross_check(server, sites).faults, kept
    server.write_text("".join(lines[:-3]))
    assert any(fault.startswith("server: the line") for fault in cross_check(server, sites).faults)
    server.write_text("".join(lines[:-1]))
    assert any("its closing line is missing" in fault for fault in cross_check(server, sites).faults)


def test_a_ledger_written_anew_is_found_by_the_other_side(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    entries = read(sites["A"])
    entries[3]["patients"] = [entries[3]["patients"][0] + 1] * len(entries[3]["patients"])
    sites["A"].write_text(_chained(entries, PartyKey(finished.site("A").workspace)))
    assert len(read_record(sites["A"])) == len(entries)
    assert cross_check(server, sites).faults[0].startswith("site A: the line")


def test_a_server_that_says_it_received_something_else_is_found(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    entries = read(server)
    line = next(entry for entry in entries if entry.get("kind") == "train")
    line["answered"]["A"]["answer_sha256"] = "0" * 64
    key = PartyKey(_run(finished))
    server.write_text(_chained(entries, key))
    assert any("is not what it says it sent" in fault for fault in cross_check(server, sites).faults)
    line["answered"]["A"]["answer_sha256"] = read(sites["A"])[3]["answer_sha256"]
    line["asked_sha256"] = "1" * 64
    server.write_text(_chained(entries, key))
    assert any("was asked something else" in fault for fault in cross_check(server, sites).faults)


def test_a_line_torn_by_a_power_cut_is_removed_and_the_record_says_so(tmp_path: Path) -> None:
    path, key = tmp_path / "ledger.jsonl", PartyKey(tmp_path)
    ledger = LedgerFile(path, "A", key)
    ledger.add({"event": "one"})
    ledger.add({"event": "two"})
    with open(path, "a") as file:
        file.write('{"event": "thr')
    again = LedgerFile(path, "A", key)
    again.add({"event": "three"})
    entries = read_record(path, "A", key.public)
    assert [entry["event"] for entry in entries] == ["key", "one", "two", "repaired", "three"]
    assert entries[3]["bytes"] == 14


@pytest.mark.slow
def test_a_full_disk_is_a_line_of_ours_and_the_site_starts_again(finished: Hospitals, tmp_path: Path) -> None:
    """The ledger's line does not fit on the disk (a limit of the file's size, in a process of its own)."""
    hospitals = make_hospitals(tmp_path)
    question = Server(hospitals.protocol, "run", tmp_path / "run").question()
    (tmp_path / "question").write_bytes(question)
    Site.open(hospitals.site("A"))
    path = Path(hospitals.site("A").workspace) / "ledger.jsonl"
    code = (
        "import resource, signal, sys; sys.dont_write_bytecode = True; from pathlib import Path; from mil.hospital.parties import SiteSpec, read_party;"
        "from mil.hospital.site import Site; site = Site.open(read_party(SiteSpec, sys.argv[1]));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 100},) * 2);"
        "site.answer(Path(sys.argv[2]).read_bytes())"
    )
    words = [sys.executable, "-c", code, str(hospitals.folder / "A" / "site.yaml"), str(tmp_path / "question")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "RecordFull: " in done.stderr.splitlines()[-1]
    assert "ledger.jsonl: cannot be written (No space left on device); make room" in done.stderr.splitlines()[-1]
    with open(path, "a") as file:
        file.write('{"event": "half a li')  # where even the repair did not fit
    (found,) = [one for one in check_site(hospitals.site("A")) if one.check == "ledger"]
    assert (found.state, "unfinished (20 bytes)" in found.sentence) == ("warning", True)
    assert Site.open(hospitals.site("A")).answer(question)
    assert [line["event"] for line in read_record(path, "A")] == ["key", "repaired", "answered"]


def test_two_processes_may_write_to_one_ledger(tmp_path: Path) -> None:
    path, key = tmp_path / "ledger.jsonl", PartyKey(tmp_path)
    one, other = LedgerFile(path, "A", key), LedgerFile(path, "A", key)
    for number in range(4):
        (one if number % 2 else other).add({"event": str(number)})
    assert [entry["event"] for entry in read(path)] == ["key", "0", "1", "2", "3"]


def test_a_site_with_an_altered_ledger_does_not_go_on(tmp_path: Path) -> None:
    path, key = tmp_path / "ledger.jsonl", PartyKey(tmp_path)
    ledger = LedgerFile(path, "A", key)
    ledger.add({"event": "one"})
    ledger.add({"event": "two"})
    path.write_text(path.read_text().replace("one", "eno"))
    with pytest.raises(CorruptFile, match="line 2 does not follow"):
        LedgerFile(path, "A", key)
    ledger = LedgerFile(tmp_path / "other.jsonl", "A", key)
    with pytest.raises(CorruptFile, match="line 1 does not state A's key"):
        LedgerFile(tmp_path / "other.jsonl", "A", PartyKey(tmp_path / "stranger"))


def test_ledgers_swapped_between_sides_are_not_gone_on_with(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    with pytest.raises(CorruptFile, match="line 1 is of B, not of A"):
        LedgerFile(sites["B"], "A", PartyKey(finished.site("A").workspace))
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


# Every forgery


def forgeries(path: Path, key: PartyKey) -> Iterator[tuple[str, str]]:
    """Every kind of change of every line of a ledger, with hashes as they were, computed anew, and signed by its owner."""
    lines = path.read_text().splitlines()
    entries = [json.loads(line) for line in lines]

    def texts(name: str, changed: list[dict], plain: list[str]) -> Iterator[tuple[str, str]]:
        yield f"{name}, plain", "".join(f"{line}\n" for line in plain)
        yield f"{name}, chained", _chained(changed)
        yield f"{name}, signed by the owner", _chained(changed, key)

    for number, entry in enumerate(entries):
        for field, value in entry.items():
            if field in {"hash", "prev_hash", "signature"}:
                continue
            other = {**entry, field: _other(value)}
            changed = [*entries[:number], other, *entries[number + 1 :]]
            dumped = [*lines[:number], json.dumps(other, sort_keys=True), *lines[number + 1 :]]
            yield from texts(f"line {number + 1}: {field}", changed, dumped)
        dropped = [*entries[:number], *entries[number + 1 :]], [*lines[:number], *lines[number + 1 :]]
        yield from texts(f"line {number + 1} dropped", *dropped)
        if number:
            yield f"cut before line {number + 1}", "".join(f"{line}\n" for line in lines[:number])
        if number + 1 < len(lines):
            order = [*range(number), number + 1, number, *range(number + 2, len(lines))]
            yield from texts(f"line {number + 1} swapped", [entries[n] for n in order], [lines[n] for n in order])
    for number in range(len(lines)):
        more = [*entries, entries[number]], [*lines, lines[number]]
        yield from list(texts(f"line {number + 1} appended", *more))[:2]
    yield "emptied", ""


def _other(value: object) -> object:
    if isinstance(value, dict):
        return {name: _other(one) for name, one in value.items()} or {"x": 1}
    if isinstance(value, list):
        return [*map(_other, value), 1]
    return value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else f"{value}x"


@pytest.mark.slow
@pytest.mark.repeated
def test_no_forgery_of_any_line_passes(finished: Hospitals, tmp_path: Path) -> None:
    """Changed, dropped, swapped, appended or removed lines of all four ledgers, by a stranger or by the party itself.

    Every fourth forgery; all of them where the test is repeated.
    """
    server, sites = _copied(finished, tmp_path)
    shutil.copytree(_run(finished) / "result", tmp_path / "result")
    assert cross_check(server, sites).faults == []
    owners = {"server": _run(finished), **{name: Path(finished.site(name).workspace) for name in "ABC"}}
    passed, made = [], 0
    for name, path in {"server": server, **sites}.items():
        whole = path.read_text()
        for what, text in itertools.islice(forgeries(path, PartyKey(owners[name])), 0, None, EVERY):
            path.write_text(text)
            made += 1
            try:
                if not cross_check(server, sites).faults:
                    passed.append(f"{name} {what}")
            except CorruptFile:
                pass
        path.write_text(whole)
    assert passed == []
    assert made > 523 // EVERY


@pytest.mark.parametrize("file", ["sites.csv", "models.csv", "weights.safetensors"])
def test_a_published_result_that_was_edited_is_named(finished: Hospitals, tmp_path: Path, file: str) -> None:
    server, sites = _copied(finished, tmp_path)
    shutil.copytree(_run(finished) / "result", tmp_path / "result")
    path = tmp_path / "result" / file
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1) + b" ")
    assert any(file in fault and "signed by server" in fault for fault in cross_check(server, sites).faults)


def test_the_server_cannot_publish_another_metric_than_the_sites_told(finished: Hospitals, tmp_path: Path) -> None:
    server, sites = _copied(finished, tmp_path)
    entries = read(server)
    line = next(entry for entry in entries if entry.get("kind") == "finish" and entry["event"] == "answered")
    line["answered"]["C"]["metrics"]["metric"] = 0.93
    server.write_text(_chained(entries, PartyKey(_run(finished))))
    said = [fault for fault in cross_check(server, sites).faults if "metrics of site C are not those" in fault]
    assert said
    assert "signed by server" in said[0]
