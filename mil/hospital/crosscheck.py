"""The server's ledger against the sites': every line that one party wrote about another must agree with the other's.

A chain with signatures cannot show that its last lines were removed, nor that its owner wrote all of it anew. Every question
carries the head of the server's ledger and every answer the head of the site's, and at the end of a run both exchange the
heads of their complete ledgers. So each party is held to what it had written by then.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mil.files import sha256_of
from mil.hospital.keys import is_signed
from mil.hospital.messages import FINISHED
from mil.hospital.record import author, read_record
from mil.hospital.results import parts_of, sites_table, totals_of
from mil.training.ledger import FIRST

Entry = dict[str, Any]
Position = tuple[str, str, str | None, int | None]
CLOSING = {"actor", "event", "run", "heads", "prev_hash", "hash", "signature"}
"""Keys of the server's last line of a run; it holds no time, so that nothing in it is known to the server alone."""


@dataclass
class Agreement:
    """What a cross-check found."""

    lines: dict[str, int] = field(default_factory=dict)
    """Number of lines of every ledger."""
    answers: int = 0
    """Answers that both sides have written down alike."""
    faults: list[str] = field(default_factory=list)
    """Sentences that name the ledger, its line and who signed it; empty where all agree."""
    absent: list[str] = field(default_factory=list)
    """What there was nothing of to compare."""


def cross_check(
    server: str | Path, sites: Mapping[str, str | Path], keys: Mapping[str, str | None] | None = None
) -> Agreement:
    """Compare all ledgers; `CorruptFile` for a ledger whose chain or signatures do not hold.

    `keys`: the public keys that the protocol states, by party (`server` or a site).
    """
    keys = keys or {}
    whole = read_record(server, "server", keys.get("server"))
    runs = {line["run"] for line in whole if "run" in line}
    agreement = Agreement({"server": len(whole)})
    results: dict[str, Entry | None] = {}
    faults = agreement.faults
    faults += [] if runs else ["server: its ledger names no run: lines were removed"]
    for site, path in sorted(sites.items()):
        ledger = read_record(path, site, keys.get(site))
        agreement.lines[site] = len(ledger)
        faults += _keys(site, whole, ledger)
        faults += [*_site_heads(site, whole, ledger), *_server_heads(site, whole, ledger, runs)]
        agreeing, wrong = _answers_agree(site, whole, ledger)
        agreement.answers += agreeing
        faults += [*wrong, *_answers_known(site, whole, ledger, runs), *_results(site, whole, ledger, runs)]
        faults += _closed(site, whole, ledger, runs)
        results[site] = next(
            (line for line in reversed(ledger) if line["event"] == "result" and line["run"] in runs), None
        )
    result = Path(server).parent / "result"
    faults += [*_pooled(whole, results), *_closing_lines(whole), *_published(whole, result)]
    others = sorted({site for line in whole for site in line.get("answered", {})} - set(sites))
    agreement.absent += [f"the ledgers of {', '.join(others)}"] if others else []
    if any("published" in line for line in whole) and not result.is_dir():
        agreement.absent.append(f"the files of a result, which is not beside {server}")
    return agreement


def published(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a result, by its name in the folder; the copy of the ledger is left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "ledger.jsonl")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def _answered_by(server: Sequence[Entry], site: str) -> list[tuple[int, Entry]]:
    """The server's lines in which `site` answered, with their numbers."""
    return [(number, line) for number, line in enumerate(server, 1) if site in line.get("answered", {})]


def _answers(ledger: Sequence[Entry]) -> list[tuple[int, Entry]]:
    return [(number, line) for number, line in enumerate(ledger, 1) if line["event"] in {"answered", "closed"}]


def _keys(site: str, server: Sequence[Entry], ledger: Sequence[Entry]) -> Iterator[str]:
    """Each party signed with the key that the other one noted when they met."""
    for number, line in _answered_by(server, site):
        if line["answered"][site].get("key", author(ledger)[1]) != author(ledger)[1]:
            yield f"server line {number}, signed by server: site {site} had another key than its ledger is signed with"
    for number, line in enumerate(ledger, 1):
        if line.get("server_key", author(server)[1]) != author(server)[1] and _run_of(line, server):
            yield f"site {site} line {number}, signed by {site}: the server had another key than its ledger is signed with"


