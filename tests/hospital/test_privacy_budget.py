"""The price of privacy: the accountant, the budget of a site, and whole private runs."""

import json
from pathlib import Path

import inprocess
import numpy as np
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, Hospitals, make_hospitals
from private_federation import PRIVATE, SLOTS, TRAINING, private_hospitals
from safetensors.torch import load, save
from scipy import stats

from mil.errors import MilError
from mil.hospital.config import FederationSpec, PrivacySpec
from mil.hospital.forms import slots
from mil.hospital.keys import PartyKey
from mil.hospital.payload import PayloadError, Received, content_digest, header
from mil.hospital.privacy import (
    Budget,
    BudgetSpent,
    Charge,
    spent,
)
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site
from mil.training.ledger import read

pytestmark = pytest.mark.slow


# The accountant


@pytest.mark.parametrize(
    ("patients", "batch", "epochs", "noise", "renyi", "prv", "epsilon"),
    [
        (200, 8, 50, 1.0, 7.26, 6.31, 6.30),
        (200, 16, 20, 1.0, 6.48, 5.52, 5.51),
        (200, 16, 20, 2.0, 2.05, 1.75, 1.74),
        (1000, 32, 20, 1.0, 4.37, 3.82, 3.81),
    ],
)
def test_epsilon_is_that_of_two_other_accountants(
    patients: int, batch: int, epochs: int, noise: float, renyi: float, prv: float, epsilon: float
) -> None:
    """PLD and RDP by dp-accounting 0.6, PRV by opacus 1.6."""
    from opacus.accountants import PRVAccountant

    rate, delta = batch / patients, patients**-1.1
    steps = epochs * patients // batch
    found = spent([Charge(rate, noise, steps)], delta)
    assert round(found.epsilon, 2) == pytest.approx(epsilon, abs=0.0101)
    assert found.renyi == pytest.approx(renyi, abs=0.05)
    assert found.epsilon <= found.renyi <= 1.25 * found.epsilon
    other = PRVAccountant()
    other.history = [(noise, rate, steps)]
    assert other.get_epsilon(delta) == pytest.approx(prv, abs=0.01)
    assert found.epsilon == pytest.approx(prv, abs=0.02)


def test_without_sampling_epsilon_is_the_gaussian_mechanism_s_closed_form() -> None:
    """Balle and Wang 2018, theorem 8: delta as a function of epsilon, for one release of sensitivity 1."""
    for noise in (1.0, 2.0, 5.0):
        epsilon = spent([Charge(1.0, noise, 1)], 1e-5).epsilon
        low, high = stats.norm.cdf(0.5 / noise - epsilon * noise), stats.norm.cdf(-0.5 / noise - epsilon * noise)
        assert low - np.exp(epsilon) * high == pytest.approx(1e-5, rel=0.02)


