"""FLARE's task at a site -> the site's answer. The only class that a site lets a job name."""

from pathlib import Path

import torch
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from mil.errors import MilError
from mil.hospital.flare.pieces import WHOLE, ServerFiles
from mil.hospital.flare.wire import MESSAGE, SIZE, TASK, WORD, announcement, envelope, refusal, spec_file
from mil.hospital.local_data import disk_short
from mil.hospital.messages import JoinQuestion
from mil.hospital.parties import SiteSpec, read_party
from mil.hospital.payload import PayloadError, header
from mil.hospital.site import Site


class SiteExecutor(Executor):
    """Holds the site for as long as the job lasts, so that features are read once."""

    def __init__(self) -> None:
        super().__init__()
        self.site: Site | None = None
        self.run, self.word = "", None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer; whatever goes wrong at the site is told to the other side in one word, and to the site in full."""
        try:
            message, size = shareable.get(MESSAGE), shareable.get(SIZE)
            if task_name != TASK or not (isinstance(message, bytes) or type(size) is int):
                raise MilError(f"a FLARE task '{task_name}' without a message of ours; refused")
            self.word = shareable.get(WORD)
            return self._answered(message if isinstance(message, bytes) else size, fl_ctx, abort_signal)
        except MilError as error:
            self.log_error(fl_ctx, f"no answer: {error}", fire_event=False)
            return refusal(getattr(error, "code", "data"))
        except Exception as error:  # noqa: BLE001  the engine would tell the coordinator nothing but its own code
            self.log_exception(fl_ctx, f"no answer: {type(error).__name__}: {error}", fire_event=False)
            return refusal("disk" if disk_short(error) else "fault")

    def _answered(self, message: bytes | int, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """The answer to a question, or to one of so many bytes that is fetched in pieces."""
        asked: bytes | Path
        if isinstance(message, bytes):
            site, asked = self._opened(fl_ctx, message), message
        elif self.site is None:
            raise MilError("the first question of a job is who is there, which comes whole; refused")
        else:
            site, asked = self.site, Path(self.site.spec.workspace) / "runs" / self.run / "question"
            most = site.max_bytes * (1 + 2 * len(site.protocol.training_sites))
            if message > most:
                raise PayloadError(
                    f"a question of {message:,} bytes, more than the {int(most):,} of max_mb_a_round; refused"
                )
            self._files(site, fl_ctx, abort_signal).fetch(message, asked)
        path = Path(site.spec.workspace) / "runs" / self.run / "answer"
        try:
            site.answer_file(asked, path)
            if (size := path.stat().st_size) <= WHOLE:
                return envelope(path.read_bytes())
            self._files(site, fl_ctx, abort_signal).send(path)
            return announcement(size)
        finally:
            for used in (asked, path):
                if isinstance(used, Path):
                    used.unlink(missing_ok=True)

    def _files(self, site: Site, fl_ctx: FLContext, abort_signal: Signal) -> ServerFiles:
        return ServerFiles(fl_ctx, abort_signal, site.protocol.rounds.timeout_s, self.word)

    def _opened(self, fl_ctx: FLContext, message: bytes) -> Site:
        if self.site is None:
            spec = read_party(SiteSpec, spec_file(fl_ctx))
            if spec.site != fl_ctx.get_identity_name():
                raise MilError(f"the kit is of site {fl_ctx.get_identity_name()}, but its file says {spec.site}")
            torch.set_num_threads(spec.threads)
            torch.use_deterministic_algorithms(True)
            where = f"site {spec.site}, question"
            first = JoinQuestion.read("join", header(message, where)["values"], where)
            self.run, self.site = first.run, Site.open(spec, first.canary)
        return self.site
