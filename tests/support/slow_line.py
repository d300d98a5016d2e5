"""A hospital's line to the outside: a forward proxy (HTTP CONNECT) with a bandwidth and a latency, which can be cut."""

import asyncio
import random
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

CHUNK = 1 << 14
PACKET, RETRY_S = 1448, 0.2
"""Bytes of a packet, and seconds until a lost one is sent again (Linux's shortest wait)."""
END = b"\r\n\r\n"


@dataclass
class Direction:
    """All connections' bytes one way."""

    bytes_a_second: float = float("inf")
    delay_s: float = 0.0
    free: float = 0.0
    """When the line has sent what it was given."""
    carried: int = 0
    loss: float = 0.0
    """Share of packets that are lost, and sent again after `RETRY_S`; what comes behind them waits, as with TCP."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def due(self, now: float, size: int) -> float:
        """When the last of `size` bytes that are given to the line now comes out at its other end."""
        self.free = max(now, self.free) + size / self.bytes_a_second
        packets = -(-size // PACKET) if self.loss else 0
        self.free += RETRY_S * any(self.chance.random() < self.loss for _ in range(packets))
        self.carried += size
        return self.free + self.delay_s

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what is read until it ends."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def deliver() -> None:
            while (chunk := await under_way.get())[1]:
                await asyncio.sleep(max(0.0, chunk[0] - loop.time()))
                writer.write(chunk[1])
                await writer.drain()
            writer.close()

        delivery = asyncio.create_task(deliver())
        try:
            while content := await reader.read(CHUNK):
                due = self.due(loop.time(), len(content))
                await under_way.put((due, content))
                await asyncio.sleep(self.free - loop.time())  # the line takes no more than it can send
            await under_way.put((0.0, b""))
            await delivery
        except OSError:
            delivery.cancel()
            writer.close()


@dataclass
class SlowLine:
    """Runs in a thread of its own as long as the `with` lasts; at first as fast as the machine."""

    port: int = 0
    up: Direction = field(default_factory=Direction)
    down: Direction = field(default_factory=Direction)
    lines: set[asyncio.StreamWriter] = field(default_factory=set)
    is_cut: bool = False

    def __enter__(self) -> "SlowLine":
        self.loop, ready = asyncio.new_event_loop(), Future[int]()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        self.port = ready.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(10)

    @property
    def environment(self) -> dict[str, str]:
        """Sends gRPC's connections through here, those to this machine too."""
        return {"grpc_proxy": f"http://127.0.0.1:{self.port}", "no_grpc_proxy": "none.invalid"}

    def limit(self, bytes_a_second: float, delay_s: float) -> None:
        """Of either direction, from now on."""
        for direction in (self.up, self.down):
            direction.bytes_a_second, direction.delay_s = bytes_a_second, delay_s

    def cut(self) -> None:
        """End all connections and let none in until `mend`."""
        self.is_cut = True
        self.loop.call_soon_threadsafe(lambda: [line.transport.abort() for line in self.lines])

    def mend(self) -> None:
        """Let connections in again."""
        self.is_cut = False

    def _run(self, ready: "Future[int]") -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve(ready))
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    async def _serve(self, ready: "Future[int]") -> None:
        self.stopped = asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        ready.set_result(server.sockets[0].getsockname()[1])
        await self.stopped.wait()
        server.close()
        for line in self.lines:
            line.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        onward: asyncio.StreamWriter | None = None
        self.lines.add(writer)
        try:
            head = await reader.readuntil(END)
            host, _, port = head.split()[1].decode().rpartition(":")
            answers, onward = await asyncio.open_connection(host, int(port))
            self.lines.add(onward)
            writer.write(b"HTTP/1.1 200 Connection established" + END)
            await asyncio.gather(self.up.carry(reader, onward), self.down.carry(answers, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for line in (writer, onward) if onward else (writer,):
                self.lines.discard(line)
                line.transport.abort()
