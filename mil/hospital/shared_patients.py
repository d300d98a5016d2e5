"""Patients and slides that another hospital has too, found by private set intersection (`mil.hospital.intersection`).

Each pair of hospitals exchanges two files either way: `list` (its elements times a secret number, sorted by value, so that their
order says nothing) and `answer` (the other's list times the same number, in the other's order). Then both know which of their elements
the other has. The number is drawn anew for each exchange and deleted at its end.
"""

import hashlib
import json
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mil import hdf5
from mil.errors import MilError, nearest
from mil.hospital.config import FederationSpec
from mil.hospital.intersection import multiplied, point
from mil.hospital.keys import HALF, PartyKey, private_folder
from mil.hospital.local_data import alone, bag_path, feature_files, site_bags
from mil.hospital.parties import SiteSpec, protocol_of
from mil.hospital.questions import check_key
from mil.hospital.record import LedgerFile
from mil.hospital.shared_files import (
    Comparison,
    Elements,
    Exchange,
    Kept,
    SentFile,
    check_size,
    folder_of,
    read_sent,
    write_sent,
)

SINGULAR = {"patients": "patient", "slides": "slide"}
CODE = 16
"""Hexadecimal digits of the code by which two hospitals see that they computed the same."""

Ids = Mapping[str, Mapping[str, str]]
"""`patients` and `slides`: the element that is compared -> the id."""


def site_ids(spec: SiteSpec, protocol: FederationSpec, bags: pd.DataFrame) -> Ids:
    """Elements of this site. A slide whose features state no fingerprint is none."""
    slides = [slide for row in bags["slides"] for slide in str(row).split(";")]
    files = zip(slides, feature_files(spec, protocol, bags), strict=True)
    return {
        "patients": {
            unicodedata.normalize("NFKC", "".join(str(name).split()).casefold()): str(name)
            for name in bags["patient_id"]
        },
        "slides": {str(value): slide for slide, path in files if (value := hdf5.attributes(path).get("fingerprint"))},
    }


def exchange(spec: SiteSpec, files: Sequence[Path], again: Sequence[str] = ()) -> list[str]:
    """Take other hospitals' files and write those for them; sentences on what to send, and on what is shared.

    Without files: a list for every hospital that was not compared yet. `again`: hospitals to which a new list goes.
    """
    protocol = protocol_of(spec)
    for other in again:
        if other not in protocol.sites or other == spec.site:
            raise MilError(f"--again {other}: is no other site; {nearest(other, set(protocol.sites) - {spec.site})}")
    with alone(Path(spec.workspace) / "sharing", 0.0, f"compare patients as site {spec.site}"):
        received = [(path, read_sent(path, protocol, spec.site)) for path in files]
        received.sort(key=lambda pair: pair[1].kind, reverse=True)  # lists first
        exchanges = Exchanges(spec, protocol)
        lines = [exchanges.begin(other) for other in again]
        lines += exchanges.begin_with_all() if not files and not again else []
        return lines + [line for path, sent in received for line in exchanges.take(path, sent)]


def uncompared(comparison: Comparison, ids: Ids) -> int:
    """Number of a site's elements that were not compared."""
    return sum(len(known.keys() - set(getattr(comparison.own, kind))) for kind, known in ids.items())


def still_shared(comparison: Comparison, ids: Ids) -> list[str]:
    """`patient ID` or `slide ID` of every element of a site that the other one has too."""
    return [
        f"{SINGULAR[kind]} {known[value]}"
        for kind, known in ids.items()
        for value in sorted(known.keys() & set(getattr(comparison.shared, kind)))
    ]


