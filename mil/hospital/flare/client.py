"""FLARE's process at a site, which obeys the server in what a job needs and in nothing else.

By itself it also runs `cat`, `ls` and `grep` on whatever its user may read, tells paths and errors, and deletes any folder of its kit; and it
asks the site's rules only where the message says so. It unpacks a job's files before it refuses code among them; a process that is started
at that moment may run it.
"""

import re
import sys
from io import BytesIO
from pathlib import Path
from uuid import UUID
from zipfile import BadZipFile, ZipFile

from nvflare.private.admin_defs import Message, error_reply
from nvflare.private.defs import RequestHeader, TrainingTopic
from nvflare.private.fed.app.client import client_train
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_engine import ClientEngine
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

OF_JOBS = {
    TrainingTopic.CHECK_RESOURCE,
    TrainingTopic.CANCEL_RESOURCE,
    TrainingTopic.DEPLOY,
    TrainingTopic.START_JOB,
    TrainingTopic.NOTIFY_JOB_STATUS,
    TrainingTopic.ABORT,
    TrainingTopic.DELETE_RUN,
}
"""What the server may ask of a site's process."""
OF_AN_APP = re.compile(r"(config/)?(config_fed_(client|server)\.json|\.__nvfl_[a-z.]+)?")
"""Files of a job, as `mil.hospital.flare.job` writes them and FLARE signs them."""
LARGEST_APP = 2**20
"""Bytes of a job's files, which have two thousand."""


class OfJob(RequestProcessor):
    """A processor of FLARE's, for jobs alone: a job's files are a folder of the kit, which has others beside it."""

    def __init__(self, processor: RequestProcessor) -> None:
        self.processor = processor

    def get_topics(self) -> list[str]:
        """Those of the processor."""
        return self.processor.get_topics()

    def process(self, req: Message, app_ctx: ClientEngine) -> Message:
        """What the processor makes of a request that names a job, or none."""
        job = req.get_header(RequestHeader.JOB_ID)
        if job is not None and not _is_job(job):
            return error_reply("this is no job; refused")
        if req.topic == TrainingTopic.DEPLOY and not _is_app(req.body):
            return error_reply("a job has two configuration files, and no code; refused")
        reply = self.processor.process(req, app_ctx)
        if reply is not None and isinstance(reply.body, str):  # the server needs no path of this machine
            reply.body = reply.body.replace(str(Path(app_ctx.args.workspace).resolve()), "kit")
        return reply


def _is_job(name: object) -> bool:
    try:
        return str(UUID(str(name))) == name
    except ValueError:
        return False


def _is_app(content: object) -> bool:
    try:
        with ZipFile(BytesIO(content)) as archive:  # type: ignore[arg-type]
            files = archive.infolist()
    except (TypeError, ValueError, BadZipFile):
        return False
    named = all(OF_AN_APP.fullmatch(file.filename) for file in files)
    return named and sum(file.file_size for file in files) <= LARGEST_APP


def obey_jobs_only() -> None:
    """Leave the processors of jobs, before FLARE registers any."""
    known = ClientRequestProcessors.request_processors
    kept = [processor for processor in known if OF_JOBS.issuperset(processor.get_topics())]
    ClientRequestProcessors.request_processors = [OfJob(processor) for processor in kept]


if __name__ == "__main__":
    obey_jobs_only()
    client_train.version_check()
    given = client_train.parse_arguments()
    sys.exit(client_train.mpm.run(main_func=client_train.main, run_dir=given.workspace, args=given))
