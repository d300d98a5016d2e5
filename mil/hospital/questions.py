"""What a site lets itself be asked: the protocol's questions about the protocol's models, each once.

A server that could ask again and again, with models made for the purpose, would learn of single patients from the
differences of the answers. So a question has one place (run, kind, phase, round), a place has one question for ever, and the
losses that are told are always those of whole sets of inner folds.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from mil.hospital.config import FederationSpec
from mil.hospital.forms import groups_of, is_subset, outer_folds, slots
from mil.hospital.messages import (
    AnyAnswer,
    Asked,
    AskedFinish,
    AskedRound,
    Followed,
    FollowedAnswer,
    FollowedRound,
    JoinQuestion,
    Question,
)
from mil.hospital.payload import Message, Mismatch, NotAgreed, PayloadError, content_digest, digest
from mil.training.protocol import candidates

ONCE = ("moments", "train", "watch", "finish")


def core_digest(kind: str, stated: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a site's own part of the answer: the place, the models and the state that they are of."""
    values = _stated(stated, "run", "spec_sha256", "phase", "round", "slots", "choices", "step", "state_sha256")
    return hashlib.sha256(f"{kind}|{json.dumps(values, sort_keys=True)}".encode()).hexdigest()


def position_digest(kind: str, stated: Mapping[str, Any]) -> str:
    """The same and the sites that are asked: what masks belong to."""
    return hashlib.sha256(f"{core_digest(kind, stated)}|{stated['asked']}".encode()).hexdigest()


