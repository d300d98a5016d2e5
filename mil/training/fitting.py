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

    def bytes(self) -> int:
        """The budget."""
        if self.budget is None:
            self.budget = self.largest
            if self.device.type == "cuda":
                free = torch.cuda.mem_get_info(self.device)[0]
                free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
                self.budget = min(self.largest, int(SHARE * free))
                self.reporter.note(f"GPU memory: {free / 2**30:.1f} GiB free, {self.budget / 2**30:.1f} GiB for a step")
        return self.budget

    def run(self, call: Call, work: Callable[[Call], None]) -> None:
        """Do the `work` of a call; where the GPU's memory is too small for it, in halves, and later calls are smaller, too."""
        small = call.stop - call.first <= self.cost.most(call.tiles, self.bytes())
        if small and self._done(call, work):
            return
        for half in call.halves():
            self.run(half, work)

    def _done(self, call: Call, work: Callable[[Call], None]) -> bool:
        """Whether there was memory enough."""
        started, pairs = time.perf_counter(), call.stop - call.first
        try:
            work(call)
        except COMPILING as error:
            short = isinstance(error, RuntimeError) and short_of_memory(error)
            if not short and self.give_up is None:
                raise
            if short and pairs == 1:
                raise MilError(
                    f"the GPU's memory is too small for a bag of {call.tiles} tiles; set training.max_tiles, or end what else "
                    "runs on the GPU"
                ) from error
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        else:
            if self.give_up is not None:
                self.give_up = None
                self.reporter.note(f"compiling the step took {time.perf_counter() - started:.0f} s")
            return True
        if not short and self.give_up is not None:  # compiling failed
            self.give_up(reason)
            self.give_up = None
            return self._done(call, work)
        self.budget = (pairs // 2) * (call.tiles * self.cost.tile + self.cost.pair)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.reporter.say(f"the GPU's memory is too small for {pairs} bags at once; going on with {pairs // 2}")
        return False
