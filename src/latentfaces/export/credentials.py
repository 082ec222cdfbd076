"""Content Credentials: C2PA manifests, signed with a certificate of the user's. Only this file imports c2pa."""

import io
import json
import mimetypes
from pathlib import Path
from typing import Any

from latentfaces import __version__
from latentfaces.errors import UserError, missing_extra, one_line, reason
from latentfaces.files import atomic_write
from latentfaces.marks import NEWSCODES, Source

FORMATS = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}


class Credentials:
    """Signer of files with a certificate.

    Args:
        certificate: PEM file of the certificate, followed by those of its issuers.
        key: PEM file of its private key, without a password.

    Raises:
        UserError: c2pa-python is missing, or the files do not fit.
    """

    def __init__(self, certificate: str | Path, key: str | Path) -> None:
        try:
            import c2pa
        except ImportError:
            raise missing_extra("mark=c2pa", "c2pa") from None
        self.c2pa = c2pa
        try:
            chain, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}). Give a PEM file.") from None
        info = c2pa.C2paSignerInfo(algorithm_of(secret, key), chain, secret, None)
        # Its thumbnail would be larger than the image.
        settings = c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
        self.context = c2pa.Context(settings)
        try:
            self.signer = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise UserError(f"{certificate} and {key} cannot sign ({reason(error)}). Give another pair.") from None

    def sign(self, path: Path, source: Source) -> None:
        """Add a signed manifest with the source type to a file, in place.

        Raises:
            UserError: the certificate is rejected, as one that has expired.
        """
        action = {"action": "c2pa.created", "digitalSourceType": NEWSCODES + source}
        manifest = {
            "claim_generator_info": [{"name": "latentfaces", "version": __version__}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        try:
            builder = self.c2pa.Builder(json.dumps(manifest), self.context)
            builder.sign(self.signer, FORMATS[path.suffix], io.BytesIO(path.read_bytes()), signed)
        except self.c2pa.C2paError as error:
            raise UserError(f"{path} cannot be signed ({reason(error)}). Check mark_certificate.") from None
        with atomic_write(path) as file:
            file.write(signed.getvalue())


def algorithm_of(secret: bytes, name: str | Path) -> bytes:
    """Return the signature algorithm of a private key in a PEM file."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret, None)
    except (TypeError, ValueError) as error:
        raise UserError(f"mark_key={name} is not a private key without a password ({reason(error)}).") from None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {384: b"es384", 521: b"es512"}.get(key.key_size, b"es256")
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise UserError(f"mark_key={name} is of a kind that C2PA does not sign with. Use EC, RSA or Ed25519.")


def read_credentials(path: Path) -> str:
    """Return one line about the Content Credentials of a file, which may be untrusted."""
    try:
        import c2pa
    except ImportError:
        return f"unknown. {missing_extra('Reading them', 'c2pa')}"
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    try:
        # A manifest elsewhere is not downloaded: the file may be untrusted.
        settings = c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False}})
        with path.open("rb") as file, c2pa.Reader(kind, file, context=c2pa.Context(settings)) as reader:
            store: dict[str, Any] = json.loads(reader.json())
    except c2pa.C2paError as error:
        absent = str(error).startswith(("ManifestNotFound", "NotSupported"))
        return "none" if absent else f"unreadable ({reason(error)})"
    signature = store["manifests"][store["active_manifest"]].get("signature_info", {})
    problems = [problem["code"] for problem in store.get("validation_status", [])]
    signer = ", ".join(one_line(signature[key])[:160] for key in ("common_name", "issuer") if key in signature)
    return f"{store.get('validation_state')}, signed by {signer or 'nobody'}" + "".join(f"; {p}" for p in problems)
