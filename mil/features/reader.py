"""A reader process: orders for tiles on standard input, pixels into shared memory, answers on standard output.

Run as `python -m mil.features.reader FD BYTES`. A process and not a thread, since Python's lock would halve the rate; a
program of its own and not a fork, since the parent holds a GPU. It ends when its standard input does, so it never outlives
its parent, and the memory has no name, so nothing is left behind by a kill.
"""

import json
import mmap
import sys
import time
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any

import numpy as np

from mil.errors import MilError, SlideError
from mil.slides.slide import Reading, Slide, open_slide

OPEN_SLIDES = 2  # the one being read and the one that comes next


class OpenSlides:
    """The slides that were read last, kept open."""

    def __init__(self) -> None:
        self.slides: OrderedDict[tuple[str, float | None], tuple[ExitStack, Slide]] = OrderedDict()

    def close(self) -> None:
        """Close them all."""
        while self.slides:
            self.slides.popitem()[1][0].close()

    def get(self, path: str, mpp: float | None) -> Slide:
        """The slide, opened if it is not."""
        key = (path, mpp)
        if key not in self.slides:
            while len(self.slides) >= OPEN_SLIDES:
                self.slides.popitem(last=False)[1][0].close()
            stack = ExitStack()
            self.slides[key] = stack, stack.enter_context(open_slide(path, mpp))
        self.slides.move_to_end(key)
        return self.slides[key][1]


def fulfil(order: dict[str, Any], slides: OpenSlides, memory: mmap.mmap) -> dict[str, Any]:
    """Read the tiles of an order into the memory; the answer: tiles that were left out, or the error, and seconds."""
    started = time.perf_counter()
    answer: dict[str, Any] = {"number": order["number"], "missing": [], "error": None}
    coords = np.asarray(order["coords"], np.int64).reshape(-1, 2)
    size = order["size_px"]
    shape = (len(coords), size, size, 3)
    target = np.frombuffer(memory, np.uint8, int(np.prod(shape)), order["offset"]).reshape(shape)
    seen = np.zeros(len(coords), bool)
    try:
        how = Reading(**order["reading"])
        slide = slides.get(order["path"], order["slide_mpp"])
        for index, tiles in slide.read_tiles(coords, size, order["mpp"], threads=1, how=how):
            target[index] = tiles
            seen[index] = True
        answer["missing"] = np.flatnonzero(~seen).tolist()
    except SlideError as error:
        answer["error"] = [error.state, str(error)]
    except MilError as error:
        answer["error"] = ["unreadable", str(error)]
    answer["seconds"] = time.perf_counter() - started
    return answer


def main() -> None:
    """Serve orders until standard input ends."""
    memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
    slides = OpenSlides()
    for line in sys.stdin:
        print(json.dumps(fulfil(json.loads(line), slides, memory)), flush=True)


if __name__ == "__main__":
    main()
