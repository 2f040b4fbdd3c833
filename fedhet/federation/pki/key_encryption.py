"""Encryption of the authority's keys at rest with a passphrase.

    lock.json                 a random password, sealed with the passphrase
    issuing.key, server.pem   PEM, encrypted with that password, so a new passphrase atomically replaces one file
    root.key                  sealed with the passphrase itself, because it is stored elsewhere, without the others

Sealing derives a key with scrypt and encrypts with AES-256-GCM. PEM encryption with the passphrase would be weak:
OpenSSL derives its key with 2048 hash iterations.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import b64, unb64

COST = 17
"""Binary logarithm of scrypt's n: 128 MiB and some tenths of a second per attempt."""
MAX_COST = 22
MIN_CHARACTERS = 8
"""Shortest passphrase, in characters."""
DOMAIN = b"fedhet.sealed.v1"


@dataclass
class Lock:
    """The password that encrypts a folder's keys. `ask` is called for the passphrase once, when a key is first
    needed."""

    folder: Path
    ask: Callable[[], str] | None = None
    _password: str = ""

    def __repr__(self) -> str:
        return f"Lock({self.folder})"

    @property
    def exists(self) -> bool:
        """Whether the folder's keys are encrypted."""
        return self._file.exists()

    @property
    def password(self) -> str:
        """The password of the PEM files; "" if they are not encrypted. Raises EnrollError E322, E323 or E324."""
        if not self._password and self.exists:
            if self.ask is None:
                raise EnrollError("E322", str(self.folder))
            self.open(self.ask())
        return self._password

    def open(self, passphrase: str) -> None:
        """Decrypt the password and keep it in memory. Raises EnrollError E323 or E324."""
        with private_files.sound(self._file):
            self._password = unseal(private_files.read_private(self._file), passphrase).decode()

    def write(self, passphrase: str) -> None:
        """Create lock.json, or seal its password with another passphrase. Raises EnrollError E323 for a short one."""
        password = self.password or secrets.token_hex(32)
        private_files.write_file(self._file, seal(password.encode(), passphrase))
        self._password = password

    @property
    def _file(self) -> Path:
        return self.folder / "lock.json"


def check(passphrase: str) -> None:
    """Raises EnrollError E323 for a passphrase that is too short."""
    if len(passphrase) < MIN_CHARACTERS:
        raise EnrollError("E323", f"it must have at least {MIN_CHARACTERS} characters")


def seal(secret: bytes, passphrase: str) -> bytes:
    """Encrypt with a passphrase. Raises EnrollError E323 for one that is too short."""
    check(passphrase)
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    box = AESGCM(_key(passphrase, salt, COST)).encrypt(nonce, secret, DOMAIN)
    fields = {"sealed": 1, "cost": COST, "salt": b64(salt), "nonce": b64(nonce), "box": b64(box)}
    return json.dumps(fields, indent=1).encode() + b"\n"


def is_sealed(data: bytes) -> bool:
    """Whether `seal` made this (PEM begins otherwise)."""
    return data.lstrip()[:1] == b"{"


def unseal(data: bytes, passphrase: str) -> bytes:
    """Decrypt what `seal` made. Raises EnrollError E323 for a wrong passphrase or altered data, E306 for another
    format."""
    try:
        fields = json.loads(data)
        cost, salt, nonce, box = int(fields["cost"]), *(unb64(fields[name]) for name in ("salt", "nonce", "box"))
        if fields["sealed"] != 1 or not 1 <= cost <= MAX_COST:
            raise ValueError(f"version {fields['sealed']}, cost {cost}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnrollError("E306", f"a sealed key is damaged: {error!r}"[:160]) from None
    try:
        return AESGCM(_key(passphrase, salt, cost)).decrypt(nonce, box, DOMAIN)
    except (InvalidTag, ValueError):
        raise EnrollError("E323") from None


def _key(passphrase: str, salt: bytes, cost: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << cost, r=8, p=1).derive(passphrase.encode())
