"""What each question and answer must look like, made on either side from its own copy of the protocol.

A slot is one model: a repeat, an outer fold and, while rounds are selected, an inner fold. All slots of a phase travel in
one message, as the leading axis of every tensor; a slot that is finished is left out of later rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mil.endpoints import Endpoint, build_endpoint
from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.hospital.messages import (
    FINISHED,
    AnyAnswer,
    Asked,
    AskedFinish,
    AskedRound,
    CloseQuestion,
    FinishAnswer,
    Followed,
    FollowedAnswer,
    FollowedFinish,
    FollowedRound,
    FollowedWithheld,
    JoinAnswer,
    JoinQuestion,
    WithheldAnswer,
)
from mil.hospital.payload import Form, Shaped
from mil.models import Head, build
from mil.training.protocol import candidates, model_name

BALANCE = "balance"
CONTROL = "control/"
RELAY = "relay/"
SNAPSHOT = "snapshot"
PARTS = ("count", "mean", "squares")


@dataclass(frozen=True, order=True)
class Slot:
    """One model of a phase."""

    sites: str
    """The training sites, joined by `+`."""
    repeat: int
    fold: int
    inner: int | None = None
    choice: int = 0
    """Number of the candidate, where a search chooses between several."""
    replica: int = 0

    @property
    def name(self) -> str:
        """E.g. `A+B/repeat0/fold1/choice1/inner2`, as `mil train` calls the same model."""
        return model_name(f"{self.sites}/repeat{self.repeat}/fold{self.fold}", self.choice, self.inner, self.replica)


def outer_folds(protocol: FederationSpec) -> list[tuple[int, int]]:
    """Every repeat and outer fold: what a selection is made for."""
    return [(repeat, fold) for repeat in range(protocol.endpoint.repeats) for fold in range(protocol.endpoint.folds)]


def slots(protocol: FederationSpec, phase: str, choices: Sequence[int] = ()) -> list[Slot]:
    """All models of a phase, in their order along the leading axis; `choices`: the candidate of every outer fold's refit."""
    spec, experiment, sites = protocol.endpoint, protocol.experiment, "+".join(protocol.training_sites)
    outer = outer_folds(protocol)
    if phase == "refit":
        chosen = zip(outer, choices or [0] * len(outer), strict=True)
        replicas = range(experiment.training.replicas)
        return [Slot(sites, *fold, None, choice, replica) for fold, choice in chosen for replica in replicas]
    tried = range(len(candidates(experiment)))
    return [
        Slot(sites, *fold, inner, choice) for fold in outer for choice in tried for inner in range(spec.inner_folds)
    ]


def groups_of(protocol: FederationSpec, phase: str, kind: str = "watch") -> list[list[int]]:
    """Slot numbers of each outer fold and candidate whose errors are asked for in a question of this kind; none in the refit."""
    if phase == "refit" or (kind == "train" and watched_apart(protocol)):
        return []
    count = protocol.endpoint.inner_folds
    return [list(range(start, start + count)) for start in range(0, len(slots(protocol, phase)), count)]


def watched_apart(protocol: FederationSpec) -> bool:
    """Errors are a question of their own after every round, since not every site trains on it but all of them judge it.

    Otherwise they come with the next round's updates, and a round is one exchange.
    """
    return protocol.strategy.cyclic or protocol.strategy.share < 1


def is_subset(numbers: Sequence[int], count: int) -> bool:
    """Ascending slot numbers without repetition, all below `count`, at least one."""
    return bool(numbers) and list(numbers) == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < count


