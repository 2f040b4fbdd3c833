"""What an operator does with a federation: create it, invite, approve, reject, suspend, resume and revoke clients.

<folder>/ca/  policy.yaml  registry.db  audit.jsonl  flower/
"""

from __future__ import annotations

import getpass
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import operator_key
from fedhet.federation.pki.ca import Authority
from fedhet.federation.pki.ca_requirements import check_new
from fedhet.federation.pki.invitation import Token
from fedhet.federation.server import registry_check, registry_writes, schema
from fedhet.federation.server.audit_log import Audit
from fedhet.federation.server.client_names import check_name
from fedhet.federation.server.policy import Policy
from fedhet.federation.server.registry import Client, Registry
from fedhet.federation.server.schema import ClientRow
from fedhet.system import network_port

log = logging.getLogger("fedhet.federation")


def me() -> str:
    """The user who runs the command, for the audit log: the account's name, or its number where it has no name."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:{os.getuid()}"


@dataclass
class Federation:
    """A federation in its folder of mode 0700. Every change is one transaction with one audit line.

    `clock` is the time of day, in seconds since 1970, for certificates, tokens, signed requests and records. `ticks` is
    a monotonic clock, for durations within this process."""

    folder: Path
    clock: Callable[[], float] = time.time
    ticks: Callable[[], float] = time.monotonic
    authority: Authority = field(init=False)
    policy: Policy = field(init=False)
    registry: Registry = field(init=False)
    audit: Audit = field(init=False)

    shut_out: dict[int, str] = field(default_factory=dict)
    """Clients that this process refuses although the registry cannot be written yet: reason by client number."""

    def __post_init__(self) -> None:
        self.authority = Authority.load(self.folder / "ca")
        self.policy = Policy.load(self.folder / "policy.yaml")
        self.registry = Registry(self.folder / "registry.db")
        self.audit = Audit(self.folder / "audit.jsonl", self.clock)

    @classmethod
    def create(
        cls, folder: Path, federation: str, endpoint: str, hosts: Sequence[str] = (), *, passphrase: str = "",
        root: Path | None = None, signer: Sequence[str] = (), clock: Callable[[], float] = time.time,
        policy: Policy | None = None,
    ) -> Federation:  # fmt: skip
        """Create a federation that devices reach at "host:port"; `hosts` are further names of the server.

        Raises EnrollError E319 for a malformed endpoint, and what `ca_requirements.check_new` raises.
        """
        try:
            host, _ = network_port.endpoint(endpoint)
        except ValueError as error:
            raise EnrollError("E319", f"--endpoint {endpoint}: {error}") from None
        names = list(dict.fromkeys([host, *hosts]))
        check_new(folder / "ca", federation, names, passphrase=passphrase, root=root, command=signer)
        with private_files.all_or_none(folder):
            (policy or Policy()).save(folder / "policy.yaml")
            authority = Authority.create(
                folder / "ca", federation, endpoint, names, clock(), passphrase=passphrase, root=root, command=signer
            )
        created = cls(folder, clock)
        created.authority = authority  # its keys are decrypted already
        operator_key.ensure(created.authority)
        created.audit.append(me(), "found", federation, endpoint=endpoint, root=created.authority.fingerprint)
        return created

    def close(self) -> None:
        """Release the registry's file."""
        self.registry.close()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A registry transaction whose `note` calls also add lines to the audit log: both are stored, or neither.

        Lines that cannot be appended to the log now wait in the registry, and the cause is logged as an error.
        """
        with self.registry.transaction() as session:
            yield session
        try:
            with self.registry.transaction() as session:
                registry_check.settle(session, self.audit)
        except (OSError, EnrollError) as error:
            log.error("the audit log cannot be written; its lines wait in the registry: %s", error)

    def note(self, session: Session, row: ClientRow, actor: str, action: str, **detail: Any) -> None:
        """Add a line about a client that this transaction changes to the audit log."""
        registry_check.note(session, self.audit, row, actor or me(), action, **detail)

    def invite(
        self, name: str = "", device_class: str = "edge", *, hours: float | None = None,
        labels: Mapping[str, str] | None = None, actor: str = "",
    ) -> tuple[str, Token]:  # fmt: skip
        """Create a client and a token with which one device can enrol as it; returns the client's name and the token.

        Raises EnrollError E104, E117, E118, E211 or E319.
        """
        if device_class not in self.policy.client_days:
            raise EnrollError("E319", f"there is no class {device_class!r}: {sorted(self.policy.client_days)}")
        token = Token.new(self.authority.about.endpoint, self.authority.fingerprint)
        name, now = name or f"{device_class}-{token.id[:8]}", self.clock()
        check_name(name)
        expires = now + 3600 * (self.policy.token_hours if hours is None else hours)
        with self.transaction() as session:
            row = registry_writes.invite(
                session, token.id, token.hash, name=name, device_class=device_class, labels=labels or {},
                expires=expires, now=now, most=self.policy.most_clients, most_per_owner=self.policy.most_per_owner,
            )  # fmt: skip
            self.note(session, row, actor, "invite", token=token.id, expires=int(expires))
        return name, token

    def approve(self, name: str, actor: str = "") -> Client:
        """Approve a pending device, which gets its certificate when it polls next. Raises EnrollError E210, E211 or
        E309."""
        client = self.registry.client(name)
        if client.state != schema.PENDING or client.csr is None or client.node is None:
            raise EnrollError("E211", f"{client.name} is {client.state}, not pending")
        days, now = self.policy.client_days[client.device_class], self.clock()
        chain, leaf = self.authority.issue(
            client.csr, client.node, days, now
        )  # outside the transaction: a signer may be slow
        with self.transaction() as session:
            row = registry_writes.by_name(session, client.node)
            registry_writes.move(row, schema.ACTIVE, now, of=(schema.PENDING,))
            registry_writes.grant(session, row, leaf, chain, client.csr)
            row.approved_examples = int(row.declared.get("examples", 0))
            self.note(session, row, actor, "approve", node=row.node, serial=leaf.serial, examples=row.approved_examples)
        return self.registry.client(client.node)

    def weigh(self, name: str, examples: int | None = None, actor: str = "") -> Client:
        """Approve the number of examples that a client is weighted with: `examples`, or what it declares now.

        Raises EnrollError E210, E211 or E319.
        """
        if examples is not None and examples < 0:
            raise EnrollError("E319", f"--examples {examples} must not be negative")
        with self.transaction() as session:
            row = registry_writes.by_name(session, name)
            if row.state not in (schema.ACTIVE, schema.SUSPENDED):
                raise EnrollError(
                    "E211", f"{row.name} is {row.state}: its examples are approved together with the client"
                )
            old, declared = row.approved_examples, int(row.declared.get("examples", 0))
            row.approved_examples, row.changed = declared if examples is None else examples, self.clock()
            self.note(
                session, row, actor, "weigh", node=row.node, old=old, new=row.approved_examples, declared=declared
            )
            number = row.number
        return next(c for c in self.registry.clients() if c.number == number)

    def reject(self, name: str, reason: str, actor: str = "") -> Client:
        """Reject a pending or invited device. Raises EnrollError E210 or E211."""
        return self._change(name, schema.REVOKED, "reject", reason, actor, of=(schema.PENDING, schema.INVITED))

    def suspend(self, name: str, reason: str = "", actor: str = "") -> Client:
        """Suspend a client until it is resumed. Raises EnrollError E210 or E211."""
        return self._change(name, schema.SUSPENDED, "suspend", reason, actor)

    def resume(self, name: str, actor: str = "") -> Client:
        """Make a suspended client active again. Raises EnrollError E210 or E211."""
        return self._change(name, schema.ACTIVE, "resume", "", actor, of=(schema.SUSPENDED,))

    def revoke(self, name: str, reason: str, actor: str = "") -> Client:
        """Revoke a client for good, effective at its next message, and all its certificates. Raises EnrollError E210 or
        E211."""
        return self._change(name, schema.REVOKED, "revoke", reason, actor)

    def shut(self, name: str, reason: str) -> Client:
        """Refuse a client in this process at once; `settle` revokes it as soon as the registry can be written.

        Raises EnrollError E210, or E211 if it is revoked or left already.
        """
        client = self.registry.client(name)
        if client.state not in schema.LIVING:
            raise EnrollError("E211", f"{client.name} is {client.state}")
        self.shut_out[client.number] = reason
        return client

    def settle(self) -> list[str]:
        """Revoke the clients that were shut out, and return their names. Raises OSError and the registry's errors."""
        done, shut = [], dict(self.shut_out)  # more may be shut out meanwhile
        for client in self.registry.clients(*schema.LIVING) if shut else []:
            if client.number in shut:
                self.revoke(client.node or client.name, shut[client.number])
                done.append(client.name)
        for number in shut:
            self.shut_out.pop(number, None)
        return done

    def leave(self, client: Client) -> Client:
        """Record that a client leaves the federation itself."""
        assert client.node is not None
        return self._change(client.node, schema.LEFT, "leave", "left by itself", f"client:{client.node}")

    def crl(self) -> bytes:
        """The signed certificate revocation list, PEM."""
        return self.authority.crl(self.registry.denied(self.clock()), self.clock())

    def _change(
        self, name: str, state: str, action: str, reason: str, actor: str, of: Collection[str] = schema.LIVING
    ) -> Client:  # fmt: skip
        now = self.clock()
        with self.transaction() as session:
            row = registry_writes.by_name(session, name)
            registry_writes.move(row, state, now, reason, of)
            denied = registry_writes.deny(session, row, now, reason) if state in (schema.REVOKED, schema.LEFT) else []
            self.note(session, row, actor, action, node=row.node, reason=reason, serials=denied)
            number = row.number
        return next(c for c in self.registry.clients() if c.number == number)
