"""Vectors in order -> one features file a slide, written beside the encoder's work by a thread of its own."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil import hdf5
from mil.errors import MilError, SlideError
from mil.features.plan import Work

PIECES_AHEAD = 8  # batches' worth of vectors that may wait for the disk


@dataclass(frozen=True)
class Piece:
    """Vectors of consecutive tiles of one slide; `index` are their rows in the slide's coordinates."""

    work: Work
    index: np.ndarray
    vectors: np.ndarray
    last: bool


class FeatureWriter:
    """Takes pieces in order. Calls `finished(work, checksum, tiles)` as each slide's file is complete and in its place; no file of a
    slide is kept for which `problem_of` gives a state and a reason after its last tile."""

    def __init__(
        self,
        path_of: Callable[[Work], Path],
        attributes_of: Callable[[Work], dict[str, Any]],
        problem_of: Callable[[Work], tuple[str, str] | None],
        finished: Callable[[Work, str, int], None],
    ) -> None:
        self.path_of, self.attributes_of, self.problem_of, self.finished = path_of, attributes_of, problem_of, finished
        self.pieces: queue.Queue[Piece | None] = queue.Queue(PIECES_AHEAD)
        self.failure: BaseException | None = None
        self.seconds = 0.0
        self.open: tuple[Work, AbstractContextManager[hdf5.Writer], hdf5.Writer] | None = None
        self.tiles = 0
        self.thread = threading.Thread(target=self._run, name="features-writer", daemon=True)
        self.thread.start()

    def put(self, piece: Piece) -> None:
        """Queue a piece; raises here what failed there."""
        while True:
            if self.failure is not None:
                raise self.failure
            try:
                self.pieces.put(piece, timeout=1)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Write what is queued; raise what failed."""
        if self.thread.is_alive():
            self.pieces.put(None)
            self.thread.join()
        if self.failure is not None:
            raise self.failure

    def abandon(self) -> None:
        """Stop without another complete file; the unfinished one is removed."""
        self.failure = self.failure or SlideError("interrupted", "extraction was stopped")
        while self.thread.is_alive():
            try:
                self.pieces.put(None, timeout=0.1)
            except queue.Full:
                continue
            self.thread.join()

    def _run(self) -> None:
        try:
            while (piece := self.pieces.get()) is not None:
                if self.failure is None:
                    started = time.perf_counter()
                    self._write(piece)
                    self.seconds += time.perf_counter() - started
            self._drop_open()
        except BaseException as error:  # noqa: BLE001  it is raised again by the thread that puts pieces
            self.failure = error
            self._drop_open()
            while self.pieces.get() is not None:
                continue

    def _write(self, piece: Piece) -> None:
        work = piece.work
        if self.open is not None and self.open[0] is not work:
            self._drop_open()  # it failed half way: no piece of it was the last
        if work.error is not None:
            self._drop_open()
            return
        if self.open is None:
            context = hdf5.writing(self.path_of(work))
            self.open, self.tiles = (work, context, context.__enter__()), 0
        _, context, writer = self.open
        writer.append("features", piece.vectors)
        writer.append("coords", work.tiling.coords[piece.index].astype(np.int64))
        self.tiles += len(piece.index)
        if piece.last and not self.tiles:
            work.error = "unreadable_region", "no tile of the slide could be read"
            self._drop_open()
        elif piece.last and (problem := self.problem_of(work)) is not None:
            work.error = problem
            self._drop_open()
        elif piece.last:
            writer.annotate(work.tiling.coords_attributes, on="coords")
            writer.annotate(self.attributes_of(work) | {"num_tiles": self.tiles})
            self.open = None
            context.__exit__(None, None, None)
            self.finished(work, str(hdf5.attributes(self.path_of(work))[hdf5.CHECKSUM]), self.tiles)

    def _drop_open(self) -> None:
        """Remove the file that is being written."""
        if self.open is None:
            return
        work, context, _ = self.open
        self.open = None
        error = SlideError(*(work.error or ("interrupted", "extraction was stopped")))
        try:
            context.__exit__(SlideError, error, None)
        except SlideError:
            return
        except MilError as failed:  # the disk is full: this one names the file
            self.failure = failed