def test_epsilon_grows_with_steps_and_shrinks_with_noise() -> None:
    by_steps = [spent([Charge(0.1, 1.0, steps)], 1e-3).epsilon for steps in (1, 10, 100, 300)]
    by_noise = [spent([Charge(0.1, noise, 100)], 1e-3).epsilon for noise in (0.7, 1.0, 2.0, 5.0)]
    assert by_steps == sorted(by_steps)
    assert by_noise == sorted(by_noise, reverse=True)
    together = spent([Charge(0.1, 1.0, 60), Charge(0.1, 1.0, 40)], 1e-3)
    assert together.epsilon == pytest.approx(by_steps[2], rel=1e-3)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return private_hospitals(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def site(hospitals: Hospitals) -> Site:
    return Site.open(hospitals.site("A"))


# The budget


def test_what_was_charged_survives_every_process(tmp_path: Path) -> None:
    spec = PrivacySpec(noise=1.0, expected_batch=8, epsilon=4.0, delta=1e-3)
    patients = dict.fromkeys(SLOTS, 40)
    path, run = tmp_path / "privacy.jsonl", []

    def charge(number: int) -> None:
        """As a process of its own would, every round."""
        run.append(
            Budget(path, "A", PartyKey(path.parent), 4.0, 1e-3)
            .charge("run", number, f"{number:064d}", spec, patients)
            .epsilon
        )

    with pytest.raises(BudgetSpent, match="over the budget of 4"):
        list(map(charge, range(1, 500)))
    assert run == sorted(run)
    assert run[-1] <= 4.0
    after = Budget(path, "A", PartyKey(path.parent), spec.epsilon, spec.delta)
    assert after.so_far().epsilon == run[-1]
    with pytest.raises(BudgetSpent):  # another name does not help
        after.charge("another", 1, "x" * 64, spec, patients)
    rate, steps = 8 / 40, 5 * 2 * len(run)  # a patient is in two of the three folds' models, five steps a round
    assert run[-1] == pytest.approx(spent([Charge(rate, 1.0, steps)], 1e-3).epsilon)


def test_the_same_question_is_charged_once_and_another_one_again(tmp_path: Path) -> None:
    spec = PrivacySpec(noise=1.0, expected_batch=8, epsilon=100.0, delta=1e-3)
    budget = Budget(tmp_path / "privacy.jsonl", "A", PartyKey(tmp_path), 100.0, 1e-3)
    once = budget.charge("run", 1, "a" * 64, spec, dict.fromkeys(SLOTS, 40)).epsilon
    assert budget.charge("run", 1, "a" * 64, spec, dict.fromkeys(SLOTS, 40)).epsilon == once
    assert budget.charge("run", 1, "b" * 64, spec, dict.fromkeys(SLOTS, 40)).epsilon > once


def test_a_corrected_label_is_charged_and_drawn_anew(tmp_path: Path) -> None:
    """The same question after one label changed: with the same noise, the difference would be that patient's gradient."""
    experiment = {**PROTOCOL["experiment"], "training": TRAINING}
    private = PRIVATE.model_dump(mode="json")
    hospitals = make_hospitals(tmp_path, experiment=experiment, privacy=private, trust="coordinator")
    server = Server(hospitals.protocol, "run", tmp_path / "run")
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    while server.kind != "train":
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})
    before, spent_before = load(sites["A"].answer(server.question())), sites["A"].budget.so_far().epsilon
    path = Path(hospitals.site("A").results) / "bags" / "response.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "label"] = "1" if table.loc[0, "label"] == "0" else "0"
    table.to_csv(path, index=False)
    again = Site.open(hospitals.site("A"))
    after = load(again.answer(server.question()))
    assert again.budget.so_far().epsilon > spent_before
    held_out = [
        number
        for number, slot in enumerate(slots(again.protocol, "refit"))
        if slot.fold == int(table.loc[0, "repeat0"])
    ]
    for name in ("score.weight", "embed.weight"):  # the patient is not in this model; only fresh noise can differ
        assert not torch.equal(before[name][held_out], after[name][held_out])


def test_an_altered_account_is_noticed(tmp_path: Path) -> None:
    spec = PrivacySpec(noise=1.0, expected_batch=8, epsilon=100.0, delta=1e-3)
    path = tmp_path / "privacy.jsonl"
    for number in (1, 2):
        Budget(path, "A", PartyKey(path.parent), 100.0, 1e-3).charge(
            "run", number, f"{number:064d}", spec, dict.fromkeys(SLOTS, 40)
        )
    path.write_text(path.read_text().replace('"noise": 1.0', '"noise": 9.0'))
    with pytest.raises(MilError, match="altered"):
        Budget(path, "A", PartyKey(path.parent), 100.0, 1e-3)


def test_charges_that_were_cut_off_are_missed_by_the_ledger(hospitals: Hospitals, tmp_path: Path) -> None:
    """A chain does not show that its end is gone; the site's other record does, and the site stays out."""
    spec = hospitals.elsewhere("A", tmp_path / "A")
    sites = {"A": Site.open(spec), "B": Site.open(hospitals.site("B")), "C": Site.open(hospitals.site("C"))}
    inprocess.run(Server(hospitals.protocol, "cut", tmp_path / "run"), sites)
    account = tmp_path / "A" / "privacy.jsonl"
    whole = account.read_text().splitlines(keepends=True)
    Site.open(spec)
    for kept in range(len(whole)):
        account.write_text("".join(whole[:kept]))
        with pytest.raises(BudgetSpent, match="charges were cut off"):
            Site.open(spec)
    account.unlink()
    with pytest.raises(BudgetSpent, match="charges were cut off"):
        Site.open(spec)


def test_the_same_weights_asked_of_other_models_are_charged_and_drawn_anew() -> None:
    """A question is all of it: a server that asks for one fold after the other with the same weights pays for each."""
    values = {"run": "run", "phase": "refit", "round": 1, "slots": [0], "used": [0, 0], "ledger": "0" * 64}
    asked = {
        content_digest(Received("train", {**values, **change}, {"weight": torch.ones(1, 3)}))
        for change in ({}, {"ledger": "1" * 64}, {"slots": [1]}, {"used": [1, 0]}, {"round": 2}, {"run": "other"})
    }
    assert len(asked) == 5  # only the head of the server's ledger may differ


