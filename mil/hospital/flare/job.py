"""A run's job for FLARE: four small JSON files that name one class a side, and no code."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mil.hospital.config import FederationSpec
from mil.hospital.flare.wire import TASK

EXECUTOR = "mil.hospital.flare.executor.SiteExecutor"
CONTROLLER = "mil.hospital.flare.controller.RunController"


@dataclass(frozen=True)
class Stretch:
    """What the server's side of a job is told."""

    run: str
    spec_sha256: str
    canary: bool = False
    rehearsal: str | None = None
    """The canary that came back before the run."""


def write_job(folder: Path, protocol: FederationSpec, stretch: Stretch) -> Path:
    """The job's folder, to be submitted; who takes part is decided by the run's policy, not by the engine."""
    silent = protocol.rounds.silent_s
    interval = min(0.5, protocol.rounds.timeout_s / 50, silent / 20)
    meta = {
        "name": f"{protocol.federation}-{stretch.run}",
        "min_clients": 1,
        "deploy_map": {"app": ["server", *sorted(protocol.sites)]},
        "resource_spec": {},
    }
    server = {
        "format_version": 2,
        "server": {"task_request_interval": interval},
        "dead_client_grace_period": min(10.0, silent / 4),
        "workflows": [
            {"id": "run", "path": CONTROLLER, "args": asdict(stretch)},
        ],
    }
    client = {
        "format_version": 2,
        "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
        "job_heartbeat_interval": min(10.0, silent / 4),
    }
    empty = {"components": [], "task_data_filters": [], "task_result_filters": []}
    files = {
        "meta.json": meta,
        "app/config/config_fed_server.json": server | empty,
        "app/config/config_fed_client.json": client | empty,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder
