"""A server that asks for more than the protocol, a site that answers with something else: refused, or written down."""

import contextlib
import json
from pathlib import Path

import inprocess
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, SEEN, Bad, Hospitals, edited, make_hospitals, rewrite_protocol

from mil.errors import MilError
from mil.hospital.alarms import stand_apart
from mil.hospital.config import FederationSpec
from mil.hospital.coordinator import folder_of
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import NotAgreed, PayloadError, TooFewPatients, header
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site

pytestmark = pytest.mark.slow

ODD_NAMES = [
    *("", ".", "..", "../x", "a/b", "/etc", "a\\b", "..\\x", "~", "-rf", ".hidden", " a", "a ", "a b", "a\nb", "a\0b"),
    *(
        "x" * 129,
        "x" * 300,
        "a:b",
        "a*",
        "a?",
        'a"',
        "a|b",
        "a;b",
        "$HOME",
        "`id`",
        "%2e%2e",
        "é",
        "\u202eexe.txt",
        "a\u200bb",
    ),
]
"""Thirty: paths, blanks, shells, control characters, direction marks, lengths."""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("federation"), **SEEN)


def opened(hospitals: Hospitals) -> dict[str, Site]:
    return {name: Site.open(hospitals.site(name)) for name in hospitals.protocol.sites}


def until_kind(server: Server, sites: dict[str, Site], kind: str) -> bytes:
    """The server's next question of this kind, everything before it answered."""
    while server.kind != kind:
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})
    return server.question()


# A server


@pytest.mark.parametrize("kind", ["train", "watch", "finish"])
def test_a_place_has_one_question_for_ever(hospitals: Hospitals, tmp_path: Path, kind: str) -> None:
    """Other weights in the same place would tell of single patients by what differs; the same question may come again."""
    sites, run = opened(hospitals), f"once-{kind}"
    question = until_kind(Server(hospitals.protocol, run, tmp_path), sites, kind)
    assert _tensors(sites["A"].answer(question)) == _tensors(sites["A"].answer(question))
    crafted = edited(question, lambda found: {**found, "embed.bias": found["embed.bias"] - 3})
    for site in (sites["A"], Site.open(hospitals.site("A"))):  # a restart does not help
        with pytest.raises(PayloadError, match=f"another question '{kind}' of run {run}"):
            site.answer(crafted)


def _tensors(blob: bytes) -> bytes:
    return blob[8 + int.from_bytes(blob[:8], "little") :]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"round": 4}, "round 4 is not among the 3"),
        ({"round": 0}, "round 0"),
        ({"round": -1}, "round -1"),
        ({"used": [0, 4]}, "beyond the protocol"),
        ({"used": [-1, 0]}, "beyond the protocol"),
        ({"used": [0]}, "has not 2 numbers"),
        ({"choices": [0]}, "choices"),
        ({"run": "../../other"}, "not a name"),
        ({"kind": "features"}, "not asked of this site"),
        ({"lr": 1e9}, "value 'lr' is not on the list"),
        ({"local_steps": 1}, "value 'local_steps' is not on the list"),
        ({"encoder": "python:evil.py:make"}, "value 'encoder' is not on the list"),
    ],
)
def test_what_is_not_of_the_protocol_is_not_answered(
    hospitals: Hospitals, tmp_path: Path, values: dict, said: str
) -> None:
    sites = opened(hospitals)
    question = until_kind(Server(hospitals.protocol, "odd", tmp_path), sites, "train")
    with pytest.raises(PayloadError, match=said):
        sites["A"].answer(edited(question, **values))