class Shapes:
    """Names and shapes of what a model of the protocol is made of, on features of `width`."""

    def __init__(self, protocol: FederationSpec, width: int) -> None:
        experiment = protocol.experiment
        self.endpoint: Endpoint = build_endpoint(protocol.endpoint)
        self.head: Head = build(experiment.model, width, self.endpoint.outputs, len(experiment.covariates))
        first = self.head.initial(np.random.default_rng(0))
        self.strategy = protocol.strategy
        self.whole = {name: value.shape for name, value in sorted(first.items())}
        """Of all that a model is."""
        self.own = [name for name in self.whole if name.split(".")[0] in self.strategy.local_parts]
        """Tensors that never leave their site."""
        self.state = {name: shape for name, shape in self.whole.items() if name not in self.own}
        """Of what crosses."""
        if self.strategy.local_parts and not (self.own and self.state):
            layers = ", ".join(sorted({name.split(".")[0] for name in self.whole}))
            raise MilError(
                f"experiment.strategy: local names {', '.join(self.strategy.local_parts)}, but some layers must stay and "
                f"some must be shared; the head's layers are {layers}"
            )
        self.scales = {"features": width}
        """Width of each thing that is centred and scaled."""
        if experiment.covariates:
            self.scales["covariates"] = len(experiment.covariates)
        if self.endpoint.scaled:
            self.scales["target"] = len(self.endpoint.columns)
        self.measured = {
            name: width
            for name, width in self.scales.items()
            if name != "features" or experiment.training.scaling == "standard"
        }
        """Those whose moments the sites are asked for."""
        self.balanced = experiment.training.imbalance != "none"
        self.controls = self.strategy.controls
        self.kept = self.controls or bool(self.own)
        """A site keeps something from one round to the next."""
        self.masked = protocol.trust == "sites"
        """Sites compute the models themselves, from masked sums; otherwise the coordinator sends them and sees every update."""
        self.pooled = self.masked and protocol.metrics == "sums" and protocol.privacy is None
        """Metrics and covariates are told as masked sums over the training sites."""
        self.private = protocol.privacy is not None
        """Nothing crosses that carries no noise: no loss, no metric."""

    def summed(self, kind: str) -> bool:
        """Whether answers of a kind are masked: without one of the sites that were asked, the masks do not cancel."""
        return self.masked and (kind in {"moments", "train", "watch"} or (kind == "finish" and self.pooled))

    @property
    def exchanged(self) -> dict[str, tuple[int, ...]]:
        """What sites answer of a model: its shared tensors and, where the strategy has them, changes of control variates."""
        controls = {f"{CONTROL}{name}": shape for name, shape in self.state.items()} if self.controls else {}
        return self.state | controls

    @property
    def buffers(self) -> dict[str, tuple[int, ...]]:
        """What goes with a model and is not trained: scales, and the classes' weights."""
        scales = {f"{name}.{part}": (width,) for name, width in self.scales.items() for part in ("mean", "deviation")}
        return scales | {BALANCE: (self.endpoint.classes,)}


