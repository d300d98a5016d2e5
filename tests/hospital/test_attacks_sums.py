"""Attacks on sums: what two of them differ by, whom a sum is of, and what a site may add to one."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import inprocess
import numpy as np
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, Hospitals, edited, make_hospitals, resigned
from private_federation import PRIVATE, TRAINING
from reached_runs import BRIEF, BRIEFEST, THREE, Reached, opened, reached, until_kind
from safetensors.torch import load
from scipy.optimize import Bounds, LinearConstraint, milp

from mil.errors import CorruptFile, MilError
from mil.hospital.blobs import as_part
from mil.hospital.differencing import determined
from mil.hospital.forms import slots
from mil.hospital.masking import exact
from mil.hospital.payload import PayloadError, TooFewPatients
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site

pytestmark = pytest.mark.slow

AGED = {**BRIEFEST, "covariates": ["age"]}
SUMS = {"sites": THREE, "metrics": "sums"}
BALANCED = {**BRIEFEST["training"], "imbalance": "weights"}


def with_ages(folder: Path, known: Callable[[int], bool] = lambda _: True, site: str = "A", **changes) -> Hospitals:
    """Hospitals with an age of every patient; at `site` only of those whose row is `known`."""
    hospitals = make_hospitals(folder, **{"experiment": AGED, **changes})
    for name in hospitals.protocol.sites:

        def aged(table: pd.DataFrame, own: Callable[[int], bool] = known if name == site else lambda _: True) -> None:
            table["age"] = [str(40 + 7 * row % 31) if own(row) else "" for row in range(len(table))]

        rewritten(hospitals, name, aged)
    return hospitals


def rewritten(hospitals: Hospitals, site: str, change: Callable[[pd.DataFrame], object]) -> None:
    path = Path(hospitals.site(site).results) / "bags" / "response.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    found = change(table)
    (table if found is None else found).to_csv(path, index=False)


# What is known of a few patients only


@pytest.mark.parametrize("trust", ["coordinator", "sites"])
def test_a_covariate_that_is_known_of_few_patients_is_not_summed(tmp_path: Path, trust: str) -> None:
    """The smallest cell holds for those whose age is known, not for who is there."""
    hospitals = with_ages(tmp_path, lambda row: row % 2 == 0, trust=trust, payload={"small_cells": 12})
    run = reached(hospitals, tmp_path / "run", "moments")
    with pytest.raises(TooFewPatients, match="of covariates too little is known"):
        run.sites["A"].answer(run.question)


def test_folds_are_judged_by_the_patients_whose_covariate_is_known(tmp_path: Path) -> None:
    """The sums of 12 known ages over 45 sets of patients are as many equations as it takes to solve them."""
    endpoint = {"folds": 3, "inner_folds": 3, "repeats": 3}
    hospitals = with_ages(tmp_path, lambda row: row % 4 == 0, endpoint=endpoint, payload={"small_cells": 5})
    with pytest.raises(MilError, match=r"determine \d+ of the 12 patients of site A"):
        Site.open(hospitals.site("A"))
    assert Site.open(hospitals.site("B"))  # whose ages are all known


def worked_out(members: np.ndarray, values: np.ndarray) -> int:
    """Patients whose value 0 or 1 follows from the sums over sets (sets, patients): with the other value there is no solution."""
    count, sums = len(values), members @ values
    rule = LinearConstraint(members.astype(float), sums, sums)
    other = [np.where(np.arange(count) == patient, 1.0 - values, np.nan) for patient in range(count)]
    bounds = [Bounds(np.nan_to_num(one, nan=0.0), np.nan_to_num(one, nan=1.0)) for one in other]
    return sum(
        milp(np.zeros(count), constraints=rule, integrality=np.ones(count), bounds=one).status == 2 for one in bounds
    )


def test_sums_of_two_values_are_refused_before_whole_numbers_solve_them(tmp_path: Path) -> None:
    """Two repeats determine no patient by linear algebra; but who is 0 or 1 is found out of each, for some or for all of them."""
    found = {}
    for repeats in (1, 2):
        endpoint = {"folds": 3, "inner_folds": 3, "repeats": repeats}
        hospitals = with_ages(tmp_path / f"{repeats}", sites={**THREE, "A": ("train", 36)}, endpoint=endpoint)
        site = Site.open(hospitals.site("A"))  # ages have many values
        sets = [site.work.train_patients(slot) for phase in ("inner", "refit") for slot in slots(site.protocol, phase)]
        members = np.array([np.isin(np.arange(36), one) for one in sets])
        sex = np.random.default_rng(repeats).integers(0, 2, 36)
        assert not len(determined(sets, 36))
        found[repeats] = worked_out(members, sex)
        rewritten(hospitals, "A", lambda table: table.assign(age=[str(one) for one in sex]))  # noqa: B023
        if repeats == 1:
            assert Site.open(hospitals.site("A"))
            continue
        with pytest.raises(MilError, match=r"sums of age .* tell \d+ bits of 36 patients with two values"):
            Site.open(hospitals.site("A"))
    assert found[1] == 0
    assert found[2] > 12


@pytest.mark.parametrize("training", [{"scaling": "standard"}, {"imbalance": "weights"}, {}])
def test_a_rehearsal_on_two_patients_is_not_judged_as_a_plan(tmp_path: Path, training: dict) -> None:
    """Two patients follow from any sums of theirs, and none is asked for: every such protocol was refused before its first run."""
    own = {**AGED, "training": {**AGED["training"], **training}}
    hospitals = with_ages(tmp_path, sites=THREE, experiment=own)
    sites = {name: Site.open(hospitals.site(name), canary=True) for name in hospitals.protocol.sites}
    server = Server(hospitals.protocol, "canary-1", tmp_path / "run", canary=True)
    inprocess.run(server, sites)
    assert server.kind == "done"


# Two runs


def test_sums_of_two_runs_do_not_differ_by_a_single_patient(tmp_path: Path) -> None:
    """One patient more at A: the sums of ages of all hospitals differ by this age alone, whatever the folds."""
    hospitals = with_ages(tmp_path, **SUMS)
    rewritten(hospitals, "A", lambda table: table.iloc[:-1])
    inprocess.run(Server(hospitals.protocol, "first", tmp_path / "first"), opened(hospitals))
    with_ages(tmp_path, **SUMS)
    second = reached(hospitals, tmp_path / "second", "moments")
    with pytest.raises(TooFewPatients, match="run first sent sums over patients of whom 1 differ"):
        second.sites["A"].answer(second.question)
    assert second.sites["B"].answer(second.question)


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """The first patient of fold 0 stands in fold 1."""
    row = table.index[table["repeat0"] == "0"][0]
    table.loc[row, ["repeat0", "repeat0_fold0_inner", "repeat0_fold1_inner"]] = ["1", "0", ""]
    return table


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda table: table.iloc[:-1], {"covariates": ["years"]}),
        (moved, {"covariates": ["age"]}),
        (lambda table: table.iloc[:-1], {"endpoint": "normal", "training": BALANCED}),
    ],
)
def test_other_names_and_folds_do_not_hide_that_two_sums_are_of_nearly_the_same(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], differ: dict
) -> None:
    """The same ages as `years`, the same classes the other way round, or one patient in another fold: the difference is of one patient."""
    changes = {"sites": {**THREE, "A": ("train", 96)}, "metrics": "sums", "payload": {"small_cells": 5}}
    first = {**BRIEFEST, **differ, "endpoint": "response", "covariates": ["age"] if "covariates" in differ else []}
    for experiment, spoil in ((first, change), ({**BRIEFEST, **differ}, None)):
        hospitals = with_ages(tmp_path, experiment=experiment, **changes)
        for site in hospitals.protocol.sites:
            path = Path(hospitals.site(site).results) / "bags" / "response.csv"
            table = pd.read_csv(path, dtype=str, keep_default_na=False).assign(years=lambda one: one["age"])
            table = spoil(table) if spoil and site == "A" else table
            table.to_csv(path, index=False)
            turned = table.assign(label=(table["label"] == "0").astype(int).astype(str))
            turned.to_csv(path.with_name("normal.csv"), index=False)
        if spoil is not None:
            inprocess.run(Server(hospitals.protocol, "first", tmp_path / "first"), opened(hospitals))
    second = reached(hospitals, tmp_path / "second", "moments")
    with pytest.raises(TooFewPatients, match=r"run first sent sums over patients of whom [12] differ"):
        second.sites["A"].answer(second.question)
    assert second.sites["B"].answer(second.question)


def test_events_are_not_counted_twice_of_nearly_the_same_patients(tmp_path: Path) -> None:
    """They are counted with the watched errors: 31 of two hospitals, then 32, was the one patient more."""
    endpoint = {"folds": 3, "inner_folds": 3, "kind": "survival", "event": "died"}
    for run in ("first", "second"):
        hospitals = make_hospitals(tmp_path, **SUMS, experiment=BRIEFEST, endpoint=endpoint)
        for site in hospitals.protocol.sites:
            rewritten(hospitals, site, lambda one: one.assign(time=range(9, 9 + len(one))))
        if run == "first":
            rewritten(hospitals, "A", lambda one: one.iloc[:-1])
            reached(hospitals, tmp_path / run, "train")
    second = reached(hospitals, tmp_path / "second", "moments")
    with pytest.raises(TooFewPatients, match="run first sent sums over patients of whom 1 differ"):
        second.sites["A"].answer(second.question)


def test_an_age_that_became_known_between_two_runs_is_not_the_difference_of_two_tables(tmp_path: Path) -> None:
    """As many patients with the same outcomes: only one more age is known at the external hospital."""
    found = {}
    for run, missing in (("first", 0), ("second", None)):
        hospitals = with_ages(tmp_path, lambda row, missing=missing: row != missing, site="C")
        inprocess.run(Server(hospitals.protocol, run, tmp_path / run), opened(hospitals))
        found[run] = pd.read_csv(tmp_path / run / "result" / "covariates.csv").set_index("site").loc["C", "known"]
    assert found["first"] == 29
    assert pd.isna(found["second"])


def test_a_table_that_is_as_it_was_is_summed_again(tmp_path: Path) -> None:
    hospitals = with_ages(tmp_path, sites={**THREE, "A": ("train", 72)}, metrics="sums")
    inprocess.run(Server(hospitals.protocol, "first", tmp_path / "first"), opened(hospitals))
    assert reached(hospitals, tmp_path / "second", "train").question
    rewritten(hospitals, "A", lambda table: table.iloc[:-24])  # twelve of each class
    assert reached(hospitals, tmp_path / "third", "train").question


# The same masks


def test_the_same_masks_do_not_hide_two_answers(tmp_path: Path) -> None:
    """A stricter site.yaml between two answers to the same question: their difference would be the site's metrics."""
    hospitals = make_hospitals(tmp_path, experiment=BRIEFEST, **SUMS)
    run = reached(hospitals, tmp_path / "run", "finish")
    first = load(run.sites["A"].answer(run.question))["metrics"]
    assert torch.equal(first, load(Site.open(hospitals.site("A")).answer(run.question))["metrics"])
    path = hospitals.folder / "A" / "site.yaml"
    path.write_text(path.read_text() + "small_cells: 40\n")
    with pytest.raises(PayloadError, match="other numbers than before under the same masks"):
        Site.open(hospitals.site("A")).answer(run.question)