def _run_of(line: Entry, server: Sequence[Entry]) -> bool:
    return any(other.get("run") == line.get("run") for other in server)


def _site_heads(site: str, server: Sequence[Entry], ledger: Sequence[Entry]) -> Iterator[str]:
    """Every head of a site's ledger that the server was sent must still be in it. The site has signed each with its answer."""
    hashes = {FIRST} | {line["hash"] for line in ledger}
    for number, line in _answered_by(server, site):
        answer = line["answered"][site]
        if answer["ledger"] in hashes:
            continue
        head = f"the line {answer['ledger'][:12]} of site {site}"
        if is_signed(
            f"{answer['answer_sha256']}|{answer['ledger']}".encode(), answer.get("signature"), author(ledger)[1]
        ):
            yield (
                f"site {site}: {head}, which its answer in server line {number} states, is not in the ledger that {site} signed: "
                "lines were removed, or the ledger was written anew"
            )
        else:
            yield f"server line {number}, signed by server: {head}, which it states, is not in its ledger and was not signed by {site}"
        return


def _server_heads(site: str, server: Sequence[Entry], ledger: Sequence[Entry], runs: set[str]) -> Iterator[str]:
    """Every head of the server's ledger that a site was sent must still be in it; the server signs no question."""
    hashes = {FIRST} | {line["hash"] for line in server}
    for number, line in _answers(ledger):
        if line["run"] in runs and line["server_ledger"] not in hashes:
            yield (
                f"server: the line {line['server_ledger'][:12]}, which site {site} line {number}, signed by {site}, states, is not in "
                f"the ledger that server signed: lines were removed, the ledger was written anew, or the line of site {site} is false"
            )
            return


def _answers_agree(site: str, server: Sequence[Entry], ledger: Sequence[Entry]) -> tuple[int, list[str]]:
    """Every answer that the server used stands in the site's ledger with the same question and the same content."""
    sent: dict[Position, list[Entry]] = {}
    for line in ledger:
        if line["event"] != "answered":
            continue
        sent.setdefault(_position(line), []).append(line)
    agreeing, faults = 0, []
    for number, line in _answered_by(server, site):
        candidates = sent.get(_position(line), [])
        answer, where = line["answered"][site], f"server line {number}, signed by server"
        same = [entry for entry in candidates if entry["answer_sha256"] == answer["answer_sha256"]]
        if not candidates:
            faults.append(f"{where}: site {site} has no answer to {_named(line)}")
        elif not same:
            faults.append(f"{where}: the answer of site {site} to {_named(line)} is not what it says it sent")
        elif line["kind"] != "join" and not any(entry["asked_sha256"] == line["asked_sha256"] for entry in same):
            faults.append(f"{where}: site {site} was asked something else for {_named(line)}")
        else:
            agreeing += 1
    return agreeing, faults


def _answers_known(site: str, server: Sequence[Entry], ledger: Sequence[Entry], runs: set[str]) -> Iterator[str]:
    """Every answer that the site gave in the server's runs has a line of the server's, used or not."""
    known = {_position(line) for line in server if site in line.get("answered", {}) or site in line.get("missing", {})}
    for number, line in _answers(ledger):
        if line["event"] == "answered" and line["run"] in runs and _position(line) not in known:
            yield (
                f"site {site} line {number}, signed by {site}: the server's ledger knows nothing of the answer to "
                f"{_named(line)}: its last lines were removed, or the run is not over (`mil server run` again)"
            )
            return


def _results(site: str, server: Sequence[Entry], ledger: Sequence[Entry], runs: set[str]) -> Iterator[str]:
    """The metrics of every `finish` are those that the site wrote down itself."""
    stated = [line for line in ledger if line["event"] == "result" and line["run"] in runs]
    for number, line in _answered_by(server, site):
        metrics = line["answered"][site].get("metrics")
        if metrics and not any({key: entry[key] for key in FINISHED} == metrics for entry in stated):
            yield f"server line {number}, signed by server: the metrics of site {site} are not those in its own ledger"


