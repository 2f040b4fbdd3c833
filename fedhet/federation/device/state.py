"""A device's state folder, and what it asks of its server once it has a certificate.

identity.key node.key node.pub   its keys           client.pem      certificate chain and its key, in one file
root.pem revoked.pem             whom it trusts     client.json     where it belongs, what data it has, what its
operator.json                    whose orders hold                  owner lets jobs use
pending.key pending.csr          while it waits     profile.json    its last signed claim
next/                            keys that are to replace these, while they do
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.exclusive import alone
from fedhet.federation.device.server_connection import Link
from fedhet.federation.device.state_files import OPERATOR, DeviceFiles
from fedhet.federation.pki import certificates, identity, operator_key, signed_requests
from fedhet.federation.pki.canonical_json import b64
from fedhet.federation.pki.certificates import Leaf
from fedhet.federation.pki.identity import ROTATION, Identity
from fedhet.federation.pki.operator_key import Succession
from fedhet.federation.pki.tls import trusting

LOCK = "keys.lock"
"""Lock file in the state folder, locked while keys or certificate change."""
LOCK_WAIT_S = 60.0
"""Seconds to wait for another process that changes them."""


@dataclass(frozen=True, slots=True)
class Device(DeviceFiles):
    """One client: its state folder (see `DeviceFiles`), and requests to its server."""

    def link(self) -> Link:
        """A connection that trusts only the federation's roots, less revoked issuing keys."""
        return Link(self.url, trusting(self.trust.file))

    # Certificate

    def renew(self) -> Leaf:
        """Get a certificate for a new TLS key. Raises the server's EnrollError, E307 or E320."""
        with self._keys_locked():
            body = signed_requests.sign_body(self.identity, "renew", {"csr": self.request().decode()}, self.clock())
            return self.accept(str(self.ask("renew", body)["chain"]).encode())

    def rotate(self) -> Leaf:
        """Replace all keys; the server revokes the old ones. Raises the server's EnrollError, E307 or E320.

        It can be repeated after any interruption: if the server has the new keys already, they are used.
        """
        with self._keys_locked():
            return self._rotate()

    def finish_rotation(self) -> None:
        """Complete an interrupted rotation, if there is one. Raises what `rotate` raises."""
        with self._keys_locked():
            if (self.folder / "next").exists():
                self._rotate()

    def _keys_locked(self) -> AbstractContextManager[None]:
        """Lock keys and certificate: a command may change them while `fedhet client run` is running."""
        _ = self.about  # raises E316 for a folder without a client
        return alone(self.folder / LOCK, "changes its keys", LOCK_WAIT_S)

    def _rotate(self) -> Leaf:
        self.install_new_keys()
        own, _ = self.identity, self.leaf()
        after = Device(self.folder / "next", self.clock)
        if not (after.folder / "identity.key").exists():
            shutil.rmtree(after.folder, ignore_errors=True)
            Identity.create(after.folder)
        after.trust.write(self.trust.roots())
        new = after.identity
        csr = after.request()
        proof = new.sign(ROTATION, own.node_id.encode(), csr)
        keys = {"public": b64(new.public), "flower_public": new.flower_public, "csr": csr.decode(), "proof": b64(proof)}
        try:
            answer = self.ask("rotate", signed_requests.sign_body(own, "rotate", keys, self.clock()))
        except EnrollError as error:
            if error.code != "E208":  # the old keys are gone: an earlier answer was lost
                raise
            poll = json.dumps(signed_requests.sign_body(new, "poll", {"node": new.node_id}, self.clock())).encode()
            with self.link() as link:
                answer = link.call("POST", "/v1/enroll/poll", poll)
        self.learn(answer)
        after.trust.write(self.trust.roots())
        leaf = after.accept(
            str(answer["chain"]).encode()
        )  # client.pem exists: from here on the rotation can only be completed
        self.install_new_keys()
        return leaf

    def install_new_keys(self) -> None:
        """Move the new keys into place, if the server has accepted them."""
        after = self.folder / "next"
        if not (after / "client.pem").exists():
            return
        for name in ("node.pub", "node.key", "identity.key", "client.pem"):
            private_files.write_file(self.folder / name, private_files.read_private(after / name))
        self.note(node=self.identity.node_id)
        shutil.rmtree(after)

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Store what an answer says of the federation's keys: a new root if a trusted one signed it, revoked issuing
        keys, and the operator key (the first one is accepted unverified). Raises EnrollError E103 or E311."""
        self._learn_root(answer)
        if "revoked" in answer:
            self.trust.learn(str(answer["revoked"]).encode())
        if "operator" in answer:
            self.learn_operator(operator_key.read(answer["operator"]), first=True)

    def learn_operator(self, line: Sequence[Succession], *, first: bool = False) -> None:
        """Store the newest operator key of a chain that follows from the known one or from a root; with `first`, also
        if none is known. A chain without such a key changes nothing."""
        known = self.operator
        newest = operator_key.follow(known, line, self.trust.roots()) if known or first else None
        if newest is not None:
            private_files.write_file(self.folder / OPERATOR, json.dumps(asdict(newest), indent=1) + "\n")

    def _learn_root(self, answer: Mapping[str, Any]) -> None:
        if "roots" not in answer:
            return
        new, *crosses = x509.load_pem_x509_certificates(str(answer["roots"]).encode())
        trusted = self.trust.roots()
        if new in trusted:
            return
        key = new.public_key()
        for cross in crosses:
            if cross.public_key() != key:
                break
            if any(certificates.issued_by(cross, known) for known in trusted):
                self.trust.write([new, *trusted])
                return
            above = [c for c in crosses if certificates.issued_by(cross, c)]
            if not above:
                break
            key = above[0].public_key()
        raise EnrollError("E103", "it sent a new root that no trusted root has signed")

    # Asking

    def ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a signed request to /v1/enroll/<what>; returns the answer, after `learn`. Raises EnrollError."""
        path, content = f"/v1/enroll/{what}", json.dumps(body or {}).encode()
        headers = self.sealed("POST", path, content)
        with self.link() as link:
            answer = link.call("POST", path, content, headers)
        self.learn(answer)
        return answer

    def sealed(self, method: str, path: str, body: bytes) -> dict[str, str]:
        """The headers that authenticate a request. Raises EnrollError E316, or E105 if there is no certificate."""
        if not (self.folder / "client.pem").exists():
            raise EnrollError("E105", f"{self.about.get('name') or 'this device'}; ask again: fedhet client poll")
        key = identity.load_ec_key(private_files.read_private(self.folder / "client.pem"))
        return signed_requests.seal(
            key, self._certificate().public_bytes(Encoding.DER), method, path, body, self.clock()
        )