def test_losses_are_told_of_whole_sets_of_inner_folds_only(hospitals: Hospitals, tmp_path: Path) -> None:
    sites = opened(hospitals)
    question = until_kind(Server(hospitals.protocol, "parted", tmp_path), sites, "watch")
    one = edited(question, lambda found: {name: value[:1] for name, value in found.items()}, slots=[0])
    with pytest.raises(PayloadError, match="part the inner folds"):
        sites["A"].answer(one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_trained_on(hospitals: Hospitals, tmp_path: Path, value: float) -> None:
    sites = opened(hospitals)
    question = until_kind(Server(hospitals.protocol, "nan", tmp_path), sites, "train")
    with pytest.raises(PayloadError, match=r"'score\.bias' holds NaN or infinity"):
        sites["A"].answer(edited(question, lambda found: {**found, "score.bias": found["score.bias"] + value}))


def test_an_update_that_overflows_does_not_leave_the_site(hospitals: Hospitals, tmp_path: Path) -> None:
    sites = opened(hospitals)
    question = until_kind(Server(hospitals.protocol, "huge", tmp_path), sites, "train")
    with pytest.raises(PayloadError, match=r"site A, answer to 'train': .*holds NaN or infinity"):
        sites["A"].answer(edited(question, lambda found: {**found, "score.weight": found["score.weight"] * 0 + 3e38}))
    last = json.loads(sites["A"].ledger.lines[-1])
    assert (last["event"], "NaN" in last["reason"]) == ("refused", True)


def test_a_run_that_the_hospital_has_not_agreed_to_is_refused_but_for_its_canary(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    spec = hospitals.site("A").model_copy(update={"runs": ("agreed",)})
    site = Site.open(spec)
    assert site.answer(Server(hospitals.protocol, "agreed", tmp_path / "1").question())
    assert site.answer(Server(hospitals.protocol, "canary-1", tmp_path / "2", canary=True).question())
    with pytest.raises(NotAgreed, match=r"run another is not among those that site.yaml agrees to \(agreed\)"):
        site.answer(Server(hospitals.protocol, "another", tmp_path / "3").question())
    server = Server(hospitals.protocol, "canary-1", tmp_path / "4")  # a canary in name only
    server.receive({name: one.answer(server.question()) for name, one in opened(hospitals).items()}, {})
    with pytest.raises(NotAgreed, match="run canary-1 is not among"):
        site.answer(server.question())


def test_two_runs_whose_patients_differ_by_few_are_not_both_told_of(tmp_path: Path) -> None:
    """Two patients more in the second run: the difference of the metrics would be theirs alone."""
    hospitals = make_hospitals(tmp_path)
    for run, dropped in {"first": 2, "second": 0, "third": 2, "fourth": 25}.items():
        path = Path(hospitals.site("C").results) / "bags" / "response.csv"
        whole = path.read_text()
        path.write_text("\n".join(whole.splitlines()[: -dropped or None]) + "\n")
        inprocess.run(Server(hospitals.protocol, run, tmp_path / run), opened(hospitals))
        path.write_text(whole)
    tables = {
        run: pd.read_csv(tmp_path / run / "result" / "sites.csv").set_index("site")
        for run in ("first", "second", "third")
    }
    assert tables["first"].loc["C", "patients"] == tables["third"].loc["C", "patients"] == 28
    assert tables["second"].loc["C", ["patients", "positives", "metric", "variance"]].isna().all()
    assert tables["second"].loc["A", "patients"] == 48


def test_a_small_class_is_not_counted_for_the_server(tmp_path: Path) -> None:
    """48 patients of two classes: 16 of them in the smallest fold's training set are 8 of each."""
    own = {**PROTOCOL["experiment"], "training": {**PROTOCOL["experiment"]["training"], "imbalance": "weights"}}
    hospitals = make_hospitals(tmp_path, experiment=own, payload={"small_cells": 12})
    sites = opened(hospitals)
    server = Server(hospitals.protocol, "small", tmp_path / "run")
    server.receive({name: site.answer(server.question()) for name, site in sites.items()}, {})
    with pytest.raises(TooFewPatients, match="fewer than 12 patients of a class"):
        sites["A"].answer(server.question())


def test_a_site_of_few_patients_does_not_say_how_many(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, sites={"A": ("train", 48), "C": ("external", 9)})
    question = Server(hospitals.protocol, "few", tmp_path / "run").question()
    assert header(Site.open(hospitals.site("C")).answer(question), "")["values"]["num_bags"] is None
    assert header(Site.open(hospitals.site("A")).answer(question), "")["values"]["num_bags"] == 48


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_is_no_site_run_encoder_or_endpoint(hospitals: Hospitals, name: str) -> None:
    whole = hospitals.protocol.model_dump(mode="json")
    for key in ("encoder", "endpoint"):
        with pytest.raises(ValueError, match=rf"experiment.{key}|{key}: the text holds a NUL"):
            FederationSpec.model_validate({**whole, "experiment": {**whole["experiment"], key: name}})
    with pytest.raises(ValueError, match="letters, digits"):
        FederationSpec.model_validate({**whole, "sites": {**whole["sites"], name: {"organisation": "o"}}})
    with pytest.raises(ValueError, match="letters, digits"):
        SiteSpec(site=name, results="r")
    with pytest.raises(MilError, match="cannot be a file name"):
        folder_of(hospitals.server, name)


# A site


def many(number: int):
    return lambda blob: edited(blob, lambda found: {**found, "num_bags": found["num_bags"] * 0 + number})


def told(**numbers: float):
    def change(found: dict) -> dict:
        return {**found, **{name: torch.full_like(found[name], value) for name, value in numbers.items()}}

    return lambda blob: edited(blob, change)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("train", many(10**9), "1000000000 patients, but the protocol knows of 48"),
        ("train", many(47), "other patients than it began with"),
        ("moments", many(10**9), "1000000000 patients, but the protocol knows of 48"),
        (
            "moments",
            lambda blob: edited(blob, lambda f: {**f, "features.squares": -f["features.squares"]}),
            "is negative",
        ),
        ("moments", lambda blob: edited(blob, lambda f: {**f, "features.mean": f["features.mean"].float()}), "float32"),
        (
            "moments",
            lambda blob: edited(blob, lambda f: {**f, "features.squares": f["features.squares"] + 1e300}),
            "beyond",
        ),
        ("moments", lambda blob: edited(blob, lambda f: {**f, "features.mean": f["features.mean"] - 1e39}), "beyond"),
        ("train", lambda blob: edited(blob, lambda f: {**f, "score.bias": f["score.bias"].double()}), "float64"),
        (
            "train",
            lambda blob: edited(blob, lambda f: {**f, "watched_count": -f["num_bags"][:3].double()}),
            "'watched_count'",
        ),
        ("watch", told(watched_error=-1e30), "'watched_error' is negative"),
        (
            "watch",
            told(watched_error=32.01),
            "'watched_error' is 32.01 over 32 patients; at most 1 of each is possible",
        ),
        ("watch", told(watched_count=0.0), "'watched_count' is 0, but 32 of its patients are watched"),
        (
            "finish",
            lambda blob: edited(blob, metric=1.0, patients=10**9, variance=0.0),
            "metrics of 1000000000 patients",
        ),
        ("finish", lambda blob: edited(blob, metric=7.5), "'metric' is 7.5; 0 to 1 are possible"),
        ("finish", lambda blob: edited(blob, variance=-3.0), "'variance' is -3;"),
        ("finish", lambda blob: edited(blob, positives=48), "48 positive patients of 48"),
        ("train", lambda blob: blob + b"0" * 3_000_000, "more than the 2,000,000"),
        ("join", lambda blob: edited(blob, width=10**9), "features of 1000000000 numbers a tile"),
    ],
)
def test_a_site_that_claims_too_much_is_refused(
    hospitals: Hospitals, tmp_path: Path, kind: str, change, said: str
) -> None:
    members = hospitals.protocol.model_dump(mode="json")["sites"]
    members["A"]["patients"] = 60
    with rewrite_protocol(hospitals, sites=members):
        sites = opened(hospitals)
        with pytest.raises(SitesMissing, match=f"A: refused.*{said}"):
            inprocess.run(
                Server(hospitals.protocol, tmp_path.name, tmp_path), {**sites, "A": Bad(sites["A"], kind, change)}
            )


