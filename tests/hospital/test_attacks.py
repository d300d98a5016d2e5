"""Attacks that were thought of by somebody who had not seen the other tests: refused in one line, never in silence or a traceback."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import inprocess
import pytest
import torch
import yaml
from hospitals import PROTOCOL, SEEN, Bad, Hospitals, edited, make_hospitals, resigned
from safetensors import safe_open
from safetensors.torch import load, save

from mil.errors import CorruptFile, MilError
from mil.hospital import server as serving
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.crosscheck import cross_check
from mil.hospital.keys import PartyKey
from mil.hospital.masking import exact
from mil.hospital.parties import ServerSpec, SiteSpec, read_own
from mil.hospital.payload import PayloadError, header, parsed
from mil.hospital.preflight import check_site
from mil.hospital.privacy import BudgetSpent
from mil.hospital.record import read_record
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site
from mil.hospital.sums import moments_of
from mil.training.ledger import Ledger

pytestmark = pytest.mark.slow

BRIEF = {**PROTOCOL["experiment"], "training": {"rounds": 2, "batch_size": 8, "lr": 0.01}}
THREE = {**dict.fromkeys("ABD", ("train", 48)), "C": ("external", 30)}


@dataclass
class Reached:
    """A run of three training hospitals that has come to a question."""

    hospitals: Hospitals
    server: Server
    sites: dict[str, Site]
    question: bytes


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("three"), sites=THREE, experiment=BRIEF)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return make_hospitals(tmp_path_factory.mktemp("seen"), **SEEN)


def opened(hospitals: Hospitals) -> dict[str, Site]:
    return {name: Site.open(hospitals.site(name)) for name in hospitals.protocol.sites}


def reached(hospitals: Hospitals, folder: Path, kind: str, number: int | None = None) -> Reached:
    sites, server = opened(hospitals), Server(hospitals.protocol, folder.name, folder)
    while server.kind != kind or number not in (None, server.stages.progress.round):
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})
    return Reached(hospitals, server, sites, server.question())


@pytest.fixture(scope="module")
def training(three: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Reached:
    """At the second round, before anybody has answered it."""
    return reached(three, tmp_path_factory.mktemp("training"), "train", 2)


# The coordinator to a site


@pytest.mark.parametrize(
    "values",
    [
        {"relayed": [[0]]},
        {"relayed": ["a", 1]},
        {"relayed": [0.5]},
        {"relayed": [None]},
        {"relayed": [{}, {}]},
        {"relayed": [True, 2]},
        {"relayed": {"0": 1}},
        {"slots": [10**30]},
        {"asked": [0, 1, 10**30]},
        {"asked": [0, 0, 1, 2]},
        {"step": -1},
        {"step": 10**40},
        {"choices": [True]},
        {"kind": "__class__"},
        {"run": "\u202e"},
        {"run": "other"},
        {"ledger": "F" * 64},
    ],
)
def test_a_question_with_odd_values_is_refused_and_written_down(training: Reached, values: dict) -> None:
    site = training.sites["A"]
    with pytest.raises(MilError):
        site.answer(edited(training.question, **values))
    assert json.loads(site.ledger.lines[-1])["event"] == "refused"


@pytest.mark.parametrize("content", [b"", bytes(50), b"\xff" * 200])
def test_relayed_bytes_that_are_no_answer_are_refused(training: Reached, content: bytes) -> None:
    told = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
    with pytest.raises(PayloadError, match="answer of B"):
        training.sites["A"].answer(edited(training.question, lambda found: {**found, "relay/B": told}))


def test_answers_of_another_run_are_not_taken_for_this_one_s(three: Hospitals, tmp_path: Path) -> None:
    """Equal seeds give equal first models, so only the question that an answer belongs to tells two runs apart."""
    first, second = (reached(three, tmp_path / name, "train", 2) for name in ("once", "again"))
    replayed = edited(second.question, lambda found: {**found, **load(first.question)})
    with pytest.raises(PayloadError, match="is to another question, or of another run"):
        second.sites["A"].answer(replayed)
    assert second.sites["A"].answer(second.question)


def test_a_colluding_site_s_count_is_judged_by_every_site(
    three: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator lets it pass: the others' shares would be nothing, or no numbers at all."""
    run = reached(three, tmp_path / "collude", "moments")
    answers = {name: run.sites[name].answer(run.question) for name in run.server.asked}
    honest = answers["B"]
    monkeypatch.setattr(serving, "check_claims", lambda *_: None)
    for count in (0, -20, 1, 2**62):
        shutil.copytree(tmp_path / "collude", tmp_path / f"{count}")
        server = Server(three.protocol, "collude", tmp_path / f"{count}")
        server.joined, server.keys, server.question_sha256 = True, run.server.keys, run.server.question_sha256
        many = edited(honest, lambda found, n=count: {**found, "num_bags": torch.full_like(found["num_bags"], n)})
        server.receive({**answers, "B": resigned(many, run.sites["B"])}, {})
        with pytest.raises(PayloadError, match="site B: "):
            run.sites["A"].answer(server.question())


