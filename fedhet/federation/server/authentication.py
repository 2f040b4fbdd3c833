"""Whose request it is: the checks of a signed request's certificate, signature, dates and registry entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import signed_requests
from fedhet.federation.pki.certificates import DAY, Leaf
from fedhet.federation.server import registry_writes, schema
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.registry import Client
from fedhet.federation.server.schema import CertificateRow


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that proved its identity with a valid certificate."""

    client: Client
    leaf: Leaf


def recognise(federation: Federation, headers: Mapping[str, str]) -> tuple[Client, CertificateRow, Leaf]:
    """The client whose certificate a request carries, before its signature is verified. Raises EnrollError E115 or
    E208."""
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
    """Verify a signed request and return its sender. `proven` is called with the node id once the signature is
    verified.

    `renewing` also accepts a certificate that expired within the policy's `grace_days`. Raises EnrollError E115, E201
    to E209 or E212, and what `proven` raises."""
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
    """Raises EnrollError E105, E202, E206 or E212 unless the client is active and not shut out.

    `shut_out` maps client numbers to reasons (see `Federation.shut_out`).
    """
    if client.number in (shut_out or {}):
        raise EnrollError("E202", (shut_out or {})[client.number])
    if client.state == schema.ACTIVE:
        return
    codes = {schema.SUSPENDED: "E206", schema.REVOKED: "E202", schema.LEFT: "E212"}
    raise EnrollError(codes.get(client.state, "E105"), client.reason)


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


def _not_expired(leaf: Leaf, now: float, grace_days: float, renewing: bool) -> None:
    if now <= leaf.not_after:
        return
    days = (now - leaf.not_after) / DAY
    if not renewing:
        raise EnrollError("E201", f"{days:.1f} days ago")
    if days > grace_days:
        raise EnrollError("E209", f"{days:.1f} days ago, allowed {grace_days:g}")
