"""A site's certificate and key -> what is wrong with them, as a sentence; None where nothing is."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

MINUTE = "%Y-%m-%d %H:%M UTC"


def named(certificate: x509.Certificate, site: str) -> str | None:
    """It must be of this site."""
    name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return None if name == site else f"the certificate is of '{name}', not of '{site}'"


def signed(certificate: x509.Certificate, root: x509.Certificate) -> str | None:
    """It must be signed by the authority `root`."""
    public = root.public_key()
    if not isinstance(public, rsa.RSAPublicKey) or certificate.signature_hash_algorithm is None:
        return "the authority's key is not of the expected kind"
    try:
        public.verify(
            certificate.signature,
            certificate.tbs_certificate_bytes,
            padding.PKCS1v15(),
            certificate.signature_hash_algorithm,
        )
    except InvalidSignature:
        return "the certificate is not signed by the authority beside it"
    return None


def out_of_date(certificate: x509.Certificate) -> str | None:
    """This machine's clock must lie within its dates."""
    first, last, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if now < first:
        return (
            f"the certificate is valid only from {first:{MINUTE}} on, but this machine's clock says {now:{MINUTE}}; set the "
            "clock"
        )
    if now > last:
        return (
            f"the certificate ended on {last:{MINUTE}}, and this machine's clock says {now:{MINUTE}}; where the clock is "
            "right, make the kit again with `mil site join`"
        )
    return None


def private(path: Path) -> str | None:
    """Nobody but its owner may read the file of a key, or the folder that holds it."""
    mode = path.stat().st_mode & 0o777
    return (
        f"others than its owner may read it (mode {mode:o}; chmod {'700' if path.is_dir() else '600'})"
        if mode & 0o077
        else None
    )


def days_to_end(certificate: Path) -> int:
    """Whole days until a certificate ends, by this machine's clock."""
    cert = x509.load_pem_x509_certificate(certificate.read_bytes())
    return (cert.not_valid_after_utc - datetime.now(UTC)).days
