"""A server that asks for more than the protocol's questions."""

import json
from pathlib import Path

import inprocess
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, SEEN, Hospitals, edited, make_hospitals, rewrite_protocol
from reached_runs import BRIEFEST, Reached, opened, reached, until_kind

from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.hospital.coordinator import folder_of
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import NotAgreed, PayloadError, TooFewPatients, header
from mil.hospital.server import Server
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


@pytest.fixture(scope="module")
def training(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Reached:
    """At the first round, which nobody has answered; a question that is refused changes nothing."""
    return reached(hospitals, tmp_path_factory.mktemp("odd"), "train")


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


def test_the_last_question_has_one_place_whatever_phase_it_states(hospitals: Hospitals, tmp_path: Path) -> None:
    """Each other word was another place: crafted models were judged on a hospital's patients as often as the coordinator liked."""
    sites = opened(hospitals)
    question = until_kind(Server(hospitals.protocol, "phases", tmp_path), sites, "finish")
    for phase in ("inner", "other"):
        with pytest.raises(PayloadError, match=f"phase '{phase}' is not of the protocol"):
            sites["A"].answer(edited(question, phase=phase))
    assert sites["A"].answer(question)


def _tensors(blob: bytes) -> bytes:
    return blob[8 + int.from_bytes(blob[:8], "little") :]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"round": 3}, "round 3 is not among the 2"),
        ({"round": 0}, "round 0"),
        ({"round": -1}, "round -1"),
        ({"used": [0, 3]}, "beyond the protocol"),
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
def test_what_is_not_of_the_protocol_is_not_answered(training: Reached, values: dict, said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        training.sites["A"].answer(edited(training.question, **values))


def test_losses_are_told_of_whole_sets_of_inner_folds_only(hospitals: Hospitals, tmp_path: Path) -> None:
    sites = opened(hospitals)
    question = until_kind(Server(hospitals.protocol, "parted", tmp_path), sites, "watch")
    one = edited(question, lambda found: {name: value[:1] for name, value in found.items()}, slots=[0])
    with pytest.raises(PayloadError, match="part the inner folds"):
        sites["A"].answer(one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_trained_on(training: Reached, value: float) -> None:
    with pytest.raises(PayloadError, match=r"'score\.bias' holds NaN or infinity"):
        training.sites["A"].answer(
            edited(training.question, lambda found: {**found, "score.bias": found["score.bias"] + value})
        )


def test_an_update_that_overflows_does_not_leave_the_site(training: Reached) -> None:
    sites, question = training.sites, training.question
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
    hospitals = make_hospitals(tmp_path, experiment=BRIEFEST)
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


def test_a_place_is_answered_once_also_under_another_protocol(tmp_path: Path) -> None:
    """A coordinator who forgets its checkpoint, after a key of the protocol that changes no number was edited."""
    hospitals = make_hospitals(
        tmp_path, **{**SEEN, "experiment": {**SEEN["experiment"], "training": BRIEFEST["training"]}}
    )
    inprocess.run(Server(hospitals.protocol, "run", tmp_path / "one" / "run"), opened(hospitals))
    with rewrite_protocol(hospitals, rounds={"timeout_s": 601.0}):
        again = Server(hospitals.protocol, "run", tmp_path / "two" / "run")
        question = until_kind(again, sites := opened(hospitals), "moments")
        with pytest.raises(PayloadError, match="another question 'moments' of run run"):
            sites["A"].answer(question)