SNAPSHOTS = {
    "rounds": "abc",
    "phase": 5,
    "stage": [],
    "choices": "q",
    "num_bags": [],
    "round": "1",
    "curves": 5,
    "unknown": 1,
}


def test_a_snapshot_is_not_looked_into_before_its_digest_is_signed(three: Hospitals, tmp_path: Path) -> None:
    """Whatever a coordinator writes there; `patients` alone is in no digest, and is not used."""
    run = reached(three, tmp_path / "snapshot", "train", 2)
    (tmp_path / "state").write_bytes(run.server.relay.before)
    with safe_open(tmp_path / "state", "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    Path(three.site("D").workspace, "runs", "snapshot", "replica.safetensors").unlink()
    site, run.server.behind = Site.open(three.site("D")), True
    told = json.loads(about["progress"])
    made = [{**about, "progress": json.dumps({**told, key: value})} for key, value in SNAPSHOTS.items()]
    for metadata in (*made, {"progress": about["progress"]}, {}):
        run.server.relay.before = save(tensors, metadata)
        with pytest.raises(PayloadError, match=r"0 of 3 sites signed the state|is not a state of this protocol"):
            site.answer(run.server.question())
    run.server.relay.before = save(tensors, {**about, "progress": json.dumps({**told, "patients": {"A": "many"}})})
    assert site.answer(run.server.question())


def test_tensors_of_types_that_no_message_has_are_refused() -> None:
    blob = save({"a": torch.zeros(4, dtype=torch.uint8)}, {"mil": json.dumps({"kind": "train", "values": {}})})
    assert parsed(blob, "here").kind == "train"
    for written in ("F8_E8M0", "F8_E4M3", "BF16", "BOOL"):
        about = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        about["a"] |= {"dtype": written, "shape": [2 if written == "BF16" else 4]}
        head = json.dumps(about).encode()
        with pytest.raises(PayloadError):
            parsed(len(head).to_bytes(8, "little") + head + bytes(4), "here")


def test_a_spoilt_file_of_the_site_s_own_is_named_without_its_place(training: Reached) -> None:
    site, spec = training.sites["B"], training.hospitals.site("B")
    path = Path(spec.workspace, "runs", training.server.run, "replica.safetensors")
    whole = path.read_bytes()
    for content in (b"", b"x" * 500, save({"a": torch.zeros(2)})):
        path.write_bytes(content)
        with pytest.raises(CorruptFile):
            site.answer(training.question)
        said = json.loads(site.ledger.lines[-1])["reason"]
        assert "replica.safetensors" in said
        assert str(training.hospitals.folder) not in said
    path.write_bytes(whole)


def test_an_update_that_no_sum_can_hold_does_not_leave_the_site(tmp_path: Path) -> None:
    wild = {"rounds": 2, "batch_size": 8, "lr": 1e8, "optimiser": "sgd"}
    hospitals = make_hospitals(tmp_path, experiment={**BRIEF, "training": wild})
    run = reached(hospitals, tmp_path / "wild", "train")
    with pytest.raises(PayloadError, match="lower the learning rate"):
        run.sites["A"].answer(run.question)


# A site to the coordinator


@pytest.fixture(scope="module")
def claiming(seen: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reached]:
    """A run for each kind of question, at its first one; an answer that is refused changes nothing."""
    return {kind: reached(seen, tmp_path_factory.mktemp(f"at-{kind}"), kind) for kind in ("join", "train", "finish")}


def changed(**parts: Callable) -> Callable[[bytes], bytes]:
    return lambda blob: edited(
        blob, lambda found: {**found, **{name: change(found[name]) for name, change in parts.items()}}
    )


def told(**values: object) -> Callable[[bytes], bytes]:
    return lambda blob: edited(blob, **values)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("train", changed(train_loss=lambda value: value * 0 - 1e30), "'train_loss' is negative"),
        ("join", told(num_bags=10**30), "says that it has 1000"),
        ("finish", told(positives=None, metric=0.99, variance=0.0), "are not the numbers of a binary endpoint"),
        ("finish", told(variance=None), "are not the numbers of a binary endpoint"),
        ("finish", told(metric=None), "are not the numbers of a binary endpoint"),
        ("finish", told(logrank_difference=3.0, logrank_variance=1.0), "are not the numbers of a binary endpoint"),
        ("finish", told(patients=None), "are not the numbers of a binary endpoint"),
        ("finish", told(positives=1), "1 positive patients of 48; 10 of either are the fewest"),
        ("finish", told(metric=0.9300001), "is no share of 576 pairs"),
        ("finish", told(variance=0.25), "'variance' is 0.25"),
        ("finish", told(patients=10**3000), "metrics of inf patients"),
    ],
)
def test_numbers_that_cannot_be_are_refused(claiming: dict[str, Reached], kind: str, change, said: str) -> None:
    run = claiming[kind]
    answers = {name: run.sites[name].answer(run.question) for name in run.server.asked}
    with pytest.raises(SitesMissing, match=f"A: refused.*{said}"):
        run.server.receive({**answers, "A": resigned(change(answers["A"]), run.sites["A"])}, {})


