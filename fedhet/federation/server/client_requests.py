"""What an enrolled client may ask for: a new certificate, new keys, a new profile. No network here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates, identity, signed_requests
from fedhet.federation.pki.canonical_json import unb64
from fedhet.federation.server import client_profiles, registry_writes, schema
from fedhet.federation.server.admission import check_memory, client_state, text_field
from fedhet.federation.server.authentication import Caller
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.registry_writes import Applicant


def renew(federation: Federation, caller: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
    """Issue a certificate for a new TLS key. The request is signed by the identity key.

    Repeating the same request returns the same certificate. Raises EnrollError E110, E111, E203, E204 or E211.
    """
    client, now = caller.client, federation.clock()
    assert client.public is not None and client.node is not None
    nonce = signed_requests.check_body(client.public, "renew", body, now, federation.policy.skew_s, "E111")
    csr = text_field(body, "csr").encode()
    certificates.check_request(csr, client.node)
    newest = federation.registry.newest(client.number)
    if newest is None or newest.request != csr:
        chain, leaf = federation.authority.issue(
            csr, client.node, federation.policy.client_days[client.device_class], now
        )
        with federation.transaction() as session:
            registry_writes.fresh(session, client.node, nonce, now, 2 * federation.policy.skew_s)
            row = registry_writes.by_name(session, client.node)
            if row.state != schema.ACTIVE:
                raise EnrollError("E211", f"{row.name} is {row.state}")
            registry_writes.grant(session, row, leaf, chain, csr)
            federation.note(session, row, f"client:{client.node}", "renew", old=caller.leaf.serial, serial=leaf.serial)
    return client_state(federation, federation.registry.client(client.node))


def rotate(federation: Federation, caller: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
    """Replace all keys of a client: identity, SuperNode and TLS. The old certificates are revoked in the same
    transaction.

    `body` is signed by the old identity key; `proof` is the new key's signature over the old node id and the
    certificate request. A device that lost the answer polls with its new key. Raises EnrollError E110, E111, E114,
    E115, E203, E204 or E211."""
    client, now = caller.client, federation.clock()
    assert client.public is not None and client.node is not None
    nonce = signed_requests.check_body(client.public, "rotate", body, now, federation.policy.skew_s, "E111")
    try:
        public, proof = unb64(text_field(body, "public")), unb64(text_field(body, "proof"))
        line, csr = text_field(body, "flower_public"), text_field(body, "csr").encode()
        identity.flower_key(line)
    except ValueError as error:
        raise EnrollError("E115", f"{type(error).__name__}: {error}"[:120]) from None
    if not identity.verify(public, proof, identity.ROTATION, client.node.encode(), csr):
        raise EnrollError("E111", "the new key did not sign")
    node = identity.node_id(public)
    days = federation.policy.client_days[client.device_class]
    chain, leaf = federation.authority.issue(csr, node, days, now)
    with federation.transaction() as session:
        registry_writes.fresh(session, client.node, nonce, now, 2 * federation.policy.skew_s)
        row = registry_writes.by_name(session, client.node)
        if row.state != schema.ACTIVE:
            raise EnrollError("E211", f"{row.name} is {row.state}")
        denied = registry_writes.deny(session, row, now, "keys rotated")
        registry_writes.replace_keys(session, row, Applicant(node, public, line, csr), now)
        registry_writes.grant(session, row, leaf, chain, csr)
        federation.note(session, row, f"client:{client.node}", "rotate", node=node, serial=leaf.serial, serials=denied)
    return client_state(federation, federation.registry.client(node))


def new_profile(federation: Federation, caller: Caller, body: Any) -> dict[str, Any]:
    """Replace the declared and measured columns of a client's profile. Raises EnrollError E203, E204, E302 or E303."""
    client, now = caller.client, federation.clock()
    assert client.public is not None and client.node is not None
    declared, measured, nonce = client_profiles.check(client.public, client.node, body, now, federation.policy.skew_s)
    check_memory(federation, client.device_class, declared)
    with federation.transaction() as session:
        registry_writes.fresh(session, client.node, nonce, now, 2 * federation.policy.skew_s)
        row = registry_writes.by_name(session, client.node)
        before, after = int(row.declared.get("examples", 0)), int(declared.get("examples", 0))
        row.declared, row.measured, row.changed = declared, measured, now
        change = {"old": before, "new": after, "approved": row.approved_examples}
        changes = {} if after == before else {"examples": change}
        federation.note(session, row, f"client:{client.node}", "profile", **changes)
    return client_state(federation, federation.registry.client(client.node))
