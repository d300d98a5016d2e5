"""Attacks that were thought of by somebody who had not seen the other tests: refused in one line, never in silence or a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import inprocess
import pytest
import torch
from hospitals import SEEN, Bad, Hospitals, edited, make_hospitals, resigned
from reached_runs import BRIEF, THREE, Reached, opened, reached
from safetensors import safe_open
from safetensors.torch import load, save

from mil.errors import CorruptFile, MilError
from mil.hospital import server as serving
from mil.hospital.blobs import as_part
from mil.hospital.masking import exact
from mil.hospital.payload import PayloadError, header, parsed
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site
from mil.hospital.sums import moments_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("three"), sites=THREE, experiment=BRIEF)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return make_hospitals(tmp_path_factory.mktemp("seen"), **SEEN)


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
    (tmp_path / "state").write_bytes(as_part(run.server.relay.before).whole().numpy().tobytes())
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


def test_a_damaged_feature_file_is_in_the_record_without_the_name_of_its_slide(
    three: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of slides may hold those of patients, and the ledger is shown to the other parties. The error itself names the file."""
    shutil.copytree(three.folder, tmp_path / "copy")
    hospitals = Hospitals(tmp_path / "copy")
    monkeypatch.setattr("mil.training.store.memory_given", lambda: 2000)  # tiles stay in their files
    run = reached(hospitals, tmp_path / "damaged", "train")
    for path in (Path(hospitals.site("A").results) / "sites" / "A" / "features" / "toy").glob("*.h5"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"A-\d+-\d\.h5"):
        run.sites["A"].answer(run.question)
    said = json.loads(run.sites["A"].ledger.lines[-1])["reason"]
    assert said.startswith("results/sites/A/features/toy/<slide>.h5: ")
    assert "A-" not in said


def test_an_update_that_no_sum_can_hold_does_not_leave_the_site(tmp_path: Path) -> None:
    wild = {"rounds": 2, "batch_size": 8, "lr": 1e8, "optimiser": "sgd"}
    hospitals = make_hospitals(tmp_path, experiment={**BRIEF, "training": wild})
    run = reached(hospitals, tmp_path / "wild", "train")
    with pytest.raises(PayloadError, match="Lower the learning rate"):
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
        ("finish", told(patients=10**3000), "value 'patients' is 10+..., not a finite number"),
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


@pytest.mark.parametrize("stated", [{"masked_sha256": "0" * 64}, {"state_sha256": "0" * 64}, {"asked": [0, 1]}])
def test_a_site_whose_masks_are_of_another_question_is_named_and_not_passed_on(training: Reached, stated: dict) -> None:
    """The server took it, and from then on every honest site refused the run's questions for ever."""
    answers = {name: training.sites[name].answer(training.question) for name in training.server.asked}
    wrong = resigned(edited(answers["B"], **stated), training.sites["B"])
    before = training.server.checkpoint.read_bytes()
    with pytest.raises(SitesMissing, match="B: refused: site B: the answer is of another state, or its masks"):
        training.server.receive({**answers, "B": wrong}, {})
    assert training.server.checkpoint.read_bytes() == before
