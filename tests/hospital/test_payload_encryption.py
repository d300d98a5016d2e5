"""Encrypted aggregation: the server adds what it cannot read, and the result is the plain one to 1e-6."""

import json
from pathlib import Path

import inprocess
import pytest
import torch
from hospitals import PROTOCOL, Hospitals, make_hospitals, rewrite_protocol
from safetensors.torch import load

from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.hospital.encryption import Adder, Cipher, make_keys
from mil.hospital.forms import SEALED
from mil.hospital.payload import PayloadError
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site

TRAINING = {"rounds": 2, "batch_size": 8, "lr": 0.05, "optimiser": "sgd"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder / "secret", folder / "public")
    return folder / "secret", folder / "public"


def test_the_sum_of_three_sites_is_the_plain_sum(keys: tuple[Path, Path]) -> None:
    cipher, adder = Cipher(keys[0]), Adder(keys[1])
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 900), (5,), (3, 100, 20)]  # over several ciphertexts
    plain = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    sealed = [cipher.seal(own) for own in plain]
    opened = cipher.open(adder.add(sealed), shapes)
    for found, parts in zip(opened, zip(*plain, strict=True), strict=True):
        assert (found - sum(part.double() for part in parts)).abs().max() < 1e-6
    again = Cipher(keys[0]).open(adder.add(sealed), shapes)
    assert all(torch.equal(one, other) for one, other in zip(opened, again, strict=True))


@pytest.mark.parametrize("sites", ["AB", "ABCDEFGHIJ"])
def test_masks_cancel_in_the_sum_of_all_and_hide_whatever_else_is_opened(keys: tuple[Path, Path], sites: str) -> None:
    cipher, adder = Cipher(keys[0]), Adder(keys[1])
    generator = torch.Generator().manual_seed(0)
    plain = [0.1 * torch.randn(9000, generator=generator).double() for _ in sites]
    masks = [cipher.mask(site, list(sites), "question", 9000) for site in sites]
    sealed = [cipher.seal([own], mask) for own, mask in zip(plain, masks, strict=True)]
    (opened,) = cipher.open(adder.add(sealed), [(9000,)])
    assert (opened - sum(plain)).abs().max() < 1e-6
    for some in (sealed[:1], sealed[1:]):
        (found,) = cipher.open(adder.add(some), [(9000,)])
        assert found.std() > 200
        assert abs(torch.corrcoef(torch.stack([found, plain[0]]))[0, 1]) < 0.05  # chance alone gives 0.01
    other = cipher.mask(sites[0], list(sites), "another question", 9000)
    assert abs(torch.corrcoef(torch.stack([torch.from_numpy(other), torch.from_numpy(masks[0])]))[0, 1]) < 0.05


def test_what_is_opened_is_covered_with_noise_far_above_the_scheme_s_own_error(keys: tuple[Path, Path]) -> None:
    """CKKS's error alone would give the key away (Li and Micciancio 2021)."""
    cipher, adder = Cipher(keys[0]), Adder(keys[1])
    values = torch.linspace(-1, 1, 4096)
    total = adder.add([cipher.seal([values]), cipher.seal([values])])
    own = (
        torch.tensor(cipher.package.ckks_vector_from(cipher.context, next(_parts(total))).decrypt())
        - 2 * values.double()
    )
    told = cipher.open(total, [(4096,)])[0] - 2 * values.double()
    assert own.std() < 2e-9
    assert 4e-8 < told.std() < 6e-8


def _parts(sealed: torch.Tensor):
    from mil.hospital.encryption import _unpacked

    return _unpacked(sealed)


def test_the_server_s_key_opens_nothing(keys: tuple[Path, Path]) -> None:
    cipher, adder = Cipher(keys[0]), Adder(keys[1])
    sealed = cipher.seal([torch.ones(3)])
    vector = adder.package.ckks_vector_from(adder.context, next(_parts(sealed)))
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()
    with pytest.raises(MilError, match="the server gets the public one only"):
        Adder(keys[0])
    with pytest.raises(MilError, match="a site needs the secret one"):
        Cipher(keys[1])
    assert oct(keys[0].stat().st_mode)[-3:] == "600"
    with pytest.raises(MilError, match="there already"):
        make_keys(*keys)


def test_equal_updates_are_not_equal_when_encrypted(keys: tuple[Path, Path]) -> None:
    cipher = Cipher(keys[0])
    assert not torch.equal(cipher.seal([torch.ones(9)])[:5000], cipher.seal([torch.ones(9)])[:5000])


def test_what_is_too_large_or_cut_short_is_refused(keys: tuple[Path, Path]) -> None:
    cipher, adder = Cipher(keys[0]), Adder(keys[1])
    with pytest.raises(MilError, match="too large"):
        cipher.seal([torch.tensor([1e5])])
    sealed = cipher.seal([torch.ones(3)])
    with pytest.raises(MilError, match="cut short"):
        adder.add([sealed[:-7]])
    with pytest.raises(MilError, match="differ in length"):
        adder.add([sealed, cipher.seal([torch.ones(5000)])])
    with pytest.raises(MilError, match="where 4 belong"):
        cipher.open(sealed, [(4,)])


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Hospitals:
    experiment = {**PROTOCOL["experiment"], "training": TRAINING}
    made = make_hospitals(
        tmp_path_factory.mktemp("federation"), experiment=experiment, payload={"max_mb_a_round": 20.0}
    )
    for name in "AB":  # an external site needs none
        path = made.folder / name / "site.yaml"
        path.write_text(path.read_text() + f"key: {keys[0]}\n")
    return made


