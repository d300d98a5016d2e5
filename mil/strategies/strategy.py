"""What the server does with what the sites send: who trains where, and how a round ends.

Strategies hold no tensors: states go in and come out. The server's own tensors are float64. Buffers (means and deviations of
features, covariates and target; class weights) are no part of a state: sites' moments are merged once, before the first
round, every site gets the same, and no strategy averages or changes them.
"""

from typing import Any, cast

import torch
from torch import Tensor

from mil.registry import Registry
from mil.specs.strategies import (
    Adaptive,
    FedAvgMSpec,
    FedAvgSpec,
    FedPerSpec,
    FedProxSpec,
    FinetuneSpec,
    StrategySpec,
    TrimmedMeanSpec,
)
from mil.strategies.aggregation import Answers as Answers
from mil.strategies.aggregation import State as State
from mil.strategies.aggregation import (
    adaptive_step,
    beside,
    median_change,
    momentum_step,
    moved,
    trimmed_change,
    weighted_change,
)
from mil.strategies.aggregation import control_after as control_after
from mil.strategies.aggregation import histofl_noise as histofl_noise
from mil.strategies.aggregation import shares as shares


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
        """Rounds of local work at each site after the last round."""
        return 0

    @property
    def histofl_noise(self) -> float:
        """HistoFL's alpha; 0: none."""
        return 0.0

    def at_rate(self, server_lr: float | None) -> "Strategy":
        """The same with another learning rate of the server; none: as it is."""
        return self if server_lr is None else build_strategy(self.spec.model_copy(update={"server_lr": server_lr}))

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
    """x <- x + sum of w_i (y_i - x); with HistoFL's noise, + the sum of the sites' draws."""

    @property
    def histofl_noise(self) -> float:
        """From the spec."""
        return cast(FedAvgSpec, self.spec).histofl_noise or 0.0

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sites' changes, and their noise."""
        change = weighted_change(state, answers)
        if self.histofl_noise:
            if answers.noise is None:
                raise ValueError("histofl_noise needs the sites' draws")
            change = {name: value + answers.noise[name].sum(0) for name, value in change.items()}
        return moved(state, change), dict(server)


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


AHEAD = {"adam": 0, "flower": 1}
"""Servers with Adam's bias correction: how many rounds early they take it."""


class _Adaptive(Strategy):
    kind = ""

    def begin(self, state: State) -> dict[str, Tensor]:
        """First moment zero; second tau squared, or zero to be like others'."""
        spec = cast(Adaptive, self.spec)
        zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
        start = spec.tau**2 if spec.like == "reddi" else 0.0
        second = {name: zero + start for name, zero in zeros.items()}
        return (
            _given("first", zeros)
            | _given("second", second)
            | self._counted(
                {name: zero.clone() for name, zero in zeros.items()}  # drivers write each of the tensors in place
            )
        )

    def _counted(self, rounds: State) -> dict[str, Tensor]:
        """Rounds with an answer so far, kept where they are needed: number by number, since each model has its own."""
        return _given("rounds", rounds) if self.kind == "adam" and self.spec.like in AHEAD else {}

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `adaptive_step`."""
        change = weighted_change(state, answers)
        moments = (_taken(server, "first"), _taken(server, "second"))
        rounds = {name: value + 1 for name, value in _taken(server, "rounds").items()}
        correction = {name: _unbiased(value, self.spec) for name, value in rounds.items()} or None
        state, first, second = adaptive_step(self.kind, state, *moments, change, self.spec, correction)
        return state, _given("first", first) | _given("second", second) | self._counted(rounds)


@STRATEGIES.register("fedadam")
class FedAdam(_Adaptive):
    """Adam at the server."""

    kind = "adam"


@STRATEGIES.register("fedsgd")
class FedSGD(_Adaptive):
    """Adam at the server, one gradient a site and round."""

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
            control[name] = (value.double() + (changes * beside(answers.standing, changes)).sum(0)).to(value.dtype)
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
    def local_parts(self) -> tuple[str, ...]:
        """The base's."""
        return self.base.local_parts

    @property
    def finetune_epochs(self) -> int:
        """From the spec."""
        return cast(FinetuneSpec, self.spec).epochs

    @property
    def histofl_noise(self) -> float:
        """The base's."""
        return self.base.histofl_noise

    def at_rate(self, server_lr: float | None) -> Strategy:
        """The base's."""
        return build_strategy(self.spec.model_copy(update={"base": self.base.at_rate(server_lr).spec}))

    def begin(self, state: State) -> dict[str, Tensor]:
        """The base's."""
        return self.base.begin(state)

    def server_step(self, state: State, server: State, answers: Answers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The base's."""
        return self.base.server_step(state, server, answers)


def _unbiased(rounds: Tensor, spec: Adaptive) -> Tensor:
    """Adam's correction of the learning rate after so many rounds, the current one among them."""
    rounds = rounds + AHEAD[spec.like]
    return (1 - spec.beta2**rounds).sqrt() / (1 - spec.beta1**rounds)


def _given(part: str, tensors: State) -> dict[str, Tensor]:
    return {f"{part}/{name}": value for name, value in tensors.items()}


def _taken(server: State, part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}/"): value for name, value in server.items() if name.startswith(f"{part}/")}
