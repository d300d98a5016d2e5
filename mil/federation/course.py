"""Where a run stands and how the sites' answers move it on: scale, select the number of rounds, refit, finish.

The same nested cross-validation as `mil train` (`mil.training.protocol`), asked of the sites question by question. All of
the state is in `Course.progress` and `Course.models`; between two rounds it is one file (`save`, `load`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError
from mil.federation.config import FederationSpec
from mil.federation.forms import SCALE, slots
from mil.federation.payload import Message, digest
from mil.federation.strategies import build_strategy, shares
from mil.files import replacing
from mil.models import build
from mil.rng import seed_of
from mil.training.scaling import Moments

Answers = Mapping[str, Message]


@dataclass
class Progress:
    """Everything of a run but its tensors."""

    stage: str = "new"
    """What is asked next: `new` (nothing is known of the sites yet), `moments`, `train`, `watch`, `finish`, `done`.

    In a rehearsal `canary` stands for all of them.
    """
    phase: str = "inner"
    round: int = 1
    rounds: list[int] = field(default_factory=list)
    """Rounds of every slot of the phase."""
    width: int = 0
    about: dict[str, str | float | int | None] = field(default_factory=dict)
    """What the sites' features say of their encoder."""
    data: dict[str, str] = field(default_factory=dict)
    """Digest of every site's data, as it joined."""
    watched: list[list[float]] = field(default_factory=list)
    """Mean loss on the inner folds after each round, for every outer fold."""
    num_bags: list[int] = field(default_factory=list)
    """Patients of every slot in its last round."""

    @property
    def place(self) -> dict[str, str | int]:
        """Phase and round, for the ledger."""
        return {"stage": self.stage, "phase": self.phase, "round": self.round}


