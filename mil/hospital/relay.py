"""A hospital's copy of a run's state: it follows the other hospitals' signed answers and takes no models from the coordinator.

Every question carries the training sites' answers to the last one, as they were signed. A site checks them, computes the next
state as all others do, and works only if the digest is the one that the question states. So weights that somebody made up
have no way in. A site that did not compute the last state (an external site, or one that was away) takes a snapshot of it only
with the signatures of training sites that computed it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mil.errors import MilError
from mil.hospital import state_files, sums
from mil.hospital.blobs import Blob, Lazy, Stored, as_part, chunks_of, part_of, read, size_of
from mil.hospital.claims import check_claims
from mil.hospital.config import FederationSpec
from mil.hospital.forms import RELAY, SNAPSHOT, Forms, groups_of
from mil.hospital.keys import is_signed
from mil.hospital.lines import Metrics
from mil.hospital.messages import AnyAnswer, Asked, AskedFinish, AskedRound, Followed, FollowedAnswer, JoinAnswer
from mil.hospital.payload import Message, PayloadError, Received, check, content_digest, parsed
from mil.hospital.questions import position_digest
from mil.hospital.stages import Stages

About = Mapping[str, Any]
KEPT = "relay:"
"""Prefix of the relay's tensors in the server's checkpoint."""


@dataclass(frozen=True)
class Posed:
    """A question about models, and the models and places that belong to it, as they were sent or as computed here."""

    values: Asked
    models: Mapping[str, Tensor]
    used: Sequence[int] = ()
    """Of each training site, the round of its last answer that was used."""
    rounds: Sequence[int] = ()
    """Of every final model."""

    @classmethod
    def sent(cls, values: Asked, models: Mapping[str, Tensor]) -> "Posed":
        """Of a question that carries its models."""
        used = values.used if isinstance(values, AskedRound | AskedFinish) else ()
        return cls(values, models, used, values.rounds if isinstance(values, AskedFinish) else ())


def signed_content(message: Message | Received) -> bytes:
    """What a site signs of an answer: all of it, and the head of its ledger."""
    return f"{content_digest(message)}|{message.stated.get('ledger')}".encode()


def carried(answers: Mapping[str, Blob], snapshot: Blob, prefix: str = "") -> Lazy:
    """The last answers by site, and a snapshot of the state they belong to (or nothing), as tensors of a question."""
    parts = {**{RELAY + site: blob for site, blob in answers.items()}, SNAPSHOT: snapshot}
    return Lazy({prefix + name: as_part(blob) for name, blob in parts.items()})


def entry_of(message: Message[AnyAnswer], blob: Blob) -> dict[str, object]:
    """What the ledger keeps of an answer: digests, counts, losses, bytes; never a state."""
    values = message.values
    entry: dict[str, object] = {"answer_sha256": content_digest(message), "bytes": size_of(blob)}
    entry |= {"ledger": values.ledger, "signature": values.signature}
    if isinstance(values, JoinAnswer):
        entry["key"] = values.key
    if isinstance(values, Metrics) and "metrics" not in message.tensors:  # those are in the sums alone
        entry["metrics"] = values.metrics
    masked = isinstance(values, FollowedAnswer)
    for name in ("num_bags",) if masked else ("num_bags", "train_loss", "watched_error", "watched_count"):
        if name in message.tensors:
            entry[name] = message.tensors[name].tolist()
    return entry


class Relayed:
    """What the server keeps of the last step: the training sites' answers, and the state that they belong to."""

    def __init__(self, answers: Mapping[str, Blob], before: Blob) -> None:
        self.answers, self.before = dict(answers), before

    def tensors(self) -> Lazy:
        """For the checkpoint, which holds the next state too."""
        return carried(self.answers, self.before, KEPT)

    @classmethod
    def load(cls, path: Path) -> "Relayed":
        """As a checkpoint holds it, the answers unread; nothing where there is none."""
        parts = read(path).parts if path.exists() else {}
        kept = {name.removeprefix(KEPT): part for name, part in parts.items() if isinstance(part, Stored)}
        answers = {name.removeprefix(RELAY): part for name, part in kept.items() if name.startswith(RELAY)}
        return cls(answers, kept.get(SNAPSHOT, b""))


