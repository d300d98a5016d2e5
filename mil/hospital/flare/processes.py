"""FLARE's two long-running processes, in the foreground, for a service manager to keep alive."""

import json
import os
import sys
from pathlib import Path

from mil.errors import MilError
from mil.files import write_text
from mil.hospital.config import read_federation
from mil.hospital.flare.kits import SERVER_KIT, SITE_KIT, refresh_server
from mil.hospital.local_data import alone
from mil.hospital.parties import ServerSpec, SiteSpec, protocol_of

Command = tuple[list[str], dict[str, str], Path]
"""Words, environment, working directory."""
INSIDE = {"scheme": "stcp", "resources": {"host": "localhost", "connection_security": "mtls"}}
"""How a side's own processes connect on the loopback interface: with its certificate. FLARE's default asks for none, and any user of the
machine could have a site's process obey."""


def server_command(spec: ServerSpec) -> Command:
    """The server's process."""
    kit = _kit(Path(spec.workspace) / SERVER_KIT, "mil server provision")
    protocol = read_federation(spec.federation)
    refresh_server(kit, protocol)
    organisation = protocol.server.organisation
    words = _words("nvflare.private.fed.app.server.server_train", kit, "fed_server.json", org=organisation)
    verbosity = {"GRPC_VERBOSITY": "info"}  # writes down whose certificate was refused, and why
    return words, _environment(1, NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT="20", **verbosity), kit


def site_command(spec: SiteSpec) -> Command:
    """A site's process. It opens connections to the server and listens on the loopback interface only."""
    protocol = protocol_of(spec)
    kit = _kit(Path(spec.workspace) / SITE_KIT, "mil site join")
    settings = {"uid": spec.site, "org": protocol.sites[spec.site].organisation}
    settings["heart_beat_interval"] = str(max(2, min(10, int(protocol.rounds.silent_s / 4))))
    words = _words("mil.hospital.flare.client", kit, "fed_client.json", **settings)
    return words, _environment(spec.threads), kit


def become(command: Command, what: str) -> None:
    """Replace this process by the command, unless another one on the same kit does `what` already."""
    words, environment, folder = command
    with alone(folder.parent / "running", 0.0, what) as lock:
        os.set_inheritable(lock, True)  # the command holds it as long as it runs; what it starts does not
        print(f"{what}: runs until it is stopped; FLARE's log is {folder / 'log.txt'}", flush=True)
        os.chdir(folder)
        os.execve(words[0], words, environment)


def _kit(path: Path, made_by: str) -> Path:
    if not (path / "startup").is_dir():
        raise MilError(f"{path} does not exist; run `{made_by}` first")
    write_text(path / "local" / "comm_config.json", json.dumps({"allow_adhoc_conns": False, "internal": INSIDE}) + "\n")
    return path


def _words(module: str, kit: Path, config: str, **settings: str) -> list[str]:
    given = [f"{key}={value}" for key, value in {"secure_train": "true", **settings, "config_folder": ""}.items()]
    return [sys.executable, "-u", "-m", module, "-m", str(kit), "-s", config, "--set", *given]


def _environment(threads: int, **more: str) -> dict[str, str]:
    """This environment, with as many threads as the spec says; the engine's children inherit it."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **counts, "HF_HUB_OFFLINE": "1", **more}
