"""The server's ledger against the sites': what one says it sent, the other must say it received.

A chain alone cannot show that its last lines were cut off, nor that somebody wrote the whole of it anew. Every question
carries the head of the server's ledger and every answer the head of the site's, so each side holds the other to what it
had written by then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mil.training.ledger import FIRST, check_actor, read

Entry = dict[str, Any]
Place = tuple[str, str, str | None, int | None]


@dataclass
class Agreement:
    """What a cross-check found."""

    lines: dict[str, int] = field(default_factory=dict)
    """Lines of every ledger."""
    answers: int = 0
    """Answers that both sides have written down alike."""
    faults: list[str] = field(default_factory=list)
    """Sentences that name the side and the line; empty where all agree."""


def cross_check(server: str | Path, sites: Mapping[str, str | Path]) -> Agreement:
    """Verify every chain and hold them against one another; `CorruptFile` for a chain that does not hold."""
    whole = _read(server, "server")
    runs = {line["run"] for line in whole}
    found = Agreement({"server": len(whole)})
    for site, path in sorted(sites.items()):
        own = _read(path, site)
        found.lines[site] = len(own)
        told = [(number, line["answered"][site]["ledger"]) for number, line in _told_by(whole, site)]
        _heads(found, f"site {site}", own, told)
        asked = [(number, line["server_ledger"]) for number, line in _answers(own) if line["run"] in runs]
        _heads(found, "server", whole, asked)
        _answers_agree(found, site, whole, own)
        _answers_known(found, site, whole, own, runs)
    return found


def _read(path: str | Path, actor: str) -> list[Entry]:
    entries = read(path)
    check_actor(entries, actor, str(path))
    return entries


def _told_by(server: Sequence[Entry], site: str) -> list[tuple[int, Entry]]:
    """The server's lines in which `site` answered, with their numbers."""
    return [(number, line) for number, line in enumerate(server, 1) if site in line.get("answered", {})]


def _answers(own: Sequence[Entry]) -> list[tuple[int, Entry]]:
    return [(number, line) for number, line in enumerate(own, 1) if line["event"] == "answered"]


def _heads(found: Agreement, owner: str, chain: Sequence[Entry], told: Sequence[tuple[int, str | None]]) -> None:
    """Every head of `chain` that the other side has seen must still be in it."""
    hashes = {FIRST} | {line["hash"] for line in chain}
    for number, head in told:
        if head not in hashes:
            found.faults.append(
                f"{owner}: the line {str(head)[:12]}, which the other side had seen by its line {number}, is not in the "
                "ledger any more: lines were cut off, or the ledger was written anew"
            )
            return


def _answers_agree(found: Agreement, site: str, server: Sequence[Entry], own: Sequence[Entry]) -> None:
    """Every answer that the server used stands in the site's ledger with the same question and the same content."""
    sent: dict[Place, list[Entry]] = {}
    for _, line in _answers(own):
        sent.setdefault(_place(line), []).append(line)
    for number, line in _told_by(server, site):
        candidates = sent.get(_place(line), [])
        answer = line["answered"][site]["answer_sha256"]
        if not candidates:
            found.faults.append(f"server line {number}: site {site} has no answer of its own to {_named(line)}")
        elif not any(one["answer_sha256"] == answer for one in candidates):
            found.faults.append(
                f"server line {number}: the answer of site {site} to {_named(line)} is not what it says it sent"
            )
        elif line["kind"] != "join" and not any(one["asked_sha256"] == line["asked_sha256"] for one in candidates):
            found.faults.append(f"server line {number}: site {site} was asked something else for {_named(line)}")
        else:
            found.answers += 1


def _answers_known(found: Agreement, site: str, server: Sequence[Entry], own: Sequence[Entry], runs: set[str]) -> None:
    """Every answer that the site gave in the server's runs has a line of the server's, used or not.

    The last line of the server's ledger can only be missed in this way; no later question carried its head.
    """
    known = {_place(line) for line in server if site in line.get("answered", {}) or site in line.get("missing", {})}
    for number, line in _answers(own):
        if line["run"] in runs and _place(line) not in known:
            found.faults.append(
                f"site {site} line {number}: the server's ledger knows nothing of the answer to {_named(line)}: its last lines "
                "were cut off, or the run is not over (say `mil server run` again)"
            )
            return


def _place(line: Entry) -> Place:
    """What an answer is about; a join is of no round."""
    if line["kind"] == "join":
        return line["run"], "join", None, None
    return (
        line["run"],
        line["kind"],
        line.get("phase"),
        line.get("round") if line["kind"] in {"train", "watch", "open"} else None,
    )


def _named(line: Entry) -> str:
    return f"'{line['kind']}' of run {line['run']}, phase {line.get('phase')}, round {line.get('round')}"