def _stated(stated: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Of a question's values those with these names, as far as it has them."""
    return {name: stated[name] for name in names if name in stated}


def check_run(question: Question, agreed: tuple[str, ...] | None, where: str) -> None:
    """Raise where the hospital has not agreed to the run; a canary tells nothing of anybody, and needs no agreement."""
    rehearsal = question.canary if isinstance(question, JoinQuestion) else question.kind == "canary"
    if agreed is not None and question.run not in agreed and not rehearsal:
        raise NotAgreed(
            f"{where}: run {question.run} is not among those that site.yaml agrees to ({', '.join(agreed)}); refused"
        )


def check_key(stated: str | None, key: str, party: str) -> None:
    """Raise where a party's public key is not the one that the protocol states."""
    if stated is not None and stated != key:
        raise Mismatch(
            f"the key of {party} is {key[:12]}, but the protocol states {stated[:12]}; "
            "put the key that `mil site key` prints into federation.yaml, or restore the workspace's backup"
        )


def check_position(question: Asked, protocol: FederationSpec, private: bool, where: str) -> None:
    """Raise unless the question is about a phase and round of the protocol and models of it."""
    phase, phases = question.phase, ("refit",) if private or question.kind == "finish" else ("inner", "refit")
    if phase not in phases:
        raise PayloadError(f"{where}: phase {phase!r} is not of the protocol ({', '.join(phases)}); refused")
    choices, tried = question.choices, len(candidates(protocol.experiment))
    wanted = len(outer_folds(protocol)) if phase == "refit" else 0
    if len(choices) != wanted or not all(0 <= choice < tried for choice in choices):
        raise PayloadError(f"{where}: choices {choices} are not {wanted} of the {tried} candidates; refused")
    numbers, expected = question.slots, len(slots(protocol, phase))
    if not is_subset(numbers, expected):
        raise PayloadError(f"{where}: slots {numbers} are not among the {expected} of the protocol; refused")
    if private and question.kind != "canary" and len(numbers) < expected:  # a patient is charged for all folds but one
        raise PayloadError(f"{where}: slots {numbers} leave out folds, which are charged together; refused")
    if phase == "inner" and question.kind != "canary":
        for group in groups_of(protocol, phase):
            if 0 < len(set(group) & set(numbers)) < len(group):
                raise PayloadError(f"{where}: slots {numbers} part the inner folds of an outer one; refused")
    most = protocol.experiment.training.rounds
    if isinstance(question, AskedRound | FollowedRound):
        last = most + 1 if question.kind == "watch" else most
        if not 1 <= question.round <= last:
            raise PayloadError(f"{where}: round {question.round} is not among the {most} of the protocol; refused")
    if isinstance(question, AskedRound | AskedFinish):
        _check_numbers("used", question.used, len(protocol.training_sites), 0, most, where)
    if isinstance(question, AskedFinish):
        _check_numbers("rounds", question.rounds, expected, 1, most, where)


def _check_numbers(name: str, numbers: list[int], length: int, least: int, most: int, where: str) -> None:
    if len(numbers) != length:
        raise PayloadError(f"{where}: value '{name}' has not {length} numbers; refused")
    if min(numbers) < least or max(numbers) > most:
        raise PayloadError(f"{where}: value '{name}' holds {numbers}, beyond the protocol; refused")


def check_once(
    question: Message[Asked], lines: Iterable[str], protocol: FederationSpec, data: str | None, where: str
) -> None:
    """Raise where another question was answered in this one's place, or the same one on other data.

    `lines` are the site's ledger's, `data` the digest of the site's data. The same question about the same data, as after a
    crash, gets the same answer. After one label was corrected, the difference of two answers would be that patient's alone;
    under privacy `data` is none, as each answer has its own noise and is charged.
    """
    if question.kind not in ONCE:
        return
    key = _stated(question.stated, "run", "phase", "round")
    key = {"event": "answered", "kind": question.kind, **key}.items()
    run = question.values.run
    quoted = json.dumps(run)
    for line in lines:
        if quoted not in line or not key <= (entry := json.loads(line)).items():
            continue
        if data is not None and entry["data_sha256"] != data:
            raise PayloadError(
                f"{where}: the site's data have changed since question '{question.kind}' of run {run} was "
                "answered, and the difference of two answers tells of the patients that changed; give the run another name"
            )
        if not _again(question, entry, protocol):
            raise PayloadError(
                f"{where}: another question '{question.kind}' of run {run}, phase "
                f"{entry.get('phase')}, round {entry.get('round')} was answered already, and no second one is; give the run "
                "another name"
            )


def _again(question: Message[Asked], entry: dict[str, Any], protocol: FederationSpec) -> bool:
    """Whether a question is the one of the ledger's `entry`, of the same sites or, where a round may lose some, of fewer."""
    if "core_sha256" not in entry:
        return entry["asked_sha256"] == content_digest(question)
    if not isinstance(question.values, Followed):
        return False
    now, before = set(question.values.asked), set(entry["asked"])
    same = now == before or (now < before and protocol.rounds.allow_subset)
    return same and entry["core_sha256"] == core_digest(question.kind, question.stated)


def check_masks(reply: Message[AnyAnswer], lines: Iterable[str], where: str) -> None:
    """Raise where other numbers were sent under the masks of this answer: the difference of the two would be bare."""
    if not isinstance(reply.values, FollowedAnswer):
        return
    masks, sent = reply.values.masked_sha256, digest(reply.tensors)
    for line in lines:
        if masks in line and (entry := json.loads(line)).get("masked_sha256") == masks and entry["sent_sha256"] != sent:
            raise PayloadError(
                f"{where}: the answer has other numbers than before under the same masks, as with other settings in site.yaml or another "
                "version; put these back, or give the run another name"
            )


def head_of(entry: dict[str, Any], lines: Iterable[str]) -> str | None:
    """Hash of the line that holds all of `entry`; none where there is none."""
    event = json.dumps(entry["event"])
    entries = (json.loads(line) for line in lines if event in line)
    return next((line["hash"] for line in entries if entry.items() <= line.items()), None)


def answered(question: Message[Question], reply: Message[AnyAnswer]) -> dict[str, Any]:
    """What a line of the site's ledger says of a question and its answer: digests and counts."""
    stated, values = question.stated, question.values
    entry = {"event": "answered", "kind": question.kind, **_stated(stated, "run", "phase", "round")}
    if "num_bags" in reply.tensors:
        entry["patients"] = [int(number) for number in reply.tensors["num_bags"]]
    if isinstance(values, Followed):
        entry |= {"core_sha256": core_digest(question.kind, stated), "asked": values.asked}
    if isinstance(reply.values, FollowedAnswer):
        entry |= {"masked_sha256": reply.values.masked_sha256, "sent_sha256": digest(reply.tensors)}
    if isinstance(values, JoinQuestion):
        entry["server_key"] = values.key
    entry |= {"asked_sha256": content_digest(question), "answer_sha256": content_digest(reply)}
    return entry | {"server_ledger": values.ledger}
