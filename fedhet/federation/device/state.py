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
"""In the state folder: held while its keys or its certificate change."""
CHANGE_S = 60.0
"""Seconds that one who changes them waits for another who does."""


@dataclass(frozen=True, slots=True)
class Device(DeviceFiles):
    """The state folder of one client."""

    def link(self) -> Link:
        """A connection that trusts the federation's root alone, and no issuing key that it revoked."""
        return Link(self.url, trusting(self.trust.file))

    # Certificate

    def renew(self) -> Leaf:
        """A new certificate for a new key. Raises what the server refuses with."""
        with self._changing():
            body = signed_requests.sign_body(self.identity, "renew", {"csr": self.request().decode()}, self.clock())
            return self.accept(str(self.ask("renew", body)["chain"]).encode())

    def rotate(self) -> Leaf:
        """New keys of every kind; those it had are worth nothing afterwards. Raises what the server refuses with.

        Safe to repeat after any interruption: if the server knows the new keys already, they are used.
        """
        with self._changing():
            return self._rotate()

    def finish_rotation(self) -> None:
        """Rotate if a change of keys was begun and nobody is at it; raises what `rotate` raises."""
        with self._changing():
            if (self.folder / "next").exists():
                self._rotate()

    def _changing(self) -> AbstractContextManager[None]:
        """One process at a time changes keys and certificate: a command does while `fedhet client run` works on."""
        _ = self.about  # a folder without a client is named as one
        return alone(self.folder / LOCK, "changes its keys", CHANGE_S)

    def _rotate(self) -> Leaf:
        self.settle_keys()
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
            if error.code != "E208":  # the old keys are not known any more: an answer was lost on its way
                raise
            poll = json.dumps(signed_requests.sign_body(new, "poll", {"node": new.node_id}, self.clock())).encode()
            with self.link() as link:
                answer = link.call("POST", "/v1/enroll/poll", poll)
        self.learn(answer)
        after.trust.write(self.trust.roots())
        leaf = after.accept(str(answer["chain"]).encode())  # client.pem is there: from now on there is no way back
        self.settle_keys()
        return leaf

    def settle_keys(self) -> None:
        """Finish a change of keys that was interrupted after the server had agreed to it."""
        after = self.folder / "next"
        if not (after / "client.pem").exists():
            return
        for name in ("node.pub", "node.key", "identity.key", "client.pem"):
            private_files.write_file(self.folder / name, private_files.read_private(after / name))
        self.note(node=self.identity.node_id)
        shutil.rmtree(after)

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Trust the root that the server has now, if one that is trusted already signed it, and believe the issuing
        keys no more that a root has revoked. The first operator key that is told is believed, as the server's answer
        is. Raises EnrollError E103 or E311."""
        self._learn_root(answer)
        if "revoked" in answer:
            self.trust.learn(str(answer["revoked"]).encode())
        if "operator" in answer:
            self.learn_operator(operator_key.read(answer["operator"]), first=True)

    def learn_operator(self, line: Sequence[Succession], *, first: bool = False) -> None:
        """Believe the newest operator key of a line to which the known one, or a root, leads; `first` says that one may
        be believed if none is known. A line that leads nowhere changes nothing."""
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
        raise EnrollError("E103", "it shows a new root that no trusted one has signed")

    # Asking

    def ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A sealed request to /v1/enroll/<what>."""
        path, content = f"/v1/enroll/{what}", json.dumps(body or {}).encode()
        headers = self.sealed("POST", path, content)
        with self.link() as link:
            answer = link.call("POST", path, content, headers)
        self.learn(answer)
        return answer

    def sealed(self, method: str, path: str, body: bytes) -> dict[str, str]:
        """The headers that make a request this client's. Raises EnrollError E316 or E105 if it has no certificate."""
        if not (self.folder / "client.pem").exists():
            raise EnrollError("E105", f"{self.about.get('name') or 'this device'}; ask again: fedhet client poll")
        key = identity.load_ec_key(private_files.read_private(self.folder / "client.pem"))
        return signed_requests.seal(
            key, self._certificate().public_bytes(Encoding.DER), method, path, body, self.clock()
        )
