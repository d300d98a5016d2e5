"""One step of each strategy's server by hand."""

import dataclasses

import pytest
import torch
from small_federation import (
    SUMMED,
    after,
    course_of,
    farthest,
    strategy_of,
)

from mil.strategies.aggregation import Answers
from mil.training.clients import participants, visits

# Arithmetic by hand


def answers_of(values, counts, weighting="patients"):
    states = {"w": torch.tensor([[value] for value in values], dtype=torch.float64)}
    return Answers(states, strategy_of("fedavg", weighting=weighting).amounts(torch.tensor(counts)))


STATE = {"w": torch.tensor([10.0], dtype=torch.float64)}


def stepped(name, answers, rounds=1, **changes):
    """Global value after the same changes in every round."""
    strategy, state = strategy_of(name, **changes), dict(STATE)
    server = strategy.begin(state)
    for _ in range(rounds):
        moved = Answers({"w": answers.states["w"] - STATE["w"] + state["w"]}, answers.amounts)
        state, server = strategy.server_step(state, server, moved)
    return state["w"].item()


def test_server_steps_by_hand():
    answers = answers_of([11.0, 14.0], [1, 3])  # changes 1 and 4, weighted mean 3.25
    assert stepped("fedavg", answers) == 13.25
    assert stepped("fedavg", answers_of([11.0, 14.0], [1, 3], "uniform")) == 12.5
    assert stepped("fedavgm", answers, 2, momentum=0.5, server_lr=2.0) == 10 + 6.5 + 2 * (3.25 * 1.5)
    rates = {"server_lr": 0.1, "beta1": 0.5, "beta2": 0.9, "tau": 0.01}
    d, m1, m2 = 3.25, 1.625, 0.5 * 1.625 + 0.5 * 3.25
    v1 = 0.9 * 1e-4 + 0.1 * d**2
    v2 = 0.9 * v1 + 0.1 * d**2
    expected = 10 + 0.1 * m1 / (v1**0.5 + 0.01) + 0.1 * m2 / (v2**0.5 + 0.01)
    assert stepped("fedadam", answers, 2, **rates) == pytest.approx(expected, rel=1e-13)
    v1, v2 = 1e-4 + d**2, 1e-4 + 2 * d**2
    expected = 10 + 0.1 * m1 / (v1**0.5 + 0.01) + 0.1 * m2 / (v2**0.5 + 0.01)
    assert stepped("fedadagrad", answers, 2, **rates) == pytest.approx(expected, rel=1e-13)
    v1 = 1e-4 + 0.1 * d**2
    v2 = v1 + 0.1 * d**2
    expected = 10 + 0.1 * m1 / (v1**0.5 + 0.01) + 0.1 * m2 / (v2**0.5 + 0.01)
    assert stepped("fedyogi", answers, 2, **rates) == pytest.approx(expected, rel=1e-13)


def test_yogi_shrinks_its_second_moment_by_the_square_of_the_change():
    strategy = strategy_of("fedyogi", beta2=0.9, tau=5.0)
    server = strategy.begin(STATE)
    _, server = strategy.server_step(STATE, server, answers_of([11.0], [1]))
    assert server["second/w"].item() == pytest.approx(25 - 0.1)  # v - (1 - b2) d^2 sign(v - d^2)


def test_fedadam_with_adam_s_bias_correction_by_hand():
    answers = answers_of([11.0, 14.0], [1, 3])
    rates = {"server_lr": 0.1, "beta1": 0.5, "beta2": 0.9, "tau": 0.01}
    d, m1, m2 = 3.25, 1.625, 0.5 * 1.625 + 0.5 * 3.25
    v1, v2 = 0.1 * d**2, 0.9 * 0.1 * d**2 + 0.1 * d**2  # from zero
    steps = [0.1 * m / (v**0.5 + 0.01) for m, v in ((m1, v1), (m2, v2))]
    corrections = [(1 - 0.9**k) ** 0.5 / (1 - 0.5**k) for k in (1, 2)]
    expected = 10 + corrections[0] * steps[0] + corrections[1] * steps[1]
    assert stepped("fedadam", answers, 2, like="adam", **rates) == pytest.approx(expected, rel=1e-13)


def test_of_two_sites_the_robust_means_are_the_plain_one():
    plain = after(course_of("fedavg", {"A": 5, "B": 9}, steps=3, weighting="uniform"), 3)
    for name in ("median", "trimmed_mean"):
        assert farthest(after(course_of(name, {"A": 5, "B": 9}, steps=3), 3).state, plain.state) < SUMMED


def test_robust_means_by_hand():
    assert stepped("median", answers_of([11.0, 1e9, 12.0], [1, 100, 1])) == 12
    assert stepped("median", answers_of([11.0, 13.0], [1, 1])) == 12
    assert stepped("trimmed_mean", answers_of([11.0, 1e9, 12.0, 14.0, -1e9], [1] * 5), trim=0.2) == pytest.approx(
        37 / 3
    )
    assert stepped("trimmed_mean", answers_of([11.0, 13.0], [1, 9]), trim=0.2) == 12


def test_scaffold_s_control_counts_sites_that_did_not_answer():
    scaffold = strategy_of("scaffold")
    answers = dataclasses.replace(
        answers_of([11.0], [1]), controls={"w": torch.tensor([[4.0]])}, total=torch.tensor(4.0, dtype=torch.float64)
    )
    state, server = scaffold.server_step(STATE, scaffold.begin(STATE), answers)
    assert (state["w"].item(), server["control/w"].item()) == (11, 1)


def test_float64_sums_do_not_depend_on_order():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(11, 500, generator=generator) * 10.0 ** torch.arange(-5, 6)[:, None]
    strategy, state = strategy_of("fedavg"), {"w": torch.randn(500, generator=generator)}
    counts = torch.arange(1, 12)
    results = set()
    for seed in range(11):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
        place = order.argsort()  # sites arrive in any order and are sorted by name before the sum
        answers = Answers({"w": states[order][place]}, counts[order][place].double())
        results.add(strategy.server_step(state, {}, answers)[0]["w"].numpy().tobytes())
    assert len(results) == 1


def test_draws_of_sites_are_named():
    assert participants(10, 0.3, 0, 1).sum() == 3
    assert participants(3, 0.01, 0, 1).sum() == 1
    assert participants(10, 0.3, 0, 1).tolist() == participants(10, 0.3, 0, 1).tolist()
    assert len({tuple(participants(10, 0.3, 0, k).tolist()) for k in range(5)}) > 1
    assert visits(3, False, 0, 5) == [0, 1, 2]
    assert sorted(visits(5, True, 0, 5)) == list(range(5))
