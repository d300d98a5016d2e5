"""Sites that are no longer trusted: a list that the certificate authority signs, and that the server and the sites check.

`mil server revoke` writes it. The server sends it with the first question of every job; a site keeps the longest list that it was
ever sent, and answers neither as a revoked site nor together with one. What is revoked is the site's key in the protocol (its name,
where there is none): with a new key, and new certificates, the hospital is a member again.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mil.errors import CorruptFile, MilError, nearest
from mil.files import write_bytes
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.parties import ServerSpec
from mil.hospital.payload import Refusal

NAME = "revoked.json"
PADDING = padding.PKCS1v15()


class Revoked(Refusal):
    """A site is on the list."""

    code = "revoked"


def revoke(spec: ServerSpec, site: str) -> Path:
    """Put a site on the list and sign it with the authority's key, which must be in place; the list's file."""
    protocol, workspace = read_federation(spec.federation), Path(spec.workspace)
    if site not in protocol.sites:
        raise MilError(f"{spec.federation}: site '{site}' is not a member; {nearest(site, protocol.sites)}")
    authority = workspace / "authority"
    try:
        key = load_pem_private_key((authority / "rootCA.key").read_bytes(), password=None)
        root = (authority / "rootCA.pem").read_bytes()
    except (OSError, ValueError) as error:
        raise MilError(f"{authority}: the authority's key cannot be read ({error}); put its folder in place") from error
    assert isinstance(key, rsa.RSAPrivateKey)
    path = workspace / NAME
    known = _listed(path.read_bytes(), root, str(path)) if path.exists() else {}
    who = protocol.sites[site].key or site
    body = {**known, who: known.get(who) or datetime.now(UTC).isoformat(timespec="seconds")}
    signature = key.sign(_content(body), PADDING, SHA256()).hex()
    write_bytes(path, json.dumps({"revoked": body, "signature": signature}, indent=1, sort_keys=True).encode() + b"\n")
    return path


def revoked_sites(workspace: Path, sent: bytes = b"") -> dict[str, str]:
    """Revoked keys and since when, by the list in `workspace`; a signed list that was `sent` and is longer replaces it.

    `CorruptFile` for a list that was not signed with it.
    """
    path, root = workspace / NAME, workspace / "kit" / "startup" / "rootCA.pem"
    if not root.exists():  # nobody has certificates, as without an engine
        if path.exists():
            raise CorruptFile(f"{root}: is gone, so that {path} cannot be checked; restore it from the backup")
        return {}
    known = _listed(path.read_bytes(), root.read_bytes(), str(path)) if path.exists() else {}
    if sent:
        longer = _listed(sent, root.read_bytes(), "the list of revoked sites that the server sent")
        if set(longer) > set(known):
            write_bytes(path, sent)
            return longer
    return known


def revoked_of(revoked: dict[str, str], protocol: FederationSpec) -> dict[str, str]:
    """The sites of the protocol that are on the list, and since when."""
    identities = {site: member.key or site for site, member in protocol.sites.items()}
    return {site: revoked[who] for site, who in identities.items() if who in revoked}


def check_none_revoked(revoked: dict[str, str], sites: list[str], where: str) -> None:
    """Raise `Revoked` for the first of `sites` that is among `revoked_of`."""
    for site in sites:
        if site in revoked:
            raise Revoked(f"{where}: site {site} was revoked on {revoked[site]}; with new keys it may join again")


def _listed(content: bytes, root: bytes, where: str) -> dict[str, str]:
    try:
        stated: Any = json.loads(content)
        body, public = stated["revoked"], x509.load_pem_x509_certificate(root).public_key()
        assert isinstance(public, rsa.RSAPublicKey)
        public.verify(bytes.fromhex(stated["signature"]), _content(body), PADDING, SHA256())
    except (ValueError, KeyError, TypeError, InvalidSignature) as error:
        raise CorruptFile(
            f"{where}: is not signed by the certificate authority; nothing is done on its word"
        ) from error
    return dict(body)


def _content(body: dict[str, str]) -> bytes:
    return b"mil revoked|" + json.dumps(body, sort_keys=True).encode()
