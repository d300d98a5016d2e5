"""How much of a GPU's memory a call may take, and what happens where that was too much: half as much, and a line says so."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mil.errors import MilError
from mil.features.device import short_of_memory
from mil.progress import Reporter
from mil.training.pairs import Call, Cost

SHARE = 0.8
"""Of the memory that is free beside tiles and models, what a call may take."""
COMPILING = (RuntimeError, OSError, ImportError)
"""What dynamo, inductor, triton and the C compiler raise."""


@dataclass
class Fitting:
    """Runs calls within a budget of bytes."""

    cost: Cost
    largest: int
    """Bytes from which a larger call gains nothing."""
    device: torch.device
    reporter: Reporter
    give_up: Callable[[str], None] | None = None
    """While the step is compiled and has not run yet: goes on without compiling, for the reason given."""
    budget: int | None = None
    """Bytes; none: a share of what is free when first asked for."""

    def bytes(self, reserved: int = 0) -> int:
        """The budget. `reserved`: bytes that a step needs besides its calls; where they are not there, `OutOfMemoryError`."""
        if self.budget is None:
            self.budget = self.largest
            if self.device.type == "cuda":
                torch.empty(reserved, dtype=torch.uint8, device=self.device)
                free = torch.cuda.mem_get_info(self.device)[0]
                free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
                self.budget = min(self.largest, int(SHARE * max(free - reserved, 0)))
                self.reporter.note(f"GPU memory: {free / 2**30:.1f} GiB free, {self.budget / 2**30:.1f} GiB for a step")
        return self.budget

    def run(self, call: Call, work: Callable[[Call], None]) -> None:
        """Do the `work` of a call; where the GPU's memory is too small for it, in halves, and later calls are smaller, too."""
        small = call.stop - call.first <= self.cost.most(call.tiles, self.bytes())
        if small and self._done(call, work):
            return
        for half in call.halves():
            self.run(half, work)

    def relieve(self, error: RuntimeError, count: int, what: str) -> None:
        """Where the GPU's memory was too small for `count` models or bags: say that half of them are taken. Any other error is raised."""
        if not short_of_memory(error):
            raise error
        if count == 1:
            raise MilError(
                f"the GPU's memory is too small for one of the {what}; end what else runs on the GPU, set training.max_tiles, or take "
                "a smaller model"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.reporter.say(f"the GPU's memory is too small for {count} {what} at once; going on with {count // 2}")

    def _done(self, call: Call, work: Callable[[Call], None]) -> bool:
        """Whether there was memory enough."""
        started, pairs = time.perf_counter(), call.stop - call.first
        try:
            work(call)
        except COMPILING as error:
            if self.give_up is None or (isinstance(error, RuntimeError) and short_of_memory(error)):
                if not isinstance(error, RuntimeError):
                    raise
                self.relieve(error, pairs, "bags")
                self.budget = (pairs // 2) * (call.tiles * self.cost.tile + self.cost.pair)
                return False
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        else:
            if self.give_up is not None:
                self.give_up = None
                self.reporter.note(f"compiling the step took {time.perf_counter() - started:.0f} s")
            return True
        self.give_up(reason)  # compiling failed
        self.give_up = None
        return self._done(call, work)