# A whole run


def test_a_private_run_tells_nothing_without_noise_and_answers_alike_when_asked_again(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    server = Server(hospitals.protocol, "private", tmp_path / "run")
    heads: list[dict] = []

    class Listening:
        def __init__(self, inner: Site) -> None:
            self.inner = inner

        def answer(self, blob: bytes) -> bytes:
            found = self.inner.answer(blob)
            if header(blob, "")["kind"] == "train":
                again = Site.open(hospitals.site(self.inner.spec.site)).answer(blob)
                assert _tensors(again) == _tensors(found)
            heads.append({"kind": header(found, "")["kind"], "names": _names(found), **header(found, "")["values"]})
            return found

    inprocess.run(server, {name: Listening(site) for name, site in sites.items()})
    kinds = {head["kind"] for head in heads}
    assert kinds == {"join", "moments", "train", "finish", "close"}
    trained = next(head for head in heads if head["kind"] == "train")
    assert set(trained["names"]) == {*sites["A"].shapes.state, "num_bags", "num_steps"}
    finished = [head for head in heads if head["kind"] == "finish"]
    assert all(head["metric"] is None and head["patients"] is None for head in finished)
    lines = [line for line in read(Path(hospitals.site("A").workspace) / "ledger.jsonl") if "epsilon" in line]
    known = [line["epsilon"] for line in lines]
    assert known == sorted(known)
    assert known[-1] > 0
    assert (tmp_path / "run" / "result" / "weights.safetensors").exists()


def _tensors(blob: bytes) -> bytes:
    return blob[8 + int.from_bytes(blob[:8], "little") :]


def _names(blob: bytes) -> list[str]:
    return [name for name in json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")]) if name != "__metadata__"]


@pytest.mark.parametrize(
    ("kind", "phase", "said"), [("watch", "refit", "'watch' is not asked"), ("moments", "inner", "phase 'inner'")]
)
def test_a_private_site_answers_nothing_that_carries_no_noise(
    hospitals: Hospitals, site: Site, tmp_path: Path, kind: str, phase: str, said: str
) -> None:
    """A server that asks for the losses all the same, or for the folds that select by them."""
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    server = Server(hospitals.protocol, "curious", tmp_path)
    server.receive({name: one.answer(server.question()) for name, one in sites.items()}, {})
    about = header(server.question(), "")
    odd = {"kind": kind, "values": {**about["values"], "phase": phase}}
    with pytest.raises(PayloadError, match=said):
        sites["A"].answer(save({"snapshot": torch.zeros(0, dtype=torch.uint8)}, metadata={"mil": json.dumps(odd)}))


def test_a_site_stops_before_its_budget_is_exceeded(tmp_path: Path) -> None:
    """8 of 32 patients a step, three folds of models, noise 1: one round costs about 4, two are too many."""
    tight = PRIVATE.model_copy(update={"epsilon": 5.0})
    experiment = {**PROTOCOL["experiment"], "training": TRAINING}
    hospitals = make_hospitals(tmp_path, experiment=experiment, privacy=tight.model_dump(mode="json"))
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    with pytest.raises(SitesMissing, match="refused: budget"):
        inprocess.run(Server(hospitals.protocol, "tight", tmp_path / "run"), sites)
    last = read(Path(hospitals.site("A").workspace) / "ledger.jsonl")[-1]
    assert "over the budget of 5" in last["reason"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experiment": {**PROTOCOL["experiment"]}}, "carry no noise"),
        (
            {"experiment": {**PROTOCOL["experiment"], "training": {**TRAINING, "imbalance": "weights"}}},
            "carry no noise",
        ),
        ({"experiment": {**PROTOCOL["experiment"], "strategy": "scaffold", "training": TRAINING}}, "scaffold"),
        (
            {"experiment": {**PROTOCOL["experiment"], "training": {**TRAINING, "local_epochs": 2}}},
            "leave experiment.training.local_epochs out",  # it had no effect
        ),
    ],
)
def test_a_protocol_that_would_leak_beside_the_noise_or_asks_for_what_there_is_not_is_refused(
    hospitals: Hospitals, change: dict, said: str
) -> None:
    whole = {**hospitals.protocol.model_dump(mode="json"), **change}
    with pytest.raises(ValueError, match=said):
        FederationSpec.model_validate(whole)
