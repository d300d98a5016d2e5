"""Hospitals aggregate, the coordinator relays: weights that do not follow from the protocol are refused, sums hide their parts."""

import json
import shutil
from pathlib import Path

import inprocess
import numpy as np
import pandas as pd
import pytest
import torch
from hospitals import PROTOCOL, Bad, Hospitals, edited, make_hospitals
from safetensors.torch import load

from mil.hospital import state_files
from mil.hospital.config import FederationSpec
from mil.hospital.crosscheck import cross_check
from mil.hospital.keys import PartyKey
from mil.hospital.masking import exact, masked, numbers_of, summed
from mil.hospital.messages import FINISHED
from mil.hospital.payload import PayloadError, header
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site

pytestmark = pytest.mark.slow

SGD = {"rounds": 2, "batch_size": 8, "lr": 0.01, "optimiser": "sgd", "scaling": "none"}
CRAFTED = {**PROTOCOL["experiment"], "training": SGD}
THREE = {**dict.fromkeys("ABD", ("train", 48)), "C": ("external", 30)}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    return make_hospitals(tmp_path_factory.mktemp("three"), sites=THREE, experiment=CRAFTED)


def opened(hospitals: Hospitals) -> dict[str, Site]:
    return {name: Site.open(hospitals.site(name)) for name in hospitals.protocol.sites}


def until(server: Server, sites: dict[str, Site], kind: str, number: int | None = None) -> None:
    while server.kind != kind or number not in (None, server.stages.progress.round):
        question = server.question()
        server.receive({name: sites[name].answer(question) for name in server.asked}, {})


# Masks


@pytest.mark.parametrize("bits", [64, 32])
def test_masks_cancel_in_the_sum_of_all_and_hide_every_part(tmp_path: Path, bits: int) -> None:
    kind, size = {64: (torch.int64, 2**50), 32: (torch.int32, 2**28)}[bits]
    parties = {name: PartyKey(tmp_path / name) for name in "ABC"}
    keys = {name: party.public for name, party in parties.items()}
    generator = torch.Generator().manual_seed(0)
    plain = {name: {"w": torch.randint(-size, size, (3, 500), generator=generator, dtype=kind)} for name in "ABC"}
    hidden = {name: masked(plain[name], parties[name], name, keys, "round 1") for name in "ABC"}
    assert torch.equal(summed([hidden[name]["w"] for name in "CAB"]), summed([plain[name]["w"] for name in "ABC"]))
    for name in "ABC":
        assert torch.equal(masked(plain[name], parties[name], name, keys, "round 1")["w"], hidden[name]["w"])
        again = masked(plain[name], parties[name], name, keys, "round 2")["w"]
        for part in (hidden[name]["w"], again, hidden[name]["w"] - again):
            assert part.dtype == kind
            scaled = part.double().flatten() / 2.0 ** (bits - 1)
            assert abs(float(scaled.mean())) < 0.1
            assert abs(float(scaled.std()) - 3**-0.5) < 0.05  # uniform over all integers
    assert not torch.equal(summed([hidden["A"]["w"], hidden["B"]["w"]]), summed([plain["A"]["w"], plain["B"]["w"]]))


def test_exact_numbers_add_without_cancellation() -> None:
    from fractions import Fraction

    parts = [[Fraction(1.7e9**2), Fraction(-1e-9), Fraction(3)], [Fraction(0.98), Fraction(1e-9), Fraction(-4)]]
    total = numbers_of(summed([exact(one) for one in parts]))
    assert [float(one) for one in total] == [float(a + b) for a, b in zip(*parts, strict=True)]
    assert float(total[0] - Fraction(1.7e9**2)) == pytest.approx(0.98, rel=1e-15)


# A coordinator that sends weights made for the purpose


