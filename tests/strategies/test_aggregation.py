"""Means over sites, by hand."""

import numpy as np
import pytest
import torch

from mil.strategies.aggregation import Answers, middle, moved, weighted_change, weighted_sum, zeros

STATE = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.5])}
SITES = {
    "w": torch.tensor([[[2.0, 2.0], [3.0, 0.0]], [[5.0, 2.0], [3.0, 8.0]], [[1.0, 1.0], [1.0, 1.0]]]),
    "b": torch.tensor([[1.5], [0.5], [-3.5]]),
}
ANSWERS = Answers(SITES, torch.tensor([10.0, 20.0, 70.0], dtype=torch.float64))


def test_a_site_counts_by_its_patients():
    assert ANSWERS.weights.tolist() == [0.1, 0.2, 0.7]
    change = weighted_change(STATE, ANSWERS)
    assert change["b"].dtype == torch.float64
    torch.testing.assert_close(change["b"], torch.tensor([0.1 * 1 + 0 - 0.7 * 4], dtype=torch.float64))
    by_hand = sum(weight * (SITES["w"][site] - STATE["w"]) for site, weight in enumerate((0.1, 0.2, 0.7)))
    torch.testing.assert_close(change["w"], by_hand.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        weighted_sum(SITES["w"], ANSWERS.weights), (by_hand + STATE["w"]).double(), atol=1e-6, rtol=0
    )


def test_a_step_is_the_state_and_a_share_of_the_change():
    change = {"w": torch.full((2, 2), 0.25, dtype=torch.float64), "b": torch.tensor([-2.0], dtype=torch.float64)}
    after = moved(STATE, change, 0.5)
    assert after["w"].tolist() == [[1.125, 2.125], [3.125, 4.125]]
    assert after["b"].tolist() == [-0.5]
    assert after["w"].dtype == torch.float32
    assert moved(STATE, change)["w"].tolist() == [[1.25, 2.25], [3.25, 4.25]]
    third = {"b": torch.tensor([0.1], dtype=torch.float64)}
    assert moved({"b": torch.tensor([0.1])}, third, 1 / 3)["b"] == np.float32(np.float64(np.float32(0.1)) + 0.1 / 3)


def test_differences_and_steps_are_taken_in_double_precision():
    small = float(np.float32(1e-8))  # lost beside 1 in single precision
    change = weighted_change(
        {"w": torch.tensor([small])}, Answers({"w": torch.ones(1, 1)}, torch.ones(1, dtype=torch.float64))
    )
    assert change["w"].item() == pytest.approx(1 - small, abs=1e-12)
    total = torch.tensor([2.0**24], dtype=torch.float32)
    after = moved({"w": total}, {"w": torch.tensor([1.5], dtype=torch.float64)}, 2.0)
    assert after["w"].item() == np.float32(2.0**24 + 3)
    assert after["w"].dtype == torch.float32


def test_nothing_has_the_shapes_of_the_state_in_double_precision():
    assert {name: (value.shape, value.dtype, float(value.abs().sum())) for name, value in zeros(STATE).items()} == {
        name: (value.shape, torch.float64, 0.0) for name, value in STATE.items()
    }


@pytest.mark.parametrize(("cut", "expected"), [(0, 22.0), (1, 3.0), (2, 3.0)])
def test_the_middle_leaves_out_as_many_at_either_end(cut, expected):
    values = torch.tensor([100.0, 2.0, 1.0, 4.0, 3.0])[:, None].repeat(1, 2)
    values[:, 1] *= -1
    assert middle(values, cut).tolist() == pytest.approx([expected, -expected])
    assert middle(values, cut).dtype == torch.float64
