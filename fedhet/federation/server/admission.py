"""What a device may ask of a federation, and the checks before each answer. No network here: bodies in, bodies out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates, identity, operator_key, signed_requests
from fedhet.federation.pki.canonical_json import unb64
from fedhet.federation.pki.certificates import DAY, Leaf
from fedhet.federation.server import client_profiles, registry_check, registry_writes, schema
from fedhet.federation.server.client_names import check_name
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.registry import Client
from fedhet.federation.server.registry_writes import Applicant
from fedhet.federation.server.schema import CertificateRow

VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")
RETRY_S = 5
"""How long a device that waits for approval should wait before it asks again."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that proved who it is by a certificate that holds."""

    client: Client
    leaf: Leaf


def enrol(federation: Federation, body: Mapping[str, Any], address: str) -> dict[str, Any]:
    """A device shows its token and its keys; it is pending afterwards, or active if the policy says so.

    Raises EnrollError E101, E102, E104, E106, E107, E110, E111, E114 to E116, E203, E301 to E303.
    """
    now, policy = federation.clock(), federation.policy
    applicant, nonces = read_application(federation, body, address, policy.skew_s)
    with federation.transaction() as session:
        for nonce in nonces:
            registry_writes.fresh(session, applicant.node, nonce, now, 2 * policy.skew_s)
        row = registry_writes.redeem(
            session, _text(body, "token", ""), _text(body, "secret", ""), applicant.public, now
        )
        if isinstance(row, EnrollError):
            who = {"token": _text(body, "token", "")[:16], "address": address}
            registry_check.wait(session, federation.audit, f"device:{applicant.node}", "refused", code=row.code, **who)
            refusal: EnrollError | None = row  # raised after the commit, so that the wrong try stays counted
        else:
            refusal = None
            if row.state == schema.INVITED:
                if applicant.name not in ("", row.name):
                    raise EnrollError("E119", f"it is for {row.name}")
                _big_enough(federation, row.device_class, applicant.declared)
                registry_writes.apply(session, row, applicant, now)
                federation.note(session, row, f"device:{applicant.node}", "enrol", address=address)
    if refusal is not None:
        raise refusal
    client = federation.registry.client(applicant.node)
    if client.state == schema.PENDING and client.device_class in policy.auto_approve:
        client = federation.approve(applicant.node, actor="policy")
    return standing(federation, client)