def test_a_site_that_decides_alone_raises_an_alarm(hospitals: Hospitals, tmp_path: Path) -> None:
    sites, server = opened(hospitals), Server(hospitals.protocol, tmp_path.name, tmp_path)
    sites["A"] = Bad(
        sites["A"],
        "moments",
        lambda blob: edited(blob, lambda f: {**f, "features.mean": f["features.mean"] + 1e30}),
    )
    until_kind(server, sites, "moments")
    with contextlib.suppress(MilError):
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})
    assert "features.mean is 1e" in json.loads(server.ledger.lines[-1])["alarms"]["A"]


def test_an_error_far_from_the_other_sites_raises_an_alarm() -> None:
    told = {
        site: {"watched_error": torch.tensor([4.0 * k, 0.0]), "watched_count": torch.tensor([4.0, 0.0])}
        for site, k in zip("ABC", (1, 2, 30), strict=True)
    }
    assert list(stand_apart("watch", told)) == ["C"]


def test_the_difference_after_a_corrected_label_is_not_answered(tmp_path: Path) -> None:
    """The same weights to a site before and after one label changed: the difference is that patient's alone."""
    for trust in ("coordinator", "sites"):
        hospitals = make_hospitals(tmp_path / trust, trust=trust)
        sites, server = opened(hospitals), Server(hospitals.protocol, "run", tmp_path / trust / "run")
        question = until_kind(server, sites, "train")
        sites["A"].answer(question)
        path = Path(hospitals.site("A").results) / "bags" / "response.csv"
        path.write_text(path.read_text().replace("A000,A-0-0;A-0-1,A,train,0", "A000,A-0-0;A-0-1,A,train,1"))
        with pytest.raises(PayloadError, match="data have changed since question 'train'"):
            Site.open(hospitals.site("A")).answer(question)


@pytest.mark.parametrize(("repeats", "refused"), [(1, False), (5, True)])
def test_folds_whose_sums_determine_a_patient_are_refused(tmp_path: Path, repeats: int, refused: bool) -> None:
    hospitals = make_hospitals(tmp_path, endpoint={"folds": 5, "inner_folds": 4, "repeats": repeats}, **SEEN)
    if not refused:
        assert Site.open(hospitals.site("A"))
        return
    with pytest.raises(MilError, match=r"sums of features over 125 sets of patients determine \d+ of the 48 patients"):
        Site.open(hospitals.site("A"))


