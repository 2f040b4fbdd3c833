"""The files of a device's state folder, read and written without the network.

identity.key node.key node.pub   its keys           client.pem      certificate chain and its key, in one file
root.pem revoked.pem             trust anchors      client.json     endpoint, name, number, state, data declaration,
operator.json                    operator key                       and what the owner lets jobs use
pending.key pending.csr          until approval     profile.json    its last signed claim
next/                            keys that are about to replace these
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates, identity, operator_key
from fedhet.federation.pki.certificates import Leaf
from fedhet.federation.pki.identity import Identity
from fedhet.federation.pki.operator_key import Succession
from fedhet.federation.pki.trust import Trust

OPERATOR = "operator.json"


@dataclass(frozen=True, slots=True)
class DeviceFiles:
    """The state folder of one client, without its server."""

    folder: Path
    clock: Callable[[], float] = time.time

    @property
    def about(self) -> dict[str, Any]:
        """The contents of client.json: endpoint, name, number, state, data declaration, allowed names.

        Raises EnrollError E316 if the device never joined, E324 for a damaged file.
        """
        if not (self.folder / "client.json").exists():
            raise EnrollError("E316", f"nothing is in {self.folder}")
        path = self.folder / "client.json"
        with private_files.sound(path):
            return dict(json.loads(private_files.read_private(path)))

    @property
    def identity(self) -> Identity:
        """The keys. Raises EnrollError E316 if there are none."""
        if not (self.folder / "identity.key").exists():
            raise EnrollError("E316", f"nothing is in {self.folder}")
        return Identity.load(self.folder)

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"https://{self.about['endpoint']}"

    def note(self, **changes: Any) -> None:
        """Change fields of client.json."""
        before = self.about if (self.folder / "client.json").exists() else {}
        private_files.write_file(
            self.folder / "client.json", json.dumps({**before, **changes}, indent=1, sort_keys=True) + "\n"
        )

    @property
    def trust(self) -> Trust:
        """The trust anchors."""
        return Trust(self.folder)

    @property
    def operator(self) -> Succession | None:
        """The operator key that it accepts; None before it has received one."""
        path = self.folder / OPERATOR
        return operator_key.read({"line": [json.loads(private_files.read_private(path))]})[0] if path.exists() else None

    def request(self) -> bytes:
        """The pending certificate request, PEM; created with a new key if there is none."""
        if not (self.folder / "pending.csr").exists():
            key = identity.new_tls_key()
            private_files.write_file(self.folder / "pending.key", identity.pem(key))
            private_files.write_file(self.folder / "pending.csr", certificates.request(key, self.identity.node_id))
        return private_files.read_private(self.folder / "pending.csr")

    def accept(self, chain: bytes) -> Leaf:
        """Store the certificate for the pending request. Raises EnrollError E311 if it is not for this device's key,
        E219 if its issuing key is revoked."""
        key = identity.load_ec_key(private_files.read_private(self.folder / "pending.key"))
        loaded = x509.load_pem_x509_certificates(chain)
        trusted = self.trust.roots()
        for child, parents in zip(loaded, [*([one] for one in loaded[1:]), trusted], strict=True):
            if not any(certificates.issued_by(child, parent) for parent in parents):
                raise EnrollError("E311", "the certificate does not chain to a trusted root")
        leaf = certificates.read_client(loaded[0], [loaded[1]] if len(loaded) > 1 else trusted)
        if leaf.node != self.identity.node_id or loaded[0].public_key() != key.public_key():
            raise EnrollError("E311", "the certificate is not for this device")
        self.trust.check(loaded)
        private_files.write_file(self.folder / "client.pem", certificates.text(loaded) + identity.pem(key))
        for name in ("pending.csr", "pending.key"):
            (self.folder / name).unlink()
        return leaf

    def leaf(self) -> Leaf:
        """The fields of its certificate. Raises EnrollError E316 or E105 if there is none."""
        if not (self.folder / "client.pem").exists():
            raise EnrollError("E105", f"{self.about.get('name') or 'this device'}; ask again: fedhet client poll")
        return certificates.describe(self._certificate(), self.identity.node_id)

    def superseded(self) -> bool:
        """Whether the issuing key of its certificate is revoked."""
        try:
            self.trust.check(x509.load_pem_x509_certificates(private_files.read_private(self.folder / "client.pem")))
        except EnrollError as error:
            if error.code != "E219":
                raise
            return True
        return False

    def _certificate(self) -> x509.Certificate:
        path = self.folder / "client.pem"
        with private_files.sound(path):
            return x509.load_pem_x509_certificates(private_files.read_private(path))[0]
