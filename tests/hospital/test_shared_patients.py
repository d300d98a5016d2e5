"""Patients of two hospitals by private set intersection: the same as a plain intersection, and nothing else can be read or forged."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from hospitals import Hospitals, make_hospitals, rewrite_protocol
from typer.testing import CliRunner

from mil import hdf5
from mil.commands.hospital import site as commands
from mil.errors import CorruptFile, MilError
from mil.hospital.intersection import SLOPE, check_point, multiplied, point
from mil.hospital.keys import PRIME, PartyKey
from mil.hospital.preflight import check_site
from mil.hospital.record import read_record
from mil.hospital.shared_files import Comparison, Kept, SentFile, folder_of
from mil.hospital.shared_patients import Exchanges, exchange

Sets = dict[str, list[str]]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return make_hospitals(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def copied(tmp_path: Path) -> Hospitals:
    return make_hospitals(tmp_path)


def out(hospitals: Hospitals, sender: str, recipient: str, kind: str) -> Path:
    return folder_of(hospitals.site(sender)) / f"{sender}-to-{recipient}.{kind}.json"


def part_of(hospitals: Hospitals, name: str, ids: Sets | None = None) -> Exchanges:
    """A site's side; `ids`: elements in place of those of its files."""
    found = Exchanges(hospitals.site(name), hospitals.protocol)
    found.ids = found.ids if ids is None else {kind: {one: one for one in values} for kind, values in ids.items()}
    return found


def sent(path: Path) -> SentFile:
    return SentFile.model_validate_json(path.read_bytes())


def compare(hospitals: Hospitals, first: Sets, second: Sets) -> tuple[Comparison, Comparison, list[SentFile]]:
    """A with `first` and B with `second`, all the way: both results, and all that was sent."""
    parts = {"A": part_of(hospitals, "A", first), "B": part_of(hospitals, "B", second)}
    pairs = (("A", "B"), ("B", "A"))
    for own, other in pairs:
        parts[own].begin(other)
    paths = [out(hospitals, *pair, kind) for kind in ("list", "answer") for pair in pairs]
    for path in paths:
        parts["B" if path.name.startswith("A") else "A"].take(path, sent(path))
    found = [Kept.read(hospitals.site(own), other).comparison for own, other in pairs]
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1], [sent(path) for path in paths]