def test_between_hospitals_features_are_scaled_at_each_site_unless_the_protocol_says_otherwise(tmp_path: Path) -> None:
    assert make_hospitals(tmp_path / "default").protocol.experiment.training.scaling == "site"
    assert make_hospitals(tmp_path / "stated", **SEEN).protocol.experiment.training.scaling == "standard"


def test_old_and_doubled_answers_move_nothing(hospitals: Hospitals, tmp_path: Path) -> None:
    """An update of an earlier round, come late, and the same one twice: refused, written down, the end is the same."""
    plain = Server(hospitals.protocol, "late", tmp_path / "plain")
    inprocess.run(plain, opened(hospitals))
    sites, server = opened(hospitals), Server(hospitals.protocol, "late", tmp_path / "late")
    old: bytes | None = None
    while server.kind != "done":
        question = server.question()
        answers = {name: sites[name].answer(question) for name in server.asked}
        if old is not None and server.kind == "train":
            with pytest.raises(SitesMissing, match="A: refused"):
                server.receive({**answers, "A": old}, {})
            assert json.loads(server.ledger.lines[-1])["event"] == "waiting"
        old = answers["A"] if server.kind == "train" else old
        server.receive({**answers, **answers}, {})
    assert server.stages.digest() == plain.stages.digest()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    own = {**PROTOCOL["experiment"], "training": {**PROTOCOL["experiment"]["training"], "rounds": 2}}
    sites = dict.fromkeys("ABC", ("train", 48))
    return make_hospitals(tmp_path_factory.mktemp("three"), sites=sites, experiment=own, trust="coordinator")


def poisoned(question: dict, factor: float):
    """Answers whose change is `factor` times the true one."""

    def change(blob: bytes) -> bytes:
        return edited(
            blob,
            lambda found: {
                name: question["now"][name] + factor * (value - question["now"][name])
                if name in question["now"]
                else value
                for name, value in found.items()
            },
        )

    return change


def poisoned_run(hospitals: Hospitals, folder: Path, factor: float) -> Server:
    """Site C multiplies every update by `factor`."""
    sites, server, seen = opened(hospitals), Server(hospitals.protocol, folder.name, folder), {"now": {}}
    liar = Bad(sites["C"], "train", poisoned(seen, factor))
    while server.kind != "done":
        question = server.question()
        seen["now"] = {name: value for name, value in server.stages.models().items() if name in server.stages.state}
        server.receive({**{name: sites[name].answer(question) for name in "AB"}, "C": liar.answer(question)}, {})
    return server


@pytest.mark.extended
@pytest.mark.parametrize(
    ("factor", "said"), [(100.0, "times as long"), (-1.0, "points against"), (-100.0, "times as long")]
)
def test_a_poisoned_update_raises_an_alarm_and_the_median_bears_a_long_one(
    three: Hospitals, tmp_path: Path, factor: float, said: str
) -> None:
    found = {}
    for strategy in ("fedavg", "median"):
        with rewrite_protocol(
            three, experiment={**three.protocol.experiment.model_dump(mode="json"), "strategy": strategy}
        ):
            for times in (1.0, factor):
                found[strategy, times] = poisoned_run(three, tmp_path / f"{strategy}{times}", times)
    for (strategy, times), server in found.items():
        lines = [json.loads(line) for line in server.ledger.lines]
        alarms = [line["alarms"] for line in lines if "alarms" in line]
        assert all(set(alarm) == {"C"} and said in alarm["C"] for alarm in alarms), (strategy, alarms)
        assert bool(alarms) == (times != 1.0)
    moved = {
        strategy: torch.cat(
            [
                (found[strategy, factor].stages.state[name] - value).flatten()
                for name, value in found[strategy, 1.0].stages.state.items()
            ]
        ).norm()
        for strategy in ("fedavg", "median")
    }
    if abs(factor) > 1:
        assert moved["median"] < moved["fedavg"] / 20


def test_an_update_over_the_bound_is_refused_on_either_side(three: Hospitals, tmp_path: Path) -> None:
    with rewrite_protocol(three, payload={"max_mb_a_round": 2.0, "max_update": 1.0}):
        with pytest.raises(SitesMissing, match=r"C: refused: .* more than the 1 of max_update"):
            poisoned_run(three, tmp_path / "bound", 100.0)
        assert poisoned_run(three, tmp_path / "honest", 1.0).kind == "done"
        tight = three.site("A").model_copy(update={"max_update": 1e-3})
        question = until_kind(Server(three.protocol, "tight", tmp_path / "tight"), opened(three), "train")
        with pytest.raises(PayloadError, match=r"more than the 0\.001 of max_update"):
            Site.open(tight).answer(question)
