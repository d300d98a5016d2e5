"""What a person may see of a federation on this machine, read from ledgers and state files that exist already; nothing is asked of a network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mil.errors import MilError
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.parties import ServerSpec, SiteSpec, protocol_of
from mil.hospital.preflight import check_disk, check_kit, check_revoked
from mil.hospital.record import whole_entries
from mil.hospital.standing import progress_of

Entry = Mapping[str, Any]
MOST_ROWS = 50
MASKED = "noise to everybody; all training sites compute the sum, the coordinator can too"
OPEN = "the coordinator reads it"
GIVEN = {
    "join": ("versions, digests, number of patients", "the coordinator"),
    "moments": ("numbers of training patients; sums of features or classes where the protocol asks for them", ""),
    "train": ("updates and losses; numbers of training patients", ""),
    "watch": ("errors on inner folds", ""),
    "canary": ("the first weights, as they came", "the coordinator"),
    "close": ("head of the ledger", "the coordinator"),
}
"""By kind of question: what a site answers, and to whom; blank: by the protocol's trust."""


@dataclass(frozen=True)
class Table:
    """A caption, the names of its columns, and rows of texts."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Part:
    """A run, or a site: facts, tables, and losses by round."""

    title: str
    facts: Mapping[str, object]
    tables: Sequence[Table] = ()
    curve: Sequence[float] = ()


@dataclass(frozen=True)
class Event:
    """Something that a person may want to be told: `end`, `refusal`, `alarm` or `silence`."""

    kind: str
    run: str
    text: str
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def server_view(spec: ServerSpec) -> list[Part]:
    """Every run of the coordinator's, the newest first."""
    protocol = read_federation(spec.federation)
    folders = sorted(Path(spec.workspace).glob("runs/*/ledger.jsonl"), key=lambda path: -path.stat().st_mtime)
    return [_run(protocol, path.parent) for path in folders[:MOST_ROWS]]


def site_view(spec: SiteSpec) -> list[Part]:
    """What this site gave, to whom, and what it refused."""
    protocol, entries = protocol_of(spec), whole_entries(Path(spec.workspace) / "ledger.jsonl")
    answered = [entry for entry in entries if entry["event"] == "answered"]
    epsilon = max((entry["epsilon"] for entry in entries if "epsilon" in entry), default=None)
    checks = [check_disk(spec), *check_kit(spec)]
    gone = "; ".join(check.sentence for check in check_revoked(spec, protocol))
    facts = {
        "protocol": protocol.sha256[:16],
        "role": protocol.sites[spec.site].role,
        "trust": protocol.trust,
        "last question": f"{when(answered[-1])} {silence(entries, longest_s(protocol))}" if answered else "none yet",
        **({"revoked": gone} if gone else {}),
        "epsilon spent": "no privacy in the protocol" if protocol.privacy is None else f"{epsilon or 0:.3f}",
        **{check.check: f"{check.state}: {check.sentence}" for check in checks},
    }
    refused = [[when(entry), entry["reason"]] for entry in entries if entry["event"] == "refused"]
    results = [entry for entry in entries if entry["event"] == "result"]
    names = ("patients", "positives", "metric", "variance")
    tables = [
        _given(protocol, answered),
        Table("Refused questions", ("time", "reason"), refused[: -MOST_ROWS - 1 : -1]),
        Table("Own results (they are in this site's ledger)", ("run", *names), [[e["run"], *(_short(e[n]) for n in names)] for e in results]),
    ]  # fmt: skip
    return [Part(f"Site {spec.site}", facts, tables)]


def _given(protocol: FederationSpec, answered: Sequence[Entry]) -> Table:
    hidden = protocol.trust == "sites"
    metrics = (
        "nothing but the sum over sites"
        if hidden and protocol.metrics == "sums"
        else "the site's metrics, above the smallest cell"
    )
    metrics = "nothing" if protocol.privacy is not None else metrics
    given = GIVEN | {"finish": (f"metrics: {metrics}", "the coordinator")}
    rows = []
    for run, kind in dict.fromkeys((entry["run"], entry["kind"]) for entry in answered):
        entries = [entry for entry in answered if (entry["run"], entry["kind"]) == (run, kind)]
        what, whom = given.get(kind, (kind, ""))
        megabytes = [
            f"{sum(entry.get(name, 0) for entry in entries) / 1e6:.1f}" for name in ("bytes_sent", "bytes_received")
        ]
        rows.append(
            [run, kind, len(entries), what, whom or (MASKED if hidden else OPEN), *megabytes, when(entries[-1])]
        )
    head = ("run", "question", "answers", "what left", "to whom", "MB out", "MB in", "last")
    return Table("What left this site", head, rows[::-1])


