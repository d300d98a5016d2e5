"""Attacks on what two runs, or two columns of one run, differ by."""

import json
from collections.abc import Callable
from pathlib import Path

import inprocess
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, Hospitals, make_hospitals, rewrite_protocol
from private_federation import private_hospitals
from reached_runs import BRIEF, BRIEFEST, THREE, opened, reached
from safetensors.torch import load

from mil.errors import MilError
from mil.hospital import identity
from mil.hospital.differencing import _digest
from mil.hospital.identity import site_secret
from mil.hospital.keys import PartyKey
from mil.hospital.payload import TooFewPatients
from mil.hospital.preflight import check_site
from mil.hospital.record import LedgerFile
from mil.hospital.server import Server
from mil.hospital.site import Site

pytestmark = pytest.mark.slow

PLAIN = {**PROTOCOL["experiment"], "training": {"rounds": 1, "lr": 0.01, "optimiser": "sgd"}}
AGED = {**BRIEFEST, "covariates": ["age"]}
ADDED = {"hash", "prev_hash", "signature", "actor"}
MANY = {**THREE, "A": ("train", 96)}


def rewritten(hospitals: Hospitals, site: str, change: Callable[[pd.DataFrame], object]) -> None:
    path = Path(hospitals.site(site).results) / "bags" / "response.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(path, index=False)


def other_labels(*rows: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The labels of these rows the other way round."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[list(rows), "label"] = (1 - table.loc[list(rows), "label"].astype(float)).astype(str)
        return table

    return change


def aged(table: pd.DataFrame) -> None:
    table["age"] = [str(40 + row % 31) for row in range(len(table))]


def asked_for_moments(hospitals: Hospitals, folder: Path) -> bytes:
    """A's answer to the first question of a run that is about patients."""
    run = reached(hospitals, folder, "moments")
    return run.sites["A"].answer(run.question)


# Updates of two runs


def change_of_round_1(hospitals: Hospitals, folder: Path) -> dict[str, torch.Tensor]:
    """What the coordinator reads of the first model in round 1, under `trust: sites`: patients times the mean change."""
    run = reached(hospitals, folder, "train", 1)
    before = {name: value[0].double().clone() for name, value in run.server.stages.state.items()}
    run.server.receive({name: run.sites[name].answer(run.question) for name in run.server.asked}, {})
    return {
        name: run.server.stages.totals[0] * (run.server.stages.state[name][0] - value) for name, value in before.items()
    }


def test_the_updates_of_two_runs_do_not_differ_by_a_single_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One label was corrected: all other gradients of the first steps are alike, and cancel in the difference of two masked sums."""
    hospitals = make_hospitals(tmp_path, sites=THREE, metrics="sums", experiment=PLAIN)
    first = change_of_round_1(hospitals, tmp_path / "first")
    rewritten(hospitals, "A", other_labels(3))
    with pytest.raises(TooFewPatients, match="run first began with the same weights and patients of whom 1 differ"):
        asked_for_moments(hospitals, tmp_path / "second")
    with monkeypatch.context() as patch:
        patch.setattr("mil.hospital.differencing._trained", lambda *_: {})
        patch.setattr("mil.hospital.site.questions.check_masks", lambda *_: None)
        second = change_of_round_1(hospitals, tmp_path / "third")
    # without the rule, the scores' weights move along the patient's pooled features, and the bias beside them by the residual
    moved = {name: second[name] - first[name] for name in first}
    assert float(moved["score.weight"].norm()) > 1e-4
    assert float(moved["score.bias"].abs()) > 1e-4
    with rewrite_protocol(hospitals, experiment={**PLAIN, "training": {**PLAIN["training"], "seed": 1}}):
        assert asked_for_moments(hospitals, tmp_path / "fourth")


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda table: table.iloc[:-1], 1),
        (other_labels(*range(9)), 9),
        (lambda table: table.assign(label=table["label"] + ".0").iloc[:-1], 1),
    ],
)
def test_few_patients_make_two_runs_nearly_the_same(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], differ: int
) -> None:
    """A patient with another label is one who differs, not two; and 1.0 is 1."""
    hospitals = make_hospitals(tmp_path, sites=MANY, metrics="sums", experiment=BRIEF)
    asked_for_moments(hospitals, tmp_path / "first")
    rewritten(hospitals, "A", change)
    with pytest.raises(TooFewPatients, match=f"run first began .* of whom {differ} differ"):
        asked_for_moments(hospitals, tmp_path / "second")
    rewritten(hospitals, "A", lambda table: other_labels(*range(12, 24))(table).iloc[:-12])
    assert asked_for_moments(hospitals, tmp_path / "third")


# Sums of an older version


def test_sums_of_a_version_that_noted_no_folds_are_not_told_again_of_another_table(tmp_path: Path) -> None:
    """One patient in another fold: the older line cannot show it, so nothing is told unless the table is as it was."""
    hospitals = make_hospitals(tmp_path, sites=MANY, metrics="sums", experiment=AGED)
    for site in MANY:
        rewritten(hospitals, site, aged)
    asked_for_moments(hospitals, tmp_path / "first")
    without_folds(hospitals, "A")
    assert asked_for_moments(hospitals, tmp_path / "second")
    without_folds(hospitals, "A")

    def moved(table: pd.DataFrame) -> None:
        row = table.index[table["repeat0"] == "0"][0]
        table.loc[row, ["repeat0", "repeat0_fold0_inner", "repeat0_fold1_inner"]] = ["1", "0", ""]

    rewritten(hospitals, "A", moved)
    with pytest.raises(TooFewPatients, match=r"run first .* under an older version that did not note their folds"):
        asked_for_moments(hospitals, tmp_path / "third")
    rewritten(hospitals, "A", lambda table: table.iloc[24:])
    assert asked_for_moments(hospitals, tmp_path / "fourth")


def without_folds(hospitals: Hospitals, site: str) -> None:
    """The site's ledger as an older version wrote it."""
    workspace = Path(hospitals.site(site).workspace)
    path, folds = workspace / "ledger.jsonl", _digest(site_secret(workspace), "folds")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    ledger = LedgerFile(path, site, PartyKey(workspace))
    for entry in entries[1:]:
        known = {name: digests for name, digests in entry.get("known", {}).items() if name != folds}
        kept = {name: value for name, value in entry.items() if name not in {*ADDED, "trained"}}
        ledger.add(kept | ({"known": known} if known else {}), timed=False)


# Two columns


def test_two_columns_that_differ_in_few_patients_are_not_summed(tmp_path: Path) -> None:
    """The age, and the age again with one left blank: the two means tell that age."""
    both = {**BRIEFEST, "covariates": ["age", "known_age"]}
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment=both)
    for site in THREE:
        rewritten(hospitals, site, aged)
        rewritten(hospitals, site, lambda table: table.assign(known_age=table["age"]))
    assert Site.open(hospitals.site("A"))  # the same column twice tells nothing more
    for site in ("A", "C"):
        rewritten(hospitals, site, lambda table: table.assign(known_age=["", *table["age"][1:]]))
        with pytest.raises(MilError, match="covariates age and known_age differ in 1 patients of this site"):
            Site.open(hospitals.site(site))
        bags = [one.sentence for one in check_site(hospitals.site(site)) if one.check == "bags"]
        assert ["differ in 1 patients" in said for said in bags] == [True]


