"""What a site lets itself be asked: the protocol's questions about the protocol's models, each once.

A server that could ask again and again, with models made for the purpose, would learn of single patients from the
differences of the answers. So a question has one place (run, kind, phase, round), a place has one question for ever, and the
losses that are told are always those of whole sets of inner folds.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, cast

from mil.hospital.config import FederationSpec
from mil.hospital.forms import groups_of, is_subset, outer_folds, slots
from mil.hospital.payload import Message, Mismatch, NotAgreed, PayloadError, content_digest, digest
from mil.training.protocol import candidates

ONCE = ("moments", "train", "watch", "finish")


def core_digest(question: Message) -> str:
    """SHA-256 of what decides a site's own part of the answer: the place, the models and the state that they are of."""
    names = ("run", "spec_sha256", "phase", "round", "slots", "choices", "step", "state_sha256")
    values = {name: question.values[name] for name in names if name in question.values}
    return hashlib.sha256(f"{question.kind}|{json.dumps(values, sort_keys=True)}".encode()).hexdigest()


def place_digest(question: Message) -> str:
    """The same and the sites that are asked: what masks belong to."""
    return hashlib.sha256(f"{core_digest(question)}|{question.values['asked']}".encode()).hexdigest()


def check_run(question: Message, agreed: tuple[str, ...] | None, where: str) -> None:
    """Raise where the hospital has not agreed to the run; a canary tells nothing of anybody, and needs no agreement."""
    run = str(question.values["run"])
    rehearsal = question.kind == "canary" or question.values.get("canary") is True
    if agreed is not None and run not in agreed and not rehearsal:
        raise NotAgreed(
            f"{where}: run {run} is not among those that site.yaml agrees to ({', '.join(agreed)}); refused"
        )


def check_key(stated: str | None, key: object, party: str) -> None:
    """Raise where a party's public key is not the one that the protocol states."""
    if stated is not None and stated != key:
        raise Mismatch(
            f"the key of {party} is {str(key)[:12]}, but the protocol states {stated[:12]}; "
            "put the key that `mil site key` prints into federation.yaml, or restore the workspace's backup"
        )


def check_place(question: Message, protocol: FederationSpec, private: bool, where: str) -> None:
    """Raise unless the question is about a phase and round of the protocol and models of it."""
    values = question.values
    phase = "refit" if question.kind == "finish" else str(values["phase"])
    phases = ("refit",) if private else ("inner", "refit")
    if phase not in phases:
        raise PayloadError(f"{where}: phase {phase!r} is not of the protocol ({', '.join(phases)}); refused")
    choices, tried = cast(list[int], values["choices"]), len(candidates(protocol.experiment))
    wanted = len(outer_folds(protocol)) if phase == "refit" else 0
    if len(choices) != wanted or not all(0 <= choice < tried for choice in choices):
        raise PayloadError(f"{where}: choices {choices} are not {wanted} of the {tried} candidates; refused")
    numbers, expected = cast(list[int], values["slots"]), len(slots(protocol, phase))
    if not is_subset(numbers, expected):
        raise PayloadError(f"{where}: slots {numbers} are not among the {expected} of the protocol; refused")
    if private and question.kind != "canary" and len(numbers) < expected:  # a patient is charged for all folds but one
        raise PayloadError(f"{where}: slots {numbers} leave out folds, which are charged together; refused")
    if phase == "inner" and question.kind != "canary":
        for group in groups_of(protocol, phase):
            if 0 < len(set(group) & set(numbers)) < len(group):
                raise PayloadError(f"{where}: slots {numbers} part the inner folds of an outer one; refused")
    _check_numbers(question, protocol, expected, where)


def _check_numbers(question: Message, protocol: FederationSpec, expected: int, where: str) -> None:
    values, most = question.values, protocol.experiment.training.rounds
    last = most + 1 if question.kind == "watch" else most
    if "round" in values and not 1 <= cast(int, values["round"]) <= last:
        raise PayloadError(f"{where}: round {values['round']} is not among the {most} of the protocol; refused")
    lengths = {
        "used": len(protocol.training_sites),
        "rounds": expected,
    }
    least = {"used": 0, "rounds": 1}
    for name, length in lengths.items():
        if name not in values:
            continue
        numbers = cast(list[int], values[name])
        if len(numbers) != length:
            raise PayloadError(f"{where}: value '{name}' has not {length} numbers; refused")
        if min(numbers) < least[name] or max(numbers) > most:
            raise PayloadError(f"{where}: value '{name}' holds {numbers}, beyond the protocol; refused")


