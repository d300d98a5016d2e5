"""FLARE's workflow at the server: our server's questions to the sites, their answers back, until the job's share is done.

A job is short on purpose. It goes on from the checkpoint and ends when its rounds are done or a site is missing whose
answer is needed; what came of the run is said by the checkpoint and the ledger, never by FLARE's job status.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from mil.errors import MilError
from mil.hospital.blobs import Blob
from mil.hospital.config import read_federation
from mil.hospital.flare.pieces import READ, WHOLE, WRITE, Pieces
from mil.hospital.flare.wire import SIZE, TASK, announcement, envelope, opened, spec_file
from mil.hospital.keys import PartyKey
from mil.hospital.local_data import check_room, disk_short
from mil.hospital.parties import ServerSpec, read_party
from mil.hospital.record import LedgerFile
from mil.hospital.revocation import NAME, revoked_of, revoked_sites
from mil.hospital.server import Server, SitesMissing

POLL_S = 0.05


class RunController(Controller):
    """Runs a stretch of the run named `run`."""

    def __init__(self, run: str, spec_sha256: str, canary: bool = False, rehearsal: str | None = None) -> None:
        super().__init__()
        self.run_name, self.spec_sha256, self.canary, self.rehearsal = run, spec_sha256, canary, rehearsal
        self.answers: dict[str, Blob | str] = {}
        self.pieces = Pieces(Path(), 0)
        self.lock = Lock()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to prepare: the run's state is read where the work begins."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to put away: every round is on disk."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """An answer to a question that is over is not used."""
        self.log_warning(fl_ctx, f"a late answer of {client.name} was dropped")

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Ask and receive until the run is done, the job has had its rounds, or a site is missing."""
        spec = read_party(ServerSpec, spec_file(fl_ctx))
        protocol = read_federation(spec.federation)
        folder = Path(spec.workspace) / "runs" / self.run_name
        try:
            with only_one(folder), written_down(folder, self.run_name, spec):
                if protocol.sha256 != self.spec_sha256:
                    raise MilError(
                        f"{spec.federation} has changed since the job was submitted; say `mil server run` again"
                    )
                workspace = Path(spec.workspace)
                revoked = revoked_of(revoked_sites(workspace), protocol)
                sent = (workspace / NAME).read_bytes() if (workspace / NAME).exists() else b""
                party = PartyKey(workspace)
                server = Server(protocol, self.run_name, folder, self.canary, self.rehearsal, party, sent)
                self.pieces = Pieces(folder / "pieces", server.max_bytes)
                self._engine.register_aux_message_handler(READ, self.pieces.read)
                self._engine.register_aux_message_handler(WRITE, self.pieces.write)
                self._rounds(server, spec, revoked, abort_signal, fl_ctx)
        except MilError as error:
            self.log_error(fl_ctx, f"the job ends: {error}", fire_event=False)

    def _rounds(
        self, server: Server, spec: ServerSpec, revoked: dict[str, str], abort_signal: Signal, fl_ctx: FLContext
    ) -> None:
        present = {client.name for client in self._engine.get_clients()} - set(revoked)
        timeout, silent_s = server.protocol.rounds.timeout_s, server.protocol.rounds.silent_s
        for _ in range(server.protocol.rounds.rounds_a_job + 1):  # the first question is who is there
            if server.kind == "done" or abort_signal.triggered:
                return
            asked = server.asked
            check_room(spec.workspace, spec.free_gb)
            silent = {site: "not connected when the job began" for site in asked if site not in present}
            silent |= {site: f"refused: revoked on {since}" for site, since in revoked.items() if site in asked}
            question, there = server.question_file(), [site for site in asked if site in present]
            word, size = self.pieces.ask(question, there), question.stat().st_size
            message = envelope(question.read_bytes(), word) if size <= WHOLE else announcement(size, word)
            silent |= self._ask(message, there, timeout, silent_s, abort_signal, fl_ctx)
            if abort_signal.triggered:
                return
            if revoked_of(revoked_sites(Path(spec.workspace)), server.protocol) != revoked:
                break  # the next job's first question brings every site the longer list; these answers are not used
            server.receive({site: blob for site, blob in self.answers.items() if not isinstance(blob, str)}, silent)
        if server.kind != "done":
            server.pause()

    def _ask(
        self,
        question: Shareable,
        sites: list[str],
        timeout: float,
        silent_s: float,
        abort_signal: Signal,
        fl_ctx: FLContext,
    ) -> dict[str, str]:
        """Put the question to `sites`; their answers are in `self.answers`. Returns why the others gave none."""
        self.answers = {}
        if not sites:
            return {}
        task = Task(TASK, data=question, result_received_cb=self._received)  # FLARE's timeout is by the wall clock
        self.broadcast(task, fl_ctx, targets=sites, min_responses=len(sites))
        deadline = time.monotonic() + timeout
        gone: dict[str, str] = {}
        while not abort_signal.triggered:
            waiting = [site for site in sites if site not in self.answers]
            why = f"connection lost: its process ended, or was not heard for {silent_s:g} s (silent_s)"
            gone = {site: why for site in waiting if self.communicator.get_client_disconnect_time(site)}
            if len(gone) == len(waiting) or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        self.cancel_task(task, TaskCompletionStatus.CANCELLED, fl_ctx)
        with self.lock:
            reasons = {site: word for site, word in self.answers.items() if isinstance(word, str)}
            late = {site: f"no answer in {timeout:g} s" for site in sites if site not in self.answers}
        return late | gone | reasons

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        if client_task.result is not None:
            with self.lock:
                site = client_task.client.name
                path = self.pieces.answer(site, client_task.result.get(SIZE))
                self.answers[site] = opened(client_task.result, path)
        client_task.result = None


@contextmanager
def written_down(folder: Path, run: str, spec: ServerSpec) -> Iterator[None]:
    """What ends the job, and stands in the run's ledger in no other way, becomes a line `stopped` there, if there is room for it."""
    try:
        yield
    except SitesMissing:  # has its line
        raise
    except Exception as error:
        known = error if isinstance(error, MilError) else disk_short(error)
        reason = str(known or f"an error of the program: {type(error).__name__}: {error}")
        with contextlib.suppress(MilError):
            ledger = LedgerFile(folder / "ledger.jsonl", "server", PartyKey(spec.workspace))
            if json.loads(ledger.lines[-1])["event"] != "waiting":
                ledger.add({"event": "stopped", "run": run, "reason": reason})
        raise


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the run's folder; a second job on the same run is turned away."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MilError(f"{folder}: another job works on this run; wait for it, or abort it") from error
        yield
