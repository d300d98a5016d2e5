"""Files of the search for shared patients: what was changed, is early, late, old or too long is refused in one line."""

import json
from pathlib import Path

import pytest
import yaml
from hospitals import Hospitals, make_hospitals, rewrite_protocol
from shared_lists import duplicates, out, part_of, say

from mil.errors import CorruptFile, MilError
from mil.hospital.intersection import multiplied, point
from mil.hospital.keys import PRIME, PartyKey
from mil.hospital.shared_files import Kept, SentFile, folder_of
from mil.hospital.shared_patients import exchange

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(tmp_path: Path) -> Hospitals:
    return make_hospitals(tmp_path)


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
        ([*own, own[-1]], "not sorted, or a point occurs twice"),
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
