"""Sums of integers: exact in any order and grouping, under masks that cancel; what does not fit is refused."""

import pytest
import torch

from mil.strategies.aggregation import Answers
from mil.strategies.fedavg import FedAvg
from mil.strategies.fixed_point import LARGEST, exact_sum, from_fixed, to_fixed

SIZES = 10.0 ** torch.arange(-5, 5).repeat(50)
VALUES = torch.randn(64, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * SIZES


def shuffled(seed):
    return torch.randperm(64, generator=torch.Generator().manual_seed(seed))


def test_any_order_and_grouping_gives_the_same_bits():
    whole = to_fixed(VALUES).sum(0)
    for seed in range(5):
        groups = [part.sum(0) for part in to_fixed(VALUES[shuffled(seed)]).split(9)]
        assert torch.equal(torch.stack(groups).sum(0), whole)
    assert (from_fixed(whole) - VALUES.sum(0)).abs().max() < 1e-9
    assert len({VALUES[shuffled(seed)].sum(0).sum().item() for seed in range(9)}) > 1  # floats depend on the order


def test_masks_that_cancel_leave_no_trace():
    limits = torch.iinfo(torch.int64)
    mask = torch.randint(limits.min, limits.max, (500,), generator=torch.Generator().manual_seed(1))
    masked = to_fixed(VALUES)
    masked[3] += mask
    masked[40] -= mask
    assert torch.equal(masked.sum(0), to_fixed(VALUES).sum(0))


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, float("inf"), float("nan")])
def test_a_number_that_does_not_fit_is_refused_by_a_site_and_is_no_number_in_a_simulation(value):
    values = torch.tensor([[1.0, 1.0], [3.0, value]], dtype=torch.float64)
    with pytest.raises(ValueError, match="must be below"):
        to_fixed(values)
    summed = exact_sum(values)
    assert summed[0] == 4
    assert torch.isnan(summed[1])


def test_the_largest_numbers_of_seven_sites_fit():
    largest = torch.full((7, 1), LARGEST * (1 - 2**-50), dtype=torch.float64)
    assert from_fixed(to_fixed(largest).sum(0)).item() == pytest.approx(7 * LARGEST, rel=1e-12)


def test_fedavg_s_next_state_does_not_depend_on_the_order_of_sites():
    state, amounts = {"w": torch.randn(500)}, torch.arange(1, 65).double()
    results = set()
    for seed in range(5):
        answers = Answers({"w": VALUES.float()[shuffled(seed)]}, amounts[shuffled(seed)])
        results.add(FedAvg().server_step(state, {}, answers)[0]["w"].numpy().tobytes())
    assert len(results) == 1