def _pooled(server: Sequence[Entry], results: Mapping[str, Entry | None]) -> Iterator[str]:
    """The sums of metrics are those of the training sites' own ledgers, where all of these are there."""
    for number, line in enumerate(server, 1):
        if "pooled" not in line:
            continue
        trained = [site for site in line.get("answered", {}) if line.get("roles", {}).get(site) == "train"]
        parts = [parts_of(result) for site in trained if (result := results.get(site)) is not None]
        if len(parts) == len(trained) and not (parts and line["pooled"] == totals_of(parts)):
            yield f"server line {number}, signed by server: the sums of metrics are not those of the sites' own ledgers"


def _closed(site: str, server: Sequence[Entry], ledger: Sequence[Entry], runs: set[str]) -> Iterator[str]:
    """The last exchange: each side's closing line names the head of the other's complete ledger."""
    closing = {line["prev_hash"]: line for line in server if line["event"] == "closed"}
    for number, line in enumerate(ledger, 1):
        if line["event"] != "closed" or line["run"] not in runs:
            continue
        if not closing:
            yield f"server: its closing line is missing, which site {site} line {number} (signed by {site}) answered"
        elif line["server_ledger"] in closing and closing[line["server_ledger"]]["heads"].get(site) != line["hash"]:
            yield f"site {site} line {number}, signed by {site}: is not the closing line that the server states, or the server's is false"
    heads = {line["hash"] for line in ledger}
    for line in closing.values():
        if line["heads"].get(site) not in heads:
            yield (
                f"site {site}: the closing line {str(line['heads'].get(site))[:12]} that the server received is not in the ledger "
                f"that {site} signed: lines were removed, the ledger was written anew, or the server's closing line is false"
            )


def _closing_lines(server: Sequence[Entry]) -> Iterator[str]:
    for number, line in enumerate(server, 1):
        if line["event"] != "closed":
            continue
        run = {other["run"] for other in server if "run" in other}
        answered = {site for other in server if other.get("kind") == "finish" for site in other.get("answered", {})}
        if set(line) != CLOSING or {line["run"]} != run or set(line["heads"]) != answered or number != len(server):
            yield f"server line {number}, signed by server: is not a closing line as the protocol has it"


def _published(server: Sequence[Entry], folder: Path) -> Iterator[str]:
    """The files of the result are those of the ledger's `finish` line, and its table is what the sites' metrics say."""
    finished = [(number, line) for number, line in enumerate(server, 1) if "published" in line]
    if not finished or not folder.is_dir():
        return
    number, line = finished[-1]
    now = published(folder)
    for name in sorted({*line["published"], *now}):
        if now.get(name) != line["published"].get(name):
            yield f"{folder / name}: is not a file that server line {number}, signed by server, published"
            return
    metrics, pooled = (
        {site: answer["metrics"] for site, answer in line.get("answered", {}).items() if answer.get("metrics")},
        line.get("pooled"),
    )
    if not set(metrics) <= set(line.get("roles", {})):
        yield f"server line {number}, signed by server: states no role of {', '.join(set(metrics) - set(line.get('roles', {})))}"
    elif (metrics or pooled) and not _same_table(
        folder / "sites.csv", sites_table(line.get("endpoint_kind", ""), line.get("roles", {}), metrics, pooled)
    ):
        yield f"{folder / 'sites.csv'}: does not follow from the sites' metrics in server line {number}"


def _same_table(path: Path, expected: pd.DataFrame) -> bool:
    return path.is_file() and pd.read_csv(path).equals(pd.read_csv(io.StringIO(expected.to_csv(index=False))))


def _position(line: Entry) -> Position:
    """What an answer is about; a join is of no round."""
    kind = str(line["kind"])
    if kind == "join":
        return line["run"], "join", None, None
    return line["run"], kind, line.get("phase"), line.get("round") if kind in {"train", "watch"} else None


def _named(line: Entry) -> str:
    return f"'{line['kind']}' of run {line['run']}, phase {line.get('phase')}, round {line.get('round')}"