class Forms:
    """Forms of every kind of message."""

    def __init__(self, shapes: Shapes | None) -> None:
        """`shapes` are not known before the sites have joined."""
        self.known = shapes

    @property
    def shapes(self) -> Shapes:
        """Of the models."""
        if self.known is None:
            raise ValueError("nothing is known of the features before the sites have joined")
        return self.known

    def asked(self, kind: str) -> type[Asked]:
        """The values of a question about models."""
        of_round = kind in {"train", "watch"}
        if self.shapes.masked:
            return FollowedRound if of_round else Followed
        if of_round:
            return AskedRound
        return AskedFinish if kind == "finish" else Asked

    def question(self, kind: str, live: int, relayed: Sequence[str] = ()) -> Form[Asked]:
        """A question about `live` models; `relayed`: the sites whose last answers it carries."""
        tensors: Shaped = {}
        if self.shapes.masked:
            tensors = dict.fromkeys([*(f"{RELAY}{site}" for site in relayed), SNAPSHOT], ((-1,), torch.uint8))
        elif kind != "moments":
            tensors = self._stacked(self.shapes.state | self.shapes.buffers, live)
            tensors |= self._controls(live) if kind == "train" else {}
        return Form(kind, tensors, self.asked(kind))

    def answer(self, kind: str, live: int, groups: int) -> Form[AnyAnswer]:
        """An answer about `live` models that are selected in `groups` (0 in the refit, where nothing is)."""
        if kind == "join":
            return JOIN_ANSWER
        if kind == "close":
            return CLOSE_ANSWER
        if kind == "finish":
            return self._finished()
        values = FollowedAnswer if self.shapes.masked else AnyAnswer
        if kind == "moments":
            return Form(kind, self._moments(live), values)
        if kind == "watch":
            return Form(kind, self._integers(_watched(groups)), values)
        state = self._stacked(self.shapes.state, live)
        if kind == "canary":
            return Form(kind, state, values)
        trained: Shaped = dict.fromkeys(("num_bags", "num_steps"), ((live,), torch.int64))
        if not self.shapes.private:
            trained["train_loss"] = ((live,), torch.float64)
        whole = state | self._controls(live) | _watched(groups) | trained
        return Form(kind, self._integers(whole), values)

    def _integers(self, tensors: Shaped) -> Shaped:
        """What is masked is summed as integers; those of models have as many bits as the strategy states."""
        if not self.shapes.masked:
            return tensors
        kind = torch.int32 if self.shapes.strategy.fixed.bits == 32 else torch.int64
        models = self.shapes.exchanged
        return {name: (shape, kind if name in models else torch.int64) for name, (shape, _) in tensors.items()}

    def _finished(self) -> Form[FinishAnswer]:
        masked, width = self.shapes.masked, self.shapes.scales.get("covariates", 0)
        if self.shapes.private:
            return Form("finish", {}, FollowedWithheld if masked else WithheldAnswer)
        if self.shapes.pooled:
            sums: Shaped = {"metrics": ((1 + len(FINISHED), 8), torch.int64)}
            sums |= {"covariates.sums": ((width, len(PARTS), 8), torch.int64)} if width else {}
            return Form("finish", sums, FollowedWithheld)
        parts: Shaped = {f"covariates.{part}": ((width,), torch.float64) for part in PARTS} if width else {}
        return Form("finish", parts, FollowedFinish if masked else FinishAnswer)

    def _stacked(self, shapes: Mapping[str, tuple[int, ...]], live: int) -> Shaped:
        return {name: ((live, *shape), torch.float32) for name, shape in shapes.items()}

    def _controls(self, live: int) -> Shaped:
        if not self.shapes.controls:
            return {}
        return self._stacked({f"{CONTROL}{name}": shape for name, shape in self.shapes.state.items()}, live)

    def _moments(self, live: int) -> Shaped:
        moments: Shaped = {"num_bags": ((live,), torch.int64)}
        for name, width in self.shapes.measured.items():
            if self.shapes.masked:
                moments[f"{name}.sums"] = ((live, width, len(PARTS), 8), torch.int64)
                continue
            counted = width if name == "covariates" else 1
            moments[f"{name}.count"] = ((live, counted), torch.float64)
            moments |= {f"{name}.{part}": ((live, width), torch.float64) for part in PARTS[1:]}
        if self.shapes.balanced:
            moments["classes"] = ((live, self.shapes.endpoint.classes), torch.int64)
        return moments


def _watched(groups: int) -> Shaped:
    """Error of the models as they were sent, over the patients of their inner folds, and what to divide it by.

    Summed over the inner folds of an outer fold, where every patient stands once: never the count of a small fold.
    """
    return dict.fromkeys(("watched_error", "watched_count"), ((groups,), torch.float64)) if groups else {}


JOIN_QUESTION = Form("join", {"revoked": ((-1,), torch.uint8)}, JoinQuestion)
CLOSE_QUESTION = Form("close", {}, CloseQuestion)
JOIN_ANSWER = Form("join", {}, JoinAnswer)
CLOSE_ANSWER = Form("close", {}, AnyAnswer)