class Course:
    """State of a run, and its transitions."""

    def __init__(self, protocol: FederationSpec, canary: bool = False) -> None:
        self.protocol, self.canary = protocol, canary
        self.strategy = build_strategy(protocol.experiment.strategy)
        self.progress = Progress()
        self.models: dict[str, Tensor] = {}

    @property
    def live(self) -> list[int]:
        """Slots of the phase that are not finished."""
        if self.progress.stage == "train":
            return [number for number, rounds in enumerate(self.progress.rounds) if rounds >= self.progress.round]
        if self.progress.stage == "canary":
            return [0]
        return list(range(len(self.progress.rounds)))

    def join(self, width: int, about: Mapping[str, str | float | int | None]) -> None:
        """The sites' features are known: the first models are drawn. Later calls change nothing."""
        if self.progress.stage == "new":
            self.progress.width, self.progress.about = width, dict(about)
            self._begin("inner", [self.protocol.experiment.training.rounds] * len(slots(self.protocol, "inner")))

    def take(self, found: Answers) -> None:
        """Move on by the training sites' answers to the question of this stage."""
        moves = {"moments": self._scale, "train": self._aggregate, "watch": self._select}
        moves.get(self.progress.stage, self._end)(found)

    def digest(self) -> str:
        """SHA-256 of the global models as they stand."""
        return digest({name: value for name, value in self.models.items() if name not in SCALE})

    def _begin(self, phase: str, rounds: list[int]) -> None:
        """First models of a phase; the same for all inner folds of an outer one, as `mil train` has it."""
        experiment = self.protocol.experiment
        head = build(experiment.model, self.progress.width, build_endpoint(self.protocol.endpoint).outputs)
        first = [
            head.initial(np.random.default_rng(seed_of(experiment.training.seed, "initial", slot.repeat, slot.fold)))
            for slot in slots(self.protocol, phase)
        ]
        self.models = {name: torch.from_numpy(np.stack([one[name] for one in first])) for name in sorted(first[0])}
        wide = (len(first), self.progress.width)
        self.models |= dict(zip(SCALE, (torch.zeros(wide), torch.ones(wide)), strict=True))
        self.progress.phase, self.progress.round, self.progress.rounds = phase, 1, rounds
        self.progress.num_bags = [0] * len(first)
        self.progress.stage = "train" if experiment.training.scaling == "none" else "moments"
        if self.canary:
            self.progress.stage = "canary"

    def _scale(self, found: Answers) -> None:
        """Sites' moments -> mean and deviation of every model's training tiles, merged in the order of their names."""
        parts = [
            Moments(*(message.tensors[name].numpy() for name in ("count", "mean", "squares")))
            for _, message in sorted(found.items())
        ]
        scales = []
        for number in self.live:
            own = [Moments(part.count[[number]], part.mean[[number]], part.squares[[number]]) for part in parts]
            scales.append(Moments.stacked(own).scale())
        for name, rows in zip(SCALE, zip(*scales, strict=True), strict=True):
            self.models[name] = torch.from_numpy(np.stack(rows))
        self.progress.stage = "train"

    def _aggregate(self, found: Answers) -> None:
        live = self.live
        messages = [message for _, message in sorted(found.items())]
        if self.progress.phase == "inner" and self.progress.round > 1:
            self._watch(found)
        state = {name: value[live] for name, value in self.models.items() if name not in SCALE}
        updates = {name: torch.stack([message.tensors[name] for message in messages]) for name in state}
        counts = torch.stack([message.tensors["num_bags"] for message in messages])
        for name, value in self.strategy.server_step(state, updates, shares(counts)).items():
            if not torch.isfinite(value).all():
                raise MilError(
                    f"round {self.progress.round}: the mean of '{name}' is not finite; lower the learning rate"
                )
            self.models[name][live] = value
        for number, patients in zip(live, counts.sum(0).tolist(), strict=True):
            self.progress.num_bags[number] = patients
        self.progress.round += 1
        if self.progress.round > max(self.progress.rounds):
            self.progress.stage = "watch" if self.progress.phase == "inner" else "finish"

    def _watch(self, found: Answers) -> None:
        """Losses that came with this round's answers are of the models after the round before."""
        messages = [message for _, message in sorted(found.items())]
        losses = torch.stack([message.tensors["watched_loss"] for message in messages]).sum(0)
        patients = torch.stack([message.tensors["watched_bags"] for message in messages]).sum(0)
        self.progress.watched.append((losses / patients).tolist())

    def _select(self, found: Answers) -> None:
        """The number of rounds with the smallest mean loss on the inner folds, the first of equals; then the refit."""
        self._watch(found)
        losses = np.array(self.progress.watched)  # (rounds, outer folds)
        self._begin("refit", [1 + int(best) for best in losses.argmin(0)])

    def _end(self, found: Answers) -> None:
        """After the canary nothing may have changed; after the finish there is nothing left."""
        if self.progress.stage == "canary":
            own = {name: value[self.live] for name, value in self.models.items() if name not in SCALE}
            for site, message in sorted(found.items()):
                if digest(message.tensors) != digest(own):
                    raise MilError(
                        f"site {site}: the canary's weights came back changed; look at the connection's middle boxes"
                    )
        self.progress.stage = "done"


def save(course: Course, path: Path) -> None:
    """Write the state as one file, atomically."""
    about = {"spec_sha256": course.protocol.sha256, "progress": json.dumps(asdict(course.progress), sort_keys=True)}
    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in course.models.items()}, partial, metadata=about)


def progress_of(path: Path) -> Progress:
    """Where the run of a checkpoint stands, its tensors unread; a new run's where there is no file."""
    if not path.exists():
        return Progress()
    try:
        with safe_open(path, "pt") as file:
            return Progress(**json.loads(file.metadata()["progress"]))
    except SafetensorError as error:
        raise CorruptFile(f"{path}: not a checkpoint of ours ({error}); restore it from the backup") from error


def load(protocol: FederationSpec, path: Path, canary: bool = False) -> Course:
    """The course as `save` left it, or a new one; a state of another protocol is refused."""
    course = Course(protocol, canary)
    if not path.exists():
        return course
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            course.models = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFile(f"{path}: not a checkpoint of ours ({error}); restore it from the backup") from error
    if about["spec_sha256"] != protocol.sha256:
        raise MilError(
            f"{path}: belongs to another protocol ({about['spec_sha256'][:12]}, not {protocol.sha256[:12]}); "
            "give the run another name, or put the old federation.yaml back"
        )
    course.progress = progress_of(path)
    return course
