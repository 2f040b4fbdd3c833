"""The authority's keys at rest: encrypted, and the passphrase that opens them.

    lock.json                 a random password, sealed with the passphrase
    issuing.key, server.pem   PEM, encrypted with that password: a new passphrase replaces one file, at once
    root.key                  sealed with the passphrase itself, for it lies elsewhere, without the others

Sealed is what scrypt and AES-256-GCM make of it. A passphrase alone would not do for PEM: OpenSSL hashes it 2048 times,
which takes a thief no time.
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
"""Binary logarithm of scrypt's n: 128 MiB, and some tenths of a second a try."""
MOST_COST = 22
LEAST = 8
"""Characters of a passphrase."""
DOMAIN = b"fedhet.sealed.v1"


@dataclass
class Lock:
    """What a folder's keys are encrypted with. `ask` is called for the passphrase, once, when a key is first needed."""

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
        """What PEM files are encrypted with; "" where nothing is. Raises EnrollError E322 or E323."""
        if not self._password and self.exists:
            if self.ask is None:
                raise EnrollError("E322", str(self.folder))
            self.open(self.ask())
        return self._password

    def open(self, passphrase: str) -> None:
        """Keep the password in memory. Raises EnrollError E323."""
        with private_files.sound(self._file):
            self._password = unseal(private_files.read_private(self._file), passphrase).decode()

    def write(self, passphrase: str) -> None:
        """Make a lock, or give the one that is open another passphrase. Raises EnrollError E323 for a short one."""
        password = self.password or secrets.token_hex(32)
        private_files.write_file(self._file, seal(password.encode(), passphrase))
        self._password = password

    @property
    def _file(self) -> Path:
        return self.folder / "lock.json"


def check(passphrase: str) -> None:
    """Raises EnrollError E323 for a passphrase that is too short."""
    if len(passphrase) < LEAST:
        raise EnrollError("E323", f"it must have at least {LEAST} characters")


def seal(secret: bytes, passphrase: str) -> bytes:
    """Encrypt with a passphrase. Raises EnrollError E323 for one that is too short."""
    check(passphrase)
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    box = AESGCM(_key(passphrase, salt, COST)).encrypt(nonce, secret, DOMAIN)
    told = {"sealed": 1, "cost": COST, "salt": b64(salt), "nonce": b64(nonce), "box": b64(box)}
    return json.dumps(told, indent=1).encode() + b"\n"


def is_sealed(data: bytes) -> bool:
    """Whether this is what `seal` makes."""
    return data.lstrip()[:1] == b"{"


def unseal(data: bytes, passphrase: str) -> bytes:
    """What was sealed. Raises EnrollError E323 for another passphrase or altered data, E306 for anything else."""
    try:
        told = json.loads(data)
        cost, salt, nonce, box = int(told["cost"]), *(unb64(told[name]) for name in ("salt", "nonce", "box"))
        if told["sealed"] != 1 or not 1 <= cost <= MOST_COST:
            raise ValueError(f"version {told['sealed']}, cost {cost}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnrollError("E306", f"a sealed key is damaged: {error!r}"[:160]) from None
    try:
        return AESGCM(_key(passphrase, salt, cost)).decrypt(nonce, box, DOMAIN)
    except (InvalidTag, ValueError):
        raise EnrollError("E323") from None


def _key(passphrase: str, salt: bytes, cost: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << cost, r=8, p=1).derive(passphrase.encode())
