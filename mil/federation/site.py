"""A site: a question from the server in, an answer out, each checked against the site's own copy of the protocol.

Every question is judged before anything is computed and every answer before it leaves; both are written into the site's
ledger. Which engine carries the bytes is not known here.
"""

import hashlib
import time
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor

from mil.errors import MilError
from mil.federation.config import FederationSpec, SiteSpec, limits, own_protocol
from mil.federation.controls import Controls
from mil.federation.encryption import Cipher
from mil.federation.forms import CONTROL, SEALED, Forms, Shapes, Slot, groups_of, is_subset, slots
from mil.federation.identity import code_sha256, data_sha256, differences, identity, own_secret
from mil.federation.ledger import LedgerFile, parsed
from mil.federation.local import LocalWork, Trained
from mil.federation.models import run_of
from mil.federation.noise import SecretStream
from mil.federation.payload import (
    Form,
    Message,
    Mismatch,
    PayloadError,
    TooFewPatients,
    Value,
    digest,
    header,
    pack,
    unpack,
)
from mil.federation.privacy import Budget
from mil.federation.results import NOTHING, Metrics, own_covariates, own_metrics
from mil.predictions import predict
from mil.tables import read_table
from mil.training.store import SAME_EVERYWHERE, FeatureStore

TEXT = ("patient_id", "slides", "site", "role")


