"""A hospital's copy of a run's state: it follows the other hospitals' signed answers and takes no models from the coordinator.

Every question carries the training sites' answers to the last one, as they were signed. A site checks them, computes the next
state as all others do, and works only if the digest is the one that the question states. So weights that somebody made up
have no way in. A site that did not compute the last state (an external site, or one that was away) takes a snapshot of it only
with the signatures of training sites that computed it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from mil.hospital import state_files, sums
from mil.hospital.config import FederationSpec
from mil.hospital.forms import RELAY, SNAPSHOT, Forms, groups_of
from mil.hospital.keys import is_signed
from mil.hospital.payload import Message, PayloadError, content_digest, unpack
from mil.hospital.stages import Stages

About = Mapping[str, Any]
SUMMED = ("moments", "train", "watch")
"""Kinds of questions whose answers are masked: without one of the sites that were asked, the masks do not cancel."""


def signed_content(message: Message) -> bytes:
    """What a site signs of an answer: all of it, and the head of its ledger."""
    return f"{content_digest(message)}|{message.values['ledger']}".encode()


def carried(answers: Mapping[str, bytes], snapshot: bytes) -> dict[str, Tensor]:
    """The last answers by site, and a snapshot of the state they belong to (or nothing), as tensors of a question."""
    parts = {**{RELAY + site: blob for site, blob in answers.items()}, SNAPSHOT: snapshot}
    return {
        name: torch.frombuffer(bytearray(blob), dtype=torch.uint8) if blob else torch.zeros(0, dtype=torch.uint8)
        for name, blob in parts.items()
    }


class Relayed:
    """What the server keeps of the last step: the training sites' answers, and the state that they belong to."""

    def __init__(self, answers: Mapping[str, bytes], before: bytes) -> None:
        self.answers, self.before = dict(answers), before

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint, which holds the next state too."""
        return {f"relay:{name}": value for name, value in carried(self.answers, self.before).items()}

    @classmethod
    def load(cls, path: Path) -> "Relayed":
        """As a checkpoint holds it; nothing where there is none."""
        if not path.exists():
            return cls({}, b"")
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith("relay:")]  # noqa: SIM118
            parts = {name.removeprefix("relay:"): file.get_tensor(name).numpy().tobytes() for name in names}
        before = parts.pop(SNAPSHOT, b"")
        return cls({name.removeprefix(RELAY): blob for name, blob in parts.items()}, before)


def asked_sites(protocol: FederationSpec, numbers: object) -> list[str]:
    """Names of the training sites with these numbers; `PayloadError` where they are none, or not in order."""
    sites, found = protocol.training_sites, cast(list[int], numbers)
    if not found or found != sorted(set(found)) or not 0 <= found[0] <= found[-1] < len(sites):
        raise PayloadError(f"sites {found} are not among the {len(sites)} training sites; refused")
    return [sites[number] for number in found]


class Replica:
    """The state of one run as this site computed it; on disk after every step."""

    def __init__(self, protocol: FederationSpec, folder: Path, width: int, about: About, canary: bool = False) -> None:
        self.protocol, self.path, self.width, self.about = protocol, folder / "replica.safetensors", width, about
        self.stages = state_files.load(protocol, self.path, canary)
        self.canary = canary

    def follow(self, question: Message, where: str) -> None:
        """Bring the state to the question's step; `PayloadError` where the state here is another than the question's."""
        step = cast(int, question.values["step"])
        if self.stages.progress.stage == "new" and step == 1:
            self.stages.join(self.width, self.about)
        if self.stages.progress.step != step:
            attested = self.stages.progress.step != step - 1
            if attested:
                self.stages = self._snapshot(question, step - 1, where)
            found = self._answers(question, where, attested)
            self.stages.take(found)
        if self.stages.sha256 != question.values["state_sha256"]:
            raise PayloadError(
                f"{where}: its models are not those that follow from the protocol and the hospitals' answers; refused"
            )
        progress = self.stages.progress
        stated = {
            "phase": progress.phase,
            "slots": self.stages.live,
            "choices": progress.choices,
            "round": progress.round,
        }
        for name, own in stated.items():
            if question.values.get(name, own) != own or question.kind != progress.stage:
                raise PayloadError(
                    f"{where}: '{question.kind}', {name} {question.values.get(name)} is not what comes next; refused"
                )
        if question.kind in SUMMED:
            self._check_enough(asked_sites(self.protocol, question.values["asked"]), where)
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

    def complete(self, question: Message) -> Message:
        """The question with the models, buffers and places that belong to it, as computed here."""
        progress = self.stages.progress
        used = [progress.used.get(site, 0) for site in self.protocol.training_sites]
        return Message(
            question.kind, {**question.values, "used": used, "rounds": progress.rounds}, self.stages.models()
        )

    def integers(self, question: Message, reply: Message, site: str) -> dict[str, Tensor]:
        """A site's answer as the integers that are to be masked and summed."""
        if question.kind == "moments":
            return sums.of_moments(reply.tensors)
        if question.kind == "watch":
            return sums.of_errors(reply.tensors)
        live, shapes = self.stages.live, self.stages.shapes
        assert shapes is not None
        asked = asked_sites(self.protocol, question.values["asked"])

        def share(present: Sequence[str]) -> Tensor:
            return torch.tensor([self.stages.share(site, number, present) for number in live], dtype=torch.float64)

        models = {name: value for name, value in self.stages.models().items() if name in self.stages.state}
        everyone = [one for one in self.protocol.training_sites if one in self.stages.progress.num_bags]
        return sums.of_round(reply.tensors, models, list(shapes.exchanged), share(asked), share(everyone))

    def _snapshot(self, question: Message, step: int, where: str) -> Stages:
        """The state before the answers that the question carries, still to be attested by them."""
        blob = question.tensors[SNAPSHOT].numpy().tobytes()
        if not blob:
            raise PayloadError(
                f"{where}: this site has not computed the state before step {step + 1}, and no snapshot came"
            )
        with TemporaryDirectory() as folder:
            path = Path(folder) / "snapshot"
            path.write_bytes(blob)
            found = state_files.load(self.protocol, path, self.canary)
        if found.progress.step != step or found.progress.width != self.width:
            raise PayloadError(f"{where}: its snapshot is of another step or of other features; refused")
        return found

    def _answers(self, question: Message, where: str, attest: bool) -> dict[str, Message]:
        """The answers that the question carries, once each is its site's and all belong to one question about this state."""
        sites = asked_sites(self.protocol, question.values["relayed"])
        now, found = self.stages, {}
        kind, form = now.progress.stage, None
        groups = len(groups_of(self.protocol, now.progress.phase, kind))
        form = Forms(now.shapes).answer(kind, len(now.live), groups)
        for site in sites:
            blob = question.tensors[RELAY + site].numpy().tobytes()
            message = unpack(blob, form, float("inf"), f"{where}, answer of {site}")
            key = str(self.protocol.sites[site].key)
            if message.values["site"] != site or not is_signed(
                signed_content(message), message.values["signature"], key
            ):
                raise PayloadError(f"{where}: the answer of {site} is not signed by {site}; refused")
            found[site] = message
        self._check_together(sites, found, where, attest)
        return found

    def _check_together(self, sites: Sequence[str], found: Mapping[str, Message], where: str, attest: bool) -> None:
        values = [message.values for message in found.values()]
        for name in ("asked", "masked_sha256"):
            if any(one[name] != values[0][name] for one in values):
                raise PayloadError(f"{where}: the answers are to different questions ({name}); refused")
        if asked_sites(self.protocol, values[0]["asked"]) != list(sites):
            raise PayloadError(f"{where}: without some of the sites that were asked, the masks do not cancel; refused")
        self._check_enough(sites, where)
        agreeing = sum(one["state_sha256"] == self.stages.sha256 for one in values)
        needed = min(self.protocol.rounds.signatures or len(sites), len(sites)) if attest else len(sites)
        if agreeing < needed:
            raise PayloadError(
                f"{where}: {agreeing} of {needed} sites signed the state that the answers belong to; refused"
            )
