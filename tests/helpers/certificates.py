"""A certificate to sign with, from an authority of its own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USES = {
    "digital_signature": True,
    **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False),
    **dict.fromkeys(("encipher_only", "decipher_only"), False),
}


def certificate(name: str, issuer: Any = None, signer: Any = None, days: int = 30) -> tuple[Any, Any]:
    """A certificate and its key, signed by the issuer's key, or by its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [(NameOID.ORGANIZATION_NAME, "latentfaces tests"), (NameOID.COMMON_NAME, name)]
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    is_authority, now = issuer is None, datetime.now(UTC)
    builder = x509.CertificateBuilder(
        subject if issuer is None else issuer.subject,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        now - timedelta(days=60),
        now + timedelta(days=days),
    )
    extensions: list[tuple[Any, bool]] = [
        (x509.BasicConstraints(ca=is_authority, path_length=None), True),
        (x509.KeyUsage(**USES, key_cert_sign=is_authority, crl_sign=is_authority), True),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()), False),
    ]
    if not is_authority:
        extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), True))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer or key, hashes.SHA256()), key


def write_pair(folder: Path, days: int = 30) -> tuple[Path, Path]:
    """Write chain.pem and key.pem, valid for some more days."""
    root, root_key = certificate("authority")
    leaf, key = certificate("signer", root, root_key, days)
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(part.public_bytes(Encoding.PEM) for part in (leaf, root)))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain, secret