def crafted(state: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Every unit of the first layer looks at one direction and responds above its own threshold; all else is alike."""
    found = {name: value.clone() for name, value in state.items()}
    layers = [name for name in found if name.endswith("weight") and found[name].shape[-1] == width]
    first = layers[0].removesuffix(".weight")
    units = found[f"{first}.weight"].shape[1]
    direction = torch.from_numpy(np.random.default_rng(5).normal(size=width)).float()
    direction /= direction.norm()
    found[f"{first}.weight"][:] = direction
    found[f"{first}.bias"][:] = -torch.linspace(1.6, 3.6, units)
    for name in found:
        if name.endswith("weight") and not name.startswith(first):
            found[name] = found[name][..., :1].expand_as(found[name]).clone()
    return found


def recovered(before: dict, after: dict, tiles: np.ndarray) -> int:
    """Tiles of the site that some unit's change gives away: cosine with it of 0.999 or more."""
    first = next(
        n.removesuffix(".weight") for n in before if n.endswith("weight") and before[n].shape[-1] == tiles.shape[1]
    )
    weight, bias = (after[f"{first}.{part}"] - before[f"{first}.{part}"] for part in ("weight", "bias"))
    rows = (
        torch.cat([weight, weight[:, :-1] - weight[:, 1:]], 1)
        / torch.cat([bias, bias[:, :-1] - bias[:, 1:]], 1)[..., None]
    )
    rows = torch.nan_to_num(rows, posinf=0, neginf=0).flatten(0, 1).double().numpy()
    rows = rows[np.linalg.norm(rows, axis=1) > 0]
    cosines = (rows @ tiles.T) / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(tiles, axis=1)
    return int((cosines.max(0) >= 0.999).sum())


def test_crafted_weights_read_tiles_where_the_coordinator_is_trusted_and_nothing_where_it_is_not(
    tmp_path: Path,
) -> None:
    """The attack of the finding: one answer to `train` gives single tiles away. A site that computes its weights refuses."""
    hospitals = make_hospitals(tmp_path / "seen", experiment=CRAFTED, trust="coordinator")
    sites, server = opened(hospitals), Server(hospitals.protocol, "run", tmp_path / "run")
    until(server, sites, "train")
    tiles = np.concatenate([sites["A"].features.bag(n) for n in range(len(sites["A"].features.patients))]).astype(
        np.float64
    )
    server.stages.state = crafted(server.stages.state, tiles.shape[1])
    answer = load(sites["A"].answer(server.question()))
    assert recovered(server.stages.state, answer, tiles) > 0

    hospitals = make_hospitals(tmp_path / "masked", experiment=CRAFTED)
    sites, server = opened(hospitals), Server(hospitals.protocol, "run", tmp_path / "run2")
    until(server, sites, "train")
    honest = server.question()
    server.stages.state = crafted(server.stages.state, tiles.shape[1])
    for forged in (server.question(), edited(honest, state_sha256=server.stages.sha256)):
        with pytest.raises(PayloadError, match="are not those that follow from the protocol"):
            sites["A"].answer(forged)
    assert json.loads(sites["A"].ledger.lines[-1])["event"] == "refused"
    assert sites["A"].answer(honest)  # the refused questions moved nothing


def test_a_snapshot_that_no_training_site_signed_is_refused(three: Hospitals, tmp_path: Path) -> None:
    sites, server = opened(three), Server(three.protocol, "forged", tmp_path / "run")
    until(server, sites, "train", 2)
    Path(three.site("D").workspace, "runs", "forged", "replica.safetensors").unlink()
    made_up = state_files.load(three.protocol, server.checkpoint)
    server.behind = True
    genuine = server.question()
    made_up.state = crafted(made_up.state, 12)
    made_up.progress.step -= 1
    state_files.save(made_up, tmp_path / "made_up")
    server.relay.before = tmp_path / "made_up"
    with pytest.raises(PayloadError, match="0 of 3 sites signed the state"):
        Site.open(three.site("D")).answer(server.question())
    assert Site.open(three.site("D")).answer(genuine)  # the true one is taken


def test_answers_that_were_changed_left_out_or_are_another_s_are_refused(three: Hospitals, tmp_path: Path) -> None:
    sites, server = opened(three), Server(three.protocol, "relayed", tmp_path / "run")
    until(server, sites, "train", 2)
    question = server.question()
    blob = bytes(load(question)["relay/B"].numpy().tobytes())
    other = edited(blob, lambda found: {**found, "score.bias": found["score.bias"] + 1})

    def relayed(content: bytes) -> bytes:
        told = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return edited(question, lambda found: {**found, "relay/B": told})

    for forged in (
        relayed(other),
        relayed(edited(blob, site="D")),
        relayed(load(question)["relay/A"].numpy().tobytes()),
    ):
        with pytest.raises(PayloadError, match="is not signed by B"):
            sites["A"].answer(forged)
    fewer = edited(question, lambda found: {n: v for n, v in found.items() if n != "relay/D"}, relayed=[0, 1])
    with pytest.raises(PayloadError, match="the masks do not cancel"):
        sites["A"].answer(fewer)
    with pytest.raises(PayloadError, match=r"slots .* is not what comes next"):
        sites["A"].answer(edited(question, slots=[0, 1, 2]))
    assert sites["A"].answer(question)


# Sites that are lost, and come back


def test_a_round_that_loses_a_site_is_asked_again_of_the_others_and_who_was_away_joins_again(tmp_path: Path) -> None:
    rounds = {"allow_subset": True, "required": ["A"], "minimum": 2}
    training = dict.fromkeys("ABD", ("train", 48))
    hospitals = make_hospitals(tmp_path, sites=training, experiment=CRAFTED, rounds=rounds)
    sites, server = opened(hospitals), Server(hospitals.protocol, "lost", tmp_path / "run")
    until(server, sites, "train")
    question = server.question()
    server.receive({name: sites[name].answer(question) for name in "AB"}, {"D": "connection lost"})
    assert json.loads(server.ledger.lines[-1])["event"] == "lost"
    assert (server.asked, server.stages.progress.round) == (["A", "B"], 1)
    until(server, sites, "watch", 3)
    server = Server(hospitals.protocol, "lost", tmp_path / "run")  # the next job, in which D is back
    inprocess.run(server, sites)
    assert {len(line["answered"]) for line in map(json.loads, server.ledger.lines) if line.get("kind") == "finish"} == {
        3
    }
    models = [
        (Path(hospitals.site(name).workspace) / "runs" / "lost" / "weights.safetensors").read_bytes() for name in "ABD"
    ]
    assert len(set(models)) == 1


def test_without_leave_a_lost_site_stops_the_round(three: Hospitals, tmp_path: Path) -> None:
    sites, server = opened(three), Server(three.protocol, "stopped", tmp_path / "run")
    until(server, sites, "train")
    question = server.question()
    with pytest.raises(SitesMissing, match="without D no round counts"):
        server.receive({name: sites[name].answer(question) for name in "AB"}, {"D": "connection lost"})
    fewer = edited(question, asked=[0, 1])  # a coordinator that says so all the same
    with pytest.raises(PayloadError, match="another question 'train'"):
        sites["A"].answer(fewer)


@pytest.mark.parametrize("asked", [[0], [0, 1]])
def test_a_question_to_fewer_sites_than_the_protocol_wants_is_refused(three: Hospitals, tmp_path: Path, asked) -> None:
    """Asked alone, a site would have nobody to share a mask with, and its answer would be its update."""
    sites, server = opened(three), Server(three.protocol, f"alone{len(asked)}", tmp_path / "run")
    for kind in ("moments", "train"):
        until(server, sites, kind)
        with pytest.raises(PayloadError, match="are not the sites that the protocol wants in a round"):
            sites["A"].answer(edited(server.question(), asked=asked))


# The protocol


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec["experiment"].update(strategy={"name": "median"}), "needs more than a sum"),
        (lambda spec: spec["sites"]["A"].update(key=None), r"sites\.A\.key: is not set"),
        (
            lambda spec: spec["sites"].update({n: {**spec["sites"][n], "role": "external"} for n in "BD"}),
            "one training site",
        ),
    ],
)
def test_a_protocol_in_which_no_sum_hides_a_hospital_is_refused(three: Hospitals, change, said: str) -> None:
    spec = three.protocol.model_dump(mode="json")
    change(spec)
    with pytest.raises(ValueError, match=said):
        FederationSpec.model_validate(spec)
    FederationSpec.model_validate({**spec, "trust": "coordinator"})


