"""A head that a user wrote: an ordinary torch module that takes one bag, called for every model and bag with their weights."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from mil.errors import MilError, nearest
from mil.models.head import Head, HeadPart, Inputs, Output, Weights
from mil.specs.models import UserHeadSpec
from mil.user_code import in_one_line, run_source

TRIAL = 64
"""Tiles of the bag that a new head is tried on."""
TOLERANCE = 1e-3
"""How far from 1 the attention of a bag may sum."""
OURS = ("covariates", "features", "target")
"""First parts of names of tensors that a run saves besides the head's."""


class UserModule(HeadPart):
    """A class in a user's file: it makes modules, and they have the first values of the weights."""

    def __init__(self, spec: UserHeadSpec, width: int, outputs: int) -> None:
        self.spec, self.width, self.outputs = spec, width, outputs
        self.kind = _class_of(spec)

    def made(self, seed: int) -> torch.nn.Module:
        """A new module, its random numbers drawn from `seed`."""
        with _seeded(seed):
            try:
                return self.kind(self.width, self.outputs, **self.spec.settings)
            except Exception as error:
                settings = "".join(f", {key}={value!r}" for key, value in self.spec.settings.items())
                call = f"{self.spec.class_name}({self.width}, {self.outputs}{settings})"
                raise MilError(f"model {self.spec.name}: {call} fails: {in_one_line(error)}") from error

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Parameters of a new module by name, float32; a single number has shape (1,)."""
        module = self.made(int(generator.integers(2**63)))
        named = {name: value.detach().float().cpu().numpy() for name, value in module.named_parameters()}
        return {name: np.atleast_1d(value).copy() for name, value in named.items()}


class UserHead(Head):
    """A user's module as a function of its weights, bag after bag.

    Random numbers of its forward pass (dropout) are drawn from the seed of the bag's first tile, so that a model does not
    depend on what is trained beside it. Neither these nor the exchange of a module's weights are safe on several threads:
    a lock lets in a thread at a time.
    """

    def __init__(self, spec: UserHeadSpec, width: int, outputs: int) -> None:
        self.name, self.width, self.outputs = spec.name, width, outputs
        made = UserModule(spec, width, outputs)
        self.parts = (made,)
        self.module, self.lock = made.made(0), threading.Lock()
        self.shapes = {name: value.shape for name, value in self.module.named_parameters()}
        self._check_tensors()
        self.dropout = float(self._tried())  # not 0: the engine gives the keys that seeds are made of

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits, and out of training the attention, 0 outside a bag's own tiles; logits 0 of a bag without tiles."""
        *models, bags, length = inputs.mask.shape
        tiles, mask = inputs.tiles.reshape(-1, length, self.width), inputs.mask.reshape(-1, bags, length)
        rows = {name: weights[name].reshape(-1, *shape).unbind() for name, shape in self.shapes.items()}
        keys = None if inputs.keys is None else inputs.keys.reshape(-1, length)
        training = inputs.training and (keys is not None or not self.dropout)
        sizes, starts = mask.sum(-1).tolist(), mask.int().argmax(-1).tolist()
        with self.lock:
            self.module.to(tiles.device)  # its counts; the parameters are exchanged
        logits: dict[tuple[int, int], Tensor] = {}
        attention: dict[tuple[int, int], Tensor] = {}
        for k, bag in zip(*(indices.tolist() for indices in torch.nonzero(mask.any(-1), as_tuple=True)), strict=True):
            start, size = starts[k][bag], sizes[k][bag]
            key = int(keys[k, start]) if keys is not None and self.dropout else None
            with self.lock:
                parameters = {name: values[k] for name, values in rows.items()}
                scored, weighed = self._bag(parameters, tiles[k, start : start + size], training, key)
            logits[k, bag] = scored
            if weighed is not None and not inputs.training:
                attention[k, bag] = weighed
        none = next(iter(logits.values()), tiles).new_zeros(self.outputs)
        stacked = torch.stack([logits.get((k, bag), none) for k in range(len(mask)) for bag in range(bags)])
        whole = None
        if attention:
            whole = mask / mask.sum(-1, keepdim=True).clamp(min=1)
            for (k, bag), weighed in attention.items():
                whole[k, bag, starts[k][bag] : starts[k][bag] + len(weighed)] = weighed
            whole = whole.reshape(inputs.mask.shape)
        return Output(stacked.reshape(*models, bags, self.outputs), whole)

    def _bag(
        self, weights: Mapping[str, Tensor], tiles: Tensor, training: bool, key: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """One model on a bag (tiles, width): logits (outputs,) and attention (tiles,), checked."""
        self.module.train(training)
        with nullcontext() if key is None else _seeded(key):
            try:
                answer: Any = functional_call(self.module, dict(weights), (tiles,))
            except Exception as error:
                bag = f"a bag ({len(tiles)}, {self.width})"
                raise MilError(f"model {self.name}: forward fails on {bag}: {in_one_line(error)}") from error
        logits: Any
        attention: Any
        logits, attention = answer if isinstance(answer, tuple | list) and len(answer) == 2 else (answer, None)
        self._check_shape("logits", logits, (self.outputs,), tiles)
        if attention is not None:
            self._check_shape("attention", attention, (len(tiles),), tiles)
            if not training:  # dropout may change the sum
                total, least = float(attention.detach().sum()), float(attention.detach().min())
                if not (abs(total - 1) <= TOLERANCE and least >= 0):
                    raise MilError(
                        f"model {self.name}: attention of a bag must not be negative and sum to 1 within {TOLERANCE}; it sums to "
                        f"{total:.6g} and its least value is {least:.3g}; use a softmax over the tiles"
                    )
        return logits, attention

    def _check_shape(self, what: str, value: Any, expected: tuple[int, ...], tiles: Tensor) -> None:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != expected:
            raise MilError(
                f"model {self.name}: {what} of a bag ({len(tiles)}, {self.width}) must have the shape {expected}, found {shape}"
            )

    def _check_tensors(self) -> None:
        """Raise for tensors that would not be trained, averaged between sites and saved."""
        floating = [name for name, value in self.module.named_buffers() if not _is_count(value)]
        frozen = [name for name, value in self.module.named_parameters() if not value.requires_grad]
        clashing = [name for name in self.shapes if name.split(".")[0] in OURS]
        for names, why in (
            (floating, "is a buffer of floating-point numbers, which is neither trained nor saved; make it a parameter or leave it out"),
            (frozen, "is a parameter without gradient, which would be trained; make it a plain number or leave it out"),
            (clashing, f"has a name that mil uses ({', '.join(OURS)}); give it another name"),
        ):  # fmt: skip
            if names:
                raise MilError(f"model {self.name}: '{names[0]}' {why}")
        if not self.shapes:
            raise MilError(f"model {self.name}: the module has no parameters; there is nothing to train")

    def _tried(self) -> bool:
        """Whether training draws random numbers; raise where the module does not work on a bag."""
        parameters = dict(self.module.named_parameters())
        bag = torch.randn(TRIAL, self.width, generator=torch.Generator().manual_seed(0))
        drew, logits = {}, torch.zeros(())
        for training in (False, True):
            with _seeded(0):
                before = torch.get_rng_state()
                logits, _ = self._bag(parameters, bag, training, None)
                drew[training] = not torch.equal(before, torch.get_rng_state())
        if drew[False]:
            raise MilError(
                f"model {self.name}: forward draws random numbers in prediction, too; draw them only where self.training is true"
            )
        reached = [None] * len(parameters)
        if logits.requires_grad:
            reached = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, reached, strict=True):
            if gradient is None:
                raise MilError(f"model {self.name}: parameter '{name}' has no effect on the logits; leave it out")
        return drew[True]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, torch's random numbers come from `seed`; afterwards its generators are as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _class_of(spec: UserHeadSpec) -> type[torch.nn.Module]:
    """Run the file and take the class; raise where either is not there or the file is another one than the spec says."""
    path = Path(spec.file)
    if not path.is_file():
        raise MilError(f"model {spec.name}: file {path} does not exist; it is needed for training and prediction")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    if digest != spec.file_sha256:
        raise MilError(
            f"model {spec.name}: the head's file changed since training ({path} has SHA-256 {digest[:12]}..., recorded is "
            f"{spec.file_sha256[:12]}...); bring the former file back, or run `mil train` again"
        )
    module = run_source(path, source, f"model {spec.name}")
    head = getattr(module, spec.class_name, None)
    if head is None:
        known = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise MilError(f"model {spec.name}: {path} has no class '{spec.class_name}'; {nearest(spec.class_name, known)}")
    if not (isinstance(head, type) and issubclass(head, torch.nn.Module)):
        raise MilError(f"model {spec.name}: '{spec.class_name}' in {path} is not a subclass of torch.nn.Module")
    return head


def _is_count(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())