def check_once(question: Message, lines: Iterable[str], protocol: FederationSpec, data: str | None, where: str) -> None:
    """Raise where another question was answered in this one's place, or the same one on other data.

    `lines` are the site's ledger's, `data` the digest of the site's data. The same question about the same data, as after a
    crash, gets the same answer. After one label was corrected, the difference of two answers would be that patient's alone;
    under privacy `data` is none, as each answer has its own noise and is charged.
    """
    if question.kind not in ONCE:
        return
    place = {"event": "answered", "kind": question.kind, **place_of(question)}.items()
    run = json.dumps(question.values["run"])
    for line in lines:
        if run not in line or not place <= (entry := json.loads(line)).items():
            continue
        if data is not None and entry["data_sha256"] != data:
            raise PayloadError(
                f"{where}: the site's data have changed since question '{question.kind}' of run {question.values['run']} was "
                "answered, and the difference of two answers tells of the patients that changed; give the run another name"
            )
        if not _again(question, entry, protocol):
            raise PayloadError(
                f"{where}: another question '{question.kind}' of run {question.values['run']}, phase "
                f"{entry.get('phase')}, round {entry.get('round')} was answered already, and no second one is; give the run "
                "another name"
            )


def _again(question: Message, entry: dict[str, Any], protocol: FederationSpec) -> bool:
    """Whether a question is the one of the ledger's `entry`, of the same sites or, where a round may lose some, of fewer."""
    if "core_sha256" not in entry:
        return entry["asked_sha256"] == content_digest(question)
    now, before = set(cast(list[int], question.values["asked"])), set(entry["asked"])
    same = now == before or (now < before and protocol.rounds.allow_subset)
    return same and entry["core_sha256"] == core_digest(question)


def place_of(question: Message) -> dict[str, Any]:
    """Run, protocol, phase and round, as far as the question has them."""
    return {key: question.values[key] for key in ("run", "spec_sha256", "phase", "round") if key in question.values}


def check_masks(reply: Message, lines: Iterable[str], where: str) -> None:
    """Raise where other numbers were sent under the masks of this answer: the difference of the two would be bare."""
    place = str(reply.values.get("masked_sha256"))
    sent = digest(reply.tensors) if place != "None" else ""
    for line in lines:
        if place in line and (entry := json.loads(line)).get("masked_sha256") == place and entry["sent_sha256"] != sent:
            raise PayloadError(
                f"{where}: the answer has other numbers than before under the same masks, as with other settings in site.yaml or another "
                "version; put these back, or give the run another name"
            )


def head_of(entry: dict[str, Any], lines: Iterable[str]) -> str | None:
    """Hash of the line that holds all of `entry`; none where there is none."""
    event = json.dumps(entry["event"])
    found = (json.loads(line) for line in lines if event in line)
    return next((line["hash"] for line in found if entry.items() <= line.items()), None)


def answered(question: Message, reply: Message) -> dict[str, Any]:
    """What a line of the site's ledger says of a question and its answer: digests and counts."""
    entry = {"event": "answered", "kind": question.kind}
    entry |= {key: question.values[key] for key in ("run", "phase", "round") if key in question.values}
    if "num_bags" in reply.tensors:
        entry["patients"] = [int(number) for number in reply.tensors["num_bags"]]
    if "asked" in question.values:
        entry |= {"core_sha256": core_digest(question), "asked": question.values["asked"]}
    if "masked_sha256" in reply.values:
        entry |= {"masked_sha256": reply.values["masked_sha256"], "sent_sha256": digest(reply.tensors)}
    if question.kind == "join":
        entry["server_key"] = question.values["key"]
    entry |= {"asked_sha256": content_digest(question), "answer_sha256": content_digest(reply)}
    return entry | {"server_ledger": question.values.get("ledger")}
