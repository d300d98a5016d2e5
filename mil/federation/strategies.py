"""What the server does with what the sites send: pure functions over named tensors.

The site axis comes first, sorted by site; any further axes (a model axis above all) ride along. Sums are in float64 and
cast once, so that the order in which sites answer changes no bit. The server's own tensors are float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mil.registry import Registry
from mil.specs.strategies import (
    Adaptive,
    FedAvgMSpec,
    FedPerSpec,
    FedProxSpec,
    FinetuneSpec,
    StrategySpec,
    TrimmedMeanSpec,
)

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


class Strategy:
    """Base of the strategies: who trains where, and how a round ends."""

    federated = True
    """Sites train apart and the server aggregates; otherwise one learner sees all bags of its sites."""
    by_site = False
    """One model a training site, not one for all of them."""
    cyclic = False
    """Sites train one after the other on the same model, and no server is needed."""
    together = False
    """Models of the sites are judged as one: the mean of their probabilities."""
    personal = False
    """In the end each site has a model of its own."""
    controls = False
    """Sites and server keep control variates."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    @property
    def mu(self) -> float:
        """Strength of the pull towards the global model."""
        return 0.0

    @property
    def local_parts(self) -> tuple[str, ...]:
        """First parts of the names of tensors that stay at their site."""
        return ()

    @property
    def finetune_epochs(self) -> int:
        """Epochs at each site after the last round."""
        return 0

    def begin(self, state: State) -> dict[str, Tensor]:
        """The server's own tensors before the first round."""
        return {}

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The next global state and the server's next tensors."""
        return moved(state, weighted_change(state, answers)), dict(server)


STRATEGIES: Registry[type[Strategy]] = Registry("strategy")


def build_strategy(spec: StrategySpec) -> Strategy:
    """The strategy of `spec`."""
    return STRATEGIES[spec.name](spec)


def shares(counts: Tensor, weighting: str) -> Tensor:
    """Patients of the sites that answered (sites, ...) -> weights that sum to 1 over the sites, float64; 0 stays 0."""
    amounts = counts.double() if weighting == "patients" else (counts > 0).double()
    return amounts / amounts.sum(0).clamp(min=1e-300)


def weighted_change(state: State, answers: Answers) -> dict[str, Tensor]:
    """Sum over sites of weight x (site's state - state), float64. A site of weight 0 contributes nothing at all."""
    change = {}
    for name, value in state.items():
        difference = answers.states[name].double() - value.double()
        share = _beside(answers.weights, difference)
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
    kind: str, state: State, first: State, second: State, change: State, spec: Adaptive
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Reddi et al. 2021, Algorithm 2: m, v and x from the change d; `kind` is adam, yogi or adagrad."""
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
    return moved(state, step, spec.server_lr), first, new


def control_after(own: Tensor, server: Tensor, start: Tensor, end: Tensor, travelled: Tensor | float) -> Tensor:
    """SCAFFOLD's option II: c_i - c + (x - y) / (sum of the learning rates of the local steps)."""
    return own - server + (start - end) / travelled


@STRATEGIES.register("local")
class Local(Strategy):
    """One model a site, on its own patients."""

    federated = False
    by_site = True


@STRATEGIES.register("ensemble")
class Ensemble(Local):
    """Local models, judged together."""

    together = True


@STRATEGIES.register("pooled")
class Pooled(Strategy):
    """One model on everybody's patients."""

    federated = False


@STRATEGIES.register("cyclic")
class Cyclic(Strategy):
    """One model that every site trains in turn."""

    cyclic = True


@STRATEGIES.register("fedavg")
class FedAvg(Strategy):
    """x <- x + sum of w_i (y_i - x)."""


@STRATEGIES.register("fedprox")
class FedProx(Strategy):
    """FedAvg with mu (y - x) added to the sites' gradients."""

    @property
    def mu(self) -> float:
        """From the spec."""
        return cast(FedProxSpec, self.spec).mu


@STRATEGIES.register("fedper")
class FedPer(Strategy):
    """FedAvg of the body; the head stays where it is."""

    personal = True

    @property
    def local_parts(self) -> tuple[str, ...]:
        """From the spec."""
        return cast(FedPerSpec, self.spec).local


