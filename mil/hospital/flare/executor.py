"""FLARE's task at a site -> the site's answer. The only class that a site lets a job name."""

from pathlib import Path

import torch
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from mil.errors import MilError
from mil.hospital.flare.pieces import WHOLE, ServerFiles
from mil.hospital.flare.wire import MESSAGE, SIZE, TASK, announcement, envelope, own_file, refusal
from mil.hospital.parties import SiteSpec, read_own
from mil.hospital.payload import PayloadError, header
from mil.hospital.site import Site


class SiteExecutor(Executor):
    """Holds the site for as long as the job lasts, so that features are read once."""

    def __init__(self) -> None:
        super().__init__()
        self.site: Site | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer; whatever goes wrong at the site is told to the other side in one word, and to the site in full."""
        try:
            message, size = shareable.get(MESSAGE), shareable.get(SIZE)
            if task_name != TASK or not (isinstance(message, bytes) or type(size) is int):
                raise MilError(f"a FLARE task '{task_name}' without a message of ours; refused")
            return self._answered(message if isinstance(message, bytes) else size, fl_ctx, abort_signal)
        except MilError as error:
            self.log_error(fl_ctx, f"no answer: {error}", fire_event=False)
            return refusal(getattr(error, "code", "data"))
        except Exception as error:  # noqa: BLE001  the engine would tell the coordinator nothing but its own code
            self.log_exception(fl_ctx, f"no answer: {type(error).__name__}: {error}", fire_event=False)
            return refusal("fault")

    def _answered(self, message: bytes | int, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """The answer to a question, or to one of so many bytes that is fetched in pieces."""
        if isinstance(message, bytes):
            found = self._opened(fl_ctx, message).answer(message)
        elif self.site is None:
            raise MilError("the first question of a job is who is there, which comes whole; refused")
        else:
            most = self.site.max_bytes * (1 + 2 * len(self.site.protocol.training_sites))
            if message > most:
                raise PayloadError(
                    f"a question of {message:,} bytes, more than the {int(most):,} of max_mb_a_round; refused"
                )
            path = Path(self.site.spec.workspace) / "question"
            files = ServerFiles(fl_ctx, abort_signal, self.site.protocol.rounds.timeout_s)
            files.fetch(message, path)
            found = self.site.answer(path)
            path.unlink()
        if len(found) <= WHOLE:
            return envelope(found)
        assert self.site is not None
        ServerFiles(fl_ctx, abort_signal, self.site.protocol.rounds.timeout_s).send(found)
        return announcement(len(found))

    def _opened(self, fl_ctx: FLContext, message: bytes) -> Site:
        if self.site is None:
            spec = read_own(SiteSpec, own_file(fl_ctx))
            if spec.site != fl_ctx.get_identity_name():
                raise MilError(f"the kit is of site {fl_ctx.get_identity_name()}, but its file says {spec.site}")
            torch.set_num_threads(spec.threads)
            torch.use_deterministic_algorithms(True)
            canary = header(message, f"site {spec.site}, question")["values"].get("canary") is True
            self.site = Site.open(spec, canary)
        return self.site
