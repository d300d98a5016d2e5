"""Readers around one piece of shared memory: orders out, answers in. Processes for much work, threads for little."""

import json
import mmap
import os
import queue
import selectors
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mil.errors import MilError
from mil.features.reader import OpenSlides, fulfil
from mil.files import reason_of, way_out

ORDERS_AHEAD = 2  # orders a reader holds: the one it works on and the next, so that it never waits for us
PROCESSES_FROM_TILES = 2_000  # a process takes a second to start; below this many tiles, threads are done sooner


class SharedMemory:
    """Anonymous memory that child processes map too; gone when the last of them ends."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("mil-tiles")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise MilError(
                f"shared memory of {size:,} bytes for tiles cannot be had ({reason_of(error)}){way_out(error)}"
            ) from error
        self.size = size
        self.map = mmap.mmap(self.descriptor, size)

    def close(self) -> None:
        """Give the memory back. Views of it keep the mapping alive until they go."""
        os.close(self.descriptor)


@dataclass(eq=False)
class Process:
    """One process and the numbers of the orders that it holds."""

    process: subprocess.Popen[bytes]
    orders: set[int]
    received: bytes = b""
    """What came of a line whose end has not come yet."""


class ThreadReaders:
    """Reader threads: no start-up, but Python's lock is shared with whoever feeds the device."""

    def __init__(self, count: int, memory: SharedMemory) -> None:
        self.memory = memory
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="reader")
        self.limit, self.held = count * ORDERS_AHEAD, 0
        self.slides = threading.local()
        self.opened: list[OpenSlides] = []
        self.done: queue.Queue[Future[dict[str, Any]]] = queue.Queue()

    def free(self) -> bool:
        """Whether another order can be taken."""
        return self.held < self.limit

    def order(self, order: dict[str, Any]) -> None:
        """Hand an order to the next idle thread."""
        self.held += 1
        self.pool.submit(self._fulfil, order).add_done_callback(self.done.put)

    def answers(self, timeout: float | None) -> list[dict[str, Any]]:
        """Answers that have come, after waiting at most `timeout` seconds for the first."""
        try:
            future = self.done.get(timeout != 0, timeout or None)
        except queue.Empty:
            return []
        self.held -= 1
        return [future.result()]

    def close(self) -> None:
        """Let the threads end."""
        self.pool.shutdown(cancel_futures=True)
        for slides in self.opened:
            slides.close()

    def _fulfil(self, order: dict[str, Any]) -> dict[str, Any]:
        if not hasattr(self.slides, "open"):
            self.slides.open = OpenSlides()
            self.opened.append(self.slides.open)
        return fulfil(order, self.slides.open, self.memory.map)


class ProcessReaders:
    """`count` reader processes. `free` says whether one can take an order; `answers` waits for finished ones."""

    def __init__(self, count: int, memory: SharedMemory) -> None:
        # Readers decode on one thread each; what numpy and OpenCV would start besides only gets in the way.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        package = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "mil.features.reader", str(memory.descriptor), str(memory.size)]
        self.selector = selectors.DefaultSelector()
        self.readers: list[Process] = []
        for _ in range(count):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
                pass_fds=[memory.descriptor],
            )
            reader = Process(process, set())
            self.readers.append(reader)
            assert process.stdout is not None
            self.selector.register(process.stdout, selectors.EVENT_READ, reader)

    def free(self) -> bool:
        """Whether some reader can take another order."""
        return any(len(reader.orders) < ORDERS_AHEAD for reader in self.readers)

    def order(self, order: dict[str, Any]) -> None:
        """Hand an order to the least busy reader."""
        reader = min(self.readers, key=lambda reader: len(reader.orders))
        assert reader.process.stdin is not None
        try:
            reader.process.stdin.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError as error:
            raise _lost(reader) from error
        reader.orders.add(order["number"])

    def answers(self, timeout: float | None) -> list[dict[str, Any]]:
        """Answers that have come, after waiting at most `timeout` seconds for the first."""
        answers = []
        for key, _ in self.selector.select(timeout):
            reader: Process = key.data
            given = os.read(key.fd, 65_536)
            if not given:
                raise _lost(reader)
            *lines, reader.received = (reader.received + given).split(b"\n")
            for answer in map(json.loads, lines):
                reader.orders.discard(answer["number"])
                answers.append(answer)
        return answers

    def close(self) -> None:
        """End the processes."""
        self.selector.close()
        for reader in self.readers:
            for stream in (reader.process.stdin, reader.process.stdout):
                if stream is not None:
                    stream.close()
        for reader in self.readers:
            reader.process.terminate()
            reader.process.wait()


def _lost(reader: Process) -> MilError:
    code = reader.process.wait()
    why = "killed, perhaps for want of memory" if code == -9 else f"exit code {code}"
    return MilError(f"a reader process ended ({why}); slides that were finished are kept, run the same command again")


Readers = ThreadReaders | ProcessReaders


def start_readers(count: int, memory: SharedMemory, tiles: int) -> Readers:
    """`count` readers: processes, or threads of this one where starting processes would take longer than the reading."""
    return ThreadReaders(count, memory) if tiles < PROCESSES_FROM_TILES else ProcessReaders(count, memory)