@pytest.mark.parametrize("site", ["A", "C"])
def test_who_joins_with_too_few_to_be_stated_counts_with_none(three: Hospitals, tmp_path: Path, site: str) -> None:
    class Liar(Bad):
        def answer(self, blob: bytes) -> bytes:
            found, kind = self.site.answer(blob), header(blob, "")["kind"]
            if kind == "join":
                found = edited(found, num_bags=None)
            if kind == "moments":
                found = changed(num_bags=lambda value: value * 0 + 10**6)(found)
            if kind == "finish":
                found = edited(found, patients=10**6, positives=10**5, metric=1.0, variance=0.0)
            return resigned(found, self.site)

    sites = opened(three)
    with pytest.raises(SitesMissing, match=f"{site}: refused.*(knows of 0|20 to 0 are allowed)"):
        inprocess.run(Server(three.protocol, f"few{site}", tmp_path), {**sites, site: Liar(sites[site], "", None)})


def test_a_site_with_far_more_tiles_a_patient_raises_an_alarm(seen: Hospitals, tmp_path: Path) -> None:
    sites = opened(seen)
    server, many = Server(seen.protocol, "tiles", tmp_path), changed(**{"features.count": lambda value: value * 1000})
    inprocess.run(server, {**sites, "A": Bad(sites["A"], "moments", many)})
    assert any(
        "number of tiles a patient" in json.loads(line).get("alarms", {}).get("A", "") for line in server.ledger.lines
    )


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("train", changed(**{"score.bias": lambda value: value + 2**62}), "mean change of all sites is"),
        ("train", changed(**{"score.weight": lambda value: value + int(1e4 * 2**40)}), "more than the 5 of max_update"),
        ("watch", changed(watched_count=lambda value: value - int(1e3 * 2**40)), "but 96 are watched"),
        ("watch", changed(watched_error=lambda value: value - int(1e5 * 2**40)), "watched errors of all sites are -"),
    ],
)
def test_a_masked_lie_that_no_sum_can_show_honestly_stops_the_round(
    bounded: dict[str, Reached], kind: str, change, said: str
) -> None:
    """No part can be judged, but a mean is no larger than its largest part, and the number of watched patients is known."""
    run = bounded[kind]
    answers = {name: run.sites[name].answer(run.question) for name in run.server.asked}
    with pytest.raises(PayloadError, match=said):
        run.server.receive({**answers, "B": resigned(change(answers["B"]), run.sites["B"])}, {})


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reached]:
    folder = tmp_path_factory.mktemp("bounded")
    hospitals = make_hospitals(
        folder, sites=THREE, experiment=BRIEF, payload={"max_mb_a_round": 2.0, "max_update": 5.0}
    )
    return {
        "train": reached(hospitals, folder / "first", "train"),
        "watch": reached(hospitals, folder / "second", "watch"),
    }


