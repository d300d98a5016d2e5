"""A site that claims too much, too often or too long."""

import contextlib
import json
from pathlib import Path

import inprocess
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, SEEN, Bad, Hospitals, edited, make_hospitals, resigned, rewrite_protocol
from reached_runs import Reached, opened, reached, until_kind

from mil.errors import MilError
from mil.hospital.alarms import stand_apart
from mil.hospital.forms import groups_of
from mil.hospital.payload import PayloadError
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("federation"), **SEEN)


@pytest.fixture(scope="module")
def claiming(
    hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Reached, dict[str, bytes]]]:
    """A run at each kind of question with its honest answers; an answer that is refused changes nothing."""
    found, members = {}, hospitals.protocol.model_dump(mode="json")["sites"]
    members["A"]["patients"] = 60
    with rewrite_protocol(hospitals, sites=members):
        for kind in ("join", "moments", "train", "watch", "finish"):
            run = reached(hospitals, tmp_path_factory.mktemp(kind), kind)
            found[kind] = run, {name: run.sites[name].answer(run.question) for name in run.server.asked}
    return found


def test_few_events_are_not_told_to_a_coordinator_who_reads_each_site_s(tmp_path: Path) -> None:
    """Watched errors of a survival endpoint come with the number of events: 6 of 48 left, although `small_cells` is 10."""
    endpoint = {"folds": 3, "inner_folds": 3, "kind": "survival", "event": "died"}
    for trust in ("coordinator", "sites"):
        hospitals = make_hospitals(tmp_path, experiment=PROTOCOL["experiment"], endpoint=endpoint, trust=trust)
        path = Path(hospitals.site("A").results) / "bags" / "response.csv"
        table = pd.read_csv(path).assign(time=range(9, 57), label=[int(row % 8 == 0) for row in range(48)])
        table.to_csv(path, index=False)
        if trust == "sites":
            assert Site.open(hospitals.site("A"))
            continue
        with pytest.raises(MilError, match=r"site A would tell of \d events, fewer than 10 \(small_cells\)"):
            Site.open(hospitals.site("A"))


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
    claiming: dict[str, tuple[Reached, dict[str, bytes]]], kind: str, change, said: str
) -> None:
    run, answers = claiming[kind]
    with pytest.raises(SitesMissing, match=f"A: refused.*{said}"):
        run.server.receive({**answers, "A": resigned(change(answers["A"]), run.sites["A"])}, {})


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


def test_where_nobody_watched_had_an_event_nothing_is_chosen_and_a_line_says_so(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    sites, server = opened(hospitals), Server(hospitals.protocol, tmp_path.name, tmp_path)
    until_kind(server, sites, "train")
    stages = server.stages
    folds = len(groups_of(hospitals.protocol, "inner"))
    stages.progress.curves = [[0.5] * (folds - 1) + [None], [0.4] * (folds - 1) + [None]]
    with pytest.raises(MilError, match=f"outer fold {folds - 1}: no candidate has a finite error .* lower training.lr"):
        stages._choose()


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
