"""Invitation tokens: one line that lets its bearer enrol one device. The server stores only a hash of its secret.

    fh1.<host:port>.<SHA-256 of the root certificate>.<id>.<secret>.<checksum>

With the root's hash a device authenticates the server before it sends the secret. The secret has 256 random bits, so
the plain hash that the server stores cannot be inverted by search.
"""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import b32encode
from dataclasses import dataclass
from hashlib import sha256

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import digest
from fedhet.system import network_port

PREFIX = "fh1."
MAX_TRIES = 5
"""Wrong secrets after which a token is locked."""
_FORM = re.compile(r"fh1\.(?P<endpoint>[^\s/@]+:\d{1,5})\.(?P<root>[0-9a-f]{64})\.(?P<id>[0-9a-f]{16})"
                   r"\.(?P<secret>[a-z2-7]{52})\.(?P<sum>[0-9a-f]{8})")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation. `repr` does not show the secret."""

    endpoint: str
    root: str
    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.id} for {self.endpoint})"

    @classmethod
    def new(cls, endpoint: str, root: str) -> Token:
        """A fresh token for a server address "host:port" and the hexadecimal SHA-256 of its root certificate."""
        secret = b32encode(secrets.token_bytes(32)).decode("ascii").rstrip("=").lower()
        return cls(endpoint, root, secrets.token_hex(8), secret)

    @property
    def line(self) -> str:
        """The token as text."""
        body = f"{PREFIX}{self.endpoint}.{self.root}.{self.id}.{self.secret}"
        return f"{body}.{_checksum(body)}"

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"https://{self.endpoint}"

    @property
    def hash(self) -> bytes:
        """The hash that the server stores."""
        return hashed(self.id, self.secret)

    @classmethod
    def parse(cls, line: str) -> Token:
        """Parse a token, or the complete line that `fedhet enroll invite` prints.

        Raises EnrollError E108, whose message does not contain the text.
        """
        text = line.strip().removeprefix("fedhet join ").strip()
        found = _FORM.fullmatch(text)
        if found is None:
            raise EnrollError("E108", f"{len(text)} characters that are not of the form fh1.address.hash.id.secret.sum")
        if not hmac.compare_digest(_checksum(text.rsplit(".", 1)[0]), found["sum"]):
            raise EnrollError("E108", "its checksum does not match: a character is missing or wrong")
        try:
            network_port.endpoint(found["endpoint"])
        except ValueError as error:
            raise EnrollError("E108", f"its address: {error}") from None
        return cls(found["endpoint"], found["root"], found["id"], found["secret"])


def hashed(token_id: str, secret: str) -> bytes:
    """The hash under which a secret is stored."""
    return digest("fedhet.token.v1", token_id.encode(), secret.encode())


def same(stored: bytes, token_id: str, secret: str) -> bool:
    """Whether a stored hash is that of this secret, compared in constant time."""
    return hmac.compare_digest(stored, hashed(token_id, secret))


def _checksum(body: str) -> str:
    return sha256(body.encode()).hexdigest()[:8]
