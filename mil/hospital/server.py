"""The coordinator's side of a run: which question comes next, and what becomes of the sites' answers.

Knows no engine: `question` says what to ask, `asked` whom, `receive` takes what came back and who stayed silent. After
every round the state is one file on disk, written before the next question, so that a server that was killed goes on from
there and ends with the same weights bit for bit. Everything that happened stands in the ledger.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as packed
from torch import Tensor

from mil.errors import MilError
from mil.files import write_bytes
from mil.hospital import stages
from mil.hospital.alarms import stand_out
from mil.hospital.config import FLOOR_STEPS, FederationSpec
from mil.hospital.encryption import Adder
from mil.hospital.forms import Forms, groups_of
from mil.hospital.identity import differences, identity
from mil.hospital.models import Refit, rounds_table, run_of
from mil.hospital.payload import Message, PayloadError, check_updates, digest, pack, unpack
from mil.hospital.questions import asked_digest
from mil.hospital.results import covariates_table, sites_table
from mil.provenance import SAME_EVERYWHERE
from mil.tables import write_table
from mil.training.ledger import LedgerFile

WIDEST = 65536
"""Most numbers a tile; a site that says more would have the server draw models of any size."""
LARGEST = float(torch.finfo(torch.float32).max)
"""Largest sum that is taken: beyond it no model could be scaled, and the state of the run would be lost."""
COMPARED = ("width", *SAME_EVERYWHERE)


class SitesMissing(MilError):
    """Sites without whose answers the run cannot go on; it waits where it is."""

    def __init__(self, needed: str, missing: Mapping[str, str]) -> None:
        self.missing = dict(missing)
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(missing.items()))
        super().__init__(f"{needed} ({reasons}); the run goes on from its last round when they are back")


class Server:
    """One run of a federation, in one folder."""

    def __init__(
        self,
        protocol: FederationSpec,
        run: str,
        folder: str | Path,
        canary: bool = False,
        key: str | Path | None = None,
        rehearsal: str | None = None,
    ) -> None:
        """`key`: the sites' public key, where the protocol says encryption; `rehearsal`: the canary that came back before."""
        if protocol.encryption == "ckks" and key is None:
            raise MilError(
                "server.yaml: key is not set; encryption needs the sites' public key (`mil site key` makes it)"
            )
        adder = Adder(key) if protocol.encryption == "ckks" and key is not None else None
        self.protocol, self.run, self.folder = protocol, run, Path(folder)
        self.ledger = LedgerFile(self.folder / "ledger.jsonl", "server")
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.stages = stages.load(protocol, self.checkpoint, canary, adder)
        self.max_bytes = protocol.payload.max_mb_a_round * 1e6
        self.joined = False
        self.asked_sha256, self.question_sha256 = "", ""
        self.away: dict[str, str] = {}
        """Training sites that are not asked again in this job, and why."""
        event = "started" if self.stages.progress.stage == "new" else "resumed"
        known = {"rehearsal": rehearsal} if event == "started" and not canary else {}
        self.ledger.add({"event": event, "run": run, **known, **identity(protocol), **self.stages.progress.place})

    @property
    def kind(self) -> str:
        """Kind of the next question; `done` when there is none."""
        stage = self.stages.progress.stage
        return stage if self.joined or stage == "done" else "join"

    @property
    def asked(self) -> list[str]:
        """Sites that the next question goes to."""
        if self.kind in {"join", "finish"}:
            return sorted(self.protocol.sites)
        return [site for site in self.stages.drawn if site not in self.away]

    def question(self) -> bytes:
        """The next question."""
        progress, live = self.stages.progress, self.stages.live
        values = {"run": self.run, "ledger": self.ledger.last}
        tensors = {}
        if self.kind == "join":
            values |= {**identity(self.protocol), "canary": self.stages.canary}
        else:
            values |= {"phase": progress.phase, "slots": live, "choices": progress.choices}
            values["spec_sha256"] = self.protocol.sha256
        if self.kind in {"train", "watch", "open"}:
            values["round"] = progress.round
        if self.kind == "train":
            values["totals"] = [self.stages.totals[number] for number in live]
        if self.kind in {"train", "watch", "finish"}:
            values["used"] = [progress.used.get(site, 0) for site in self.protocol.training_sites]
        if self.kind == "finish":
            values["rounds"] = progress.rounds
        if self.kind not in {"join", "moments"}:
            tensors = self.stages.models()
        message = Message(self.kind, values, tensors)
        self.asked_sha256 = asked_digest(message)
        form = self._forms().question(self.kind, len(live))
        blob = pack(message, form, self.max_bytes, "server")
        self.question_sha256 = hashlib.sha256(blob).hexdigest()
        return blob

    def receive(self, answers: Mapping[str, bytes], silent: Mapping[str, str]) -> None:
        """Take the answers to the last question, by site, and why the other sites gave none.

        Raises `SitesMissing` when too few answered as they should: nothing has changed then but the ledger.
        """
        kind, place = self.kind, self.stages.progress.place
        found, missing = self._judged(kind, answers)
        missing = {**self.away, **silent, **missing}
        entry = {
            "run": self.run,
            "kind": kind,
            **place,
            "slots": self.stages.live,
            "choices": self.stages.progress.choices,
            "missing": dict(sorted(missing.items())),
        }
        entry["asked_sha256"] = self.asked_sha256
        entry["answered"] = {site: _told(message, answers[site]) for site, message in sorted(found.items())}
        if alarms := self._alarms(kind, found):
            entry["alarms"] = alarms
        try:
            self._enough(kind, found, missing)
            self._advance(kind, found)
        except MilError as error:
            self.ledger.add({"event": "waiting", "reason": str(error), **entry})
            raise
        self.away = {site: why for site, why in missing.items() if site in self.protocol.training_sites}
        self.ledger.add({"event": "answered", "global_sha256": self.stages.digest(), **entry})
        stages.save(self.stages, self.checkpoint)

    def _alarms(self, kind: str, found: Mapping[str, Message]) -> dict[str, str]:
        if kind != "train" or self.protocol.encryption != "none":
            return {}
        before = {name: value[self.stages.live] for name, value in self.stages.state.items()}
        return stand_out(found, before, self.stages.progress.round == 1)

    def pause(self) -> None:
        """The job ends here and the next one goes on."""
        self.ledger.add({"event": "paused", "run": self.run, **self.stages.progress.place})

    def _forms(self) -> Forms:
        return Forms(self.stages.shapes)

    def _judged(self, kind: str, answers: Mapping[str, bytes]) -> tuple[dict[str, Message], dict[str, str]]:
        """Answers that may be used, and why the others may not."""
        form = self._forms().answer(
            kind, len(self.stages.live), len(groups_of(self.protocol, self.stages.progress.phase, kind))
        )
        found, refused = {}, {}
        for site, blob in answers.items():
            try:
                found[site] = unpack(blob, form, self.max_bytes, f"site {site}, answer to '{kind}'")
                self._check(site, kind, found[site])
            except PayloadError as error:
                found.pop(site, None)
                refused[site] = f"refused: {error}"
        return found, refused

    def _check(self, site: str, kind: str, message: Message) -> None:
        if message.values["site"] != site:
            raise PayloadError(f"the answer of site {site} says it is from {message.values['site']}")
        if message.values["question_sha256"] != self.question_sha256:
            raise PayloadError(f"site {site}: the answer is to another question than this one")
        self._check_numbers(site, kind, message.tensors)
        if kind != "join":
            return
        width, patients = int(str(message.values["width"])), message.values["num_bags"]
        if not 1 <= width <= WIDEST:
            raise PayloadError(f"site {site}: features of {width} numbers a tile; 1 to {WIDEST} are taken")
        if patients is not None and int(str(patients)) < 1:
            raise PayloadError(f"site {site}: says that it has {patients} patients")
        differing = differences(identity(self.protocol), dict(message.values))
        if self.stages.progress.data.get(site, message.values["data_sha256"]) != message.values["data_sha256"]:
            differing.append("its data have changed since the run began")
        for key, stated in self.protocol.features.model_dump().items():
            if stated is not None and message.values[key] != stated:
                differing.append(f"{key} of its features is {message.values[key]}, not {stated}")
        if differing:
            raise PayloadError(f"site {site}: {'; '.join(differing)}")

    def _check_numbers(self, site: str, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Raise for counts that cannot be, or that would let the site outweigh the others."""
        least, most = self.protocol.payload.min_patients, self.protocol.sites[site].patients
        for name, value in tensors.items():
            counted = name in {"num_bags", "num_steps", "classes", "watched_count"} or name.endswith(
                (".count", ".squares")
            )
            if counted and (value < 0).any():
                raise PayloadError(f"site {site}: '{name}' is negative")
            if value.dtype == torch.float64 and not (value.abs() <= LARGEST).all():
                raise PayloadError(f"site {site}: '{name}' holds numbers beyond {LARGEST:.2g}")
        counts = tensors.get("num_bags")
        if counts is not None and (counts < least).any():
            raise PayloadError(f"site {site}: an update from fewer than {least} patients")
        if counts is not None and most is not None and (counts > most).any():
            raise PayloadError(
                f"site {site}: counts with {int(counts.max())} patients, but the protocol knows of {most}"
            )
        if counts is not None and kind == "train":
            known = self.stages.progress.num_bags.get(site)
            if known is not None and counts.tolist() != [known[number] for number in self.stages.live]:
                raise PayloadError(f"site {site}: counts with other patients than it began with")
            if self.protocol.encryption == "none":
                check_updates(
                    {name: tensors[name] for name in self.stages.state},
                    self.stages.models(),
                    self.protocol.payload.max_update,
                    f"site {site}",
                )
        if "classes" in tensors and counts is not None and (tensors["classes"].sum(1) != counts).any():
            raise PayloadError(f"site {site}: its classes are not its patients")
        fewest = FLOOR_STEPS if self.protocol.privacy is None else 1
        if "num_steps" in tensors and (tensors["num_steps"] < fewest).any():
            raise PayloadError(f"site {site}: an update from fewer than {fewest} steps")

    def _enough(self, kind: str, found: Mapping[str, Message], missing: Mapping[str, str]) -> None:
        if kind == "open":
            if not found:
                raise SitesMissing(f"{self.run}: no site opened the sum", missing)
            return
        needed = [site for site in self.protocol.required_sites if site in self.stages.drawn]
        if kind == "finish":
            needed = needed + self.protocol.external_sites
        lacking = [site for site in needed if site not in found]
        if lacking:
            reasons = {site: missing.get(site, "no answer") for site in lacking}
            raise SitesMissing(f"{self.run}: without {', '.join(lacking)} no round counts", reasons)
        present = len([site for site in self.protocol.training_sites if site in found])
        least = min(self.protocol.minimum_sites, len(self.stages.drawn))
        if present < least:
            raise SitesMissing(f"{self.run}: {present} of at least {least} sites answered", missing)

    def _advance(self, kind: str, found: Mapping[str, Message]) -> None:
        if kind == "join":
            self._join(found)
            return
        if kind == "finish":
            self._save_result(found)
        self.stages.take({site: found[site] for site in self.protocol.training_sites if site in found})

    def _join(self, found: Mapping[str, Message]) -> None:
        first = min(found)
        for site, message in found.items():
            for key in COMPARED:
                if message.values[key] != found[first].values[key]:
                    raise MilError(
                        f"site {site}: {key} of its features is {message.values[key]}, but {found[first].values[key]} at "
                        f"{first}; extract both with the same encoder and tiles"
                    )
        about = {key: found[first].values[key] for key in COMPARED[1:]}
        self.stages.join(int(found[first].values["width"]), about)  # type: ignore[arg-type]
        self.stages.progress.data |= {site: str(message.values["data_sha256"]) for site, message in found.items()}
        self.joined = True

    def _save_result(self, found: Mapping[str, Message]) -> None:
        """The run as `mil train` saves one, and every site's own metrics."""
        progress = self.stages.progress
        about = {key: value for key, value in progress.about.items() if value is not None}
        tensors = self.stages.state | self.stages.buffers
        refit = Refit(progress.choices, progress.rounds, about, self.stages.totals)
        shapes = self.stages.shapes
        if shapes is not None and shapes.own:  # whole models are at the sites only
            whole = packed({name: value.contiguous() for name, value in tensors.items()})
            write_bytes(self.folder / "result" / "shared.safetensors", whole)
            write_table(rounds_table(self.protocol, self.run, self.ledger), self.folder / "result" / "rounds.csv")
        else:
            run_of(self.protocol, tensors, refit, self.ledger, self.run).save(self.folder / "result")
        roles = {site: member.role for site, member in self.protocol.sites.items()}
        told = {site: message.values for site, message in found.items()}
        write_table(sites_table(self.protocol.endpoint.kind, roles, told), self.folder / "result" / "sites.csv")
        names = self.protocol.experiment.covariates
        if names and self.protocol.privacy is None:
            table = covariates_table(names, {site: message.tensors for site, message in found.items()})
            write_table(table, self.folder / "result" / "covariates.csv")


def _told(message: Message, blob: bytes) -> dict[str, object]:
    """What the ledger keeps of an answer: digests, counts, losses, bytes; never a state."""
    told: dict[str, object] = {"answer_sha256": digest(message.tensors), "bytes": len(blob)}
    told["ledger"] = message.values["ledger"]
    for name in ("num_bags", "train_loss", "watched_loss", "watched_count"):
        if name in message.tensors:
            told[name] = message.tensors[name].tolist()
    return told
