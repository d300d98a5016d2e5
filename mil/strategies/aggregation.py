"""What sites sent -> sums over sites and steps of the server: pure functions over named tensors.

The site axis comes first, sorted by site; any further axes (a model axis above all) ride along. Sums are in float64 and
cast once, so that the order in which sites answer changes no bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mil.specs.strategies import Adaptive

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Answers:
    """What came back in a round."""

    states: State
    """The sites' states (sites, ...)."""
    weights: Tensor
    """Share of each site among those that answered (sites, ...) float64, summing to 1 over the sites; 0: no answer."""
    controls: State | None = None
    """SCAFFOLD: change of the sites' control variates (sites, ...); zero for a site that did not answer."""
    standing: Tensor | None = None
    """SCAFFOLD: share of each site among all sites, answered or not (sites, ...) float64."""
    noise: State | None = None
    """HistoFL's noise, one draw a site that answered (sites, ...) float64, zero for the others; see `histofl_noise`."""


def shares(counts: Tensor, weighting: str) -> Tensor:
    """Patients of the sites that answered (sites, ...) -> weights that sum to 1 over the sites, float64; 0 stays 0."""
    amounts = counts.double() if weighting == "patients" else (counts > 0).double()
    return amounts / amounts.sum(0).clamp(min=1e-300)


def weighted_change(state: State, answers: Answers) -> dict[str, Tensor]:
    """Sum over sites of weight x (site's state - state), float64. A site of weight 0 contributes nothing at all."""
    change = {}
    for name, value in state.items():
        difference = answers.states[name].double() - value.double()
        share = beside(answers.weights, difference)
        change[name] = torch.where(share > 0, difference * share, 0.0).sum(0)
    return change


def moved(state: State, change: State, rate: float = 1.0) -> dict[str, Tensor]:
    """state + rate x change, summed in float64 and cast once."""
    return {name: (value.double() + rate * change[name]).to(value.dtype) for name, value in state.items()}


def median_change(state: State, answers: Answers) -> dict[str, Tensor]:
    """Median over the sites that answered of their change, number by number, float64."""
    return {name: _middle(*_ordered(state, answers, name), share=None) for name in state}


def trimmed_change(state: State, answers: Answers, trim: float) -> dict[str, Tensor]:
    """Mean of the change over the sites that answered, without the floor(trim x sites) lowest and highest."""
    return {name: _middle(*_ordered(state, answers, name), share=trim) for name in state}


def momentum_step(
    state: State, velocity: State, change: State, momentum: float, rate: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """v <- momentum v - change; x <- x - rate v."""
    velocity = {name: momentum * velocity[name] - change[name] for name in state}
    return moved(state, velocity, -rate), velocity


def adaptive_step(
    kind: str, state: State, first: State, second: State, change: State, spec: Adaptive, correction: State | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Reddi et al. 2021, Algorithm 2: m, v and x from the change d; `kind` is adam, yogi or adagrad.

    `correction` is what the learning rate is multiplied by, number by number; none: 1, as in the paper.
    """
    first = {name: spec.beta1 * first[name] + (1 - spec.beta1) * d for name, d in change.items()}
    new = {}
    for name, d in change.items():
        old, square = second[name], d * d
        if kind == "adagrad":
            new[name] = old + square
        elif kind == "adam":
            new[name] = spec.beta2 * old + (1 - spec.beta2) * square
        else:
            new[name] = old - (1 - spec.beta2) * square * torch.sign(old - square)
    step = {name: first[name] / (new[name].sqrt() + spec.tau) for name in change}
    if correction is not None:
        step = {name: correction[name] * value for name, value in step.items()}
    return moved(state, step, spec.server_lr), first, new


def control_after(own: Tensor, server: Tensor, start: Tensor, end: Tensor, travelled: Tensor | float) -> Tensor:
    """SCAFFOLD's option II: c_i - c + (x - y) / (sum of the learning rates of the local steps)."""
    return own - server + (start - end) / travelled


def histofl_noise(state: State, alpha: float, stream: Callable[[str], np.random.Generator]) -> dict[str, Tensor]:
    """Noise for a site's tensors, float64: alpha x the tensor's own deviation x N(0, 1), from `stream` of the tensor's name.

    As HistoFL's code has it (fl_utils.py, Lu et al. 2022): biases and single numbers get none, and the sum over sites does
    not weight it. Unclipped updates and a scale that the data decide: no (epsilon, delta) can be stated for it.
    """
    noise = {}
    for name, value in state.items():
        noise[name] = torch.zeros_like(value, dtype=torch.float64)
        if not name.endswith("bias") and value.numel() > 1:
            drawn = torch.from_numpy(stream(name).standard_normal(tuple(value.shape))).to(value.device)
            noise[name] = alpha * value.double().std() * drawn
    return noise


def beside(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (sites, ...) with axes of length 1 added, to multiply `values` (sites, ..., more)."""
    return weights.double().view(*weights.shape, *[1] * (values.dim() - weights.dim()))


def _ordered(state: State, answers: Answers, name: str) -> tuple[Tensor, Tensor]:
    """Changes in rising order along the site axis, those without an answer last; and how many answered (...)."""
    difference = answers.states[name].double() - state[name].double()
    answered = beside(answers.weights, difference) > 0
    return torch.where(answered, difference, float("inf")).sort(dim=0).values, answered.sum(0)


def _middle(ordered: Tensor, answered: Tensor, share: float | None) -> Tensor:
    """Mean of the middle of each column: the one or two in the middle, or all but floor(share x answered) at each end."""
    if share is None:
        low, high = (answered - 1) // 2, answered // 2
    else:
        cut = (answered * share + 1e-9).long()
        low, high = cut, answered - 1 - cut
    rank = torch.arange(len(ordered), device=ordered.device).view(-1, *[1] * (ordered.dim() - 1))
    kept = (rank >= low) & (rank <= high)
    return torch.where(kept, ordered, 0.0).sum(0) / kept.sum(0).clamp(min=1)