@pytest.mark.parametrize(
    "strategy",
    [
        "fedavg",
        {"name": "fedavg", "weighting": "uniform"},
        {"name": "fedprox", "mu": 0.1, "participation": 0.5},
        {"name": "finetune", "epochs": 1, "base": {"name": "fedavgm", "weighting": "uniform"}},
    ],
)
def test_an_encrypted_run_is_the_plain_one(
    hospitals: Hospitals, keys: tuple[Path, Path], tmp_path: Path, strategy: object
) -> None:
    experiment = {**PROTOCOL["experiment"], "training": TRAINING, "strategy": strategy}
    found = {}
    for encryption in ("none", "ckks"):
        with rewrite_protocol(hospitals, encryption=encryption, experiment=experiment):
            sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
            server = Server(hospitals.protocol, tmp_path.name, tmp_path / encryption, key=keys[1])
            inprocess.run(server, sites)
            found[encryption] = server.stages
    assert found["none"].progress.rounds == found["ckks"].progress.rounds
    for name, value in found["none"].state.items():
        assert (value - found["ckks"].state[name]).abs().max() < 1e-5, name


def encrypted(hospitals: Hospitals):
    return rewrite_protocol(hospitals, encryption="ckks")


def test_no_update_crosses_in_the_clear(hospitals: Hospitals, keys: tuple[Path, Path], tmp_path: Path) -> None:
    with encrypted(hospitals):
        sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
        server = Server(hospitals.protocol, "clear", tmp_path, key=keys[1])
        kinds = []
        while server.kind != "done" and len(kinds) < 4:
            question = server.question()
            answers = {name: sites[name].answer(question) for name in server.asked}
            kinds.append(server.kind)
            if server.kind == "train":
                watched = ("watched_loss", "watched_count")
                names = json.loads(answers["A"][8 : 8 + int.from_bytes(answers["A"][:8], "little")])
                assert set(names) - {"__metadata__"} == {SEALED, "num_bags", "num_steps", "train_loss", *watched}
            server.receive(answers, {})
        assert kinds == ["join", "moments", "train", "open"]


def test_a_server_killed_before_the_opening_goes_on(
    hospitals: Hospitals, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with encrypted(hospitals):
        sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
        server = Server(hospitals.protocol, "killed", tmp_path, key=keys[1])
        steps = 0
        while server.kind != "done":
            if server.joined:
                steps += 1
            question = server.question()
            server.receive({name: sites[name].answer(question) for name in server.asked}, {})
            if steps in {2, 5}:
                server = Server(hospitals.protocol, "killed", tmp_path, key=keys[1])
                steps += 1
        assert (tmp_path / "result" / "spec.json").exists()


def test_a_round_s_sum_is_opened_once(hospitals: Hospitals, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A server that wants a single site's update opened has used up the round."""
    with encrypted(hospitals):
        sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
        server = Server(hospitals.protocol, "twice", tmp_path, key=keys[1])
        for _ in range(3):
            question = server.question()
            answers = {name: sites[name].answer(question) for name in server.asked}
            server.receive(answers, {})
        sum_of_all = server.question()
        sites["A"].answer(sum_of_all)
        sites["A"].answer(sum_of_all)  # asked again, after a crash
        single = load(answers["B"])[SEALED]
        server.stages.sealed = {SEALED: single}
        with pytest.raises(PayloadError, match=r"another question 'open' .* was answered already"):
            sites["A"].answer(server.question())
        told = load(sites["B"].answer(server.question()))  # the other site has not opened that round's yet
        assert min(float(value.std()) for value in told.values() if value.numel() > 50) > 200  # noise of the masks


def test_a_site_with_another_key_is_noticed(hospitals: Hospitals, keys: tuple[Path, Path], tmp_path: Path) -> None:
    make_keys(tmp_path / "other", tmp_path / "other.public")
    with encrypted(hospitals):
        sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
        server = Server(hospitals.protocol, "other", tmp_path / "run", key=keys[1])
        sites["B"].cipher = Cipher(tmp_path / "other")
        with pytest.raises((MilError, SitesMissing)):
            inprocess.run(server, sites)
        assert server.stages.progress.round == 1


def test_encryption_without_its_key_or_with_a_strategy_that_needs_more_says_so(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    with encrypted(hospitals):
        with pytest.raises(MilError, match="public key"):
            Server(hospitals.protocol, "none", tmp_path)
        spec = hospitals.site("A").model_copy(update={"key": None})
        with pytest.raises(MilError, match="secret key"):
            Site.open(spec)
    whole = hospitals.protocol.model_dump(mode="json")
    for strategy in ("median", "scaffold", "trimmed_mean"):
        whole["experiment"]["strategy"] = {"name": strategy}
        with pytest.raises(ValueError, match="needs more than a sum"):
            FederationSpec.model_validate({**whole, "encryption": "ckks"})
