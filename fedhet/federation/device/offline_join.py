"""Enrolment without a network: the device writes a request file (zip) and imports the operator's signed answer.

The request is signed as a request over the network is. The answer is signed with the federation's server key, and the
device accepts it only if that key's certificate chains to the root whose hash the operator gave over another channel.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join
from fedhet.federation.device.join import Data
from fedhet.federation.device.state import Device
from fedhet.federation.pki import certificates, signed_requests
from fedhet.federation.pki.canonical_json import digest
from fedhet.federation.pki.offline_archive import DOMAIN, read, write

Clock: TypeAlias = Callable[[], float]


def request(folder: Path, out: Path, data: Data, *, name: str, measured: Mapping[str, int], clock: Clock) -> Device:
    """Generate keys and write a request file. Raises EnrollError E306 if a client uses the folder already."""
    device = join.prepare(folder, data, clock=clock)
    body = signed_requests.sign_body(
        device.identity, "enrol", join.application(device, name=name, measured=measured), clock()
    )
    write(out, {"request.json": json.dumps(body).encode()})
    return device


def accept(device: Device, archive: Path, fingerprint: str) -> dict[str, Any]:
    """Import an answer file. Raises EnrollError E103 unless its root has this SHA-256, E311 if it is for another
    device."""
    chain = x509.load_pem_x509_certificates(read(archive, "chain.pem"))
    root, wanted = chain[-1], fingerprint.replace(":", "").lower()
    if not hmac.compare_digest(certificates.fingerprint(root), wanted):
        raise EnrollError("E103", f"expected {wanted[:16]}…, found {certificates.fingerprint(root)[:16]}…")
    reply = read(archive, "answer.json")
    _check_signature(chain, reply, read(archive, "answer.sig"), device.clock())
    answer = json.loads(reply)
    if answer.get("node") != device.identity.node_id:
        raise EnrollError("E311", "the answer is for another device")
    device.trust.check(chain)
    device.trust.write([root])
    device.note(endpoint=answer["endpoint"])
    return join.store_answer(device, answer)


def _check_signature(chain: list[x509.Certificate], reply: bytes, signature: bytes, now: float) -> None:
    for child, parent in pairwise(chain):
        if not certificates.issued_by(child, parent) or now > child.not_valid_after_utc.timestamp():
            raise EnrollError("E103", "the certificate of the answer's signer does not chain to the root")
    purposes = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    key = chain[0].public_key()
    serves = len(chain) > 1 and ExtendedKeyUsageOID.SERVER_AUTH in purposes
    if not serves or not isinstance(key, ec.EllipticCurvePublicKey):
        raise EnrollError("E103", "the answer was not signed by the federation's server")
    try:
        key.verify(signature, digest(DOMAIN, reply), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EnrollError("E103", "the answer's signature is wrong") from None
