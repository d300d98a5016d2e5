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
        """Disable the site before FLARE judges its message, or enable it again where it has a new key."""
        if event_type not in {EventType.CLIENT_REGISTER_RECEIVED, EventType.CLIENT_HEARTBEAT_RECEIVED}:
            return
        peer, engine = fl_ctx.get_peer_context(), fl_ctx.get_engine()
        site = str(peer.get_identity_name()) if peer is not None else ""
        revoked = site in self._revoked()
        if engine is not None and site and self.disabled.get(site) is not revoked:
            (engine.disable_clients if revoked else engine.enable_clients)([site])  # type: ignore[attr-defined]
            self.disabled[site] = revoked

    def _revoked(self) -> dict[str, str]:
        spec = read_party(ServerSpec, Path(self.spec_file))
        if not (Path(spec.workspace) / NAME).exists():
            return {}
        return revoked_of(revoked_sites(Path(spec.workspace)), read_federation(spec.federation))