def test_nothing_of_an_update_lies_at_the_server(three: Hospitals, tmp_path: Path) -> None:
    """Neither a site's change as numbers or integers nor its losses are in any file of the coordinator's."""
    sites, server = opened(three), Server(three.protocol, "quiet", tmp_path / "run")
    until(server, sites, "train")
    question = server.question()
    answers = {name: sites[name].answer(question) for name in "ABD"}
    shutil.rmtree(tmp_path / "run" / "result", ignore_errors=True)
    server.receive(answers, {})
    about = header(answers["A"], "")["values"]
    assert set(about) == {"site", "ledger", "question_sha256", "signature", "state_sha256", "asked", "masked_sha256"}
    told = json.loads(server.ledger.lines[-1])["answered"]["A"]
    assert set(told) == {"answer_sha256", "bytes", "ledger", "num_bags", "signature"}
    for name, value in load(answers["A"]).items():
        if name not in {"num_bags", "num_steps"}:
            assert value.dtype == torch.int64
            assert float((value.double().abs() > 2.0**55).float().mean()) > 0.5, name  # noise of all 64 bits


# Metrics


def test_under_sums_no_site_s_metric_leaves_and_the_sums_are_those_of_all(tmp_path: Path) -> None:
    """The same run told by site and in sums: equal pooled figures, and of a single site nothing but masked integers."""
    rows = {}
    for metrics in ("sites", "sums"):
        hospitals = make_hospitals(tmp_path / metrics, sites=THREE, experiment=CRAFTED, metrics=metrics)
        sites, server = opened(hospitals), Server(hospitals.protocol, "run", tmp_path / metrics / "run")
        until(server, sites, "finish")
        question = server.question()
        for asked in ([0], [1, 2]) if metrics == "sums" else ():
            with pytest.raises(
                PayloadError, match=r"not the sites that the protocol wants|is not among the sites asked"
            ):
                sites["A"].answer(edited(question, asked=asked))
        answers = {name: sites[name].answer(question) for name in server.asked}
        server.receive(answers, {})
        inprocess.run(server, sites)
        table = pd.read_csv(tmp_path / metrics / "run" / "result" / "sites.csv").set_index("site")
        rows[metrics] = table.loc["training sites", ["patients", "positives", "metric", "low", "high", "method"]]
        ledgers = {name: Path(hospitals.site(name).workspace) / "ledger.jsonl" for name in sites}
        assert cross_check(tmp_path / metrics / "run" / "ledger.jsonl", ledgers).faults == []
    assert list(table.index) == ["training sites"]
    assert rows["sums"].tolist() == rows["sites"].tolist()
    for name, blob in answers.items():
        told = {key: header(blob, "")["values"][key] for key in FINISHED}
        assert set(told.values()) == {None}
        assert bool(load(blob)["metrics"].any()) == (name != "C")  # noise of the training sites, nothing of C
        assert name == "C" or float((load(blob)["metrics"].double().abs() > 2.0**55).float().mean()) > 0.5
        own = [line for line in map(json.loads, sites[name].ledger.lines) if line["event"] == "result"]
        assert own[-1]["metric"] is not None  # it stays in the hospital's own ledger