class Site:
    """A member of a federation, with its own data."""

    def __init__(
        self, spec: SiteSpec, protocol: FederationSpec, bags: pd.DataFrame, features: FeatureStore, data: str
    ) -> None:
        self.spec, self.protocol, self.bags, self.features, self.data = spec, protocol, bags, features, data
        self.limits = limits(protocol, spec)
        self.max_bytes = self.limits.max_mb_a_round * 1e6
        self.role = protocol.sites[spec.site].role
        self.shapes = Shapes(protocol, features.width)
        self.forms = Forms(self.shapes)
        self.ledger = LedgerFile(Path(spec.workspace) / "ledger.jsonl", spec.site)
        self.work = LocalWork(protocol, self.shapes, spec.site, bags, features) if self.role == "train" else None
        self.budget: Budget | None = None
        if protocol.privacy is not None:
            privacy = protocol.privacy
            if privacy.delta * len(features.patients) >= 1:
                raise MilError(
                    f"federation.yaml: privacy.delta {privacy.delta:g} promises nothing to {len(features.patients)} patients; "
                    f"it must be well below {1 / len(features.patients):.2g}"
                )
            most = min(privacy.epsilon, spec.epsilon or privacy.epsilon)
            self.budget = Budget(Path(spec.workspace) / "privacy.jsonl", spec.site, most, privacy.delta)
        self.epsilon: float | None = None
        self.cipher: Cipher | None = None
        if protocol.encryption == "ckks":
            if spec.key is None:
                raise MilError("site.yaml: key is not set; encryption needs the secret key that the sites share")
            self.cipher = Cipher(spec.key)
        self.about: dict[str, Value] = {key: features.about.get(key) for key in SAME_EVERYWHERE}  # type: ignore[misc]

    @classmethod
    def open(cls, spec: SiteSpec, canary: bool = False) -> "Site":
        """The site of a hospital's own file: its bag table and feature files are read here and nowhere else.

        For the canary, those of two patients only.
        """
        protocol = own_protocol(spec)
        results = Path(spec.results)
        bags = own_bags(results / "bags" / f"{protocol.experiment.endpoint}.csv", spec.site, protocol)
        bags = bags.head(2).reset_index(drop=True) if canary else bags
        features = FeatureStore.open(bags, results / "sites", protocol.experiment.encoder)
        folder = results / "sites" / spec.site / "features" / protocol.experiment.encoder
        files = [folder / f"{slide}.h5" for row in bags.slides for slide in str(row).split(";")]
        data = data_sha256(own_secret(spec.workspace), bags, files)
        return cls(spec, protocol, bags, features, data)

    def answer(self, blob: bytes) -> bytes:
        """Answer one question; a `MilError` says why not, and stands in the ledger too."""
        where, started = f"site {self.spec.site}, question", time.monotonic()
        try:
            kind = str(header(blob, where)["kind"])
            question = self._read(blob, kind, where)
            reply, form = self._reply(question, hashlib.sha256(blob).hexdigest())
            sent = pack(reply, form, self.max_bytes, f"site {self.spec.site}, answer to '{kind}'")
        except MilError as error:
            self.ledger.add({"event": "refused", "reason": str(error)})
            raise
        seconds = round(time.monotonic() - started, 3)
        self._record(question, reply, {"bytes_received": len(blob), "bytes_sent": len(sent), "seconds": seconds})
        return sent

    def _read(self, blob: bytes, kind: str, where: str) -> Message:
        """The question, once it is of the protocol that the site holds and asks for nothing beyond it."""
        allowed = {"join", "finish"}
        if self.role == "train":
            allowed |= {"moments", "train", "canary"} | ({"open"} if self.cipher is not None else set())
            allowed |= set() if self.budget is not None else {"watch"}  # losses carry no noise
        if kind not in allowed:
            raise PayloadError(f"{where}: '{kind}' is not asked of this site by the protocol; refused")
        if kind == "join":
            question = unpack(blob, self.forms.question(kind, 0), self.max_bytes, where)
            differing = differences(identity(self.protocol), dict(question.values))
        else:
            numbers = header(blob, where)["values"].get("slots")
            live = len(numbers) if isinstance(numbers, list) else 0
            question = unpack(blob, self.forms.question(kind, live), self.max_bytes, where)
            self._check_slots(question, where)
            differing = [] if question.values["spec_sha256"] == self.protocol.sha256 else ["spec_sha256"]
        if differing:
            raise Mismatch(
                f"{where}: the server differs from this site: {', '.join(differing)}; install the same version, and hold "
                "the same federation.yaml"
            )
        return question

    def _check_slots(self, question: Message, where: str) -> None:
        """Raise unless the question is about a phase of the protocol and models of it."""
        phase = "refit" if question.kind == "finish" else question.values["phase"]
        phases = ("refit",) if self.budget is not None else ("inner", "refit")
        if phase not in phases:
            raise PayloadError(f"{where}: phase {phase!r} is not of the protocol ({', '.join(phases)}); refused")
        numbers = cast(list[int], question.values["slots"])
        expected = len(slots(self.protocol, str(phase)))
        if not is_subset(numbers, expected):
            raise PayloadError(f"{where}: slots {numbers} are not among the {expected} of the protocol; refused")
        lengths = {"used": len(self.protocol.training_sites), "totals": len(numbers), "rounds": expected}
        for name, length in lengths.items():
            if name in question.values and len(cast(list[int], question.values[name])) != length:
                raise PayloadError(f"{where}: value '{name}' has not {length} numbers; refused")

    def _reply(self, question: Message, question_sha256: str) -> tuple[Message, Form]:
        values: dict[str, Value] = {"site": self.spec.site, "ledger": self.ledger.last}
        values["question_sha256"] = question_sha256
        if question.kind == "join":
            own: dict[str, Value] = {
                **identity(self.protocol),
                **self.about,
                "width": self.features.width,
                "data_sha256": self.data,
            }
            own["num_bags"] = len(self.features.patients)
            return Message("join", values | own), self.forms.answer("join", 0, 0)
        if question.kind == "finish":
            metrics, tensors = self._finish(question)
            return Message("finish", values | metrics, tensors), self.forms.answer("finish", 0, 0)
        phase = str(question.values["phase"])
        everyone = slots(self.protocol, phase)
        groups = [[everyone[number] for number in group] for group in groups_of(self.protocol, phase, question.kind)]
        chosen = [everyone[number] for number in cast(list[int], question.values["slots"])]
        form = self.forms.answer(question.kind, len(chosen), len(groups))
        work, models = self._work(chosen, question.kind), dict(question.tensors)
        if question.kind == "canary":
            started = time.monotonic()
            work.rehearse(models, chosen[0])
            values["seconds"] = time.monotonic() - started
            return Message("canary", values, {name: models[name] for name in self.shapes.state}), form
        if question.kind == "moments":
            return Message("moments", values, work.moments_of(chosen)), form
        if question.kind == "open":
            return Message("open", values, self._open(question, len(chosen))), form
        tensors = work.watch(models, chosen, groups)
        if question.kind == "train":
            tensors |= self._train(question, work, chosen)
        return Message(question.kind, values, tensors), form

    def _work(self, chosen: list[Slot], kind: str) -> LocalWork:
        """The site's part of the work, once it is certain that no model would learn from too few patients."""
        if self.work is None:
            raise PayloadError(f"site {self.spec.site} is external; it is not asked to train")
        for slot in chosen if kind != "canary" else ():
            patients = len(self.work.train_patients(slot))
            if patients < self.limits.min_patients:
                raise TooFewPatients(
                    f"site {self.spec.site}: {slot.name} would learn from {patients} patients, fewer than "
                    f"{self.limits.min_patients}; nothing was sent"
                )
        return self.work

    def _train(self, question: Message, work: LocalWork, chosen: list[Slot]) -> dict[str, Tensor]:
        """The updates of a round, stacked."""
        number = cast(int, question.values["round"])
        pairs: list[Any] = [None] * len(chosen)
        controls = None
        if self.shapes.controls:
            used = cast(list[int], question.values["used"])[self.protocol.training_sites.index(self.spec.site)]
            folder = Path(self.spec.workspace) / "runs" / str(question.values["run"]) / "controls"
            controls = Controls(folder, str(question.values["phase"]), used)
            pairs = controls.pairs(question.tensors, chosen)
        if self.budget is not None:
            trained = self._train_privately(question, work, chosen, number)
        else:
            trained = work.train(question.tensors, chosen, number, pairs)
        updates = [update for update, _ in trained]
        tensors = {name: torch.stack([update.state[name] for update in updates]) for name in self.shapes.state}
        if self.cipher is not None:
            tensors = {SEALED: self._sealed(question, tensors, [update.patients for update in updates])}
        if controls is not None:
            controls.keep(number, chosen, [own for _, own in trained if own is not None])
            changes = [update.control_change or {} for update in updates]
            tensors |= {
                f"{CONTROL}{name}": torch.stack([change[name] for change in changes]) for name in self.shapes.state
            }
        tensors["num_bags"] = torch.tensor([update.patients for update in updates])
        tensors["num_steps"] = torch.tensor([update.steps for update in updates])
        if self.budget is None:
            tensors["train_loss"] = torch.tensor([update.loss for update in updates], dtype=torch.float64)
        return tensors

    def _sealed(self, question: Message, states: dict[str, Tensor], patients: list[int]) -> Tensor:
        """The site's share of the change of all models, encrypted."""
        assert self.cipher is not None
        uniform = getattr(self.protocol.experiment.strategy, "weighting", "patients") == "uniform"
        totals = cast(list[int], question.values["totals"])
        share = torch.tensor(patients, dtype=torch.float64) / torch.tensor(totals, dtype=torch.float64)
        if uniform:
            share = torch.full_like(share, 1 / len(self.protocol.training_sites))
        changes = []
        for name, value in states.items():
            change = value.double() - question.tensors[name].double()
            changes.append(change * share.view(-1, *[1] * (change.dim() - 1)))
        return self.cipher.seal(changes)

    def _open(self, question: Message, live: int) -> dict[str, Tensor]:
        """The sum of a round, once: another ciphertext for the same round is not opened."""
        if self.cipher is None:
            raise PayloadError(f"site {self.spec.site}: nothing is encrypted in this protocol; refused")
        place = {key: question.values[key] for key in ("run", "phase", "round")}
        sealed = digest(question.tensors)
        for line in parsed(self.ledger.lines, str(self.ledger.path)):
            if line.get("kind") == "open" and place.items() <= line.items() and line["asked_sha256"] != sealed:
                raise PayloadError(
                    f"site {self.spec.site}: another sum of round {place['round']} was opened already; the server may not "
                    "have single updates opened"
                )
        opened = self.cipher.open(question.tensors[SEALED], [(live, *shape) for shape in self.shapes.state.values()])
        return dict(zip(self.shapes.state, opened, strict=True))

    def _train_privately(self, question: Message, work: LocalWork, chosen: list[Slot], number: int) -> list[Trained]:
        """The same with noise, once the site's budget allows it."""
        assert self.budget is not None
        assert self.protocol.privacy is not None
        run, asked = str(question.values["run"]), digest(question.tensors)
        patients = {slot: len(work.train_patients(slot)) for slot in chosen}
        self.epsilon = self.budget.charge(run, number, asked, self.protocol.privacy, patients).epsilon
        return work.train_privately(
            question.tensors, chosen, number, lambda slot: self._stream(run, slot, number, asked)
        )

    def _stream(self, run: str, slot: Slot, number: int, asked: str) -> SecretStream:
        return SecretStream(own_secret(self.spec.workspace), "noise", run, slot.name, number, asked)

    def _finish(self, question: Message) -> tuple[Metrics, dict[str, Tensor]]:
        """Keep the final models, and say how they judge the site's own patients that they did not learn from."""
        rounds = cast(list[int], question.values["rounds"])
        run = run_of(self.protocol, question.tensors, rounds, self.features.about)
        run.save(Path(self.spec.workspace) / "runs" / str(question.values["run"]))
        table = predict(run, self.bags, self.features).table
        metrics = own_metrics(self.protocol.endpoint.kind, table, self.bags, self.limits.small_cells)
        self.ledger.add({"event": "result", "run": str(question.values["run"]), **metrics})
        if self.budget is not None:  # they carry no noise
            return NOTHING, {}
        names = self.protocol.experiment.covariates
        return metrics, own_covariates(self.bags, names, self.limits.small_cells) if names else {}

    def _record(self, question: Message, reply: Message, cost: dict[str, float]) -> None:
        entry: dict[str, Any] = {
            key: question.values[key] for key in ("run", "phase", "round") if key in question.values
        }
        if self.epsilon is not None:
            entry["epsilon"] = self.epsilon
        if "num_bags" in reply.tensors:
            entry["patients"] = [int(number) for number in reply.tensors["num_bags"]]
        self.ledger.add(
            {"event": "answered", "kind": question.kind, **entry}
            | {"asked_sha256": digest(question.tensors), "answer_sha256": digest(reply.tensors)}
            | {"data_sha256": self.data, "spec_sha256": self.protocol.sha256, "code_sha256": code_sha256()}
            | {"server_ledger": question.values.get("ledger"), **cost}
        )


def own_bags(path: Path, site: str, protocol: FederationSpec) -> pd.DataFrame:
    """The bag table, which may hold no other site's patient, with the roles as the protocol has them."""
    bags = read_table(path, text=TEXT)
    foreign = bags[bags["site"] != site]
    if len(foreign):
        raise MilError(
            f"{path}: patient {foreign.iloc[0]['patient_id']} is of site {foreign.iloc[0]['site']}, not {site}; a hospital "
            "holds its own patients only (make the table from a sheet of this site alone)"
        )
    roles = set(bags["role"]) - {protocol.sites[site].role}
    if roles:
        raise MilError(f"{path}: role {roles.pop()}, but the federation has {site} as {protocol.sites[site].role}")
    return bags
