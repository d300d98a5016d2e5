"""The coordinator's side of a run: which question comes next, and what becomes of the sites' answers.

Knows no engine: `question` says what to ask, `asked` whom, `receive` takes what came back and who stayed silent. After
every round the state is one file on disk, written before the next question, so that a server that was killed goes on from
there and ends with the same weights bit for bit. Everything that happened stands in the ledger.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as packed
from torch import Tensor

from mil.errors import MilError
from mil.files import write_bytes
from mil.hospital import state_files, sums
from mil.hospital.alarms import all_alarms, lone_voice
from mil.hospital.blobs import Blob, Lazy, as_part, digest_of
from mil.hospital.claims import MOST_PATIENTS, check_claims, most_patients
from mil.hospital.config import FederationSpec
from mil.hospital.crosscheck import published
from mil.hospital.forms import CLOSE_QUESTION, JOIN_QUESTION, Forms, groups_of
from mil.hospital.identity import differences, identity
from mil.hospital.keys import PartyKey, is_signed
from mil.hospital.messages import AnyAnswer, FinishAnswer, Followed, FollowedAnswer, JoinAnswer, Question
from mil.hospital.models import Refit, rounds_table, run_of
from mil.hospital.payload import Form, Message, PayloadError, content_digest, pack, pack_file, unpack
from mil.hospital.questions import position_digest
from mil.hospital.record import LedgerFile
from mil.hospital.relay import Relayed, carried, entry_of, signed_content
from mil.hospital.results import Totals, covariates_table, pooled_totals, sites_table
from mil.provenance import SAME_EVERYWHERE
from mil.tables import write_table

WIDEST = 65536
"""Most numbers a tile; a site that says more would have the server draw models of any size."""
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
        rehearsal: str | None = None,
        party: PartyKey | None = None,
        revoked: bytes = b"",
    ) -> None:
        """`rehearsal`: the canary that came back before; `party`: the server's key, in the run's folder where none is given;
        `revoked`: the signed list of revoked sites, which the sites are sent.
        """
        self.revoked = revoked
        self.protocol, self.run, self.folder = protocol, run, Path(folder)
        self.party = party or PartyKey(self.folder)
        self.ledger = LedgerFile(self.folder / "ledger.jsonl", "server", self.party)
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.stages = state_files.load(protocol, self.checkpoint, canary)
        self.relay = Relayed.load(self.checkpoint)
        self.max_bytes = protocol.payload.max_mb_a_round * 1e6
        self.joined = False
        self.keys: dict[str, str] = {}
        """The sites' public keys, as they joined."""
        self.asked_sha256, self.question_sha256 = "", ""
        self.wanted: dict[str, object] = {}  # what a masked answer must state of the last question
        self.behind = False
        """A training site has not computed the last state, and needs a snapshot of it."""
        self.lost: set[str] = set()
        """Training sites without whose masks the last question of a run must be asked again."""
        self.away: dict[str, str] = {}
        """Training sites that are not asked again in this job, and why."""
        if '"event": "closed"' in self.ledger.lines[-1]:
            self.stages.progress.stage = "done"
            self._save()
            return
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
        if self.kind in {"join", "finish", "close"}:
            return sorted(set(self.protocol.sites) - self.lost)
        return [site for site in self.stages.drawn if site not in self.away]

    def question(self) -> bytes:
        """The next question."""
        message, form, most = self._next()
        blob = pack(message, form, most, "server")
        self.question_sha256 = digest_of(blob)
        return blob

    def question_file(self) -> Path:
        """The same as a file in the run's folder."""
        path = self.folder / "question.safetensors"
        message, form, most = self._next()
        pack_file(message, form, most, "server", path)
        self.question_sha256 = digest_of(path)
        return path

    def _next(self) -> tuple[Message[Question], Form[Question], float]:
        """The next question, its form and the most bytes that it may have."""
        progress, live, kind = self.stages.progress, self.stages.live, self.kind
        known: dict[str, object] = {"run": self.run, "ledger": self.ledger.last, "spec_sha256": self.protocol.sha256}
        tensors: Mapping[str, Tensor] = {}
        relayed: list[str] = []
        form: Form[Question]
        if kind == "join":
            form, tensors = JOIN_QUESTION, Lazy({"revoked": as_part(self.revoked)})
            known |= {**identity(self.protocol), "canary": self.stages.canary, "key": self.party.public}
        elif kind == "close":
            form = CLOSE_QUESTION
        else:
            known |= {"phase": progress.phase, "slots": live, "choices": progress.choices, "round": progress.round}
            if self.protocol.trust == "sites":
                relayed, tensors = sorted(self.relay.answers), self._carried()
                known |= self._followed(relayed)
            else:
                tensors = self.stages.models() if kind != "moments" else {}
                known["used"] = [progress.used.get(site, 0) for site in self.protocol.training_sites]
                known["rounds"] = progress.rounds
            form = self._forms().question(kind, len(live), relayed)
        message = form.filled(known, tensors, "server")
        self.asked_sha256 = content_digest(message)
        if isinstance(posed := message.values, Followed):
            masks = {"masked_sha256": position_digest(kind, message.stated)}
            self.wanted = {"state_sha256": posed.state_sha256, "asked": posed.asked, **masks}
        return message, form, self.max_bytes * (1 + 2 * len(relayed))

    def _carried(self) -> Lazy:
        """The sites' last answers, and a snapshot of the state they belong to where somebody has not computed it."""
        needed = self.behind or (self.kind == "finish" and self.protocol.external_sites)
        return carried(self.relay.answers, self.relay.before if needed else b"")

    def _followed(self, relayed: list[str]) -> dict[str, object]:
        everyone = self.protocol.training_sites
        asked = [everyone.index(site) for site in self.asked if site in everyone]
        now = {"step": self.stages.progress.step, "state_sha256": self.stages.sha256}
        return {**now, "asked": asked, "relayed": [everyone.index(site) for site in relayed]}

    def _save(self) -> None:
        state_files.save(self.stages, self.checkpoint, self.relay.tensors())
        self.relay = Relayed.load(self.checkpoint)  # the answers are there now, and no longer in memory
        (self.folder / "before.safetensors").unlink(missing_ok=True)

    def receive(self, answers: Mapping[str, Blob], silent: Mapping[str, str]) -> None:
        """Take the answers to the last question, by site, and why the other sites gave none. Files are read one at a time.

        Raises `SitesMissing` when too few answered as they should: nothing has changed then but the ledger.
        """
        kind, place = self.kind, self.stages.progress.place
        messages, answered, missing = self._judged(kind, answers)
        missing = {**self.away, **silent, **missing}
        asked = {"slots": self.stages.live, "choices": self.stages.progress.choices, "asked_sha256": self.asked_sha256}
        entry = {"run": self.run, "kind": kind, **place, **asked, "missing": dict(sorted(missing.items()))}
        hidden, relay = self.protocol.trust == "sites", self.relay
        heads = {site: message.values.ledger for site, message in sorted(messages.items())}
        if kind != "close":
            entry["answered"] = dict(sorted(answered.items()))
        if alarms := self._alarms(kind, messages):
            entry["alarms"] = alarms
        try:
            self._enough(kind, messages, missing)
            if self._summed(kind) and set(messages) != set(self.asked):
                self.away |= {site: missing.get(site, "no answer") for site in self.asked if site not in messages}
                self.lost = set(self.asked) - set(messages) if kind == "finish" else set()
                self.ledger.add({"event": "lost", **entry})
                return
            if hidden and kind not in {"join", "close"}:
                trained = {site: answers[site] for site in messages if site in self.protocol.training_sites}
                before = self.folder / "before.safetensors"
                state_files.save(self.stages, before)
                relay = Relayed(trained, before)
            if hidden and "train_loss" in messages[min(messages)].tensors:
                entry["train_loss"] = sums.pooled_losses([message.tensors for message in messages.values()])
            entry |= self._advance(kind, messages)
        except MilError as error:
            self.ledger.add({"event": "waiting", "reason": str(error), **entry})
            raise
        if hidden and kind not in {"join", "close"}:
            self.relay, self.behind = relay, False
        self.away = {site: why for site, why in missing.items() if site in self.protocol.training_sites}
        self.lost = set()
        if kind == "close":
            self.ledger.add({"event": "closed", "run": self.run, "heads": heads}, timed=False)
        else:
            self.ledger.add({"event": "answered", "global_sha256": self.stages.digest(), **entry})
        self._save()

    def _summed(self, kind: str) -> bool:
        shapes = self.stages.shapes
        return shapes is not None and shapes.summed(kind)

    def _alarms(self, kind: str, answers: Mapping[str, Message[AnyAnswer]]) -> dict[str, str]:
        if self.protocol.trust == "sites":
            return lone_voice(answers)
        before = {name: value[self.stages.live] for name, value in self.stages.state.items()}
        return all_alarms(kind, answers, before, self.stages.progress.round == 1)

    def pause(self) -> None:
        """The job ends here and the next one goes on."""
        self.ledger.add({"event": "paused", "run": self.run, **self.stages.progress.place})

    def _forms(self) -> Forms:
        return Forms(self.stages.shapes)

    def _judged(
        self, kind: str, answers: Mapping[str, Blob]
    ) -> tuple[dict[str, Message[AnyAnswer]], dict[str, dict[str, object]], dict[str, str]]:
        """Answers that may be used, what is masked added up; what the ledger keeps of them; why the others may not be used."""
        form = self._forms().answer(
            kind, len(self.stages.live), len(groups_of(self.protocol, self.stages.progress.phase, kind))
        )
        messages, answered, refused = {}, {}, {}
        for site, blob in answers.items():
            try:
                message = unpack(blob, form, self.max_bytes, f"site {site}, answer to '{kind}'")
                self._check(site, message)
            except PayloadError as error:
                refused[site] = f"refused: {error}"
                continue
            answered[site] = entry_of(message, blob) if kind != "close" else {}
            messages[site] = message
        return messages, answered, refused

    def _check(self, site: str, message: Message[AnyAnswer]) -> None:
        values = message.values
        if values.site != site:
            raise PayloadError(f"the answer of site {site} says it is from {values.site}")
        key = values.key if isinstance(values, JoinAnswer) else self.keys.get(site)
        if key is None or not is_signed(signed_content(message), values.signature, key):
            raise PayloadError(f"site {site}: the answer is not signed with its key")
        if values.question_sha256 != self.question_sha256:
            raise PayloadError(f"site {site}: the answer is to another question than this one")
        if isinstance(values, FollowedAnswer) and not self.wanted.items() <= values.stated.items():
            raise PayloadError(f"site {site}: the answer is of another state, or its masks are of another question")
        check_claims(self.protocol, self.stages, site, message)
        if isinstance(values, JoinAnswer):
            self._check_join(site, values)

    def _check_join(self, site: str, values: JoinAnswer) -> None:
        width, patients = values.width, values.num_bags
        if not 1 <= width <= WIDEST:
            raise PayloadError(f"site {site}: features of {width} numbers a tile; 1 to {WIDEST} are taken")
        if patients is not None and not 1 <= patients <= MOST_PATIENTS:
            raise PayloadError(f"site {site}: says that it has {patients} patients")
        pinned, stated = self.protocol.sites[site].key, values.stated
        if pinned is not None and values.key != pinned:
            raise PayloadError(f"site {site}: its key is {values.key[:12]}, not the protocol's {pinned[:12]}")
        differing = differences(identity(self.protocol), stated)
        if self.stages.progress.data.get(site, values.data_sha256) != values.data_sha256:
            differing.append("its data have changed since the run began")
        for key, wanted in self.protocol.features.model_dump().items():
            if wanted is not None and stated[key] != wanted:
                differing.append(f"{key} of its features is {stated[key]}, not {wanted}")
        if differing:
            raise PayloadError(f"site {site}: {'; '.join(differing)}")

    def _enough(self, kind: str, answers: Mapping[str, Message[AnyAnswer]], missing: Mapping[str, str]) -> None:
        needed = [site for site in self.protocol.required_sites if site in self.stages.drawn]
        if kind in {"finish", "close"}:
            needed = needed + self.protocol.external_sites
        lacking = [site for site in needed if site not in answers]
        if lacking:
            reasons = {site: missing.get(site, "no answer") for site in lacking}
            raise SitesMissing(f"{self.run}: without {', '.join(lacking)} no round counts", reasons)
        present = len([site for site in self.protocol.training_sites if site in answers])
        least = min(self.protocol.minimum_sites, len(self.stages.drawn))
        if present < least:
            raise SitesMissing(f"{self.run}: {present} of at least {least} sites answered", missing)

    def _advance(self, kind: str, answers: Mapping[str, Message[AnyAnswer]]) -> dict[str, object]:
        """Move on; what else the ledger keeps of it."""
        if kind == "join":
            joins = {site: answer.values for site, answer in answers.items() if isinstance(answer.values, JoinAnswer)}
            self._join(joins)
            return {}
        kept: dict[str, object] = {}
        if kind == "finish":
            trained = [answers[site].tensors for site in self.protocol.training_sites if site in answers]
            most = most_patients(self.protocol, self.stages)
            pooled = pooled_totals(trained, most) if self._summed(kind) else None
            kept = {"pooled": pooled} if pooled else {}
            kept["roles"] = roles = {site: member.role for site, member in self.protocol.sites.items()}
            self._save_result(answers, roles, pooled)
            kept |= {"endpoint_kind": self.protocol.endpoint.kind, "published": published(self.folder / "result")}
        self.stages.take({site: answers[site] for site in self.protocol.training_sites if site in answers})
        return kept

    def _join(self, answers: Mapping[str, JoinAnswer]) -> None:
        first, stated = min(answers), {site: values.stated for site, values in answers.items()}
        for site, values in stated.items():
            for key in COMPARED:
                if values[key] != stated[first][key]:
                    raise MilError(
                        f"site {site}: {key} of its features is {values[key]}, but {stated[first][key]} at "
                        f"{first}; extract both with the same encoder and tiles"
                    )
        self.stages.join(answers[first].width, {key: stated[first][key] for key in COMPARED[1:]})
        self.stages.progress.patients |= {site: values.num_bags for site, values in answers.items()}
        self.stages.progress.data |= {site: values.data_sha256 for site, values in answers.items()}
        self.joined = True
        self.keys = {site: values.key for site, values in answers.items()}
        steps = {answers[site].step for site in self.protocol.training_sites if site in answers}
        now = self.stages.progress.step
        self.behind = now > 1 and not steps <= {now, now - 1}

    def _save_result(
        self, answers: Mapping[str, Message[AnyAnswer]], roles: Mapping[str, str], pooled: Totals | None
    ) -> None:
        """The run as `mil train` saves one, and every site's own metrics or what their sums say."""
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
        metrics = {
            site: answer.values.metrics for site, answer in answers.items() if isinstance(answer.values, FinishAnswer)
        }
        write_table(sites_table(self.protocol.endpoint.kind, roles, metrics, pooled), self.folder / "result/sites.csv")
        if (names := self.protocol.experiment.covariates) and self.protocol.privacy is None:
            covariates = {site: answers[site].tensors for site in answers if not pooled or roles[site] == "train"}
            table = covariates_table(names, covariates, most_patients(self.protocol, self.stages) if pooled else None)
            write_table(table, self.folder / "result" / "covariates.csv")
