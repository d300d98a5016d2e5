"""FLARE's server turns revoked sites away: no registration, no sign of life is taken. A certificate alone opens nothing then.

FLARE's server can disable a site by name (2.9); which names are disabled follows here from the list that the authority signed.
"""

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from mil.hospital.config import read_federation
from mil.hospital.parties import ServerSpec, read_party
from mil.hospital.revocation import NAME, revoked_of, revoked_sites


class RevokedSites(FLComponent):
    """Looks at the list whenever a site registers or gives a sign of life."""

    def __init__(self, own_file: str) -> None:
        """`own_file`: path of `server.yaml`, as kits name it."""
        super().__init__()
        self.spec_file, self.disabled = own_file, dict[str, bool]()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Disable revoked sites before FLARE judges a message, and enable those again that have a new key.

        All of them each time: whose message it is, nothing but the message has said so far.
        """
        if event_type not in {EventType.CLIENT_REGISTER_RECEIVED, EventType.CLIENT_HEARTBEAT_RECEIVED}:
            return
        spec, engine = read_party(ServerSpec, Path(self.spec_file)), fl_ctx.get_engine()
        protocol, workspace = read_federation(spec.federation), Path(spec.workspace)
        revoked = revoked_of(revoked_sites(workspace), protocol) if (workspace / NAME).exists() else {}
        for site in protocol.sites if engine is not None else ():
            if self.disabled.get(site) is not (site in revoked):
                (engine.disable_clients if site in revoked else engine.enable_clients)([site])  # type: ignore[union-attr]
                self.disabled[site] = site in revoked
