"""Patients of two hospitals by private set intersection: the same as a plain intersection, and nothing else can be read or forged."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hospitals import Hospitals, make_hospitals, rewrite_protocol
from shared_lists import Sets, duplicates, out, part_of, say, sent

from mil import hdf5
from mil.errors import MilError
from mil.hospital.intersection import SLOPE, check_point, multiplied, point
from mil.hospital.keys import PRIME
from mil.hospital.local_data import alone
from mil.hospital.record import read_record
from mil.hospital.shared_files import Comparison, Kept, SentFile, folder_of
from mil.hospital.shared_patients import exchange


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return make_hospitals(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def copied(tmp_path: Path) -> Hospitals:
    return make_hospitals(tmp_path)


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


@pytest.mark.slow
def test_three_hospitals_find_a_shared_patient_and_a_shared_slide(copied: Hospitals) -> None:
    assert duplicates(copied, "A")[0][0] == "warning"
    table = Path(copied.site("B").results) / "bags" / "response.csv"
    before = table.read_text()
    table.write_text(before.replace("B007,", "\uff41 013,"))  # the same patient, written otherwise
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
    assert "patient \uff41 013 is at A too\n" in told["B"]
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


def test_a_workspace_that_a_lock_file_makes_first_is_its_owner_s(tmp_path: Path) -> None:
    """It was made with mode 755, and stayed so when the keys were put into it."""
    hospitals = make_hospitals(tmp_path)
    spec = hospitals.site("A").model_copy(update={"workspace": str(tmp_path / "new" / "workspace")})
    with pytest.raises(MilError, match="the key of site A is"):
        exchange(spec, [])
    with alone(tmp_path / "coordinator" / "runs" / "first" / "running", 0.0, "x"):
        pass
    for folder in ("new", "new/workspace", "coordinator", "coordinator/runs/first"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700, folder
