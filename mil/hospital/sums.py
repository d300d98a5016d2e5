"""What a site adds to the sums of a round, before it is masked, and what is read off the sums: integers on either side."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mil.hospital.blobs import Lazy, Made, Part, part_of, row_of
from mil.hospital.forms import PARTS
from mil.hospital.masking import LIMBS, exact, numbers_of, summed
from mil.hospital.payload import PayloadError
from mil.statistics.moments import Moments
from mil.strategies.fixed_point import WIDE, FixedPoint

MOST = 2**160  # each site's number is below 2^150
ROUNDING = Fraction(1, 10**6)
ONE_SITE = "a site's part is wrong, or it has other keys; the sum does not show which"
SUMS = ".sums"
"""Suffix of a scale's tensor (models, width, 3, LIMBS): number, sum and sum of squares of every column."""


def of_moments(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counts, means and squares of every scale (models, width) -> exact sums; other tensors stay as they are."""
    integers = {name: value for name, value in tensors.items() if "." not in name}
    for name in {name.rsplit(".", 1)[0] for name in tensors if "." in name}:
        count, mean, squares = (tensors[f"{name}.{part}"].numpy() for part in PARTS)
        count = np.broadcast_to(count, mean.shape)
        numbers: list[Fraction] = []
        for n, m, s in zip(count.ravel().tolist(), mean.ravel().tolist(), squares.ravel().tolist(), strict=True):
            total = Fraction(n) * Fraction(m)
            numbers += [Fraction(n), total, Fraction(s) + total * Fraction(m)]
        integers[name + SUMS] = exact(numbers).view(*mean.shape, 3, LIMBS)
    return integers


def has_few(column: np.ndarray, least: int) -> bool:
    """Whether a column (patients,) has a value of fewer than `least` patients that its number, sum and squares tell: of two or three values."""
    counts = np.unique(column[np.isfinite(column)], return_counts=True)[1]
    return len(counts) in {2, 3} and bool(counts.min() < least)


def moments_of(total: Tensor, patients: int | None = None) -> Moments:
    """The sum over sites of a model's `of_moments` (width, 3, LIMBS) -> its moments, without any cancellation.

    Raise `PayloadError` for sums that no rows have, or more rows than `patients`: a site lied, or its mask is another than the others'.
    """
    numbers = numbers_of(total.reshape(-1, LIMBS))
    count, first, second = numbers[::3], numbers[1::3], numbers[2::3]
    mean = [one / n if n else Fraction(0) for one, n in zip(first, count, strict=True)]
    squares = [two - one * m for one, two, m in zip(first, second, mean, strict=True)]
    for n, two, rest in zip(count, second, squares, strict=True):
        if n < 0 or n.denominator != 1 or two > MOST or rest < -ROUNDING * max(two, 1):
            raise PayloadError(
                f"the masked sums are of {float(n):.4g} values with the squares {float(two):.4g}, which cannot be; {ONE_SITE}"
            )
        if patients is not None and n > patients:
            raise PayloadError(f"the masked sums are of {n} values, but there are {patients} patients; {ONE_SITE}")
    columns = (
        np.array([[max(0.0, float(number)) for number in count]]),
        *(np.array([[float(number) for number in part]]) for part in (mean, squares)),
    )
    return Moments(columns[0], columns[1], np.maximum(columns[2], 0.0))


def of_round(
    answers: Mapping[str, Tensor],
    models: Mapping[str, Tensor],
    names: Sequence[str],
    weights: Tensor,
    everyone: Tensor,
    fixed: FixedPoint,
) -> Lazy:
    """A site's answer to `train` -> integers whose sum over sites is the weighted mean change of every model.

    `weights` (models,): the site's share of those that answer; `everyone`: of all training sites, for control variates.
    """

    kind = torch.int32 if fixed.bits == 32 else torch.int64

    def change(name: str, number: int) -> Tensor:
        value, share = row_of(answers, name, number).double(), weights
        if name in models:
            value -= models[name][number].double()
        else:  # a change already
            share = everyone
        return _steps(name, value, fixed, share[number]).to(kind)

    integers: dict[str, Part] = {name: answers[name] for name in ("num_bags", "num_steps")}
    for name in names:
        integers[name] = Made(tuple(part_of(answers, name).shape), kind, partial(change, name))
    if "train_loss" in answers:
        integers["train_loss"] = _steps("train_loss", answers["train_loss"] * answers["num_bags"])
    return Lazy(integers | of_errors(answers))


def of_errors(answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Errors and the numbers to divide them by, as integers."""
    return {name: _steps(name, answers[name]) for name in ("watched_error", "watched_count") if name in answers}


def _steps(name: str, values: Tensor, fixed: FixedPoint = WIDE, weight: float | Tensor = 1.0) -> Tensor:
    try:
        return fixed.steps(values, weight)
    except ValueError as error:
        raise PayloadError(f"'{name}': {error}. Nothing was sent") from error


def read(totals: Iterable[Tensor], fixed: FixedPoint = WIDE) -> Tensor:
    """The sites' masked integers -> their sum, float64."""
    return fixed.numbers(summed(totals))


def pooled_losses(answers: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """Mean training loss of every model over the patients of all sites, from the sites' masked answers."""
    losses = read([tensors["train_loss"] for tensors in answers])
    return (losses / sum(tensors["num_bags"] for tensors in answers)).tolist()


def mean_change(
    answers: Sequence[Mapping[str, Tensor]],
    number: int,
    names: Sequence[str],
    longest: float | None,
    bounded: Sequence[str],
    fixed: FixedPoint,
) -> dict[str, Tensor]:
    """The weighted mean change of model `number`, float64, from the sites' masked answers.

    A mean is no larger than the largest of its parts, so what holds for every honest site holds for it: `PayloadError` for numbers
    that no site may send, and where the tensors `bounded` together are longer than `longest` (L2 norm of a model's change).
    """
    change = {name: read((row_of(tensors, name, number) for tensors in answers), fixed) for name in names}
    largest = max(float(value.abs().max()) for value in change.values())
    if largest >= fixed.largest:
        raise PayloadError(f"the mean change of all sites is {largest:.3g} in a weight; {ONE_SITE}")
    norm = sum(float(change[name].square().sum()) for name in bounded) ** 0.5
    if longest is not None and norm > longest * (1 + 1e-6):
        raise PayloadError(
            f"the mean change of all sites is {norm:.3g} long, more than the {longest:g} of max_update; {ONE_SITE}"
        )
    return change
