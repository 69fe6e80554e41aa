"""Keys and certificates of a deployment: its own authority, the server's certificate, and a key for each node.

The authority and the server have keys on the curve P-256, which every TLS stack knows; nodes have P-384 keys in
OpenSSH's format, as Flower's ``--auth-supernode-private-key`` and ``flwr supernode register`` read them. Certificates
follow RFC 5280: the authority may sign certificates and nothing else, the server's may serve TLS and nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import MissingExtraError, RunError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise MissingExtraError("making certificates and keys", "flower") from error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

__all__ = ["expiry", "new_authority_and_server", "new_node", "renewed"]

_PEM, _OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


def new_authority_and_server(hosts: Sequence[str], days: int) -> dict[str, bytes]:
    """Return ``ca.key``, ``ca.pem``, ``server.key`` and ``server.pem``, each as PEM.

    Args:
        hosts: names and addresses that the server's certificate is for.
        days: how long both certificates are valid.
    """
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root, leaf = _certificates(authority, server.public_key(), hosts, days)
    return {
        "ca.key": _private(authority, serialization.PrivateFormat.PKCS8),
        "ca.pem": root.public_bytes(_PEM),
        "server.key": _private(server, serialization.PrivateFormat.PKCS8),
        "server.pem": leaf.public_bytes(_PEM),
    }


def new_node() -> dict[str, bytes]:
    """Return ``node.key`` and ``node.pub`` in OpenSSH's format."""
    node = ec.generate_private_key(ec.SECP384R1())
    public = node.public_key().public_bytes(_OPENSSH, serialization.PublicFormat.OpenSSH)
    return {"node.key": _private(node, serialization.PrivateFormat.OpenSSH), "node.pub": public + b"\n"}


def renewed(ca_key: bytes, ca_pem: bytes, server_pem: bytes, hosts: Sequence[str], days: int) -> dict[str, bytes]:
    """Return ``ca.pem`` and ``server.pem`` for another while, of the same keys.

    The keys stay, so that old and new files work together in any mixture until the old ones expire.

    Args:
        ca_key: the authority's private key, as PEM.
        ca_pem: its certificate as it is now, as PEM.
        server_pem: the server's certificate as it is now, as PEM.
        hosts: names and addresses that the server's new certificate is for.
        days: how long the new certificates are valid.

    Raises:
        RunError: a file is damaged, or the key is another authority's.
    """
    try:
        authority = serialization.load_pem_private_key(ca_key, None)
        root, server = (x509.load_pem_x509_certificate(pem) for pem in (ca_pem, server_pem))
        known, public = root.public_key(), server.public_key()
    except (TypeError, ValueError) as error:
        raise RunError(f"ca.key, ca.pem or server.pem is damaged ({error}): bring it back from a backup") from error
    if not isinstance(authority, ec.EllipticCurvePrivateKey) or authority.public_key() != known:
        raise RunError("ca.key and ca.pem are not of one authority: bring back the ca.key that belongs to ca.pem")
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise RunError("server.pem has no key on an elliptic curve: it was not made by fedsparsify deploy")
    new_root, leaf = _certificates(authority, public, hosts, days)
    return {"ca.pem": new_root.public_bytes(_PEM), "server.pem": leaf.public_bytes(_PEM)}


def expiry(certificate: bytes) -> datetime.datetime:
    """Return when a certificate ends, in UTC.

    Args:
        certificate: as PEM.

    Raises:
        RunError: it is damaged.
    """
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError as error:
        raise RunError(f"a certificate is damaged ({error}): bring it back from a backup") from error


def _private(key: EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(_PEM, form, serialization.NoEncryption())


def _certificates(
    authority: EllipticCurvePrivateKey, server: EllipticCurvePublicKey, hosts: Sequence[str], days: int
) -> tuple[x509.Certificate, x509.Certificate]:
    """Return the authority's certificate and the server's, which end in the same second."""
    begin = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(minutes=5)  # clocks differ
    end = begin + datetime.timedelta(days=days)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: EllipticCurvePublicKey, *, signs: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(_AUTHORITY))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=signs, path_length=0 if signs else None), critical=True)
            .add_extension(_usage(signs=signs), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            # By the key alone: a certificate that names its issuer's serial number dies with that certificate.
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )

    root = builder(_AUTHORITY, authority.public_key(), signs=True)
    leaf = (
        builder("SuperLink", server, signs=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
    )
    return root.sign(authority, hashes.SHA256()), leaf.sign(authority, hashes.SHA256())


_AUTHORITY = "FedSparsify deployment"


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