def test_masked_moments_that_no_rows_have_are_refused() -> None:
    from fractions import Fraction as F

    for numbers in ([F(-3), F(1), F(1)], [F(1, 2), F(1), F(1)], [F(4), F(8), F(1)]):
        with pytest.raises(PayloadError, match="which cannot be"):
            moments_of(exact(numbers).view(1, 3, -1))
    assert moments_of(exact([F(2), F(4), F(10)]).view(1, 3, -1)).mean.tolist() == [[2.0]]


# Keys and files


def protocol_with(three: Hospitals, tmp_path: Path, change: Callable[[dict], object]) -> FederationSpec:
    whole = yaml.safe_load((three.folder / "server" / "federation.yaml").read_text())
    change(whole)
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(whole))
    return read_federation(tmp_path / "federation.yaml")


def key_of(whole: dict, first: str | None = None, second: str | None = None) -> None:
    own = whole["sites"]["B"]["key"]
    whole["sites"]["B"]["key"] = (first or own[:64]) + (second or own[64:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda spec: spec["sites"]["B"].update(key=spec["sites"]["A"]["key"]),
            r"sites\.B\.key: is the key of sites\.A",
        ),
        (lambda spec: spec["server"].update(key=spec["sites"]["A"]["key"]), r"server\.key: is the key of sites\.A"),
        (lambda spec: key_of(spec, second=spec["sites"]["A"]["key"][64:]), "is the key of"),
        (lambda spec: key_of(spec, "0" * 64, "0" * 64), "is no key"),
        (lambda spec: key_of(spec, first="01" + "0" * 62), "is no key"),
        (lambda spec: key_of(spec, first="ec" + "f" * 60 + "7f"), "is no key"),
        (lambda spec: key_of(spec, first="f" * 64), "is no key"),
        (lambda spec: key_of(spec, second="01" + "0" * 62), "small order"),
        (lambda spec: spec["sites"].update(server={"organisation": "x", "role": "external"}), "name of the server"),
        (lambda spec: spec["sites"].update(localhost={"organisation": "x", "role": "external"}), "name of the server"),
        (lambda spec: spec["sites"].update(a={"organisation": "x", "role": "external"}), "but for case"),
        (lambda spec: spec.update(rounds={"silent_s": 1e-9}), r"rounds\.silent_s"),
        (lambda spec: spec.update(rounds={"timeout_s": float("nan")}), r"rounds\.timeout_s"),
        (lambda spec: spec.update(rounds={"signatures": 99}), "99, but 3 sites train"),
        (lambda spec: spec.update(rounds={"allow_subset": True, "minimum": 99}), "99, but 3 sites train"),
    ],
)
def test_a_protocol_that_protects_nothing_is_refused(three: Hospitals, tmp_path: Path, change, said: str) -> None:
    with pytest.raises(MilError, match=said):
        protocol_with(three, tmp_path, change)