def test_a_site_that_lies_in_the_sums_of_metrics_stops_the_run(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, sites=THREE, experiment=CRAFTED, metrics="sums")
    sites = opened(hospitals)
    many = Bad(sites["B"], "finish", lambda blob: edited(blob, lambda found: {"metrics": found["metrics"] + 2**62}))
    with pytest.raises(PayloadError, match=r"the sums of the sites' metrics are .* which cannot be"):
        inprocess.run(Server(hospitals.protocol, "lie", tmp_path / "run"), {**sites, "B": many})


def test_a_site_that_is_lost_at_the_end_is_left_out_of_the_sums(tmp_path: Path) -> None:
    rounds = {"allow_subset": True, "required": ["A"], "minimum": 2}
    training = dict.fromkeys("ABD", ("train", 48))
    hospitals = make_hospitals(tmp_path, sites=training, experiment=CRAFTED, rounds=rounds, metrics="sums")
    sites, server = opened(hospitals), Server(hospitals.protocol, "lost", tmp_path / "run")
    until(server, sites, "finish")
    question = server.question()
    server.receive({name: sites[name].answer(question) for name in "AB"}, {"D": "connection lost"})
    assert server.asked == ["A", "B"]
    inprocess.run(server, {name: sites[name] for name in "AB"} | {"D": sites["D"]})
    table = pd.read_csv(tmp_path / "run" / "result" / "sites.csv")
    assert table["patients"].tolist() == [96]
