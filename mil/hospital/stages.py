"""Where a run stands and how the sites' answers move it on: scale, select the number of rounds, refit, finish.

The same nested cross-validation as `mil train` (`mil.training.protocol`), asked of the sites question by question. All of
the state is in `Stages.progress` and the named tensors; between two rounds it is one file (`mil.hospital.state_files`).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from mil.errors import MilError
from mil.hospital import sums
from mil.hospital.config import FederationSpec
from mil.hospital.forms import BALANCE, CONTROL, PARTS, Shapes, groups_of, outer_folds, slots, watched_apart
from mil.hospital.masking import summed
from mil.hospital.payload import Message, PayloadError, digest
from mil.hospital.standing import Progress
from mil.statistics.moments import Moments
from mil.strategies.aggregation import Answers
from mil.strategies.strategy import WeightedSum
from mil.training.aggregate import begin_models
from mil.training.clients import participants, visits
from mil.training.plans import first_weights
from mil.training.protocol import candidates, least, no_choice, stalled
from mil.training.setup import class_weights

AnswersBySite = Mapping[str, Message]
"""Answers by site."""


class Stages:
    """State of a run, and its transitions."""

    def __init__(self, protocol: FederationSpec, canary: bool = False) -> None:
        self.protocol, self.canary = protocol, canary
        self.strategy = protocol.strategy
        self.progress = Progress()
        self.state: dict[str, Tensor] = {}
        """Global models (slots, ...)."""
        self.buffers: dict[str, Tensor] = {}
        self.server: dict[str, Tensor] = {}
        """The strategy's own tensors (slots, ...)."""

    @property
    def shapes(self) -> Shapes | None:
        """Of the models; none before the sites have joined."""
        return Shapes(self.protocol, self.progress.width) if self.progress.width else None

    @property
    def live(self) -> list[int]:
        """Slots of the phase that are not finished."""
        progress = self.progress
        everyone = range(len(progress.rounds))
        if progress.stage == "canary":
            return [0]
        if progress.stage not in {"train", "watch"}:
            return list(everyone)
        stopped = {number for group in self._stopped() for number in groups_of(self.protocol, progress.phase)[group]}
        going = progress.round if progress.stage == "train" else 0
        return [number for number in everyone if progress.rounds[number] >= going and number not in stopped]

    @property
    def drawn(self) -> list[str]:
        """Training sites that take part in this round."""
        sites = self.protocol.training_sites
        if self.progress.stage != "train":
            return sites
        seed, number = self.protocol.experiment.training.seed, self.progress.round
        if self.strategy.cyclic:
            order = visits(len(sites), self.strategy.random_order, seed, number)
            return [sites[order[self.progress.visit]]]
        chosen = participants(len(sites), self.strategy.share, seed, number)
        return [site for site, taken in zip(sites, chosen, strict=True) if taken]

    def models(self) -> dict[str, Tensor]:
        """What a site gets to see: models, buffers and, where the strategy has one, the server's control variate."""
        live, tensors = self.live, self.state | self.buffers
        if self.strategy.controls and self.progress.stage == "train":
            tensors |= {name: value for name, value in self.server.items() if name.startswith(CONTROL)}
        if len(live) == len(self.progress.rounds):  # all, which need no copy
            return dict(tensors)
        return {name: value[live] for name, value in tensors.items()}

    def join(self, width: int, about: Mapping[str, str | float | int | None]) -> None:
        """The sites' features are known: the first models are drawn. Later calls change nothing."""
        if self.progress.stage == "new":
            self.progress.width, self.progress.about = width, dict(about)
            # under privacy the number of rounds is not selected: the losses that would select it carry no noise
            phase = "inner" if self.protocol.privacy is None else "refit"
            choices = [0] * len(outer_folds(self.protocol)) if phase == "refit" else []
            self.progress.step = 1
            self._begin(phase, [self.protocol.experiment.training.rounds] * len(slots(self.protocol, phase)), choices)

    def take(self, answers: AnswersBySite) -> None:
        """Move on by the training sites' answers to the question of this stage."""
        moves = {"moments": self._scale, "train": self._aggregate, "watch": self._select}
        moves.get(self.progress.stage, self._end)(answers)
        self.progress.step += 1

    @property
    def sha256(self) -> str:
        """Digest of everything that the next steps follow from; equal at all parties that computed the same."""
        progress = {name: value for name, value in asdict(self.progress).items() if name not in ("patients", "data")}
        whole = f"{self.protocol.sha256}|{json.dumps(progress, sort_keys=True)}|{digest(self.flat())}"
        return hashlib.sha256(whole.encode()).hexdigest()

    @property
    def parts(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the state."""
        return {"state": self.state, "buffer": self.buffers, "server": self.server}

    def flat(self) -> dict[str, Tensor]:
        """The same under the names `part:tensor`."""
        return {f"{part}:{name}": value.contiguous() for part in self.parts for name, value in self.parts[part].items()}

    def digest(self) -> str:
        """SHA-256 of the global models as they stand."""
        return digest(self.state)

    def _begin(self, phase: str, rounds: list[int], choices: list[int]) -> None:
        """First models of a phase; the same for all inner folds of an outer one, as `mil train` has it."""
        shapes, progress = self.shapes, self.progress
        assert shapes is not None
        seed = self.protocol.experiment.training.seed
        everyone = slots(self.protocol, phase, choices)
        self.state = {name: torch.empty(len(everyone), *shape) for name, shape in shapes.state.items()}
        for number, slot in enumerate(everyone):
            first = shapes.head.initial(first_weights(seed, slot.repeat, slot.fold, slot.replica))
            for name, value in self.state.items():
                value[number] = torch.from_numpy(first[name])
        plain = {True: torch.zeros, False: torch.ones}  # nothing is taken off, and divided by 1
        self.buffers = {
            name: plain[name.endswith(".mean")](len(everyone), *shape) for name, shape in shapes.buffers.items()
        }
        self.server = begin_models(self.strategy, self.state)
        progress.phase, progress.round, progress.visit = phase, 1, 0
        progress.choices, progress.rounds = choices, rounds
        progress.num_bags, progress.used = {}, {}
        progress.stage = "canary" if self.canary else "moments"

    def _scale(self, answers: AnswersBySite) -> None:
        """Sites' moments -> scales of what every model learns from, merged in the order of the sites' names."""
        shapes = self.shapes
        assert shapes is not None
        messages = [message for _, message in sorted(answers.items())]
        self.progress.num_bags = {site: message.tensors["num_bags"].tolist() for site, message in answers.items()}
        for name in shapes.measured:
            if shapes.masked:
                totals = summed([message.tensors[name + sums.SUMS] for message in messages])
                most = [None] * len(self.live) if name == "features" else self.totals  # there it counts tiles
                scales = [sums.moments_of(totals[number], most[number]).scale() for number in self.live]
            else:
                parts = [[message.tensors[f"{name}.{part}"].numpy() for part in PARTS] for message in messages]
                moments = [[Moments(*(values[[number]] for values in site)) for site in parts] for number in self.live]
                scales = [Moments.stacked(of_sites).scale() for of_sites in moments]
            for part, rows in zip(("mean", "deviation"), zip(*scales, strict=True), strict=True):
                self.buffers[f"{name}.{part}"] = torch.from_numpy(np.stack(rows))
        if shapes.balanced:
            counts = summed([message.tensors["classes"] for message in messages])
            if (counts < 0).any() or counts.sum(1).tolist() != self.totals:
                raise PayloadError(f"the classes of all sites are not their patients; {sums.ONE_SITE}")
            self.buffers[BALANCE] = class_weights(counts.numpy())
        self.progress.stage = "train"

    def _aggregate(self, messages: AnswersBySite) -> None:
        """The strategy's step for every live slot, as the reference driver takes it."""
        progress, live = self.progress, self.live
        if self.strategy.cyclic:
            self._pass_on(messages)
            return
        shapes = self.shapes
        assert shapes is not None
        if shapes.masked:
            longest, names = self.protocol.payload.max_update, sorted(shapes.exchanged)
            answers = [message.tensors for message in messages.values()]
            for step in (False, True):  # no model moves before all sums were looked at
                for row, number in enumerate(live):
                    change = sums.mean_change(answers, row, names, longest, list(self.state), self.strategy.fixed)
                    if step:
                        self._step(number, change=change)
        else:
            for row, number in enumerate(live):
                self._step(number, answers=self._answers(messages, row, number))
        if progress.phase == "inner" and progress.round > 1 and not watched_apart(self.protocol):
            self._watch(messages)
        progress.used |= dict.fromkeys(messages, progress.round)
        self._advance()

    def _pass_on(self, answers: AnswersBySite) -> None:
        """Cyclic: the model as the visited site left it goes to the next; the round is over after the last."""
        progress, (message,) = self.progress, answers.values()
        for row, number in enumerate(self.live):
            for name, value in self.state.items():
                value[number] = message.tensors[name][row]
        progress.used |= dict.fromkeys(answers, progress.round)
        progress.visit += 1
        if progress.visit == len(self.protocol.training_sites):
            progress.visit = 0
            self._advance()

    @property
    def totals(self) -> list[int]:
        """Training patients of every slot at all sites together."""
        return [sum(counts) for counts in zip(*self.progress.num_bags.values(), strict=True)]

    def _advance(self) -> None:
        """To the next round, or to what comes after the last."""
        progress, apart = self.progress, watched_apart(self.protocol)
        progress.round += 1
        progress.stage = "train"
        over = progress.round > max(progress.rounds)
        if progress.phase == "refit":
            progress.stage = "finish" if over else "train"
        elif over or apart or not self.live:
            progress.stage = "watch"
            if not self.live:  # every selection has stopped by itself
                self._choose()

    def _answers(self, messages: AnswersBySite, model: int, number: int) -> Answers:
        """One slot's updates along a site axis, of the sites that answered and have patients."""
        there = [message for _, message in sorted(messages.items()) if int(message.tensors["num_bags"][model])]

        def along_sites(part: str) -> dict[str, Tensor]:
            return {name: torch.stack([answer.tensors[part + name][model] for answer in there]) for name in self.state}

        counts = torch.stack([message.tensors["num_bags"][model] for message in there])
        answers = Answers(along_sites(""), self.strategy.amounts(counts))
        if self.strategy.controls:
            everyone = torch.tensor([counts[number] for counts in self.progress.num_bags.values()])
            total = self.strategy.amounts(everyone).sum()
            answers = Answers(answers.states, answers.amounts, total, along_sites(CONTROL))
        return answers

    def share(self, site: str, number: int, sites: Sequence[str]) -> float:
        """What `site` counts in a slot's sum, of what `sites` count together."""

        def amount(names: Sequence[str]) -> Tensor:
            return self.strategy.amounts(torch.tensor([self.progress.num_bags[name][number] for name in names]))

        return float(amount([site])[0] / amount(sites).sum())

    def _step(self, number: int, answers: Answers | None = None, change: Mapping[str, Tensor] | None = None) -> None:
        """One slot's next global model, from the sites' answers or from the mean change read off the masked sums."""
        state = {name: value[number] for name, value in self.state.items()}
        server = {name: value[number] for name, value in self.server.items()}
        if answers is not None:
            state, server = self.strategy.server_step(state, server, answers)
        else:
            assert isinstance(self.strategy, WeightedSum)
            assert change is not None
            state, server = self.strategy.step(state, server, change)
        for name, value in state.items():
            if not torch.isfinite(value).all():
                raise MilError(
                    f"round {self.progress.round}: '{name}' of the next model is not finite; lower the learning rate"
                )
            self.state[name][number] = value
        for name, value in server.items():
            self.server[name][number] = value

    def _watch(self, answers: AnswersBySite) -> None:
        """Errors that come with a round's answers are of the models after the round before."""
        masked, parts = self.protocol.trust == "sites", []
        for name in ("watched_error", "watched_count"):
            values = [message.tensors[name] for _, message in sorted(answers.items())]
            parts.append((sums.read(values) if masked else torch.stack(values).sum(0)).tolist())
        self._check_watched(answers, *parts)
        stopped = self._stopped()
        self.progress.curves.append(
            [
                None if group in stopped or not count else error / count
                for group, (error, count) in enumerate(zip(*parts, strict=True))
            ]
        )

    def watched(self, sites: Sequence[str]) -> list[float]:
        """Patients of `sites` whose error is watched, by group: each stands once, so their number follows from the training counts."""
        live, inner = set(self.live), self.protocol.endpoint.inner_folds
        groups = groups_of(self.protocol, self.progress.phase)
        known = [self.progress.num_bags[site] for site in sites]
        return [
            sum(counts[slot] for counts in known for slot in group) / (inner - 1) if live & set(group) else 0.0
            for group in groups
        ]

    def _check_watched(self, answers: AnswersBySite, errors: Sequence[float], counts: Sequence[float]) -> None:
        """Raise where the sites' sums are not those of their watched patients; of survival, only events are counted."""
        shapes, events = self.shapes, self.protocol.endpoint.kind == "survival"
        assert shapes is not None
        for error, count, expected in zip(errors, counts, self.watched(list(answers)), strict=True):
            possible = (0.0 if events else expected) - 1e-6 <= count <= expected + 1e-6
            most = shapes.endpoint.largest_error * count if count else 0.0
            if not possible or not -1e-6 <= error <= most + 1e-6:
                raise PayloadError(
                    f"the watched errors of all sites are {error:.4g} over {count:.4g} patients, but {expected:g} are watched; "
                    f"{sums.ONE_SITE}"
                )

    def _stopped(self) -> set[int]:
        """Outer folds and candidates whose error on the inner folds has not become smaller for `patience` rounds."""
        patience = self.protocol.experiment.training.patience
        if patience is None or self.progress.phase == "refit":
            return set()
        curves = [_known(curve) for curve in zip(*self.progress.curves, strict=True)]
        return {group for group, curve in enumerate(curves) if curve and stalled(curve, patience)}

    def _select(self, answers: AnswersBySite) -> None:
        self._watch(answers)
        if self.live and self.progress.round <= max(self.progress.rounds):
            self.progress.stage = "train"
        else:
            self._choose()

    def _choose(self) -> None:
        """Of every outer fold the candidate and number of rounds with the smallest error, the first of equals; the refit."""
        curves = [
            [math.inf if error is None else error for error in curve]
            for curve in zip(*self.progress.curves, strict=True)
        ]
        training, tried = self.protocol.experiment.training, len(candidates(self.protocol.experiment))
        rounds, choices = [], []
        for start in range(0, len(curves), tried):
            choice, number, error = least(curves[start : start + tried])
            if not math.isfinite(error):
                raise MilError(f"outer fold {start // tried}: {no_choice(training.lr)}")
            choices.append(choice)
            rounds += [number] * training.replicas
        self._begin("refit", rounds, choices)

    def _end(self, answers: AnswersBySite) -> None:
        """After the canary nothing may have changed; after the finish the ledgers are closed."""
        if self.progress.stage == "canary":
            expected = digest({name: value[self.live] for name, value in self.state.items()})
            for site, message in sorted(answers.items()):
                if digest(message.tensors) != expected:
                    raise MilError(
                        f"site {site}: the canary's weights came back changed; look at what is between the sites"
                    )
        self.progress.stage = "close" if self.progress.stage == "finish" else "done"


def _known(curve: tuple[float | None, ...]) -> list[float]:
    """The rounds of a curve before its selection stopped."""
    return [value for value in curve if value is not None]