@STRATEGIES.register("fedavgm")
class FedAvgM(Strategy):
    """Momentum at the server."""

    def begin(self, state: State) -> dict[str, Tensor]:
        """Velocity zero."""
        return {f"velocity/{name}": torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `momentum_step`."""
        spec = cast(FedAvgMSpec, self.spec)
        velocity = _taken(server, "velocity")
        change = weighted_change(state, answers)
        state, velocity = momentum_step(state, velocity, change, spec.momentum, spec.server_lr)
        return state, _given("velocity", velocity)


class _Adaptive(Strategy):
    kind = ""

    def begin(self, state: State) -> dict[str, Tensor]:
        """First moment zero, second tau squared."""
        zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
        second = {name: zero + cast(Adaptive, self.spec).tau ** 2 for name, zero in zeros.items()}
        return _given("first", zeros) | _given("second", second)

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `adaptive_step`."""
        change = weighted_change(state, answers)
        moments = (_taken(server, "first"), _taken(server, "second"))
        state, first, second = adaptive_step(self.kind, state, *moments, change, self.spec)
        return state, _given("first", first) | _given("second", second)


@STRATEGIES.register("fedadam")
class FedAdam(_Adaptive):
    """Adam at the server."""

    kind = "adam"


@STRATEGIES.register("fedyogi")
class FedYogi(_Adaptive):
    """Yogi at the server."""

    kind = "yogi"


@STRATEGIES.register("fedadagrad")
class FedAdagrad(_Adaptive):
    """Adagrad at the server."""

    kind = "adagrad"


@STRATEGIES.register("scaffold")
class Scaffold(Strategy):
    """x <- x + eta sum of w_i (y_i - x); c <- c + sum over all sites of their share x (c_i+ - c_i)."""

    controls = True

    def begin(self, state: State) -> dict[str, Tensor]:
        """Control variate zero, in the state's own type, since sites add it to their gradients."""
        return {f"control/{name}": torch.zeros_like(value) for name, value in state.items()}

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both sums."""
        if answers.controls is None or answers.standing is None:
            raise ValueError("scaffold needs the sites' control variates")
        control = {}
        for name, value in _taken(server, "control").items():
            changes = answers.controls[name].double()
            control[name] = (value.double() + (changes * _beside(answers.standing, changes)).sum(0)).to(value.dtype)
        return moved(state, weighted_change(state, answers), self.spec.server_lr), _given("control", control)


@STRATEGIES.register("median")
class Median(Strategy):
    """x <- x + median of (y_i - x)."""

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `median_change`."""
        return moved(state, median_change(state, answers)), dict(server)


@STRATEGIES.register("trimmed_mean")
class TrimmedMean(Strategy):
    """x <- x + trimmed mean of (y_i - x)."""

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `trimmed_change`."""
        return moved(state, trimmed_change(state, answers, cast(TrimmedMeanSpec, self.spec).trim)), dict(server)


@STRATEGIES.register("finetune")
class Finetune(Strategy):
    """Another strategy's rounds, then epochs at each site."""

    personal = True

    def __init__(self, spec: FinetuneSpec) -> None:
        super().__init__(spec)
        self.base = build_strategy(spec.base)
        self.federated, self.cyclic, self.controls = self.base.federated, self.base.cyclic, self.base.controls

    @property
    def mu(self) -> float:
        """The base's."""
        return self.base.mu

    @property
    def finetune_epochs(self) -> int:
        """From the spec."""
        return cast(FinetuneSpec, self.spec).epochs

    def begin(self, state: State) -> dict[str, Tensor]:
        """The base's."""
        return self.base.begin(state)

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The base's."""
        return self.base.server_step(state, server, answers)


def _beside(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (sites, ...) with axes of length 1 added, to multiply `values` (sites, ..., more)."""
    return weights.double().view(*weights.shape, *[1] * (values.dim() - weights.dim()))


def _given(part: str, tensors: State) -> dict[str, Tensor]:
    return {f"{part}/{name}": value for name, value in tensors.items()}


def _taken(server: State, part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}/"): value for name, value in server.items() if name.startswith(f"{part}/")}


def _ordered(state: State, answers: Answers, name: str) -> tuple[Tensor, Tensor]:
    """Changes in rising order along the site axis, those without an answer last; and how many answered (...)."""
    difference = answers.states[name].double() - state[name].double()
    answered = _beside(answers.weights, difference) > 0
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
