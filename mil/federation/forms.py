"""What each question and answer must look like, made on either side from its own copy of the protocol.

A slot is one model: a repeat, an outer fold and, while rounds are selected, an inner fold. All slots of a phase travel in
one message, as the leading axis of every tensor; a slot that is finished is left out of later rounds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mil.config import ExperimentSpec
from mil.endpoints import Binary
from mil.federation.config import FederationSpec
from mil.federation.payload import NAME, SHA256, Form, Kind
from mil.models import build

Phase = Literal["inner", "refit"]
Shapes = dict[str, tuple[int, ...]]

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
SCALE = ("scaling.mean", "scaling.deviation")
NUMBER = (float, type(None))
COUNT = (int, type(None))


@dataclass(frozen=True, order=True)
class Slot:
    """One model of a phase."""

    repeat: int
    fold: int
    inner: int | None = None

    @property
    def name(self) -> str:
        """E.g. `repeat0/fold1/inner2`."""
        inner = "" if self.inner is None else f"/inner{self.inner}"
        return f"repeat{self.repeat}/fold{self.fold}{inner}"


def slots(protocol: FederationSpec, phase: str) -> list[Slot]:
    """All models of a phase, in their order along the leading axis."""
    spec = protocol.endpoint
    outer = [(repeat, fold) for repeat in range(spec.repeats) for fold in range(spec.folds)]
    if phase == "refit":
        return [Slot(repeat, fold) for repeat, fold in outer]
    return [Slot(repeat, fold, inner) for repeat, fold in outer for inner in range(spec.inner_folds)]


def groups_of(protocol: FederationSpec, phase: str) -> list[list[int]]:
    """Slot numbers of each outer fold while rounds are selected; none in the refit."""
    if phase == "refit":
        return []
    count = protocol.endpoint.inner_folds
    return [list(range(start, start + count)) for start in range(0, len(slots(protocol, phase)), count)]


def shapes_of(experiment: ExperimentSpec, width: int) -> Shapes:
    """Names and shapes of one model's tensors."""
    head = build(experiment.model, width, Binary.outputs)
    return {name: value.shape for name, value in sorted(head.initial(np.random.default_rng(0)).items())}


class Forms:
    """Forms of every kind of message, for models of `shapes` on features of `width`."""

    def __init__(self, shapes: Shapes, width: int) -> None:
        self.shapes, self.width = shapes, width

    def question(self, kind: str, live: int) -> Form:
        """A question with `live` models in it."""
        if kind == "join":
            return JOIN_QUESTION
        if kind == "moments":
            return Form(kind, {}, ASKED)
        if kind == "finish":
            return Form(kind, self._models(live), ASKED | {"rounds": list[int]})
        if kind == "canary":
            return Form(kind, self._models(live), ASKED)
        return Form(kind, self._models(live), ASKED | {"round": int})

    def answer(self, kind: str, live: int, groups: int) -> Form:
        """An answer about `live` models that are selected in `groups` (0 in the refit, where nothing is)."""
        return {
            "join": JOIN_ANSWER,
            "moments": Form(kind, self._moments(live), ANSWERED),
            "train": Form(kind, self._states(live) | _watched(groups) | _trained(live), ANSWERED),
            "watch": Form(kind, _watched(groups), ANSWERED),
            "canary": Form(kind, self._states(live), ANSWERED | {"seconds": float}),
            "finish": Form(kind, {}, ANSWERED | dict.fromkeys(("patients", "positives"), COUNT) | AUROC),
        }[kind]

    def _states(self, live: int) -> dict[str, Any]:
        return {name: ((live, *shape), torch.float32) for name, shape in self.shapes.items()}

    def _models(self, live: int) -> dict[str, Any]:
        return self._states(live) | dict.fromkeys(SCALE, ((live, self.width), torch.float32))

    def _moments(self, live: int) -> dict[str, Any]:
        wide = ((live, self.width), torch.float64)
        return {"count": ((live,), torch.float64), "mean": wide, "squares": wide, "num_bags": ((live,), torch.int64)}


def _watched(groups: int) -> dict[str, Any]:
    """Loss of the models as they were sent, over the patients of their inner folds, and the number of these patients.

    Summed over the inner folds of an outer fold, where every patient stands once: never the count of a small fold.
    """
    if not groups:
        return {}
    return {"watched_loss": ((groups,), torch.float64), "watched_bags": ((groups,), torch.int64)}


def _trained(live: int) -> dict[str, Any]:
    """Patients and steps of the round, and the mean loss on the way."""
    return {
        "num_bags": ((live,), torch.int64),
        "num_steps": ((live,), torch.int64),
        "train_loss": ((live,), torch.float64),
    }


def is_subset(numbers: Sequence[int], count: int) -> bool:
    """Ascending slot numbers without repetition, all below `count`, at least one."""
    return bool(numbers) and list(numbers) == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < count


IDENTITY: dict[str, Kind] = {
    "mil": VERSION,
    "torch": VERSION,
    "code_sha256": SHA256,
    "spec_sha256": SHA256,
}
ASKED: dict[str, Kind] = {"run": NAME, "phase": NAME, "slots": list[int], "spec_sha256": SHA256, "ledger": SHA256}
ANSWERED: dict[str, Kind] = {"site": NAME, "ledger": SHA256, "question_sha256": SHA256}
AUROC: dict[str, Kind] = {"auroc": NUMBER, "auroc_variance": NUMBER}
JOIN_QUESTION = Form("join", {}, IDENTITY | {"run": NAME, "ledger": SHA256, "canary": bool})
JOIN_ANSWER = Form(
    "join",
    {},
    IDENTITY
    | ANSWERED
    | {
        "width": int,
        "encoder": (NAME, type(None)),
        "weights_sha256": (SHA256, type(None)),
        "tile_mpp": NUMBER,
        "size_px": COUNT,
        "data_sha256": SHA256,
        "num_bags": int,
    },
)
