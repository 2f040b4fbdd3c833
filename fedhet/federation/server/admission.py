"""Enrolment of devices: an application with a token, polling for approval, and the state that a device is sent.

No network here: each function takes a parsed request body and returns the body of the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates, identity, operator_key, signed_requests
from fedhet.federation.pki.canonical_json import unb64
from fedhet.federation.server import client_profiles, registry_check, registry_writes, schema
from fedhet.federation.server.client_names import check_name
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.registry import Client
from fedhet.federation.server.registry_writes import Applicant

VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")
RETRY_S = 5
"""Seconds after which a device that waits for approval should poll again; sent to it as `retry_s`."""


def enrol(federation: Federation, body: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Redeem a token for a device's keys. The client is pending afterwards, or active if the policy approves its class.

    Raises EnrollError E101, E102, E104, E106, E107, E110, E111, E114 to E116, E203, E301 to E303.
    """
    now, policy = federation.clock(), federation.policy
    applicant, nonces = read_application(federation, body, address, policy.skew_s)
    with federation.transaction() as session:
        for nonce in nonces:
            registry_writes.fresh(session, applicant.node, nonce, now, 2 * policy.skew_s)
        row = registry_writes.redeem(
            session, text_field(body, "token", ""), text_field(body, "secret", ""), applicant.public, now
        )
        if isinstance(row, EnrollError):
            who = {"token": text_field(body, "token", "")[:16], "address": address}
            registry_check.queue_line(
                session, federation.audit, f"device:{applicant.node}", "refused", code=row.code, **who
            )
            refusal: EnrollError | None = row  # raised after the commit, so that the failed attempt stays counted
        else:
            refusal = None
            if row.state == schema.INVITED:
                if applicant.name not in ("", row.name):
                    raise EnrollError("E119", f"it is for {row.name}")
                check_memory(federation, row.device_class, applicant.declared)
                registry_writes.apply(session, row, applicant, now)
                federation.note(session, row, f"device:{applicant.node}", "enrol", address=address)
    if refusal is not None:
        raise refusal
    client = federation.registry.client(applicant.node)
    if client.state == schema.PENDING and client.device_class in policy.auto_approve:
        client = federation.approve(applicant.node, actor="policy")
    return client_state(federation, client)


def poll(
    federation: Federation, body: Mapping[str, Any], proven: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The state of an application, asked for by its device. `proven` is called with the node id once the signature is
    verified. Raises what `proven` raises, and EnrollError E109, E111, E115, E202, E203, E204, E210 or E212."""
    node = text_field(body, "node")
    client = federation.registry.by_node(node)
    if client is None or client.public is None:
        raise EnrollError("E210", node[:12])
    now, skew = federation.clock(), federation.policy.skew_s
    nonce = signed_requests.check_body(client.public, "poll", body, now, skew, "E111")
    proven(str(client.node))
    with federation.registry.transaction() as session:
        registry_writes.fresh(session, str(client.node), nonce, now, 2 * skew)
    return client_state(federation, client)


def client_state(federation: Federation, client: Client) -> dict[str, Any]:
    """A client's state as it is sent to its device, with the certificate once one is issued.

    Raises EnrollError E109, E202 or E212.
    """
    if client.number in federation.shut_out:
        raise EnrollError("E202", federation.shut_out[client.number])
    if client.state == schema.REVOKED:
        raise EnrollError("E202" if client.serials else "E109", client.reason)
    if client.state == schema.LEFT:
        raise EnrollError("E212")
    answer: dict[str, Any] = {"state": client.state, "name": client.name, "node": client.node, "number": client.number}
    answer |= {
        "server_time": int(federation.clock()),
        "retry_s": RETRY_S,
        "federation": federation.authority.about.federation,
    }
    if crosses := federation.authority.crosses():
        answer["roots"] = certificates.text([federation.authority.root, *crosses]).decode()
    if revoked := federation.authority.revoked():
        answer["revoked"] = revoked
    if line := operator_key.line(federation.authority.folder):
        answer["operator"] = operator_key.to_json(line)
    newest = federation.registry.newest(client.number)
    return {**answer, "chain": newest.chain.decode(), "serial": newest.serial} if newest else answer


def read_application(
    federation: Federation, body: Mapping[str, Any], address: str, skew: float
) -> tuple[Applicant, list[str]]:
    """Parse an application and verify its signatures, keys and profile; returns it with the nonces it used.

    Raises EnrollError E110, E111, E115, E203, E301 or E303.
    """
    now = federation.clock()
    try:
        public = unb64(text_field(body, "public"))
        line, csr = text_field(body, "flower_public"), text_field(body, "csr").encode()
        identity.flower_key(line)
        version = version_numbers(text_field(body, "version"))
    except ValueError as error:
        raise EnrollError("E115", f"{type(error).__name__}: {error}"[:120]) from None
    if version < version_numbers(federation.policy.min_version):
        yours = ".".join(map(str, version))
        raise EnrollError("E301", f"yours {yours}, at least {federation.policy.min_version}")
    node = identity.node_id(public)
    nonces = [signed_requests.check_body(public, "enrol", body, now, skew, "E111")]
    certificates.check_request(csr, node)
    declared, measured, nonce = client_profiles.check(public, node, body.get("profile"), now, skew)
    name = text_field(body, "name", "")
    if name:
        check_name(name)
    partition = declared.get("partition")
    return Applicant(node, public, line, csr, name, address, partition, declared, measured), [*nonces, nonce]


def check_memory(federation: Federation, device_class: str, declared: Mapping[str, Any]) -> None:
    least = federation.policy.min_memory_bytes.get(device_class, 0)
    if declared.get("memory_bytes", 0) < least:
        raise EnrollError("E302", f"memory {declared.get('memory_bytes', 0)} of {least} bytes")


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, at most three. Raises ValueError if there is none."""
    found = VERSION.match(version)
    if found is None:
        raise ValueError(f"{version[:40]!r} is not a version")
    return tuple(int(part) for part in found[0].split("."))


def text_field(body: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A string field of a request body. Raises EnrollError E115 if it is missing or of another type."""
    value = body.get(key, default)
    if not isinstance(value, str):
        raise EnrollError("E115", f"{key} is missing" if value is None else f"{key} is not a string")
    return value