def _run(protocol: FederationSpec, folder: Path) -> Part:
    entries, progress = whole_entries(folder / "ledger.jsonl"), progress_of(folder / "checkpoint.safetensors")
    last = entries[-1] if entries else {}
    rounds = max(progress.rounds, default=0)
    facts = {
        "stage": progress.stage,
        "phase": progress.phase,
        "round": f"{min(progress.round, rounds)} of {rounds}",
        "last line": f"{when(last)} {last.get('event', '')} {last.get('reason', '')} {silence(entries, longest_s(protocol))}",
        "rehearsal": next((entry.get("rehearsal") or "none" for entry in entries if entry["event"] == "started"), ""),
    }
    sites = [
        _site(site, member.role, entries, progress.patients.get(site))
        for site, member in sorted(protocol.sites.items())
    ]
    head = ("site", "role", "last seen", "answers", "patients", "MB received", "missed", "last reason")
    alarms = [[when(entry), site, why] for entry in entries for site, why in entry.get("alarms", {}).items()]
    tables = [Table("Sites", head, sites), Table("Alarms", ("time", "site", "what"), alarms[: -MOST_ROWS - 1 : -1])]
    published = folder / "result" / "sites.csv"
    if published.is_file() and published.stat().st_size > 1:
        table = pd.read_csv(published).dropna(axis=1, how="all")
        tables.append(
            Table(
                "Published metrics", list(table.columns), [[_short(cell) for cell in row] for row in table.to_numpy()]
            )
        )
    return Part(f"Run {folder.name}", facts, tables, [loss for entry in entries if (loss := _loss(entry)) is not None])


def _site(site: str, role: str, entries: Sequence[Entry], patients: int | None) -> list[object]:
    seen = [entry for entry in entries if site in entry.get("answered", {})]
    missed = [entry["missing"][site] for entry in entries if site in entry.get("missing", {})]
    received = sum(entry["answered"][site].get("bytes", 0) for entry in seen) / 1e6
    last = when(seen[-1]) if seen else "never"
    return [site, role, last, len(seen), _short(patients), f"{received:.1f}", len(missed), missed[-1] if missed else ""]


def _loss(entry: Entry) -> float | None:
    """Mean training loss of a round over models, and over sites where they are told apart."""
    if entry["event"] != "answered" or entry.get("kind") != "train":
        return None
    groups = (
        [entry["train_loss"]]
        if "train_loss" in entry
        else [answer.get("train_loss", []) for answer in entry["answered"].values()]
    )
    values = [value for losses in groups for value in losses]
    return sum(values) / len(values) if values else None


def when(entry: Entry) -> str:
    """Time of a line in UTC, to the second, without a break; blank for a line without time."""
    return str(entry.get("time", ""))[:19].replace("T", "\N{NO-BREAK SPACE}")


def _short(cell: object) -> object:
    if cell is None or cell != cell:  # NaN
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def events_of(entries: Sequence[Entry]) -> Iterator[Event]:
    """What in these lines of a ledger, of either side, a person may want to be told."""
    for entry in entries:
        run = str(entry.get("run", ""))
        if entry["event"] == "closed":
            yield Event("end", run, f"run {run} is over")
        if entry["event"] in {"refused", "stopped"}:
            yield Event("refusal", run, str(entry["reason"]))
        if entry["event"] == "waiting" and not entry.get("missing"):
            yield Event("refusal", run, str(entry["reason"]))
        for site, why in entry.get("missing", {}).items():
            kind = "refusal" if str(why).startswith("refused") else "silence"
            yield Event(kind, run, f"site {site}: {why}")
        for site, why in entry.get("alarms", {}).items():
            yield Event("alarm", run, f"site {site}: {why}")


def silence(entries: Sequence[Entry], longest_s: float) -> str:
    """A sentence where a run that is not over has had no line for more than `longest_s`, or where the clock cannot tell; blank otherwise."""
    last = entries[-1] if entries else {}
    if last.get("event") not in {"answered", "lost", "started", "resumed"} or "time" not in last:
        return ""
    age = (datetime.now(UTC) - datetime.fromisoformat(last["time"])).total_seconds()
    if age < -longest_s:
        return f"the last line is dated {-age:.0f} s after this machine's time, so that silence is not noticed; correct the clock"
    return (
        f"no line for {age:.0f} s, where {longest_s:g} s (timeout_s and silent_s) are the longest"
        if age > longest_s
        else ""
    )


def longest_s(protocol: FederationSpec) -> float:
    """Seconds after which a ledger without a new line, in a run that is not over, is worth a remark."""
    return protocol.rounds.silent_s + protocol.rounds.timeout_s


class Watched:
    """The ledgers of one side; `news` are the events since it was asked last."""

    def __init__(self, spec: ServerSpec | SiteSpec) -> None:
        self.pattern = "runs/*/ledger.jsonl" if isinstance(spec, ServerSpec) else "ledger.jsonl"
        protocol = read_federation(spec.federation)
        self.spec, self.silent_s = spec, longest_s(protocol)
        self.known = {path: len(whole_entries(path)) for path in self._paths()}
        self.silent: set[tuple[Path, int]] = set()

    def view(self) -> list[Part]:
        """What the page shows now."""
        return server_view(self.spec) if isinstance(self.spec, ServerSpec) else site_view(self.spec)

    def news(self) -> Iterator[Event]:
        """Events in new lines, and once for each ledger whose run is not over and which has had no line for too long."""
        for path in self._paths():
            entries = whole_entries(path)
            yield from events_of(entries[self.known.get(path, 0) :])
            self.known[path] = len(entries)
            said = silence(entries, self.silent_s)
            if said and (path, len(entries)) not in self.silent:
                self.silent.add((path, len(entries)))
                yield Event("silence", str(entries[-1].get("run", "")), f"{said} ({path.name} of {path.parent.name})")

    def _paths(self) -> list[Path]:
        return sorted(Path(self.spec.workspace).glob(self.pattern))


def parts_or_fault(watched: Watched) -> list[Part]:
    """The view; a file that cannot be read is a part that says so."""
    try:
        return watched.view()
    except (MilError, OSError, KeyError, ValueError) as error:
        return [Part("These files cannot be shown", {"why": f"{type(error).__name__}: {error}"})]
