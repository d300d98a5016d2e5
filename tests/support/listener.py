"""A TLS server of one connection at a time, which says or does not say that it knows its client."""

import socket
import ssl
import threading
from pathlib import Path


class Listener:
    """A TLS server with a certificate of the federation's server, or of another authority, for one connection."""

    def __init__(self, certificate: Path, key: Path, trusted: Path, port: int) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.context.load_verify_locations(trusted)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.socket = socket.create_server(("127.0.0.1", port))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    greeting = b"x"

    def _serve(self) -> None:
        plain, _ = self.socket.accept()
        try:
            with self.context.wrap_socket(plain, server_side=True) as secure:
                secure.send(self.greeting)
        except (ssl.SSLError, OSError):
            plain.close()

    def close(self) -> None:
        self.thread.join(5)
        self.socket.close()