def test_points_are_on_the_curve_and_multiplying_commutes() -> None:
    generator = random.Random(0)
    first, second = (generator.randbytes(32) for _ in range(2))
    points = [point("patients", f"P{number}") for number in range(200)]
    assert len(set(points)) == 200
    ways = multiplied(multiplied(points, first), second), multiplied(multiplied(points, second), first)
    assert ways[0] == ways[1]
    for one in [*points, *ways[0]]:
        u = int.from_bytes(one, "little")
        square = (u**3 + SLOPE * u**2 + u) % PRIME
        root = pow(square, (PRIME + 3) // 8, PRIME)  # the prime is 5 modulo 8
        assert square in {pow(root * factor, 2, PRIME) for factor in (1, pow(2, (PRIME - 1) // 4, PRIME))}
        check_point(one)
    assert point("patients", "P1") != point("slides", "P1")


@pytest.mark.parametrize("seed", range(4))
def test_the_result_is_that_of_a_plain_intersection_at_both_sides(three: Hospitals, seed: int) -> None:
    generator = random.Random(seed)
    everything = {kind: [f"{kind} {number}" for number in range(60)] for kind in ("patients", "slides")}
    first, second = (
        {kind: generator.sample(values, generator.choice([0, 1, 20, 40])) for kind, values in everything.items()}
        for _ in range(2)
    )
    at_first, at_second, _ = compare(three, first, second)
    for kind in everything:
        both = set(first[kind]) & set(second[kind])
        assert set(getattr(at_first.shared, kind)) == set(getattr(at_second.shared, kind)) == both
    assert at_first.code == at_second.code


def test_without_the_number_nobody_can_test_an_identity(three: Hospitals) -> None:
    """B keeps all that was sent and its number, and goes through a dictionary with every identity in it. With a shared salt this
    search was the whole of the work.
    """
    ids = [f"{number:05d}" for number in range(400)]
    first, second = ({"patients": part, "slides": []} for part in (ids[:100], ids[90:150]))
    parts = {"A": part_of(three, "A", first), "B": part_of(three, "B", second)}
    parts["A"].begin("B")
    parts["B"].begin("A")
    numbers = {}
    for own, other in (("A", "B"), ("B", "A")):
        kept = Kept.read(three.site(own), other).exchange
        assert kept is not None
        numbers[own] = bytes.fromhex(kept.secret)
    for kind in ("list", "answer"):
        for own, other in (("A", "B"), ("B", "A")):
            parts[other].take(out(three, own, other, kind), sent(out(three, own, other, kind)))
    seen = {
        bytes.fromhex(one)
        for own, other in (("A", "B"), ("B", "A"))
        for kind in ("list", "answer")
        for one in sent(out(three, own, other, kind)).patients
    }
    assert len(seen) == 100 + 60 + 150  # of the 160 in the answers, ten are the same in both

    def hits(*secrets: bytes) -> set[str]:
        found = set()
        label = f"{three.protocol.sha256}|patients"
        for name in ids:
            tried = [point(label, name)]
            for secret in (*secrets, *secrets):
                tried += multiplied(tried[-1:], secret)
            found |= {name} if seen & set(tried) else set()
        return found

    assert hits() == set()
    assert hits(numbers["B"]) == set(ids[90:150])  # its own
    assert hits(numbers["A"]) == set(ids[:100])
    assert hits(numbers["A"], numbers["B"]) == set(ids[:150])  # the search works: with both numbers it finds everybody
    other_number = np.random.default_rng(0).bytes(32)
    assert hits(other_number) == set()


def test_an_order_tells_nothing_and_numbers_are_new_each_time(three: Hospitals) -> None:
    ids = {"patients": [f"P{number}" for number in range(50)], "slides": ["s"]}
    lists = [compare(three, ids, ids)[2][0] for _ in range(2)]
    assert all(list(one.patients) == sorted(one.patients) for one in lists)
    assert not set(lists[0].patients) & set(lists[1].patients)
    assert lists[0].slides != lists[1].slides


def say(hospitals: Hospitals, name: str, *words: object) -> str:
    done = CliRunner().invoke(commands, ["shared", str(hospitals.folder / name / "site.yaml"), *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def round_of(hospitals: Hospitals) -> dict[str, str]:
    """Three commands at each of three hospitals; what the last ones said."""
    for kind in ("list", "answer"):
        for own in "ABC":
            others = [one for one in "ABC" if one != own]
            files = [] if kind == "list" else [out(hospitals, other, own, "list") for other in others]
            told = say(hospitals, own, *files)
            assert told.count("send to") == 2
            assert all(str(out(hospitals, own, other, kind)) in told for other in others)
    return {
        own: say(hospitals, own, *(out(hospitals, other, own, "answer") for other in "ABC" if other != own))
        for own in "ABC"
    }


def duplicates(hospitals: Hospitals, name: str) -> list[tuple[str, str]]:
    return [(one.state, one.sentence) for one in check_site(hospitals.site(name)) if one.check == "duplicates"]


def test_three_hospitals_find_a_shared_patient_and_a_shared_slide(copied: Hospitals) -> None:
    assert duplicates(copied, "A")[0][0] == "warning"
    table = Path(copied.site("B").results) / "bags" / "response.csv"
    before = table.read_text()
    table.write_text(before.replace("B007,", "a 013,"))  # the same patient, written otherwise
    for name, slide in (("A", "A-2-0"), ("C", "C-4-0")):
        path = Path(copied.site(name).results) / "sites" / name / "features" / "toy" / f"{slide}.h5"
        path.unlink()
        with hdf5.writing(path) as file:
            file.append("features", np.zeros((3, 12), np.float16))
            about = {"encoder": "toy", "weights_sha256": "0" * 64, "tile_mpp": 0.5, "size_px": 224}
            file.annotate({**about, "fingerprint": "sha256:" + "7" * 64})
    told = round_of(copied)
    assert "B: 1 of 48 patients and 0 of 1 slides are there too" in told["A"]
    assert "patient A013 is at B too\n" in told["A"]
    assert "slide A-2-0 is at C too\n" in told["A"]
    assert "patient a 013 is at A too\n" in told["B"]
    assert "slide C-4-0 is at A too\n" in told["C"]
    assert told["C"].count(" too\n") == 1
    found = duplicates(copied, "A")
    assert [(state, said.split(";")[0]) for state, said in found] == [
        ("fault", "patient A013 is at B too"),
        ("fault", "slide A-2-0 is at C too"),
    ]
    for name in "ABC":  # nothing of the exchange is left but its result, for its owner only
        folder = folder_of(copied.site(name))
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in folder.glob("?.json"):
            assert path.stat().st_mode & 0o777 == 0o600
            assert json.loads(path.read_text())["exchange"] is None
        assert not any(b"A013" in path.read_bytes() for path in folder.glob("*-to-*"))
        lines = [line for line in read_record(Path(copied.site(name).workspace) / "ledger.jsonl") if "with" in line]
        assert sorted((line["with"], line["patients"]) for line in lines) == sorted(
            (other, {"A": 48, "B": 52, "C": 30}[other]) for other in "ABC" if other != name
        )
    table.write_text(before)  # B keeps another patient, and both compare again
    say(copied, "B", "--again", "A")
    say(copied, "A", out(copied, "B", "A", "list"))
    say(copied, "B", out(copied, "A", "B", "list"), out(copied, "A", "B", "answer"))
    assert "B: 0 of 48 patients" in say(copied, "A", out(copied, "B", "A", "answer"))
    assert [said.split(";")[0] for _, said in duplicates(copied, "A")] == ["slide A-2-0 is at C too"]
    assert duplicates(copied, "B") == [
        ("warning", "not compared with C, or not with all of today's patients; `mil site shared site.yaml`")
    ]
    with rewrite_protocol(copied, federation="other"):
        assert duplicates(copied, "B")[0][0] == "warning"


@pytest.fixture
def begun(copied: Hospitals) -> Hospitals:
    """A and B have made their lists; A's was answered."""
    for name in "ABC":
        say(copied, name)
    say(copied, "B", out(copied, "A", "B", "list"))
    return copied


def resigned(path: Path, workspace: str, **changes) -> None:
    """The file with changes, signed by the party of this workspace, who may lie."""
    changed = SentFile.model_validate({**json.loads(path.read_text()), **changes})
    signature = PartyKey(workspace).sign(changed.content)
    path.write_text(changed.model_copy(update={"signature": signature}).model_dump_json())


def test_a_file_that_was_changed_on_its_way_is_refused(begun: Hospitals, tmp_path: Path) -> None:
    path = out(begun, "B", "A", "list")
    whole, content = path.read_bytes(), json.loads(path.read_text())
    twisted = {
        "another point": {
            "patients": [*content["patients"][1:], content["slides"][0] if content["slides"] else "1" * 64]
        },
        "one point less": {"patients": content["patients"][1:]},
        "another sender": {"sender": "C"},
        "another recipient": {"recipient": "C"},
        "another protocol": {"protocol": "1" * 64},
        "another kind": {"kind": "answer"},
    }
    for changes in twisted.values():
        path.write_text(json.dumps({**content, **changes}))
        refused(begun, "A", path, "is not signed with the key of")
    for broken in (whole[: len(whole) // 2], b"", b"\xff\x00", b"[]", whole.replace(b'"slides"', b'"slide"')):
        path.write_bytes(broken)
        refused(begun, "A", path, "is no file of `mil site shared`")
    path.write_bytes(whole)
    resigned(path, begun.site("C").workspace)  # signed by a member, who is not the sender
    refused(begun, "A", path, "is not signed with the key of B")
    resigned(path, begun.site("B").workspace, sender="X")
    refused(begun, "A", path, "sender 'X' is not a member")
    refused(begun, "A", tmp_path / "none.json", "cannot be read")
    refused(begun, "A", out(begun, "B", "C", "list"), "is from B to C; this is A")
    refused(begun, "B", out(begun, "B", "A", "answer"), "is from B to A; this is B")
    assert Kept.read(begun.site("A"), "B").exchange is not None  # as it was


def refused(hospitals: Hospitals, name: str, path: Path, said: str) -> None:
    """In one line, with nothing changed."""
    kept = {path.name: path.read_bytes() for path in folder_of(hospitals.site(name)).glob("?.json")}
    with pytest.raises(MilError, match=said) as error:
        exchange(hospitals.site(name), [path])
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert kept == {path.name: path.read_bytes() for path in folder_of(hospitals.site(name)).glob("?.json")}


ZERO, ONE = "00" * 32, "01" + "00" * 31
TWIST = "02" + "00" * 31
"""u = 2: on the twist."""


def test_a_member_that_sends_what_no_list_is_gets_no_answer(begun: Hospitals) -> None:
    path, workspace = out(begun, "B", "A", "list"), begun.site("B").workspace
    whole = path.read_bytes()
    own = json.loads(whole)["patients"]
    for points, said in (
        ([*own, own[-1]], "not sorted, or one stands there twice"),
        (own[::-1], "not sorted"),
        ([ZERO], "is no point of the curve"),
        ([TWIST], "is no point of the curve"),
        ([(PRIME + 9).to_bytes(32, "little").hex()], "is no point of the curve"),  # the same number in another way
        (["f" * 64], "is no point of the curve"),
        ([ONE], "is no point of the curve|point of small order"),
        (["9" * 63], "is no file of"),
    ):
        path.write_bytes(whole)
        if len(points[0]) == 64:
            resigned(path, workspace, patients=points)
        else:
            path.write_text(json.dumps({**json.loads(whole), "patients": points}))
        refused(begun, "A", path, said)
    resigned(path, workspace, patients=own, protocol="1" * 64)
    refused(begun, "A", path, "is of the protocol 1111")


def test_a_list_may_hold_no_more_than_the_protocol_has_patients_of_the_site(copied: Hospitals) -> None:
    members = yaml.safe_load((copied.folder / "server" / "federation.yaml").read_text())["sites"]
    with rewrite_protocol(copied, sites={**members, "B": {**members["B"], "patients": 51}}):
        with pytest.raises(MilError, match=r"52 patients of site B, but at most 51 .* sites\.B\.patients"):
            say(copied, "B")
        ids = {"patients": [f"P{number}" for number in range(51)], "slides": []}
        part_of(copied, "B", ids).begin("A")
        path = out(copied, "B", "A", "list")
        more = multiplied((point("x", str(number)) for number in range(52)), bytes(range(32)))
        resigned(path, copied.site("B").workspace, patients=sorted(one.hex() for one in more))
        with pytest.raises(MilError, match="52 patients of site B, but at most 51"):
            exchange(copied.site("A"), [path])


def test_steps_in_another_order_are_refused_and_said(begun: Hospitals) -> None:
    answer, own = out(begun, "B", "A", "answer"), out(begun, "B", "A", "list")
    refused(begun, "A", answer, "comes before the list of B; give B-to-A.list.json first")
    told = say(begun, "A", answer, own)  # both at once, in any order
    assert "B: 0 of 48 patients" in told
    refused(begun, "A", answer, "no exchange with B is under way")
    refused(begun, "A", own, "was compared already")
    with pytest.raises(MilError, match="--again X: is no other site"):
        exchange(begun.site("A"), [], ["X"])


def test_files_of_an_earlier_exchange_are_refused(begun: Hospitals, tmp_path: Path) -> None:
    kept = {}
    for kind in ("list", "answer"):
        kept[kind] = tmp_path / f"old.{kind}.json"
        kept[kind].write_bytes(out(begun, "B", "A", kind).read_bytes())
    say(begun, "A", "--again", "B")
    say(begun, "B", "--again", "A")
    say(begun, "A", out(begun, "B", "A", "list"))
    refused(begun, "A", kept["list"], "another list of B was answered in this exchange")
    refused(begun, "A", kept["answer"], "answers other lists than those of this exchange")
    assert str(out(begun, "A", "B", "answer")) in say(
        begun, "A", out(begun, "B", "A", "list")
    )  # a lost file, once more
    assert out(begun, "A", "B", "list").read_bytes() == _again(begun)
    say(begun, "B", out(begun, "A", "B", "list"))
    path = out(begun, "B", "A", "answer")
    points = json.loads(path.read_text())["patients"]
    for wrong in (points[1:], [*points[1:], points[1]]):
        resigned(path, begun.site("B").workspace, patients=wrong)
        refused(begun, "A", path, "points for 48 patients")


def _again(hospitals: Hospitals) -> bytes:
    """The list that a command without files writes while an exchange is under way."""
    say(hospitals, "A")
    return out(hospitals, "A", "B", "list").read_bytes()


def test_a_spoilt_file_of_one_s_own_and_a_missing_key_are_lines(begun: Hospitals) -> None:
    path = folder_of(begun.site("A")) / "B.json"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(CorruptFile, match="delete it and compare again"):
        exchange(begun.site("A"), [])
    assert "delete it and compare again" in duplicates(begun, "A")[0][1]
    path.unlink()
    members = yaml.safe_load((begun.folder / "server" / "federation.yaml").read_text())["sites"]
    without = {**members, "C": {name: value for name, value in members["C"].items() if name != "key"}}
    with rewrite_protocol(begun, sites=without):
        assert "C: not compared, because sites.C.key" in say(begun, "A")
        with pytest.raises(MilError, match=r"sites\.C\.key is not set"):
            exchange(begun.site("C"), [])
