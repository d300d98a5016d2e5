"""What a site's process does for a server that asks for more than a job: nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.message import Message as CellMessage
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_engine import ClientEngine
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from mil.hospital.flare.client import OF_JOBS, obey_jobs_only

JOB = "0b0e7a63-54c4-4d0e-8b5c-0f1a2b3c4d5e"


class Engine(ClientEngine):
    """A site's engine as far as it deletes what a job left."""

    def __init__(self, kit: Path) -> None:
        self.args = SimpleNamespace(workspace=str(kit))

    def get_client_name(self) -> str:
        return "A"

    @contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContext()


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    for folder in ("startup", "local", JOB):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "fed_client.json").write_text("{}")
    return tmp_path


@pytest.fixture
def agent(kit: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FedAdminAgent]:
    """That obeys whatever reaches it, as a site's process makes it."""
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", ClientRequestProcessors.request_processors)
    monkeypatch.setattr(AuditService, "the_auditor", None)
    AuditService.initialize(str(kit / "audit.log"))
    obey_jobs_only()
    obeying = FedAdminAgent("admin_agent", SimpleNamespace(register_request_cb=lambda **_: None), Engine(kit))
    for processor in ClientRequestProcessors.request_processors:
        obeying.register_processor(processor)
    yield obeying
    AuditService.close()


def said(agent: FedAdminAgent, topic: str, body: str | bytes = "", **headers: object) -> str:
    """The answer to a message of a server that asks for no authorisation, as FLARE leaves to it."""
    message = Message(topic, body)  # type: ignore[arg-type]
    for name, value in headers.items():
        message.set_header(name, value)
    return str(agent._dispatch_request(CellMessage({}, message)).payload.body)


@pytest.mark.parametrize("command", ["cat {kit}/local/fed_client.json", "ls -R {kit}", "grep -n e /etc/passwd", "pwd"])
def test_no_command_of_a_shell_is_carried_out(agent: FedAdminAgent, kit: Path, command: str) -> None:
    """FLARE ran `cat` on the bag table and on keys: its rules for users are asked where the server's message says so."""
    assert said(agent, "sys.shell", command.format(kit=kit)) == "invalid_request"


def test_nothing_but_jobs_is_obeyed(agent: FedAdminAgent) -> None:
    assert set(agent.processors) == OF_JOBS
    for topic in ("sys.report_env", "sys.info", "train.restart", "info.show_errors", "sys.configure_site_log"):
        assert said(agent, topic) == "invalid_request"


def test_no_folder_of_the_kit_is_taken_for_a_job(agent: FedAdminAgent, kit: Path) -> None:
    """`local` holds the rules of the site, `startup` its key; a job of this name would replace them."""
    for topic in ("train.delete_run", "train.deploy"):
        for name in ("local", "startup", JOB.upper()):
            assert "refused" in said(agent, topic, **{RequestHeader.JOB_ID: name})
    assert (kit / "local" / "fed_client.json").exists()
    told = said(agent, "train.delete_run", **{RequestHeader.JOB_ID: JOB})
    assert told == f"Delete run folder: kit/{JOB}."  # without the site's path
    assert not (kit / JOB).exists()


def app_of(**files: str) -> bytes:
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        for name, text in {"config/": "", "config/config_fed_client.json": "{}", **files}.items():
            archive.writestr(name, text)
    return content.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        {"custom/sitecustomize.py": "1"},
        {"../local/resources.json": "{}"},
        {"config/config_fed_server.json": " " * 2**20},
    ],
)
def test_a_job_with_more_than_its_configuration_is_not_unpacked(
    agent: FedAdminAgent, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    """FLARE refused code after it had unpacked it: a job that was started in between had it on its path, `sitecustomize` first."""
    unpacked = []
    monkeypatch.setattr(Engine, "deploy_app", lambda *_, **given: unpacked.append(given["app_data"]) or "")
    headers = {RequestHeader.JOB_ID: JOB, RequestHeader.JOB_META: {"job_id": JOB}, RequestHeader.APP_NAME: "app"}
    for content in (app_of(**files), b"no archive"):
        assert "no code; refused" in said(agent, "train.deploy", content, **headers)
    assert not unpacked
    assert "deployed" in said(agent, "train.deploy", app_of(), **headers)
    assert len(unpacked) == 1