# Few patients with a value


@pytest.mark.parametrize(("ones", "told"), [(3, False), (14, True)])
def test_the_mean_of_few_ones_is_not_told(tmp_path: Path, ones: int, told: bool) -> None:
    """3 of 30 with a mutation are a cell as small as a class of 3; number, sum and squares of two or three values count each."""
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment={**BRIEFEST, "covariates": ["mutated"]})
    for site in THREE:
        few = ones if site == "C" else 24
        rewritten(
            hospitals, site, lambda table, few=few: table.assign(mutated=[int(row < few) for row in range(len(table))])
        )
    inprocess.run(Server(hospitals.protocol, "run", tmp_path / "run"), opened(hospitals))
    table = pd.read_csv(tmp_path / "run" / "result" / "covariates.csv").set_index("site")
    assert pd.notna(table.loc["C", "known"]) == told


def test_few_ones_are_not_told_to_a_trusted_coordinator(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, experiment={**BRIEFEST, "covariates": ["mutated"]}, trust="coordinator")
    for site in "ABC":
        rewritten(
            hospitals,
            site,
            lambda table: table.assign(mutated=[row % 3 if row < 12 else 0 for row in range(len(table))]),
        )
    run = reached(hospitals, tmp_path / "run", "moments")
    with pytest.raises(TooFewPatients, match="a covariate has a value of fewer than 10 patients"):
        run.sites["A"].answer(run.question)


# The same noise


def test_another_version_draws_other_noise_and_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise on the numbers of two versions would leave their difference bare."""
    hospitals = private_hospitals(tmp_path)
    with rewrite_protocol(hospitals, trust="coordinator"):
        run = reached(hospitals, tmp_path / "run", "train")
        first, before = load(run.sites["A"].answer(run.question)), run.sites["A"].budget.so_far().epsilon
        assert torch.equal(load(run.sites["A"].answer(run.question))["score.weight"], first["score.weight"])
        monkeypatch.setattr(identity, "code_sha256", lambda: "1" * 64)
        again = load(run.sites["A"].answer(run.question))
    assert not torch.isclose(again["score.weight"], first["score.weight"]).any()
    assert run.sites["A"].budget.so_far().epsilon > before