# A site that lies in a sum


def many(name: str, numbers: list[float], row: int | None = None) -> Callable[[bytes], bytes]:
    """`numbers` added to those of an answer's exact sums."""

    def change(found: dict) -> dict:
        more = exact([Fraction(number) for number in numbers])
        value = found[name].clone()
        value.view(-1, len(numbers), more.shape[-1])[slice(None) if row is None else row] += more
        return {**found, name: value}

    return lambda blob: edited(blob, change)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Reached, dict[str, bytes]]]:
    """A run at each kind of question with its honest answers; an answer that is refused changes nothing."""
    found, hospitals = {}, with_ages(tmp_path_factory.mktemp("pooled"), **SUMS)
    for kind in ("moments", "finish"):
        run = reached(hospitals, tmp_path_factory.mktemp(kind), kind)
        found[kind] = run, {name: run.sites[name].answer(run.question) for name in run.server.asked}
    return found


@pytest.mark.parametrize(
    ("kind", "name", "numbers", "said"),
    [
        ("finish", "metrics", [0, 10**9, 5 * 10**8, 10**9, 0, 0, 0], "sums of the sites' metrics"),
        ("finish", "metrics", [0, 0, 0, 0, 0, 10**6, 0], "sums of the sites' metrics"),
        ("finish", "metrics", [-0.5, 0, 0, 0, 0, 0, 0], "sums of the sites' metrics"),
        ("finish", "metrics", [0, 0, -100, 0, 0, 0, 0], "sums of the sites' metrics"),
        ("finish", "covariates.sums", [10**6, 10**8, 10**10], "1000144 values, but there are 144 patients"),
        ("moments", "covariates.sums", [10**6, 10**8, 10**10], "values, but there are"),
    ],
)
def test_a_masked_sum_of_patients_that_there_are_not_stops_the_round(
    pooled: dict[str, tuple[Reached, dict[str, bytes]]], kind: str, name: str, numbers: list[float], said: str
) -> None:
    run, answers = pooled[kind]
    with pytest.raises(PayloadError, match=said):
        run.server.receive({**answers, "B": resigned(many(name, numbers)(answers["B"]), run.sites["B"])}, {})


