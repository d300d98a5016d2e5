"""Sums of integers: exact in any order and grouping, under masks that cancel; what does not fit is refused."""

import pytest
import torch

from mil.strategies.aggregation import Answers
from mil.strategies.fedavg import FedAvg
from mil.strategies.fixed_point import NARROW, WIDE

SIZES = 10.0 ** torch.arange(-5, 5).repeat(50)
VALUES = torch.randn(64, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * SIZES
KINDS = pytest.mark.parametrize("fixed", [WIDE, NARROW], ids=["64 bits", "32 bits"])
DTYPES = {64: torch.int64, 32: torch.int32}


def fitting(fixed):
    """Numbers of which the largest just fits."""
    return VALUES * ((1 - 2**-20) * fixed.largest / VALUES.abs().max())


def shuffled(seed):
    return torch.randperm(64, generator=torch.Generator().manual_seed(seed))


@KINDS
def test_any_order_and_grouping_gives_the_same_bits(fixed):
    values = fitting(fixed)
    whole = fixed.steps(values).sum(0)
    for seed in range(5):
        groups = [part.sum(0) for part in fixed.steps(values[shuffled(seed)]).split(9)]
        assert torch.equal(torch.stack(groups).sum(0), whole)
    assert (fixed.numbers(whole) - values.sum(0)).abs().max() <= 32 * fixed.step + 2**-48 * fixed.largest
    assert len({values[shuffled(seed)].sum(0).sum().item() for seed in range(9)}) > 1  # floats depend on the order


@KINDS
def test_masks_that_cancel_leave_no_trace(fixed):
    kind, limits = DTYPES[fixed.bits], torch.iinfo(DTYPES[fixed.bits])
    mask = torch.randint(limits.min, limits.max, (500,), generator=torch.Generator().manual_seed(1)).to(kind)
    steps = fixed.steps(fitting(fixed), torch.full((64, 1), 1 / 64, dtype=torch.float64)).to(kind)
    masked = steps.clone()
    masked[3] += mask
    masked[40] -= mask
    assert torch.equal(masked.sum(0, dtype=kind), steps.sum(0, dtype=kind))
    assert torch.equal(steps.sum(0, dtype=kind).long(), steps.long().sum(0))  # nothing wrapped


@KINDS
@pytest.mark.parametrize("size", [1.0, -1.0, float("inf"), float("nan")])
def test_a_number_that_does_not_fit_is_refused_by_a_site_and_is_no_number_in_a_simulation(fixed, size):
    values = torch.tensor([[0.5, 0.5], [1.5, size * fixed.largest]], dtype=torch.float64)
    with pytest.raises(ValueError, match=f"with {fixed.bits} bits it must be below"):
        fixed.steps(values)
    summed = fixed.sum(values, torch.ones(2, 1, dtype=torch.float64))
    assert summed[0] == 2
    assert torch.isnan(summed[1])


@KINDS
def test_a_weighted_mean_of_the_largest_numbers_of_any_number_of_sites_fits(fixed):
    largest = torch.full((1000, 1), fixed.largest * (1 - 2**-30), dtype=torch.float64)
    weights = torch.rand(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    steps = fixed.steps(largest, weights / weights.sum())
    assert abs(int(steps.sum())) < 2 ** (fixed.bits - 2) + 500
    assert fixed.numbers(steps.sum(0)).item() == pytest.approx(fixed.largest, rel=1e-6)
    assert torch.equal(fixed.numbers(steps.sum(0)), fixed.sum(largest, weights / weights.sum()))


def test_seven_sites_losses_fit_into_64_bits_without_weights():
    largest = torch.full((7, 1), WIDE.largest * (1 - 2**-50), dtype=torch.float64)
    assert WIDE.numbers(WIDE.steps(largest).sum(0)).item() == pytest.approx(7 * WIDE.largest, rel=1e-12)


def test_fedavg_s_next_state_does_not_depend_on_the_order_of_sites():
    state, amounts = {"w": torch.randn(500)}, torch.arange(1, 65).double()
    results = set()
    for seed in range(5):
        answers = Answers({"w": VALUES.float()[shuffled(seed)]}, amounts[shuffled(seed)])
        results.add(FedAvg().server_step(state, {}, answers)[0]["w"].numpy().tobytes())
    assert len(results) == 1
