"""Copies of slides among many patients, without a table of all pairs."""

from itertools import combinations

import numpy as np

from mil.leaks.checks import check_copies
from mil.rng import rng


def test_copies_are_those_that_a_comparison_of_all_pairs_finds(monkeypatch):
    """Bags of whole numbers share rows by chance and some are equal; blocks of 7 bags cut through the pairs."""
    monkeypatch.setattr("mil.leaks.checks.AT_ONCE", 7)
    stream = rng(0, "copies")
    bags = {f"P{n:02d}": stream.integers(0, 3, (stream.integers(3, 9), 3)).astype(np.float16) for n in range(40)}
    bags |= {f"Q{n}": bags[f"P{n:02d}"] + np.float16(0.001) for n in (3, 11)}
    rows = {patient: {tuple(row) for row in bag} for patient, bag in bags.items()}
    shares = {
        f"{a} and {b}": len(rows[a] & rows[b]) / min(len(rows[a]), len(rows[b])) for a, b in combinations(bags, 2)
    }
    found = check_copies("copies", bags.items())
    leaks = {one.subject: one.value for one in found if one.state == "leak"}
    assert leaks == {pair: share for pair, share in shares.items() if share >= 0.2}
    assert list(leaks) == sorted(leaks)
    assert {"P03 and Q3", "P11 and Q11"} <= {one.subject for one in found if one.state == "suspect"}


def test_a_tile_that_all_patients_have_is_no_copy_and_costs_no_pairs():
    """The features of empty glass: half a million pairs share it."""
    bags = {f"P{n:04d}": np.r_[[[9.0, 9.0]], rng(n, "tile").normal(size=(5, 2))] for n in range(1000)}
    assert [one.state for one in check_copies("copies", bags.items())] == ["ok"]
