"""A call in a process of its own, so that a C library that dies or hangs on a damaged file costs one slide and not the job.

The process is kept for the next call; after a crash or a timeout the next call starts a fresh one. It opens files that
nobody trusts, so it answers in JSON: whatever a file makes of it, its parent reads text and executes nothing.
"""

import atexit
import contextlib
import importlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, TypeAdapter

from mil.errors import MilError, SlideError
from mil.files import reason_of
from mil.machine import memory_given

MEMORY_SHARE = 0.8  # of the memory that the job may have; a decoder that asks for more gets a MemoryError
START_S = 300.0
FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT)  # no decoder ends by these
READY = b"ready"
LENGTH = struct.Struct("<Q")
Answer: TypeAdapter[tuple[Literal["done"], Any, str] | tuple[Literal["slide", "user", "fault"], str, str]] = (
    TypeAdapter(tuple[Literal["done"], Any, str] | tuple[Literal["slide", "user", "fault"], str, str])
)
LONGEST = 2**26  # bytes of an answer; those of the stages have some hundreds


class Isolated:
    """One worker process. `call` runs a module-level function in it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def call(self, function: Callable[..., Any], *arguments: Any, name: str, timeout_s: float) -> Any:
        """`function(*arguments)`; `SlideError('decoder_crash')` about `name` if the process dies, `('timeout')` if it hangs.

        `MilError` where the file is not to blame: the process could not start, or was killed from outside.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        order = {"function": [function.__module__, function.__qualname__], "arguments": list(arguments)}
        try:
            _send(process.stdin, json.dumps(order, default=_plain).encode())
            answer = self._answers.get(timeout=timeout_s)
        except BrokenPipeError:
            answer = None
        except queue.Empty as error:
            self.close()
            raise SlideError(
                "timeout", f"{name}: was not read within {timeout_s:g} s; the file is damaged or the disk is slow"
            ) from error
        if answer is None:
            code = process.wait()
            self.close()
            if code == -signal.SIGKILL:
                raise MilError(
                    f"{name}: the process that reads it was killed (SIGKILL), most often for want of memory; give the job more "
                    "memory, the same command goes on from the finished slides"
                )
            if -code in FROM_OUTSIDE:
                raise MilError(
                    f"{name}: the process that reads it was ended from outside ({signal.Signals(-code).name}); the same command "
                    "goes on from the finished slides"
                )
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise SlideError("decoder_crash", f"{name}: the library that decodes it died ({how}); the file is damaged")
        try:
            kind, first, second = Answer.validate_json(answer)
        except ValueError as error:
            self.close()
            raise SlideError(
                "decoder_crash", f"{name}: its reader's answer is no answer; the file is damaged"
            ) from error
        if kind == "slide":
            raise SlideError(first, second)
        if kind == "user":
            raise MilError(second)
        if kind == "fault":
            raise RuntimeError(f"{name}: {second}")
        return first

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # what it did not read any more
                process.stdin.close()

    def _start(self) -> None:
        self.close()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # -P: no file of the working directory, `queue.py` say, stands for a module of Python
        command = [sys.executable, "-P", "-c", "from mil.slides.isolation import serve; serve()"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=_collect, args=(process.stdout, answers), daemon=True).start()
        self._process, self._answers = process, answers
        code = None
        with contextlib.suppress(queue.Empty, subprocess.TimeoutExpired):
            if answers.get(timeout=START_S) == READY:
                return
            code = process.wait(timeout=5)  # its output is closed: the process ends
        self.close()
        raise MilError(
            f"the process that opens slides did not start ({'no answer' if code is None else f'exit code {code}'}; memory that this "
            f"job may have: {memory_given() / 2**30:.1f} GiB); no slide was read, see the lines above"
        )


def isolated(function: Callable[..., Any], *arguments: Any, name: str, timeout_s: float) -> Any:
    """`Isolated.call` in the process that this program keeps for it."""
    return _kept().call(function, *arguments, name=name, timeout_s=timeout_s)


def serve() -> None:
    """Answer calls from standard input on standard output until it closes; anything printed goes to standard error."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    _send(answers, READY)
    while (message := _receive(calls)) is not None:
        order = json.loads(message, object_hook=_restored)
        _send(answers, json.dumps(_answer(order["function"], order["arguments"]), default=_plain).encode())


def _plain(value: Any) -> Any:
    """JSON for what calls and answers hold besides JSON's types: paths, specs, numbers of numpy."""
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, BaseModel):
        kind = type(value)
        return {"spec": [kind.__module__, kind.__qualname__], "values": value.model_dump(mode="json")}
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not cross to the process that opens slides")


def _restored(value: dict[str, Any]) -> Any:
    """The inverse of `_plain` for orders, which come from the parent."""
    if value.keys() == {"path"}:
        return Path(value["path"])
    if value.keys() == {"spec", "values"}:
        module, name = value["spec"]
        return getattr(importlib.import_module(module), name).model_validate(value["values"])
    return value


def _answer(name: Sequence[str], arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The answer of the function `name`: module and qualified name."""
    try:
        function: Any = importlib.import_module(name[0])
        for part in name[1].split("."):
            function = getattr(function, part)
        return "done", function(*arguments), ""
    except SlideError as error:
        return "slide", error.state, str(error)
    except MilError as error:
        return "user", "", str(error)
    except OSError as error:
        return "slide", "unreadable", f"{error.filename or 'the file'}: {reason_of(error)}"
    except MemoryError:
        return "slide", "unreadable", "reading it takes more memory than this job may have"
    except Exception as error:  # noqa: BLE001  carried to the parent and raised there
        return "fault", "", f"{type(error).__name__}: {error}"


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    limit = int(memory_given() * MEMORY_SHARE)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _collect(stream: IO[bytes], answers: "queue.SimpleQueue[bytes | None]") -> None:
    while (answer := _receive(stream)) is not None:
        answers.put(answer)
    answers.put(None)
    stream.close()


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(LENGTH.pack(len(message)) + message)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    if length > LONGEST:
        return None
    message = stream.read(length)
    return message if len(message) == length else None


_worker: list[Isolated] = []


def _kept() -> Isolated:
    if not _worker:
        _worker.append(Isolated())
        atexit.register(_worker[0].close)
    return _worker[0]
