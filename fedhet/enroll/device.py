"""A device's state folder, and what it asks of its server once it has a certificate.

identity.key node.key node.pub   its keys           client.pem      certificate chain and its key, in one file
root.pem                         whom it trusts     client.json     where it belongs, what data it has
pending.key pending.csr          while it waits     profile.json    its last signed claim
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.enroll import certificates, files, identity, seal
from fedhet.enroll.certificates import Leaf
from fedhet.enroll.errors import EnrollError
from fedhet.enroll.identity import Identity
from fedhet.enroll.link import Link


@dataclass(frozen=True, slots=True)
class Device:
    """The state folder of one client."""

    folder: Path
    clock: Callable[[], float] = time.time

    @property
    def about(self) -> dict[str, Any]:
        """Endpoint, name, number, state and data declaration. Raises EnrollError E316 if the device never joined."""
        if not (self.folder / "client.json").exists():
            raise EnrollError("E316", f"nothing is in {self.folder}")
        return dict(json.loads(files.read_private(self.folder / "client.json")))

    @property
    def identity(self) -> Identity:
        """Its keys. Raises EnrollError E316 if there are none."""
        if not (self.folder / "identity.key").exists():
            raise EnrollError("E316", f"nothing is in {self.folder}")
        return Identity.load(self.folder)

    @property
    def url(self) -> str:
        """Where its server listens."""
        return f"https://{self.about['endpoint']}"

    def note(self, **changes: Any) -> None:
        """Change client.json."""
        before = self.about if (self.folder / "client.json").exists() else {}
        files.write_file(
            self.folder / "client.json", json.dumps({**before, **changes}, indent=1, sort_keys=True) + "\n"
        )

    def link(self) -> Link:
        """A connection that trusts the federation's root alone."""
        return Link(self.url, files.read_private(self.folder / "root.pem"))

    # Certificate

    def request(self) -> bytes:
        """The request that waits for an answer; made, with a new key, if there is none."""
        if not (self.folder / "pending.csr").exists():
            key = identity.new_tls_key()
            files.write_file(self.folder / "pending.key", identity.pem(key))
            files.write_file(self.folder / "pending.csr", certificates.request(key, self.identity.node_id))
        return files.read_private(self.folder / "pending.csr")

    def accept(self, chain: bytes) -> Leaf:
        """Take a certificate for the waiting request. Raises EnrollError E311 if it is not for this device's key."""
        key = identity.load_ec_key(files.read_private(self.folder / "pending.key"))
        loaded = x509.load_pem_x509_certificates(chain)
        root = x509.load_pem_x509_certificate(files.read_private(self.folder / "root.pem"))
        for child, parent in zip(loaded, [*loaded[1:], root], strict=True):
            if not certificates.issued_by(child, parent):
                raise EnrollError("E311", "the certificate does not lead to the root")
        leaf = certificates.read_client(loaded[0], [loaded[1] if len(loaded) > 1 else root])
        if leaf.node != self.identity.node_id or loaded[0].public_key() != key.public_key():
            raise EnrollError("E311", "the certificate is not for this device")
        files.write_file(self.folder / "client.pem", certificates.text(loaded) + identity.pem(key))
        for name in ("pending.csr", "pending.key"):
            (self.folder / name).unlink()
        return leaf

    def leaf(self) -> Leaf:
        """What its certificate says. Raises EnrollError E316 or E105 if there is none."""
        if not (self.folder / "client.pem").exists():
            raise EnrollError("E105", f"{self.about.get('name') or 'this device'}; ask again: fedhet client poll")
        return certificates.describe(self._certificate(), self.identity.node_id)

    def renew(self) -> Leaf:
        """A new certificate for a new key. Raises what the server refuses with."""
        body = seal.sign_body(self.identity, "renew", {"csr": self.request().decode()}, self.clock())
        return self.accept(str(self.ask("renew", body)["chain"]).encode())

    # Asking

    def ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A sealed request to /v1/enroll/<what>."""
        path, content = f"/v1/enroll/{what}", json.dumps(body or {}).encode()
        headers = self.sealed("POST", path, content)
        with self.link() as link:
            return link.call("POST", path, content, headers)

    def sealed(self, method: str, path: str, body: bytes) -> dict[str, str]:
        """The headers that make a request this client's. Raises EnrollError E316 or E105 if it has no certificate."""
        if not (self.folder / "client.pem").exists():
            raise EnrollError("E105", f"{self.about.get('name') or 'this device'}; ask again: fedhet client poll")
        key = identity.load_ec_key(files.read_private(self.folder / "client.pem"))
        return seal.seal(key, self._certificate().public_bytes(Encoding.DER), method, path, body, self.clock())

    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(files.read_private(self.folder / "client.pem"))[0]
