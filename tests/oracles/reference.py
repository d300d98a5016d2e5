"""The plain driver, the definition of every strategy: one model, one site after the other, no shortcuts.

Slow and clear. The vectorised driver agrees with it to 1e-5; a real federation has the same SHA-256 after every round,
since its sites call the same `client_update` and its server the same strategy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mil.specs.experiments import TrainingSpec
from mil.strategies.aggregation import Answers, State
from mil.strategies.strategy import Strategy, server_part
from mil.training.client import Job, SiteData, Update, client_update, finetune
from mil.training.clients import participants, visits
from mil.training.ledger import digest


@dataclass
class Federation:
    """Where a plain run stands after a round."""

    state: dict[str, torch.Tensor]
    """The global model."""
    server: dict[str, torch.Tensor] = field(default_factory=dict)
    controls: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """SCAFFOLD: what each site keeps."""
    local: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """FedPer, finetune: what each site would use, where that is not the global model."""
    number: int = 0
    """Rounds done."""

    @property
    def sha256(self) -> str:
        """Digest of the global model."""
        return state_digest(self.state)


@dataclass(frozen=True)
class Course:
    """What stays the same from round to round."""

    strategy: Strategy
    """Of the rounds."""
    training: TrainingSpec
    sites: Mapping[str, SiteData]
    task: str
    lr: float
    weight_decay: float

    def begin(self, state: State) -> Federation:
        """Before the first round."""
        found = Federation(dict(sorted(state.items())))
        found.server = self.strategy.begin(found.state)
        if self.strategy.controls:
            found.controls = {
                site: {name: torch.zeros_like(value) for name, value in found.state.items()} for site in self.sites
            }
        return found

    def round(self, now: Federation) -> Federation:
        """The next round: broadcast, train, aggregate."""
        number = now.number + 1
        names = sorted(self.sites)
        drawn = participants(len(names), self.strategy.share, self.training.seed, number)
        there = [name for name, chosen in zip(names, drawn, strict=True) if chosen and len(self.sites[name].bags)]
        if self.strategy.cyclic:
            state = now.state
            for place in visits(len(names), self.strategy.random_order, self.training.seed, number):
                if names[place] in there:
                    state = self._ask(now, names[place], number, state)[0].state
            return Federation(state, now.server, now.controls, now.local, number)
        updates = {name: self._ask(now, name, number, self.personal(now, name)) for name in there}
        if not updates:
            return Federation(now.state, now.server, now.controls, now.local, number)
        answers = self._answers([update for update, _ in updates.values()])
        state, server = self.strategy.server_step(now.state, now.server, answers)
        kept = {name: control for name, (_, control) in updates.items() if control is not None}
        local = {name: update.state for name, (update, _) in updates.items()} if self.strategy.local_parts else {}
        return Federation(state, server, now.controls | kept, now.local | local, number)

    def finetuned(self, now: Federation, epochs: int) -> Federation:
        """After the last round of `finetune`: every site trains on alone, and keeps what comes of it."""
        own = {
            name: finetune(now.state, self._job(name, now.number), site, epochs) for name, site in self.sites.items()
        }
        return Federation(now.state, now.server, now.controls, own, now.number)

    def personal(self, now: Federation, site: str) -> dict[str, torch.Tensor]:
        """The site's model: the global one, but for the parts that never left the site."""
        own = now.local.get(site, now.state)
        parts = self.strategy.local_parts
        return {name: own[name] if name.split(".")[0] in parts else value for name, value in now.state.items()}

    def _ask(
        self, now: Federation, site: str, number: int, state: State
    ) -> tuple[Update, dict[str, torch.Tensor] | None]:
        controls = (server_part(now.server, "control"), now.controls[site]) if self.strategy.controls else (None, None)
        return client_update(state, self._job(site, number), self.sites[site], *controls)

    def _job(self, site: str, number: int) -> Job:
        sampling = self.training.imbalance == "sampling"
        return Job(self.task, site, number, self.lr, self.weight_decay, self.strategy.pull, sampling)

    def _answers(self, updates: Sequence[Update]) -> Answers:
        """The updates of the sites that answered along a site axis, in the order of the sites' names."""
        states = _stacked([update.state for update in updates])
        amounts = self.strategy.amounts(torch.tensor([update.patients for update in updates]))
        everyone = torch.tensor([len(site.bags) for site in self.sites.values()])
        controls = _stacked([update.control_change or {} for update in updates])
        return Answers(states, amounts, self.strategy.amounts(everyone).sum(), controls)


def state_digest(state: State) -> str:
    """SHA-256 of named tensors, names sorted."""
    return digest(state[name].contiguous().numpy().tobytes() for name in sorted(state))


def _stacked(models: Sequence[State]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in models]) for name in models[0]}