def test_keys_that_mil_makes_pass(tmp_path: Path) -> None:
    from mil.hospital.keys import check_public

    for number in range(20):
        check_public(PartyKey(tmp_path / str(number)).public)


@pytest.mark.parametrize(
    ("spec", "values", "said"),
    [
        (SiteSpec, {"workspace": "~nobody-of-that-name/x"}, "workspace: .* is no path"),
        (SiteSpec, {"results": "a\0b"}, "results: "),
        (SiteSpec, {"results": ""}, "results"),
        (SiteSpec, {"against": ["a\0b"]}, "against: "),
        (SiteSpec, {"threads": 10**9}, "threads"),
        (ServerSpec, {"operator": "../../x"}, "operator"),
        (ServerSpec, {"operator": "a\nb"}, "operator"),
    ],
)
def test_an_own_file_with_odd_values_is_a_line(tmp_path: Path, spec, values: dict, said: str) -> None:
    given = {"site": "A", "results": "results", **values} if spec is SiteSpec else values
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(MilError, match=said):
        read_own(spec, tmp_path / "own.yaml")


def test_secrets_that_others_may_read_and_a_salt_that_is_none_are_faults(three: Hospitals, tmp_path: Path) -> None:
    spec = three.elsewhere("A", tmp_path / "workspace")
    (tmp_path / "workspace" / "party.key").chmod(0o644)
    spec = spec.model_copy(update={"salt": str(tmp_path / "none"), "against": (str(tmp_path / "B.hashes"),)})
    faults = {one.check: one.sentence for one in check_site(spec) if one.state == "fault"}
    assert "party.key: others than its owner may read it" in faults["keys"]
    assert "the salt cannot be read" in faults["duplicates"]
    (tmp_path / "other" / "party.key").mkdir(parents=True)
    with pytest.raises(MilError, match="cannot be read"):
        PartyKey(tmp_path / "other")


def test_an_account_that_was_lost_is_noticed_under_another_delta(tmp_path: Path) -> None:
    own = {**BRIEF, "training": {**BRIEF["training"], "scaling": "none"}}
    private = {"noise": 1.0, "expected_batch": 8, "epsilon": 1e6, "delta": 1e-3}
    hospitals = make_hospitals(tmp_path, experiment=own, privacy=private)
    run = reached(hospitals, tmp_path / "run", "train")
    run.sites["A"].answer(run.question)
    Path(hospitals.site("A").workspace, "privacy.jsonl").unlink()
    for path in hospitals.folder.glob("*/federation.yaml"):
        path.write_text(path.read_text().replace("delta: 0.001", "delta: 0.002"))
    with pytest.raises(BudgetSpent, match="1 rounds that were not charged"):
        Site.open(hospitals.site("A"))


# Ledgers


@pytest.fixture(scope="module")
def finished(three: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PartyKey]]:
    """Copies of the ledgers of all parties of a run, and their keys; the result lies beside them."""
    folder, run = tmp_path_factory.mktemp("ledgers"), tmp_path_factory.mktemp("finished")
    hospitals = make_hospitals(folder / "h", sites=THREE, experiment=BRIEF)
    inprocess.run(Server(hospitals.protocol, "run", run), opened(hospitals))
    shutil.copytree(run / "result", folder / "result")
    found = {}
    for party in ("server", *THREE):
        workspace = run if party == "server" else Path(hospitals.site(party).workspace)
        shutil.copy(workspace / "ledger.jsonl", folder / f"{party}.jsonl")
        found[party] = (folder / f"{party}.jsonl", PartyKey(workspace))
    return found


def faults_of(finished: dict[str, tuple[Path, PartyKey]]) -> list[str]:
    try:
        return cross_check(
            finished["server"][0], {site: path for site, (path, _) in finished.items() if site != "server"}
        ).faults
    except CorruptFile as error:
        return [str(error)]