class Exchanges:
    """A site's part in the exchanges with the others."""

    def __init__(self, spec: SiteSpec, protocol: FederationSpec) -> None:
        self.spec, self.protocol, self.party = spec, protocol, PartyKey(spec.workspace)
        stated = protocol.sites[spec.site].key
        check_key(stated, self.party.public, f"site {spec.site}")
        if stated is None:
            raise MilError(f"{spec.federation}: sites.{spec.site}.key is not set; put in what `mil site key` prints")
        self.ids = site_ids(spec, protocol, site_bags(bag_path(spec, protocol), spec.site, protocol))
        private_folder(folder_of(spec))

    def begin_with_all(self) -> list[str]:
        """A list for every other site, but for those that were compared; where an exchange is under way, its list once more."""
        lines = []
        for other, member in sorted(self.protocol.sites.items()):
            kept = Kept.read(self.spec, other)
            if other == self.spec.site:
                continue
            if member.key is None:
                lines.append(f"{other}: not compared, because sites.{other}.key in federation.yaml is not set")
            elif (begun := self._under_way(kept)) is not None:
                lines.append(f"send to {other}: {write_sent(self.spec, begun.sent)}")
            elif (done := kept.comparison) and done.protocol == self.protocol.sha256 and not uncompared(done, self.ids):
                lines += self._result(other, done)
            else:
                lines.append(self.begin(other))
        return lines

    def begin(self, other: str) -> str:
        """A new exchange; what is under way with the site, if anything, is dropped."""
        return f"send to {other}: {write_sent(self.spec, self._begun(other).sent)}"

    def take(self, path: Path, sent: SentFile) -> list[str]:
        """Go on with a file of another site."""
        return self._take_list(path, sent) if sent.kind == "list" else self._take_answer(path, sent)

    def _under_way(self, kept: Kept) -> Exchange | None:
        begun = kept.exchange
        return begun if begun is not None and begun.sent.protocol == self.protocol.sha256 else None

    def _begun(self, other: str) -> Exchange:
        secret = secrets.token_bytes(HALF)
        points, ids = {}, {}
        for kind, known in self.ids.items():
            label = f"{self.protocol.sha256}|{kind}"
            hidden = [product.hex() for product in multiplied((point(label, value) for value in known), secret)]
            points[kind], ids[kind] = zip(*sorted(zip(hidden, known, strict=True)), strict=True) if known else ((), ())
        sent = self._file(kind="list", recipient=other, **points)
        check_size(sent, self.protocol, self.spec.federation)
        begun = Exchange(secret=secret.hex(), own=Elements(**ids), sent=sent)
        Kept.read(self.spec, other).model_copy(update={"exchange": begun}).write(self.spec, other)
        return begun

    def _file(self, **fields: Any) -> SentFile:
        sent = SentFile(sender=self.spec.site, protocol=self.protocol.sha256, **fields)
        return sent.model_copy(update={"signature": self.party.sign(sent.content)})

    def _take_list(self, path: Path, sent: SentFile) -> list[str]:
        other, lines = sent.sender, []
        kept = Kept.read(self.spec, other)
        if kept.comparison is not None and kept.comparison.received == sent.sha256:
            raise MilError(f"{path}: was compared already; to compare again, {other} begins anew and sends a new list")
        begun = self._under_way(kept)
        if begun is None:
            begun = self._begun(other)
            lines = [f"send to {other}: {write_sent(self.spec, begun.sent)}"]
        if begun.received is not None and begun.received.sha256 != sent.sha256:
            raise MilError(
                f"{path}: another list of {other} was answered in this exchange already; an exchange has one list of each; both hospitals begin anew with --again"
            )
        if begun.answer is None:
            begun = self._answered(begun, sent, path)
        assert begun.answer is not None
        return [*lines, f"send to {other}: {write_sent(self.spec, begun.answer)}"]

    def _answered(self, begun: Exchange, sent: SentFile, path: Path) -> Exchange:
        """The exchange with the other site's list and the answer to it, which the ledger then has a line of."""
        secret, other = bytes.fromhex(begun.secret), sent.sender
        try:
            points = {
                kind: tuple(product.hex() for product in multiplied(map(bytes.fromhex, getattr(sent, kind)), secret))
                for kind in SINGULAR
            }
        except ValueError as error:
            raise MilError(f"{path}: holds a point of small order, with which nothing is secret; refused") from error
        lists = {self.spec.site: begun.sent.sha256, other: sent.sha256}
        answer = self._file(kind="answer", recipient=other, lists=lists, **points)
        counts = {kind: len(points[kind]) for kind in SINGULAR}
        ledger = LedgerFile(Path(self.spec.workspace) / "ledger.jsonl", self.spec.site, self.party)
        ledger.add({"event": "compared", "with": other, **counts, "list_sha256": sent.sha256})
        answered = begun.model_copy(update={"received": sent, "answer": answer})
        Kept.read(self.spec, other).model_copy(update={"exchange": answered}).write(self.spec, other)
        return answered

    def _take_answer(self, path: Path, sent: SentFile) -> list[str]:
        other = sent.sender
        begun = self._under_way(Kept.read(self.spec, other))
        if begun is None:
            raise MilError(
                f"{path}: no exchange with {other} is under way; `mil site shared site.yaml --again {other}`"
            )
        if begun.received is None or begun.answer is None:
            raise MilError(
                f"{path}: comes before the list of {other}; give {other}-to-{self.spec.site}.list.json first"
            )
        if sent.lists != {self.spec.site: begun.sent.sha256, other: begun.received.sha256}:
            raise MilError(
                f"{path}: answers other lists than those of this exchange; ask {other} for a new answer, or both begin anew with --again"
            )
        shared = {}
        for kind in SINGULAR:
            ids, points, theirs = (getattr(holder, kind) for holder in (begun.own, sent, begun.answer))
            if len(points) != len(ids) or len(set(points)) != len(points):
                raise MilError(f"{path}: {len(set(points))} points for {len(ids)} {kind}; refused")
            there = set(theirs)
            shared[kind] = {product: value for value, product in zip(ids, points, strict=True) if product in there}
        both = {**sent.lists, **{kind: sorted(matches) for kind, matches in shared.items()}}
        done = Comparison(
            protocol=self.protocol.sha256,
            received=begun.received.sha256,
            own=begun.own,
            shared=Elements(**{kind: tuple(matches.values()) for kind, matches in shared.items()}),
            code=hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest()[:CODE],
        )
        Kept(comparison=done).write(self.spec, other)
        return self._result(other, done)

    def _result(self, other: str, done: Comparison) -> list[str]:
        counts = [f"{len(getattr(done.shared, kind))} of {len(getattr(done.own, kind))} {kind}" for kind in SINGULAR]
        said = f"{other}: {' and '.join(counts)} are there too (code {done.code}; {other} must read the same)"
        return [said, *(f"{duplicate} is at {other} too" for duplicate in still_shared(done, self.ids))]