# Privacy


def test_a_private_question_about_some_of_the_folds_is_not_answered(tmp_path: Path) -> None:
    """Two of three folds are charged as one, since a patient is held out of one; who is held out of the third is in both."""
    experiment = {**PROTOCOL["experiment"], "training": TRAINING}
    hospitals = make_hospitals(
        tmp_path, experiment=experiment, privacy=PRIVATE.model_dump(mode="json"), trust="coordinator"
    )
    sites, server = opened(hospitals), Server(hospitals.protocol, "run", tmp_path / "run")
    question = until_kind(server, sites, "train")
    with pytest.raises(PayloadError, match="slots"):
        sites["A"].answer(edited(question, lambda found: {name: one[:2] for name, one in found.items()}, slots=[0, 1]))
    assert sites["A"].answer(question)


# What a site needs to remember


@pytest.mark.parametrize("name", ["ledger.jsonl", "secret"])
def test_a_site_that_lost_what_it_remembers_does_not_go_on(tmp_path: Path, name: str) -> None:
    """Without the ledger every question could be put again; with another secret every patient is a new one."""
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment=BRIEF)
    run = reached(hospitals, tmp_path / "run", "train", 2)
    (Path(run.hospitals.site("A").workspace) / name).unlink()
    with pytest.raises(CorruptFile, match=f"{name}.*restore it from the backup"):
        Site.open(hospitals.site("A"))