def signed_anew(entries: list[dict], key: PartyKey) -> str:
    ledger = Ledger()
    ledger.signed = lambda body: {**body, "signature": key.sign(body["hash"].encode())}
    for entry in entries:
        ledger.add({name: value for name, value in entry.items() if name not in {"hash", "prev_hash", "signature"}})
    return "".join(f"{line}\n" for line in ledger.lines)


@pytest.mark.parametrize("value", ["removed", None, [], {"A": {}}])
def test_a_line_of_other_types_signed_by_its_owner_is_named(finished, value: object) -> None:
    """Every field of every line of the server and of a site."""
    assert faults_of(finished) == []
    passed = []
    for party in ("server", "A"):
        path, key = finished[party]
        whole = path.read_text()
        entries = [json.loads(line) for line in whole.splitlines()]
        for number, entry in enumerate(entries):
            for name in set(entry) - {"hash", "prev_hash", "signature"}:
                other = {**entry, name: value} if value != "removed" else {k: v for k, v in entry.items() if k != name}
                path.write_text(signed_anew([*entries[:number], other, *entries[number + 1 :]], key))
                passed += [] if other == entry or faults_of(finished) else [f"{party} line {number + 1}: {name}"]
        path.write_text(whole)
    assert passed == []


@pytest.mark.parametrize("party", ["server", "A"])
def test_bytes_that_a_reader_of_lines_does_not_see_are_found(finished, party: str) -> None:
    path, _ = finished[party]
    whole = path.read_bytes()
    for other in (b"\r\n", b"\x0b", b"\x0c", "\x85".encode(), "\u2028".encode(), b"\n\n", b" \n"):
        path.write_bytes(whole.replace(b"\n", other))
        assert faults_of(finished), other
    for content in (
        whole[:-1],
        whole + b"\n",
        b"\xef\xbb\xbf" + whole,
        whole + b"\0",
        whole.decode().encode("utf-16"),
        b"",
    ):
        path.write_bytes(content)
        assert faults_of(finished), content[-10:]
    path.write_bytes(whole)
    assert len(read_record(path)) == len(whole.splitlines())


def test_a_file_that_was_put_into_or_taken_out_of_a_result_is_named(finished) -> None:
    result = finished["server"][0].parent / "result"
    extra, table = result / "sites_corrected.csv", result / "sites.csv"
    extra.write_text("site,metric\nA,0.99\n")
    assert "sites_corrected.csv: is not a file that server line" in faults_of(finished)[0]
    extra.unlink()
    content = table.read_bytes()
    for other in (b"", b"\xff\xfe\0,", content + b"\n"):
        table.write_bytes(other)
        assert "sites.csv: is not a file that server line" in faults_of(finished)[0]
    table.unlink()
    assert "sites.csv: is not a file that server line" in faults_of(finished)[0]
    table.write_bytes(content)
    assert faults_of(finished) == []


# Two runs


def test_metrics_of_two_runs_are_withheld_where_one_patient_was_replaced(tmp_path: Path) -> None:
    """As many patients and positives as before: only who they are tells that the difference is of two patients."""
    hospitals = make_hospitals(tmp_path)
    path = Path(hospitals.site("C").results) / "bags" / "response.csv"
    found = {}
    for run in ("first", "second", "third"):
        whole = path.read_text()
        lines = whole.splitlines()
        dropped = 1 if run == "second" else 29  # both without the endpoint
        path.write_text("\n".join(lines[:dropped] + lines[dropped + 1 :]) + "\n")
        inprocess.run(Server(hospitals.protocol, run, tmp_path / run), opened(hospitals))
        path.write_text(whole)
        ledger = [
            json.loads(line) for line in Path(hospitals.site("C").workspace, "ledger.jsonl").read_text().splitlines()
        ]
        found[run] = [line["patients"] for line in ledger if line["event"] == "result"][-1]
    assert found == {"first": 29, "second": None, "third": 29}
