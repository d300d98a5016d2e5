"""A site: a question from the server in, an answer out, each checked against the site's own copy of the protocol.

Every question is judged before anything is computed and every answer before it leaves; both are written into the site's
ledger. Which engine carries the bytes is not known here.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from mil.hospital import forms, local_data, messages, questions
from mil.hospital.blobs import Blob, Lazy, digest_of, size_of, stacked
from mil.hospital.config import FederationSpec
from mil.hospital.crosscheck import published
from mil.hospital.differencing import Whom, check_columns, check_plan, check_runs
from mil.hospital.forms import Forms, Shapes, Slot, groups_of, slots
from mil.hospital.identity import arithmetic, code_sha256, data_sha256, differences, identity, site_secret
from mil.hospital.keys import PartyKey
from mil.hospital.local import LocalWork, Trained, device_of
from mil.hospital.masking import masked
from mil.hospital.memory import Memory
from mil.hospital.messages import AnyAnswer, Asked, Followed, JoinQuestion, Question
from mil.hospital.models import Refit, run_of
from mil.hospital.noise import SecretStream
from mil.hospital.parties import SiteSpec, limits, protocol_of
from mil.hospital.payload import (
    Form,
    Message,
    Mismatch,
    PayloadError,
    check_updates,
    computed,
    content_digest,
    header,
    packed,
    parsed,
    unpack,
)
from mil.hospital.privacy import open_budget
from mil.hospital.record import LedgerFile
from mil.hospital.relay import Posed, Replica, asked_sites, signed_content
from mil.hospital.results import NOTHING, Metrics, SiteResults, site_results
from mil.hospital.revocation import check_none_revoked, revoked_of, revoked_sites
from mil.predictions.predict import predict
from mil.provenance import SAME_EVERYWHERE
from mil.training.artefact import Run
from mil.training.store import FeatureStore

Filled = tuple[Message[AnyAnswer], Form[AnyAnswer]]
"""An answer and its form."""


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
        self.party = PartyKey(spec.workspace)
        questions.check_key(protocol.sites[spec.site].key, self.party.public, f"site {spec.site}")
        self.ledger = LedgerFile(Path(spec.workspace) / "ledger.jsonl", spec.site, self.party)
        local_data.check_remembered(Path(spec.workspace), self.ledger.lines)
        self.work: LocalWork | None = None
        if self.role == "train":
            self.work = LocalWork(protocol, self.shapes, spec.site, bags, features, device_of(spec, protocol))
        self.revoked = revoked_of(revoked_sites(Path(spec.workspace)), protocol)
        self.budget = open_budget(protocol, spec, self.party, len(features.patients), self.ledger.lines)
        self.epsilon: float | None = None
        self.whom: Whom = {}  # of the last sums of moments
        self.about = {key: features.about.get(key) for key in SAME_EVERYWHERE}

    @classmethod
    def open(cls, spec: SiteSpec, canary: bool = False) -> "Site":
        """The site of a hospital's own file: its bag table and feature files are read here and nowhere else.

        For the canary, those of two patients only.
        """
        protocol = protocol_of(spec)
        bags = local_data.site_bags(local_data.bag_path(spec, protocol), spec.site, protocol)
        bags = bags.head(2).reset_index(drop=True) if canary else bags
        features = FeatureStore.open(bags, Path(spec.results) / "sites", protocol.experiment.encoder)
        site = cls(spec, protocol, bags, features, data_sha256(site_secret(spec.workspace), bags, features))
        check_columns(bags, protocol.experiment.covariates, 0 if canary else site.limits.small_cells)
        if site.work is not None and not canary:  # of which no sum leaves
            check_plan(protocol, site.work, site.limits.small_cells)
        return site

    def answer(self, blob: Blob) -> bytes:
        """Answer one question; a `MilError` says why not, and stands in the ledger too."""
        reply = self._alone(blob, None)
        assert isinstance(reply, bytes)
        return reply

    def answer_file(self, blob: Blob, path: Path) -> None:
        """The same as the file `path`, which is made row by row."""
        self._alone(blob, path)

    def _alone(self, blob: Blob, path: Path | None) -> Blob:
        """One process at a time: two jobs that asked at once would each not see what the other one was just told."""
        with local_data.only_answer(self.spec, self.protocol.rounds.timeout_s):
            self.ledger.refresh()
            return self._answer(blob, path)

    def _answer(self, blob: Blob, path: Path | None) -> Blob:
        where, started = f"site {self.spec.site}, question", time.monotonic()
        try:
            local_data.check_room(self.spec.workspace, self.spec.free_gb)
            kind = str(header(blob, where)["kind"])
            question = self._read(blob, kind, where)
            unsigned, form = self._reply(question, digest_of(blob))
            with computed(unsigned, path) as reply:
                questions.check_masks(reply, self.ledger.lines, where)
                signature = self.party.sign(signed_content(reply))
                reply = replace(reply, values=reply.values.model_copy(update={"signature": signature}))
                sent = packed(reply, form, self.max_bytes, f"site {self.spec.site}, answer to '{kind}'", path)
        except Exception as error:
            known = local_data.disk_short(error) or error
            self.ledger.add({"event": "refused", "reason": local_data.refusal_reason(known, self.spec)})
            if known is not error:
                raise known from error
            raise
        if kind == "close":  # its line was written before the answer, which carries the line's hash
            return sent
        seconds = round(time.monotonic() - started, 3)
        cost = {"bytes_received": size_of(blob), "bytes_sent": size_of(sent), "seconds": seconds}
        self._record(question, Message(reply.values, parsed(sent, where).tensors), cost)
        return sent

    def _read(self, blob: Blob, kind: str, where: str) -> Message[Question]:
        """The question, once it is of the protocol that the site holds and asks for nothing beyond it."""
        allowed = {"join", "finish", "close"}
        if self.role == "train":
            allowed |= {"moments", "train", "canary"}
            allowed |= set() if self.budget is not None else {"watch"}  # losses carry no noise
        if kind not in allowed:
            raise PayloadError(f"{where}: '{kind}' is not asked of this site by the protocol; refused")
        question: Message[Question]
        if kind == "join":
            question = joining = unpack(blob, forms.JOIN_QUESTION, self.max_bytes, where)
            questions.check_key(self.protocol.server.key, joining.values.key, "the server")
            sent = joining.tensors["revoked"].numpy().tobytes()
            self.revoked = revoked_of(revoked_sites(Path(self.spec.workspace), sent), self.protocol)
        elif kind == "close":
            question = unpack(blob, forms.CLOSE_QUESTION, self.max_bytes, where)
        else:
            question = self._read_asked(blob, kind, where)
        check_none_revoked(self.revoked, [self.spec.site], where)
        questions.check_run(question.values, self.spec.runs, where)
        stated, expected = question.stated, identity(self.protocol)
        if differing := differences({key: expected[key] for key in expected if key in stated}, stated):
            raise Mismatch(
                f"{where}: the server differs from this site: {', '.join(differing)}; install the same version, and hold "
                "the same federation.yaml"
            )
        return question

    def _read_asked(self, blob: Blob, kind: str, where: str) -> Message[Asked]:
        """A question about models, in a place of the protocol where no other was answered."""
        asked = self.forms.asked(kind).read(kind, header(blob, where)["values"], where)
        relayed = asked_sites(self.protocol, asked.relayed) if isinstance(asked, Followed) and asked.relayed else []
        form = self.forms.question(kind, len(asked.slots), relayed)
        question = unpack(blob, form, self.max_bytes * (1 + 2 * len(relayed)), where)
        questions.check_position(question.values, self.protocol, self.budget is not None, where)
        private = self.budget is not None and not self.shapes.masked
        questions.check_once(question, self.ledger.lines, self.protocol, None if private else self.data, where)
        return question

    def _reply(self, question: Message[Question], question_sha256: str) -> Filled:
        values = question.values
        known = {"site": self.spec.site, "question_sha256": question_sha256, "signature": messages.UNSIGNED}
        if isinstance(values, messages.CloseQuestion):
            closing = {"event": "closed", "kind": "close", "run": values.run, "server_ledger": values.ledger}
            if questions.head_of(closing, self.ledger.lines) is None:  # the same question again adds no second line
                self.ledger.add(closing)
            return self._filled(
                forms.CLOSE_ANSWER, {**known, "ledger": questions.head_of(closing, self.ledger.lines)}, {}
            )
        known["ledger"] = self.ledger.last
        if isinstance(values, JoinQuestion):
            return self._filled(forms.JOIN_ANSWER, {**known, **self._joining(values)}, {})
        if isinstance(values, Followed):
            return self._followed(Message(values, question.tensors), known)
        return self._answered(Posed.sent(values, question.tensors), known)

    def _filled(self, form: Form[AnyAnswer], known: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Filled:
        return form.filled(known, tensors, f"site {self.spec.site}, answer to '{form.kind}'"), form

    def _followed(self, question: Message[Followed], known: dict[str, str]) -> Filled:
        """The answer from the models that the site computed itself; what is summed is masked."""
        replica = self._replica(question.values)
        replica.follow(question, f"site {self.spec.site}, question")
        asked = asked_sites(self.protocol, question.values.asked)
        check_none_revoked(self.revoked, asked, f"site {self.spec.site}, question")
        summed = self.role == "train" and self.shapes.summed(question.kind)
        if (summed or question.kind == "canary") and self.spec.site not in asked:
            raise PayloadError(f"site {self.spec.site}: is not among the sites asked ({', '.join(asked)}); refused")
        digest = questions.position_digest(question.kind, question.stated)
        masks = {"state_sha256": replica.stages.sha256, "asked": question.values.asked, "masked_sha256": digest}
        reply, form = self._answered(replica.complete(question), {**known, **masks})
        if summed:
            keys = {site: str(self.protocol.sites[site].key) for site in asked}
            parts = replica.integers(question, reply, self.spec.site)
            reply = replace(reply, tensors=masked(parts, self.party, self.spec.site, keys, digest))
        return reply, form

    def _replica(self, values: JoinQuestion | Followed) -> Replica:
        return Replica(self.protocol, self._folder(values), self.features.width, self.about, values.kind == "canary")

    def _joining(self, values: JoinQuestion) -> dict[str, object]:
        """What the site says of itself and its features."""
        count, training = len(self.features.patients), self.role == "train"  # whose training counts are told anyhow
        least = self.limits.min_patients if training else self.limits.small_cells
        return {
            **identity(self.protocol),
            **self.about,
            "width": self.features.width,
            "data_sha256": self.data,
            "key": self.party.public,
            "step": self._replica(values).stages.progress.step if self.shapes.masked else 0,
            "num_bags": count if count >= least and not values.canary else None,
        }

    def _answered(self, task: Posed, known: Mapping[str, object]) -> Filled:
        """The answer to a question with models in it."""
        values, kind = task.values, task.values.kind
        if kind == "finish":
            metrics, tensors = self._finish(task)
            return self._filled(self.forms.answer(kind, 0, 0), {**known, **metrics}, tensors)
        everyone = slots(self.protocol, values.phase, values.choices)
        groups = [[everyone[number] for number in group] for group in groups_of(self.protocol, values.phase, kind)]
        chosen = [everyone[number] for number in values.slots]
        form = self.forms.answer(kind, len(chosen), len(groups))
        work = self._work(chosen, kind)
        if kind == "canary":
            models = work.completed(task.models, [work.first(slot) for slot in chosen])
            work.rehearse(models, chosen[0])
            return self._filled(form, known, {name: models[name] for name in self.shapes.state})
        if kind == "moments":
            secret, least = site_secret(self.spec.workspace), self.limits.small_cells
            self.whom = check_runs(work, secret, self.ledger.lines, least, self.data)
            return self._filled(form, known, work.moments_of(chosen, self.limits.small_cells))
        memory = self._memory(task)
        models = work.completed(task.models, [memory.of(slot, work.first(slot)) for slot in chosen])
        tensors = work.watch(models, chosen, groups)
        if isinstance(values, messages.AskedRound | messages.FollowedRound) and kind == "train":
            trained = self._train(task, values.round, models, work, memory, chosen)
            tensors = Lazy({**tensors, **trained.parts})
        return self._filled(form, known, tensors)

    def _work(self, chosen: list[Slot], kind: str) -> LocalWork:
        """The site's part of the work, once it is certain that no model would learn from too few patients."""
        if self.work is None:
            raise PayloadError(f"site {self.spec.site} is external; it is not asked to train")
        if kind != "canary":
            self.work.check_patients(chosen, kind, self.limits.min_patients)
        return self.work

    def _memory(self, task: Posed) -> Memory:
        """What the site keeps of the run, as it was when the server last used an answer of it."""
        used = task.used[self.protocol.training_sites.index(self.spec.site)]
        return Memory(self._folder(task.values) / "kept", task.values.phase, used if self.shapes.kept else 0)

    def _folder(self, values: Question) -> Path:
        return Path(self.spec.workspace) / "runs" / values.run

    def _train(
        self, task: Posed, number: int, models: dict[str, Tensor], work: LocalWork, memory: Memory, chosen: list[Slot]
    ) -> Lazy:
        """The updates of round `number`, stacked."""
        if self.budget is not None:
            trained = self._train_privately(task, number, models, work, chosen)
        else:
            pairs = memory.controls(task.models, chosen) if self.shapes.controls else [None] * len(chosen)
            trained = work.train(models, chosen, number, pairs)
        updates = [update for update, _ in trained]
        tensors = stacked([update.state for update in updates], list(self.shapes.state))
        check_updates(tensors, models, self.limits.max_update, f"site {self.spec.site}")
        if self.shapes.kept:
            layers = [{name: update.state[name] for name in self.shapes.own} for update in updates]
            memory.keep(number, chosen, [control or {} for _, control in trained] if self.shapes.controls else layers)
        return Lazy({**tensors.parts, **work.counts_of(updates, with_loss=self.budget is None)})

    def _train_privately(
        self, task: Posed, number: int, models: dict[str, Tensor], work: LocalWork, chosen: list[Slot]
    ) -> list[Trained]:
        """The same with noise, once the site's budget allows it.

        The noise belongs to the whole question, the site's data and its arithmetic: where a weight, a label or the version differs, it is
        drawn anew and charged anew. The same noise on two versions of the data would leave their difference bare.
        """
        assert self.budget is not None
        assert self.protocol.privacy is not None
        run = task.values.run
        core, whole = questions.core_digest(task.values.kind, task.values.stated), Message(task.values, task.models)
        asked = core if self.shapes.masked else content_digest(whole)
        asked = hashlib.sha256(f"{asked}|{self.data}|{arithmetic(self.spec.threads)}".encode()).hexdigest()
        patients = {slot: len(work.train_patients(slot)) for slot in chosen}
        self.epsilon = self.budget.charge(run, number, asked, self.protocol.privacy, patients).epsilon
        secret = site_secret(self.spec.workspace)

        def stream(slot: Slot) -> SecretStream:
            return SecretStream(secret, "noise", run, slot.name, number, asked)

        return work.train_privately(models, chosen, number, stream)

    def _finish(self, task: Posed) -> tuple[Metrics, dict[str, Tensor]]:
        """Keep the final models, and say how they judge the site's own patients that they did not learn from."""
        run, folder = self._final(task), self._folder(task.values)
        run.save(folder)
        results = SiteResults.none(self.protocol)
        if self.budget is None:  # under privacy nothing is told, and whether these models can predict would be
            table, secret = predict(run, self.bags, self.features).table, site_secret(self.spec.workspace)
            results = site_results(self.protocol, table, self.bags, secret, self.ledger.lines, self.limits.small_cells)
        entry = {"run": task.values.run, "endpoint": self.protocol.experiment.endpoint, **results.metrics}
        self.ledger.add({"event": "result", **entry, **results.whom, "published": published(folder)})
        if not self.shapes.pooled:
            return results.metrics, results.covariates
        return dict(NOTHING), results.pooled() if self.role == "train" else SiteResults.none(self.protocol).pooled()

    def _final(self, task: Posed) -> Run:
        """The final models; where the strategy gives every site its own, the site's."""
        choices, rounds = task.values.choices, list(task.rounds)
        finetune = self.protocol.experiment.strategy.finetune_epochs  # at the site alone, after the last round
        if self.work is None or not (self.shapes.own or finetune):
            return run_of(self.protocol, task.models, Refit(choices, rounds, self.features.about))
        everyone, memory = slots(self.protocol, "refit", choices), self._memory(task)
        models = self.work.completed(task.models, [memory.of(slot, self.work.first(slot)) for slot in everyone])
        if finetune:
            models = self.work.finetuned(models, everyone, finetune)
        patients = [len(self.work.train_patients(slot)) for slot in everyone]
        return run_of(self.protocol, models, Refit(choices, rounds, self.features.about, patients, self.spec.site))

    def _record(self, question: Message[Question], reply: Message[AnyAnswer], cost: dict[str, float]) -> None:
        entry = {"data_sha256": self.data, "spec_sha256": self.protocol.sha256, "code_sha256": code_sha256(), **cost}
        if self.budget is not None and self.epsilon is not None:
            entry |= {"epsilon": self.epsilon, "delta": self.budget.delta}
        if question.kind == "moments" and self.whom:
            entry |= {"endpoint": self.protocol.experiment.endpoint, **self.whom}
        self.ledger.add(questions.answered(question, reply) | entry)
