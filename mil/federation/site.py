"""A site: a question from the server in, an answer out, each checked against the site's own copy of the protocol.

Every question is judged before anything is computed and every answer before it leaves; both are written into the site's
ledger. Which engine carries the bytes is not known here.
"""

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mil.errors import MilError
from mil.federation.config import FederationSpec, SiteSpec, limits, own_protocol
from mil.federation.forms import SCALE, Forms, groups_of, is_subset, shapes_of, slots
from mil.federation.identity import code_sha256, data_sha256, differences, identity, own_secret
from mil.federation.ledger import LedgerFile
from mil.federation.local import LocalWork
from mil.federation.models import run_of
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
from mil.metrics.delong import both_classes, placements
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
        self.forms = Forms(shapes_of(protocol.experiment, features.width), features.width)
        self.ledger = LedgerFile(Path(spec.workspace) / "ledger.jsonl", spec.site)
        self.work = LocalWork(protocol, spec.site, bags, features) if self.role == "train" else None
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
        where = f"site {self.spec.site}, question"
        try:
            kind = str(header(blob, where)["kind"])
            question = self._read(blob, kind, where)
            reply, form = self._reply(question, hashlib.sha256(blob).hexdigest())
            sent = pack(reply, form, self.max_bytes, f"site {self.spec.site}, answer to '{kind}'")
        except MilError as error:
            self.ledger.add({"event": "refused", "reason": str(error)})
            raise
        self._record(question, reply, len(blob), len(sent))
        return sent

    def _read(self, blob: bytes, kind: str, where: str) -> Message:
        """The question, once it is of the protocol that the site holds and asks for nothing beyond it."""
        if kind in {"moments", "train", "watch", "canary"} and self.work is None:
            raise PayloadError(f"{where}: '{kind}' is for training sites; this one is external")
        if kind not in {"join", "moments", "train", "watch", "finish", "canary"}:
            raise PayloadError(f"{where}: '{kind}' is not a question of the protocol; refused")
        if kind == "join":
            question = unpack(blob, self.forms.question(kind, 0), self.max_bytes, where)
            differing = differences(identity(self.protocol), dict(question.values))
        else:
            numbers = header(blob, where)["values"].get("slots", [])
            question = unpack(blob, self.forms.question(kind, len(numbers)), self.max_bytes, where)
            expected = slots(self.protocol, "refit" if kind == "finish" else str(question.values["phase"]))
            if not is_subset(numbers, len(expected)):
                raise PayloadError(
                    f"{where}: slots {numbers} are not among the {len(expected)} of the protocol; refused"
                )
            differing = [] if question.values["spec_sha256"] == self.protocol.sha256 else ["spec_sha256"]
        if differing:
            raise Mismatch(
                f"{where}: the server differs from this site: {', '.join(differing)}; install the same version, and hold "
                "the same federation.yaml"
            )
        return question

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
            return Message("finish", values | self._finish(question)), self.forms.answer("finish", 0, 0)
        assert self.work is not None
        phase = str(question.values["phase"])
        asked, groups = slots(self.protocol, phase), groups_of(self.protocol, phase)
        chosen = [asked[number] for number in question.values["slots"]]  # type: ignore[union-attr]
        models = dict(question.tensors)
        if question.kind == "canary":
            started = time.monotonic()
            self.work.rehearse(models)
            values["seconds"] = time.monotonic() - started
            same = {name: value for name, value in models.items() if name not in SCALE}
            return Message("canary", values, same), self.forms.answer("canary", len(chosen), 0)
        few = [slot for slot in chosen if len(self.work.train_patients(slot)) < self.limits.min_patients]
        if few:
            raise TooFewPatients(
                f"site {self.spec.site}: {few[0].name} would learn from {len(self.work.train_patients(few[0]))} patients, "
                f"fewer than {self.limits.min_patients}; nothing was sent"
            )
        if question.kind == "moments":
            tensors = self.work.moments_of(chosen)
        elif question.kind == "watch":
            tensors = self.work.watch(models, chosen, groups)
        else:
            tensors = self.work.watch(models, chosen, groups)
            update = self.work.train(models, chosen, int(question.values["round"]))  # type: ignore[arg-type]
            tensors |= update.state
            tensors |= {"num_bags": update.num_bags, "num_steps": update.num_steps, "train_loss": update.train_loss}
        return Message(question.kind, values, tensors), self.forms.answer(question.kind, len(chosen), len(groups))

    def _finish(self, question: Message) -> dict[str, float | int | None]:
        """Keep the final models; AUROC of the site's own patients that they did not learn from, unless too few."""
        rounds = question.values["rounds"]
        run = run_of(self.protocol, question.tensors, rounds, self.features.about)  # type: ignore[arg-type]
        run.save(Path(self.spec.workspace) / "runs" / str(question.values["run"]))
        table = predict(run, self.bags, self.features).table
        own = table[table["split"].isin(["held_out", "external"])]
        patients = own.groupby("patient_id").agg(label=("label", "first"), score=("score", "mean"))
        return held_out_metrics(patients["label"].to_numpy(int), patients["score"].to_numpy(), self.limits.small_cells)

    def _record(self, question: Message, reply: Message, received: int, sent: int) -> None:
        entry = {key: question.values[key] for key in ("run", "phase", "round") if key in question.values}
        if "num_bags" in reply.tensors:
            entry["patients"] = [int(number) for number in reply.tensors["num_bags"]]
        self.ledger.add(
            {"event": "answered", "kind": question.kind, **entry}
            | {"asked_sha256": digest(question.tensors), "answer_sha256": digest(reply.tensors)}
            | {"data_sha256": self.data, "spec_sha256": self.protocol.sha256, "code_sha256": code_sha256()}
            | {"server_ledger": question.values.get("ledger"), "bytes_received": received, "bytes_sent": sent}
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


def held_out_metrics(labels: np.ndarray, scores: np.ndarray, small_cells: int) -> dict[str, float | int | None]:
    """AUROC and its DeLong variance, with the counts; all of them withheld where a class has fewer than `small_cells`."""
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < small_cells or not both_classes(labels):
        return {"patients": None, "positives": None, "auroc": None, "auroc_variance": None}
    found = placements(labels, scores)
    return {
        "patients": len(labels),
        "positives": positives,
        "auroc": float(found.auroc[0]),
        "auroc_variance": float(found.covariance[0, 0]),
    }
