"""Makes a keystore for SROS 2: one authority, and for every enclave of a policy keys, a
certificate and signed permissions.

The folder is laid out as `ros2 security` does, so that ROS_SECURITY_KEYSTORE and `ros2 security`
understand it. Sources: sros2 (keystore/_keystore.py, _enclave.py, _utilities.py) and OMG
DDS-Security 1.1, §9.3.1.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_oft_ros.security.policy import MAX_DOMAIN_ID, Access, governance, permissions

AUTHORITY = "vla_oft_ros CA"
CLOCK_SLACK = timedelta(days=1)
"""Keys are valid from so long ago, for robots whose clock lags behind (as sros2 has it)."""
MAX_DAYS = 3650
"""What sros2 gives its own keys."""
_ROLES = ("identity_ca", "permissions_ca")
"""One authority plays both, as with sros2; DDS looks for them under these names."""


def make_keystore(
    directory: Path,
    enclaves: Mapping[str, Access],
    *,
    domain_id: int,
    valid_days: int,
    now: datetime,
) -> None:
    """Writes a keystore; whole or not at all.

    Args:
        directory: Folder to make; must not exist, or be empty.
        enclaves: From `read_policy`.
        domain_id: ROS_DOMAIN_ID of the robot: elsewhere the keys are good for nothing.
        valid_days: Until keys and permissions expire, 1 … 3650.
        now: Present time, with its time zone.

    Raises:
        ValueError: if a number is out of range.
        FileExistsError: if there is something in the folder already.
        ImportError: if the extra `security` is not installed.
        OSError: if it cannot be written.
    """
    for name, value, low, high in (
        ("domain id", domain_id, 0, MAX_DOMAIN_ID),
        ("days", valid_days, 1, MAX_DAYS),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low} … {high}; got {value}")
    now = now.astimezone(timezone.utc)
    authority = _Authority(now - CLOCK_SLACK, now + timedelta(days=valid_days))
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise FileExistsError(
            f"{directory}: expected a new folder; there is something already. Keys are never "
            "overwritten: move them away, or choose another folder"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write(made, authority, enclaves, domain_id)
        made.chmod(0o755)
        if directory.is_dir():
            directory.rmdir()
        made.rename(directory)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write(
    folder: Path, authority: _Authority, enclaves: Mapping[str, Access], domain_id: int
) -> None:
    public, private, all_enclaves = (folder / n for n in ("public", "private", "enclaves"))
    public.mkdir()
    private.mkdir(mode=0o700)
    all_enclaves.mkdir()
    (public / "ca.cert.pem").write_bytes(authority.certificate)
    _write_secret(private / "ca.key.pem", authority.key)
    for role in _ROLES:
        (public / f"{role}.cert.pem").symlink_to("ca.cert.pem")
        (private / f"{role}.key.pem").symlink_to("ca.key.pem")
    _write_signed(all_enclaves / "governance", governance(domain_id), authority)
    for name, access in enclaves.items():
        own = all_enclaves / name.lstrip("/")
        own.mkdir(parents=True)
        key, certificate = authority.identity(name)
        _write_secret(own / "key.pem", key)
        (own / "cert.pem").write_bytes(certificate)
        document = permissions(name, access, domain_id, authority.not_before, authority.not_after)
        _write_signed(own / "permissions", document, authority)
        for role in _ROLES:
            target = public / f"{role}.cert.pem"
            (own / f"{role}.cert.pem").symlink_to(os.path.relpath(target, own))
        (own / "governance.p7s").symlink_to(os.path.relpath(all_enclaves / "governance.p7s", own))


def _write_secret(path: Path, data: bytes) -> None:
    """Readable for nobody else from the first moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _write_signed(stem: Path, document: bytes, authority: _Authority) -> None:
    """The document for people, and signed for the middleware."""
    stem.with_suffix(".xml").write_bytes(document)
    stem.with_suffix(".p7s").write_bytes(authority.signed(document))


class _Authority:
    """A certificate authority with a new key.

    Args:
        not_before: UTC, of everything that it certifies.
        not_after: UTC.
    """

    def __init__(self, not_before: datetime, not_after: datetime) -> None:
        self.not_before, self.not_after = not_before, not_after
        self._key = _module("hazmat.primitives.asymmetric.ec").generate_private_key(_curve())
        self._certificate = self._certify(AUTHORITY, self._key.public_key(), is_authority=True)
        self.key, self.certificate = _key_bytes(self._key), _pem(self._certificate)

    def identity(self, name: str) -> tuple[bytes, bytes]:
        """A new private key and its certificate, both PEM."""
        key = _module("hazmat.primitives.asymmetric.ec").generate_private_key(_curve())
        return _key_bytes(key), _pem(self._certify(name, key.public_key(), is_authority=False))

    def signed(self, document: bytes) -> bytes:
        """S/MIME: the document as plain text, its PKCS#7 signature behind (DDS-Security,
        §9.4.1.3).
        """
        pkcs7 = _module("hazmat.primitives.serialization.pkcs7")
        builder = pkcs7.PKCS7SignatureBuilder().set_data(document)
        builder = builder.add_signer(self._certificate, self._key, _sha256())
        options = [pkcs7.PKCS7Options.Text, pkcs7.PKCS7Options.DetachedSignature]
        encoding = _module("hazmat.primitives.serialization").Encoding.SMIME
        return bytes(builder.sign(encoding, options))

    def _certify(self, name: str, public_key: Any, *, is_authority: bool) -> Any:
        x509 = _module("x509")

        def named(text: str) -> Any:
            return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text)])

        limits = x509.BasicConstraints(ca=is_authority, path_length=1 if is_authority else None)
        builder = x509.CertificateBuilder().subject_name(named(name)).public_key(public_key)
        builder = builder.issuer_name(named(AUTHORITY)).add_extension(limits, is_authority)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(self.not_before).not_valid_after(self.not_after)
        return builder.sign(self._key, _sha256())


def _curve() -> Any:
    """prime256v1 (DDS-Security, §9.3.1.1)."""
    return _module("hazmat.primitives.asymmetric.ec").SECP256R1()


def _sha256() -> Any:
    return _module("hazmat.primitives.hashes").SHA256()


def _pem(certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(_module("hazmat.primitives.serialization").Encoding.PEM))


def _key_bytes(key: Any) -> bytes:
    """PKCS#8 without a password: nodes start without a person."""
    form = _module("hazmat.primitives.serialization")
    nothing = form.NoEncryption()
    return bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, nothing))


def _module(name: str) -> Any:
    try:
        return import_module(f"cryptography.{name}")
    except ImportError as error:
        raise ImportError(
            f"cryptography is needed to make keys and cannot be imported ({error}); install it "
            "with pip install 'vla_oft_ros[security]', or python3-cryptography of the system"
        ) from None