def poll(
    federation: Federation, body: Mapping[str, Any], proven: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """A device asks what became of it; `proven` is told its node id once it signed. Raises what `proven` does, or E109,
    E111, E115, E202, E203, E204, E210, E212."""
    node = _text(body, "node")
    client = federation.registry.by_node(node)
    if client is None or client.public is None:
        raise EnrollError("E210", node[:12])
    now, skew = federation.clock(), federation.policy.skew_s
    nonce = signed_requests.check_body(client.public, "poll", body, now, skew, "E111")
    proven(str(client.node))
    with federation.registry.transaction() as session:
        registry_writes.fresh(session, str(client.node), nonce, now, 2 * skew)
    return standing(federation, client)


def standing(federation: Federation, client: Client) -> dict[str, Any]:
    """A client's state as told to its device; with the certificate once there is one. Raises E109, E202 or E212."""
    if client.number in federation.shut_out:
        raise EnrollError("E202", federation.shut_out[client.number])
    if client.state == schema.REVOKED:
        raise EnrollError("E202" if client.serials else "E109", client.reason)
    if client.state == schema.LEFT:
        raise EnrollError("E212")
    told: dict[str, Any] = {"state": client.state, "name": client.name, "node": client.node, "number": client.number}
    told |= {
        "server_time": int(federation.clock()),
        "retry_s": RETRY_S,
        "federation": federation.authority.about.federation,
    }
    if crosses := federation.authority.crosses():
        told["roots"] = certificates.text([federation.authority.root, *crosses]).decode()
    if revoked := federation.authority.revoked():
        told["revoked"] = revoked
    if line := operator_key.line(federation.authority.folder):
        told["operator"] = operator_key.tell(line)
    newest = federation.registry.newest(client.number)
    return {**told, "chain": newest.chain.decode(), "serial": newest.serial} if newest else told


def recognise(federation: Federation, headers: Mapping[str, str]) -> tuple[Client, CertificateRow, Leaf]:
    """Whose certificate a request shows, not proven by a signature yet. Raises EnrollError E115 or E208."""
    leaf = federation.authority.read(signed_requests.read(headers).certificate)
    row = federation.registry.certificate(leaf.serial)
    client = federation.registry.by_node(leaf.node)
    if row is None or client is None or row.client != client.number or row.public != leaf.public:
        raise EnrollError("E208", "the registry does not know it")
    return client, row, leaf


def authenticate(
    federation: Federation, headers: Mapping[str, str], method: str, path: str, body: bytes, *, renewing: bool = False,
    proven: Callable[[str], None] = lambda _: None,
) -> Caller:  # fmt: skip
    """Who sealed this request; `proven` is told the node id once the signature is known to hold.

    Raises EnrollError E115, E201 to E209 or E212, each of them a test, and what `proven` does.
    """
    given, now, policy = signed_requests.read(headers), federation.clock(), federation.policy
    client, row, leaf = recognise(federation, headers)
    signed_requests.check(given, leaf.public, method, path, body, now, policy.skew_s)
    proven(leaf.node)
    may_act(client, federation.shut_out)
    if row.denied is not None:
        raise EnrollError("E202", row.reason)
    if now < leaf.not_before:
        raise EnrollError("E207")
    _not_expired(leaf, now, policy.grace_days if renewing else 0.0, renewing)
    with federation.registry.transaction() as session:
        registry_writes.fresh(session, leaf.node, given.nonce, now, 2 * policy.skew_s)
    return Caller(client, leaf)


def may_act(client: Client, shut_out: Mapping[int, str] | None = None) -> None:
    """Raises EnrollError E105, E202, E206 or E212 unless the client is active, and not shut out."""
    if client.number in (shut_out or {}):
        raise EnrollError("E202", (shut_out or {})[client.number])
    if client.state == schema.ACTIVE:
        return
    codes = {schema.SUSPENDED: "E206", schema.REVOKED: "E202", schema.LEFT: "E212"}
    raise EnrollError(codes.get(client.state, "E105"), client.reason)


def renew(federation: Federation, caller: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
    """A new certificate for a new key, asked for with the old one and signed by the identity key.

    Raises EnrollError E110, E111, E203 or E204. Asking again with the same request gives the same certificate.
    """
    client, now = caller.client, federation.clock()
    assert client.public is not None and client.node is not None
    nonce = signed_requests.check_body(client.public, "renew", body, now, federation.policy.skew_s, "E111")
    csr = _text(body, "csr").encode()
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
    return standing(federation, federation.registry.client(client.node))


def rotate(federation: Federation, caller: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
    """New keys of every kind for the same client, asked for with the old ones; the old ones end with the answer.

    `body` is signed by the old identity key; `proof` is the new one's signature over the old node id and the request. A
    device whose answer was lost asks by `poll` with its new key. Raises EnrollError E110, E111, E114, E115, E203, E204.
    """
    client, now = caller.client, federation.clock()
    assert client.public is not None and client.node is not None
    nonce = signed_requests.check_body(client.public, "rotate", body, now, federation.policy.skew_s, "E111")
    try:
        public, proof = unb64(_text(body, "public")), unb64(_text(body, "proof"))
        line, csr = _text(body, "flower_public"), _text(body, "csr").encode()
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
    return standing(federation, federation.registry.client(node))


def new_profile(federation: Federation, caller: Caller, body: Any) -> dict[str, Any]:
    """Replace the declared and measured columns. Raises EnrollError E203, E204 or E303."""
    client, now = caller.client, federation.clock()
    assert client.public is not None and client.node is not None
    declared, measured, nonce = client_profiles.check(client.public, client.node, body, now, federation.policy.skew_s)
    _big_enough(federation, client.device_class, declared)
    with federation.transaction() as session:
        registry_writes.fresh(session, client.node, nonce, now, 2 * federation.policy.skew_s)
        row = registry_writes.by_name(session, client.node)
        before, after = int(row.declared.get("examples", 0)), int(declared.get("examples", 0))
        row.declared, row.measured, row.changed = declared, measured, now
        change = {"old": before, "new": after, "approved": row.approved_examples}
        told = {} if after == before else {"examples": change}
        federation.note(session, row, f"client:{client.node}", "profile", **told)
    return standing(federation, federation.registry.client(client.node))


def fleet_key(federation: Federation, line: str) -> Client:
    """The active client with an unexpired certificate whose SuperNode has this key. Raises E201, E202, E206 to E212."""
    client = federation.registry.by_flower_key(line)
    if client is None:
        raise EnrollError("E208", "no client has this SuperNode key")
    may_act(client, federation.shut_out)
    now = federation.clock()
    newest: CertificateRow | None = federation.registry.newest(client.number)
    if newest is None:
        raise EnrollError("E202", client.reason)
    if now > newest.not_after:
        raise EnrollError("E201", f"{(now - newest.not_after) / DAY:.1f} days ago")
    return client


def read_application(
    federation: Federation, body: Mapping[str, Any], address: str, skew: float
) -> tuple[Applicant, list[str]]:
    """An application whose signatures, keys and claim hold, and the nonces it used.

    Raises EnrollError E110, E111, E115, E203, E301 or E303.
    """
    now = federation.clock()
    try:
        public = unb64(_text(body, "public"))
        line, csr = _text(body, "flower_public"), _text(body, "csr").encode()
        identity.flower_key(line)
        version = _number(_text(body, "version"))
    except ValueError as error:
        raise EnrollError("E115", f"{type(error).__name__}: {error}"[:120]) from None
    if version < _number(federation.policy.min_version):
        yours = ".".join(map(str, version))
        raise EnrollError("E301", f"yours {yours}, at least {federation.policy.min_version}")
    node = identity.node_id(public)
    nonces = [signed_requests.check_body(public, "enrol", body, now, skew, "E111")]
    certificates.check_request(csr, node)
    declared, measured, nonce = client_profiles.check(public, node, body.get("profile"), now, skew)
    name = _text(body, "name", "")
    if name:
        check_name(name)
    partition = declared.get("partition")
    return Applicant(node, public, line, csr, name, address, partition, declared, measured), [*nonces, nonce]


def _not_expired(leaf: Leaf, now: float, grace_days: float, renewing: bool) -> None:
    if now <= leaf.not_after:
        return
    days = (now - leaf.not_after) / DAY
    if not renewing:
        raise EnrollError("E201", f"{days:.1f} days ago")
    if days > grace_days:
        raise EnrollError("E209", f"{days:.1f} days ago, allowed {grace_days:g}")


def _big_enough(federation: Federation, device_class: str, declared: Mapping[str, Any]) -> None:
    least = federation.policy.min_memory_bytes.get(device_class, 0)
    if declared.get("memory_bytes", 0) < least:
        raise EnrollError("E302", f"memory {declared.get('memory_bytes', 0)} of {least} bytes")


def _number(version: str) -> tuple[int, ...]:
    """The numbers a version begins with, at most three. Raises ValueError if there is none."""
    found = VERSION.match(version)
    if found is None:
        raise ValueError(f"{version[:40]!r} is no version")
    return tuple(int(part) for part in found[0].split("."))


def _text(body: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A field that is a text. Raises EnrollError E115."""
    value = body.get(key, default)
    if not isinstance(value, str):
        raise EnrollError("E115", f"{key} is missing" if value is None else f"{key} is not a text")
    return value
