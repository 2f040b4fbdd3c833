"""The operator's half of joining without a network: approve a request file (zip) and write a signed answer file."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import canonical_json, certificates
from fedhet.federation.pki.canonical_json import digest
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.pki.offline_archive import DOMAIN, read, write
from fedhet.federation.server import admission, registry_writes
from fedhet.federation.server.operator import Federation, me

MAX_AGE_DAYS = 30.0
"""Greatest age of a request, in days."""


def answer(federation: Federation, archive: Path, out: Path, *, name: str = "", device_class: str = "edge") -> str:
    """Approve a request, write the answer to `out` and return the client's name. Raises what joining online raises."""
    try:
        body = canonical_json.parse(read(archive, "request.json"))
    except ValueError as error:
        raise EnrollError("E115", f"{archive}: {error}"[:160]) from None
    if not isinstance(body, dict):
        raise EnrollError("E115", f"{archive} contains no request")
    applicant, nonces = admission.read_application(federation, body, "offline", MAX_AGE_DAYS * DAY)
    now = federation.clock()
    known = federation.registry.by_node(applicant.node)
    if known is None:
        name, token = federation.invite(name or applicant.name, device_class)
        with federation.transaction() as session:
            for nonce in nonces:
                registry_writes.fresh(session, applicant.node, nonce, now, 2 * MAX_AGE_DAYS * DAY)
            row = registry_writes.redeem(session, token.id, token.secret, applicant.public, now)
            if isinstance(row, EnrollError):
                raise row
            registry_writes.apply(session, row, applicant, now)
            federation.note(session, row, me(), "enrol", node=applicant.node, address="offline")
        federation.approve(applicant.node)
    state = admission.client_state(federation, federation.registry.client(applicant.node))
    about = federation.authority.about
    reply = canonical_json.canonical({**state, "endpoint": about.endpoint, "federation": about.federation})
    pair = private_files.read_private(federation.authority.folder / "server.pem")
    signature = federation.authority.server_key().sign(digest(DOMAIN, reply), ec.ECDSA(hashes.SHA256()))
    crosses = federation.authority.crosses()
    line = [c for c in x509.load_pem_x509_certificates(pair) if c not in crosses]
    chain = certificates.text([*line, federation.authority.root])
    write(out, {"answer.json": reply, "answer.sig": signature, "chain.pem": chain})
    return str(state["name"])
