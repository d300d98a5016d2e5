"""Large messages in pieces: a site reads the question from the server's file, and writes its answer into another.

Whatever the number and size of the models, and the number of sites, either side holds `PIECE` bytes of a message for each site at a time.
A piece that was lost is asked for again, so a line that is cut costs no more than that.
"""

import os
import secrets
import time
from pathlib import Path
from threading import Lock

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from mil.errors import MilError
from mil.hospital.flare.wire import MESSAGE, WORD
from mil.hospital.payload import PayloadError

WHOLE, PIECE = 2**17, 2**20
"""Bytes: messages that travel whole in FLARE's envelope; a piece of a larger one."""
READ, WRITE = "mil.read", "mil.write"
START = "start"
WAIT_S, LONGEST_S, PAUSE_S = 5.0, 80.0, 1.0
"""For the answer to a piece, twice as long each time, and at the longest; before a piece is asked for again."""


class Pieces:
    """The server's files of one question and of the answers to it.

    Whose request it is, the request says itself. So it must hold a word that came with the question, to those who were asked alone.
    """

    def __init__(self, folder: Path, most: float) -> None:
        """`most`: bytes of an answer."""
        self.folder, self.most, self.lock = folder, most, Lock()
        self.question, self.readers = Path(), set[str]()
        self.writers, self.word = set[str](), secrets.token_hex(16)

    def ask(self, question: Path, sites: list[str]) -> str:
        """From now on `sites` may read `question` and answer it; the word that they need for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            old.unlink()
        self.question, self.readers, self.writers = question, set(sites), set(sites)
        self.word = secrets.token_hex(16)
        return self.word

    def answer(self, site: str, size: object) -> Path:
        """File of a site's answer of `size` bytes, which the site can no longer change."""
        path = self.folder / site
        with self.lock:
            self.writers.discard(site)
            if type(size) is int and path.is_file() and path.stat().st_size > size >= 0:
                os.truncate(path, size)  # an earlier attempt at the same answer was longer
        return path

    def read(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """A piece of the question."""
        start = request.get(START)
        if self._from(request, fl_ctx) not in self.readers or type(start) is not int or start < 0:
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        with open(self.question, "rb") as file:
            file.seek(start)
            reply = make_reply(ReturnCode.OK)
            reply[MESSAGE] = file.read(PIECE)
        return reply

    def write(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """A piece of an answer. A piece that comes twice, and late, changes nothing."""
        site, start, content = self._from(request, fl_ctx), request.get(START), request.get(MESSAGE)
        if type(start) is not int or not isinstance(content, bytes) or not 0 <= start <= self.most - len(content):
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        with self.lock:
            if site not in self.writers:
                return make_reply(ReturnCode.BAD_REQUEST_DATA)
            path = self.folder / site
            path.touch()
            with open(path, "r+b") as file:
                file.seek(start)
                file.write(content)
        return make_reply(ReturnCode.OK)

    def _from(self, request: Shareable, fl_ctx: FLContext) -> str:
        """The site that a request is from; blank where it was not asked."""
        peer = fl_ctx.get_peer_context()
        return peer.get_identity_name() if peer and request.get(WORD) == self.word else ""


class ServerFiles:
    """A site's way to the server's files."""

    def __init__(self, fl_ctx: FLContext, abort: Signal, patience_s: float, word: object) -> None:
        """`patience_s`: how long a lost piece is asked for again; `word`: that came with the question."""
        self.fl_ctx, self.abort, self.patience_s, self.word = fl_ctx, abort, patience_s, word

    def fetch(self, size: int, path: Path) -> None:
        """The server's question of `size` bytes -> the file `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while file.tell() < size:
                content = self._asked(READ, {START: file.tell()}).get(MESSAGE)
                if not isinstance(content, bytes) or not 0 < len(content) <= size - file.tell():
                    raise PayloadError(f"the question of {size:,} bytes came in pieces that are none; refused")
                file.write(content)

    def send(self, path: Path) -> None:
        """The site's answer -> the server's file."""
        with open(path, "rb") as file:
            while content := file.read(PIECE):
                self._asked(WRITE, {START: file.tell() - len(content), MESSAGE: content})

    def _asked(self, topic: str, values: dict) -> Shareable:
        deadline, wait_s = time.monotonic() + self.patience_s, WAIT_S
        while not self.abort.triggered:
            request = Shareable()
            request.update({**values, WORD: self.word})
            engine = self.fl_ctx.get_engine()
            replies = engine.send_aux_request([], topic, request, wait_s, self.fl_ctx)  # type: ignore[union-attr]
            reply = next(iter(replies.values()), make_reply(ReturnCode.COMMUNICATION_ERROR))
            if reply.get_return_code() == ReturnCode.OK:
                return reply
            if reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA:
                raise PayloadError("the server refused a piece of a message; see its log")
            if time.monotonic() > deadline:
                raise MilError(
                    f"a piece of a message did not pass in {self.patience_s:g} s ({reply.get_return_code()})"
                )
            time.sleep(PAUSE_S)
            wait_s = min(2 * wait_s, LONGEST_S)  # a slow line needs longer; a line that was cut has lost the piece
        raise MilError("the job was aborted")
