"""Joining without a path to the operator: a request in a zip file goes one way, a signed answer comes back.

The device signs its request as it would a request by network. The answer is signed by the federation's server key, and
the device believes it only if that key's certificate leads to the root whose hash the operator told it by another way.
"""

from __future__ import annotations

import hmac
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedhet.enroll import admission, canonical, certificates, files, join, rows, seal
from fedhet.enroll.canonical import digest
from fedhet.enroll.certificates import DAY
from fedhet.enroll.device import Device
from fedhet.enroll.errors import EnrollError
from fedhet.enroll.federation import Federation, me
from fedhet.enroll.join import Data

Clock: TypeAlias = Callable[[], float]
DOMAIN = "fedhet.answer.v1"
DAYS = 30.0
"""How old a request may be."""
MOST = 1 << 20
"""Bytes of one file in an archive that are read."""


def request(folder: Path, out: Path, data: Data, *, name: str, measured: Mapping[str, int], clock: Clock) -> Device:
    """Make the keys and write a request. Raises EnrollError E306 if the folder belongs to a client already."""
    device = join.prepare(folder, data, clock=clock)
    body = seal.sign_body(device.identity, "enrol", join.application(device, name=name, measured=measured), clock())
    _write(out, {"request.json": json.dumps(body).encode()})
    return device


def answer(federation: Federation, archive: Path, out: Path, *, name: str = "", device_class: str = "edge") -> str:
    """Approve a request and write the answer; the client's name. Raises what joining by network raises."""
    try:
        body = canonical.parse(_read(archive, "request.json"))
    except ValueError as error:
        raise EnrollError("E115", f"{archive}: {error}"[:160]) from None
    if not isinstance(body, dict):
        raise EnrollError("E115", f"{archive} holds no request")
    applicant, nonces = admission.read_application(federation, body, "offline", DAYS * DAY)
    now = federation.clock()
    known = federation.registry.by_node(applicant.node)
    if known is None:
        name, token = federation.invite(name or applicant.name, device_class)
        with federation.transaction() as session:
            for nonce in nonces:
                rows.fresh(session, applicant.node, nonce, now, 2 * DAYS * DAY)
            row = rows.redeem(session, token.id, token.secret, applicant.public, now)
            if isinstance(row, EnrollError):
                raise row
            rows.apply(session, row, applicant, now)
            federation.note(session, row, me(), "enrol", node=applicant.node, address="offline")
        federation.approve(applicant.node)
    told = admission.standing(federation, federation.registry.client(applicant.node))
    about = federation.authority.about
    reply = canonical.canonical({**told, "endpoint": about.endpoint, "federation": about.federation})
    pair = files.read_private(federation.authority.folder / "server.pem")
    signature = federation.authority.server_key().sign(digest(DOMAIN, reply), ec.ECDSA(hashes.SHA256()))
    crosses = federation.authority.crosses()
    line = [c for c in x509.load_pem_x509_certificates(pair) if c not in crosses]
    chain = certificates.text([*line, federation.authority.root])
    _write(out, {"answer.json": reply, "answer.sig": signature, "chain.pem": chain})
    return str(told["name"])


def accept(device: Device, archive: Path, fingerprint: str) -> dict[str, Any]:
    """Take an answer. Raises EnrollError E103 unless its root has this SHA-256, E311 if it is not for this device."""
    chain = x509.load_pem_x509_certificates(_read(archive, "chain.pem"))
    root, wanted = chain[-1], fingerprint.replace(":", "").lower()
    if not hmac.compare_digest(certificates.fingerprint(root), wanted):
        raise EnrollError("E103", f"expected {wanted[:16]}…, found {certificates.fingerprint(root)[:16]}…")
    reply = _read(archive, "answer.json")
    _check_signature(chain, reply, _read(archive, "answer.sig"), device.clock())
    told = json.loads(reply)
    if told.get("node") != device.identity.node_id:
        raise EnrollError("E311", "the answer is for another device")
    device.trust.check(chain)
    device.trust.write([root])
    device.note(endpoint=told["endpoint"])
    return join.take(device, told)


def _check_signature(chain: list[x509.Certificate], reply: bytes, signature: bytes, now: float) -> None:
    for child, parent in pairwise(chain):
        if not certificates.issued_by(child, parent) or now > child.not_valid_after_utc.timestamp():
            raise EnrollError("E103", "the answer's signer does not lead to the root")
    purposes = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    key = chain[0].public_key()
    serves = len(chain) > 1 and ExtendedKeyUsageOID.SERVER_AUTH in purposes
    if not serves or not isinstance(key, ec.EllipticCurvePublicKey):
        raise EnrollError("E103", "the answer was not signed by the federation's server")
    try:
        key.verify(signature, digest(DOMAIN, reply), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EnrollError("E103", "the answer's signature is wrong") from None


def _write(path: Path, members: Mapping[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    files.write_file(path, buffer.getvalue())


def _read(path: Path, name: str) -> bytes:
    """One member, by its exact name and never more than MOST bytes of it. Raises EnrollError E115 or E317."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            content = member.read(MOST + 1)
    except OSError as error:
        raise EnrollError("E317", f"{path}: {error.strerror}") from None
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # no such member, no zip file, packed in a way zipfile cannot read, or encrypted
        raise EnrollError("E115", f"{path}: {error}"[:160]) from None
    if len(content) > MOST:
        raise EnrollError("E113", f"{name} in {path}")
    return content