# Who signs a state


def test_a_protocol_states_no_more_signatures_than_a_round_may_have(tmp_path: Path) -> None:
    """Where a round may lose sites, the coordinator says how many answered: two would have passed for three."""
    rounds = {"allow_subset": True, "required": ["A"], "minimum": 2, "signatures": 3}
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment=BRIEF, rounds=rounds)
    with pytest.raises(MilError, match=r"rounds\.signatures: 3, but a round may have 2 training sites"):
        Site.open(hospitals.site("A"))


# A snapshot that is no state


@pytest.mark.parametrize(
    "content",
    [
        b'{"__metadata__": {"spec_sha256": "", "progress": ' + b"[" * 100_000,
        b'{"state:a": {"dtype": "F32", "shape": [1'
        + b"0" * 30
        + b', 0], "data_offsets": [0, 0]}, "__metadata__": ABOUT}',
        b'{"state:a": {"dtype": "F32", "shape": [4000000000000000000, 4000000000000000000, 0], "data_offsets": [0, 0]}, "__metadata__": ABOUT}',
    ],
)
def test_a_snapshot_that_no_reader_can_take_is_a_line(tmp_path: Path, content: bytes) -> None:
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment=BRIEF)
    run = reached(hospitals, tmp_path / "run", "train", 2)
    about = {"spec_sha256": hospitals.protocol.sha256, "progress": json.dumps({"step": 2, "width": 12})}
    head = content.replace(b"ABOUT", json.dumps(about).encode())
    Path(hospitals.site("D").workspace, "runs", "run", "replica.safetensors").unlink()
    blob = len(head).to_bytes(8, "little") + head
    forged = edited(run.question, lambda found: {**found, "snapshot": as_part(blob)})
    site = Site.open(hospitals.site("D"))
    with pytest.raises(PayloadError, match="is not a state of this protocol"):
        site.answer(forged)


# Lines of a record are lines


def test_what_the_other_side_wrote_makes_no_line_of_a_record_long(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment=BRIEF)
    run = reached(hospitals, tmp_path / "run", "train")
    site, numbers = run.sites["A"], list(range(100_000))
    for values in ({"slots": numbers}, {"choices": numbers}, {"asked": numbers}, {"relayed": numbers}):
        with pytest.raises(MilError):
            site.answer(edited(run.question, **values))
        assert len(site.ledger.lines[-1]) < 3000, list(values)
    answers = {name: run.sites[name].answer(run.question) for name in run.server.asked}
    header = json.dumps({"a": {"dtype": "U8", "shape": [1] * 100_000, "data_offsets": [0, 1]}})
    about = json.loads(answers["A"][8 : 8 + int.from_bytes(answers["A"][:8], "little")])["__metadata__"]
    head = json.dumps({**json.loads(header), "__metadata__": about}).encode()
    path = tmp_path / "odd"
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"0")
    with pytest.raises(SitesMissing):
        run.server.receive({**answers, "A": path}, {})
    assert len(run.server.ledger.lines[-1]) < 3000