def asked_sites(protocol: FederationSpec, numbers: list[int]) -> list[str]:
    """Names of the training sites with these numbers; `PayloadError` where they are none, or not in order."""
    sites = protocol.training_sites
    if not numbers or numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < len(sites):
        raise PayloadError(f"sites {numbers} are not among the {len(sites)} training sites; refused")
    return [sites[number] for number in numbers]


class Replica:
    """The state of one run as this site computed it; on disk after every step."""

    def __init__(self, protocol: FederationSpec, folder: Path, width: int, about: About, canary: bool = False) -> None:
        self.protocol, self.path, self.width, self.about = protocol, folder / "replica.safetensors", width, about
        self.stages = state_files.load(protocol, self.path, canary)
        self.canary = canary

    def follow(self, question: Message[Followed], where: str) -> None:
        """Bring the state to the question's step; `PayloadError` where the state here is another than the question's."""
        step, stated = question.values.step, question.stated
        if self.stages.progress.stage == "new" and step == 1:
            self.stages.join(self.width, self.about)
        if self.stages.progress.step != step:
            attest = self.stages.progress.step != step - 1
            before = self._snapshot(question, step - 1, where) if attest else self.stages
            self._check_signed(question, before, where, attest)
            self.stages = before
            self.stages.take(self._checked(question, where))
        if self.stages.sha256 != question.values.state_sha256:
            raise PayloadError(
                f"{where}: its models are not those that follow from the protocol and the hospitals' answers; refused"
            )
        progress = self.stages.progress
        expected = {
            "phase": progress.phase,
            "slots": self.stages.live,
            "choices": progress.choices,
            "round": progress.round,
        }
        for name, value in expected.items():
            if stated.get(name, value) != value or question.kind != progress.stage:
                raise PayloadError(
                    f"{where}: '{question.kind}', {name} {stated.get(name)} is not what comes next; refused"
                )
        if Forms(self.stages.shapes).shapes.summed(question.kind):
            self._check_enough(asked_sites(self.protocol, question.values.asked), where)
        state_files.save(self.stages, self.path)

    def _check_enough(self, sites: Sequence[str], where: str) -> None:
        """Raise unless the protocol wants a round of these sites: alone, a site's masked answer would be its update."""
        drawn, protocol = self.stages.drawn, self.protocol
        required = {site for site in protocol.required_sites if site in drawn}
        least = max(2, min(protocol.minimum_sites, len(drawn)))
        if not required <= set(sites) <= set(drawn) or len(sites) < least:
            raise PayloadError(
                f"{where}: {', '.join(sites)} are not the sites that the protocol wants in a round; refused"
            )

    def complete(self, question: Message[Followed]) -> Posed:
        """The question with the models, buffers and places that belong to it, as computed here."""
        progress = self.stages.progress
        used = [progress.used.get(site, 0) for site in self.protocol.training_sites]
        return Posed(question.values, self.stages.models(), used, progress.rounds)

    def integers(self, question: Message[Followed], reply: Message[AnyAnswer], site: str) -> Mapping[str, Tensor]:
        """A site's answer as the integers that are to be masked and summed."""
        if question.kind == "moments":
            return sums.of_moments(reply.tensors)
        if question.kind == "finish":  # integers already
            return dict(reply.tensors)
        if question.kind == "watch":
            return sums.of_errors(reply.tensors)
        live, shapes = self.stages.live, self.stages.shapes
        assert shapes is not None
        asked = asked_sites(self.protocol, question.values.asked)

        def share(present: Sequence[str]) -> Tensor:
            return torch.tensor([self.stages.share(site, number, present) for number in live], dtype=torch.float64)

        models = {name: value for name, value in self.stages.models().items() if name in self.stages.state}
        everyone = [member for member in self.protocol.training_sites if member in self.stages.progress.num_bags]
        shares, fixed = (share(asked), share(everyone)), self.stages.strategy.fixed
        return sums.of_round(reply.tensors, models, list(shapes.exchanged), *shares, fixed)

    def _snapshot(self, question: Message[Followed], step: int, where: str) -> Stages:
        """The state before the answers that the question carries, still to be attested by them."""
        snapshot = part_of(question.tensors, SNAPSHOT)
        if not snapshot.shape[0]:
            raise PayloadError(
                f"{where}: this site has not computed the state before step {step + 1}, and no snapshot came"
            )
        try:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "snapshot"
                with open(path, "wb") as file:
                    for chunk in chunks_of(snapshot):
                        file.write(chunk)
                stages = state_files.load(self.protocol, path, self.canary)
        except MilError as error:
            raise PayloadError(f"{where}: its snapshot is not a state of this protocol; refused") from error
        if stages.progress.step != step or stages.progress.width != self.width:
            raise PayloadError(f"{where}: its snapshot is of another step or of other features; refused")
        stages.progress.patients, stages.progress.data = {}, {}  # in no digest: the coordinator's word alone
        return stages

    def _check_signed(self, question: Message[Followed], before: Stages, where: str, attest: bool) -> None:
        """Raise unless each answer that the question carries is signed by its site and enough of them are of the state `before`.

        Nothing else of the answers, nor of a snapshot, is looked at before that.
        """
        sites, agreeing = asked_sites(self.protocol, question.values.relayed), 0
        for site in sites:
            message = _relayed(question, site, where)
            key, signature = str(self.protocol.sites[site].key), message.stated.get("signature")
            if message.stated.get("site") != site or not is_signed(signed_content(message), signature, key):
                raise PayloadError(f"{where}: the answer of {site} is not signed by {site}; refused")
            agreeing += message.stated.get("state_sha256") == before.sha256
        needed = min(self.protocol.rounds.signatures or len(sites), len(sites)) if attest else len(sites)
        if agreeing < needed:
            raise PayloadError(
                f"{where}: {agreeing} of {needed} sites signed the state that the answers belong to; refused"
            )

    def _checked(self, question: Message[Followed], where: str) -> dict[str, Message[AnyAnswer]]:
        """The answers that the question carries, what is masked added up; `PayloadError` unless they are all those to the last
        question of this run, in numbers that can be true.
        """
        sites, kind, now = (
            asked_sites(self.protocol, question.values.relayed),
            self.stages.progress.stage,
            self.stages,
        )
        forms = Forms(now.shapes)
        form = forms.answer(kind, len(now.live), len(groups_of(self.protocol, now.progress.phase, kind)))
        answers = {}
        for site in sites:
            message = check(_relayed(question, site, where), form, f"{where}, answer of {site}")
            assert isinstance(message.values, FollowedAnswer)
            if asked_sites(self.protocol, message.values.asked) != sites:
                raise PayloadError(
                    f"{where}: without some of the sites that were asked, the masks do not cancel; refused"
                )
            if message.values.masked_sha256 != self._last_position(question, message.values.asked):
                raise PayloadError(f"{where}: the answer of {site} is to another question, or of another run; refused")
            check_claims(self.protocol, now, site, message)
            answers[site] = message
        self._check_enough(sites, where)
        return answers

    def _last_position(self, question: Message[Followed], asked: list[int]) -> str:
        """`position_digest` of the question to which the answers belong: of this run, about the state as it stands here."""
        now, progress = self.stages, self.stages.progress
        values = {"run": question.values.run, "spec_sha256": self.protocol.sha256, "phase": progress.phase}
        values |= {"slots": now.live, "choices": progress.choices, "step": progress.step, "state_sha256": now.sha256}
        numbered = {"round": progress.round} if progress.stage in {"train", "watch"} else {}
        return position_digest(progress.stage, {**values, **numbered, "asked": asked})


def _relayed(question: Message[Followed], site: str, where: str) -> Received:
    """A site's answer that the question carries."""
    part = part_of(question.tensors, RELAY + site)
    return parsed(part if isinstance(part, Stored) else b"".join(chunks_of(part)), f"{where}, answer of {site}")
