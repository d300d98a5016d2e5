"""A web page for the user of this machine alone: HTTP on 127.0.0.1, read only, with a secret token in the address.

The token is the first part of every path, so that relative addresses in the page keep it. A request is answered only where
its `Host` is this machine, against DNS rebinding, and its token is right. The headers forbid the page to ask anything of
another address. No path of a request is ever used as a path on the disk here: `pages` gets its decoded parts.
"""

import errno
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from mil.errors import MilError, Stopped

ADDRESS = "127.0.0.1"
HOSTS = {ADDRESS, "localhost"}
MOST_CONNECTIONS = 32  # open at a time; a browser opens six
IDLE_S = 30.0  # a connection that sends nothing for so long is closed
EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"  # an inline style without a text: OpenSeadragon looks for it
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; img-src 'self' data: blob:; script-src 'self'; style-src 'self' {EMPTY}; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Answer:
    """Body and content type of an answer; `kept_s`: seconds for which the browser may keep it."""

    body: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK
    kept_s: int = 0


Pages = Callable[[tuple[str, ...]], Answer]
"""The decoded parts of a path after the token -> the answer. It raises `Refused` for what is not there."""


class Refused(Exception):
    """A request that is answered with an error: its status, and a line that the browser shows."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class LocalPage(ThreadingHTTPServer):
    """The server. `port` 0 takes a free port. `serve_forever` answers until `shutdown` is called or the process is interrupted."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, pages: Pages, port: int = 0) -> None:
        self.pages, self.token = pages, secrets.token_urlsafe(24)
        self._free, self._lock = threading.BoundedSemaphore(MOST_CONNECTIONS), threading.Lock()
        self._strangers: dict[socket.socket, None] = {}  # connections without the right token so far, the oldest first
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            raise MilError(f"port {port} of {ADDRESS} is not free; name another with --port (0: any)") from error

    @property
    def address(self) -> str:
        """What a person opens in a browser of this machine."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/index.html"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; above the limit, the connection that has been without the right token for longest is closed."""
        if not self._free.acquire(blocking=False):
            with self._lock, suppress(StopIteration, OSError):
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.shutdown(socket.SHUT_RDWR)
            self._free.acquire()
        with self._lock:
            self._strangers[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.forget(request)
            self._free.release()

    def forget(self, connection: socket.socket) -> None:
        """The connection is no stranger any more: it has shown the right token, or has ended."""
        with self._lock:
            self._strangers.pop(connection, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away before it has the answer is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LocalPage  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mil", ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        try:
            answer = self.server.pages(self._parts())
        except Refused as refused:
            answer = Answer(f"{refused}\n".encode(), "text/plain; charset=utf-8", refused.status)
        self._send(answer)

    do_HEAD = do_GET

    def _parts(self) -> tuple[str, ...]:
        if self.headers.get("Host", "").partition(":")[0].lower() not in HOSTS:
            raise Refused(HTTPStatus.FORBIDDEN, "This page is for this machine alone; use the printed address.")
        token, *parts = [unquote(part) for part in self.path.partition("?")[0].removeprefix("/").split("/")]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "The token in the address is wrong; use the printed address.")
        self.server.forget(self.connection)
        return tuple(parts)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        keep = f"private, max-age={answer.kept_s}" if answer.kept_s else "no-store"
        sent = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body)), "Cache-Control": keep}
        for name, value in (sent | HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A request that is no GET, or no HTTP: a line without anything of the request in it."""
        self.close_connection = True
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(Answer(f"{status.phrase}\n".encode(), "text/plain; charset=utf-8", status))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address holds the token."""


def serve(page: LocalPage) -> None:
    """Answer until the process is interrupted (Ctrl+C ends it without a traceback)."""
    try:
        page.serve_forever()
    except (KeyboardInterrupt, Stopped):
        pass
    finally:
        page.server_close()
